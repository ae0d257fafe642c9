"""The manifest of a package: its format version, and the checks that make it safe to index with.

A package can come from anywhere. Whoever reads a checked manifest may rely on types, on sizes within the limits below, and
on every index naming an existing tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .errors import PackageError
from .targets import BOARDS, NAMES

FORMAT = 1
"""Version of the package format that this xnorc writes and reads."""
MANIFEST = "manifest.json"
DTYPES = {"float32": 4, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "bool": 1, "float16": 2}
"""Element types of a device's tensors, with their sizes in bytes."""
FLOATS = ("float32", "float16")
"""Those of numbers that may differ within a bound; all others are compared bit for bit."""
KINDS = ("integer", "float", "mixed")
MAX_RANK = 8
MAX_TENSOR_BYTES = 1 << 32
MAX_ITEMS = 100_000
"""Most tensors, steps, or indices in one list."""
MAX_ARENA = 1 << 36
MAX_THREADS = 1024
MAX_MANIFEST = 64 << 20

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it is stored: sorted keys, so that equal manifests give equal bytes."""
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(data: bytes, path: str) -> dict[str, Any]:
    """Parse and check a manifest. Raises ``PackageError`` naming ``path`` and the key that is wrong."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"package '{path}': {MANIFEST} is not JSON ({str(error).splitlines()[0]})") from error
    try:
        check(manifest)
    except PackageError as error:
        raise PackageError(f"package '{path}': {error}") from None
    return manifest


def check(manifest: object) -> None:
    """Raise ``PackageError`` unless ``manifest`` is a well-formed manifest of a version that this xnorc reads."""
    top = _mapping(manifest, "manifest")
    version = top.get("format")
    if version != FORMAT or isinstance(version, bool):
        shown = repr(version)[:40]
        raise PackageError(f"format version {shown}, this xnorc reads version {FORMAT}: compile the model again")
    _text(top.get("xnorc"), "xnorc")
    name = _text(top.get("name"), "name")
    if not _IDENTIFIER.fullmatch(name):
        raise PackageError(f"name {name[:60]!r} is not an identifier")
    target = _text(top.get("target"), "target")
    if target not in (*NAMES, *BOARDS):
        raise PackageError(f"unknown target {target[:60]!r}, this xnorc knows {', '.join((*NAMES, *BOARDS))}")
    count = _tensors(top.get("tensors"))
    for key in ("inputs", "outputs"):
        if not _indices(top.get(key), key, count):
            raise PackageError(f"'{key}' is empty")
    _steps(top.get("steps"), count)
    memory = _mapping(top.get("memory"), "memory")
    for key in ("arena_bytes", "workspace_bytes"):
        _whole(memory.get(key), f"memory.{key}", 0, MAX_ARENA)
    _whole(memory.get("max_threads"), "memory.max_threads", 1, MAX_THREADS)
    _plan(memory.get("plan", []), count)
    choices = _mapping(top.get("choices"), "choices")
    if choices.get("sign_zero") not in (None, 1, -1, "model", "+1", "-1"):
        raise PackageError("choices.sign_zero must be +1, -1 or 'model'")
    if choices.get("float_layers") not in (None, "float32", "int8"):
        raise PackageError("choices.float_layers must be 'float32' or 'int8'")
    if choices.get("shortcuts") not in (None, "float32", "float16"):
        raise PackageError("choices.shortcuts must be 'float32' or 'float16'")
    _files(top.get("files"))
    if target in BOARDS:
        _fpga(_mapping(top.get("fpga"), "fpga"))
    if "machine" in top:
        machine = _mapping(top["machine"], "machine")
        _text(machine.get("arch"), "machine.arch")
        for feature in _list(machine.get("features"), "machine.features"):
            _text(feature, "machine.features")
    if "model" in top:
        model = _mapping(top["model"], "model")
        _hash(model.get("sha256"), "model.sha256")
        _whole(model.get("bytes"), "model.bytes", 0, 1 << 40)
        if not isinstance(model.get("included"), bool):
            raise PackageError("'model.included' must be true or false")


def _fpga(design: dict[str, Any]) -> None:
    """What the devices of FPGA boards rely on; manifests of head and tail are checked when they are opened."""
    if design.get("board") not in BOARDS:
        raise PackageError(f"'fpga.board' must be one of {', '.join(BOARDS)}")
    if not re.fullmatch(r"[0-9a-f]{32}", _text(design.get("design"), "fpga.design")):
        raise PackageError("'fpga.design' is not 32 hexadecimal digits")
    _whole(design.get("baud"), "fpga.baud", 0, 1 << 32)
    for key in ("input_width", "output_width", "frame_in_bits", "frame_out_bits"):
        _whole(design.get(key), f"fpga.{key}", 1, 1 << 32)
    for key in ("source", "result"):
        port = _mapping(design.get(key), f"fpga.{key}")
        _text(port.get("tensor"), f"fpga.{key}.tensor")
        for size in ("pixels", "channels", "bits"):
            _whole(port.get(size), f"fpga.{key}.{size}", 1, 1 << 32)
    guess = _mapping(design.get("estimate"), "fpga.estimate")
    for key in ("interval_cycles", "latency_cycles"):
        _whole(guess.get(key), f"fpga.estimate.{key}", 1, 1 << 48)
    if not isinstance(guess.get("clock_hz"), (int, float)) or not guess["clock_hz"] > 0:
        raise PackageError("'fpga.estimate.clock_hz' must be a positive number")
    for key in ("head", "tail"):
        if design.get(key) is not None:
            _mapping(design[key], f"fpga.{key}")


def _tensors(value: object) -> int:
    tensors = _list(value, "tensors")
    names = set()
    for index, item in enumerate(tensors):
        tensor = _mapping(item, f"tensors[{index}]")
        name = _text(tensor.get("name"), f"tensors[{index}].name")
        if name in names:
            raise PackageError(f"tensor '{name}' appears twice")
        names.add(name)
        dtype = tensor.get("dtype")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise PackageError(f"tensor '{name}': dtype {dtype!r:.40} is not one of {', '.join(DTYPES)}")
        shape = _list(tensor.get("shape"), f"shape of tensor '{name}'", MAX_RANK)
        size = DTYPES[dtype]
        for dim in shape:
            size *= _whole(dim, f"shape of tensor '{name}'", 1, 2**32 - 1)
        layout = tensor.get("layout", "as shaped")
        if layout not in ("as shaped", "channels_last") or (layout == "channels_last" and len(shape) != 4):
            raise PackageError(f"tensor '{name}': layout {layout!r:.40} of {len(shape)} axes is not known")
        if size > MAX_TENSOR_BYTES:
            raise PackageError(f"tensor '{name}': {size} bytes, the limit is {MAX_TENSOR_BYTES}")
    return len(tensors)


def _steps(value: object, tensors: int) -> None:
    names = set()
    for index, item in enumerate(_list(value, "steps")):
        step = _mapping(item, f"steps[{index}]")
        name = _text(step.get("name"), f"steps[{index}].name")
        if name in names:
            raise PackageError(f"step '{name}' appears twice")
        names.add(name)
        _text(step.get("op"), f"op of step '{name}'")
        if step.get("kind") not in KINDS:
            raise PackageError(f"step '{name}': kind must be one of {', '.join(KINDS)}")
        _indices(step.get("reads"), f"reads of step '{name}'", tensors)
        _indices(step.get("writes"), f"writes of step '{name}'", tensors)
        for node in _list(step.get("nodes"), f"nodes of step '{name}'"):
            _text(node, f"nodes of step '{name}'")
        _whole(step.get("macs"), f"macs of step '{name}'", 0, 2**62)


def _plan(value: object, tensors: int) -> None:
    for index, item in enumerate(_list(value, "memory.plan")):
        where = f"memory.plan[{index}]"
        entry = _mapping(item, where)
        _whole(entry.get("tensor"), f"{where}.tensor", 0, tensors - 1)
        for key in ("offset", "bytes"):
            _whole(entry.get(key), f"{where}.{key}", 0, MAX_ARENA)
        first = _whole(entry.get("first"), f"{where}.first", -1, MAX_ITEMS)
        _whole(entry.get("last"), f"{where}.last", first, MAX_ITEMS)


def _files(value: object) -> None:
    for name, item in _mapping(value, "files").items():
        entry = _mapping(item, f"files['{name[:80]}']")
        _hash(entry.get("sha256"), f"sha256 of member '{name[:80]}'")
        _whole(entry.get("bytes"), f"bytes of member '{name[:80]}'", 0, 2**40)


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PackageError(f"'{what}' is missing or not an object")
    return value


def _list(value: object, what: str, limit: int = MAX_ITEMS) -> list[Any]:
    if not isinstance(value, list):
        raise PackageError(f"'{what}' is missing or not a list")
    if len(value) > limit:
        raise PackageError(f"'{what}' has {len(value)} items, the limit is {limit}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise PackageError(f"'{what}' is missing or not a text of 1 to 4096 characters")
    return value


def _whole(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PackageError(f"'{what}' must be a whole number from {low} to {high}, is {value!r:.40}")
    return value


def _hash(value: object, what: str) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise PackageError(f"'{what}' is not a SHA-256")


def _indices(value: object, what: str, tensors: int) -> list[int]:
    return [_whole(index, what, 0, tensors - 1) for index in _list(value, what)]
