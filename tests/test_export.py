"""torch → ONNX by both exporters, folded and compared; weights from files that nobody vouches for."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import xnorc  # noqa: E402
from xnorc import export_check, exporter  # noqa: E402
from xnorc.errors import ExportError  # noqa: E402
from xnorc.factory import load_factory, load_weights  # noqa: E402
from xnorc.model import read_model, source_names  # noqa: E402

EXPORTERS = ("dynamo", "torchscript")


class BinaryConv(nn.Conv2d):
    """Signs of inputs and weights, and a straight-through residue whose value is zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = torch.sign(self.weight) * scale
        soft = self.weight.clamp(-1, 1)
        weight = (weight - soft) + soft
        return F.conv2d(torch.sign(x), weight, None, self.stride, self.padding)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.layer = nn.Sequential(BinaryConv(8, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
        self.second = BinaryConv(64, 64, 3, padding=1, bias=False)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.norm(self.stem(image)))
        return self.head((self.second(x) + x).mean((2, 3)))


def trained_looking(module: nn.Module) -> nn.Module:
    """Statistics as training leaves them: no BatchNorm is the identity, some scales are negative."""
    generator = torch.Generator().manual_seed(1)
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm2d):
            for tensor, low, high in (
                (inner.weight, -0.5, 1.5),
                (inner.bias, -0.5, 0.5),
                (inner.running_mean, -1, 1),
                (inner.running_var, 0.5, 2),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return trained_looking(Net())


@pytest.mark.parametrize("kind", EXPORTERS)
def test_binary_net(net: nn.Module, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net.train()
    net.head.eval()
    result = xnorc.export(net, torch.randn(1, 1, 8, 8), tmp_path / "m.onnx", exporter=kind)
    assert capfd.readouterr() == ("", ""), "exporters chatter"
    assert net.training and net.layer.training and not net.head.training
    assert (result.exporter, result.reason) == (kind, "")
    assert result.report is not None and result.report.max_error < 1e-5 and result.report.differing == 0
    read = read_model(tmp_path / "m.onnx")
    assert [info.name for info in read.graph.input] == ["image"]
    assert [info.name for info in read.graph.output] == ["output"]
    # The chains that binarize the weights are gone, the BatchNorms are where the module has them.
    ops = [node.op_type for node in read.graph.node]
    assert ops.count("Sign") == 2 and ops.count("BatchNormalization") == 2 and ops.count("Conv") == 3
    assert not {"Clip", "Abs", "Sub"} & set(ops)
    assert {"stem", "norm", "layer.0", "second", "head"} <= set(source_names(read).values())


def test_both_exporters_give_the_same_network(net: nn.Module) -> None:
    example = torch.randn(1, 1, 8, 8)
    graphs = [xnorc.export(net, example, exporter=kind).model.graph for kind in EXPORTERS]
    assert [node.op_type for node in graphs[0].node] == [node.op_type for node in graphs[1].node]


def test_unfolded(net: nn.Module) -> None:
    result = xnorc.export(net, torch.randn(1, 1, 8, 8), exporter="torchscript", fold=False, check=False)
    assert sum(node.op_type == "Sign" for node in result.model.graph.node) == 4
    assert result.report is None


class Guarded(nn.Module):
    """What BiT-style quantizers do: a decision in Python on a tensor's value, which dynamo refuses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.abs().sum().item() >= 0 else x


def test_falls_back_to_torchscript_and_says_why() -> None:
    result = xnorc.export(Guarded(), torch.ones(1, 4))
    assert result.exporter == "torchscript"
    assert result.reason.startswith("dynamo: GuardOnDataDependentSymNode") and "\n" not in result.reason
    assert result.warnings and "test_export.py" in result.warnings[0]


def test_falls_back_to_dynamo(monkeypatch: pytest.MonkeyPatch, net: nn.Module) -> None:
    def broken(*_: object) -> None:
        raise ExportError("RuntimeError: no")

    monkeypatch.setattr(exporter, "_with_torchscript", broken)
    result = xnorc.export(net, torch.randn(1, 1, 8, 8), exporter="torchscript")
    assert (result.exporter, result.reason) == ("dynamo", "torchscript: RuntimeError: no")


class Median(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.median()


def test_both_fail_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be exported; dynamo: .*; torchscript: ") as caught:
        xnorc.export(Median(), torch.rand(1, 5), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


class Branch(nn.Module):
    """Traced with a positive sum, wrong for every other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum().item() > 0 else x - 1


def test_a_frozen_decision_is_noticed() -> None:
    with pytest.raises(
        ExportError, match=r"torchscript: a value computed from the inputs would be fixed .* at test_export"
    ):
        xnorc.export(Branch(), torch.tensor([[1.0, -1.0, 0.5, -0.4]]))


def test_a_frozen_decision_is_noticed_without_the_second_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "check_baked", lambda *_: None)
    with pytest.raises(ExportError, match="torchscript: output 'output' differs"):
        xnorc.export(Branch(), torch.tensor([[1.0, -1.0, 0.5, -0.4]]))


class Clamped(nn.Module):
    """A binarizer whose scale Python reads; its network is so full of signs that a comparison of outputs may miss it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max().item() if float(x.abs().max()) > 10 else 10.0
        return torch.sign(torch.sin(1e6 * x)) * scale


def test_a_scale_that_only_large_data_change_is_noticed() -> None:
    with pytest.raises(ExportError) as caught:
        xnorc.export(Clamped(), torch.linspace(-1, 3, 8)[None])
    text = str(caught.value)
    assert "torchscript: a value computed from the inputs would be fixed" in text and "torch.where" in text
    assert "test_export.py:" in text and "\n" not in text


class Initialised(nn.Module):
    """Reads its own state in Python, as learned quantizers do: the same for all data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x) if self.ready.item() > 0 and not bool(torch.isnan(x).any()) else x


def test_a_guard_that_no_data_change_is_a_warning() -> None:
    result = xnorc.export(Initialised(), torch.linspace(-1, 3, 8)[None], exporter="torchscript")
    assert result.exporter == "torchscript" and result.warnings


def test_structural_difference_is_no_flip(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    make = exporter._with_torchscript

    def wrong(*args: object) -> object:
        model = make(*args)
        for node in model.graph.node:
            if node.op_type == "Conv" and node.name.startswith("/second"):
                pads = next(attr for attr in node.attribute if attr.name == "pads")
                pads.ints[:] = [2, 2, 0, 0]
        return model

    monkeypatch.setattr(exporter, "_with_torchscript", wrong)
    monkeypatch.setattr(exporter, "_with_dynamo", wrong_dynamo)
    with pytest.raises(
        ExportError, match=r"torchscript: output 'output' differs from the module's by .* .allowed 1e-04; the module"
    ):
        xnorc.export(net, torch.randn(1, 1, 8, 8))


def wrong_dynamo(*_: object) -> object:
    raise ExportError("not tried")


def test_flips_are_explained_not_refused(net: nn.Module) -> None:
    """The comparison itself: an output moved as far as flips move it passes and is explained; farther does not."""
    module = nn.Sequential(nn.Linear(16, 512), _Sign(), nn.Linear(512, 4)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.fill_(0.0)
        module[0].weight[:, 0], module[0].weight[:, 1] = 1.0, -1.0
    model = xnorc.export(module, torch.ones(1, 16), exporter="torchscript", check=False).model
    for tensor in model.graph.initializer:  # zero in torch, a rounding away from zero in the model
        if list(tensor.dims) == [512]:
            tensor.raw_data = np.full(512, 1e-8, np.float32).tobytes()
    with torch.no_grad():
        report = export_check.compare(module, (torch.ones(1, 16),), model, ["output"])
    assert report.differing >= 1 and "signs near zero flip" in report.note


class _Sign(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x)


class Two(nn.Module):
    def forward(self, left: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left + ids, "difference": left - ids}


@pytest.mark.parametrize("kind", EXPORTERS)
def test_several_inputs_and_outputs(kind: str) -> None:
    result = xnorc.export(Two(), [torch.randn(2, 3), torch.randint(0, 5, (2, 3))], exporter=kind)
    assert [info.name for info in result.model.graph.input] == ["left", "ids"]
    assert [info.name for info in result.model.graph.output] == ["output_0", "output_1"]
    named = xnorc.export(
        Two(),
        [torch.randn(2, 3), torch.randint(0, 5, (2, 3))],
        exporter=kind,
        input_names=["a", "b"],
        output_names=["s", "d"],
    )
    assert [info.name for info in (*named.model.graph.input, *named.model.graph.output)] == ["a", "b", "s", "d"]


def test_bad_arguments(net: nn.Module) -> None:
    example = torch.randn(1, 1, 8, 8)
    for words, call in {
        "unknown exporter": lambda: xnorc.export(net, example, exporter="tea"),
        "opset 7": lambda: xnorc.export(net, example, opset=7),
        "1 inputs, 2 input names": lambda: xnorc.export(net, example, input_names=["a", "b"]),
        "must differ": lambda: xnorc.export(net, example, input_names=["a"], output_names=["a"]),
        "must be a tensor": lambda: xnorc.export(net, []),
        "fails on inputs .1, 3.": lambda: xnorc.export(net, torch.randn(1, 3)),
    }.items():
        with pytest.raises(ExportError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "module."])
def test_weights_are_loaded(net: nn.Module, tmp_path: Path, suffix: str, wrapped: str) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    if wrapped == "module.":
        state = {f"module.{name}": value for name, value in state.items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3} if wrapped == "state_dict" else state, path)
    elif wrapped == "state_dict":
        pytest.skip("safetensors holds tensors only")
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    other = Net()
    load_weights(other, path)
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_a_pickle_with_code_is_refused(net: nn.Module, tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "w.pt", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(trace), "w")

    state = {**net.state_dict(), "x": Evil()}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ExportError, match=r"w.pt") as caught:
        load_weights(Net(), path)
    assert not trace.exists() and "\n" not in str(caught.value)


def test_weights_that_do_not_fit(net: nn.Module, tmp_path: Path) -> None:
    state = dict(net.state_dict())
    del state["head.bias"]
    state["tail"] = torch.zeros(1)
    state["stem.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ExportError, match=r"missing 'head.bias'; unexpected 'tail'; 'stem.bias' has shape \[3\]"):
        load_weights(net, tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    for name in ("list.pt", "noise.pt", "noise.safetensors", "none.pt"):
        with pytest.raises(ExportError, match=name) as caught:
            load_weights(net, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import torch\ndef make(): return torch.nn.ReLU()\nready = make()\ndef bad(): return 1 / 0\nnumber = 3\n"
    (tmp_path / "xnorc_factory_file.py").write_text(source)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    monkeypatch.chdir(tmp_path)
    for spec in ("xnorc_factory_file:make", "xnorc_factory_file.py:ready", f"{tmp_path}/xnorc_factory_file.py:make"):
        assert isinstance(load_factory(spec)(), nn.ReLU)
    assert isinstance(load_factory("torch.nn:ReLU")(), nn.ReLU)
    for spec, words in {
        "xnorc_factory_file": "does not name a factory",
        "xnorc_factory_file:none": "has no 'none'",
        "xnorc_factory_file:number": "is a int",
        "none.py:make": "no file",
        "nothing_of_the_kind:make": "cannot import",
        "broken.py:make": "cannot import",
    }.items():
        with pytest.raises(ExportError, match=words):
            load_factory(spec)
    with pytest.raises(ExportError, match="ZeroDivisionError"):
        load_factory("xnorc_factory_file:bad")()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_exported_model_tells_nothing_of_this_machine(exporter: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    result = xnorc.export(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.zeros(1, 1, 5, 5), path, exporter=exporter
    )
    assert result.exporter == exporter
    data = path.read_bytes()
    assert b"stack_trace" not in data and b".py" not in data and str(Path.home()).encode() + b"/" not in data
