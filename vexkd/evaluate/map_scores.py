"""The scores of a segmentation run: its predicted maps against the map rasters, counted scene by scene."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vexkd.data import infos as info_tools
from vexkd.data import map_predictions
from vexkd.data.infos import Infos
from vexkd.data.map_predictions import MapPredictions
from vexkd.data.maps import Maps
from vexkd.errors import InputError
from vexkd.evaluate import resamples, seed_files
from vexkd.evaluate.segmentation import Accumulator
from vexkd.experiment import Experiment
from vexkd.geometry import BevGrid
from vexkd.settings import Run


def collect(run: Run, *, experiment: Experiment, infos: Path, maps: Path, seeds: Sequence[int]) -> None:
    """Score every seed of a run: models/<run>/seed<k>/{predictions.safetensors,curve.csv,provenance.json} in,
    results/runs/<run>/{metrics.json,curve.csv,provenance.json,resamples.json} out.

    Top-level metrics are means over the seeds, `seeds` has each seed's own, `spread` their sample standard deviations
    (null for one seed). Raises InputError for a missing file and for predictions that are not those of the whole split;
    then nothing is written.
    """
    seeds_files = seed_files.read(run.name, experiment, seeds=seeds, predictions="predictions.safetensors")
    opened = {seed: map_predictions.read(path) for seed, path in seeds_files.predictions.items()}
    split = info_tools.load(infos).subset(run.data.val_split)
    rasters = Maps(maps).require(cell=run.map.cell, edges=run.map.edges)
    counts = count_scenes(opened, split=split, maps=rasters, grid=run.map.grid)
    scores = {seed: total(scenes.values()).result() for seed, scenes in counts.items()}
    metrics = seed_files.summarise(scores, spread=("mIoU", "IoU"))
    drawn = {seed: resamples.of_segmentation(scenes) for seed, scenes in counts.items()}
    names = [name for scenes in counts.values() for name in scenes]
    resamples.save(experiment.run(run.name).resamples, names, drawn)
    dataset = {"version": run.data.version, "split": run.data.val_split}
    seed_files.write(seeds_files, metrics, experiment, dataset=dataset, labels=rasters.sha256)


def count_scenes(
    predictions: dict[str, MapPredictions], *, split: Infos, maps: Maps, grid: BevGrid
) -> dict[str, dict[str, Accumulator]]:
    """Counts of each file of predictions (by any name), scene by scene; every sample of the split, and no other, is in all."""
    tokens, scenes = split.tokens(), split.samples["scene"].take(pa.array(split.rows)).to_pylist()
    for each in predictions.values():
        _check(each, tokens, grid)
    counts = {name: {scene: Accumulator() for scene in scenes} for name in predictions}
    for token, scene in zip(tokens, scenes, strict=True):
        labels = maps.labels(token, np.eye(4), grid)
        for name, each in predictions.items():
            counts[name][scene].add(each.levels(token), labels)
    return counts


def _check(predictions: MapPredictions, tokens: list[str], grid: BevGrid) -> None:
    """Refuse predictions on another grid, or of other samples."""
    reach, cell = predictions.header["grid"]["reach"], predictions.header["grid"]["cell"]
    if (reach, cell) != (grid.bounds[3], grid.cell):
        raise InputError(
            f"{predictions.path}: these maps reach {reach:g} m with cells of {cell:g} m, the run's labels "
            f"{grid.bounds[3]:g} m with {grid.cell:g} m; predict again."
        )
    other = sorted(set(tokens) ^ set(predictions.rows))
    if other:
        raise InputError(
            f"{predictions.path}: {len(other)} samples are missing or not in the split, the first is {other[0]}; predict "
            "the whole split."
        )


def total(counts: Iterable[Accumulator]) -> Accumulator:
    """All counts in one."""
    everything = Accumulator()
    for each in counts:
        everything.merge(each)
    return everything
