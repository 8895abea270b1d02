"""Environment variables: which of them count in a training, which are set aside, and which are recorded.

Settings decide what is trained, and only `vexkd-launch` starts several processes. What other launchers and libraries leave
behind in a shell (accelerate's own settings, the ranks of an MPI job, another precision of products) would change results
that no record explains, or have a process wait for others that never come; it is taken out of this process's environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, MutableMapping

from vexkd.errors import InputError

# What `vexkd-launch` sets for its processes; without it, ranks and addresses are left over from something else.
MARK = "VEXKD_LAUNCHED"
# Settings of accelerate and its plugins, and whatever makes torch's products less precise than `train.precision` says.
OTHER_SETTINGS = (
    "ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "DEEPSPEED_", "FORK_LAUNCHED",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE",
)  # fmt: skip
# Ranks and sizes of MPI's launchers, which accelerate takes for those of this job.
OTHER_RANKS = ("PMI_", "PMIX_", "OMPI_", "MV2_COMM_", "MPI_LOCAL")
RANKS = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
# torchrun's own, set anew for the launcher's processes; PET_* are read as options of torchrun.
OF_TORCHRUN = ("TORCHELASTIC_", "PET_")
# Those that stay, and may move a result by rounding: recorded beside it.
RECORDED = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_", "DNNL_", "MKL_", "KMP_", "OMP_", "OPENBLAS_", "CUBLAS", "CUDNN_", "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING", "NCCL_ALGO", "NCCL_PROTO", "TORCH_CUDNN_", "TORCH_BLAS_", "PYTHONHASHSEED",
)  # fmt: skip
# What CUDA's matrix products need to be the same each time.
REPEATABLE_WORKSPACES = (":4096:8", ":16:8")


def settle(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Take out what must not count, in place; returns the names. Raises InputError under a torchrun that isn't the launcher."""
    launched = environ.get(MARK)
    if not launched and "TORCHELASTIC_RUN_ID" in environ:
        raise InputError(
            "TORCHELASTIC_RUN_ID is set, but this is no process of `vexkd-launch`: start several processes with it in place "
            "of torchrun (the same options), or unset the variable."
        )
    unwanted = OTHER_SETTINGS + OTHER_RANKS
    gone = _named(environ, unwanted) if launched else _named(environ, unwanted, RANKS)
    if environ.get("CUBLAS_WORKSPACE_CONFIG", REPEATABLE_WORKSPACES[0]) not in REPEATABLE_WORKSPACES:
        gone.append("CUBLAS_WORKSPACE_CONFIG")
    for name in gone:
        del environ[name]
    return gone


def announce(gone: list[str]) -> None:
    """Say which variables were set aside."""
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        print(
            f"vexkd: {', '.join(gone)} in the environment {verb} ignored: settings alone decide what is computed, and only "
            "vexkd-launch starts several processes.",
            file=sys.stderr,
            flush=True,
        )


def clear_for_launch(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """For the launcher: take out what is not its own, and mark its processes; returns the names."""
    gone = _named(environ, OTHER_SETTINGS + OTHER_RANKS + OF_TORCHRUN, RANKS)
    for name in gone:
        del environ[name]
    environ[MARK] = str(os.getpid())
    return gone


def recorded(environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that stay and may change the rounding, for the record of a training."""
    return {name: environ[name] for name in _named(environ, RECORDED)}


def _named(environ: Iterable[str], prefixes: tuple[str, ...], names: tuple[str, ...] = ()) -> list[str]:
    return sorted(name for name in environ if name.startswith(prefixes) or name in names)
