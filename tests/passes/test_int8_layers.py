"""``int8_layers``: float layers on 8-bit integers, where they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.util import apply, assert_same, ops, parse, structure
from xnorc import calibrate, golden
from xnorc.errors import InputError
from xnorc.model import prepare
from xnorc.passes import Int8Input, Options, Status, optimize
from xnorc.passes.fixed.int8_layers import Int8Layers, quantize_rows

RNG = np.random.default_rng(3)


def asked(*nodes: str, scale: float = 0.03125) -> Options:
    return Options(int8={node: Int8Input(scale) for node in nodes})


def conv_model(attrs: str = "pads = [1, 1, 1, 1]", weights: tuple[int, ...] = (4, 3, 3, 3), image: str = "1, 3, 6, 5"):
    text = f"g (float[{image}] x) => (float[1, 4, oh, ow] y) {{ [layer] y = Conv <{attrs}> (x, w, b) }}"
    return parse(text, {"w": RNG.standard_normal(weights).astype(np.float32), "b": np.float32([1, 2, 3, 4])})


def test_convolution_becomes_integers_and_a_float_tail():
    before = conv_model()
    result, ctx = apply(before, Int8Layers(), options=asked("layer"))
    w = {t.name: t for t in before.graph.initializer}["w"]
    rows, scale = quantize_rows(golden.onnx.numpy_helper.to_array(w).reshape(4, -1))
    expected = parse(
        """g (float[1, 3, 6, 5] x) => (float[1, 4, 6, 5] y) {
            q = ai.xnorc.QuantizeMap <perm = [0, 2, 3, 1], low = -127, high = 127> (x, inverse)
            acc = ai.xnorc.IntegerConv <group = 1, strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]> (q, codes)
            moved = Transpose <perm = [0, 3, 1, 2]> (acc)
            real = Cast <to = 1> (moved)
            scaled = Mul (real, scale)
            y = Add (scaled, bias)
        }""",
        {
            "inverse": np.float32([32]),
            "codes": np.ascontiguousarray(rows.reshape(4, 3, 3, 3).transpose(0, 2, 3, 1)),
            "scale": (scale * 0.03125).astype(np.float32).reshape(1, 4, 1, 1),
            "bias": np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1),
        },
    )
    assert structure(result) == structure(expected)
    assert ctx.records["layer"].status is Status.PACKED and "by choice" in ctx.records["layer"].reason


@pytest.mark.parametrize(
    ("attrs", "weights", "image"),
    [
        ("pads = [0, 1, 2, 1], strides = [2, 1]", (4, 3, 3, 3), "1, 3, 7, 6"),
        ("group = 2, dilations = [2, 1]", (4, 2, 3, 3), "1, 4, 9, 6"),
        ("group = 4, pads = [1, 1, 1, 1]", (4, 1, 3, 3), "1, 4, 5, 5"),
    ],
    ids=["strides and pads", "groups", "depthwise"],
)
def test_every_convolution_is_near_the_float_one(attrs, weights, image):
    before = prepare(conv_model(attrs, weights, image))
    result, _ = apply(before, Int8Layers(), options=asked("layer", scale=0.04), prepared=False)
    feeds = golden.random_inputs(before)
    near(golden.run(before, feeds)["y"], golden.run(result, feeds)["y"])


def near(expected: np.ndarray, found: np.ndarray) -> None:
    """Each factor is rounded by about a hundredth of its spread (s / √12), and so are sums of their products."""
    error = np.abs(expected - found)
    assert error.mean() < 0.02 * expected.std() and error.max() < 0.1 * expected.std()


def test_convolution_over_one_axis():
    before = parse(
        "g (float[1, 3, 9] x) => (float[1, 4, 7] y) { [layer] y = Conv (x, w) }",
        {"w": RNG.standard_normal((4, 3, 3)).astype(np.float32)},
    )
    result, _ = apply(before, Int8Layers(), options=asked("layer", scale=0.04))
    assert ops(result).count("IntegerConv") == 1
    feeds = golden.random_inputs(before)
    near(golden.run(before, feeds)["y"], golden.run(result, feeds)["y"])


@pytest.mark.parametrize("more", ["", "alpha = 0.5, beta = 2.0, ", "beta = 0.0, "])
def test_gemm_and_matmul_share_the_codes_of_their_input(more):
    w = RNG.standard_normal((8, 12)).astype(np.float32)
    before = parse(
        f"""g (float[5, 12] x) => (float[5, 8] y, float[5, 8] z) {{
            [first] y = Gemm <{more}transB = 1> (x, w, b)
            [second] z = MatMul (x, v)
        }}""",
        {"w": w, "v": np.ascontiguousarray(w.T), "b": RNG.standard_normal(8).astype(np.float32)},
    )
    result, _ = apply(before, Int8Layers(), options=asked("first", "second", scale=0.03))
    assert ops(result).count("QuantizeMap") == 1 and ops(result).count("IntegerGemm") == 2
    feeds = golden.random_inputs(before)
    for expected, found in zip(golden.run(before, feeds).values(), golden.run(result, feeds).values(), strict=True):
        near(expected, found)


def test_layers_that_are_not_named_stay():
    before = conv_model()
    result, ctx = apply(before, Int8Layers(), options=Options())
    assert ops(result) == ["Conv"] and not ctx.records
    assert_same(before, result)


@pytest.mark.parametrize(
    ("text", "constants", "reason"),
    [
        ("y = MatMul (w, x)", {"w": np.ones((3, 4), np.float32)}, "on the right"),
        ("y = Gemm <transA = 1> (x, w)", {"w": np.ones((4, 2), np.float32)}, "on the right"),
    ],
)
def test_reasons_for_staying_in_float(text, constants, reason):
    before = parse(f"g (float[4, 5] x) => (float[a, b] y) {{ [layer] {text} }}", constants)
    result, ctx = apply(before, Int8Layers(), options=asked("layer"))
    assert len(ops(result)) == 1
    assert ctx.records["layer"].status is Status.FLOAT and reason in ctx.records["layer"].reason


def test_too_many_terms_stay_in_float():
    before = parse(
        "g (float[1, 8200, 1, 1] x) => (float[1, 1, 1, 1] y) { [layer] y = Conv (x, w) }",
        {"w": np.ones((1, 8200, 1, 1), np.float32)},
    )
    _, ctx = apply(before, Int8Layers(), options=asked("layer"))
    assert "8200 terms" in ctx.records["layer"].reason


def test_channel_of_zeros():
    rows = np.float32([[0, 0], [1, -2]])
    codes, scale = quantize_rows(rows)
    assert codes.tolist() == [[0, 0], [64, -127]] and scale[0] == 1


# ---- ranges ----


def test_range_is_where_the_squared_error_is_least():
    rng = np.random.default_rng(0)
    x = np.abs(np.concatenate([rng.standard_normal(100_000), [40.0]]))
    found = calibrate.best_range(np.histogram(x, calibrate.BINS, (0, x.max()))[0], float(x.max()))

    def error(limit: float) -> float:
        step = limit / 127
        return float(((np.clip(np.rint(x / step), 0, 127) * step - x) ** 2).mean())

    tried = {limit: error(limit) for limit in x.max() * np.arange(8, 65) / 64}
    assert error(found) <= 1.05 * min(tried.values()) and found < 0.7 * x.max()


def test_only_layers_that_stay_in_float_are_chosen():
    from tests.runtimes.small import build

    model = prepare(build())
    before = optimize(model)
    floats = {r.node for r in before.records if r.op in calibrate.LAYERS and r.status is Status.FLOAT}
    data = {name: np.stack([value] * 2) for name, value in golden.random_inputs(model).items()}
    chosen = calibrate.choose(model, "int8", data, None, lambda stage: None)
    assert chosen is not None and set(chosen) == floats and floats
    after = optimize(model, Options(int8=chosen), check=True)
    assert after.choices["float_layers"] == "int8"
    assert not [r for r in after.records if r.op in calibrate.LAYERS and r.status is Status.FLOAT]


def test_data_are_checked():
    model = prepare(conv_model())
    good = np.zeros((2, 1, 3, 6, 5), np.float32)

    def refuses(message: str, data, float_layers: str = "int8") -> None:
        with pytest.raises(InputError, match=message):
            calibrate.choose(model, float_layers, data, None, lambda stage: None)

    refuses("need calibration data", None)
    refuses("float layers stay float32", {"x": good}, "float32")
    refuses("float32 or int8", {"x": good}, "int4")
    refuses("calibration data: the data have no array 'x'", {"z": good})
    refuses("calibration data: array 'x' is float64", {"x": good.astype(np.float64)})
    refuses("calibration data: array 'x' has shape", {"x": good[..., :3]})
    refuses("no samples", {"x": good[:0]})
    refuses("not finite", {"x": good + np.nan})


def test_activations_that_are_always_zero_are_left_in_float():
    model = prepare(conv_model())
    assert calibrate.choose(model, "int8", {"x": np.zeros((2, 1, 3, 6, 5), np.float32)}, None, lambda s: None) == {}
