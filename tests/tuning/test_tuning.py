"""``xnorc compile --tune``: what is drawn, what is kept, what is refused, and that results stay the same bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import xnorc
from tests.passes.mini import Net
from tests.runtimes.sshd import Server, needs_sshd
from tests.test_cli import good
from tests.test_cli import xnorc as command
from xnorc import targets
from xnorc.errors import DeviceError, InputError, TargetError
from xnorc.lower import shipped
from xnorc.lower.build import lower
from xnorc.lower.knobs import Knobs
from xnorc.model import prepare
from xnorc.passes import optimize
from xnorc.tuning import LayerRecord, Records, Tuning, search
from xnorc.tuning.measure import Layer, Measured
from xnorc.tuning.space import Space

HOST = targets.get("host")


def net() -> onnx.ModelProto:
    """A float convolution, two binary ones."""
    made = Net((1, 3, 16, 16))
    x = made.node("Conv", "x", made.floats(32, 3, 3, 3), pads=[1] * 4, kernel_shape=[3, 3])

    def sign(x: str) -> str:
        return made.node("Where", made.node("GreaterOrEqual", x, np.float32(0)), np.float32(1), np.float32(-1))

    x = made.conv(sign(made.bn(x, 32)), 32, 64)
    x = made.conv(sign(made.bn(x, 64)), 64, 8)
    return made.model(made.bn(x, 8))


def templates(target: str = "host") -> dict[str, object]:
    program = lower(optimize(prepare(net())).model, targets.get(target), "net")
    return {t.call.op: t for t in program.templates.values() if any(len(c) > 1 for c in t.call.knobs.asked.values())}


def test_a_knob_ships_with_its_value_and_takes_only_candidates() -> None:
    assert Knobs().choose("rows", 4, (2, 8)) == 4
    assert Knobs({"rows": 8}).choose("rows", 4, (2, 8)) == 8
    assert Knobs({"rows": 5}).choose("rows", 4, (2, 8)) == 4
    knobs = Knobs({"rows": 8})
    assert (knobs.choose("rows", 4, (2, 8)), knobs.choose("rows", 4, (2,))) == (8, 8)  # asked twice, answered once
    assert knobs.asked == {"rows": (4, 2, 8)} and knobs.changed() == {"rows": 8}


@pytest.mark.parametrize("op", ["BinaryConv", "conv"])
def test_candidates_are_new_points_until_there_are_no_more(op: str) -> None:
    template = templates()[op]
    space = Space(template, 500)
    drawn = []
    while found := space.candidates(16):
        for point, candidate in found:
            knobs = Knobs(point)
            template.make("again", knobs)
            assert knobs.values == point, "the trace says what was chosen"
            space.measured(candidate, 1.0 + len(drawn))
            drawn.append(point)
        if len(drawn) > 40:
            break
    names = {repr(sorted(point.items())) for point in [space.shipped, *drawn]}
    assert len(names) == len(drawn) + 1 > 5
    assert space.best() == drawn[0]


def test_a_layer_is_named_by_its_shape_and_machine_not_by_its_weights() -> None:
    first, second = templates()["BinaryConv"], templates()["BinaryConv"]
    assert first.key == second.key != templates("rpi4")["BinaryConv"].key


def test_tuning_on_the_host_keeps_every_bit(tmp_path: Path) -> None:
    model = net()
    file = tmp_path / "tuned.json"
    tuning = Tuning(Records(file), "host", 3)
    tuned = xnorc.compile(model, tune=tuning)
    assert tuning.done and not any(done.wrong for done in tuning.done)
    assert {done.op.split("+")[0] for done in tuning.done} >= {"Conv", "BinaryConv"}
    assert Records.read(file).layers == tuning.records.layers and len(tuning.done) == len(tuning.records.layers)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)}
    plain = xnorc.compile(model)
    ((name, wanted),) = plain.run(feeds).items()
    assert tuned.run(feeds)[name].tobytes() == wanted.tobytes()
    again = Tuning(Records.read(file), "host", 4)
    assert xnorc.compile(model, tune=again).member("lib/runner") == tuned.member("lib/runner")
    assert [done.reason for done in again.done] == ["tuned before"] * len(tuning.done)


@needs_sshd
def test_tuning_over_ssh(server: Server, tmp_path: Path) -> None:
    """Candidates are compiled here, and run and timed where the device is."""
    onnx.save(net(), tmp_path / "net.onnx")
    file, arguments = tmp_path / "tuned.json", ("--device", server.url, "--trials", 2, "-o", tmp_path / "net.xnorc")
    good("compile", tmp_path / "net.onnx", "--tune", "--tuned", file, *arguments)
    layers = Records.read(file).layers.values()
    assert len(layers) == 3 and all(layer.us > 0 and layer.trials == 2 for layer in layers)
    assert server.folders() == [], "nothing is left there"
    good("validate", tmp_path / "net.xnorc")


@pytest.mark.slow
def test_every_choice_of_every_knob_keeps_every_bit(tmp_path: Path) -> None:
    """Not one choice after another by luck: all values of each knob, the others as shipped."""
    model = net()
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)}
    ((name, wanted),) = xnorc.compile(model).run(feeds).items()
    made = templates()
    rows = {op: [(k, v) for k, c in t.call.knobs.asked.items() for v in c[1:]] for op, t in made.items()}
    for choices in itertools.islice(itertools.zip_longest(*rows.values()), 8):
        records = Records(tmp_path / "all.json")
        for template, choice in zip(made.values(), choices, strict=True):
            if choice is not None:
                records.layers[template.key] = LayerRecord("layer", "host", "host", dict([choice]), 1, 1, 1)
        records.save()
        package = xnorc.compile(model, tuned=records.path)
        assert any("tuned" in step for step in package.manifest["steps"])
        assert package.run(feeds)[name].tobytes() == wanted.tobytes(), choices


def fake(times: list[list[float]], equal: bool = True) -> object:
    """Stands in for a device: the shipped schedule takes 1 s, candidates what ``times`` says."""
    answers = iter(times)

    def measure(layer: Layer, points: list[dict[str, int]], target: object, device: object) -> Measured:
        seconds = next(answers, None)
        if seconds is None:
            raise KeyboardInterrupt
        return Measured([1.0, *seconds[: len(points) - 1]], [True] + [equal] * (len(points) - 1))

    return measure


def test_only_what_is_faster_twice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer("conv", "BinaryConv", templates()["BinaryConv"], {}, frozenset(), 1, 1)

    def tuned(times: list[list[float]], equal: bool = True) -> search.LayerResult:
        monkeypatch.setattr(search, "measure", fake(times, equal))
        return search._tune_layer(layer, HOST, None, 4, lambda stage: None)

    kept = tuned([[0.9, 0.5, 0.7, 0.8], [0.6]])
    assert kept.gain == pytest.approx(1 / 0.6) and kept.choices and kept.trials == 4
    lucky = tuned([[0.9, 0.5, 0.7, 0.8], [0.99]])
    assert not lucky.choices and lucky.reason == "as shipped"
    wrong = tuned([[0.1] * 4, [0.1]], equal=False)
    assert not wrong.choices and wrong.wrong == 4


def test_choices_that_ship_are_used_and_give_way_to_what_the_user_tuned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    template = templates()["BinaryConv"]
    knob, values = next((knob, values) for knob, values in template.call.knobs.asked.items() if len(values) > 2)
    ours, theirs = {knob: values[1]}, {knob: values[2]}
    plain = xnorc.compile(net())
    assert not any("shipped" in step or "tuned" in step for step in plain.manifest["steps"])

    monkeypatch.setattr(shipped, "choices", lambda target: {template.key: ours} if target == "host" else {})
    package = xnorc.compile(net(), output=tmp_path / "net.xnorc")
    assert [step["shipped"] for step in package.manifest["steps"] if "shipped" in step] == [ours]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)}
    ((name, wanted),) = plain.run(feeds).items()
    assert package.run(feeds)[name].tobytes() == wanted.tobytes()

    records = Records(tmp_path / "tuned.json")
    records.layers[template.key] = LayerRecord("layer", "host", "host", theirs, 1, 1, 1)
    records.save()
    steps = xnorc.compile(net(), tuned=records.path).manifest["steps"]
    assert [step["tuned"] for step in steps if "tuned" in step] == [theirs]
    assert not any("shipped" in step for step in steps)

    # The tuner begins with what ships, and keeps it where nothing is faster.
    made = templates()["BinaryConv"]
    assert Space(made, 4).shipped[knob] == values[1]
    monkeypatch.setattr(search, "measure", fake([[1.0] * 4, [1.0]]))
    result = search._tune_layer(
        Layer("conv", "BinaryConv", made, {}, frozenset(), 1, 1), HOST, None, 4, lambda stage: None
    )
    assert result.reason == "as shipped" and result.choices == ours


@pytest.mark.parametrize("file", sorted(shipped.file("host").parent.glob("*.json")), ids=lambda file: file.stem)
def test_what_ships_are_records_that_gained_something(file: Path) -> None:
    assert targets.get(file.stem).name == file.stem
    records = Records.read(file)
    assert records.layers and shipped.choices(file.stem) == records.choices()
    for key, record in records.layers.items():
        assert len(key) == 32 and record.target == file.stem and record.choices
        assert record.shipped_us >= 1.01 * record.us > 0


def test_ctrl_c_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search, "measure", fake([[0.5] * 4, [0.5]]))
    told: list[bool] = []
    tuning = Tuning(Records(tmp_path / "t.json"), "host", 4, lambda: told.append(True))
    package = xnorc.compile(net(), tune=tuning)
    assert tuning.interrupted and told and len(tuning.done) == 1 and tuning.done[0].choices
    assert len(Records.read(tmp_path / "t.json").layers) == 1
    assert sum("tuned" in step for step in package.manifest["steps"]) == 1


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "measure", fake([[0.5] * 4, [0.5]] * 3))
    stored = tmp_path / "cache" / "xnorc" / "tuned" / "host.json"
    monkeypatch.setattr("xnorc.tuning.default_file", lambda target: stored)  # the cache's folder is zig's as well
    onnx.save(net(), tmp_path / "net.onnx")
    said = good(
        "compile",
        tmp_path / "net.onnx",
        "--tune",
        "--trials",
        4,
        "-o",
        tmp_path / "net.xnorc",
        "--json",
        tmp_path / "j",
    )
    assert "2.00x" in said.output and stored.name in said.output.replace("\n", "")
    assert [row["gain"] for row in json.loads((tmp_path / "j").read_text())["tuning"]] == [2.0] * 3


def test_what_cannot_be_tuned_is_one_line(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    (tmp_path / "bad.json").write_text('{"format": 1, "layers": {"a": {"us": "x"}}}')
    (tmp_path / "old.json").write_text('{"format": 0}')
    for arguments, words in {
        ("--trials", "3"): "are for --tune",
        ("--tuned", tmp_path / "none.json"): "none.json",
        ("--tuned", tmp_path / "bad.json"): "layer 'a'",
        ("--tuned", tmp_path / "old.json"): "format 1",
        ("--tune", "--device", "moon"): "moon",
        ("--tune", "--device", "sim"): "--tune runs on",
        ("--tune", "--target", "ulx3s-85f"): "FPGA",
    }.items():
        result = command("compile", tmp_path / "net.onnx", "-o", tmp_path / "out", *arguments)
        assert result.exit_code == 2 and words in result.output and len(result.output.splitlines()) == 1, result.output
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="not JSON"):
        (tmp_path / "old.json").write_text("{")
        Records.read(tmp_path / "old.json")
    with pytest.raises(TargetError, match="FPGA"):
        xnorc.compile(net(), "icebreaker", tuned=tmp_path / "bad.json")
    with pytest.raises(DeviceError, match="--tune runs on"):
        xnorc.compile(net(), tune=Tuning(Records(tmp_path / "x.json"), "sim"))


@pytest.mark.slow
def test_tuning_for_a_pi_uses_modelled_cycles(tmp_path: Path) -> None:
    import shutil

    if not shutil.which("qemu-aarch64") or not shutil.which("llvm-mca"):
        pytest.skip("needs Debian's qemu-user and llvm")
    tuning = Tuning(Records(tmp_path / "t.json"), "qemu", 3)
    package = xnorc.compile(net(), "rpi4", tune=tuning)
    assert tuning.done and all(done.us > 0 and not done.wrong for done in tuning.done)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)}
    ((name, got),) = package.run(feeds, "qemu").items()
    assert got.tobytes() == xnorc.compile(net(), "rpi4").run(feeds, "qemu")[name].tobytes()
