"""Judging one sample: where two runs of a model first part, and whether rounding accounts for it.

A binary network amplifies rounding: a value within its error bound of zero may take either sign, and one flipped sign
changes everything after it. So runs are compared in order. Until the first flip, integers must be equal and floats within
their bounds; the first flips must be of values that the bound leaves open; what follows a flip is its consequence.

Between a device and the packed model both runs are evaluations of one formula: floats may be ``2 e`` apart. Between the
packed model and the original there are two formulas, each with its own bound: ``e_packed + e_original`` (``bounds``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bounds import Error
from .compare import Difference, compare_bits, compare_floats, compare_integers
from .reference import References


@dataclass(frozen=True)
class Golden:
    """All that is known of one sample before a device has run it."""

    feeds: dict[str, np.ndarray]
    original: dict[str, np.ndarray]
    packed: dict[str, np.ndarray]
    errors: dict[str, Error]
    """Of the packed model."""
    open_bits: dict[str, np.ndarray]
    original_errors: dict[str, Error]

    @staticmethod
    def of(references: References, feeds: Mapping[str, np.ndarray]) -> Golden:
        """Run both references and the error analysis."""
        packed = references.packed_tensors(feeds)
        errors, open_bits = references.analysis.run(packed)
        original = references.original_tensors(feeds)
        return Golden(dict(feeds), original, packed, errors, open_bits, references.original_errors(original))

    def between(self, tensor: str) -> Error:
        """How far apart a tensor of both models may be."""
        return np.asarray(self.errors.get(tensor, 0.0)) + self.original_errors.get(tensor, 0.0)


@dataclass(frozen=True)
class Verdict:
    """``ok``: nothing without a reason was seen. ``flip``: which signs flipped first, in words, or None."""

    ok: bool
    flip: str | None = None
    problem: str = ""
    tensor: str = ""


def compare_tensor(
    references: References, tensor: str, expected: np.ndarray, actual: np.ndarray, error: Error,
    open_bits: np.ndarray | None,
) -> Difference:  # fmt: skip
    """Compare a tensor of the packed model by what it holds: bits, integers, or floats within twice ``error``."""
    if expected.dtype == np.uint8:
        channels = references.channels.get(tensor, 8 * expected.shape[-1] if expected.ndim else 8)
        return compare_bits(np.atleast_1d(expected), np.atleast_1d(actual), channels, open_bits)
    if expected.dtype.kind == "f" or np.any(error):  # integers have an error only where a rounding to integers is open
        return compare_floats(expected, actual, 2 * np.asarray(error))
    return compare_integers(expected, actual)


def judge_device(
    references: References, golden: Golden, steps: Sequence[tuple[str, Sequence[str]]], trace: Mapping[str, np.ndarray]
) -> Verdict:
    """A trace of the device against the packed model. ``steps``: name and written tensors; ``trace``: tensor → value."""
    for step, writes in steps:
        for tensor in writes:
            expected = golden.packed[tensor].reshape(trace[tensor].shape)
            error = np.broadcast_to(golden.errors.get(tensor, 0.0), golden.packed[tensor].shape).reshape(expected.shape)
            mask = golden.open_bits.get(tensor)
            found = compare_tensor(references, tensor, expected, trace[tensor], error, mask)
            if not found.ok:
                size = f", by up to {found.max_error:.3g}" if expected.dtype.kind == "f" else ""
                text = f"{found.outside} of {found.compared} values of '{tensor}' (layer '{step}') differ{size}, "
                return Verdict(False, None, text + "and no sign had flipped before", tensor)
            if found.differing and (expected.dtype == np.uint8 or _is_sign(references, tensor)):
                return Verdict(True, _flip(found.differing, tensor))
    return Verdict(True)


def judge_passes(references: References, golden: Golden) -> Verdict:
    """The packed model against the original, both in ONNX Runtime."""
    origins = {origin.packed: origin for origin in references.origins}
    shared = set(references.shared)
    for tensor in references.tensors:
        if tensor in origins:
            origin = origins[tensor]
            packed = golden.packed[tensor]
            flips, where = references.flips(origin, packed, golden.original)
            lost = references.lost_zeros(origin, golden.packed, golden.original)
            given = (golden.original, golden.original_errors, golden.errors)
            is_open = references.open_bits(origin, *given, packed)
            if is_open is None:
                is_open = golden.open_bits.get(tensor, np.zeros_like(packed))
            if (where & ~is_open).any():
                what = "bits" if origin.levels is None else "levels"
                text = f"{flips.flips} {what} of '{tensor}' are not the {'signs' if what == 'bits' else what} of "
                text += f"'{origin.tensor}' of the original model"
                return Verdict(False, None, f"{text}, by a margin of up to {flips.max_margin:.3g}", tensor)
            if (lost & ~is_open).any():
                count = int(np.bitwise_count(lost).sum())
                return Verdict(False, None, f"{count} zeros of '{origin.tensor}' are not in '{tensor}'", tensor)
            changed = int(np.bitwise_count(where | lost).sum())
            if changed:
                return Verdict(True, _flip(changed, tensor))
        elif tensor in references.kept_levels:
            levels = references.kept_levels[tensor]
            expected, found_levels = levels.of_values(golden.original[tensor]), levels.of_values(golden.packed[tensor])
            ends = references.open_levels(levels, golden.original, golden.original_errors, golden.errors)
            differing = expected != found_levels
            if ends is not None:
                beyond = differing & ((found_levels < ends[0]) | (found_levels > ends[1]))
            else:
                beyond = differing & ~(np.broadcast_to(golden.errors.get(tensor, 0.0), differing.shape) > 0)
            if beyond.any():
                text = f"{int(beyond.sum())} levels of '{tensor}' are not those of the original model"
                return Verdict(False, None, text, tensor)
            if differing.any():
                return Verdict(True, _flip(int(differing.sum()), tensor))
        elif tensor in references.signs:
            expected, actual = golden.original[tensor], golden.packed[tensor]
            differing = expected != actual
            errors = (golden.original_errors, golden.errors)
            free = references.open_signs(references.signs[tensor], golden.original, *errors, expected.shape)
            if (differing if free is None else differing & ~free).any():
                count = int(differing.sum())
                text = f"{count} sign{'s' if count > 1 else ''} of '{tensor}' differ from the original model"
                return Verdict(False, None, text, tensor)
            if differing.any():
                return Verdict(True, _flip(int(differing.sum()), tensor))
        elif tensor in shared:
            expected, actual = golden.original[tensor], golden.packed[tensor]
            if expected.shape != actual.shape or expected.dtype != actual.dtype or actual.dtype.kind != "f":
                continue
            found = compare_floats(expected, actual, golden.between(tensor))
            if not found.ok:
                text = f"'{tensor}' of the packed model is off by up to {found.max_error:.3g}"
                return Verdict(False, None, f"{text} (bound {found.bound:.3g})", tensor)
    return Verdict(True)


def is_tie(golden: Golden, output: str, expected: int, got: int) -> bool:
    """Whether two entries of an output are closer than rounding can tell apart.

    The original is within ``between`` of the packed model, the device within ``2 e``: entries that one of them orders
    otherwise are no farther apart in the packed model than the larger of the two, for both entries.
    """
    values = golden.packed[output].reshape(-1).astype(np.float64)
    apart = np.maximum(golden.between(output), 2 * np.asarray(golden.errors.get(output, 0.0)))
    errors = np.broadcast_to(apart, golden.packed[output].shape).reshape(-1)
    return bool(abs(values[expected] - values[got]) <= errors[expected] + errors[got])


def _is_sign(references: References, tensor: str) -> bool:
    node: Any = references.packed.producer.get(tensor)
    return node is not None and node.op_type in ("Binarize", "Quantize", "QuantizeMap", "QuantizeRows")


def _flip(count: int, tensor: str) -> str:
    return f"{count} sign{'s' if count > 1 else ''} of '{tensor}' flipped, within the error bound of what they are taken of"
