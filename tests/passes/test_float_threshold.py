"""``float_threshold``: a monotone float chain before a sign costs nothing, and no bit of it changes."""

import numpy as np
import pytest

from tests.passes.mini import RealNet, compiled, count, reason, run
from xnorc.passes.floats import COUNT, floats


def chained(chain, zero=1, shape=(2, 9, 5, 6)):
    """x → ``chain`` → sign → conv."""
    net = RealNet(shape)
    return compiled(net, net.conv(net.sign(chain(net, "x"), zero, name="sign"), shape[1], 6, name="conv"))


def test_floats_are_counted_in_order():
    places = np.array([0, 1, COUNT // 2 - 2, COUNT // 2 - 1, COUNT // 2, COUNT // 2 + 1, COUNT - 2, COUNT - 1])
    found = floats(places)
    expected = np.float32([-np.inf, -3.4028235e38, -1e-45, -0.0, 0.0, 1e-45, 3.4028235e38, np.inf])
    assert (found == expected).all() and (np.signbit(found) == np.signbit(expected)).all()


@pytest.mark.parametrize("zero", [-1, 0, 1])
def test_shift_of_each_channel(zero):
    """ReActNet's sign(x + b), for shifts that meet the data's zeros, its denormals and nothing."""
    shift = np.float32([0, -0.0, 1, -1, 0.3, 1e-45, -3e38, 3e38, 1e-8]).reshape(9, 1, 1)
    result = chained(lambda net, x: net.node("Add", x, shift, name="shift"), zero)
    assert "Add" not in [node.op_type for node in result.model.graph.node][:2] or zero == 0
    assert reason(result, "shift") == "part of the float threshold of 'sign'"


@pytest.mark.parametrize("sign", [1, -1])
def test_both_bits_of_a_shifted_sign_keep_one_threshold(sign):
    """x + b >= 0 and x + b > 0 change between a float and the next one."""
    result = chained(lambda net, x: net.node("Mul", net.node("Add", x, net.floats(9, 1, 1)), np.float32(sign)), 0)
    thresholds = [t.name for t in result.model.graph.initializer if "float_threshold" in t.name]
    packs = [node for node in result.model.graph.node if node.op_type == "Pack"]
    assert len(packs) == 2 and [node.input[1] for node in packs] == 2 * thresholds
    assert sorted(a.i for node in packs for a in node.attribute if a.name == "strict") == [0, 1]


@pytest.mark.parametrize("zero", [-1, 0, 1])
def test_batch_norm_and_activations_before_a_sign(zero):
    def chain(net, x):
        gamma = np.float32([1, -1, 0.3, -2.5, 0, -0.0, 1e-20, 7, -1e-3])
        y = net.bn(net.node("Clip", x, np.float32(-1), np.float32(1)), 9, gamma=gamma)
        y = net.node("PRelu", net.node("Sub", np.float32(0.1), y), np.abs(net.floats(9, 1, 1)))
        return net.node("Div", net.node("LeakyRelu", y), np.float32(-3))

    found = count(chained(chain, zero))
    assert not {"Clip", "PRelu", "LeakyRelu", "Div", "Mul"} & set(found) or zero == 0
    assert "Clip" not in found and "PRelu" not in found


def test_a_tensor_that_something_else_reads_ends_the_chain():
    net = RealNet((2, 9, 5, 6))
    both = net.node("Add", "x", net.floats(9, 1, 1), name="both")
    signs = net.sign(net.node("Mul", both, net.floats(9, 1, 1), name="own"))
    result = compiled(net, net.conv(signs, 9, 6), both)
    assert count(result).get("Add") == 1 and "Mul" not in count(result)


def test_negative_slopes_and_shifts_inside_a_channel_stay():
    net = RealNet((1, 9, 5, 6))
    y = net.node("PRelu", "x", -np.abs(net.floats(9, 1, 1)))
    z = net.node("Add", "x", net.floats(5, 6))
    result = compiled(net, net.conv(net.sign(y), 9, 6), net.conv(net.sign(z), 9, 6))
    assert count(result)["PRelu"] == 1 and count(result)["Add"] == 1


def test_every_float_has_the_bit_that_the_chain_gives():
    """Around the threshold, float by float."""
    net = RealNet((1, 3, 1, 4001))
    y = net.bn("x", 3, gamma=np.float32([0.7, -1.3, 3e-3]), mean=np.float32([0.3, 0.1, 2]))
    result = compiled(net, net.conv(net.sign(y), 3, 3, (1, 1)), runs=1)
    thresholds = [t for t in result.model.graph.initializer if "float_threshold" in t.name]
    near = np.frombuffer(thresholds[0].raw_data, np.float32).view(np.int32)
    x = (near[:, None] + np.arange(-2000, 2001)).astype(np.int32).view(np.float32).reshape(1, 3, 1, 4001)
    model = net.model(net.nodes[-1].output[0])
    (expected,), (found,) = (run(m, {"x": x}).values() for m in (model, result.model))
    assert (expected == found).all()


def test_zeroed_branch_is_dropped():
    """FDA's correction, faded out: sign(x) + 0 · f(x)."""
    net = RealNet((2, 9, 5, 6))
    noise = net.node("Mul", np.float32(0), net.node("Relu", net.conv("x", 9, 9, (1, 1), name="noise")))
    result = compiled(net, net.conv(net.node("Add", net.sign("x"), noise, name="sum"), 9, 6))
    assert "Conv" not in count(result) and count(result)["BinaryConv"] == 1
    assert "multiplied by 0" in reason(result, "sum")
