"""Which splits and sensors runs read; loads nothing but the settings, as the rules of the workflow ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vexkd.settings import Run


def sensors_read(run: Run, teacher: Run | None = None) -> list[str]:
    """Sensors that a training reads: the run's and its teacher's, and LiDAR where a depth net learns from it."""
    depth_from_lidar = run.camera is not None and getattr(run.camera.view, "depth_net", None) == "bevdepth"
    sensors = {*run.sensors, *(teacher.sensors if teacher else []), *(["lidar"] if depth_from_lidar else [])}
    return [name for name in ("lidar", "camera") if name in sensors]


def needed_files(runs: Iterable[Run]) -> tuple[list[str], list[str]]:
    """The splits and the sensors whose files some runs read, without teachers that are no run among them."""
    runs = list(runs)
    splits = dict.fromkeys(split for run in runs for split in (run.data.train_split, run.data.val_split))
    sensors = {name for run in runs for name in sensors_read(run)}
    return list(splits), [name for name in ("lidar", "camera") if name in sensors]


def submission_files(runs: Iterable[Run]) -> tuple[list[str], list[str]]:
    """As `needed_files`, of nuScenes' test set: what the detectors among some runs read."""
    sensors = {name for run in runs if run.task == "detection" for name in run.sensors}
    return ["test"], [name for name in ("lidar", "camera") if name in sensors]


def uncovered(covers: dict[str, Any], runs: Iterable[Run]) -> str:
    """What some runs read and a manifest does not cover (`vexkd.covers`; a list that is absent is of all), in words."""
    wanted = dict(zip(("splits", "sensors"), needed_files(runs), strict=True))
    lacking = {key: [name for name in names if name not in (covers.get(key) or names)] for key, names in wanted.items()}
    return " and ".join(f"{key} {', '.join(names)}" for key, names in lacking.items() if names)
