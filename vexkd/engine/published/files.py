"""Files of tensors as others publish them: safetensors, or torch's own with nothing but tensors inside."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vexkd.errors import InputError

# How torch's files begin: a zip archive, before torch 1.6 a pickle.
_BEGINNINGS = (b"PK\x03\x04", b"\x80")
# Where trainers put the tensors among other things, as far as these are plain values.
_INSIDE = ("state_dict", "model", "module")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file by name, on the CPU, numbers in float32. Nothing in the file is executed."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; name the checkpoint that you downloaded.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    for key in _INSIDE:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path}: there are no tensors in it, nor in its {', '.join(_INSIDE)}; name another file.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


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
        f"import torch; c = torch.load({path.name!r}, map_location='cpu'); c = c.get('state_dict', c); "
        f"torch.save({{k: v for k, v in c.items() if torch.is_tensor(v)}}, {path.stem + '-tensors.pth'!r})"
    )
    return f"python -c {shlex.quote(program)}"
