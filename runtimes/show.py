"""A validation result for people: tables on a ``rich`` console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..manifest import FLOATS
from .result import LayerCheck, ValidationResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_DISAGREEMENTS = 20


def show(result: ValidationResult, console: Console) -> None:
    """Print everything: layers, flips, disagreements, summary."""
    if result.passes:
        console.print(passes_table(result))
    console.print(layers_table(result, narrow=console.width < 104))
    reasons = dict.fromkeys(layer.reason for layer in result.layers if layer.bound or not layer.ok)
    if reasons:
        console.print("Bounds, known before anything is compared:")
        for number, reason in enumerate(reasons, 1):
            console.print(f"  [{number}] {reason}", style="dim", markup=False, highlight=False)
    if any(flips.flips or flips.ties for flips in result.end_to_end.flips):
        console.print(flips_table(result))
    if result.end_to_end.disagreements:
        console.print(disagreements_table(result))
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(summary(result))


def passes_table(result: ValidationResult) -> Table:
    """The packed model against the original, in ONNX Runtime."""
    table = _table(
        "Packed model and original model in ONNX Runtime", "tensor", "signs of", "#bits", "#differing", "#margin", ""
    )
    for check in result.passes:
        margin = f"{check.max_margin:.3g}" if check.differing else ""
        table.add_row(
            _text(check.tensor),
            _text(check.original),
            f"{check.bits:,}",
            f"{check.differing:,}",
            margin,
            _verdict(check.ok),
        )
    return table


def layers_table(result: ValidationResult, narrow: bool = False) -> Table:
    """Each layer on the device with golden inputs. ``narrow`` leaves out what the other columns imply."""
    where = result.device if result.device == result.target else f"{result.device} ({result.target})"
    title = f"Each layer on {where}, golden inputs, {_many(result.layer_samples, 'sample')}"
    columns = ["layer", "operator", "kind", "#compared", "#differing", "#max error", "#bound", "#used", ""]
    skipped = {"kind", "#used"} if narrow else set()
    table = _table(title, *(column for column in columns if column not in skipped))
    numbers: dict[str, int] = {}
    for layer in result.layers:
        bound = "equal"
        if layer.bound:
            number = numbers.setdefault(layer.reason, len(numbers) + 1)
            bound = f"{layer.bound:.2g} \\[{number}]" if layer.dtype != "bits" else f"open bits \\[{number}]"
        elif not layer.ok:
            numbers.setdefault(layer.reason, len(numbers) + 1)
        used = f"{layer.used:.0%}" if layer.bound and layer.dtype != "bits" else ""
        unit = " bits" if layer.dtype == "bits" else ""
        counts = f"{layer.compared:,}{unit}", f"{layer.differing:,}"
        operator = _text(layer.op.replace("+", " + "))
        cells = [_text(layer.name), operator, layer.kind, *counts, _error(layer), bound, used, _verdict(layer.ok)]
        table.add_row(*(cell for cell, column in zip(cells, columns, strict=True) if column not in skipped))
    return table


def flips_table(result: ValidationResult) -> Table:
    """Signs on the device, whole model, that are not the original's."""
    title = f"Signs on {result.device} and in the original model, {_many(result.end_to_end.traced, 'traced sample')}"
    table = _table(title, "tensor", "#bits", "#flipped", "#largest margin", "#original zero")
    for flips in result.end_to_end.flips:
        margin = f"{flips.max_margin:.3g}" if flips.flips else ""
        table.add_row(_text(flips.tensor), f"{flips.bits:,}", f"{flips.flips:,}", margin, f"{flips.ties:,}")
    return table


def disagreements_table(result: ValidationResult) -> Table:
    """Samples on which the device departs from the original."""
    found = result.end_to_end.disagreements
    first = sorted(found, key=lambda item: item.explained)[:MAX_DISAGREEMENTS]
    title = "Samples that differ" + (f" ({len(first)} of {len(found)})" if len(found) > len(first) else "")
    table = _table(title, "#sample", "#original", "#device", "why", "")
    for item in first:
        expected, got = ("" if value is None else str(value) for value in (item.expected, item.got))
        table.add_row(str(item.sample), expected, got, _text(item.why), _verdict(item.explained))
    return table


def summary(result: ValidationResult) -> object:
    """The verdict, in a frame."""
    from rich.panel import Panel

    end = result.end_to_end
    integer = [layer for layer in result.layers if layer.dtype not in FLOATS]
    floats = [layer for layer in result.layers if layer.dtype in FLOATS]
    lines = [
        f"integer layers equal   {sum(layer.ok for layer in integer)} of {len(integer)}",
        f"float layers in bound  {sum(layer.ok for layer in floats)} of {len(floats)}",
        f"outputs                {_many(end.samples, 'sample')}, max error {end.max_error:.3g}, mean {end.mean_error:.3g}",
    ]
    if end.agreement is not None:
        lines.append(f"same class             {end.agreement:.2%}")
    if end.device_accuracy is not None and end.reference_accuracy is not None:
        lines.append(
            f"accuracy               device {end.device_accuracy:.2%}, ONNX Runtime {end.reference_accuracy:.2%}"
        )
    if (effect := result.int8_effect) is not None:
        accuracy = ""
        if effect.int8_accuracy is not None and effect.float_accuracy is not None:
            accuracy = f", accuracy {effect.int8_accuracy:.2%} (float {effect.float_accuracy:.2%})"
        same = "" if effect.agreement is None else f"same class {effect.agreement:.2%}{accuracy}, "
        errors = f"max error {effect.max_error:.3g}, mean {effect.mean_error:.3g} of {effect.output_range:.3g}"
        if effect.layers or not effect.shortcuts:
            lines.append(f"int8 by choice         {_many(len(effect.layers), 'layer')}; against the float model:")
        if effect.shortcuts:
            lines.append(f"float16 by choice      {_many(len(effect.shortcuts), 'shortcut')}; against the float model:")
        lines.append(f"                       {same}{errors}")
    if end.disagreements:
        explained = sum(item.explained for item in end.disagreements)
        lines.append(f"differences explained  {explained} of {len(end.disagreements)}")
    if result.first_difference:
        lines.append(f"first difference       {_text(result.first_difference)}")
    return Panel(
        "\n".join(lines),
        title=f"{_text(result.package)} on {_text(result.device)}: {'good' if result.ok else 'DIFFERENT'}",
        border_style="green" if result.ok else "red",
        expand=False,
    )


def _table(title: str, *columns: str) -> Table:
    """A table; a column whose name starts with ``#`` holds numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=_text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column.startswith("#")
        whole = number or column in ("layer", "kind", "")
        table.add_column(column.lstrip("#"), justify="right" if number else "left", overflow="fold", no_wrap=whole)
    return table


def _text(text: str) -> str:
    """Names come from models: nothing in them is markup."""
    from rich.markup import escape

    return escape(text)


def operators(op: str) -> str:
    """A step's operators in one short line: ``BinaryConv + Pack``, ``BinaryConv +4`` for more than two."""
    first, *more = op.split("+")
    return f"{first} +{len(more)}" if len(more) > 1 else " + ".join([first, *more])


def _verdict(ok: bool) -> str:
    return "[green]good[/]" if ok else "[red]bad[/]"


def _error(layer: LayerCheck) -> str:
    return "" if layer.dtype == "bits" else f"{layer.max_error:.3g}" if layer.max_error else "0"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
