"""Cases of products of two computed matrices: 8-bit integers, and powers of two by shifts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case


def cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)

    def bytes_of(dtype: str, *shape: int) -> np.ndarray:
        kind = np.iinfo(dtype)
        return rng.integers(kind.min, kind.max + 1, shape).astype(dtype)

    yield "IntegerMatMul", {}, [bytes_of("int8", 2, 3, 5, 24), bytes_of("int8", 2, 3, 24, 17)]
    yield "IntegerMatMul", {}, [bytes_of("uint8", 1, 9), bytes_of("int8", 9, 3)]
    yield "IntegerMatMul", {}, [bytes_of("int8", 1, 40, 64), bytes_of("uint8", 1, 64, 40)]
    codes = rng.integers(0, 16, (1, 2, 17, 17)).astype(np.uint8)
    yield "ShiftMatMul", {"shifts": list(range(15, -1, -1))}, [codes, bytes_of("int8", 1, 2, 17, 16)]
    odd = [-1 if n % 2 else 8 - n // 2 for n in range(16)]
    yield "ShiftMatMul", {"shifts": odd}, [codes, bytes_of("int8", 1, 2, 17, 20)]
    yield "ShiftMatMul", {"shifts": [4, -1, 0]}, [bytes_of("uint8", 6, 7), bytes_of("uint8", 7, 5)]
    limits = np.sort(np.exp2(-np.arange(15) - 0.5).astype(np.float32))
    around = np.concatenate([limits, np.nextafter(limits, np.float32(0)), np.nextafter(limits, np.float32(9))])
    yield "StepCode", {}, [np.concatenate([around, np.array([0, -0.0, 1, 1e-40], np.float32)]), limits]
    yield "StepCode", {}, [rng.random((1, 2, 33, 33)).astype(np.float32), np.linspace(0, 1, 255, dtype=np.float32)]
    yield "StepCode", {}, [rng.standard_normal((3, 5)).astype(np.float32), np.array([0], np.float32)]
