"""xnorc compiles trained binary neural networks for small devices, and proves that the device computes what the model says.

    import xnorc

    xnorc.export(module, example_inputs, "model.onnx")       # PyTorch → ONNX
    package = xnorc.compile("model.onnx", target="rpi4")     # ONNX → package
    package.save("model.xnorc")
    result = xnorc.load("model.xnorc").validate(device="qemu")

Importing this package is quick: onnx, ONNX Runtime, torch and TVM are imported by the calls that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, retrieval, targets
    from .api import Explanation, compile, explain, optimize
    from .errors import XnorcError
    from .exporter import ExportResult, export
    from .package import Package, load

    __version__: str

_HOME = {
    "Explanation": "api",
    "compile": "api",
    "explain": "api",
    "optimize": "api",
    "XnorcError": "errors",
    "ExportResult": "exporter",
    "export": "exporter",
    "Package": "package",
    "load": "package",
}
"""Public name → the module that it is imported from on first use."""

__all__ = [
    "Explanation",
    "ExportResult",
    "Package",
    "XnorcError",
    "__version__",
    "compile",
    "errors",
    "explain",
    "export",
    "load",
    "optimize",
    "retrieval",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in ("errors", "retrieval", "targets"):
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'xnorc' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _version() -> str:
    """The version of the installed distribution, which pyproject.toml states."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xnorc")
    except PackageNotFoundError:  # the sources on sys.path, without an installation
        return "0+unknown"
