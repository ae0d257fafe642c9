"""The benchmark program: its page is made of its result, its pictures are well formed, its layers find their times."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import arm_layers  # noqa: E402
import page  # noqa: E402

FACTS = {name: json.loads(page.path_of(name).read_text()) for name in page.PAGES}
each_page = pytest.mark.parametrize("name", page.PAGES)


@each_page
def test_the_page_is_made_of_the_result(name: str) -> None:
    assert (ROOT / "docs" / f"{name}.md").read_text() == page.render(FACTS[name], name)
    assert (ROOT / "docs" / f"{name}.svg").read_text() == page.picture(FACTS[name])
    assert (ROOT / "docs" / f"{name}.json").read_text() == page.text(FACTS[name])
    assert page.page_of(FACTS[name]["machine"]["features"]) == name


def test_the_page_of_arm_layers_is_made_of_its_result() -> None:
    facts = json.loads(arm_layers.FACTS.read_text())
    assert (ROOT / "docs" / "arm_layers.md").read_text() == arm_layers.render(facts)
    assert facts.keys() == arm_layers.LAYERS.keys()


@pytest.mark.parametrize("layer", arm_layers.LAYERS.values(), ids=lambda layer: layer.name)
def test_layers_of_arm_are_models(layer: arm_layers.Layer) -> None:
    onnx.checker.check_model(layer.model(), full_check=True)


@each_page
def test_the_picture_has_a_bar_for_every_measurement(name: str) -> None:
    bars = [node for node in ET.fromstring(page.picture(FACTS[name])).iter() if node.tag.endswith("rect")]
    networks = FACTS[name]["networks"].values()
    assert len(bars) == 1 + len(page.measured(FACTS[name])) + sum(len(record["engines"]) for record in networks)


@each_page
def test_every_measured_network_was_right(name: str) -> None:
    for record in FACTS[name]["networks"].values():
        assert record["validated"]
        assert set(record["engines"]) | set(record["missing"]) <= set(page.ENGINES)


def layers_model() -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), f"w{i}") for i in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="second"),
        helper.make_node("Add", ["c", "b"], ["y"], name="sum"),
    ]
    info = [helper.make_tensor_value_info(name, 1, [1, 4, 2, 2]) for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], weights))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"first": 3.0, "relu": 1.0, "second_quant": 5.0}, {"first": 3.0, "second": 5.0}),
        ({"b_nchwc": 3.0, "y_nchwc_token_7": 5.0, "ReorderInput": 1.0}, {"first": 3.0, "second": 5.0}),
        ({"c_nchwc": 5.0, "other": 1.0}, {"second": 5.0}),
    ],
)
def test_layers_are_found_by_what_they_were_fused_into(seen: dict[str, float], expected: dict[str, float]) -> None:
    pytest.importorskip("torch")
    import networks

    assert networks.layer_times(layers_model(), seen) == expected


def test_a_missing_larq_is_said_plainly(tmp_path: Path) -> None:
    from peers import Larq, PeerError

    with pytest.raises(PeerError, match=r"larq_environment\.sh makes it"):
        Larq(tmp_path, "bireal18", 1)
