"""The package ``model.xnorc``: a deterministic zip that holds a compiled model and the evidence about it.

    manifest.json   format version, name, target, tensors, steps, memory, choices, SHA-256 of every other member
    model.onnx      the model as given (may be left out when large; its hash stays)
    packed.onnx     after the passes
    lib/            lib<name>.so  lib<name>.a  <name>.h  runner
    rtl/            accelerator.v, for an FPGA board in place of lib/, and head/lib/, tail/lib/ for the CPU beside it
    golden/         golden.npz: arrays ``input/<name>`` and ``output/<name>``, each with a leading axis of samples
    report.json     what the passes did, node by node

Loading trusts nothing: sizes are checked before anything is decompressed, names before anything is looked up, every
SHA-256 before a member is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import manifest as _manifest
from .errors import DeviceError, InputError, ModelError, PackageError
from .files import atomic_write, npz_bytes, parse_npz, read_bytes, zip_bytes
from .manifest import FORMAT, MANIFEST, MAX_MANIFEST
from .targets import BOARDS, Target, get

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from .runtimes.bench import BenchResult
    from .runtimes.result import ValidationResult

Choice = TypeVar("Choice")

MODEL, PACKED, REPORT, GOLDEN, RUNNER = "model.onnx", "packed.onnx", "report.json", "golden/golden.npz", "lib/runner"
RTL = "rtl/accelerator.v"
REQUIRED = (PACKED, REPORT, GOLDEN)
MAX_FILE = 2 << 30
MAX_TOTAL = 2 << 30
"""Most bytes of all members together, decompressed."""
MAX_MEMBERS = 1000
MAX_MODEL_INCLUDED = 64 << 20
"""A ``model.onnx`` larger than this is left out of the package; its hash and size stay."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_END = b"PK\x05\x06"


@dataclass(frozen=True)
class Package:
    """A compiled model. ``load`` (or ``xnorc.compile``) makes one; every member has been checked against its hash."""

    path: Path
    manifest: dict[str, Any]
    _members: Mapping[str, bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the model, an identifier: the C functions start with it."""
        return self.manifest["name"]

    @property
    def target(self) -> Target:
        """What the package was built for."""
        return get(self.manifest["target"])

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members but the manifest."""
        return tuple(sorted(self._members))

    def member(self, name: str) -> bytes:
        """Content of one member, as compiled. Raises ``PackageError`` when there is none of that name."""
        try:
            return self._members[name]
        except KeyError:
            hint = " (too large to be included; give the file itself)" if name == MODEL else ""
            raise PackageError(f"package '{self.path}' has no member '{name}'{hint}") from None

    def model(self, path: str | PathLike[str] | None = None) -> ModelProto:
        """The original model, in the form that the passes read (names of nodes and tensors as in the report).

        When it was too large to be included, ``path`` names the file, whose hash is checked.
        """
        from .model import prepare

        data, where = (self.member(MODEL), f"{self.path}:{MODEL}") if path is None else (model_bytes(path), str(path))
        if path is not None and hashlib.sha256(data).hexdigest() != self.manifest.get("model", {}).get("sha256"):
            raise PackageError(
                f"'{path}' is not the model that package '{self.path}' was compiled from (SHA-256 differs)"
            )
        shapes = {tensor["name"]: tensor["shape"] for tensor in self.tensors("inputs")}
        return prepare(_parse_model(data, where), shapes)

    def packed(self) -> ModelProto:
        """The model after the passes."""
        return _parse_model(self.member(PACKED), f"{self.path}:{PACKED}")

    def chosen_model(self, model: ModelProto) -> ModelProto:
        """``model`` (as ``model()`` gives it) with the layers in int8 and the shortcuts in float16 that were chosen to be.

        It is what the device is held to: the float model with nothing but this choice made, in ONNX Runtime.
        """
        entries = {entry.key: entry.value for entry in self.packed().metadata_props}
        from .passes import Int8Input, Options, optimize

        int8 = self._choices(entries, "xnorc.int8", lambda scale: Int8Input(float(scale)))
        shortcuts = self._choices(entries, "xnorc.shortcuts", (0, 1).index)
        passes = ("tidy.fold_constants", "fixed.int8_layers", "fixed.half_shortcuts")
        return optimize(model, Options(int8=int8, shortcuts=shortcuts), passes=passes).model

    def _choices(self, entries: dict[str, str], key: str, value: Callable[[Any], Choice]) -> dict[str, Choice]:
        """What metadata of the packed model says of some of the model's nodes; ``value`` raises for what cannot be."""
        try:
            return {str(node): value(given) for node, given in json.loads(entries.get(key, "{}")).items()}
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError, RecursionError) as error:
            raise PackageError(f"package '{self.path}': {key} of {PACKED} is damaged") from error

    def report(self) -> dict[str, Any]:
        """What the passes did, node by node."""
        try:
            report = json.loads(self.member(REPORT))
        except (ValueError, RecursionError) as error:
            raise PackageError(f"package '{self.path}': {REPORT} is not JSON") from error
        if not isinstance(report, dict):
            raise PackageError(f"package '{self.path}': {REPORT} is not an object")
        return report

    def golden(self) -> dict[str, np.ndarray]:
        """Arrays ``input/<name>`` and ``output/<name>``: samples along the first axis, before the model's own shape."""
        try:
            return parse_npz(self.member(GOLDEN), f"package '{self.path}', {GOLDEN}", MAX_TOTAL)
        except InputError as error:
            raise PackageError(str(error)) from error

    def tensors(self, key: str) -> list[dict[str, Any]]:
        """Manifest entries of the model's ``inputs`` or ``outputs``, in order."""
        return [self.manifest["tensors"][index] for index in self.manifest[key]]

    def device_bytes(self) -> int:
        """Bytes that a device needs: the static runner, which holds the weights, the kernels and the C runtime.

        For an FPGA board: the bitstream, or the Verilog where none was built.
        """
        if self.target.is_fpga:
            streams = [name for name in self.members if name.startswith("bitstream/top.")]
            return len(self.member(streams[0] if streams else RTL))
        return len(self.member(RUNNER))

    def run(
        self, feeds: Mapping[str, np.ndarray], device: str = "host", threads: int = 1, **options: Any
    ) -> dict[str, np.ndarray]:
        """Run the model on a device and return its outputs by name; ``xnorc.runtimes.device`` says how samples count.

        Raises ``InputError`` when names, shapes or dtypes of ``feeds`` do not fit, ``DeviceError`` when the device fails.
        """
        from .runtimes.device import parse_device

        self.check_device(device)
        with parse_device(device).open(self, threads) as session:
            return session.run(feeds, **options)

    def validate(
        self, device: str = "host", data: Mapping[str, np.ndarray] | None = None, **options: Any
    ) -> ValidationResult:
        """Compare the device with ONNX Runtime, step by step and end to end; see ``xnorc.runtimes.validate``."""
        from .runtimes.validate import validate

        self.check_device(device)
        return validate(self, device=device, data=data, **options)

    def bench(self, device: str = "host", threads: int = 1, **options: Any) -> BenchResult:
        """Measure the time of every step on a device; see ``xnorc.runtimes.bench``."""
        from .runtimes.bench import bench

        self.check_device(device)
        return bench(self, device=device, threads=threads, **options)

    def check_device(self, device: str) -> None:
        """Refuse to run instructions in this process that this machine lacks: they end it with SIGILL."""
        built = self.manifest.get("machine")
        if device != "host" or not self.target.is_host or built is None:
            return
        missing = sorted(set(built["features"]) - self.target.features)
        if built["arch"] != self.target.arch or missing:
            lacks = " ".join([built["arch"]] * (built["arch"] != self.target.arch) + missing)
            raise DeviceError(
                f"package '{self.path}' was built on another machine (this one lacks {lacks}): compile it here"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the package to a file. The same package gives the same bytes."""
        write(path, self._members, self.manifest)

    @classmethod
    def of(cls, path: str | PathLike[str], members: Mapping[str, bytes], manifest: Mapping[str, Any]) -> Package:
        """A package in memory, as ``write`` would write it to ``path`` and ``load`` read it back."""
        return cls(Path(path), _complete(str(path), members, manifest), dict(members))

    @staticmethod
    def write(path: str | PathLike[str], members: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
        """Write a package; see ``write``."""
        write(path, members, manifest)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Package:
        """Read and check a package; see ``load``."""
        return load(path)


def write(path: str | PathLike[str], members: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write a package: ``manifest`` gets ``format`` and the ``files`` table, the rest is the caller's.

    The same members and manifest give the same bytes. Nothing is left behind when writing fails.
    """
    full = _complete(str(path), members, manifest)
    executable = frozenset(name for name in members if name == RUNNER or name.endswith(".so"))
    atomic_write(path, zip_bytes({**members, MANIFEST: _manifest.encode(full)}, executable))


def _complete(path: str, members: Mapping[str, bytes], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its table of files, checked by the rules that ``load`` goes by."""
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in members.items()}
    full = {**manifest, "format": FORMAT, "files": files}
    _manifest.check(full)
    _check_names([MANIFEST, *members], full, path)
    total = sum(len(data) for data in members.values())
    if total > MAX_TOTAL:
        raise PackageError(f"package '{path}': its members have {total} bytes, the limit is {MAX_TOTAL}")
    return full


def load(path: str | PathLike[str]) -> Package:
    """Read a package and check all of it. Raises ``PackageError`` with one line that names what is wrong."""
    data = read_bytes(path, MAX_FILE, PackageError)
    shown = str(path)
    _check_end(data, shown)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = _checked_infos(archive, shown)
            if MANIFEST not in infos:
                raise PackageError(f"package '{shown}': member '{MANIFEST}' is missing")
            if infos[MANIFEST].file_size > MAX_MANIFEST:
                raise PackageError(f"package '{shown}': {MANIFEST} is larger than {MAX_MANIFEST} bytes")
            content = _manifest.decode(_read(archive, infos[MANIFEST], shown), shown)
            _check_names(list(infos), content, shown)
            members = {}
            for name, entry in content["files"].items():
                if infos[name].file_size != entry["bytes"]:
                    raise PackageError(
                        f"package '{shown}': member '{name}' is damaged (size differs from the manifest)"
                    )
                members[name] = _read(archive, infos[name], shown)
                if hashlib.sha256(members[name]).hexdigest() != entry["sha256"]:
                    raise PackageError(f"package '{shown}': member '{name}' is damaged (SHA-256 differs)")
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, ValueError, OSError, EOFError) as error:
        raise PackageError(f"package '{shown}' is damaged: {str(error).splitlines()[0]}") from error
    return Package(Path(path), content, members)


def _check_end(data: bytes, path: str) -> None:
    """Bound the directory before ``zipfile`` builds an object for each of its entries."""
    end = data[-22:]
    if data[:2] != b"PK" or end[:4] != _END or end[-2:] != b"\0\0":
        raise PackageError(f"'{path}' is not an xnorc package, or is cut short")
    entries, size = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if entries > MAX_MEMBERS or size > 512 * MAX_MEMBERS or data[-42:-38] == b"PK\x06\x07":
        raise PackageError(f"package '{path}' has more than {MAX_MEMBERS} members")


def _checked_infos(archive: zipfile.ZipFile, path: str) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        name = info.orig_filename  # zipfile cuts filename at a NUL
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise PackageError(f"package '{path}': forbidden member name {name[:80]!r}")
        if name in infos:
            raise PackageError(f"package '{path}': member '{name}' appears twice")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise PackageError(f"package '{path}': member '{name}' is encrypted or compressed by an unknown method")
        total += info.file_size
        if total > MAX_TOTAL:
            raise PackageError(f"package '{path}': more than {MAX_TOTAL} bytes when decompressed")
        infos[name] = info
    return infos


def _check_names(present: list[str], manifest: Mapping[str, Any], path: str) -> None:
    """Exactly the members of the manifest's table, all of the required ones among them."""
    listed = set(manifest["files"])
    for name in listed:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise PackageError(f"package '{path}': forbidden member name {name[:80]!r} in {MANIFEST}")
    required = {*REQUIRED, RTL if manifest["target"] in BOARDS else RUNNER}
    for name in sorted(listed - set(present)) + sorted(required - listed):
        raise PackageError(f"package '{path}': member '{name}' is missing")
    for name in sorted(set(present) - listed - {MANIFEST}):
        raise PackageError(f"package '{path}': member '{name}' is not in {MANIFEST}")
    model = manifest.get("model")
    if MODEL not in listed and not (model and not model["included"]):
        raise PackageError(f"package '{path}': member '{MODEL}' is missing")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> bytes:
    try:
        with archive.open(info) as member:
            return member.read(info.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PackageError(f"package '{path}': member '{info.filename}' is damaged ({error})") from error


def _parse_model(data: bytes, what: str) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise PackageError(f"'{what}' is not an ONNX model") from error


def model_bytes(path: str | PathLike[str]) -> bytes:
    """An ONNX file as one run of bytes: as it is, or with its external data moved into it."""
    import onnx

    data = read_bytes(path, 1 << 40, ModelError)
    model = _parse_model(data, str(path))
    if not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        return data
    from .model_checks import check_external_data

    check_external_data(model, Path(path).parent, MAX_FILE)
    onnx.load_external_data_for_model(model, str(Path(path).parent))
    return model.SerializeToString(deterministic=True)


def golden_bytes(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> bytes:
    """``golden/golden.npz``: arrays by tensor name, samples along the first axis."""
    return npz_bytes(
        {
            **{f"input/{name}": value for name, value in inputs.items()},
            **{f"output/{name}": value for name, value in outputs.items()},
        }
    )
