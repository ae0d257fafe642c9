"""Makes the models of ``tests/qonnx/data`` with Brevitas, and what the qonnx executor computes for them.

    python tests/qonnx/make_models.py [--env FOLDER] [--out FOLDER] [--full] [NAME ...]

Needs pip and nothing else: Brevitas, qonnx and an onnx that the executor can use (1.20: later ones write an IR version that
its ONNX Runtime calls refuse) go into a virtual environment of their own, in which the script then runs itself. ``--full``
makes the CNV networks in the width of the paper (6 MB each), by default they are narrow.

* ``tfc_*``, ``cnv_*``: FINN's fully connected and convolutional networks (Umuroglu et al., FPGA 2017), as
  ``brevitas_examples.bnn_pynq`` defines them, exported unmodified, by torch's TorchScript exporter or its dynamo
  exporter. TFC is trained on MNIST for a few seconds; CNV gets random weights, batch norm statistics from random
  smooth pictures, and scales of both signs.
* ``mixed_4w4a``: what those lack: zero padding, a residual, scales per channel, biases, unsigned activations, truncating
  average pooling.
* ``handwritten_finn``: ``MultiThreshold`` and ``XnorPopcountMatMul``, which FINN's own passes write and no exporter does;
  written with ``onnx.helper`` after the QONNX specification.

For each: ``<name>.onnx`` as exported, ``<name>.npz`` with arrays ``input/<tensor>`` and ``output/<tensor>`` (samples along
the first axis) and, for the first sample, ``tensor/<tensor>`` for every quantizer on the way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("torch==2.13.0", "brevitas==0.13.4", "qonnx==1.0.0", "onnx==1.20.1", "onnxoptimizer==0.4.2", "onnxscript")
SAMPLES = 6
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Make the environment where it is missing, and run this file in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default=str(Path(tempfile.gettempdir()) / "xnorc-qonnx-env"))
    parser.add_argument("--out", default=str(HERE / "data"))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    if given.inside:
        make(Path(given.out), given.names, given.full)
        return
    python = Path(given.env) / "bin" / "python"
    if not python.exists():
        venv.create(given.env, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([python, __file__, "--inside", *sys.argv[1:]], check=True, env=environment)


# Everything below runs inside the environment.


def make(folder: Path, names: list[str], full: bool) -> None:
    """Write the models ``names`` (all without names) and their golden arrays to ``folder``."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for name in names or list(MODELS):
        torch.manual_seed(1)
        torch.set_num_threads(1)
        path = folder / f"{name}.onnx"
        inputs = MODELS[name](path, full)
        golden(path, inputs)
        print(f"{path}: {path.stat().st_size:,} bytes")


def golden(path: Path, inputs: Any) -> None:
    """Run the qonnx executor on a model, sample by sample, and store what it computed beside the model."""
    import numpy as np
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    given = ModelWrapper(str(path))
    stored = {tensor.name for tensor in given.graph.initializer}
    (name,) = [info.name for info in given.graph.input if info.name not in stored]
    wanted = [out.name for out in given.graph.output]
    # cleanup_model infers shapes, which the executor needs, and renames: only the first half of it is done here.
    model = prepared(given)
    arrays: dict[str, list[Any]] = {}
    extra: dict[str, Any] = {}
    for index, sample in enumerate(inputs):
        context = execute_onnx(model, {name: sample}, return_full_exec_context=True)
        arrays.setdefault(f"input/{name}", []).append(sample)
        for out in wanted:
            arrays.setdefault(f"output/{out}", []).append(context[out])
        if index == 0:
            extra = {
                f"tensor/{node.output[0]}": context[node.output[0]]
                for node in model.graph.node
                if node.domain.startswith("qonnx.") and node.input[0] not in stored
            }
    stacked = {key: np.stack(value) for key, value in arrays.items()}
    # The same answer from the model as qonnx users run it, after the whole of cleanup_model.
    whole = cleanup_model(ModelWrapper(str(path)))
    (other,) = execute_onnx(whole, {whole.graph.input[0].name: inputs[0]}).values()
    assert np.array_equal(other, stacked[f"output/{wanted[0]}"][0])
    np.savez_compressed(path.with_suffix(".npz"), **stacked, **extra)


def prepared(model: Any) -> Any:
    """What the executor needs: initializers that are not inputs, and shapes."""
    from qonnx.transformation.infer_shapes import InferShapes

    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model.transform(InferShapes())


def export(module: Any, example: Any, path: Path, dynamo: bool) -> None:
    """Export by Brevitas, with nothing done to the model afterwards."""
    from brevitas.export import export_qonnx

    more: dict[str, Any] = {"optimize": True, "external_data": False} if dynamo else {}
    export_qonnx(module.eval(), args=example, export_path=str(path), dynamo=dynamo, input_names=["image"], **more)
    if dynamo:
        without_paths(path)


def without_paths(path: Path) -> None:
    """Drop what the dynamo exporter notes about the machine that it ran on (stack traces with file names)."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        kept = [item for item in node.metadata_props if "stack_trace" not in item.key and "fx_node" not in item.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def coarse(module: Any) -> None:
    """Round the latent weights to multiples of 1/64, no zero among them: the same levels, but the file compresses."""
    import torch

    for parameter in module.parameters():
        if parameter.dim() > 1:
            with torch.no_grad():
                parameter.copy_((torch.floor(parameter * 64) + 0.5) / 64)


def tfc(bits: str, dynamo: bool, tail: Callable[[Any], Any] | None = None) -> Callable[[Path, bool], Any]:
    """FINN's TFC: 784-64-64-64-10, trained on MNIST for a few seconds."""

    def build(path: Path, full: bool) -> Any:
        import torch
        from brevitas_examples.bnn_pynq.models import model_with_cfg

        sys.path.insert(0, str(HERE.parents[1] / "examples" / "mnist"))
        import data  # type: ignore[import-not-found]

        images, labels = data.load("train")
        module, _ = model_with_cfg(f"tfc_{bits}", False)
        train(module, torch.from_numpy(images[:20000]), torch.from_numpy(labels[:20000]))
        coarse(module)
        tests, answers = data.load("test")
        with torch.no_grad():
            right = (module.eval()(torch.from_numpy(tests)).argmax(1).numpy() == answers).mean()
        print(f"tfc_{bits}: {right:.1%} of MNIST's test images")
        samples = tests[:SAMPLES, None].astype("float32")
        whole = torch.nn.Sequential(module, tail(torch)) if tail else module
        export(whole, torch.from_numpy(samples[0]), path, dynamo)
        return samples

    return build


def train(module: Any, images: Any, labels: Any, epochs: int = 6) -> None:
    """Adam on the cross entropy; the latent weights stay in [−1, 1]."""
    import torch

    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images[batch]), labels[batch].long()).backward()
            optimizer.step()
            module.clip_weights(-1, 1)


def pictures(count: int, size: int) -> Any:
    """Smooth random colour pictures, of whole 255ths as from an 8-bit camera: float32 ``[count, 3, size, size]``."""
    import torch

    rough = torch.rand(count, 3, size // 4, size // 4)
    smooth = torch.nn.functional.interpolate(rough, size=(size, size), mode="bicubic", align_corners=False)
    return torch.round((smooth + 0.1 * torch.randn_like(smooth)).clamp(0, 1) * 255) / 255


def settle(module: Any, batches: list[Any]) -> None:
    """Random weights, batch norms with scales of both signs, and statistics from forward passes."""
    import torch

    for inner in module.modules():
        if isinstance(inner, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            inner.momentum = None  # the plain mean over all batches
            with torch.no_grad():
                inner.weight.normal_(0, 1)
                inner.bias.normal_(0, 0.3)
    coarse(module)
    module.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)


def cnv(bits: str, dynamo: bool, tail: Callable[[Any], Any] | None = None) -> Callable[[Path, bool], Any]:
    """FINN's CNV: conv 64, 64, pool, 128, 128, pool, 256, 256, dense 512, 512, 10; an eighth as wide unless ``full``."""

    def build(path: Path, full: bool) -> Any:
        import importlib

        import torch
        from brevitas_examples.bnn_pynq.models import model_with_cfg

        network = importlib.import_module("brevitas_examples.bnn_pynq.models.CNV")
        if not full:
            widths = [8, 8, 16, 20, 32, 32]  # 20: not a multiple of 8
            network.CNV_OUT_CH_POOL = list(zip(widths, [False, True, False, True, False, False], strict=True))
            network.INTERMEDIATE_FC_FEATURES = [(32, 64), (64, 64)]
            network.LAST_FC_IN_FEATURES = 64
        module, _ = model_with_cfg(f"cnv_{bits}", False)
        settle(module, [pictures(32, 32) for _ in range(4)])
        samples = pictures(SAMPLES, 32)
        whole = torch.nn.Sequential(module, tail(torch)) if tail else module
        export(whole, samples[:1], path, dynamo)
        return samples[:, None].numpy()

    return build


def top_class(torch: Any) -> Any:
    """The class as FINN's deployment flow appends it: TopK with k = 1."""

    class Tail(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return torch.topk(x, 1, dim=1).indices

    return Tail()


def mixed(path: Path, full: bool) -> Any:
    """Convolutions with 4-bit weights scaled per channel, biases, a residual, and average pooling that truncates."""
    import torch
    from brevitas.nn import QuantConv2d, QuantEltwiseAdd, QuantIdentity, QuantLinear, QuantReLU, TruncAvgPool2d
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Int32Bias, Uint8ActPerTensorFloat

    weight = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4, "bias_quant": Int32Bias, "bias": True}
    relu = {"act_quant": Uint8ActPerTensorFloat, "bit_width": 4, "return_quant_tensor": True}

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
            self.stem = QuantConv2d(3, 12, 3, padding=1, **weight)
            self.act = QuantReLU(**relu)
            self.inner = QuantConv2d(12, 12, 3, padding=1, groups=2, **weight)
            self.add = QuantEltwiseAdd(
                input_quant=Int8ActPerTensorFloat, output_quant=Int8ActPerTensorFloat, return_quant_tensor=True
            )
            self.last = QuantReLU(**relu)
            self.pool = TruncAvgPool2d(kernel_size=4, bit_width=4)
            self.head = QuantLinear(12 * 4, 10, **weight)

        def forward(self, x: Any) -> Any:
            x = self.act(self.stem(self.image(x)))
            x = self.pool(self.last(self.add(x, self.inner(x))))
            return self.head(x.flatten(1))

    module = Mixed()
    with torch.no_grad():
        for convolution in (module.stem, module.inner, module.head):
            convolution.bias.normal_(0, 0.1)
    module.train()
    with torch.no_grad():
        for _ in range(40):
            module(pictures(16, 8))
    samples = pictures(SAMPLES, 8)
    export(module, samples[:1], path, dynamo=False)
    return samples[:, None].numpy()


def handwritten(path: Path, full: bool) -> Any:
    """FINN's streamlined form: integers in, thresholds between the layers, popcounts; written after the specification."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(3)

    def thresholds(channels: int, count: int, low: int, high: int) -> Any:
        return np.sort(rng.integers(low, high, (channels, count)), axis=1).astype(np.float32)

    def step(x: str, label: str, out: str, **attributes: Any) -> Any:
        return helper.make_node("MultiThreshold", [x, label], [out], out, domain=domain, **attributes)

    domain = "qonnx.custom_op.general"
    signs = [rng.choice(np.float32([-1, 1]), shape) for shape in ((8, 3, 3, 3), (12, 8, 3, 3))]
    weights = {
        "w0": signs[0],
        "t0": thresholds(8, 3, -900, 900),
        "w1": signs[1],
        "t1": thresholds(1, 1, -20, 20),
        "w2": rng.integers(0, 2, (12 * 16, 24)).astype(np.float32),
        "t2": thresholds(24, 1, 80, 112),
        "w3": rng.integers(0, 2, (24, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "c0", pads=[1, 1, 1, 1]),
        step("c0", "t0", "a0", out_dtype="INT2", out_bias=-1.0, data_layout="NCHW"),
        helper.make_node("Conv", ["a0", "w1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
        step("c1", "t1", "a1", out_dtype="BINARY"),
        helper.make_node("Flatten", ["a1"], ["flat"], "flat"),
        helper.make_node("XnorPopcountMatMul", ["flat", "w2"], ["p2"], "p2", domain=domain),
        step("p2", "t2", "a2", out_dtype="BINARY"),
        helper.make_node("XnorPopcountMatMul", ["a2", "w3"], ["p3"], "p3", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "finn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("p3", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    imports = [helper.make_opsetid("", 13), helper.make_opsetid(domain, 1)]
    save(helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="xnorc tests"), path)
    return rng.integers(0, 256, (SAMPLES, 1, 3, 8, 8)).astype(np.float32)


MODELS: dict[str, Callable[[Path, bool], Any]] = {
    "tfc_1w1a": tfc("1w1a", dynamo=False),
    "tfc_1w2a": tfc("1w2a", dynamo=True, tail=top_class),
    "tfc_2w2a": tfc("2w2a", dynamo=False),
    "cnv_1w1a": cnv("1w1a", dynamo=True, tail=top_class),
    "cnv_1w2a": cnv("1w2a", dynamo=False),
    "cnv_2w2a": cnv("2w2a", dynamo=True),
    "mixed_4w4a": mixed,
    "handwritten_finn": handwritten,
}

if __name__ == "__main__":
    main()
