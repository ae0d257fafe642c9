"""The command line: what each verb prints and writes. What can go wrong is in ``test_cli_errors.py``."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result

from xnorc.cli import app

from .runtimes.small import build

TEXT = """<ir_version: 10, opset_import: ["": 18]>
net (float[1, 4] x) => (float[1, 3] y) <float[4, 3] w = {0.5, -1, 2, 1, 0, -2, 0.25, 3, 1, -1, 1, 1}> {
  [matmul] h = MatMul(x, w)
  [relu] y = Relu(h)
}"""
DYNAMIC = TEXT.replace("float[1, 4] x", "float[N, 4] x").replace("float[1, 3] y", "float[N, 3] y")
W = np.array([[0.5, -1, 2], [1, 0, -2], [0.25, 3, 1], [-1, 1, 1]], np.float32)


def xnorc(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> Result:
    result = xnorc(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    onnx.save(onnx.parser.parse_model(TEXT), folder / "net.onnx")
    good("compile", folder / "net.onnx", "-o", folder / "net.xnorc")
    return folder / "net.xnorc"


def test_version_and_help() -> None:
    assert re.fullmatch(r"xnorc \d+\.\d+\.\d+\S*\n", good("--version").output)
    listing = good("--help").output
    verbs = (
        "export",
        "explain",
        "optimize",
        "compile",
        "bitstream",
        "run",
        "validate",
        "bench",
        "index",
        "report",
        "targets",
    )
    for verb in verbs:
        assert re.search(rf"^  {verb} ", listing, re.M)
        for command in [[verb, "build"], [verb, "search"]] if verb == "index" else [[verb]]:
            assert "--json" in good(*command, "--help").output
    alone = xnorc()
    assert alone.exit_code == 2 and "compile" in alone.stderr


def test_targets(tmp_path: Path) -> None:
    result = good("targets", "--json", tmp_path / "t.json")
    facts = json.loads((tmp_path / "t.json").read_text())
    assert [row["name"] for row in facts["targets"]][:2] == ["host", "rpi3"]
    for row in facts["targets"]:
        assert row["name"] in result.output
    assert "zig" in result.output and max(map(len, result.output.splitlines())) <= 100


def test_named_targets_only() -> None:
    result = good("targets", "rpi4")
    assert "rpi4" in result.output and "rpi3" not in result.output
    bad = xnorc("targets", "--prepare", "rpi44")
    assert bad.exit_code == 2 and "did you mean rpi4" in bad.stderr and bad.stdout == ""


def test_targets_are_prepared_once_for_each_architecture(tmp_path: Path) -> None:
    result = good("targets", "--prepare", "rpi4", "rpi3", "--json", tmp_path / "t.json")
    assert re.fullmatch(r"rpi4: ready, \d+\.\d s\nrpi3: ready, as rpi4\n", result.output)
    assert list(json.loads((tmp_path / "t.json").read_text())["prepared_seconds"]) == ["rpi4"]


def test_long_linking_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from xnorc.cli import common

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(common, "_PATIENCE", 0.05)
    monkeypatch.setenv("COLUMNS", "100")
    with common.progress("compiling") as say:
        say("linking")
        time.sleep(0.4)
        say("writing the package")
        time.sleep(0.2)
    shown = terminal.getvalue()
    assert "zig builds a C library once: up to a minute" in shown
    assert shown.rindex("writing the package") > shown.rindex("up to a minute")


def test_explain(model: Path, tmp_path: Path) -> None:
    result = good("explain", model, "--json", tmp_path / "e.json")
    assert (
        "matmul" in result.output and "nodes: 2 float" in result.output and "parameters: 48 B before" in result.output
    )
    assert max(map(len, result.output.splitlines())) <= 100 and "\x1b" not in result.output
    assert "nothing to pack: of 1 layer (MatMul) none multiplies signs by two-level weights" in result.output
    facts = json.loads((tmp_path / "e.json").read_text())
    assert [node["node"] for node in facts["nodes"]] == ["matmul", "relu"]
    assert set(facts["nodes"][0]) == {"node", "op", "status", "reason", "by", "source"}


def test_explain_names_modules_and_says_what_stays_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = build()
    entry = small.graph.node[3].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'second', 'second.conv', 'conv2d_1']"
    small.graph.node[3].name = "a_rather_long_name_that_an_exporter_made_of_a_function_1__0"
    onnx.save(small, tmp_path / "m.onnx")
    for width in (80, 100, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = good("explain", tmp_path / "m.onnx").output.splitlines()
        assert max(map(len, lines)) <= width
        at = next(number for number, line in enumerate(lines) if "second.conv" in line)
        assert "packed" in lines[at] and re.match(r" *a_rather_\S*1__0", lines[at + 1])
    assert any(re.match(r"in float: conv1_node, .*gemm_node$", line) for line in lines)
    assert any(line.startswith("nodes: ") and "packed" in line for line in lines)
    assert not any("nothing to pack" in line for line in lines)


def test_optimize(model: Path, tmp_path: Path) -> None:
    good("optimize", model, "-o", tmp_path / "packed.onnx", "--check", "--json", tmp_path / "o.json")
    assert len(onnx.load(tmp_path / "packed.onnx").graph.node) == 2
    assert json.loads((tmp_path / "o.json").read_text())["summary"]["nodes"] == {"float": 2}
    first = (tmp_path / "packed.onnx").read_bytes()
    good("optimize", model, "-o", tmp_path / "packed.onnx")
    assert (tmp_path / "packed.onnx").read_bytes() == first


def test_dynamic_shape_is_given(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(DYNAMIC), tmp_path / "d.onnx")
    bad = xnorc("optimize", tmp_path / "d.onnx", "-o", tmp_path / "p.onnx")
    assert bad.exit_code == 2 and "--shape x=" in bad.stderr
    good("optimize", tmp_path / "d.onnx", "-o", tmp_path / "p.onnx", "--shape", "x=5,4")
    dims = onnx.load(tmp_path / "p.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [5, 4]


def test_compile_says_what_it_made(model: Path, tmp_path: Path) -> None:
    result = good("compile", model, "--json", tmp_path / "c.json")
    assert "net.xnorc: host, " in result.output and "on the device: " in result.output
    facts = json.loads((tmp_path / "c.json").read_text())
    assert facts["name"] == "net" and facts["target"] == "host" and facts["device_bytes"] > 0
    assert (tmp_path / "net.xnorc").exists() and result.stderr == ""


def test_packages_are_byte_identical_from_run_to_run(model: Path, package: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "xnorc", "compile", str(model), "-o", str(tmp_path / "again.xnorc")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "again.xnorc").read_bytes() == package.read_bytes()


def test_run(package: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    np.save(tmp_path / "in.npy", x)
    expected = np.maximum(x @ W, 0)
    for source, target in (("in.npz", "out.npz"), ("in.npy", "out.npy")):
        result = good("run", package, "--device", "host", "--input", tmp_path / source, "-o", tmp_path / target)
        assert "y float32 [5, 3]" in result.output
        found = np.load(tmp_path / target)
        np.testing.assert_allclose(found["y"] if target.endswith("z") else found, expected, atol=1e-5)


def test_golden_samples_are_kept(model: Path, tmp_path: Path) -> None:
    from xnorc import load

    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "g.npz", x=x)
    good("compile", model, "--golden", tmp_path / "g.npz", "-o", tmp_path / "g.xnorc", "--name", "other")
    loaded = load(tmp_path / "g.xnorc")
    assert loaded.name == "other" and "lib/libother.so" in loaded.members
    golden = loaded.golden()
    np.testing.assert_array_equal(golden["input/x"], x[:, None])
    np.testing.assert_allclose(golden["output/y"], np.maximum(x @ W, 0)[:, None], atol=1e-5)


def test_validate_and_bench(package: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.zeros(6, np.int64))
    good("validate", package)
    result = good(
        "validate",
        package,
        "--device",
        "host",
        "--data",
        tmp_path / "data.npz",
        "--limit",
        4,
        "--json",
        tmp_path / "v.json",
    )
    assert result.output and max(map(len, result.output.splitlines())) <= 100
    facts = json.loads((tmp_path / "v.json").read_text())
    assert facts["ok"] is True
    page = tmp_path / "r.html"
    good("report", package, "-o", page, "--validation", tmp_path / "v.json")
    text = page.read_text()
    assert "Validated on host" in text and "float layers within their bound" in text and "✗" not in text
    bench = good("bench", package, "--threads", 1, "--json", tmp_path / "b.json")
    assert "matmul" in bench.output and json.loads((tmp_path / "b.json").read_text())


def test_a_mismatch_exits_with_one(package: Path, tmp_path: Path) -> None:
    """A package whose original model is another one than its library computes."""
    from xnorc import load
    from xnorc.package import Package

    loaded = load(package)
    other = onnx.parser.parse_model(TEXT.replace("0.5, -1, 2", "0.5, -1, 7")).SerializeToString()
    members = {name: loaded.member(name) for name in loaded.members} | {"model.onnx": other, "packed.onnx": other}
    manifest = {key: value for key, value in loaded.manifest.items() if key != "model"}
    Package.of(tmp_path / "w.xnorc", members, manifest).save(tmp_path / "w.xnorc")
    result = xnorc("validate", tmp_path / "w.xnorc", "--json", tmp_path / "v.json")
    assert result.exit_code == 1 and result.stderr == ""
    facts = json.loads((tmp_path / "v.json").read_text())
    assert facts["ok"] is False and "matmul" in facts["first_difference"]
    good("report", tmp_path / "w.xnorc", "-o", tmp_path / "w.html", "--validation", tmp_path / "v.json")
    text = (tmp_path / "w.html").read_text()
    assert "Different from the original on host" in text and "✗ bad" in text and "First difference: layer" in text
    (tmp_path / "v.json").write_text(json.dumps({**facts, "target": "rpi4"}))
    bad = xnorc("report", package, "-o", tmp_path / "x.html", "--validation", tmp_path / "v.json")
    assert bad.exit_code == 2 and "validates target 'rpi4'" in bad.stderr and not (tmp_path / "x.html").exists()


def test_labels_under_another_name(package: Path, tmp_path: Path) -> None:
    x = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, target=np.maximum(x @ W, 0).argmax(1))
    good("validate", package, "--data", tmp_path / "d.npz", "--labels", "target", "--json", tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text())["end_to_end"]["device_accuracy"] == 1.0
    bad = xnorc("validate", package, "--data", tmp_path / "d.npz", "--labels", "none")
    assert bad.exit_code == 2 and "no array 'none'" in bad.stderr


class _Page(HTMLParser):
    """Checks that tags are closed in order, and that nothing is fetched from anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe"), tag
        for name, value in attrs:
            assert name not in ("src", "href") and not name.startswith("on"), (tag, name, value)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_report(package: Path, tmp_path: Path) -> None:
    good("report", package, "-o", tmp_path / "r.html", "--json", tmp_path / "r.json")
    text = (tmp_path / "r.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open and text.count("<svg") >= 1
    words = "".join(page.text)
    for expected in ("net", "Steps", "matmul", "Nodes of the original model", "model.onnx"):
        assert expected in words
    assert json.loads((tmp_path / "r.json").read_text())["manifest"]["name"] == "net"


def test_report_escapes_what_a_package_says(package: Path, tmp_path: Path) -> None:
    from xnorc import load
    from xnorc.package import Package

    evil = "<script>alert(1)</script>\"'&"
    loaded = load(package)
    manifest = json.loads(json.dumps(loaded.manifest))
    manifest["steps"][0].update(name=evil, op=evil, nodes=[evil])
    manifest["tensors"][0]["name"] = evil
    members = {name: loaded.member(name) for name in loaded.members}
    members["report.json"] = json.dumps({"nodes": [{"node": evil, "status": evil}], "summary": {"nodes": 3}}).encode()
    Package.of(tmp_path / "e.xnorc", members, manifest).save(tmp_path / "e.xnorc")
    (tmp_path / "v.json").write_text(json.dumps({evil: [{evil: evil}], "n": {evil: evil}}))
    good("report", tmp_path / "e.xnorc", "-o", tmp_path / "r.html", "--validation", tmp_path / "v.json")
    page = _Page()
    page.feed((tmp_path / "r.html").read_text())
    assert not page.open and "<script" not in (tmp_path / "r.html").read_text()


def test_report_of_a_validation_full_of_nonsense(package: Path, tmp_path: Path) -> None:
    layer = {"name": [1], "op": None, "bound": "inf", "compared": "many", "ok": 3, "used": {}, "dtype": 7}
    item = {"bits": None, "flips": [1], "max_margin": "<b>", "ok": 0, "explained": "yes", "why": 5}
    end = {"agreement": "1", "max_error": "inf", "flips": [item, 3], "disagreements": [item], "samples": True}
    facts = {"ok": False, "layers": [layer, 7], "end_to_end": end, "passes": [item], "notes": [3, None]}
    for found in (facts, {**facts, "notes": 3, "passes": 3}, {**facts, "layers": 3}, {"ok": True}):
        (tmp_path / "v.json").write_text(json.dumps(found))
        good("report", package, "-o", tmp_path / "r.html", "--validation", tmp_path / "v.json")
        page = _Page()
        page.feed((tmp_path / "r.html").read_text())
        assert not page.open and "<b><b>" not in (tmp_path / "r.html").read_text()


def test_lines_of_the_report_join_who_reads_whom() -> None:
    """A step that reads what the one before it wrote, and what the first wrote: one straight line, one lane."""
    from xnorc.report.pictures import MAX_LANES, rails

    def step(reads: list[int], writes: list[int]) -> dict[str, object]:
        return {"name": f"s{writes[0]}", "reads": reads, "writes": writes}

    drawn = rails({"inputs": [0], "steps": [step([0], [1]), step([1], [2]), step([1, 2], [3])]})
    assert [path.count("M") for path in drawn["paths"]] == [1, 3, 3, 2]
    plain = rails({"inputs": [0], "steps": [step([0], [1]), step([1], [2])]})
    assert plain["width"] < drawn["width"] and not any("C" in path for path in plain["paths"])
    dense = [step(list(range(number)), [number]) for number in range(1, 40)]
    assert rails({"inputs": [0], "steps": dense})["width"] <= drawn["width"] + 13 * (MAX_LANES - 1)


def test_export(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "nets.py").write_text("import torch\ndef make(): return torch.nn.Sequential(torch.nn.Linear(4, 3))\n")
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 3)).state_dict(), tmp_path / "w.pt")
    result = good(
        "export", f"{tmp_path}/nets.py:make", "--weights", tmp_path / "w.pt", "--input", "1,4",
        "--exporter", "torchscript", "-o", tmp_path / "m.onnx", "--json", tmp_path / "e.json",
    )  # fmt: skip
    assert "ONNX Runtime agrees with torch" in result.stdout and result.stderr == ""
    facts = json.loads((tmp_path / "e.json").read_text())
    assert facts["exporter"] == "torchscript" and facts["check"]["max_error"] < 1e-5
    good("explain", tmp_path / "m.onnx")
