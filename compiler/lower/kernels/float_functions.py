"""exp, sigmoid, tanh, erf and both forms of Gelu in float32: a vector at a time, without calls of the C library.

Polynomials and where they hold are stated beside them; their coefficients are least-squares fits, reweighted until the
largest error is about the least (after C. Lawson, 1961). ``tests/lower/test_float_functions.py`` compares every function
with a float64 reference over all exponents. Not-a-numbers stay what they are; results below 2^-126 may become 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, elements, function, kept, number, outer_loop, typed
from .float_rows import exponential

_ERF_MIDDLE = 0.921875
_ERF_END = 4.0
"""From here on 1 − erf is less than half of float32's last digit below 1."""
_ERF_SMALL = (0.12837916669224422, -0.37612634189323346, 0.11283701633315914, -0.026859702955692705,
              0.005201717598372112, -0.0008149821271142265, 8.39785242897979e-05)  # fmt: skip
"""erf(x)/x − 1 as a polynomial of x², up to ``_ERF_MIDDLE``: within 4·10^-10."""
_ERF_LARGE = (0.00020992710030220962, 1.1276153982294486, 0.6372858678645523, 0.1038388032396781,
              -0.022181346021710416, 0.0030315870035768702, -0.00019473306189720638)  # fmt: skip
"""−ln(1 − erf(x)) as a polynomial of x, from ``_ERF_MIDDLE`` to ``_ERF_END``: within 1.5·10^-9, times 1 − erf(x)."""
_TANH_MIDDLE = 0.625
_TANH_SMALL = (-0.333333309071441, 0.13333209781420272, -0.05394720635010078, 0.021702977632009606,
               -0.008182697669865539, 0.002147556622477611)  # fmt: skip
"""(tanh(x)/x − 1)/x² as a polynomial of x², up to ``_TANH_MIDDLE``: within 2·10^-10, times x²."""


def _const(value: float, lanes: int) -> Expr:
    return number(value, "float32", lanes)


def _polynomial(coefficients: Sequence[float], x: Expr, lanes: int) -> Expr:
    """By Horner's rule; coefficients from the constant one up."""
    y = _const(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        y = kept(y * x + _const(coefficient, lanes), lanes)
    return y


def _magnitude(x: Expr, lanes: int) -> Expr:
    bits = tirx.reinterpret(typed("int32", lanes), x) & number(0x7FFFFFFF, "int32", lanes)
    return kept(tirx.reinterpret(typed("float32", lanes), bits), lanes)


def _with_sign_of(x: Expr, y: Expr, lanes: int) -> Expr:
    """``y``, which is not negative, with the sign of ``x``."""
    sign = tirx.reinterpret(typed("int32", lanes), x) & number(-(2**31), "int32", lanes)
    return tirx.reinterpret(typed("float32", lanes), tirx.reinterpret(typed("int32", lanes), y) | sign)


def exp(x: Expr, lanes: int) -> Expr:
    """e^x within 4 ulp: infinite above ln 2^128."""
    return exponential(x, lanes, any_sign=True)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e^-x): of e = e^-|x| either 1 / (1 + e) or e / (1 + e), so that nothing cancels."""
    e = exponential(kept(-_magnitude(x, lanes), lanes), lanes)
    one = _const(1, lanes)
    return tirx.Select(x < _const(0, lanes), e, one) / (one + e)


def tanh(x: Expr, lanes: int) -> Expr:
    """A polynomial for small |x|, else (1 − e) / (1 + e) of e = e^(−2|x|)."""
    a = _magnitude(x, lanes)
    square = kept(a * a, lanes)
    small = kept(a + a * square * _polynomial(_TANH_SMALL, square, lanes), lanes)
    e = exponential(kept(a * _const(-2, lanes), lanes), lanes)
    one = _const(1, lanes)
    large = kept((one - e) / (one + e), lanes)
    return _with_sign_of(x, kept(tirx.Select(a < _const(_TANH_MIDDLE, lanes), small, large), lanes), lanes)


def erf(x: Expr, lanes: int) -> Expr:
    """x + x·P(x²) for small |x|, else 1 − e^−Q(|x|): within 2 ulp."""
    a = _magnitude(x, lanes)
    square = kept(a * a, lanes)
    small = kept(a + a * _polynomial(_ERF_SMALL, square, lanes), lanes)
    end = _const(_ERF_END, lanes)
    held = kept(tirx.Select(a > end, end, a), lanes)
    e = exponential(kept(-_polynomial(_ERF_LARGE, held, lanes), lanes), lanes)
    large = _const(1, lanes) - e
    return _with_sign_of(x, kept(tirx.Select(a < _const(_ERF_MIDDLE, lanes), small, large), lanes), lanes)


def gelu(x: Expr, lanes: int) -> Expr:
    """x/2 · (1 + erf(x/√2)) (D. Hendrycks and K. Gimpel, arXiv 1606.08415)."""
    inner = erf(kept(x * _const(math.sqrt(0.5), lanes), lanes), lanes)
    return x * _const(0.5, lanes) * (_const(1, lanes) + inner)


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))): ONNX's Gelu with ``approximate="tanh"`` (same paper)."""
    cubic = kept(_const(1, lanes) + x * x * _const(0.044715, lanes), lanes)
    inner = tanh(kept(x * _const(math.sqrt(2 / math.pi), lanes) * cubic, lanes), lanes)
    return x * _const(0.5, lanes) * (_const(1, lanes) + inner)


FUNCTIONS: dict[str, Callable[[Expr, int], Expr]] = {
    "Erf": erf, "Exp": exp, "Gelu": gelu, "Gelu:tanh": gelu_tanh, "Sigmoid": sigmoid, "Tanh": tanh,
}  # fmt: skip
"""By the name of the ONNX operator, and what it approximates by."""

_TASK = 4096
"""Elements of a task."""
_WORK = 32
"""Bit operations that an element takes as long as, about: what threads are judged by."""


def map_elements(call: KernelCall) -> Kernel:
    """``out = function(x)``, element by element."""
    apply = FUNCTIONS[call.attrs["function"]]
    lanes = max(4, call.target.vector_bytes // 4)
    size = elements(call.output)
    vectors, each = size // lanes, _TASK // lanes
    with function(call) as fn:
        x, out = fn.input(0), fn.output()
        if vectors:
            with outer_loop(-(-vectors // each), size * _WORK) as task:
                count = each if vectors % each == 0 else tirx.min(each, vectors - task * each)
                with T.serial(0, count) as i:
                    place = T.Bind((task * each + i) * lanes)
                    out.store(place, apply(kept(x.load(place, lanes), lanes), lanes), lanes)
        if rest := size % lanes:
            with T.serial(0, rest) as i:
                place = T.Bind(vectors * lanes + i)
                out.store(place, apply(kept(x.load(place), 1), 1))
    return fn.kernel()
