"""exp, sigmoid, tanh, erf and both forms of Gelu of our own against float64, on numbers of every size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

import xnorc
from xnorc.runtimes.qemu import find_qemu

SUBNORMAL = 2.0**-126
"""Smaller results may be 0."""

erf = np.vectorize(math.erf, otypes=[np.float64])
EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Exp": np.exp,
    "Sigmoid": lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x))),
    "Tanh": np.tanh,
    "Erf": erf,
    "Gelu": lambda x: np.where(x == -np.inf, np.nan, x * 0.5 * (1 + erf(x * math.sqrt(0.5)))),
    "Gelu:tanh": lambda x: np.where(
        x == -np.inf, np.nan, x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


def numbers() -> np.ndarray:
    """Every exponent with both signs, dense where functions bend, and the special ones; not a multiple of any vector."""
    rng = np.random.default_rng(0)
    sizes = np.ldexp(rng.uniform(1, 2, 254), np.arange(-126, 128))
    near = np.concatenate([rng.uniform(0, top, 700) for top in (0.7, 1, 5, 20, 90)])
    edges = [0.0, 0.625, 0.921875, 4.0, 87.33654, 87.4, 88.37, 88.38, 88.72283, 88.7229, 89.0, 3.4e38, np.inf]
    some = np.concatenate([sizes, near, edges])
    return np.concatenate([some, -some, [np.nan]]).astype(np.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the reference, for infinities
@pytest.mark.parametrize("target", ["host", "rpi4", "rpi2"])
def test_functions(target: str) -> None:
    if target != "host" and find_qemu(xnorc.targets.get(target).arch) is None:
        pytest.skip("no QEMU")
    x = numbers()
    nodes = [
        helper.make_node(op.split(":")[0], ["x"], [op], **({"approximate": "tanh"} if ":" in op else {}))
        for op in EXACT
    ]
    outputs = [helper.make_tensor_value_info(op, TensorProto.FLOAT, x.shape) for op in EXACT]
    graph = helper.make_graph(nodes, "f", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    package = xnorc.compile(model, target)
    found = package.run({"x": x}, "host" if target == "host" else "qemu")
    for op, function in EXACT.items():
        exact, got = function(x.astype(np.float64)), found[op]
        rounded = exact.astype(np.float32)
        known = ~np.isnan(exact)
        assert (np.isnan(got) == np.isnan(rounded)).all(), op
        finite = known & np.isfinite(rounded)
        assert (got[known & ~finite] == rounded[known & ~finite]).all(), op
        # Gelu cancels for negative x: 1 + erf is near 0 there.
        ulp = (
            np.spacing(np.abs(rounded[finite]))
            if "Gelu" not in op
            else np.spacing(np.maximum(np.abs(x[finite]), 1e-30))
        )
        error = np.abs(got[finite] - exact[finite])
        worst = (error / np.maximum(4 * ulp, SUBNORMAL)).max()
        assert worst <= 1, f"{op}: {x[finite][error.argmax()]}"
