"""Errors of two detectors from above: a student alone beside the same student distilled; hits, false alarms and misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.boxes import CLASSES
from vexkd.experiment import Experiment
from vexkd.report.figures import drawing, hits_and_misses, scene
from vexkd.report.figures.hits_and_misses import OUTCOMES
from vexkd.report.figures.scene import LIMIT, RINGS, Boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#9A9A9A"  # of LiDAR points


def errors(
    student: str,
    distilled: str,
    experiment: Experiment,
    *,
    seed: int,
    sample: int | str | None = None,
    threshold: float = 0.2,
) -> None:
    """Two runs on one keyframe: results/figures/errors-<distilled>.{png,svg,csv}; the CSV counts outcomes by class.

    `sample` and errors as of `birdseye.birdseye`.
    """
    compared = hits_and_misses.compare(
        student, distilled, experiment, seed=seed, sample=sample, threshold=threshold
    )  # fmt: skip
    points = scene.lidar_points(compared.keyframe, experiment)
    stem = experiment.figures / f"errors-{distilled}"
    counts = [_counts(boxes).assign(run=run) for run, boxes in compared.by_run.items()]
    provenance.write_text(stem.with_suffix(".csv"), pd.concat(counts, ignore_index=True).to_csv(index=False))
    with drawing.figure(stem, (8.6, 5.3)) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (run, boxes) in zip(axes, compared.by_run.items(), strict=True):
            _draw(axis, points, boxes)
            hits, alarms, misses = map(len, boxes.values())
            axis.set_title(f"{run}\n", fontweight="bold")
            words = f"{hits} hits, {alarms} false alarms, {misses} missed"
            axis.text(0, 1.015, words, transform=axis.transAxes, fontsize=7.5)
        axes[0].set_ylabel("y, forward (m)")
        title = f"{student} and {distilled}, seed {seed}, score ≥ {threshold:g}"
        drawing.heading(figure, title, compared.caption)
        handles = [*hits_and_misses.legend(), scene.points_in_legend(GREY), scene.ego_in_legend()]
        figure.legend(handles=handles, loc="outside lower left", ncols=3)


def _counts(by_outcome: dict[str, Boxes]) -> pd.DataFrame:
    """How many boxes of each class had each outcome."""
    counts = {outcome: np.bincount(boxes.labels, minlength=len(CLASSES)) for outcome, boxes in by_outcome.items()}
    return pd.DataFrame({"class": CLASSES, **{outcome.replace(" ", "_"): count for outcome, count in counts.items()}})


def _draw(axis: Axes, points: np.ndarray, by_outcome: dict[str, Boxes]) -> None:
    """Points, range rings and the boxes of one run by outcome."""
    scene.draw_points(axis, points, size=0.4, color=GREY)
    scene.draw_rings(axis, color="#CCCCCC")
    for outcome, boxes in by_outcome.items():
        colour, style, _ = OUTCOMES[outcome]
        scene.draw_outlines(axis, boxes.boxes, edgecolors=colour, linestyles=style, linewidths=1.2, zorder=3)
    scene.draw_ego(axis, zorder=4)
    axis.set_aspect("equal")
    scene.show_range(axis, -LIMIT, LIMIT, -LIMIT, LIMIT)
    axis.set_xlabel("x, right (m); rings at " + ", ".join(map(str, RINGS)) + " m")
