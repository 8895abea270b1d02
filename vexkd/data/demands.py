"""What a run's settings ask of the data, held against what the data give: before anything is trained.

Where nothing at all of what is asked is there, or a score would mean something else than it says, InputError; where there
is less than asked, a sentence with counts, so that nobody is surprised by a score.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vexkd import boxes as box_tools
from vexkd.data.infos import Infos
from vexkd.data.splits import OFFICIAL
from vexkd.errors import InputError
from vexkd.needs import sensors_read
from vexkd.settings import Run


def check_all(runs: Mapping[str, Run], infos: Infos, *, root: Path | None = None) -> list[str]:
    """`check` for every run, each with its teacher and start; every sentence once, with the first run that it is said of."""
    said: dict[str, str] = {}
    for run in runs.values():
        before = {"teacher": runs.get(run.teacher or ""), "start": runs.get(run.start or "")}
        for sentence in check(run, infos, **before, root=root):
            said.setdefault(sentence.partition(": ")[2], sentence)
    return list(said.values())


def check(
    run: Run, infos: Infos, *, teacher: Run | None = None, start: Run | None = None, root: Path | None = None
) -> list[str]:
    """What the data give less of than a run asks for, a sentence each.

    teacher, start: the runs that it is taught by and starts from. root: nuScenes' folder, where map expansions are looked
    for. Raises InputError that names the run and the setting where a split is empty, one of them learned from a scene to
    score on, or the training split holds no box to learn from, no earlier sweep, no camera or no map at all.
    """
    training, validation = (_split(run, infos, key) for key in ("train_split", "val_split"))
    sensors = sensors_read(run, teacher)
    if "camera" in sensors and not infos.cameras.num_rows:
        raise InputError(
            f"{run.name}: sensors: the run or its teacher reads cameras, but {infos.version} has no image of the six; "
            "name lidar alone, or get nuScenes' cameras."
        )
    learned = {other.name: other for other in (run, teacher, start) if other is not None}
    said = [sentence for other in learned.values() for sentence in _leaks(run, other, infos)]
    said += _sweeps(run, training) if "lidar" in sensors else []
    said += _history(run, training)
    if run.task == "detection":
        said += _boxes(run, training) + _scored(run, validation)
    if run.map is not None and root is not None:
        _maps(run, infos, root)
    _batches(run, training)
    return [f"{run.name}: {sentence}" for sentence in said]


def check_scoring(run: Run, infos: Infos) -> list[str]:
    """What `check` says of the split to score on, which may be changed after training."""
    _split(run, infos, "val_split")
    return [f"{run.name}: {sentence}" for sentence in _leaks(run, run, infos)]


def _split(run: Run, infos: Infos, key: str) -> Infos:
    """The samples of the split that a setting names."""
    name = getattr(run.data, key)
    try:
        samples = infos.subset(name)
    except InputError as error:
        raise InputError(f"{run.name}: data.{key}: {error}") from None
    if not len(samples):
        raise InputError(
            f"{run.name}: data.{key}: split {name!r} has scenes in {infos.version}, but no sample; name another split."
        )
    return samples


def _leaks(run: Run, other: Run, infos: Infos) -> list[str]:
    """No scene to score on was learned from, by the run or by one that it starts from or is taught by."""
    first, second = other.data.train_split, run.data.val_split
    shared = sorted(set(infos.splits.get(first, [])) & set(infos.splits[second]))
    if first == second:
        return [
            f"data.val_split: {second!r} is the training split of {other.name}, so the score is of what was learned."
        ]
    if shared:
        raise InputError(
            f"{run.name}: data.val_split: {second!r} shares {_some(shared)} with the training split {first!r} of "
            f"{other.name}, so the score would be of what was learned by heart; take them out of one (splits.json), or name "
            "one split for both."
        )
    return []


def _sweeps(run: Run, training: Infos) -> list[str]:
    """Earlier LiDAR sweeps: some, and as many as asked."""
    wanted = run.data.sweeps
    counts = training.arrays["sweep_count"][training.rows]
    most, without = int(counts.max()), int((counts == 0).sum())
    if wanted and not most:
        raise InputError(
            f"{run.name}: data.sweeps: {wanted} earlier sweeps are asked for, but no sample of {run.data.train_split!r} has "
            "one (prev in sample_data.json); get nuScenes' sweeps, or set it to 0."
        )
    if wanted > most:
        return [
            f"data.sweeps: {wanted} earlier sweeps are asked for, but no sample of {run.data.train_split!r} has more than "
            f"{most}, {without} of {len(counts)} have none."
        ]
    return []


def _history(run: Run, training: Infos) -> list[str]:
    """Earlier keyframes, whose images a camera run may look at."""
    if run.camera is None or run.camera.history is None:
        return []
    scenes = training.samples["scene"].take(training.rows).to_pylist()
    if len(set(scenes)) < len(scenes):
        return []
    return [
        f"camera.history: earlier keyframes are asked for, but each scene of {run.data.train_split!r} has one keyframe."
    ]


def _boxes(run: Run, training: Infos) -> list[str]:
    """Boxes to learn from: some, of each class, with velocities."""
    split = f"training split {run.data.train_split!r}"
    boxes, labels, valid = _boxes_of(training)
    if not len(boxes):
        raise InputError(
            f"{run.name}: the {split} has no box of the ten classes (category.json, sample_annotation.json), so nothing "
            "can be learned; name a split with annotations."
        )
    if not valid.any():
        raise InputError(
            f"{run.name}: no LiDAR or radar point lies in any of the {len(boxes)} boxes of the {split} (num_lidar_pts, "
            "num_radar_pts), so nothing can be learned; extract the metadata again."
        )
    near = valid & box_tools.in_range(boxes, run.bev.range)
    if not near.any():
        raise InputError(
            f"{run.name}: bev.range: none of the {int(valid.sum())} boxes of the {split} lies within it, so nothing can "
            "be learned; widen it."
        )
    said = []
    counts = np.bincount(labels[near], minlength=len(box_tools.CLASSES))
    missing = [name for name, count in zip(box_tools.CLASSES, counts, strict=True) if not count]
    if missing:
        said.append(
            f"the {split} has no valid box of {len(missing)} of the ten classes within bev.range ({', '.join(missing)}), so "
            f"these are not learned; it has {int(near.sum())} of the others."
        )
    if np.isnan(boxes[near, 7:9]).any(axis=1).all():
        said.append(f"no box of the {split} has a velocity (prev, next), so none is learned.")
    return said


def _scored(run: Run, validation: Infos) -> list[str]:
    """Boxes to be scored on, in a split that the devkit scores."""
    split = run.data.val_split
    version = validation.version
    ending = next((ending for ending, names in OFFICIAL.items() if split in names), "")
    if not version.endswith(ending):
        raise InputError(
            f"{run.name}: data.val_split: nuscenes-devkit scores {split!r} in versions that end in {ending!r} only, not in "
            f"{version}; give its scenes another name in splits.json."
        )
    boxes, _, valid = _boxes_of(validation)
    if not len(boxes):
        raise InputError(
            f"{run.name}: data.val_split: split {split!r} has no box of the ten classes, so nothing can be scored; name a "
            "split with annotations."
        )
    if not valid.any():
        return [
            f"data.val_split: no point lies in any of the {len(boxes)} boxes of {split!r}, so all scores will be 0."
        ]
    first, last = (validation.arrays[name][validation.rows] for name in ("box_offset", "box_count"))
    named = validation.boxes["attribute"].to_pylist()
    if not any(named[i] for a, n in zip(first, last, strict=True) for i in range(a, a + n)):
        return [f"data.val_split: no box of {split!r} has an attribute, so the attribute error says nothing."]
    return []


def _maps(run: Run, infos: Infos, root: Path) -> None:
    """Map expansions of the places that there are."""
    places = sorted(set(infos.samples["location"].to_pylist()))
    absent = [location for location in places if not (root / "maps" / "expansion" / f"{location}.json").is_file()]
    if absent:
        raise InputError(
            f"{run.name}: task: map labels of {', '.join(map(repr, absent))} (log.json) are needed, but "
            f"{root / 'maps' / 'expansion' / absent[0]}.json does not exist; unpack nuScenes' map expansion there."
        )


def _batches(run: Run, training: Infos) -> None:
    """At least one batch an epoch."""
    holders = training.holds_class().sum(axis=0)
    drawn = int((holders > 0).sum()) * int(holders.sum() / len(holders))
    count = drawn if run.data.balance == "cbgs" else len(training)
    if count < run.train.batch:
        raise InputError(
            f"{run.name}: train.batch: an epoch holds {count} samples, fewer than one batch of {run.train.batch}; "
            "lower train.batch."
        )


def _boxes_of(infos: Infos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (M, 9), labels and validity of a split."""
    owner = np.repeat(np.arange(len(infos.samples)), infos.arrays["box_count"])
    inside = np.isin(owner, infos.rows)
    return tuple(infos.arrays[name][inside] for name in ("boxes", "labels", "valid"))


def _some(names: list[str]) -> str:
    """The first of some scenes, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other scenes"
