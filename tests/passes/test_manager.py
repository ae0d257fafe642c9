"""``manager``: contracts are held, faults are named, and every original node is accounted for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from xnorc.errors import ModelError, PassError
from xnorc.model import prepare
from xnorc.passes import Options, Status, optimize
from xnorc.passes.base import Pass
from xnorc.passes.manager import PASSES, load_pass

from .util import assert_same, ops, parse


class Nothing(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"

    def run(self, graph, ctx):
        return False


def network() -> tuple:
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(16, 8, 3, 3)).astype(np.float32),
        "w3": rng.normal(size=(5, 16 * 3 * 3)).astype(np.float32),
        "shape": np.int64([1, 16 * 9]),
        "zero": np.float32(0),
        "one": np.float32(1),
        "minus": np.float32(-1),
    }
    for bn, channels in (("1", 8), ("2", 16)):
        constants |= {f"{k}{bn}": rng.normal(size=channels).astype(np.float32) for k in "gbm"}
        constants[f"v{bn}"] = rng.uniform(0.5, 9, channels).astype(np.float32)
    text = """g (float[1,3,9,9] x) => (float[1,5] y) {
        [conv1] c1 = Conv (x, w1)
        [bn1] n1 = BatchNormalization (c1, g1, b1, m1, v1)
        [drop] r1 = Dropout (n1)
        [ge] m1x = GreaterOrEqual (r1, zero)
        [where] s1 = Where (m1x, one, minus)
        [abs] wa = Abs (w2)
        [mean] wm = ReduceMean <keepdims = 1> (wa, axes)
        [wsign] ws = Sign (w2)
        [wmul] wq = Mul (ws, wm)
        [conv2] c2 = Conv (s1, wq)
        [pool] p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]> (c2)
        [bn2] n2 = BatchNormalization (p2, g2, b2, m2, v2)
        [hard] h2 = HardTanh (n2)
        [sign] s2 = Sign (h2)
        [res] d2 = Sub (s2, h2)
        [ste] e2 = Add (d2, h2)
        [flat] f2 = Reshape (e2, shape)
        [fc] y = Gemm <transB = 1> (f2, w3)
    }""".replace("HardTanh (n2)", "Clip (n2, minus, one)")
    return text, constants | {"axes": np.int64([1, 2, 3])}


def test_a_whole_network_with_every_intermediate_graph_checked():
    before = prepare(parse(*network()))
    names: list[str] = []
    result = optimize(before, check=True, progress=names.append)
    assert names == [place.rpartition(".")[2] for place in PASSES]
    assert "BinaryConv" in ops(result.model)
    assert_same(before, result.model, tolerance=1e-4)
    status = {record.node: record.status for record in result.records}
    assert status["conv1"] is Status.FLOAT
    assert status["conv2"] is Status.PACKED
    assert status["drop"] is Status.REMOVED
    assert status["wmul"] is Status.FOLDED
    assert status["ge"] is Status.FUSED
    assert result.choices == {"sign_zero": "model"}
    assert result.origins


def test_every_original_node_has_one_record_in_the_original_order():
    before = prepare(parse(*network()))
    result = optimize(before)
    assert [record.node for record in result.records] == [node.name for node in before.graph.node]
    assert all(record.reason and record.by for record in result.records)


def test_the_given_model_is_not_changed_and_the_result_is_the_same_each_time():
    before = prepare(parse(*network()))
    text = before.SerializeToString(deterministic=True)
    first = optimize(before).model.SerializeToString(deterministic=True)
    assert before.SerializeToString(deterministic=True) == text
    assert optimize(before).model.SerializeToString(deterministic=True) == first


def test_the_choice_for_sign_of_zero_is_recorded():
    before = prepare(parse(*network()))
    result = optimize(before, Options(sign_zero=1), check=True)
    assert result.choices == {"sign_zero": "+1"}
    assert {p.key: p.value for p in result.model.metadata_props}["xnorc.sign_zero"] == "+1"
    with pytest.raises(ModelError, match="sign_zero"):
        optimize(before, Options(sign_zero=2))


def test_a_float_model_passes_through_with_reasons():
    before = prepare(parse("g (float[1,4] x) => (float[1,4] y) { a = Relu (x)\n y = Softmax (a) }"))
    result = optimize(before, check=True)
    assert ops(result.model) == ["Relu", "Softmax"]
    assert all(record.status is Status.FLOAT for record in result.records)


def test_a_packed_model_is_refused():
    packed = optimize(prepare(parse(*network()))).model
    with pytest.raises(ModelError, match="original model"):
        optimize(packed)


def small() -> object:
    return prepare(parse("g (float[4] x) => (float[4] y) { a = Sin (x)\n y = Cos (a) }"))


def test_a_pass_that_fails_is_named_with_those_before_it():
    class Broken(Nothing):
        name = "broken"

        def run(self, graph, ctx):
            return {}["missing"]

    with pytest.raises(PassError, match=r"'broken' failed \(ran before: nothing\): KeyError: 'missing'"):
        optimize(small(), passes=(Nothing(), Broken()))


def test_errors_about_the_model_come_through_as_they_are():
    class Refuses(Nothing):
        name = "refuses"

        def run(self, graph, ctx):
            raise ModelError("node 'n': bad")

    with pytest.raises(ModelError, match=r"^node 'n': bad$"):
        optimize(small(), passes=(Refuses(),))


def test_a_violated_ensures_names_the_pass():
    class Promises(Nothing):
        name = "promises"

        def ensures(self, graph, ctx):
            return "node 'a' is still there"

    with pytest.raises(PassError, match=r"after pass 'promises' \(ran before: nothing\): node 'a' is still there"):
        optimize(small(), passes=(Nothing(), Promises()))


def test_a_missing_requirement_names_both_passes():
    class Needs(Nothing):
        name = "needs"
        requires = ("other",)

    with pytest.raises(PassError, match="'needs' needs 'other' before it"):
        optimize(small(), passes=(Needs(),))


def wrong_pass(is_exact: bool) -> Pass:
    class Wrong(Nothing):
        name = "wrong"
        exact = is_exact

        def run(self, graph, ctx):
            graph.nodes[0].op = "Tan"
            return True

    return Wrong()


@pytest.mark.parametrize("exact", [True, False])
def test_checking_catches_a_pass_that_changes_results(exact):
    with pytest.raises(PassError, match=r"pass 'wrong' \(ran before: nothing\): tensor '.*was .* and is .*differ"):
        optimize(small(), check=True, passes=(Nothing(), wrong_pass(exact)))


def test_checking_catches_a_sign_with_another_value_at_zero():
    class Flips(Nothing):
        name = "flips"
        exact = False

        def run(self, graph, ctx):
            for node in graph.nodes:
                if node.op == "Binarize":
                    node.attrs["zero"] = -1
            return True

    text = "g (float[4] x) => (float[4] y) <float z = {0}> { a = Mul (x, z)\n s = Sign (a)\n y = Neg (s) }"
    with pytest.raises(PassError, match="'flips'"):
        optimize(prepare(parse(text)), check=True, passes=("tidy.fold_constants", "signs.recognise_sign", Flips()))


@pytest.mark.parametrize("name", sorted(set(PASSES)))
def test_every_pass_has_a_file_a_name_and_a_docstring(name):
    import inspect
    import sys

    step = load_pass(name)
    assert step.name == name.rpartition(".")[2]
    module = sys.modules[type(step).__module__]
    assert module.__name__.endswith(name)
    assert inspect.getdoc(type(step))
    assert module.__doc__
