"""A prepared artifact of two files: one memory-mapped array, and a Parquet index whose metadata say what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vexkd.errors import InputError


def open_indexed(
    directory: Path, array: str, *, schema: int, key: str, name: str, cure: str, plural: bool = False
) -> tuple[np.ndarray, pa.Table, dict[str, Any]]:
    """The array, still on disk, the index, and what its metadata hold under `key`.

    name, cure, plural: what errors call the artifact, and what they say to do. Raises InputError if one of the two files is
    missing or damaged, or the index has another schema.
    """
    try:
        index = pq.read_table(directory / "index.parquet", page_checksum_verification=True)
        values = np.load(directory / array, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        are = "are" if plural else "is"
        raise InputError(f"{name} {directory} {are} missing or damaged ({reason}): {cure}.") from None
    metadata = index.schema.metadata or {}
    if metadata.get(b"vexkd.schema") != str(schema).encode():
        have = "have" if plural else "has"
        raise InputError(f"{name} {directory} {have} another schema than {schema}: {cure}.")
    return values, index, json.loads(metadata[key.encode()])
