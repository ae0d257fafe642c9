"""``xnorc compile --tune``: schedules refined on the device itself.

The templates of kernels ship with good choices for what they leave open (``lower/knobs.py``). The tuner takes the layers of a
model in the order of their share of the time, lets TVM's MetaSchedule draw other choices (``space``), compiles many
candidates into one program that the device runs step by step (``measure``), and keeps the fastest one that computes the
same bits as the shipped kernel (``search``). What was found is kept in a file, layer by layer (``records``).
"""

from .records import LayerRecord, Records, default_file
from .search import LayerResult, Tuning, tune

__all__ = ["LayerRecord", "LayerResult", "Records", "Tuning", "default_file", "tune"]
