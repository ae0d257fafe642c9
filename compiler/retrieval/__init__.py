"""Binary retrieval: a corpus of embeddings packed into a few bits a number, compiled into a package that searches it.

    index = retrieval.build(embeddings, target="rpi4", code="hamming", k=10, rerank=100, output="corpus.xnorc")
    values, documents = retrieval.load("corpus.xnorc").search(queries, device="ssh://pi@raspberrypi.local")

The codes are part of the program: the device needs one file and no memory beyond it but for one row of distances. What a
package computes is defined by the operators ``HammingTopK``, ``LookupTopK`` and ``RerankTopK``; ``docs/retrieval.md`` explains.
"""

from .codes import Binarizer
from .index import Index, build, load

__all__ = ["Binarizer", "Index", "build", "load"]
