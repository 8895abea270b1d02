"""One training of a run at a time: a file that names its holder and whose time is renewed while the holder lives.

It works on file systems shared by several machines, whose clocks may differ: ages are measured by the file system's clock,
or by watching the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from vexkd import provenance
from vexkd.errors import BusyError, InputError

# Seconds between renewals, and without one after which the holder on another machine counts as dead.
BEAT, PATIENCE = 10.0, 90.0


class Lock:
    """A lock file. Taken over where its holder is dead: at once on this machine, after `patience` seconds on another."""

    def __init__(self, path: Path, *, beat: float = BEAT, patience: float = PATIENCE) -> None:
        self.path, self.beat, self.patience = path, beat, patience
        self.owner = json.dumps({**_process(), "token": uuid.uuid4().hex})
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock. Raises InputError where a living process holds it."""
        ticket = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with provenance.naming(self.path, parts=ticket):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            ticket.write_text(self.owner, encoding="utf-8")
        try:
            while not self._link(ticket):
                self._remove_dead(ticket)
        finally:
            ticket.unlink(missing_ok=True)
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        """Give the lock back."""
        self._released.set()
        if self._holder() == self.owner:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InputError where the lock is no longer this process's, so that it does not write over another's state."""
        holder = self._holder()
        if holder != self.owner:
            raise InputError(
                f"{self.path}: this process has lost its lock to {_words(holder)}; stop one of the two and start again."
            )

    def _link(self, own: Path) -> bool:
        try:
            os.link(own, self.path)
        except FileExistsError:
            return False
        return True

    def _remove_dead(self, own: Path) -> None:
        """Remove the lock of a dead holder; returns at once if it is gone already. Raises InputError where it lives."""
        holder = self._holder()
        if holder is None:
            return
        if self._is_alive(holder, own):
            raise BusyError(
                f"{self.path}: {_words(holder)} is training this run; wait for it or stop it, "
                "and if there is no such process remove this file."
            )
        aside = own.with_name(f"{own.name}.dead")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if aside.read_text(encoding="utf-8") != holder:  # another process was faster and holds the lock now
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _is_alive(self, holder: str, own: Path) -> bool:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            other, here = json.loads(holder), _process()
            if all(other[key] == here[key] for key in ("host", "machine")):
                return _started(int(other["pid"])) == other["started"]
        os.utime(own)
        before = self._time()
        if before is None or own.stat().st_mtime - before > self.patience:
            return False
        print(f"{self.path}: watching for {self.patience:.0f} s whether {_words(holder)} lives.", flush=True)
        watched = time.monotonic()
        while time.monotonic() - watched < self.patience:
            time.sleep(min(1.0, self.beat))
            now = self._time()
            if now != before:
                return now is not None
        return False

    def _time(self) -> float | None:
        """When the lock was renewed last; opened afresh, because network file systems remember old times."""
        try:
            with self.path.open("rb") as stream:
                return os.fstat(stream.fileno()).st_mtime
        except FileNotFoundError:
            return None

    def _holder(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _renew(self) -> None:
        while not self._released.wait(self.beat):
            with contextlib.suppress(OSError):
                if self._holder() == self.owner:
                    os.utime(self.path)


def _process() -> dict[str, str | int]:
    """This process: host, pid, when it started, and which kernel and space of process numbers the pid belongs to."""
    machine = ""
    with contextlib.suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip() + os.readlink(
            "/proc/self/ns/pid"
        )
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "machine": machine}


def _started(pid: int) -> str:
    """When a process of this machine started, in the kernel's words; empty where there is none (or it is a zombie)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "" if not _exists(pid) else "unknown"
    return "" if state in "ZX" else fields[18]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _words(holder: str | None) -> str:
    try:
        words = json.loads(holder or "")
        return f"process {words['pid']} on {words['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
