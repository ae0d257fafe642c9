"""Float kernels of our own: asked for while ONNX becomes Relax, written once the target is known.

A converter knows nothing of the target. It emits a call of a function without a body, whose attribute says which kernel
is meant; ``schedules.py`` replaces that function by the kernel. Arguments are therefore laid out alike for all targets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ...opset import TensorType
from ..kernel import Kernel, KernelCall
from ..templates import Template
from . import float_depthwise, float_depthwise_last, float_functions, float_max_pool, float_product, float_rows
from .concat import concat
from .top_k import top_k
from .transpose import transpose

if TYPE_CHECKING:
    from ...targets import Target

ATTRIBUTE = "xnorc.float_kernel"

KERNELS: dict[str, Callable[[KernelCall], Kernel]] = {
    "average_pool": float_depthwise.average_pool,
    "average_pool_last": float_depthwise_last.average_pool_last,
    "concat": concat,
    "conv": float_product.conv,
    "depthwise": float_depthwise.depthwise,
    "depthwise_last": float_depthwise_last.depthwise_last,
    "max_pool": float_max_pool.max_pool,
    "max_pool_last": float_depthwise_last.max_pool_last,
    "function": float_functions.map_elements,
    "layer_norm": float_rows.layer_norm,
    "linear": float_product.linear,
    "matmul": float_product.matmul,
    "softmax": float_rows.softmax,
    "top_k": top_k,
    "transpose": transpose,
}


def emit(
    bb: Any, kernel: str, attrs: Mapping[str, Any], args: Sequence[Any], shape: Sequence[int], dtype: str = "float32"
) -> Any:
    """The call of a kernel on Relax expressions: inputs and constants in the order that the kernel reads them. ``shape``
    and ``dtype`` are the result's."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(kernel)
        T.func_attr({ATTRIBUTE: json.dumps({"kernel": kernel, **attrs}), "tirx.noalias": True, "op_pattern": 8})
        for i, arg in enumerate(args):
            T.arg(f"in{i}", T.buffer([int(size) for size in arg.ty.shape], str(arg.ty.dtype)))
        T.arg("out", T.buffer(list(shape), dtype))
        T.evaluate(0)
    variable = bb.add_func(builder.get(), f"float_{kernel}")
    return relax.call_tir(variable, list(args), relax.TensorType(tuple(shape), dtype))


def asked(func: tirx.PrimFunc) -> bool:
    """Whether ``func`` stands for a kernel of ours."""
    return bool(func.attrs) and ATTRIBUTE in func.attrs


def template(func: tirx.PrimFunc, name: str, target: Target) -> Template:
    """What writes the kernel that ``func`` stands for."""
    attrs = json.loads(str(func.attrs[ATTRIBUTE]))
    types = []
    for parameter in func.params:
        kind = parameter.ty
        types.append(TensorType(tuple(int(size) for size in kind.shape), np.dtype(str(kind.dtype))))
    kernel = attrs.pop("kernel")
    return Template(KernelCall(name, kernel, attrs, tuple(types[:-1]), {}, types[-1], target), KERNELS[kernel])


def write(given: Template) -> tirx.PrimFunc:
    """Its function."""
    made = given.write(given.call)
    # The arguments were fixed when the call was emitted: the kernel must take exactly them, in their order.
    assert made.args == tuple(("input", i) for i in range(len(given.call.inputs)))
    return made.func
