"""What loader processes share with the one they load for: memory, in which batches travel, and the signals of a terminal."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from vexkd.batch import collate
from vexkd.errors import InputError

PLACE = Path("/dev/shm")
# Batches that each loader process makes ahead (torch's default), and one that is being computed with.
AHEAD = 2
# Bytes: each tensor takes whole pages, and each queue its locks.
SLACK = 256 * 1024


def check(dataset: Dataset, batches: Iterable[Sequence[Any]], workers: int, place: Path = PLACE) -> None:
    """Refuse loader processes whose batches do not fit into shared memory: writing beyond its end, they hang or are killed.

    Judged by one sample, the first, times the largest batch, for all processes of the job on this machine; samples are
    about equally large. Raises InputError.
    """
    if not place.is_dir():
        return
    keys = next(iter(batches), None)
    if not keys:
        return
    free, jobs = shutil.disk_usage(place).free, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = len(keys) * size(collate([dataset[keys[0]]])) * (AHEAD * workers + 1) * jobs + SLACK
    if needed > free:
        raise InputError(
            f"{place}: {free / 1e6:.1f} MB are free, but {workers} loader processes need about {needed / 1e6:.1f} MB for "
            "their batches: give this machine or container more (docker's --shm-size), or take fewer with --workers (0 loads "
            "without them)."
        )


def size(value: Any) -> int:
    """Bytes of all tensors in a batch."""
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if dataclasses.is_dataclass(value):
        return sum(size(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, list | tuple) else 0


def leave_signals_to_parent(_number: int) -> None:
    """In a loader process: whoever ends the whole group of processes, by Ctrl-C for instance, ends the training first, which
    may still need batches to save its state, and takes its loaders along.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
