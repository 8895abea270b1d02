"""The manifest of a data set: path, bytes and SHA-256 of each file that was found whole, in one Parquet file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vexkd import provenance
from vexkd.errors import InputError

SCHEMA = 1
EVERYTHING = {"splits": None, "sensors": None, "unused": True}  # what a full check covers


class Found(NamedTuple):
    """What was found of a file: bytes, SHA-256 (empty if unread), and the problem in one line (empty if none)."""

    path: str
    bytes: int
    sha256: str
    problem: str


def write_manifest(
    path: Path,
    version: str,
    found: list[Found],
    *,
    covers: dict[str, Any] | None = None,
    keep: dict[str, tuple[int, str]] | None = None,
) -> None:
    """Write the manifest: Parquet with path (relative to the root), bytes, sha256, sorted by path; no times.

    covers: the splits and sensors that were looked at (None: all of them), in the metadata `vexkd.covers`. keep: files of
    an earlier manifest, which stay in it where they were not looked at now.
    """
    kept = {name: Found(name, size, sha256, "") for name, (size, sha256) in (keep or {}).items()}
    files = kept | {file.path: file for file in found}
    unique = sorted({(f.path, f.bytes, f.sha256) for f in files.values()})
    lines = "".join(f"{sha256} {size} {name}\n" for name, size, sha256 in unique)
    metadata = {
        "vexkd.schema": str(SCHEMA),
        "vexkd.version": version,
        "vexkd.covers": json.dumps(covers or EVERYTHING, sort_keys=True),
        "vexkd.tables": _tables_digest(version, unique),
        "vexkd.digest": hashlib.sha256(lines.encode()).hexdigest(),
    }
    names, sizes, hashes = ([row[i] for row in unique] for i in range(3))
    table = pa.table({"path": pa.array(names, pa.string()), "bytes": pa.array(sizes, pa.int64()), "sha256": hashes})
    with provenance.atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def _tables_digest(version: str, files: list[tuple[str, int, str]]) -> str:
    """The hash of the tables among the files: what infos are made from, however many other files were looked at."""
    tables = {name: sha256 for name, _, sha256 in files if name.startswith(f"{version}/") and name.endswith(".json")}
    return provenance.digest({name: sha256 for name, sha256 in tables.items() if not name.endswith("/splits.json")})


def read_manifest(path: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """The version, and path -> (bytes, sha256). Raises InputError if the manifest is damaged or of another schema."""
    cure = "name another file, or remove this one, and run vexkd doctor again"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        raise InputError(f"manifest {path} is damaged, or the file is none: {cure}.") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"vexkd.schema") != str(SCHEMA).encode():
        raise InputError(f"manifest {path} has another schema than {SCHEMA}: {cure}.")
    columns = (table[name].to_pylist() for name in ("path", "bytes", "sha256"))
    return metadata[b"vexkd.version"].decode(), {name: (size, sha) for name, size, sha in zip(*columns, strict=True)}


def recorded(manifest: Path | None, version: str) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The files of an existing manifest of this version, and the problem if it is of another one."""
    if manifest is None or not Path(manifest).is_file():
        return {}, []
    metadata, files = read_manifest(Path(manifest))
    if metadata != version:
        return {}, [f"{manifest}: the manifest is of {metadata}, not of {version}"]
    return files, []


def differences(found: list[Found], known: dict[str, tuple[int, str]]) -> list[str]:
    """Readable files that differ from the manifest."""
    problems = []
    for file in found:
        size, sha256 = known.get(file.path, (file.bytes, file.sha256))
        if file.problem or file.sha256 == sha256:
            continue
        if file.bytes != size:
            problems.append(f"{file.path}: {file.bytes} bytes instead of the {size} of the manifest")
        else:
            problems.append(f"{file.path}: the content differs from the manifest")
    return problems


def compare_sizes(root: Path, known: dict[str, tuple[int, str]]) -> list[str]:
    """Files of the manifest that are absent or of another size."""
    problems = []
    for name, (size, _) in known.items():
        path = root / name
        if not path.is_file():
            problems.append(f"{name}: the file is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name}: {path.stat().st_size} bytes instead of the {size} of the manifest")
    return problems
