"""The package format: deterministic when written, and nothing in it is believed when read."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import xnorc
from xnorc.errors import DeviceError, PackageError
from xnorc.files import npz_bytes, parse_npz, zip_bytes
from xnorc.manifest import MANIFEST, encode
from xnorc.package import GOLDEN, MODEL, PACKED, REPORT, RUNNER, Package, golden_bytes, load, write

TEXT = '<ir_version: 10, opset_import: ["": 18]> g (float[1, 4] x) => (float[1, 4] y) { y = Neg(x) }'


def members() -> dict[str, bytes]:
    model = onnx.parser.parse_model(TEXT).SerializeToString()
    data = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    return {
        MODEL: model,
        PACKED: model,
        REPORT: json.dumps({"nodes": [], "summary": {}}).encode(),
        GOLDEN: golden_bytes({"x": data}, {"y": -data}),
        RUNNER: b"\x7fELF" + bytes(1000),
        "lib/libnet.so": b"\x7fELF",
    }


def manifest() -> dict[str, Any]:
    return {
        "xnorc": "0.1.0",
        "name": "net",
        "target": "rpi4",
        "tensors": [
            {"name": "x", "dtype": "float32", "shape": [1, 4]},
            {"name": "y", "dtype": "float32", "shape": [1, 4]},
        ],
        "inputs": [0],
        "outputs": [1],
        "steps": [
            {"name": "neg", "op": "Neg", "kind": "float", "reads": [0], "writes": [1], "nodes": ["neg"], "macs": 0}
        ],
        "memory": {"arena_bytes": 64, "workspace_bytes": 0, "max_threads": 4, "plan": []},
        "choices": {"sign_zero": "model"},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "net.xnorc"
    write(made, members(), manifest())
    return made


def rewrite(path: Path, change: Any) -> None:
    """Write the zip again after ``change`` edited its members; the manifest's hashes stay as they were."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    path.write_bytes(zip_bytes(content))


def edit_manifest(path: Path, change: Any) -> None:
    def edit(content: dict[str, bytes]) -> None:
        decoded = json.loads(content[MANIFEST])
        change(decoded)
        content[MANIFEST] = encode(decoded)

    rewrite(path, edit)


def raw_zip(path: Path, entries: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def refused(path: Path, words: str) -> None:
    with pytest.raises(PackageError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_written_and_read_back(path: Path) -> None:
    package = load(path)
    assert (package.name, package.target.name, package.path) == ("net", "rpi4", path)
    assert package.member(RUNNER) == members()[RUNNER]
    assert package.device_bytes() == len(members()[RUNNER])
    assert package.report() == {"nodes": [], "summary": {}}
    assert [node.op_type for node in package.model().graph.node] == ["Neg"]
    assert [node.op_type for node in package.packed().graph.node] == ["Neg"]
    assert [tensor["name"] for tensor in package.tensors("outputs")] == ["y"]
    golden = package.golden()
    np.testing.assert_array_equal(golden["output/y"], -golden["input/x"])
    assert golden["input/x"].shape == (2, 1, 4)
    with pytest.raises(PackageError, match="no member 'nothing'"):
        package.member("nothing")


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", members(), manifest())
    shuffled = dict(reversed(members().items()))
    Package.of(tmp_path / "b", shuffled, dict(reversed(manifest().items()))).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    load(tmp_path / "a").save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_runner_is_executable_when_unpacked_by_hand(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert modes[RUNNER] == 0o755 and modes[PACKED] == 0o644


@pytest.mark.parametrize("name", sorted(members()))
def test_changed_member_is_named(path: Path, name: str) -> None:
    def flip(content: dict[str, bytes]) -> None:
        data = bytearray(content[name])
        data[len(data) // 2] ^= 1
        content[name] = bytes(data)

    rewrite(path, flip)
    refused(path, f"member '{name}' is damaged .SHA-256")


def test_any_flipped_byte_of_the_file_is_noticed_or_harmless(path: Path) -> None:
    whole = path.read_bytes()
    good = load(path)
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 0x40
        path.write_bytes(bytes(data))
        try:
            again = load(path)
        except PackageError as error:
            assert "\n" not in str(error)
        else:  # a time stamp, a permission
            assert again.manifest == good.manifest and all(again.member(n) == good.member(n) for n in good.members)


def test_any_truncation_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, 10, *range(22, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(PackageError):
            load(path)


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "lib/../../x", "lib\\x", "C:\\x", "lib//x", "./x", "lib/", ".x", "a b", "x\ny", "ü"]
)
def test_forbidden_names(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.namelist()]
    raw_zip(path, [*entries, (name, b"x")])
    refused(path, "forbidden member name")


def test_member_twice(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.namelist()]
    with pytest.warns(UserWarning, match="Duplicate"):
        raw_zip(path, [*entries, (RUNNER, b"other")])
    refused(path, "'lib/runner' appears twice")


def test_member_that_the_manifest_does_not_list(path: Path) -> None:
    rewrite(path, lambda content: content.update({"lib/extra": b"x"}))
    refused(path, "'lib/extra' is not in manifest.json")


@pytest.mark.parametrize("name", [MANIFEST, *sorted(members())])
def test_missing_member_is_named(path: Path, name: str) -> None:
    rewrite(path, lambda content: content.pop(name))
    refused(path, f"'{name}' is missing")


@pytest.mark.parametrize("name", [PACKED, REPORT, GOLDEN, RUNNER, MODEL])
def test_required_member_is_needed_even_if_not_listed(path: Path, name: str) -> None:
    edit_manifest(path, lambda content: content["files"].pop(name))
    rewrite(path, lambda content: content.pop(name))
    refused(path, f"'{name}' is missing")


@pytest.mark.parametrize("version", [0, 2, "1", None, True, [1], 1.5])
def test_unknown_version(path: Path, version: object) -> None:
    edit_manifest(path, lambda content: content.update(format=version))
    refused(path, "format version .*compile the model again")


BROKEN = {
    "no tensors": lambda m: m.pop("tensors"),
    "tensor dtype": lambda m: m["tensors"][0].update(dtype="object"),
    "tensor rank": lambda m: m["tensors"][0].update(shape=[1] * 9),
    "negative size": lambda m: m["tensors"][0].update(shape=[-1]),
    "size is true": lambda m: m["tensors"][0].update(shape=[True]),
    "size is a float": lambda m: m["tensors"][0].update(shape=[1.0]),
    "huge tensor": lambda m: m["tensors"][0].update(shape=[2**31, 2**31]),
    "tensor twice": lambda m: m["tensors"][1].update(name="x"),
    "input index": lambda m: m.update(inputs=[2]),
    "negative index": lambda m: m.update(outputs=[-1]),
    "no input": lambda m: m.update(inputs=[]),
    "step kind": lambda m: m["steps"][0].update(kind="magic"),
    "step reads": lambda m: m["steps"][0].update(reads=[99]),
    "step without macs": lambda m: m["steps"][0].pop("macs"),
    "steps are no list": lambda m: m.update(steps={}),
    "arena": lambda m: m["memory"].update(arena_bytes=-1),
    "huge arena": lambda m: m["memory"].update(arena_bytes=2**60),
    "no threads": lambda m: m["memory"].update(max_threads=0),
    "plan index": lambda m: m["memory"].update(plan=[{"tensor": 7, "offset": 0, "bytes": 4, "first": 0, "last": 0}]),
    "plan backwards": lambda m: m["memory"].update(
        plan=[{"tensor": 0, "offset": 0, "bytes": 4, "first": 3, "last": 2}]
    ),
    "sign of zero": lambda m: m["choices"].update(sign_zero=7),
    "target": lambda m: m.update(target="../../etc"),
    "name": lambda m: m.update(name="a/b"),
    "hash": lambda m: m["files"][RUNNER].update(sha256="0"),
    "files": lambda m: m.update(files=[]),
    "name of a listed file": lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 0}}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_manifest(path: Path, what: str) -> None:
    edit_manifest(path, BROKEN[what])
    refused(path, "net.xnorc")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b"null", b"[]", b'{"format": 1' + b"0" * 5000 + b"}", b"\xff"]
)
def test_manifest_that_is_not_an_object(path: Path, data: bytes) -> None:
    rewrite(path, lambda content: content.update({MANIFEST: data}))
    refused(path, "manifest")


def test_zip_bomb_is_refused_before_it_is_decompressed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xnorc.package.MAX_TOTAL", 1 << 20)
    rewrite(path, lambda content: content.update({"lib/bomb": bytes(2 << 20)}))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("decompressed"))
    refused(path, "when decompressed")


def test_zip_bomb_that_lies_about_its_size(path: Path) -> None:
    """A directory entry that declares fewer bytes than the member holds: no more than declared is produced."""
    rewrite(path, lambda content: content.update({RUNNER: bytes(5 << 20)}))
    data = path.read_bytes()
    path.write_bytes(data.replace((5 << 20).to_bytes(4, "little"), len(members()[RUNNER]).to_bytes(4, "little")))
    refused(path, "damaged")


def test_too_many_members(path: Path) -> None:
    rewrite(path, lambda content: content.update({f"lib/f{index}": b"" for index in range(1001)}))
    refused(path, "more than 1000 members")


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x05\x06" + bytes(18), bytes(1000)])
def test_not_a_package(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", "package")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "No such file")
    refused(tmp_path, "folder")


def test_write_refuses_what_load_would(tmp_path: Path) -> None:
    for change in (lambda m: m.update(target="mars"), lambda m: m.update(outputs=[5])):
        content = manifest()
        change(content)
        with pytest.raises(PackageError):
            write(tmp_path / "x", members(), content)
    with pytest.raises(PackageError, match="forbidden"):
        write(tmp_path / "x", {**members(), "../x": b""}, manifest())
    assert not list(tmp_path.iterdir())


def test_large_model_left_out(tmp_path: Path) -> None:
    import hashlib

    content = members()
    model = content.pop(MODEL)
    facts = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model), "included": False}
    write(tmp_path / "x", content, {**manifest(), "model": facts})
    package = load(tmp_path / "x")
    with pytest.raises(PackageError, match="too large to be included"):
        package.model()
    (tmp_path / "model.onnx").write_bytes(model)
    assert [node.op_type for node in package.model(tmp_path / "model.onnx").graph.node] == ["Neg"]
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(TEXT.replace("Neg", "Abs")).SerializeToString())
    with pytest.raises(PackageError, match="not the model"):
        package.model(tmp_path / "model.onnx")


def test_golden_with_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{"a": 1}], dtype=object))
    write(tmp_path / "x", {**members(), GOLDEN: buffer.getvalue()}, manifest())
    with pytest.raises(PackageError, match="pickle"):
        load(tmp_path / "x").golden()


def test_golden_whose_header_lies(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    write(tmp_path / "x", {**members(), GOLDEN: zip_bytes({"input/x.npy": buffer.getvalue()})}, manifest())
    with pytest.raises(PackageError, match="damaged"):
        load(tmp_path / "x").golden()


def test_package_of_another_machine_is_not_run(tmp_path: Path) -> None:
    content = {**manifest(), "target": "host", "machine": {"arch": "x86_64", "features": ["fly"]}}
    write(tmp_path / "x", members(), content)
    with pytest.raises(DeviceError, match="another machine"):
        load(tmp_path / "x").run({"x": np.zeros((1, 4), np.float32)})


def test_arrays_of_every_kind_survive() -> None:
    arrays = {
        "file": np.arange(3),
        "a/b:c": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 4), np.int8),
        "scalar": np.float32(3),
        "flag": np.array([True, False]),
    }
    found = parse_npz(npz_bytes(arrays), "x")
    assert list(found) == sorted(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype and found[name].flags.writeable


def test_load_is_public(path: Path) -> None:
    assert isinstance(xnorc.load(path), xnorc.Package)
