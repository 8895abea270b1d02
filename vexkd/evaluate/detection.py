"""nuScenes' detection metric on prediction files: files in, numbers out.

mAP: centre distance at 0.5, 1, 2, 4 m in the ground plane. True-positive errors at 2 m: mATE (m), mASE (1 - IoU),
mAOE (rad), mAVE (m/s), mAAE (1 - accuracy). NDS = (5 mAP + sum over the five errors of 1 - min(1, error)) / 10.
All scores are fractions in [0, 1]; boxes are in the global frame, as nuScenes' submission format has them. The numbers are
computed by `array_scorer` and equal nuscenes-devkit's within 1e-12, to which tests and `referee` hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexkd.errors import InputError
from vexkd.evaluate import (
    array_scorer,
    box_columns,
    ground_truth,
    referee,
    resamples,
    seed_files,
    submission_file,
)
from vexkd.evaluate.array_scorer import ERRORS, Matches, Score, Settings
from vexkd.experiment import Experiment

SUMMARY = ("mAP", "NDS", *ERRORS)


@dataclass(frozen=True)
class Scored:
    """One prediction file: its score, and what the scores of draws are made of."""

    score: Score
    matches: dict[str, Matches]
    settings: Settings
    scenes: list[str]


def evaluate(
    predictions: Path, *, root: Path, version: str, split: str, config: str, held_to_devkit: bool = False
) -> dict[str, Any]:
    """Score one prediction file; see `evaluate_many`."""
    files = {"": predictions}
    return evaluate_many(files, root=root, version=version, split=split, config=config, held_to_devkit=held_to_devkit)[
        ""
    ]


def evaluate_many(
    predictions: dict[str, Path], *, root: Path, version: str, split: str, config: str, held_to_devkit: bool = False
) -> dict[str, dict[str, Any]]:
    """Score nuScenes submission files on one split, reading the data set's tables once.

    `predictions` maps any name to a file; `config` names one of the devkit's configurations ("detection_cvpr_2019").
    Returns by name {"mAP", "NDS", the five mean errors, "AP": {class: mean over thresholds}, "errors": {class: {error:
    value, or None where nuScenes defines none}}}. A file without a single box scores 0 with errors of 1. Raises
    InputError for a data set, split or configuration that is not there, and for a file that is malformed or incomplete;
    with `held_to_devkit` also for a score that is not nuscenes-devkit's.
    """
    scored = score_files(
        predictions, root=root, version=version, split=split, config=config, held_to_devkit=held_to_devkit
    )
    return {name: each.score.plain() for name, each in scored}


def score_files(
    predictions: dict[str, Path], *, root: Path, version: str, split: str, config: str, held_to_devkit: bool = False
) -> Iterator[tuple[str, Scored]]:
    """Of each file its name and scores, one at a time; see `evaluate_many`."""
    settings = array_scorer.configuration(config)
    for path in predictions.values():
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such prediction file; make it with 'vexkd predict'.")
    truth = ground_truth.read(Path(root), version, split)
    counted = box_columns.kept(truth.boxes, truth.ego, truth.racks, settings.class_range)
    nusc = referee.open_set(root, version) if held_to_devkit else None
    for name, path in predictions.items():
        boxes = submission_file.read(
            Path(path), truth.tokens, split=split, most=settings.max_boxes_per_sample, custom=truth.custom
        )
        boxes = box_columns.kept(boxes, truth.ego, truth.racks, settings.class_range)
        matches = array_scorer.matches(counted, boxes, truth.scene, len(truth.scenes), settings)
        score = array_scorer.score(matches, settings)
        if nusc is not None:
            referee.hold(score, Path(path), nusc=nusc, split=split, config=config)
        yield name, Scored(score, matches, settings, truth.scenes)


def collect(
    run: str,
    *,
    experiment: Experiment,
    root: Path,
    version: str,
    split: str,
    config: str,
    seeds: list[int],
    held_to_devkit: bool = False,
) -> None:
    """Score every seed of a run: models/<run>/seed<k>/{predictions.json,curve.csv,provenance.json} in,
    results/runs/<run>/{metrics.json,curve.csv,provenance.json,resamples.json} out.

    Top-level metrics are means over the seeds, `seeds` has each seed's own, `spread` their sample standard deviations
    (null for one seed). Raises InputError for a missing file and for whatever `evaluate_many` refuses; then nothing is
    written.
    """
    seeds_files = seed_files.read(run, experiment, seeds=seeds, predictions="predictions.json")
    scores, drawn, scenes = {}, {}, []
    for seed, scored in score_files(
        seeds_files.predictions, root=root, version=version, split=split, config=config, held_to_devkit=held_to_devkit
    ):
        scores[seed] = scored.score.plain()
        drawn[seed] = resamples.of_detection(scored.matches, scored.settings)
        scenes = scored.scenes
    resamples.save(experiment.run(run).resamples, scenes, drawn)
    dataset = {"version": version, "split": split}
    seed_files.write(seeds_files, summarise(scores), experiment, dataset=dataset, config=config)


def summarise(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, then `n`, `spread` (sample standard deviations, None for one seed) and `seeds`."""
    return seed_files.summarise(scores, spread=(*SUMMARY, "AP"))
