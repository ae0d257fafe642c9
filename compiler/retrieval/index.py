"""Building an index and searching it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from .. import targets
from ..errors import InputError, PackageError
from ..package import Package
from ..package import load as load_package
from . import codes
from .codes import Binarizer

if TYPE_CHECKING:
    import onnx

    from ..api import Progress
    from ..passes import Optimized
    from ..runtimes.device import Progress as Count
    from ..targets import Target

CODES = ("hamming", "bebr")
MAX_BITS = 1 << 28
"""Most bits of a corpus: ONNX Runtime, which gives the golden results, unpacks them into a float each."""
MAX_BATCH = 1024
GOLDEN = 4
"""Queries that are kept in the package with their results."""
_KEY = "index"


@dataclass(frozen=True)
class Facts:
    """What an index is, as its package's manifest says. ``channels``: numbers of an embedding; ``size``: of a code."""

    code: str
    documents: int
    channels: int
    size: int
    code_bytes: int
    """Of one document, its scale included."""
    k: int
    batch: int
    rerank: int
    asymmetric: bool
    packed_queries: bool


@dataclass(frozen=True)
class Index:
    """A corpus compiled into a package. ``build`` or ``load`` makes one."""

    package: Package
    facts: Facts

    def save(self, path: str | PathLike[str]) -> None:
        """Write the package."""
        self.package.save(path)

    def search(
        self, queries: np.ndarray, device: str = "host", threads: int = 1, progress: Count | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of every query: values and document numbers, int32 ``[N, k]`` each, best first.

        ``queries``: float32 ``[N, C]`` (or ``[C]``: one), or packed bits uint8 ``[N, B]`` where the index was built for them;
        queries of a ``bebr`` index may have any length but zero. Values are Hamming distances, lowest first, for code
        ``hamming``, and else scores, highest first, in units of their own; ties go to the lower document.
        Raises ``InputError`` when the queries do not fit, ``DeviceError`` when the device fails.
        """
        from .graph import INPUT, OUTPUT

        rows = self._rows(queries)
        batch = self.facts.batch
        filled = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % batch, axis=0)])
        found = self.package.run(
            {INPUT: filled.reshape(-1, batch, rows.shape[1])}, device, threads, progress=progress
        )[OUTPUT]  # fmt: skip
        hits = found.reshape(-1, self.facts.k, 2)[: len(rows)]
        return np.ascontiguousarray(hits[..., 0]), np.ascontiguousarray(hits[..., 1])

    def _rows(self, queries: np.ndarray) -> np.ndarray:
        facts = self.facts
        rows = np.asarray(queries)
        rows = rows[None] if rows.ndim == 1 else rows
        packed = facts.packed_queries
        wanted = "packed bits, uint8" if packed else "float32"
        dtype: np.dtype = np.dtype(np.uint8 if packed else np.float32)
        width = (facts.size + 7) // 8 if packed else facts.channels
        if rows.ndim != 2 or rows.shape[1] != width or rows.dtype != dtype or not len(rows):
            raise InputError(
                f"queries are {rows.dtype} {list(rows.shape)}, the index wants {wanted} [queries, {width}]"
            )
        if packed:
            return rows
        _check_finite(rows, "query")
        return codes.as_unit(rows, "query") if facts.code == "bebr" else rows


def build(
    embeddings: np.ndarray,
    *,
    target: str | Target = "host",
    code: str = "hamming",
    k: int = 10,
    batch: int = 1,
    rerank: int = 0,
    asymmetric: bool = False,
    packed_queries: bool = False,
    binarizer: Binarizer | None = None,
    name: str = "index",
    output: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Index:
    """Pack a corpus and compile it into a package that gives the ``k`` best documents of ``batch`` queries a run.

    ``embeddings``: float32 ``[D, C]``; or packed bits uint8 ``[D, B]`` for code ``hamming``, made elsewhere.

    * ``code="hamming"``: a bit a number, its sign (BPR: documents ``>= 0``, queries ``> 0``). With ``rerank=n``, the n nearest
      are ordered again by the inner product of the query in 16-bit fixed point with the ±1 codes.
    * ``code="bebr"``: two bits a number (``codes``), by inner product over the document's length. The query is coded too,
      unless ``asymmetric``: then 8-bit tables are made of the query itself. C (or the rows of ``w``) must be even.

    ``binarizer``: trained matrices; without it the codes are those of the embeddings themselves. ``packed_queries``: queries
    come as bits (code ``hamming`` without ``rerank``). Raises ``InputError`` when these do not fit together, and as
    ``xnorc.compile`` does.
    """
    from ..api import assemble, identifier
    from .graph import INPUT

    chosen = targets.get(target) if isinstance(target, str) else target
    say = progress or (lambda stage: None)
    binarizer = binarizer or Binarizer()
    data = np.asarray(embeddings)
    title = identifier("index", name)
    _check_choices(data, code, k, batch, rerank, asymmetric, packed_queries, binarizer)
    say("packing the corpus")
    model, facts = _model(data, code, k, batch, rerank, asymmetric, packed_queries, binarizer)
    queries = _golden_queries(facts)
    given, original, packed = _as_compiled(model, queries[0])
    package = assemble(given, original, packed, chosen, title, {INPUT: queries}, output, say, {_KEY: asdict(facts)})
    index = Index(package, facts)
    if output is not None:
        say("writing the package")
        index.save(output)
    return index


def load(path: str | PathLike[str]) -> Index:
    """Read the package of an index. Raises ``PackageError`` when it is damaged or none of an index."""
    return of(load_package(path))


def of(package: Package) -> Index:
    """The index that a package holds. Raises ``PackageError`` when it holds another kind of model."""
    stored = package.manifest.get(_KEY)
    if stored is None:
        raise PackageError(f"package '{package.path}' is no index: make one with `xnorc index build`")
    kinds: Mapping[str, type] = {name: type(value) for name, value in asdict(_EXAMPLE).items()}
    if not isinstance(stored, dict) or set(stored) != set(kinds):
        raise PackageError(f"package '{package.path}': 'index' in its manifest is damaged")
    for name, kind in kinds.items():
        if type(stored[name]) is not kind or (kind is int and stored[name] < 0):
            raise PackageError(f"package '{package.path}': 'index.{name}' in its manifest is {stored[name]!r:.40}")
    facts = Facts(**stored)
    width = (facts.size + 7) // 8 if facts.packed_queries else facts.channels
    shapes = [list(tensor["shape"]) for key in ("inputs", "outputs") for tensor in package.tensors(key)]
    if shapes != [[facts.batch, width], [facts.batch, facts.k, 2]]:
        raise PackageError(f"package '{package.path}': 'index' in its manifest does not fit the model")
    return Index(package, facts)


_EXAMPLE = Facts("hamming", 1, 1, 1, 1, 1, 1, 0, False, False)


def _check_finite(rows: np.ndarray, what: str) -> None:
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise InputError(f"{what} {int(np.argmax(bad))} has values that are not finite")


def _check_choices(
    data: np.ndarray, code: str, k: int, batch: int, rerank: int, asymmetric: bool, packed: bool, binarizer: Binarizer
) -> None:
    if code not in CODES:
        raise InputError(f"code '{code}' is unknown: the codes are {' and '.join(CODES)}")
    if data.ndim != 2 or 0 in data.shape or data.dtype not in (np.float32, np.uint8):
        raise InputError(
            f"the embeddings are {data.dtype} {list(data.shape)}: they must be float32 [documents, numbers], "
            "or packed bits uint8 [documents, bytes]"
        )
    count, bits = len(data), data.shape[1] * (8 if data.dtype == np.uint8 else 1) * (1 + (code == "bebr"))
    if count * bits > MAX_BITS:
        raise InputError(f"{count} documents of {bits} bits: an index holds at most {MAX_BITS} bits, make several")
    if not 1 <= batch <= MAX_BATCH:
        raise InputError(f"batch is {batch}: it must be 1 to {MAX_BATCH}")
    if not 1 <= k <= count:
        raise InputError(f"k is {k}: it must be 1 to {count}, the number of documents")
    if rerank and not k <= rerank <= count:
        raise InputError(f"rerank is {rerank}: it must be {k} (k) to {count}, the number of documents")
    if code == "bebr":
        wrong = [word for word, on in (("rerank", rerank), ("packed queries", packed)) if on]
    else:
        wrong = ["asymmetric"] if asymmetric else []
    if wrong:
        raise InputError(f"code {code} has no use for {wrong[0]}")
    if packed and rerank:
        raise InputError("queries that come as bits cannot be ranked again: rerank needs their numbers")
    if packed and binarizer.w is not None:
        raise InputError("queries that come as bits are not multiplied with a binarizer: leave one of the two out")
    if data.dtype == np.uint8 and (code == "bebr" or binarizer.w is not None):
        raise InputError("documents that come as bits are for code hamming without a binarizer")
    if data.dtype == np.float32:
        _check_finite(data, "document")


def _model(
    data: np.ndarray, code: str, k: int, batch: int, rerank: int, asymmetric: bool, packed: bool, binarizer: Binarizer
) -> tuple[onnx.ModelProto, Facts]:
    from ..opset import pack_bits
    from . import graph

    if code == "hamming":
        channels = data.shape[1] * 8 if data.dtype == np.uint8 else data.shape[1]
        size = binarizer.check(channels, 1)
        if rerank and size * graph.FIXED_POINT > np.iinfo(np.int32).max:
            raise InputError(f"codes of {size} bits are too long to be ranked again")
        bits = data if data.dtype == np.uint8 else pack_bits(binarizer.one_bit(data))
        model = graph.hamming(bits, size, channels, binarizer, batch, k, rerank, packed)
        stored = bits.shape[1]
    else:
        channels = data.shape[1]
        size = binarizer.check(channels, 2)
        if size % 2:
            raise InputError(f"codes of {size} elements: code bebr takes them in pairs, the number must be even")
        code_of = binarizer.two_bits(codes.as_unit(data, "document"))
        model = graph.bebr(code_of, channels, binarizer, batch, k, asymmetric)
        stored = (size // 2 + 1) // 2 + 4
    return model, Facts(code, len(data), channels, size, stored, k, batch, rerank, asymmetric, packed)


def _golden_queries(facts: Facts) -> np.ndarray:
    """Random queries ``[GOLDEN, Q, …]``, of length 1 where they are floats."""
    rng = np.random.default_rng(0)
    if facts.packed_queries:
        width = (facts.size + 7) // 8
        return rng.integers(0, 256, (GOLDEN, facts.batch, width)).astype(np.uint8)
    drawn = rng.standard_normal((GOLDEN * facts.batch, facts.channels)).astype(np.float32)
    return codes.as_unit(drawn, "query").reshape(GOLDEN, facts.batch, -1)


def _as_compiled(model: onnx.ModelProto, sample: np.ndarray) -> tuple[onnx.ModelProto, bytes, Optimized]:
    """The same in standard operators only (what the package keeps as the original), its bytes, and the packed model.

    ``sample``: input of one run, which gives the types of all tensors (ONNX's inference stops at our operators).
    """
    import onnx.inliner
    from onnx import helper

    from .. import golden
    from ..model import prepare
    from ..opset import DOMAIN
    from ..passes import Optimized, Record, Status
    from .graph import INPUT

    plain = onnx.inliner.inline_local_functions(model)
    kept = [item for item in plain.opset_import if item.domain != DOMAIN]
    del plain.opset_import[:]
    plain.opset_import.extend(kept)
    given, packed = prepare(plain), prepare(model)
    outputs = {info.name for info in packed.graph.output}
    inner = [name for node in packed.graph.node for name in node.output if name not in outputs]
    del packed.graph.value_info[:]
    for name, value in golden.run(given, {INPUT: sample}, inner).items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        packed.graph.value_info.append(helper.make_tensor_value_info(name, kind, value.shape))
    # A function's nodes stand where its call stood: up to the one that gives the call's output.
    owners = iter(packed.graph.node)
    owner = next(owners)
    records = []
    for node in given.graph.node:
        own = owner.domain == DOMAIN
        reason = f"part of {owner.op_type} '{owner.name}'" if own else "makes the query's code, in float"
        status = Status.PACKED if own else Status.FLOAT
        records.append(Record(node.name, node.op_type, status, reason, "retrieval"))
        if owner.output[0] in node.output:
            owner = next(owners, owner)
    return given, plain.SerializeToString(deterministic=True), Optimized(packed, records, {}, {"sign_zero": "model"})
