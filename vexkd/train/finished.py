"""The result of a finished training, kept aside until it is accepted.

Snakemake removes outputs that it refuses, such as those older than an input that a clock ahead of ours has dated: days of
training would be lost. So the workflow lets `vexkd train --keep` hold a second name of the result's files, which the next
call gives back at once; a call of Snakemake that ends clears what it has accepted.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_WEIGHTS = "weights.safetensors"
# What a training writes, the weights last: where they are, the result is whole.
_FILES = ("curve.csv", "provenance.json", "masks.safetensors", _WEIGHTS)


def keep(result: Path, kept: Path) -> None:
    """Give the files of a finished training a second name in `kept`: hard links, or copies where there are none."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    _hand_over(result, kept)


def give_back(kept: Path, result: Path) -> None:
    """The kept files again where they belong, with the present time, as if they had just been written."""
    result.mkdir(parents=True, exist_ok=True)
    _hand_over(kept, result)
    for name in _FILES:
        if (result / name).is_file():
            os.utime(result / name)


def clear(folder: Path, models: Path) -> None:
    """Remove what is kept of trainings whose weights stand in `models`: what was refused is not there any more.

    folder: holds <run>/seed<k>-<key>/ for each.
    """
    for kept in folder.glob("*/seed*-*"):
        seed = kept.name.partition("-")[0]
        if (models / kept.parent.name / seed / _WEIGHTS).is_file():
            shutil.rmtree(kept, ignore_errors=True)
    for empty in (*folder.glob("*"), folder):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _hand_over(source: Path, target: Path) -> None:
    for name in _FILES:
        (target / name).unlink(missing_ok=True)
        if not (source / name).is_file():
            continue
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copy2(source / name, target / name)
