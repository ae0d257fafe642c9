"""Small packed networks for the FPGA, made without torch."""

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def sign(name, output):
    """x >= 0 as ±1, the way exporters write it."""
    return [
        helper.make_node("GreaterOrEqual", [name, "zero"], [f"{output}_at_least"]),
        helper.make_node("Where", [f"{output}_at_least", "one", "minus"], [output]),
    ]


def batch_norm(name, output, channels, random, constants):
    """Inference batch norm with scales of both signs."""
    values = {
        "scale": random.normal(size=channels), "bias": random.normal(size=channels) * 0.3,
        "mean": random.normal(size=channels) * 2, "var": random.uniform(2, 30, channels),
    }  # fmt: skip
    for key, value in values.items():
        constants[f"{output}_{key}"] = value.astype(np.float32)
    return helper.make_node("BatchNormalization", [name, *(f"{output}_{key}" for key in values)], [output])


def finish(nodes, constants, input_shape, output, output_shape):
    """A checked model of ``image`` → ``output``."""
    constants |= {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model)


def mlp(sizes=(48, 24, 16, 10), seed=0):
    """A network of dense ±1 layers, batch norms and signs."""
    random = np.random.default_rng(seed)
    nodes, constants, name = [], {}, "image"
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        constants[f"w{number}"] = random.choice([-1.0, 1.0], (inputs, outputs)).astype(np.float32)
        nodes += sign(name, f"s{number}")
        nodes.append(helper.make_node("MatMul", [f"s{number}", f"w{number}"], [f"a{number}"], name=f"fc{number}"))
        nodes.append(batch_norm(f"a{number}", f"b{number}", outputs, random, constants))
        name = f"b{number}"
    return finish(nodes, constants, [1, sizes[0]], name, [1, sizes[-1]])


def cnn(seed=0, pads=0, residual=False, pool=(2, 2, 0), dilation=1, depthwise=False):
    """A small network in the shape of CNV: 8-bit pixels, ±1 convolutions, max-pools of signs, dense ±1 layers.

    ``residual``: floats of the first convolution are added to those of a third. ``pool``: kernel, stride and pads.
    ``dilation``: of the first convolution. ``depthwise``: a depthwise one behind it.
    """
    random = np.random.default_rng(seed)
    constants = {"low": np.float32(0), "high": np.float32(1), "levels": np.float32(255)}
    nodes = [
        helper.make_node("Clip", ["image", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "levels"], ["spread"]),
        helper.make_node("Round", ["spread"], ["pixels"]),
    ]
    name, channels, size = "pixels", 3, 11
    for number, outputs in enumerate((6, 9)):
        constants[f"k{number}"] = random.choice([-1.0, 1.0], (outputs, channels, 3, 3)).astype(np.float32)
        apart = dilation if number == 0 else 1
        window = {"pads": [pads] * 4, "dilations": [apart] * 2}
        nodes.append(helper.make_node("Conv", [name, f"k{number}"], [f"c{number}"], name=f"conv{number}", **window))
        nodes.append(batch_norm(f"c{number}", f"n{number}", outputs, random, constants))
        if number == 0:
            constants["n0_mean"] *= 60
        nodes += sign(f"n{number}", f"b{number}")
        name, channels, size = f"b{number}", outputs, size - 2 * apart + 2 * pads
        if number == 0 and depthwise:
            constants["k"] = random.choice([-1.0, 1.0], (outputs, 1, 3, 3)).astype(np.float32)
            nodes.append(helper.make_node("Conv", [name, "k"], ["c"], name="depthwise", group=outputs, pads=[1] * 4))
            nodes.append(batch_norm("c", "n", outputs, random, constants))
            nodes += sign("n", "b")
            name = "b"
        if number == 0 and residual:
            constants["k"] = random.choice([-1.0, 1.0], (outputs, outputs, 1, 1)).astype(np.float32)
            nodes.append(helper.make_node("Conv", [name, "k"], ["c"], name="conv"))
            nodes.append(batch_norm("c", "n", outputs, random, constants))
            nodes.append(helper.make_node("Add", ["n", f"n{number}"], ["both"], name="add"))
            nodes += sign("both", "b")
            name = "b"
        if number == 1:
            kernel, stride, edge = pool
            pooling = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [edge] * 4}
            nodes.append(helper.make_node("MaxPool", [name], ["pooled"], **pooling))
            name, size = "pooled", (size + 2 * edge - kernel) // stride + 1
    constants["flat"] = np.array([1, -1], np.int64)
    nodes.append(helper.make_node("Reshape", [name, "flat"], ["row"]))
    constants["w"] = random.choice([-1.0, 1.0], (channels * size * size, 5)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", ["row", "w"], ["sums"], name="fc"))
    nodes.append(batch_norm("sums", "scores", 5, random, constants))
    return finish(nodes, constants, [1, 3, 11, 11], "scores", [1, 5])


def low_bit(seed=0, weight_levels=((-1, 1), (-1, 0, 1), (-2, -1, 0, 1)), size=7, pool=None, depthwise=None):
    """Convolutions and a dense layer with weights of few levels, quantizers to 2 and 4 bits between them, zero padding.

    ``pool``: kernel, stride and pads of one behind the first convolution, whose batch norm follows it.
    ``depthwise``: levels of the weights of a depthwise convolution behind the first one.
    """
    random = np.random.default_rng(seed)
    constants = {"low": np.float32(0), "high": np.float32(1)}
    nodes, name, channels, end = [], "image", 3, size

    def quantizer(name, number, levels):
        constants[f"levels{number}"] = np.float32(levels)
        return [
            helper.make_node("Clip", [name, "low", "high"], [f"clipped{number}"]),
            helper.make_node("Mul", [f"clipped{number}", f"levels{number}"], [f"spread{number}"]),
            helper.make_node("Round", [f"spread{number}"], [f"codes{number}"]),
            helper.make_node("Div", [f"codes{number}", f"levels{number}"], [f"q{number}"]),
        ]

    for number, (outputs, levels) in enumerate(((6, 15), (8, 3))):
        if number and depthwise:
            nodes += quantizer(name, 3, 7)
            constants["k"] = random.choice(depthwise, (channels, 1, 3, 3)).astype(np.float32)
            strides = {"pads": [1] * 4, "group": channels}
            nodes.append(helper.make_node("Conv", ["q3", "k"], ["c"], name="depthwise", **strides))
            nodes.append(batch_norm("c", "n", channels, random, constants))
            name = "n"
        nodes += quantizer(name, number, levels)
        weights = random.choice(weight_levels[number], (outputs, channels, 3, 3))
        constants[f"k{number}"] = weights.astype(np.float32)
        nodes.append(
            helper.make_node("Conv", [f"q{number}", f"k{number}"], [f"c{number}"], name=f"conv{number}", pads=[1] * 4)
        )
        name = f"c{number}"
        if pool and number == 0:
            (kernel, stride, edge), name = pool, "pooled"
            pooling = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [edge] * 4}
            nodes.append(helper.make_node("MaxPool", [f"c{number}"], [name], **pooling))
            end = (size + 2 * edge - kernel) // stride + 1
        nodes.append(batch_norm(name, f"n{number}", outputs, random, constants))
        name, channels = f"n{number}", outputs
    nodes += quantizer(name, 2, 3)
    constants["flat"] = np.array([1, -1], np.int64)
    nodes.append(helper.make_node("Reshape", ["q2", "flat"], ["row"]))
    constants["w"] = random.choice(weight_levels[2], (channels * end * end, 5)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", ["row", "w"], ["sums"], name="fc"))
    nodes.append(batch_norm("sums", "scores", 5, random, constants))
    return finish(nodes, constants, [1, 3, size, size], "scores", [1, 5])


def fixed_point(seed=0, size=8, mixed=True, residual=True, depthwise=False, pool=False):
    """Fixed-point numbers only, with two residual blocks: one adds its input, one a convolution of it with a stride."""
    random = np.random.default_rng(seed)
    constants, nodes = {}, []

    def quantizer(name, output, fraction, width, signed):
        low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
        values = {"scale": 2.0**fraction, "half": 0.5, "low": low, "high": high}
        for key, value in values.items():
            constants[f"{output}_{key}"] = np.float32(value)
        nodes.extend(
            [
                helper.make_node("Mul", [name, f"{output}_scale"], [f"{output}_1"]),
                helper.make_node("Add", [f"{output}_1", f"{output}_half"], [f"{output}_2"]),
                helper.make_node("Floor", [f"{output}_2"], [f"{output}_3"]),
                helper.make_node("Max", [f"{output}_3", f"{output}_low"], [f"{output}_4"]),
                helper.make_node("Min", [f"{output}_4", f"{output}_high"], [f"{output}_5"]),
                helper.make_node("Div", [f"{output}_5", f"{output}_scale"], [output]),
            ]
        )
        return output

    def conv(name, output, inputs, outputs, stride=1, group=1):
        constants[f"{output}_w"] = random.integers(-12, 13, (outputs, inputs // group, 3, 3)).astype(np.float32) / 64
        window = {"pads": [1] * 4, "strides": [stride] * 2, "group": group}
        nodes.append(helper.make_node("Conv", [name, f"{output}_w"], [f"{output}_c"], name=output, **window))
        constants[f"{output}_m"] = random.integers(-24, 25, (outputs, 1, 1)).astype(np.float32) / 16
        constants[f"{output}_b"] = random.integers(-64, 65, (outputs, 1, 1)).astype(np.float32) / 64
        nodes.append(helper.make_node("Mul", [f"{output}_c", f"{output}_m"], [f"{output}_s"]))
        nodes.append(helper.make_node("Add", [f"{output}_s", f"{output}_b"], [f"{output}_n"]))
        return f"{output}_n"

    def add(left, right, output):
        nodes.append(helper.make_node("Add", [left, right], [output]))
        return output

    x = quantizer("image", "pixels", 6, 8, True)
    x = quantizer(conv(x, "stem", 2, 4), "x0", 3, 5, False)
    if pool:
        nodes.append(helper.make_node("MaxPool", [x], ["pooled"], kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4))
        x = "pooled"
    y = quantizer(conv(x, "a1", 4, 4, group=4 if depthwise else 1), "y0", 3, 5, False)
    y = conv(y, "a2", 4, 4)
    y = quantizer(y, "y1", 4 if mixed else 3, 7, True) if residual else y
    x = quantizer(add(y, x, "sum0") if residual else y, "x1", 3, 5, False)
    y = quantizer(conv(x, "b1", 4, 6, 2), "y2", 3, 5, False)
    y = conv(y, "b2", 6, 6)
    if residual:
        y = quantizer(y, "y3", 4, 7, True)
        y = add(y, quantizer(conv(x, "down", 4, 6, 2), "z", 4, 7, True), "sum1")
    x = quantizer(y, "x2", 3, 5, False)
    constants["flat"] = np.array([1, -1], np.int64)
    nodes.append(helper.make_node("Reshape", [x, "flat"], ["row"]))
    rows = 6 * (size // 2) ** 2
    constants["w"] = random.integers(-12, 13, (rows, 5)).astype(np.float32) / 64
    nodes.append(helper.make_node("MatMul", ["row", "w"], ["scores"], name="fc"))
    return finish(nodes, constants, [1, 2, size, size], "scores", [1, 5])
