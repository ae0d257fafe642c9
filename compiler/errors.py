"""Every error that xnorc raises on purpose. Each message is one line that names the file, node or tensor and what to do.

The command line prints the message and exits with ``exit_code``; a caller of the Python API catches ``XnorcError``.
"""

from __future__ import annotations


class XnorcError(Exception):
    """Base of all xnorc errors. ``exit_code`` is what the command line exits with."""

    exit_code = 2


class ModelError(XnorcError):
    """The model file is missing, damaged, too large, or says something that cannot be compiled."""


class UnsupportedError(XnorcError):
    """A node cannot be lowered. ``node``, ``op`` and ``reason`` hold the parts of the message."""

    def __init__(self, node: str, op: str, reason: str) -> None:
        super().__init__(f"node '{node}' ({op}) cannot be lowered: {reason}")
        self.node, self.op, self.reason = node, op, reason


class PassError(XnorcError):
    """A pass broke its contract; the message names the pass and those that ran before it. Always a defect of xnorc."""


class ExportError(XnorcError):
    """A torch module could not be exported, or the exported model disagrees with it."""


class TargetError(XnorcError):
    """Unknown target name, or a target that this machine cannot build for."""


class ToolError(XnorcError):
    """An external tool (zig, qemu, ssh) is missing or failed."""


class PackageError(XnorcError):
    """A package is damaged, of an unknown version, or holds what it must not."""


class InputError(XnorcError):
    """Input data have the wrong name, shape or dtype, or cannot be read."""


class DeviceError(XnorcError):
    """A device could not be reached, went away, or its runner failed."""
