"""A call of Snakemake and the settings it started with: frozen in a folder of their own, which its jobs read.

`.snakemake/calls/call-<hash of the settings>/` holds params.yaml as it was read, and never changes, so that neither an edit,
nor `git switch`, nor another call reaches jobs that wait: the workflow names the copy to them (`experiment.CALL`). The merged
settings in `results/runs` and `results/settings`, on which rules depend, are written by one call at a time; a dry run writes
none. A call lives as long as its process: locks of the operating system end with it, whatever files it leaves behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vexkd import content, provenance, seal, settings
from vexkd.errors import InputError
from vexkd.experiment import HERE, Experiment
from vexkd.settings import Params

FOLDER = HERE.calls
_RUNNING = "running.lock"  # held by the call that works here; holds its name
_WRITING = "writing.lock"  # held while settings are written
_HELD = "held.lock"  # in each copy: shared by the calls that hold it


@dataclass(frozen=True)
class Call:
    """A call by its settings; the folder is there once `freeze` has been called."""

    params: Params
    folder: Path

    @property
    def settings(self) -> Path:
        """The frozen params.yaml."""
        return self.folder / "params.yaml"


def begin(path: Path | str = "params.yaml") -> Call:
    """Read params.yaml for a call. Nothing is written yet. Raises InputError as `settings.load`."""
    params = settings.load(path)
    merged = {name: [run.training(), run.after_training()] for name, run in params.runs.items()}
    return Call(params, FOLDER / f"call-{provenance.digest([params.raw, merged])}")


def of_job(name: str | None) -> Call:
    """The call that queued this job, by the name that Snakemake's main process gave it. Raises InputError without its copy."""
    folder = FOLDER / str(name)
    if name is None or not (folder / "params.yaml").is_file():
        raise InputError(f"{folder}: the settings that this job was queued with are not there; call snakemake again.")
    return Call(settings.load(folder / "params.yaml"), folder)


def freeze(call: Call, *, alone: bool = True) -> list[IO]:
    """Keep the call's settings for its jobs and write the files that rules depend on; returns the locks, to be kept open.

    alone: False for `--nolock`: beside a call that works, such a call keeps the times of what it changes. Raises InputError
    where another call works here.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _locked(FOLDER / _WRITING):
        running = _take(FOLDER / _RUNNING, fcntl.LOCK_EX)
        if running is None and alone:
            raise InputError(
                f"{Path.cwd().name}: another call of Snakemake works in this folder ({_holder()}); wait for it, or end it."
            )
        _copy(call)
        held = _take(call.folder / _HELD, fcntl.LOCK_SH)
        _write_settings(call.params, beside=running is None)
        if running is not None:
            with contextlib.suppress(OSError):  # another user's file that may only be read
                running.truncate(0)
                running.write(f"{call.folder.name} {os.getpid()}\n")
                running.flush()
    return [lock for lock in (running, held) if lock is not None]


def living(folder: Path | str = ".") -> Path | None:
    """The frozen params.yaml of the call that works in an experiment's folder; None where none lives."""
    calls = Experiment(Path(folder)).calls
    if not (calls / _RUNNING).is_file():
        return None
    lock = _take(calls / _RUNNING, fcntl.LOCK_SH)
    if lock is not None:
        lock.close()
        return None
    words = (calls / _RUNNING).read_text(encoding="utf-8").split()
    settings_file = calls / (words[0] if words else "") / "params.yaml"
    return settings_file if settings_file.is_file() else None


def clean(own: Call) -> None:
    """Remove the copies that no living call holds. Only where no job of an earlier call is left in a queue."""
    with _locked(FOLDER / _WRITING):
        for folder in FOLDER.glob("call-*"):
            lock = _take(folder / _HELD, fcntl.LOCK_EX) if folder != own.folder else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()


def _copy(call: Call) -> None:
    """Make the frozen copy, whole or not at all."""
    if call.settings.is_file():
        return
    part = Path(tempfile.mkdtemp(prefix=".new-", dir=FOLDER))
    try:
        part.chmod(0o777 & ~_umask())
        (part / _HELD).touch()
        provenance.write_text(part / "params.yaml", settings.dump(call.params.raw))
        with contextlib.suppress(OSError):  # another call with equal settings was faster
            part.rename(call.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_settings(params: Params, *, beside: bool) -> None:
    """Files that rules depend on, each only if its content changes.

    beside: another call works here; its jobs' results must not seem older than what is written.
    """
    for file, text in settings_files(params).items():
        before = file.stat() if beside and file.is_file() else None
        provenance.write_text(file, text, only_if_changed=True)
        if before is not None:
            content.set_time(file, before.st_mtime_ns)


def settings_files(params: Params) -> dict[Path, str]:
    """The text of each file of merged settings that rules depend on."""
    shared = seal.shared_settings(params)
    texts = {HERE.shared_settings(name): settings.dump(values) for name, values in shared.items()}
    for name, run in params.runs.items():
        texts[HERE.run(name).config] = settings.dump(run.training())
        texts[HERE.run(name).inference] = settings.dump(run.after_training())
    return texts


def _take(path: Path, kind: int) -> IO | None:
    """An open file with this lock; None where another process holds one that excludes it.

    A file system that knows no locks lets everyone in: Snakemake's own lock is left there.
    """
    try:
        stream = path.open("a+", encoding="utf-8")
    except PermissionError:
        stream = path.open(encoding="utf-8")
        kind = fcntl.LOCK_SH
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    except OSError:
        pass
    return stream


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for a lock, which is held for moments only."""
    if not path.exists():
        path.touch()
    mode = "a+" if os.access(path, os.W_OK) else "r"  # another user's file; NFS locks files that are open for writing
    with path.open(mode, encoding="utf-8") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _holder() -> str:
    words = (FOLDER / _RUNNING).read_text(encoding="utf-8").split()
    return f"process {words[1]}" if len(words) == 2 else "another process"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
