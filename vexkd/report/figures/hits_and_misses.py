"""Which detections hit, for the pictures that compare a student alone with the same student distilled.

A detection hits where an annotated box of its class that none surer has taken lies within 2 m, as true positives of the
nuScenes metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vexkd.data.infos import Keyframe
from vexkd.experiment import Experiment
from vexkd.report.figures import drawing, scene
from vexkd.report.figures.scene import Boxes

REACH = 2.0  # metres between centres, nuScenes' threshold for true positives
# Outcome -> colour, line and words.
OUTCOMES = {
    "hit": (drawing.SKY, "-", "hit: within 2 m of a true box of its class"),
    "false alarm": (drawing.VERMILLION, "--", "false alarm"),
    "missed": (drawing.ORANGE, ":", "missed true box"),
}


@dataclass(frozen=True)
class Comparison:
    """A keyframe, what it is in words, and by run the boxes of each outcome."""

    keyframe: Keyframe
    caption: str
    by_run: dict[str, dict[str, Boxes]]


def compare(
    student: str, distilled: str, experiment: Experiment, *, seed: int, sample: int | str | None, threshold: float
) -> Comparison:
    """Two runs on one keyframe, by their predictions with a score of the threshold or more; errors as of `scene.choose`."""
    predicted = {run: scene.predictions(run, experiment, seed) for run in (student, distilled)}
    keyframe, caption = scene.choose(experiment, predicted[distilled], sample)
    truth = scene.annotated(keyframe)
    by_run = {
        run: by_outcome(truth, scene.detections(by_token.get(keyframe.token, []), keyframe, threshold))
        for run, by_token in predicted.items()
    }
    return Comparison(keyframe, caption, by_run)


def by_outcome(truth: Boxes, predicted: Boxes) -> dict[str, Boxes]:
    """Boxes by outcome, a key of OUTCOMES."""
    hit, missed = outcomes(truth, predicted)
    return {"hit": predicted.where(hit), "false alarm": predicted.where(~hit), "missed": truth.where(missed)}


def outcomes(truth: Boxes, predicted: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Which predictions hit (M,), and which true boxes none hits (N,); the surest choose first."""
    hit = np.zeros(len(predicted), dtype=bool)
    missed = np.ones(len(truth), dtype=bool)
    for number in np.argsort(-predicted.scores, kind="stable"):
        distance = np.linalg.norm(truth.boxes[:, :2] - predicted.boxes[number, :2], axis=1)
        distance[(truth.labels != predicted.labels[number]) | ~missed] = np.inf
        if len(distance) and distance.min() < REACH:
            hit[number], missed[distance.argmin()] = True, False
    return hit, missed


def legend() -> list:
    """The entries of the outcomes."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colour, linestyle=style, label=words) for colour, style, words in OUTCOMES.values()]
