"""Errors of two detectors from above: a baseline beside its distilled student, hits, false alarms and misses marked.

What a hit is, and its colours, are those of the figure in the six images (`camera`). Drawn in the LiDAR frame: metres, x
right, y forward (up on the page).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.boxes import CLASSES
from vexkd.data import points as point_files
from vexkd.report.figures import birdseye, drawing
from vexkd.report.figures.birdseye import LIMIT, RINGS, Boxes
from vexkd.report.figures.six_images import OUTCOMES, compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def errors(
    baseline: str,
    distilled: str,
    *,
    results: Path,
    models: Path,
    root: Path,
    infos: Path,
    seed: int,
    sample: int | str | None = None,
    threshold: float = 0.2,
) -> None:
    """Two runs on one keyframe: results/figures/errors-<distilled>.{png,svg,csv}; the CSV counts outcomes by class.

    `sample` and errors as of `birdseye.birdseye`.
    """
    keyframe, caption, judged = compared(baseline, distilled, models, root, infos, seed, sample, threshold)
    points = point_files.read_lidar(Path(root) / keyframe.lidar_path)
    stem = Path(results) / "figures" / f"errors-{distilled}"
    frame = pd.concat([_counts(shown).assign(run=run) for run, shown in judged.items()], ignore_index=True)
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))
    with drawing.figure(stem, (8.6, 5.3)) as made:
        axes = made.subplots(1, 2, sharey=True)
        for axis, (run, shown) in zip(axes, judged.items(), strict=True):
            _scene(axis, points, shown)
            hits, alarms, misses = (len(boxes.boxes) for boxes in shown.values())
            numbers = f"{hits} hits, {alarms} false alarms, {misses} missed"
            axis.set_title(f"{run}\n", fontweight="bold")
            axis.text(0, 1.015, numbers, transform=axis.transAxes, fontsize=7.5)
        axes[0].set_ylabel("y, forward (m)")
        drawing.heading(made, f"{baseline} and {distilled}, seed {seed}, score ≥ {threshold:g}", caption)
        made.legend(handles=_legend(), loc="outside lower left", ncols=3)


def _counts(judged: dict[str, Boxes]) -> pd.DataFrame:
    """How many boxes of each class had each outcome."""
    columns = {outcome: np.bincount(shown.labels, minlength=len(CLASSES)) for outcome, shown in judged.items()}
    return pd.DataFrame({"class": CLASSES, **{k.replace(" ", "_"): column for k, column in columns.items()}})


def _scene(axis: Axes, points: np.ndarray, judged: dict[str, Boxes]) -> None:
    """Points, range rings and the boxes of one run by outcome."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Circle

    near = np.abs(points[:, :2]).max(axis=1) < LIMIT
    axis.scatter(points[near, 0], points[near, 1], s=0.4, color="#9A9A9A", alpha=0.5, linewidths=0, rasterized=True)
    for radius in RINGS:
        axis.add_patch(Circle((0, 0), radius, fill=False, color="#CCCCCC", linewidth=0.6, linestyle=(0, (4, 3))))
    for outcome, shown in judged.items():
        colour, style, _ = OUTCOMES[outcome]
        plan = birdseye.seen_from_above(shown.boxes)  # M 4 2
        axis.add_collection(
            PolyCollection(plan, facecolors="none", edgecolors=colour, linestyles=style, linewidths=1.2, zorder=3)
        )
    axis.plot(0, 0, marker=(3, 0, 0), markersize=6, color=drawing.INK, zorder=4)  # the ego vehicle, looking up
    axis.set_aspect("equal")
    axis.set_xlim(-LIMIT, LIMIT)
    axis.set_ylim(-LIMIT, LIMIT)
    axis.set_xlabel("x, right (m); rings at " + ", ".join(map(str, RINGS)) + " m")


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    boxes = [Line2D([], [], color=colour, linestyle=style, label=words) for colour, style, words in OUTCOMES.values()]
    return [
        *boxes,
        Line2D([], [], linestyle="none", marker=".", markersize=3, color="#9A9A9A", label="LiDAR point"),
        Line2D([], [], linestyle="none", marker=(3, 0, 0), markersize=6, color=drawing.INK, label="ego vehicle"),
    ]
