"""The scores of a run whose predictions were made without one of its sensors (the paper's Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vexkd import provenance
from vexkd.data import infos as info_tools
from vexkd.data import map_predictions
from vexkd.data.maps import Maps
from vexkd.errors import InputError
from vexkd.evaluate import detection, map_scores, seed_files
from vexkd.experiment import Experiment
from vexkd.settings import Run


def collect(
    run: Run,
    sensor: str,
    *,
    experiment: Experiment,
    root: Path,
    infos: Path,
    maps: Path,
    seeds: Sequence[int],
    held_to_devkit: bool = False,
) -> None:
    """models/<run>/seed<k>/predictions-without-<sensor>.* in, results/runs/<run>/metrics-without-<sensor>.json out.

    The file is as metrics.json, with `evaluation` that says what it was made from. Raises InputError for a missing file and
    whatever scoring refuses.
    """
    files = {}
    for seed in seeds:
        files[str(seed)] = experiment.training(run.name, seed).predictions(run.task, without=sensor)
    for path in files.values():
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; make it with 'vexkd predict --drop {sensor}'.")
    if run.task == "segmentation" and run.map is not None:
        opened = {seed: map_predictions.read(path) for seed, path in files.items()}
        split = info_tools.load(infos).subset(run.data.val_split)
        rasters = Maps(maps).require(cell=run.map.cell, edges=run.map.edges)
        counts = map_scores.count_scenes(opened, split=split, maps=rasters, grid=run.map.grid)
        scores = {seed: map_scores.total(scenes.values()).result() for seed, scenes in counts.items()}
        metrics = seed_files.summarise(scores, spread=("mIoU", "IoU"))
    else:
        scores = detection.evaluate_many(
            files,
            root=root,
            version=run.data.version,
            split=run.data.val_split,
            config=run.inference.evaluation,
            held_to_devkit=held_to_devkit,
        )
        metrics = detection.summarise(scores)
    metrics["evaluation"] = {
        "predictions": {seed: provenance.file_digest(path) for seed, path in files.items()},
        "split": run.data.val_split,
        "config": run.inference.evaluation,
    }
    provenance.write_json(experiment.run(run.name).metrics_without(sensor), metrics)
