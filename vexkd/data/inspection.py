"""BEV maps of one keyframe as they are stored for figures: energies of several models and masks, at the two levels.

One safetensors file: `maps` (N, Y, X) float32, and in its header what each map is, whose keyframe it shows and the grid.
N maps, Y X BEV.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vexkd import provenance, seal
from vexkd.errors import InputError
from vexkd.geometry import BevGrid

FORMAT = "vexkd-inspection-1"
LEVELS = ("low", "high")


class Name(NamedTuple):
    """What a map is: `energy` of a model's map or `mask`, of which run, at which level."""

    kind: str
    run: str
    level: str


@dataclass(frozen=True)
class Inspection:
    """An opened file. header: run, student, teacher, seed, sample (token), mask (setting or null), task."""

    header: dict[str, Any]
    maps: dict[Name, np.ndarray]
    grid: BevGrid


def path_of(models: Path | str, run: str, seed: int) -> Path:
    """Where the file of a run and a seed stands."""
    return Path(models) / run / f"seed{seed}" / "inspection.safetensors"


def write(path: Path, maps: Mapping[Name, np.ndarray], *, grid: BevGrid, **more: Any) -> None:
    """Write maps (Y, X) of one grid under their names; more: what else the header shall say."""
    header = {"format": FORMAT, **more, "grid": {"bounds": grid.bounds, "cell": grid.cell}, "names": list(maps)}
    stacked = np.stack([np.asarray(one, dtype=np.float32) for one in maps.values()])  # N Y X
    with provenance.atomic(path) as temporary:  # one key: safetensors writes several in any order
        save_file({"maps": stacked}, temporary, metadata={"vexkd": json.dumps(header)})


def read(path: Path) -> Inspection:
    """Open a file that `write` made. Raises InputError for one that is missing, cut, or something else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; make it with 'vexkd inspect' for this run.")
    try:
        header = json.loads(seal.safetensors_header(path)[0]["__metadata__"]["vexkd"])
        names = [Name(*name) for name in header["names"]]
        grid = BevGrid(tuple(header["grid"]["bounds"]), header["grid"]["cell"])
        maps = dict(zip(names, load_file(path)["maps"], strict=True))
        right = header["format"] == FORMAT and all(one.shape == grid.shape for one in maps.values())
    except (KeyError, ValueError, TypeError, SafetensorError):
        right = False
    if not right:
        raise InputError(f"{path}: this is not a whole file of inspected maps; inspect the run again.")
    return Inspection(header, maps, grid)
