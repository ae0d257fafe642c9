"""``BinaryConv``: a product whose rows are windows of a feature map, with borders and groups."""

from __future__ import annotations

import numpy as np

from ...opset import pack_bits, unpack_bits
from ..kernel import Kernel, KernelCall
from . import depthwise
from .common import constant_input
from .product import CHANNELS, Gather, Product, make


def border_classes(
    size: int, count: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: which taps fall inside the input, ``bool [classes, kernel]``, and each output's class."""
    at = np.arange(count)[:, None] * stride - before + np.arange(kernel)[None, :] * dilation
    inside, which = np.unique((at >= 0) & (at < size), axis=0, return_inverse=True)
    return inside, which.reshape(-1)


def segments_of(channels: int, out: int, group: int) -> tuple[list[int], int]:
    """The bytes that blocks of 8 output channels read of every position: each segment's first byte, and their number.

    Blocks that lie inside one group share its segment; otherwise every block is a segment, which covers the groups that
    its channels belong to.
    """
    size, each, every = -(-channels // 8), out // group, channels // group
    if group == 1:
        return [0], size
    if each % CHANNELS == 0:
        spans = [(g, g) for g in range(group)]
    else:
        spans = [(o // each, min(o + CHANNELS - 1, out - 1) // each) for o in range(0, out, CHANNELS)]
    covers = [(first * every // 8, ((last + 1) * every - 1) // 8 + 1) for first, last in spans]
    window = max(end - start for start, end in covers)
    return [min(start, size - window) for start, _ in covers], window


def widen(
    weights: np.ndarray, channels: int, group: int, segments: list[int], window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[O, KH, KW, bytes]`` of the groups, placed in their segment's window, and the masks of what counts.

    Both are ``uint8 [8·blocks, taps·window]``.
    """
    out, kh, kw, _ = weights.shape
    every = channels // group
    blocks = -(-out // CHANNELS)
    bits = unpack_bits(weights, every).reshape(out, kh * kw, every)
    wide = np.zeros((blocks * CHANNELS, kh * kw, window * 8), bool)
    mask = np.zeros_like(wide)
    for o in range(out):
        start = segments[o // CHANNELS // (blocks // len(segments))] * 8
        first = o // (out // group) * every - start
        wide[o, :, first : first + every] = bits[o]
        mask[o, :, first : first + every] = True
    return pack_bits(wide).reshape(len(wide), -1), pack_bits(mask).reshape(len(wide), -1)


def binary_conv(call: KernelCall) -> Kernel:
    """``BinaryConv`` with its epilogue."""
    weights = constant_input(call, 1, "the weights")
    attrs = call.attrs
    channels, group, pad_value = int(attrs["channels"]), int(attrs["group"]), int(attrs["pad_value"])
    (sh, sw), (dh, dw), pads = attrs["strides"], attrs["dilations"], tuple(attrs["pads"])
    images, height, width, size = call.inputs[0].shape
    out, kh, kw, _ = weights.shape
    out_height = (height + pads[0] + pads[2] - dh * (kh - 1) - 1) // sh + 1
    out_width = (width + pads[1] + pads[3] - dw * (kw - 1) - 1) // sw + 1

    segments, window = segments_of(channels, out, group)
    wide, masks = widen(weights, channels, group, segments, window)
    every = channels // group
    ones = np.bitwise_count(wide).reshape(len(wide), kh * kw, window).sum(-1, dtype=np.int32)

    row_inside, row_class = border_classes(height, out_height, kh, sh, dh, pads[0])
    column_inside, column_class = border_classes(width, out_width, kw, sw, dw, pads[1])
    if pad_value:  # a padded position is a sign like any other
        corrections = np.full((1, len(wide)), every * kh * kw, np.int32)
    else:
        inside = (row_inside[:, None, :, None] & column_inside[None, :, None, :]).reshape(-1, kh * kw).astype(np.int32)
        corrections = inside.sum(1, keepdims=True) * every + 2 * (1 - inside) @ ones.T
    # With one group, bits outside the mask are the zero bits past the last channel.
    needs_mask = group > 1 and not (every % 8 == 0 and window * 8 == every)
    product = Product(
        images=images,
        pixels=out_height * out_width,
        gather=Gather(
            height=height,
            width=width,
            bytes=size,
            out_width=out_width,
            kernel=(kh, kw),
            strides=(sh, sw),
            dilations=(dh, dw),
            pads=pads,
            fill=pack_bits(np.ones(channels)) if pad_value > 0 and any(pads) else None,
            row_class=row_class if not pad_value else None,
            column_class=column_class if not pad_value else None,
        ),
        window=window,
        segments=segments,
        weights=wide,
        masks=masks if needs_mask else None,
        corrections=corrections.astype(np.int32),
        bits=every * kh * kw,
    )
    return depthwise.make(call, product) if depthwise.suits(call) else make(call, product)
