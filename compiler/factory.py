"""From the command line's words to a torch module: the factory that makes it, and the file that holds its weights."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExportError
from .golden import one_line

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the weights in a checkpoint."""


def require_torch() -> Any:
    """The ``torch`` module. Raises ``ExportError`` that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise ExportError(f"export needs PyTorch ({one_line(error)}): pip install 'xnorc[torch]'") from error
    return torch


def load_factory(spec: str) -> Callable[[], torch.nn.Module]:
    """What makes the module: ``"package.module:name"`` or ``"path/to/file.py:name"``.

    ``name`` may be a function or class that needs no argument, or a module object. The code named is run: it is the
    user's own. Raises ``ExportError`` when it cannot be imported or has no such name.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ExportError(f"'{spec}' does not name a factory: write module:function or file.py:function")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ExportError(f"'{place}' has no '{name}'")
        found = getattr(found, part)
    module_type = require_torch().nn.Module
    if isinstance(found, module_type):
        return lambda: found
    if not callable(found):
        raise ExportError(f"'{spec}' is a {type(found).__name__}, not a function that makes a torch module")

    def make() -> torch.nn.Module:
        try:
            made = found()
        except Exception as error:  # whatever the user's own code raises
            raise ExportError(f"'{spec}' failed: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(made, module_type):
            raise ExportError(f"'{spec}' gave a {type(made).__name__}, not a torch module")
        return made

    return make


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ExportError(f"there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(f"xnorc_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ExportError(f"cannot import '{path}'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up there
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise ExportError(f"cannot import '{path}': {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove(folder)
    return module


def _import_module(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise ExportError(f"cannot import '{name}': {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove(here)


def load_weights(module: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a state dict (``.safetensors``, or what ``torch.save`` wrote) into ``module``. No pickled code is ever run.

    A checkpoint may hold the state dict under a usual key (``state_dict``, ``model``, …), and its names may start with
    ``module.`` (DataParallel). Raises ``ExportError`` with one line when the file or its keys do not fit.
    """
    require_torch()
    state = _unwrap(_read_state(Path(path)), Path(path))
    own = module.state_dict()
    missing, unexpected = [key for key in own if key not in state], [key for key in state if key not in own]
    problems = []
    if missing:
        problems.append(f"missing {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected {_some(unexpected)}")
    wrong = [key for key in state if key in own and tuple(own[key].shape) != tuple(state[key].shape)]
    if wrong:
        first = wrong[0]
        problems.append(f"'{first}' has shape {list(state[first].shape)} where the module has {list(own[first].shape)}")
    if problems:
        raise ExportError(f"weights '{path}' do not fit the module: {'; '.join(problems)}")
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ExportError(f"weights '{path}' do not fit the module: {one_line(error)}") from error


def _read_state(path: Path) -> object:
    if not path.is_file():
        raise ExportError(f"there is no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ExportError(f"reading '{path}' needs safetensors: pip install 'xnorc[torch]'") from error
    except Exception as error:  # pickle, zip, struct and safetensors each raise their own
        text = one_line(error)
        if "weights_only" in str(error) or "Unsupported" in text:
            raise ExportError(
                f"'{path}' holds more than tensors (a pickle that could run code), which xnorc never loads: "
                f"save module.state_dict() instead"
            ) from error
        raise ExportError(f"cannot read weights '{path}': {text}") from error


def _unwrap(state: object, path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    for key in _WRAPPERS:
        inner = state.get(key) if isinstance(state, Mapping) else None
        if isinstance(inner, Mapping):
            state = inner
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ExportError(f"'{path}' does not hold a state dict (a mapping of names to tensors)")
    named = {str(key): value for key, value in state.items()}
    if all(key.startswith("module.") for key in named):
        named = {key[len("module.") :]: value for key, value in named.items()}
    return named


def _some(names: list[str], shown: int = 3) -> str:
    text = ", ".join(f"'{name}'" for name in names[:shown])
    return text + (f" and {len(names) - shown} more" if len(names) > shown else "")
