"""The code that runs: a hash of the package's own files, and the git commit of the checkout that they are part of."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
_TRACKED = ("vexkd", "workflow", "pyproject.toml", "constraints.txt")
# A checkout that another user owns is read as well: its code runs already. Nothing is written into its index.
_GIT = (
    "git",
    "--no-optional-locks",
    "-c",
    "safe.directory=*",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.fileMode=false",
)


@functools.cache
def version() -> dict[str, Any]:
    """Commit, whether tracked code differs from it, and the package's hash, as they were when this process first asked.

    Every verb asks at its start, so that a checkout that moves on while it works is not recorded.
    """
    return {**commit(PACKAGE), "package": digest(PACKAGE)}


def digest(package: Path) -> str:
    """Hash (16 hex digits of SHA-256) of the Python files of a package, whatever their line endings."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def commit(package: Path) -> dict[str, Any]:
    """The commit of the checkout that a package is part of, and whether its tracked code differs; both None elsewhere.

    Only a repository whose uppermost folder holds the package, tracked, is its own: not one that ignores, contains or
    surrounds a copy, or in whose folder an environment with an installed copy lies.
    """
    try:
        top = _git(package, "rev-parse", "--show-toplevel")
        if not os.path.samefile(top, package.parent) or not _git(
            package.parent, "ls-files", "--", f"{package.name}/*.py"
        ):
            return {"commit": None, "dirty": None}
        changes = _git(package.parent, "status", "--porcelain", "--", *_TRACKED)
        return {"commit": _git(package, "rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(folder: Path, *arguments: str) -> str:
    """What git says in a folder; variables that point it to another repository, as in a hook, do not count."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        [*_GIT, "-C", str(folder), *arguments],
        capture_output=True,
        env=environment,
        check=True,
        encoding="utf-8",
        errors="replace",
    )
    return done.stdout.strip()
