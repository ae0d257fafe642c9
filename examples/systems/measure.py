"""One system from weights to evidence: export by both exporters, passes, packages, validation, sizes, operations, time.

``Run`` does each step once, when it is first asked for, so that a caller pays for what it wants to know. ``record`` gathers
everything as plain data: that is what ``run.py`` prints and ``table.py`` keeps.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from system import Shape, System
from torch import Tensor, nn
from train import NORMS, Trained, mnist, prepared, weights_for

import xnorc

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "GatherElements")
"""Operators of an exported model that are a layer, or choose among tables: what ``System.packed_layers`` counts."""
EXPORTERS = ("dynamo", "torchscript")
IMAGES = {"host": 200, "rpi4": 12}
SAMPLES = {"host": 16, "rpi4": 4}
"""Samples of a network without a task."""


class NotExportedError(RuntimeError):
    """No exporter could export the system."""


@lru_cache(maxsize=1)
def machine() -> str:
    """The processor of this machine, in words."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return names[0].strip() if names else platform.processor() or platform.machine()


def variants(inputs: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """``count`` samples like the given one, which is the first: floats get noise of their own spread, the elements of
    integer and boolean inputs change places along their last axis."""
    samples = [inputs]
    for seed in range(1, count):
        generator = torch.Generator().manual_seed(seed)
        sample = []
        for value in inputs:
            if value.dtype.is_floating_point:
                spread = float(value.std()) if value.numel() > 1 and float(value.std()) > 0 else 1.0
                sample.append(value + spread * torch.randn(value.shape, generator=generator))
            else:
                order = torch.randperm(value.shape[-1], generator=generator) if value.ndim else torch.tensor(0)
                sample.append(value[..., order] if value.ndim else value)
        samples.append(tuple(sample))
    return samples


class Run:
    """One system with its weights, and what becomes of it."""

    def __init__(self, system: System, *, steps: int | None = None, seed: int = 0) -> None:
        self.system, self.steps, self.seed = system, steps, seed
        self._exports: dict[str, xnorc.ExportResult | str] = {}
        self._explained: dict[str, xnorc.Explanation] = {}

    @cached_property
    def trained(self) -> Trained:
        """The network."""
        return weights_for(self.system, steps=self.steps, seed=self.seed)

    def export(self, exporter: str) -> xnorc.ExportResult | str:
        """The model by this exporter, or the reason why there is none."""
        if exporter not in self._exports:
            self._exports[exporter] = export(self.trained.module, self.system.inputs(), exporter)
        return self._exports[exporter]

    @cached_property
    def exporter(self) -> str:
        """The first exporter that works."""
        for exporter in EXPORTERS:
            if not isinstance(self.export(exporter), str):
                return exporter
        reasons = "; ".join(f"{exporter}: {self.export(exporter)}" for exporter in EXPORTERS)
        raise NotExportedError(f"{self.system.name} cannot be exported: {reasons}")

    def model(self, exporter: str | None = None) -> onnx.ModelProto:
        """The exported model. Raises ``NotExportedError``."""
        found = self.export(exporter or self.exporter)
        if isinstance(found, str):
            raise NotExportedError(f"{self.system.name} cannot be exported by {exporter}: {found}")
        return found.model

    def explained(self, exporter: str | None = None) -> xnorc.Explanation:
        """What the passes do with the model."""
        exporter = exporter or self.exporter
        if exporter not in self._explained:
            self._explained[exporter] = xnorc.explain(self.model(exporter), sign_zero=self.system.sign_zero)
        return self._explained[exporter]

    def samples(self, count: int) -> dict[str, np.ndarray]:
        """Data for ``validate``: inputs by name, samples first; ``labels`` too where the task has them."""
        names = [info.name for info in self.model().graph.input]
        if self.system.task == "mnist":
            images, labels = mnist("test")
            values = torch.stack([prepared(self.system, image[None]) for image in images[:count]])
            others = dict(zip(names[1:], self.system.inputs()[1:], strict=True))  # the same for every image
            repeated = {name: torch.stack([value] * count).numpy() for name, value in others.items()}
            return {names[0]: values.numpy(), **repeated, "labels": labels[:count].numpy()}
        samples = variants(self.system.inputs(), count)
        return {name: torch.stack([sample[index] for sample in samples]).numpy() for index, name in enumerate(names)}

    def compile(self, target: str) -> xnorc.Package:
        """The package for a target."""
        golden = {name: value[:4] for name, value in self.samples(4).items() if name != "labels"}
        return xnorc.compile(
            self.model(),
            target,
            name=_identifier(self.system.name),
            sign_zero=self.system.sign_zero,
            golden_inputs=golden,
        )

    def record(
        self, targets: tuple[str, ...] = ("host", "rpi4"), counts: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        system, report = self.system, self.explained().to_dict()
        sizes = report["summary"]
        counts = counts or (IMAGES if system.task == "mnist" else SAMPLES)
        facts: dict[str, Any] = {
            "name": system.name,
            "title": system.title,
            "paper": system.paper,
            "task": system.task,
            "trained": {"steps": self.trained.steps, "accuracy": self.trained.accuracy},
            "sign_zero": system.sign_zero,
            "exporters": {exporter: self._exporter_facts(exporter) for exporter in EXPORTERS},
            "exporter": self.exporter,
            "short_title": short_title(system),
            "layers": layer_facts(report, system.packed_layers),
            "nodes": sizes["nodes"],
            "bytes": {"before": sizes["parameter_bytes"], "after": sizes["packed_bytes"]},
            "operations": operation_facts(report),
            "published": dict(system.published),
            "targets": {},
        }
        for target in targets:
            package = self.compile(target)
            device = "host" if target == "host" else "qemu"
            result = package.validate(device, self.samples(counts.get(target, 8)))
            facts["targets"][target] = validation_facts(package, result)
            if target == "host":
                bench = package.bench("host", repeats=50)
                facts["latency"] = {
                    "machine": machine(),
                    "threads": 1,
                    "repeats": 50,
                    "median_us": round(bench.total_us, 1),
                    "least_us": round(bench.least_total_us, 1),
                }
        return facts

    def _exporter_facts(self, exporter: str) -> dict[str, Any]:
        expected = self.system.exporters.get(exporter)
        found = self.export(exporter)
        if isinstance(found, str):
            return {"works": False, "reason": found, "declared": expected}
        layers = layer_facts(self.explained(exporter).to_dict(), self.system.packed_layers)
        return {"works": True, "packed": layers["packed"], "declared": expected, "warnings": list(found.warnings)}


def export(module: nn.Module, inputs: tuple[Tensor, ...], exporter: str) -> xnorc.ExportResult | str:
    """Export by this exporter alone: the model, or the reason why not."""
    try:
        found = xnorc.export(module, inputs, exporter=exporter)  # type: ignore[arg-type]
    except xnorc.ExportError as error:
        return _reason(str(error), exporter)
    return found if found.exporter == exporter else _reason(found.reason, exporter)


def _reason(text: str, exporter: str) -> str:
    text = text.removeprefix("the module cannot be exported; ")
    return next((part.split(": ", 1)[1] for part in text.split("; ") if part.startswith(f"{exporter}: ")), text)


def layer_facts(report: Mapping[str, Any], declared: int | None = None) -> dict[str, Any]:
    """How many layers are packed, and which stay in float, each with the reason. ``report``: ``Explanation.to_dict``, or a
    package's report."""
    layers = [node for node in report["nodes"] if node["op"] in LAYER_OPS]
    keys = ("node", "op", "source", "reason")
    return {
        "declared": declared,
        "packed": sum(node["status"] == "packed" for node in layers),
        "float": [{key: node[key] for key in keys} for node in layers if node["status"] == "float"],
    }


def operation_facts(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Operations before and after; ``after_once`` counts each layer once, as with sign(0) fixed."""
    before, after = report["summary"]["operations"], report["summary"]["packed_operations"]
    if before is None or after is None:
        return None
    return {
        "before": before["total"],
        "after": after["total"],
        "after_once": after["total_once"],
        "floats": after["floats"],
        "bits": after["bits"],
    }


def validation_facts(package: xnorc.Package, result: Any) -> dict[str, Any]:
    """What a validation found, layer by layer."""
    end = result.end_to_end
    return {
        "device": result.device,
        "ok": result.ok,
        "first_difference": result.first_difference,
        "samples": end.samples,
        "agreement": end.agreement,
        "max_error": _number(end.max_error),
        "accuracy": end.device_accuracy,
        "weight_bytes": package.manifest["memory"]["weight_bytes"],
        "device_bytes": package.device_bytes(),
        "layers": [
            {
                "name": layer.name, "op": layer.op, "kind": layer.kind, "tensor": layer.tensor, "dtype": layer.dtype,
                "compared": layer.compared, "differing": layer.differing, "max_error": _number(layer.max_error),
                "bound": _number(layer.bound), "ok": layer.ok,
            }
            for layer in result.layers
        ],
    }  # fmt: skip


def shape_record(system: System, shape: Shape, target: str = "rpi4") -> dict[str, Any]:
    """Bytes and operations of a network of the paper's size, whose weights are random, and what ``target`` holds of it."""
    torch.manual_seed(0)
    module = _with_statistics(shape.build()).eval()
    reasons = {}
    for exporter in EXPORTERS:
        found = export(module, shape.inputs(), exporter)
        if not isinstance(found, str):
            break
        reasons[exporter] = found
    else:
        raise NotExportedError(f"{shape.name} cannot be exported: {reasons}")
    package = xnorc.compile(found.model, target, name="network", sign_zero=system.sign_zero)
    report = package.report()
    layers, sizes = layer_facts(report), report["summary"]
    return {
        "name": shape.name,
        "title": short_title(system),
        "exporter": exporter,
        "layers": {"packed": layers["packed"], "float": layers["float"]},
        "bytes": {
            "fp32": 4 * sum(value.numel() for value in module.parameters()),
            "exported": sizes["parameter_bytes"],
            "after": sizes["packed_bytes"],
            target: package.manifest["memory"]["weight_bytes"],
        },
        "operations": operation_facts(report),
        "published": dict(shape.published),
    }


def short_title(system: System) -> str:
    """The system's title up to what it says of the network."""
    return system.title.split(",")[0].split(":")[0].split("(")[0].strip()


@torch.no_grad()
def _with_statistics(module: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: those of a fresh network add 0, and let every tie through."""
    for inner in module.modules():
        if isinstance(inner, NORMS) and inner.track_running_stats:
            inner.running_mean.normal_()
            inner.running_var.uniform_(0.5, 2)
    return module


def _number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def _identifier(name: str) -> str:
    text = "".join(c if c.isalnum() else "_" for c in name)
    return text if text[:1].isalpha() else f"model_{text}"
