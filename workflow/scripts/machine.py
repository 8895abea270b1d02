"""What the workflow asks of the machine it runs on."""

import importlib
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError


def find_own_commands() -> None:
    """Let rules find `vexkd` where Snakemake was called by its path, without the environment activated."""
    own = str(Path(sys.executable).parent)
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + own


def run_own_code(workflow: str) -> None:
    """Let this process and its jobs run the code beside this workflow, not another checkout's that is installed.

    workflow: the folder of the Snakefile. Raises WorkflowError where that can't be.
    """
    checkout = Path(workflow).resolve().parent
    if not (checkout / "vexkd" / "__init__.py").is_file():
        return
    if os.pathsep in str(checkout):
        raise WorkflowError(f"{checkout}: a path with '{os.pathsep}' can't be searched for code; rename the folder.")
    sys.path.insert(0, str(checkout))
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(checkout)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(checkout), *rest])
    found = Path(importlib.import_module("vexkd").__file__).resolve().parent
    if found != checkout / "vexkd":
        raise WorkflowError(
            f"the code in {found} would run in place of that of {checkout}; use the environment of the checkout whose "
            "Snakefile you call (`make env` in it)."
        )


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, asked without importing torch."""
    return Path("/dev/nvidia0").exists()


def is_newer(path: str, other: str) -> bool:
    """Whether both exist and the first was changed after the second."""
    first, second = Path(path), Path(other)
    return first.exists() and second.exists() and first.stat().st_mtime > second.stat().st_mtime
