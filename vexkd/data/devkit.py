"""What nuscenes-devkit loads beside the 13 tables, and refuses to score without: labels of nuScenes-lidarseg and -panoptic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vexkd.data import tables
from vexkd.errors import InputError

LABELS = {"lidarseg": ".bin", "panoptic": ".npz"}
_CURE = "extract nuScenes' {name} archive whole, or take {name}.json away, which this project does not read"


def check(root: Path, version: str, categories: dict[str, dict[str, Any]]) -> None:
    """Raises InputError if a table of point labels is there without its categories or its files."""
    for name in LABELS:
        path = tables.path_of(root, version, name)
        if not path.is_file():
            continue
        cure = _CURE.format(name=name)
        try:
            records = len(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            raise InputError(f"{path} is cut or damaged: {cure}.") from None
        plain = next((token for token, row in categories.items() if "index" not in row), None)
        if plain is not None:
            raise InputError(
                f"{tables.path_of(root, version, 'category')}: row {plain}: it lacks index, which nuscenes-devkit needs "
                f"beside {name}.json: {cure}."
            )
        folder = Path(root) / name / version
        files = sum(1 for file in folder.glob("*") if file.suffix in LABELS.values()) if folder.is_dir() else 0
        if files != records:
            raise InputError(
                f"{path} has {records} rows, but {folder} holds {files} label files, and nuscenes-devkit loads no such set: "
                f"{cure}."
            )
