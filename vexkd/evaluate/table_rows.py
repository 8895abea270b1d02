"""nuScenes' tables as typed rows, decoded in blocks: the columns that scoring needs, at close to the disk's rate.

`vexkd.data.tables` checks every column of a row and takes microseconds for each. Here msgspec decodes whole blocks of a
table into structs and skips the columns that no struct names. Whatever msgspec refuses is read again by
`vexkd.data.tables`, which knows what to say about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from vexkd.data import tables

Row = TypeVar("Row", bound=msgspec.Struct)
_BLOCK = 1 << 23  # bytes read at a time
_BETWEEN_ROWS = re.compile(rb"\}\s*,\s*\{")


def blocks(root: Path, version: str, table: str, kind: type[Row]) -> Iterator[list[Row]]:
    """The rows of a table in file order, some thousands at a time, as structs of `kind`.

    Raises InputError, as `tables.rows` does, for a table that is missing, cut, or lacks a column.
    """
    count = 0
    try:
        for rows in _fast(tables.path_of(root, version, table), kind):
            count += len(rows)
            yield rows
    except (msgspec.MsgspecError, OSError):
        yield list(_slow(root, version, table, kind, count))


def _fast(path: Path, kind: type[Row]) -> Iterator[list[Row]]:
    """Blocks of a table that is a plain list of objects; whatever else it is raises msgspec's error."""
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    with path.open("rb") as stream:
        pending = stream.read(_BLOCK).lstrip()
        if not pending.startswith(b"["):
            raise msgspec.DecodeError("no list")
        pending = pending[1:]
        while block := stream.read(_BLOCK):
            head, tail = _cut(pending)
            rows = _decode_head(decoder, head) if head else None
            if rows is None:  # the cut lay inside a text, or no row has ended yet
                pending += block
                continue
            yield rows
            pending = tail + block
    yield decoder.decode(b"[" + pending)


def _decode_head(decoder: msgspec.json.Decoder[list[Row]], head: bytes) -> list[Row] | None:
    """The rows of a head; None if it is not whole rows. What decodes as a list ends where a row does."""
    try:
        return decoder.decode(b"[" + head + b"]")
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return None


def _cut(pending: bytes) -> tuple[bytes, bytes]:
    """Text before and after the last comma between two rows; an empty head where there is none."""
    start = len(pending)
    while (start := pending.rfind(b"}", 0, start)) >= 0:
        match = _BETWEEN_ROWS.match(pending, start)
        if match:
            return pending[: start + 1], pending[match.end() - 1 :]
    return b"", pending


def _slow(root: Path, version: str, table: str, kind: type[Row], done: int) -> Iterator[Row]:
    """The rows after the first `done`, by the reader that explains what is wrong."""
    for number, row in enumerate(tables.rows(root, version, table)):
        if number >= done:
            yield msgspec.json.decode(msgspec.json.encode(row), type=kind)
