"""Data sets as arrays: samples along the first axis, cut into what one run of the model takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .errors import InputError


def split(data: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``data`` as ``[runs, *shape]`` for every input, where ``like`` gives each input's shape and dtype.

    An array may have the leading axis already, be one single input, or count samples along a batch axis of 1
    (``[60000, 1, 28, 28]`` for a model that takes ``[1, 1, 28, 28]``). Arrays that ``like`` does not name are left out.
    Raises ``InputError`` when an input is missing, does not fit, or two inputs have different numbers of runs.
    """
    out: dict[str, np.ndarray] = {}
    for name, example in like.items():
        shape = example.shape
        if name not in data:
            raise InputError(f"the data have no array '{name}': the model's inputs are {', '.join(like)}")
        value = np.asarray(data[name])
        wanted = f"{example.dtype} {list(shape)}, with or without a leading axis of samples"
        if value.dtype != example.dtype:
            raise InputError(f"array '{name}' is {value.dtype}, the model wants {wanted}")
        if value.shape[1:] == shape and value.ndim == len(shape) + 1:
            out[name] = value
        elif value.shape == shape:
            out[name] = value[None]
        elif shape[:1] == (1,) and value.ndim == len(shape) and value.shape[1:] == shape[1:]:
            out[name] = value[:, None]
        else:
            raise InputError(f"array '{name}' has shape {list(value.shape)}, the model wants {wanted}")
    counts = {name: len(value) for name, value in out.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs have different numbers of samples: {counts}")
    return out
