"""A package as one HTML page that needs nothing else: what was compiled, how, into what memory, and how it was validated.

``render`` gathers the facts and lays out the pictures; the page itself is ``report.html.j2``. Names in a package come from
anywhere, so everything is escaped (autoescape), and the page loads nothing and runs no script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import pictures
from .text import amount, elide, size
from .validation import view

if TYPE_CHECKING:
    from ..package import Package

__all__ = ["STATUSES", "elide", "render", "size"]

STATUSES = {
    "packed": "runs on bits",
    "fused": "part of another node's kernel",
    "folded": "a constant, computed now",
    "removed": "not needed",
    "float": "stays in float",
}
"""What can happen to a node, in the order of the page, each in words."""


def render(package: Package, validation: Mapping[str, Any] | None = None) -> str:
    """The report of ``package`` as HTML. ``validation``: what ``xnorc validate --json`` wrote."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xnorc.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["size"] = size
    environment.filters["amount"] = amount
    environment.filters["count"] = "{:,}".format
    manifest = package.manifest
    report = package.report()
    steps = [_step(manifest, step) for step in manifest["steps"]]
    summary = _summary(report.get("summary"))
    memory = {key: value for key, value in manifest["memory"].items() if isinstance(value, int)}
    return environment.get_template("report.html.j2").render(
        package=package,
        manifest=manifest,
        target=package.target,
        nodes=_rows(report.get("nodes")),
        summary=summary,
        statuses=_statuses(summary["nodes"]),
        words=STATUSES,
        steps=steps,
        macs=sum(step["macs"] for step in steps),
        binary_macs=sum(step["macs"] for step in steps if step["binary"]),
        most_macs=max([1, *(step["macs"] for step in steps)]),
        rails=pictures.rails(manifest),
        memory=pictures.memory(manifest),
        bytes=memory,
        validation=view(validation) if validation is not None else None,
    )


def _step(manifest: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    from ..manifest import DTYPES
    from ..opset import REGISTRY

    tensors = [manifest["tensors"][index] for index in step["writes"]]
    written = 0
    for tensor in tensors:
        bytes_ = DTYPES[tensor["dtype"]]
        for dim in tensor["shape"]:
            bytes_ *= dim
        written += bytes_
    return {
        "name": step["name"],
        "op": step["op"].replace("+", " + "),
        "kind": step["kind"],
        "macs": step["macs"],
        "nodes": step["nodes"],
        "writes": ", ".join(f"{tensor['dtype']} {_shape(tensor)}" for tensor in tensors),
        "bytes": written,
        "binary": step["op"].split("+")[0] in REGISTRY,
        "output": any(index in manifest["outputs"] for index in step["writes"]),
    }


def _shape(tensor: Mapping[str, Any]) -> str:
    return "×".join(map(str, tensor["shape"])) or "scalar"


def _rows(value: Any) -> list[dict[str, str]]:
    """Rows of the node table, whatever a package's report.json holds."""
    if not isinstance(value, list):
        return []
    keys = ("node", "op", "status", "reason", "by", "source")
    return [{key: str(item.get(key, "")) for key in keys} for item in value if isinstance(item, dict)]


def _statuses(counts: Mapping[Any, Any]) -> list[tuple[str, int]]:
    """Numbers of nodes that are not zero, in the order of the page."""
    numbers = {str(key): value for key, value in counts.items() if type(value) is int and value > 0}
    known = [status for status in STATUSES if status in numbers]
    return [(status, numbers[status]) for status in [*known, *(key for key in numbers if key not in STATUSES)]]


def _summary(value: Any) -> dict[str, Any]:
    """The summary with every key that the page reads."""
    found = value if isinstance(value, dict) else {}
    nodes = found.get("nodes")
    out: dict[str, Any] = {"nodes": nodes if isinstance(nodes, dict) else {}}
    for key in ("parameter_bytes", "packed_bytes"):
        number = found.get(key)
        out[key] = number if isinstance(number, int) and not isinstance(number, bool) else 0
    return out
