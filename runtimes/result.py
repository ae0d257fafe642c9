"""What a validation found, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TensorCheck:
    """One packed tensor against the signs of the original model, both in ONNX Runtime: are the passes right?"""

    tensor: str
    original: str
    bits: int
    differing: int
    ties: int
    """Bits whose original is exactly zero; not counted as differing."""
    max_margin: float
    ok: bool


@dataclass(frozen=True)
class LayerCheck:
    """One output of one step on the device, fed with golden inputs, against the packed model in ONNX Runtime."""

    name: str
    op: str
    kind: str
    tensor: str
    dtype: str
    compared: int
    """Elements; bits where the tensor holds bits."""
    differing: int
    max_error: float
    bound: float
    """The bound of the element with ``max_error``: every element has its own."""
    used: float
    """The largest part of its bound that an error takes: more than 1 when one is outside."""
    reason: str
    """Where the bound comes from."""
    ok: bool


@dataclass(frozen=True)
class LayerFlips:
    """Signs of one packed tensor on the device, whole model, that are not the original's."""

    tensor: str
    original: str
    bits: int
    flips: int
    ties: int
    max_margin: float


@dataclass(frozen=True)
class Disagreement:
    """A sample on which the device departs from the original model: another class, or a difference without a reason."""

    sample: int
    expected: int | None
    got: int | None
    explained: bool
    why: str


@dataclass(frozen=True)
class EndToEnd:
    """The whole model on the device against the original model in ONNX Runtime, over all samples."""

    samples: int
    traced: int
    max_error: float
    mean_error: float
    agreement: float | None
    """Share of samples with the same largest output; None when the output is not one row of numbers."""
    device_accuracy: float | None
    reference_accuracy: float | None
    disagreements: list[Disagreement] = field(default_factory=list)
    flips: list[LayerFlips] = field(default_factory=list)


@dataclass(frozen=True)
class Int8Effect:
    """What int8 in place of float layers and float16 in place of float32 shortcuts do: the device against the float model, over
    all samples. No check: a choice."""

    layers: list[str]
    """Nodes of the model that are computed on 8-bit integers."""
    samples: int
    agreement: float | None
    """Share of samples with the same largest output; None when the output is not one row of numbers."""
    int8_accuracy: float | None
    float_accuracy: float | None
    max_error: float
    mean_error: float
    output_range: float
    """Largest magnitude of the float model's outputs, to hold the errors against."""
    shortcuts: list[str] = field(default_factory=list)
    """Sums of the model whose shortcut is stored as float16."""


@dataclass(frozen=True)
class ValidationResult:
    """Everything a validation found. ``ok``: nothing differs without a stated reason."""

    package: str
    target: str
    device: str
    layer_samples: int
    passes: list[TensorCheck]
    shared_tensors: int
    """Float tensors that the original and the packed model have under one name, compared as well."""
    shared_max_error: float
    layers: list[LayerCheck]
    end_to_end: EndToEnd
    notes: list[str] = field(default_factory=list)
    int8_effect: Int8Effect | None = None

    @property
    def ok(self) -> bool:
        """Integer layers equal, float layers within their bounds, every flip and disagreement explained."""
        return (
            all(check.ok for check in self.passes)
            and all(layer.ok for layer in self.layers)
            and all(item.explained for item in self.end_to_end.disagreements)
        )

    @property
    def first_difference(self) -> str | None:
        """Where the first unexplained difference is, in one line, or None."""
        for layer in self.layers:
            if not layer.ok:
                what = f"{layer.differing} of {layer.compared} values of '{layer.tensor}' differ"
                limit = f", by up to {layer.max_error:.3g} (bound {layer.bound:.3g})" if layer.dtype != "bits" else ""
                return f"layer '{layer.name}' ({layer.op}): {what}{limit}"
        for check in self.passes:
            if not check.ok:
                return (
                    f"passes: {check.differing} of {check.bits} bits of '{check.tensor}' are not the signs of "
                    f"'{check.original}', by a margin of up to {check.max_margin:.3g}"
                )
        for item in self.end_to_end.disagreements:
            if not item.explained:
                return f"sample {item.sample}: {item.why}"
        return None

    def show(self, console: Console | None = None) -> None:
        """Print the result on a ``rich`` console; on standard output when none is given."""
        from rich import console as rich_console

        from .show import show

        show(self, rich_console.Console() if console is None else console)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON can hold it: an infinity becomes a text."""
        return _plain({**asdict(self), "ok": self.ok, "first_difference": self.first_difference})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
