"""Every published system of examples/systems: its binarized layers are packed, exactly, and the table says what is so.

The systems are found by file, so a new file is tested by being there. Trainings are a few steps here; the facts of
docs/systems.json come from full ones (``python examples/systems/table.py``).
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import xnorc
from xnorc.passes.base import Status

pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "systems"
STEPS = 12
COMPILED = ("biper-vgg", "bibench-xnor", "bipft", "bitnet-reloaded-mlp", "qfx")
"""Systems that the default suite packs, compiles and validates on this machine: small ones of different kinds."""
COUNTS = {"host": 24, "rpi4": 3}


def _defines(path: Path) -> bool:
    names = [
        target for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign) for target in node.targets
    ]
    return any(isinstance(name, ast.Name) and name.id in ("SYSTEM", "SYSTEMS") for name in names)


FILES = sorted(path.stem for path in FOLDER.glob("*.py") if _defines(path))
FACTS_FILE = ROOT / "docs" / "systems.json"
FACTS: dict[str, Any] = json.loads(FACTS_FILE.read_text()) if FACTS_FILE.exists() else {"systems": {}, "shapes": {}}
RECORDS: dict[str, dict[str, Any]] = FACTS["systems"]
SHAPES: dict[str, dict[str, Any]] = FACTS["shapes"]
by_file = pytest.mark.parametrize("stem", FILES)
by_compiled = pytest.mark.parametrize("name", COMPILED)
by_record = pytest.mark.parametrize("name", RECORDS)


@pytest.fixture(scope="module")
def harness() -> Iterator[SimpleNamespace]:
    """The modules of the example, which import each other by plain names, some of them late."""
    sys.path.insert(0, str(FOLDER))
    try:
        import measure
        import registry
        import render

        yield SimpleNamespace(measure=measure, registry=registry, render=render)
    finally:
        sys.path.remove(str(FOLDER))


def check_packed(system: Any, harness: SimpleNamespace) -> None:
    """So many layers are packed as the system's file says, no other is left in float for a reason of ours, and every pass
    keeps its contract on the way."""
    run = harness.measure.Run(system, steps=STEPS)
    optimized = xnorc.optimize(run.model(), sign_zero=system.sign_zero, check=True)
    layers = [record for record in optimized.records if record.op in harness.measure.LAYER_OPS]
    found = [record for record in layers if record.status is Status.PACKED]
    floats = [f"{record.node}: {record.reason}" for record in layers if record.status is Status.FLOAT]
    assert len(found) == system.packed_layers, f"{system.name}: left in float: {floats}"
    if system.name in COMPILED:
        result = run.compile("host").validate("host", run.samples(8))
        assert result.ok, f"{system.name}: {result.first_difference}"


@by_compiled
def test_layers_are_packed_and_exact(name, harness):
    check_packed(harness.registry.systems()[name], harness)


@pytest.mark.slow
@by_file
def test_layers_of_every_system_are_packed(stem, harness):
    for system in harness.registry.systems_of(stem):
        if system.name not in COMPILED:
            check_packed(system, harness)


@pytest.mark.slow
@by_compiled
def test_both_exporters_and_both_targets(name, harness):
    """Of every system this is in the facts; these show that the facts can still be had."""
    check_record(harness.measure.Run(harness.registry.systems()[name], steps=3 * STEPS).record(counts=COUNTS))


@pytest.mark.slow
def test_a_network_of_the_papers_size_has_the_bytes_and_operations_that_the_page_says(harness):
    system = harness.registry.systems()["biper-resnet20"]
    (shape,) = system.shapes
    found, said = harness.measure.shape_record(system, shape), SHAPES[f"{system.name}: {shape.name}"]
    assert found["bytes"]["after"] == pytest.approx(said["bytes"]["after"], rel=0.01)
    assert found["operations"] == pytest.approx(said["operations"], rel=0.01)


def test_every_system_is_in_the_facts(harness):
    systems = harness.registry.systems()
    assert list(systems) == list(RECORDS), "run: python examples/systems/table.py --missing"
    assert [f"{s.name}: {shape.name}" for s in systems.values() for shape in s.shapes] == list(SHAPES)


def test_the_page_is_made_of_the_facts(harness):
    assert (ROOT / "docs" / "systems.md").read_text() == harness.render.render(FACTS), (
        "run: python examples/systems/table.py --render"
    )


def check_record(record: dict[str, Any]) -> None:
    """What has to be so of every system, whenever it was measured."""
    name, layers = record["name"], record["layers"]
    assert layers["packed"] == layers["declared"] > 0, (name, layers["float"])
    for exporter, facts in record["exporters"].items():
        # An exporter that cannot has a reason in the system's file; one that can packs the same layers.
        assert facts["works"] == (facts["declared"] is None), (name, exporter, facts)
        assert not facts["works"] or facts["packed"] == layers["declared"], (name, exporter, facts)
    assert any(facts["works"] for facts in record["exporters"].values())
    assert set(record["targets"]) == {"host", "rpi4"}
    for target, found in record["targets"].items():
        assert found["ok"], (name, target, found["first_difference"])
        assert all(layer["ok"] for layer in found["layers"])
        integers = [layer for layer in found["layers"] if layer["kind"] == "integer"]
        # None where sums are of floats, as with weights in powers of two.
        assert all(layer["differing"] == 0 and layer["compared"] for layer in integers), (name, target)
    assert record["bytes"]["after"] <= 1.05 * record["bytes"]["before"]  # EcoFormer's weights stay what they were


@by_record
def test_facts_of_a_system(name):
    record = RECORDS[name]
    check_record(record)
    assert record["name"] == name and record["title"] and record["paper"]
    if record["task"] == "mnist":
        # Seconds of training: twice what guessing gives and more, far below the papers.
        assert record["trained"]["steps"] >= 100 and record["trained"]["accuracy"] > 0.2
        assert record["targets"]["host"]["accuracy"] > 0.2 and record["targets"]["host"]["samples"] >= 100
    agreements = [found["agreement"] for found in record["targets"].values() if found["agreement"] is not None]
    assert all(agreement >= 0.97 for agreement in agreements)
    assert record["latency"]["median_us"] > 0 and record["latency"]["machine"]
    operations = record["operations"]
    assert operations is None or 0 < operations["after_once"] <= operations["after"]


def test_layers_are_the_same_on_both_targets():
    """Steps and what they compute do not depend on the target, so that equal to ONNX Runtime means equal to each other."""
    for record in RECORDS.values():
        kept = [
            [
                (layer["tensor"], layer["dtype"])
                for layer in record["targets"][target]["layers"]
                if layer["kind"] == "integer"
            ]
            for target in ("host", "rpi4")
        ]
        assert kept[0] == kept[1], record["name"]


GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("biper", "ResNet-18", "bytes", 29.0),
    ("bibert", "BERT-base", "bytes", 28.0),
    ("bibert", "BERT-base", "operations", 56.3),
    ("bipft", "BERT-base", "operations", 56.0),
    ("binarydm", "DDPM", "bytes", 29.2),
    ("binarydm", "DDPM", "operations", 15.2),
)
"""System and network of its paper's size → how many times smaller it is at least, as published."""


@pytest.mark.parametrize(("system", "network", "what", "least"), GOALS)
def test_published_ratios_are_reached(system, network, what, least):
    (record,) = [r for key, r in SHAPES.items() if key.startswith(system) and network in key]
    if what == "bytes":
        ratio = min(record["bytes"]["fp32"], record["bytes"]["exported"]) / record["bytes"]["rpi4"]
    else:
        ratio = record["operations"]["before"] / record["operations"]["after_once"]
    assert ratio >= least


def test_reactnet_is_as_small_as_published():
    (record,) = [r for key, r in SHAPES.items() if "ReActNet" in key]
    assert record["bytes"]["rpi4"] <= 8.0e6


def test_numbers_are_finite():
    for record in (*RECORDS.values(), *SHAPES.values()):
        stack: list[Any] = [record]
        while stack:
            value = stack.pop()
            stack += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
            assert not isinstance(value, float) or math.isfinite(value)
