"""Cases of the fixed-point operators: every rounding and every overflow, on ties, ends of ranges and tiny values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case


def fixed_attrs(width: int, signed: bool, rounding: int, overflow: int, to: int | None = None) -> dict[str, int]:
    kind = to if to is not None else (3 if signed else 2) if width <= 8 else 6
    return {"width": width, "signed": int(signed), "rounding": rounding, "overflow": overflow, "to": kind}


def grid(fraction: int) -> np.ndarray:
    """Multiples of a quarter of a step around zero and around the ends of 8 bits, and values just off them."""
    steps = np.concatenate([np.arange(-24, 25), 4 * np.array([127, 128, 129, 255, 256, 384]) + np.arange(-3, 3)])
    steps = np.concatenate([steps, -steps]) / 4
    near = np.nextafter(steps.astype(np.float32), np.float32(np.inf))
    odd = np.array([1e-40, -1e-40, 1e-10, -1e-10, 0.49999997, -0.49999997, 1e30, -1e30, 8388609.0, -0.0], np.float32)
    return np.ldexp(np.concatenate([steps.astype(np.float32), near, odd]), -fraction).astype(np.float32)


def cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for rounding in range(7):
        for overflow in (rounding % 4, (rounding + 1) % 4):
            fraction, signed = (0, 5, -2, 3)[(rounding + overflow) % 4], (rounding + overflow) % 3 != 0
            attrs = fixed_attrs(8, signed, rounding, overflow)
            yield "FixedQuantize", {"fraction": fraction, **attrs}, [grid(fraction)]
            if overflow != rounding % 4:
                continue
            v = np.concatenate([np.arange(-70, 70), rng.integers(-9000, 9000, 60)]).astype(np.int32).reshape(-1, 20)
            mul = rng.integers(-3, 4, 20).astype(np.int32)
            add = rng.integers(-9, 9, 20).astype(np.int32)
            yield "FixedRescale", {"shift": 1 + (rounding + overflow) % 5, **attrs}, [v, mul, add]
    x = (rng.standard_normal((2, 33, 40)) * 300).astype(np.float32)
    yield "FixedQuantize", {"fraction": 7, **fixed_attrs(16, True, 1, 1)}, [x]
    yield "FixedQuantize", {"fraction": 12, **fixed_attrs(24, True, 6, 0)}, [x]
    yield "FixedQuantize", {"fraction": 4, **fixed_attrs(1, False, 1, 1)}, [x[0, :, :3]]
    wide = rng.integers(-(1 << 30), 1 << 30, (3, 5, 37)).astype(np.int32)
    one = np.array([1], np.int32)
    yield "FixedRescale", {"shift": 15, **fixed_attrs(16, True, 1, 1)}, [wide, one, np.array([77], np.int32)]
    yield "FixedRescale", {"shift": 31, **fixed_attrs(2, True, 6, 1)}, [wide * 2, one, 0 * one]
    yield "FixedRescale", {"shift": 0, **fixed_attrs(8, True, 3, 1)}, [wide >> 20, 2 * one, one]
    many = rng.integers(-30000, 30000, (2, 40, 40, 24)).astype(np.int32)
    scale = rng.integers(-200, 200, 24).astype(np.int32)
    yield "FixedRescale", {"shift": 9, **fixed_attrs(8, False, 1, 1)}, [many, scale, scale * 17]
