"""Post-training int8 of the layers that stay in float: which they are, and the ranges of their activations on given data.

The range of a tensor is [−c, c], with c at most its largest magnitude: the c that makes the mean squared error least, of
rounding inside (step²/12, for values other than 0, which are exact) and of clipping outside, over a histogram of the data (the
criterion of W. Sung et al., "Resiliency of deep neural networks under quantization", arXiv 1511.06488, 2015). The pass
``int8_layers`` says what is done with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx

from . import golden
from .errors import InputError
from .passes import Int8Input, Options, Status
from .passes import optimize as run_passes
from .passes.fixed.int8_layers import MOST
from .passes.manager import PASSES
from .samples import split

if TYPE_CHECKING:
    from collections.abc import Callable

CHOICES = ("float32", "int8")
"""What ``float_layers`` may be."""
LAYERS = ("Conv", "Gemm", "MatMul")
BINS = 4096
"""Bins of a histogram of magnitudes."""
STEPS = 64
"""Candidates for the range: that many, evenly spaced, up to the largest magnitude."""
_TRIAL = PASSES[: PASSES.index("pack.gate")]
"""The passes that decide which layers are packed."""


def choose(
    model: onnx.ModelProto, float_layers: str, calibration: Mapping[str, np.ndarray] | None, sign_zero: int | None,
    say: Callable[[str], None],
) -> dict[str, Int8Input] | None:  # fmt: skip
    """What ``Options.int8`` has to be for a model as the passes read it; None where everything stays as it is.

    Raises ``InputError`` when data are missing, do not fit, or are given for nothing.
    """
    if float_layers not in CHOICES:
        raise InputError(f"float_layers must be {' or '.join(CHOICES)}, is {float_layers!r}")
    if float_layers != "int8":
        if calibration is not None:
            raise InputError(
                "calibration data are given, but float layers stay float32: ask for int8 (--float-layers int8)"
            )
        return None
    if calibration is None:
        raise InputError(
            "int8 float layers need calibration data, a few samples of the model's inputs (--calibration DATA.npz), for the "
            "ranges of their activations"
        )
    samples = _checked(model, calibration)
    say("calibrating")
    trial = run_passes(model, Options(sign_zero=sign_zero), passes=_TRIAL)
    layers = [record.node for record in trial.records if record.op in LAYERS and record.status is Status.FLOAT]
    return calibrate(model, layers, samples)


def _checked(model: onnx.ModelProto, calibration: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    try:
        samples = split(calibration, golden.random_inputs(model))
    except InputError as error:
        raise InputError(f"calibration data: {error}") from None
    for name, array in samples.items():
        if not len(array):
            raise InputError("calibration data: there are no samples")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"calibration data: array '{name}' holds values that are not finite")
    return samples


def calibrate(model: onnx.ModelProto, layers: list[str], samples: Mapping[str, np.ndarray]) -> dict[str, Int8Input]:
    """The scale of the activations of each layer (a node of ``model`` that reads them first), by ONNX Runtime on ``samples``.

    Layers whose activations are constant, no float32, always zero, or not finite on these data are left out.
    """
    nodes = {node.name: node for node in model.graph.node}
    constants = {tensor.name for tensor in model.graph.initializer}
    source = {layer: nodes[layer].input[0] for layer in layers if nodes[layer].input[0] not in constants}
    inputs = {info.name for info in model.graph.input}
    wanted = sorted(set(source.values()) - inputs)
    session = golden.session(model, wanted) if wanted else None
    count = len(next(iter(samples.values())))

    def values(index: int) -> dict[str, np.ndarray]:
        feeds = {name: array[index] for name, array in samples.items()}
        return {**feeds, **(golden.run(session, feeds) if session is not None else {})}

    largest = dict.fromkeys(source.values(), 0.0)
    for index in range(count):
        found = values(index)
        for name in largest:
            good = found[name].dtype == np.float32
            largest[name] = max(largest[name], float(np.abs(found[name]).max(initial=0))) if good else np.nan
    usable = {name: top for name, top in largest.items() if np.isfinite(top) and top > 1e-30}
    counts = {name: np.zeros(BINS, np.int64) for name in usable}
    for index in range(count):
        found = values(index)
        for name, top in usable.items():
            magnitudes = np.abs(found[name].reshape(-1))
            counts[name] += np.histogram(magnitudes[magnitudes > 0], BINS, (0.0, top))[0]
    scales = {name: float(np.float32(best_range(counts[name], top) / MOST)) for name, top in usable.items()}
    return {layer: Int8Input(scales[name]) for layer, name in source.items() if name in scales}


def best_range(histogram: np.ndarray, largest: float) -> float:
    """The c in (0, ``largest``] whose codes have the least squared error. ``histogram``: of magnitudes up to ``largest``."""
    centres = (np.arange(len(histogram)) + 0.5) * (largest / len(histogram))
    best, least = largest, np.inf
    for candidate in largest * np.arange(STEPS, STEPS // 8, -1) / STEPS:
        outside = centres > candidate
        rounding = (candidate / MOST) ** 2 / 12 * histogram[~outside].sum()
        error = rounding + (histogram[outside] * (centres[outside] - candidate) ** 2).sum()
        if error < least:
            best, least = float(candidate), float(error)
    return best
