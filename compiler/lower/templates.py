"""A kernel's template with the call that it was written for: what the tuner needs to write it anew with other choices."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..opset import TensorType
from . import shipped
from .kernel import Epilogue, Kernel, KernelCall
from .knobs import Knobs

Choices = Mapping[str, Mapping[str, int]]
"""Key of a layer (``Template.key``) → its choices by knob."""


@dataclasses.dataclass(frozen=True)
class Template:
    """``write`` makes the kernel of ``call``."""

    call: KernelCall
    write: Callable[[KernelCall], Kernel]

    def facts(self) -> dict[str, Any]:
        """What decides how fast a choice is: operator, sizes, epilogue and machine, but no constant's values."""
        call = self.call
        return {
            "kernel": f"{self.write.__module__.rpartition('.')[2]}.{self.write.__name__}",
            "op": call.op,
            "attrs": {name: _plain(value) for name, value in sorted(call.attrs.items())},
            "inputs": [_type(kind) for kind in call.inputs],
            "constants": sorted(call.constants),
            "output": _type(call.output),
            "extra": [_type(kind) for kind in call.extra],
            "epilogue": _epilogue(call.epilogue),
            "twin": call.twin is not None,
            "target": call.target.name,
            "features": sorted(call.target.features),
        }

    @property
    def key(self) -> str:
        """32 hexadecimal digits that name the layer: equal for equal ``facts``."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:32]

    def with_choices(self, tuned: Choices) -> Template:
        """The same, to be written with what ``tuned`` holds for this layer, or else what ships for it."""
        source, found = "tuned", tuned.get(self.key)
        if found is None:
            source, found = "shipped", shipped.choices(self.call.target.name).get(self.key)
        return dataclasses.replace(self, call=dataclasses.replace(self.call, knobs=Knobs(found, source=source)))

    def make(self, name: str, knobs: Knobs) -> Kernel:
        """The kernel ``name`` with other answers."""
        return self.write(dataclasses.replace(self.call, name=name, knobs=knobs))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _type(kind: TensorType) -> str:
    return f"{kind.dtype}{list(kind.shape)}"


def _epilogue(epilogue: Epilogue) -> list[Any]:
    steps = [[step.op, isinstance(step.p, int), step.lies and str(step.lies)] for step in epilogue.steps]
    copies = [[len(copy.threshold), copy.planes] for copy in epilogue.copies]
    return [
        epilogue.kind,
        epilogue.channels_first,
        steps,
        *([copies, epilogue.kept] if copies else []),
        *["half"] * epilogue.half,
    ]
