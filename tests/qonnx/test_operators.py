"""Every QONNX operator that is read: what it computes against the specification, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.qonnx import spec
from xnorc import golden
from xnorc.errors import ModelError
from xnorc.model import prepare, read_model, source_names

GENERAL = "qonnx.custom_op.general"
MODES = ("ROUND", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "ROUND_TO_ZERO", "HALF_UP", "HALF_DOWN")
CASES = settings(max_examples=60, deadline=None)
halves = st.integers(-40, 40).map(lambda k: k / 4)
scales = st.sampled_from([1.0, 0.5, 0.1, 3.0, 0.0078125, 1e-3, 1 / 3])


def f32(value: object) -> np.ndarray:
    return np.asarray(value, np.float32)


def model(
    op: str,
    shape: tuple[int, ...],
    constants: list[object],
    *,
    opset: int = 18,
    domain: str = GENERAL,
    version: int | None = 1,
    **attributes: object,
) -> onnx.ModelProto:
    """x → op(x, constants) → y; constants of NumPy types keep them."""
    names = [f"k{i}" for i in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], "the_node", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [] if version is None else [helper.make_opsetid(domain, version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def computed(built: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes for the translated model."""
    return golden.run(prepare(built), {"x": x})["y"]


def refusal(built: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        prepare(built)
    text = str(caught.value)
    assert "\n" not in text
    assert "'the_node'" in text
    return text


class TestQuant:
    @CASES
    @given(
        x=st.lists(halves, min_size=6, max_size=6),
        scale=scales,
        zero=st.sampled_from([0.0, 1.0, -3.0, 0.5]),
        bits=st.integers(1, 8),
        signed=st.booleans(),
        narrow=st.booleans(),
        mode=st.sampled_from(MODES),
        name=st.sampled_from(["Quant", "IntQuant"]),
    )
    def test_specification(self, x, scale, zero, bits, signed, narrow, mode, name):
        x, scale, zero = f32(x) * f32(scale), f32(scale), f32(zero)
        built = model(
            name, (6,), [scale, zero, f32(bits)], signed=int(signed), narrow=int(narrow), rounding_mode=mode
        )  # fmt: skip
        np.testing.assert_array_equal(computed(built, x), spec.quant(x, scale, zero, bits, signed, narrow, mode))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("signed", [0, 1])
    def test_table_of_rounding_modes(self, mode, signed):
        x = f32([5.5, 2.5, 1.6, 1.1, 1.0, -1.0, -1.1, -1.6, -2.5, -5.5, 0, 0.49999997, -0.49999997, 0.5, -0.5])
        x = x if signed else np.abs(x)
        found = computed(
            model("Quant", x.shape, [f32(1), f32(0), f32(8)], signed=signed, rounding_mode=mode.lower()), x
        )
        # 0.49999997 + 0.5 rounds to 1 in float32, so that HALF_UP, defined as floor(|x| + 0.5), gives 1.
        expected = spec.round_all(x, mode)
        expected[11:13] = np.sign(x[11:13]) if mode == "HALF_UP" else expected[11:13]
        np.testing.assert_array_equal(found, expected)

    def test_scale_and_zero_point_per_channel(self):
        rng = np.random.default_rng(0)
        x = f32(rng.normal(size=(2, 3, 4)))
        scale, zero = f32([[[0.1], [0.5], [2]]]), f32([[[0], [1], [-2]]])
        found = computed(model("Quant", x.shape, [scale, zero, np.int32(4)], signed=1, narrow=0), x)
        np.testing.assert_array_equal(found, spec.quant(x, scale, zero, 4, True, False, "ROUND"))

    def test_clamps_before_rounding(self):
        x = f32([-3.6, 0.0, 3.6, 200.0])
        found = computed(model("Quant", (4,), [f32(1), f32(0.25), f32(3)], signed=1, rounding_mode="CEIL"), x)
        np.testing.assert_array_equal(found, spec.quant(x, f32(1), f32(0.25), 3, True, False, "CEIL"))

    def test_defaults(self):
        x = f32([-300.0, 300.0])
        np.testing.assert_array_equal(computed(model("Quant", (2,), [f32(1), f32(0), f32(8)]), x), [-128, 127])

    @pytest.mark.parametrize("bits", [16, 24, 25, 31, 32])
    @pytest.mark.parametrize("narrow", [0, 1])
    def test_wide(self, bits, narrow):
        x = f32([-3e38, -5, 5, 3e38])
        low, high = -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
        found = computed(model("Quant", (4,), [f32(1), f32(0), f32(bits)], signed=1, narrow=narrow), x)
        np.testing.assert_array_equal(found, f32([low, -5, 5, high]))

    def test_nothing_but_clip_and_round_for_scale_1(self):
        made = prepare(model("Quant", (2,), [f32([1]), f32(0), f32(2)], signed=1, narrow=1, rounding_mode="ROUND"))
        assert [node.op_type for node in made.graph.node] == ["Clip", "Round"]

    def test_refused(self):
        def text(*constants: object, **attributes: object) -> str:
            return refusal(model("Quant", (2, 3), list(constants), **attributes))

        assert "must be one whole number" in text(f32(1), f32(0), f32(2.5))
        assert "must be one whole number" in text(f32(1), f32(0), f32([2, 4, 2]))
        assert "must be one whole number" in text(f32(1), f32(0), f32(0))
        assert "must be one whole number" in text(f32(1), f32(0), f32(1e9))
        assert "scale is zero" in text(f32([1, 0, 1]), f32(0), f32(4))
        assert "finite float32" in text(np.float64(1), f32(0), f32(4))
        assert "does not fit" in text(f32([1, 2]), f32(0), f32(4))
        assert "does not fit" in text(np.ones((5, 2, 3), np.float32) * 2, f32(0), f32(4))
        assert "rounding mode 'STOCHASTIC'" in text(f32(1), f32(0), f32(4), rounding_mode="stochastic")
        assert "must have 4 inputs" in refusal(model("Quant", (2,), [f32(1), f32(0)]))


class TestBipolarQuant:
    @CASES
    @given(x=st.lists(st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.0, -2.0]), min_size=4, max_size=4), scale=scales)
    def test_specification(self, x, scale):
        found = computed(model("BipolarQuant", (4,), [f32([scale])]), f32(x))
        np.testing.assert_array_equal(found, spec.bipolar(f32(x), f32([scale])))

    def test_scale_per_channel_and_negative(self):
        x, scale = f32(np.random.default_rng(0).normal(size=(2, 3, 2, 2))), f32([[[[0.5]], [[-2]], [[1]]]])
        found = computed(model("BipolarQuant", x.shape, [scale], domain="onnx.brevitas"), x)
        np.testing.assert_array_equal(found, spec.bipolar(x, scale))


class TestTrunc:
    @CASES
    @given(
        x=st.lists(st.integers(-255, 255), min_size=6, max_size=6),
        scale=scales,
        zero=st.sampled_from([0.0, 2.0]),
        drop=st.integers(0, 5),
        mode=st.sampled_from(MODES),
    )
    def test_version_1(self, x, scale, zero, drop, mode):
        x, scale, zero = f32(x) * f32(scale), f32(scale), f32(zero)
        built = model("Trunc", (6,), [scale, zero, f32(8), f32(8 - drop)], rounding_mode=mode)
        np.testing.assert_array_equal(computed(built, x), spec.trunc_1(x, scale, zero, 8, 8 - drop, mode))

    @CASES
    @given(
        x=st.lists(st.integers(-300, 300), min_size=6, max_size=6),
        scale=scales,
        zero=st.sampled_from([0.0, 2.0]),
        power=st.integers(-1, 6),
        bits=st.integers(2, 8),
        signed=st.booleans(),
        narrow=st.booleans(),
        mode=st.sampled_from(MODES),
    )
    def test_version_2(self, x, scale, zero, power, bits, signed, narrow, mode):
        x, scale, zero = f32(x) * f32(scale), f32(scale), f32(zero)
        out_scale = f32(scale * 2.0**power)
        constants = [scale, zero, f32(12), out_scale, f32(bits)]
        built = model(
            "Trunc", (6,), constants, version=2, rounding_mode=mode, signed=int(signed), narrow=int(narrow)
        )  # fmt: skip
        expected = spec.trunc_2(x, scale, zero, out_scale, bits, signed, narrow, mode)
        np.testing.assert_array_equal(computed(built, x), expected)

    def test_default_rounding_is_floor(self):
        found = computed(model("Trunc", (3,), [f32(1), f32(0), f32(8), f32(6)], version=None), f32([7, -7, 8]))
        np.testing.assert_array_equal(found, [1, -2, 2])

    def test_refused(self):
        five, six = [f32(1), f32(0), f32(8), f32(4)], [f32(1), f32(0), f32(8), f32(4), f32(4)]
        assert "does not fit version 2" in refusal(model("Trunc", (2,), five, version=2))
        assert "does not fit version 1" in refusal(model("Trunc", (2,), six, version=1))
        six[3] = f32(-4)
        assert "different signs" in refusal(model("Trunc", (2,), six, version=2))


class TestMultiThreshold:
    @CASES
    @given(
        shape=st.sampled_from([(2, 3), (2, 4, 3), (1, 3, 2, 4), (1, 2, 4, 3), (1, 3, 2, 2, 2)]),
        per_channel=st.booleans(),
        count=st.sampled_from([1, 2, 3, 15]),
        factor=st.sampled_from([1.0, 2.0, 0.1]),
        bias=st.sampled_from([0.0, -1.0, 0.3]),
        seed=st.integers(0, 99),
    )
    def test_specification(self, shape, per_channel, count, factor, bias, seed):
        rng = np.random.default_rng(seed)
        # Of rank 4 some have the channels last, which must be said; the other ranks go by the rule.
        layout = {"data_layout": "NHWC"} if shape == (1, 2, 4, 3) else {}
        axis = {2: 1, 3: 2, 4: 3 if layout else 1, 5: 1}[len(shape)]
        x = f32(rng.integers(-4, 5, shape))
        table = f32(rng.integers(-4, 5, (shape[axis] if per_channel else 1, count)))  # unsorted, repeated, hit exactly
        built = model("MultiThreshold", shape, [table], out_dtype="INT8", out_scale=factor, out_bias=bias, **layout)
        np.testing.assert_array_equal(
            computed(built, x), spec.multi_threshold(x, table, np.float32(factor), np.float32(bias), axis)
        )

    def test_refused(self):
        assert "data_layout 'NCHW' may be wrong" in refusal(
            model("MultiThreshold", (1, 2, 4, 3), [np.zeros((3, 2), np.float32)], out_dtype="INT2")
        )
        assert "[channels or 1, count]" in refusal(
            model("MultiThreshold", (1, 3), [np.zeros(3, np.float32)], out_dtype="INT2")
        )
        assert "does not fit its input of rank 1" in refusal(
            model("MultiThreshold", (3,), [np.zeros((1, 1), np.float32)], out_dtype="INT2")
        )


class TestXnorPopcountMatMul:
    def test_specification(self):
        rng = np.random.default_rng(0)
        a, b = f32(rng.integers(0, 2, (3, 17))), f32(rng.integers(0, 2, (17, 5)))
        np.testing.assert_array_equal(computed(model("XnorPopcountMatMul", a.shape, [b]), a), spec.xnor_popcount(a, b))

    def test_refused(self):
        assert "matrix of 0 and 1" in refusal(model("XnorPopcountMatMul", (1, 2), [f32([[1], [-1]])]))


class TestReading:
    def test_unknown_operators(self):
        assert "FloatQuant of qonnx.custom_op.general) is not supported" in refusal(model("FloatQuant", (2,), [f32(1)]))

    @pytest.mark.parametrize("opset", [7, 9, 11, 13, 20])
    def test_every_opset(self, opset):
        """Exports of years ago have opset 9 or 11, which has no GreaterOrEqual, and 9 has no Round."""
        built = model("Quant", (4,), [f32(0.5), f32(0), f32(3)], opset=opset)
        built.graph.node[0].output[0] = "q"
        built.graph.node.append(helper.make_node("BipolarQuant", ["q", "one"], ["y"], domain=GENERAL))
        built.graph.initializer.append(numpy_helper.from_array(f32([2]), "one"))
        x = f32([-3, -0.25, 0.2, 9])
        expected = spec.bipolar(spec.quant(x, f32(0.5), f32(0), 3, True, False, "ROUND"), f32(2))
        np.testing.assert_array_equal(computed(built, x), expected)

    def test_names_of_tensors_and_nodes_stay(self):
        built = model("Quant", (4,), [f32(0.5), f32(0), f32(3)])
        built.graph.node[0].name = "/features.0/features.0.1/act_quant/export_handler/Quant"
        built.graph.node[0].output[0] = "q"
        built.graph.node.append(helper.make_node("Neg", ["q"], ["y"], "neg"))
        made = prepare(built)
        assert [node.name for node in made.graph.node][-2:] == [built.graph.node[0].name, "neg"]
        assert made.graph.node[-2].output == ["q"]
        assert set(source_names(made).values()) == {"features.0.1.act_quant"}
        assert {item.domain for item in made.opset_import} == {""}
        assert {tensor.name for tensor in made.graph.initializer} == {"q/scale", "q/min", "q/max", "q/scale_1"}

    def test_constants_may_be_computed(self):
        built = model("Quant", (4,), [f32(0.5), f32(0)])
        built.graph.node[0].input.append("bits")
        built.graph.initializer.append(numpy_helper.from_array(f32([2.5]), "some"))
        built.graph.node.insert(0, helper.make_node("Ceil", ["some"], ["bits"]))
        np.testing.assert_array_equal(computed(built, f32([-9, 9, 1, 0])), [-2, 1.5, 1, 0])

    @pytest.mark.parametrize("role", ["scale", "zero point", "bit width"])
    def test_dynamic_parameters_are_refused(self, role):
        built = model("Quant", (), [f32(0.5), f32(0), f32(3)])
        index = ["scale", "zero point", "bit width"].index(role) + 1
        built.graph.node[0].input[index] = "x"
        assert f"its {role} 'x' is computed at run time" in refusal(built)

    def test_inside_a_branch(self):
        inner = helper.make_graph(
            [helper.make_node("BipolarQuant", ["x", "k0"], ["z"], "the_node", domain=GENERAL)],
            "then",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
        )
        built = model("BipolarQuant", (4,), [f32(1)])
        built.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        branch = helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner)
        built.graph.node.append(branch)
        assert "inside an If or a Loop" in refusal(built)

    def test_a_model_is_not_changed_by_reading(self):
        built = model("Quant", (4,), [f32(0.5), f32(0), f32(3)])
        before = built.SerializeToString()
        prepare(built)
        assert built.SerializeToString() == before

    def test_damaged_models_are_refused_or_read(self, tmp_path):
        data = model("Quant", (4,), [f32(0.5), f32(0), f32(3)], rounding_mode="ROUND").SerializeToString()
        rng = np.random.default_rng(0)
        for _ in range(300):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 2):
                damaged[at] = rng.integers(0, 256)
            (tmp_path / "m.onnx").write_bytes(damaged)
            try:
                read_model(tmp_path / "m.onnx")
            except ModelError as error:
                assert "\n" not in str(error)
