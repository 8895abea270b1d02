"""Every source of randomness, seeded from one place. The data's draws have their own generators (see `data.dataset`)."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from torch import Tensor

from vexkd.train import environment


def seed_everything(seed: int, rank: int = 0, *, deterministic: bool = True) -> None:
    """Seed Python, NumPy and torch by (seed, rank).

    deterministic: ask torch for deterministic kernels; where CUDA has none it warns and goes on, so that equality bit for
    bit is promised on the CPU and holds on a GPU as far as its kernels allow.
    """
    value = seed + 1_000_003 * rank
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - libraries that still draw from the global state
    torch.manual_seed(value)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", environment.REPEATABLE_WORKSPACES[0])


def random_state() -> dict[str, Tensor]:
    """State of this process's torch generators by name, as bytes (N,)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(states: dict[str, Tensor], rank: int = 0) -> None:
    """Put back what `random_state` gave, from the states (processes, N) of all processes.

    A process beyond those that were saved keeps the state that `seed_everything` gave it.
    """
    put_back = {"cpu": torch.set_rng_state, "cuda": torch.cuda.set_rng_state}
    for name, state in states.items():
        if rank < len(state) and (name == "cpu" or torch.cuda.is_available()):
            put_back[name](state[rank].clone())  # torch reads from where the storage begins
