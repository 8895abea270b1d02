"""Atomic writes, content hashes, and the record that says where a number came from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from vexkd import code

_PACKAGES = (
    "torch",
    "spconv-cu120",
    "spconv-cu126",
    "numpy",
    "nuscenes-devkit",
    "snakemake",
    "dvc",
    "transformers",
    "accelerate",
)


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary file beside `path` to write to; on success it is synced and renamed, on failure removed.

    Nothing half-written ever stands under the final name, which is also the one that an OSError of the writing names.
    """
    path = Path(path)
    temporary = None
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path | str, parts: Path | None = None) -> Iterator[None]:
    """What cannot be written in here ends in an OSError that names `path`, whatever library says it and however.

    A full disk is an OSError without a file's name for Python, one without a number for NumPy, and SafetensorError for
    safetensors. parts: the folder in which `path` is made before it is renamed; its files are called `path` too.
    """
    try:
        yield
    except OSError as error:
        named = str(error.filename or "")
        if not named or named.endswith(".tmp") or (parts is not None and named.startswith(str(parts))):
            number = error.errno or errno.ENOSPC  # without: NumPy, of which only a part was taken
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _umask() -> int:
    """The user's mask of permissions, asked for without changing it where the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str, *, only_if_changed: bool = False) -> bool:
    """Write text atomically; with `only_if_changed`, leave an equal file and its time alone. Returns whether it wrote."""
    path = Path(path)
    if only_if_changed and path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, keys in the order given, two spaces, newline at the end."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def digest(value: Any) -> str:
    """Short stable hash (16 hex digits of SHA-256) of a JSON-able value."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def environment() -> dict[str, Any]:
    """Versions of Python and of the packages that decide results, and the hardware in words."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"versions": versions, "hardware": hardware()}


def hardware() -> dict[str, Any]:
    """CPU model and count, and the GPUs that torch sees when torch is loaded already."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    hardware: dict[str, Any] = {"cpu": model, "cpus": os.cpu_count(), "gpus": []}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return hardware


def record(**more: Any) -> dict[str, Any]:
    """The record that stands beside a result: code, environment, time, command, and whatever the caller adds."""
    return {
        **code.version(),
        **environment(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **more,
    }
