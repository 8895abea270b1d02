"""Errors in settings as one sentence that names the file, the key and the cure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from vexkd.errors import InputError
from vexkd.settings.base import Strict, blocks_of

Block = TypeVar("Block", bound=Strict)


def validated(block: type[Block], values: Any, path: str, where: str = "") -> Block:
    """A block of settings from plain values. Raises InputError with the first problem that pydantic finds.

    path: the file that was read; where: the key in it that holds these values.
    """
    try:
        return block.model_validate(values)
    except ValidationError as error:
        # A misspelt key explains a missing one, so it comes first.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        location = ".".join(str(part) for part in ([where] if where else []) + list(first["loc"]))
        raise InputError(f"{': '.join(filter(None, (path, location)))}: {_sentence(first, block)}.") from None


def refuse_unknown(values: dict[str, Any], known: Iterable[str], path: str, where: str = "") -> None:
    """Raises InputError for a key that is none of the known ones."""
    for key in values:
        if key not in known:
            full = f"{where}.{key}" if where else str(key)
            raise InputError(f"{path}: {full}: there is no such setting{nearest(str(key), known)}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """How a sentence about an unknown name ends: with the known name that is most like it, or with all if they are few."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; the nearest known one is '{close[0]}'"
    listed = sorted(known)
    return f"; known are {', '.join(listed)}" if 0 < len(listed) <= 20 else ""


def _sentence(error: dict[str, Any], block: type[Strict]) -> str:
    """One of pydantic's errors in the words of this project."""
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return "there is no such setting" + nearest(str(error["loc"][-1]), _keys_at(block, error["loc"][:-1]))
    if error["type"] == "missing":
        return "the setting is missing; add it"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        return f"'{value}' is text to YAML, not a number; write {mantissa}.0e{exponent}"
    return f"{value!r} does not fit: {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys_at(block: type[Strict], location: tuple[Any, ...]) -> list[str]:
    """The keys of the block that stands at `location` in another; none where that is unclear."""
    for part in location:
        field = block.model_fields.get(str(part))
        inner = blocks_of(field) if field is not None else []
        if not inner:
            return []
        block = inner[0]
    return [field.alias or name for name, field in block.model_fields.items()]
