"""``BinaryAttention``: scores of bits, the choice of keys, and the sum of their values, in one operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .bits import packed_bytes, to_signs
from .products import unpack_float

FLOOR = -(1 << 24)
"""The least score: a bias of twice this (or less) takes a key out, whatever its product is."""
ONE = float(1 << 40)
"""What the exponential of 0 is in the fixed point of mode 2."""


def exponentials(scale: float, reach: int) -> np.ndarray:
    """exp(−i·scale) in fixed point for i from 0 to ``reach``: int64, ``ONE`` for i = 0. What mode 2 adds up."""
    return np.rint(ONE * np.exp(-scale * np.arange(reach + 1, dtype=np.float64))).astype(np.int64)


def share_limits(scale: float, reach: int, share: float) -> np.ndarray:
    """``exponentials`` over ``share``, rounded down: a key is chosen where this is above the row's sum."""
    values = ONE * np.exp(-scale * np.arange(reach + 1, dtype=np.float64)) / share
    return np.floor(np.minimum(values, 2.0**62)).astype(np.int64)


@register
class BinaryAttention(Operator):
    """Attention over bits: ``t = max(q·k + bias, −2²⁴)``, a choice of keys for each query, the sum of their values v.

    ``q``: uint8 ``[..., M, B]`` and ``k``: uint8 ``[..., N, B]``, ±1, of which ``size`` bits count; ``v``: uint8
    ``[..., D, ceil(N/8)]``, ±1, packed along the keys; ``bias``: int32 ``[..., M or 1, N]``, a leading axis may be 1. ``sums``
    and ``limits``: int64 ``[R]``, of mode 2 (else of one element, not read). Output: int32 ``[..., M, D]`` =
    Σ_n chosen[m, n] · v[d, n].

    ``mode`` 0: chosen where t ≥ ``margin`` (BiBERT: the score is above zero). 1: where t ≥ max over n of t − ``margin``: a
    probability p ≥ r·max(p) needs no softmax (BiViT). 2: with i = min(max(t) − t, R − 1), where ``limits[i]`` > the sum of
    ``sums[i]`` over the row: p = exp(s)/Σ exp(s) above a share, by a logarithm's other side (BiPFT); both tables are
    fixed point, so that every machine chooses the same.
    """

    name = "BinaryAttention"
    inputs = ("q", "k", "v", "bias", "sums", "limits")
    attributes = {"size": int, "mode": int, "margin": int}
    body = (
        unpack_float("q", True)
        + unpack_float("k", True)
        + unpack_float("v", True)
        + """
    product = Einsum <equation = "...md,...nd->...mn"> (q_float, k_float)
    product_int = Cast <to = 6> (product)
    bits_shape = Shape (q_bits)
    all_bits = Gather (bits_shape, q_last)
    counted = Constant <value_int: int = @size> ()
    surplus = Sub (all_bits, counted)
    surplus_int = Cast <to = 6> (surplus)
    dots = Sub (product_int, surplus_int)
    biased = Add (dots, bias)
    floor = Constant <value = int32 {-16777216}> ()
    scores = Max (biased, floor)
    row_max = ReduceMax <keepdims = 1> (scores, q_last)
    margin_long = Constant <value_int: int = @margin> ()
    margin_int = Cast <to = 6> (margin_long)
    above = GreaterOrEqual (scores, margin_int)
    near_limit = Sub (row_max, margin_int)
    near = GreaterOrEqual (scores, near_limit)
    gap = Sub (row_max, scores)
    gap_long = Cast <to = 7> (gap)
    reach = Shape (sums)
    one_long = Constant <value = int64 {1}> ()
    reach_last = Sub (reach, one_long)
    place = Min (gap_long, reach_last)
    weights = Gather (sums, place)
    total = ReduceSum <keepdims = 1> (weights, q_last)
    own = Gather (limits, place)
    likely = Greater (own, total)
    mode_long = Constant <value_int: int = @mode> ()
    is_near = Equal (mode_long, one_long)
    two_long = Constant <value = int64 {2}> ()
    is_likely = Equal (mode_long, two_long)
    not_near = Not (is_near)
    not_likely = Not (is_likely)
    by_row = And (near, is_near)
    by_limit = And (above, not_near)
    by_margin = Or (by_row, by_limit)
    by_score = And (by_margin, not_likely)
    by_share = And (likely, is_likely)
    chosen = Or (by_score, by_share)
    chosen_float = Cast <to = 1> (chosen)
    keys_shape = Shape (chosen)
    keys = Gather (keys_shape, q_last)
    axis_first = Constant <value_ints = [0]> ()
    v_kept = Slice (v_float, axis_first, keys, v_last)
    context = Einsum <equation = "...mn,...dn->...md"> (chosen_float, v_kept)
    y = Cast <to = 6> (context)
    """
    )
    kernel = "attention:binary_attention"
    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Both products."""
        keys = inputs[1].shape[-2]
        rows = int(np.prod(output.shape[:-1]))
        return rows * keys * (int(attrs["size"]) + output.shape[-1])

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """Any integer up to the number of keys."""
        keys = inputs[1].shape[-2]
        return -keys, keys, 1

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., M, D]``."""
        q, k, v, bias, sums, limits = inputs
        rank = len(q.shape)
        if any(x.dtype != np.uint8 for x in (q, k, v)) or bias.dtype != np.int32 or rank < 2:
            raise ValueError(f"q, k and v must be uint8 and bias int32, are {q}, {k}, {v} and {bias}")
        if any(len(x.shape) != rank for x in (k, v, bias)) or not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
            raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} and bias {bias.shape} do not fit")
        keys = k.shape[-2]
        fits = q.shape[-1] == k.shape[-1] and v.shape[-1] == packed_bytes(keys) and bias.shape[-1] == keys
        fits &= all(size in (1, whole) for size, whole in zip(bias.shape[:-1], q.shape[:-1], strict=True))
        if not fits or not 0 < attrs["size"] <= 8 * q.shape[-1] or attrs["mode"] not in (0, 1, 2):
            raise ValueError(
                f"q {q.shape}, k {k.shape}, v {v.shape}, bias {bias.shape}, size={attrs['size']} and mode={attrs['mode']} "
                "do not fit"
            )
        if abs(attrs["margin"]) >= -FLOOR:
            raise ValueError(f"margin {attrs['margin']} must be below 2^24 in magnitude")
        if sums.dtype != np.int64 or limits != sums or len(sums.shape) != 1:
            raise ValueError(f"sums and limits must be int64 of one length, are {sums} and {limits}")
        return TensorType((*q.shape[:-1], v.shape[-2]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        q, k, v, bias, sums, limits = inputs
        cls.infer([TensorType.of(x) for x in inputs], attrs)
        count = 8 * q.shape[-1]
        dots = np.einsum("...md,...nd->...mn", to_signs(q, count), to_signs(k, count), dtype=np.int64)
        scores = np.maximum(dots - (count - attrs["size"]) + bias, FLOOR)
        largest = scores.max(-1, keepdims=True)
        if attrs["mode"] == 2:
            place = np.minimum(largest - scores, len(sums) - 1)
            chosen = limits[place] > sums[place].sum(-1, keepdims=True)
        else:
            chosen = scores >= attrs["margin"] + (largest - 2 * attrs["margin"] if attrs["mode"] else 0)
        values = to_signs(v, k.shape[-2])
        return np.einsum("...mn,...dn->...md", chosen.astype(np.int32), values, dtype=np.int32)
