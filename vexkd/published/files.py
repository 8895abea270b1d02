"""Files of tensors as others publish them: safetensors, or torch's own with nothing but tensors inside."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vexkd.errors import InputError

# How torch's files begin: a zip archive, before torch 1.6 a pickle.
_BEGINNINGS = (b"PK\x03\x04", b"\x80")
# Where trainers put the tensors among other things, as far as these are plain values.
_INSIDE = ("state_dict", "model", "module")
# Where they put a second set of the same weights, one of the two a moving average of the other.
_SECOND = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema_state", "ema")
# In front of a tensor's name where both sets stand in one mapping; mmcv's hook has underscores for all dots behind it.
_PREFIXES = ("ema_model.", "model_ema.", "ema.", "ema_")

Kept = Literal["raw", "averaged"]


def read(path: Path, weights: Kept | None = None) -> dict[str, Tensor]:
    """The tensors of a published file by name, on the CPU, numbers in float32. Nothing in the file is executed.

    weights: which set is wanted of a file that holds the raw weights and their moving average. Raises InputError where
    both are there and none was named, or where the named one is not.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; name the checkpoint that you downloaded.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    content = _one_set(content, path, weights)
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path}: there are no tensors in it, nor in its {', '.join(_INSIDE)}; name another file.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _one_set(content: Mapping[str, Any], path: Path, weights: Kept | None) -> Mapping[str, Any]:
    """The weights, or of two sets the one that is wanted.

    mmengine's and mmcv's hooks exchange the two when they save: what is called `ema` is the raw one there.
    """
    first = next((content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)), content)
    name = next((key for key in _SECOND if isinstance(content.get(key), Mapping) and content[key]), None)
    if name is not None:
        second = content[name]
        exchanged = name == "ema_state_dict" and ("message_hub" in content or "steps" in second)
    else:
        name = next((prefix for prefix in _PREFIXES if _is_second(prefix, first)), None)
        if name is None:
            if weights == "averaged":
                raise InputError(
                    f"{path}: it holds one set of weights, and none is called an average; leave out --weights."
                )
            return first
        exchanged = name == "ema_"
        second = {key.removeprefix(name): value for key, value in first.items() if key.startswith(name)}
        first = {key: value for key, value in first.items() if not key.startswith(name)}
        if exchanged:  # with underscores for dots
            second = {key: second[key.replace(".", "_")] for key in first if key.replace(".", "_") in second}
    if weights is None:
        raise InputError(
            f"{path}: it holds raw weights and their moving average (`{name}` is the {'raw' if exchanged else 'averaged'}"
            " set); say which with --weights raw or --weights averaged."
        )
    return second if (weights == "averaged") != exchanged else first


def _is_second(prefix: str, tensors: Mapping[str, Any]) -> bool:
    """Whether most tensors stand a second time, behind this prefix."""
    names = [str(name) for name in tensors]
    plain = [name for name in names if not name.startswith(prefix)]
    behind = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    again = sum(name in behind or name.replace(".", "_") in behind for name in plain)
    return bool(plain) and 2 * again > len(plain)


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: this is not a whole safetensors file ({error}); download it again.") from None


def _torch(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as stream:
        beginning = stream.read(16)
    if beginning and not beginning.startswith(_BEGINNINGS):  # a web page that asks for a login, for instance
        raise InputError(f"{path}: this is no file of torch's, it begins with {beginning!r}; download it again.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a refusal has a type of its own, damage has many
        if "Weights only load failed" not in str(error):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: torch cannot read it ({reason}); download it again.") from None
        raise InputError(
            f"{path}: the file holds more than tensors, and loading that could run any code, so it is refused; where you "
            f"trust it, keep its tensors alone where it was trained: {_snippet(path)}"
        ) from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: it holds a {type(content).__name__}, not tensors by name; name another file.")
    return content


def _snippet(path: Path) -> str:
    """A line of shell that rewrites a checkpoint as tensors alone; to be run where its own classes can be imported.

    That is the environment it was trained in, whose torch may be too old to know `weights_only`.
    """
    program = (
        f"import torch; c = torch.load({path.name!r}, map_location='cpu'); "
        "only = lambda d: {k: only(v) if hasattr(v, 'items') else v for k, v in d.items() "
        "if torch.is_tensor(v) or hasattr(v, 'items')}; "
        f"torch.save(only(c), {path.stem + '-tensors.pth'!r})"
    )
    return f"python -c {shlex.quote(program)}"
