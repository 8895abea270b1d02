"""What is up to date by content: a file's record of its making against what stands there and what is asked for now.

File times tell nothing after `git switch`, `dvc pull` or a copy. Every file that the workflow makes says what it was made
from; `settle` goes through them, inputs first. What agrees gets a time that is not older than its inputs', so that Snakemake
leaves it alone; what does not is named, for Snakemake to make again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vexkd import provenance

# Where digests are kept, from the experiment's folder.
MEMORY = Path(".snakemake/digests.json")
# Seconds after a change within which another one may leave the same time: such a digest is not kept.
_FRESH = 2.0
# Nanoseconds by which a file's time may be ahead of this machine's clock: file servers round, and clocks differ a little.
_AHEAD = 1_000_000_000


@dataclass(frozen=True)
class Product:
    """The files that one job makes.

    inputs: what it reads; their times count, those of folders and of missing files do not. judge: "" where the files agree
    with what is asked for and with their inputs, else one sentence that says what does not; None where they record nothing
    of it, so that file times decide, as for results of earlier versions. beside: the job's `benchmark:` file, whose time
    Snakemake looks at too; it may be missing.
    """

    name: str
    outputs: tuple[Path, ...]
    inputs: tuple[Path, ...]
    judge: Callable[[], str | None]
    beside: tuple[Path, ...] = ()


class Digests:
    """SHA-256 of files and folders, computed once for each state of a file.

    memory: a JSON file in which they are kept from call to call, None for this call only. A digest is used again only where
    size, times of content and inode, and number of inode are those it was computed at.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self.memory = memory
        self.splits: dict[str, str] | None = None  # those of a splits.json that the infos have yet to take over
        self._known: dict[str, list] = {}
        self._changed = False
        if memory is not None and memory.is_file():
            with contextlib.suppress(OSError, ValueError, TypeError):
                self._known = dict(json.loads(memory.read_text(encoding="utf-8")))

    def of(self, path: Path) -> str:
        """The digest of a file, or of a folder as `seal.content_digest` says. Raises OSError where there is none."""
        if path.is_dir():
            return folder_digest(path, self.file)
        return self.file(path)

    def file(self, path: Path) -> str:
        """SHA-256 of a file's content."""
        return self._kept(str(path), path, provenance.file_digest)

    def _kept(self, key: str, path: Path, compute: Callable[[Path], str]) -> str:
        state = _state(path)
        known = self._known.get(key)
        if known is not None and known[:-1] == state:
            return known[-1]
        began = time.time()
        digest = compute(path)
        if _state(path) == state and began - max(state[1], state[2]) / 1e9 > _FRESH:
            self._known[key] = [*state, digest]
            self._changed = True
        return digest

    def tensors(self, path: Path) -> str:
        """SHA-256 of a safetensors file without its header, so without times and machines: equal for equal weights."""
        return self._kept(f"{path}#tensors", path, _tensors_digest)

    def split(self, infos: Path, name: str) -> str | None:
        """The hash of the samples that a split holds; None for infos of earlier versions and unknown splits."""
        return (split_digests(infos) if self.splits is None else self.splits).get(name)

    def touch(self, path: Path, mtime_ns: int) -> bool:
        """Set a file's time without forgetting its digest; False where this may not be done."""
        before = _state(path)
        keys = [key for key in (str(path), f"{path}#tensors") if self._known.get(key, [None])[:-1] == before]
        if not set_time(path, mtime_ns):
            return False
        for key in keys:
            self._known[key] = [*_state(path), self._known[key][-1]]
            self._changed = True
        return True

    def save(self) -> None:
        """Keep the digests of files that are still there; a folder that can't be written keeps none."""
        if self.memory is None or not self._changed:
            return
        kept = {name: entry for name, entry in self._known.items() if os.path.lexists(name.partition("#")[0])}
        with contextlib.suppress(OSError):
            provenance.write_text(self.memory, json.dumps(kept) + "\n")


def folder_digest(folder: Path, digest: Callable[[Path], str]) -> str:
    """The hash over the hashes of a folder's files in name order.

    Infos count without their splits: of those a training reads one, and records itself which samples that held.
    """
    digests = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.is_file()}
    if samples := parquet_metadata(folder / "samples.parquet").get("vexkd.content"):
        digests["samples.parquet"] = samples
    return provenance.digest(digests)


def parquet_metadata(path: Path) -> dict[str, str]:
    """What a Parquet file says of itself; empty where it is missing or no Parquet file."""
    if not path.is_file():
        return {}
    import pyarrow as pa  # slow to import, and most calls have no need of it
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {name.decode(): value.decode(errors="replace") for name, value in metadata.items()}


def manifest_digest(path: Path) -> str:
    """What infos depend on of doctor's manifest: the tables; those of earlier versions count as a whole."""
    return parquet_metadata(path).get("vexkd.tables") or provenance.file_digest(path)


def manifest_tables(path: Path) -> dict[str, str]:
    """The hash of each of nuScenes' tables that doctor's manifest lists, by path below the root; empty if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    version = parquet_metadata(path).get("vexkd.version")
    if version is None:
        return {}
    try:
        files = pq.read_table(path, columns=["path", "sha256"]).to_pydict()
    except (OSError, KeyError, pa.ArrowException):
        return {}
    listed = zip(files["path"], files["sha256"], strict=True)
    return {name: sha256 for name, sha256 in listed if name.startswith(f"{version}/") and name.endswith(".json")}


def split_digests(infos: Path) -> dict[str, str]:
    """The hash of the samples of each split, as the infos record them; empty for infos of earlier versions."""
    return json.loads(parquet_metadata(infos / "samples.parquet").get("vexkd.split_digests", "{}"))


@dataclass(frozen=True)
class Verdicts:
    """What was found of the files that are there: stale ones, each with the reason, and those that agree."""

    stale: dict[Path, str]
    agreed: set[Path]


def settle(products: Iterable[Product], digests: Digests) -> Verdicts:
    """Judge all files that are there, and put the times of those that agree in order.

    products: in an order in which each comes after those whose files it reads. Missing files are Snakemake's to see.
    """
    stale: dict[Path, str] = {}
    agreed: set[Path] = set()
    for product in products:
        if not all(path.exists() for path in product.outputs):
            continue
        verdict = product.judge()
        if verdict is None:
            continue
        if verdict:
            stale |= dict.fromkeys(product.outputs, verdict)
            continue
        agreed.update(product.outputs)
        newest = max((path.stat().st_mtime_ns for path in product.inputs if path.is_file()), default=0)
        for path in (*product.outputs, *product.beside):
            if path.exists() and path.stat().st_mtime_ns < newest:
                digests.touch(path, newest)
    return Verdicts(stale, agreed)


def bring_to_present(paths: Iterable[Path]) -> list[Path]:
    """Give files and folders that are dated in the future the present time; returns those whose time may not be set.

    A job's outputs would be older than such an input, and Snakemake refuses and removes them.
    """
    return [file for file in from_the_future(paths) if not set_time(file, time.time_ns())]


def from_the_future(paths: Iterable[Path]) -> list[Path]:
    """Those files and folders that are dated after this machine's time; folders count with all that is in them."""
    latest = time.time_ns() + _AHEAD
    found = []
    for path in paths:
        inside = (Path(folder) / name for folder, folders, files in os.walk(path) for name in (*folders, *files))
        for file in (path, *inside):
            with contextlib.suppress(OSError):  # jobs that run write and rename files meanwhile
                if file.stat().st_mtime_ns > latest:
                    found.append(file)
    return found


def set_time(path: Path, mtime_ns: int) -> bool:
    """Give a file this time, or the present one where it is another user's whose group may write it; False if neither."""
    try:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    except PermissionError:
        try:
            os.utime(path)
        except OSError:
            return False
    except OSError:
        return False
    return True


def _tensors_digest(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
