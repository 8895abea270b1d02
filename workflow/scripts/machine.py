"""What the workflow asks of the machine it runs on."""

import os
import sys
from pathlib import Path


def find_own_commands() -> None:
    """Let rules find `vexkd` where Snakemake was called by its path, without the environment activated."""
    own = str(Path(sys.executable).parent)
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + own


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, asked without importing torch."""
    return Path("/dev/nvidia0").exists()


def is_newer(path: str, other: str) -> bool:
    """Whether both exist and the first was changed after the second."""
    first, second = Path(path), Path(other)
    return first.exists() and second.exists() and first.stat().st_mtime > second.stat().st_mtime
