"""What a detector sees from above: LiDAR points, ground truth and predictions of one keyframe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.boxes import CLASSES
from vexkd.experiment import Experiment
from vexkd.report.figures import drawing, scene
from vexkd.report.figures.scene import LIMIT, RINGS, Boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#5A5A5A"  # of LiDAR points


def birdseye(
    run: str, experiment: Experiment, *, seed: int, sample: int | str | None = None, threshold: float = 0.2
) -> None:
    """Draw one keyframe with a run's predictions above a score: results/figures/birdseye-<run>.{png,svg,csv}.

    sample: as for `scene.choose`. Raises InputError for missing predictions, an unknown sample, or a missing LiDAR file.
    """
    by_token = scene.predictions(run, experiment, seed)
    keyframe, caption = scene.choose(experiment, by_token, sample)
    truth, points = scene.annotated(keyframe), scene.lidar_points(keyframe, experiment)
    predicted = scene.detections(by_token[keyframe.token], keyframe, threshold)
    stem = experiment.figures / f"birdseye-{run}"
    provenance.write_text(stem.with_suffix(".csv"), _table({"ground truth": truth, run: predicted}).to_csv(index=False))
    with drawing.figure(stem, (7.5, 5.7)) as figure:
        axis = figure.subplots()
        _draw(axis, points, truth, predicted)
        axis.set_ylabel("y, forward (m)")
        drawing.heading(figure, f"{run}, seed {seed}", caption)
        figure.legend(handles=_legend(truth, predicted, threshold), loc="outside right upper")


def _table(by_source: dict[str, Boxes]) -> pd.DataFrame:
    parts = []
    for source, boxes in by_source.items():
        table = boxes.table()
        table.insert(0, "source", source)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _draw(axis: Axes, points: np.ndarray, truth: Boxes, predicted: Boxes) -> None:
    """Points, range rings, ground truth (filled) and predictions (outlined) on one pair of axes."""
    scene.draw_points(axis, points, size=0.5, color=GREY)
    scene.draw_rings(axis, color="#BBBBBB")
    for radius in RINGS:
        at = radius / np.sqrt(2)
        axis.text(at, -at, f"{radius} m", fontsize=6.5, color="#777777", ha="center", va="center", zorder=6,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})  # fmt: skip
    scene.draw_ego(axis, zorder=7)
    _filled(axis, truth)
    _outlined(axis, predicted)
    axis.set_aspect("equal")
    scene.show_range(axis, -LIMIT, LIMIT, -LIMIT, LIMIT)
    axis.set_xlabel("x, right (m)")


def _filled(axis: Axes, shown: Boxes) -> None:
    """Boxes as areas of their class's colour."""
    from matplotlib.collections import PolyCollection

    colours = [drawing.CLASS_COLOURS[CLASSES[label]] for label in shown.labels]
    corners = scene.corners_above(shown.boxes)
    axis.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="none", alpha=0.35, zorder=3))


def _outlined(axis: Axes, shown: Boxes) -> None:
    """Boxes as outlines with a tick from the centre through the front, the more opaque the surer."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    colours = [
        to_rgba(drawing.CLASS_COLOURS[CLASSES[label]], 0.25 + 0.75 * min(1.0, float(score)))
        for label, score in zip(shown.labels, shown.scores, strict=True)
    ]
    corners = scene.corners_above(shown.boxes)
    outlines = np.concatenate([corners, corners[:, :1]], axis=1)  # M 5 2
    axis.add_collection(LineCollection(outlines, colors=colours, linewidths=1.0, zorder=4))
    axis.add_collection(LineCollection(_ticks(shown.boxes), colors=colours, linewidths=1.0, zorder=4))


def _ticks(boxes: np.ndarray) -> np.ndarray:
    """Heading ticks, (M, 2, 2): from the centre to half a metre beyond the middle of the front."""
    direction = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=1)  # M 2
    tip = boxes[:, :2] + direction * (boxes[:, 3:4] / 2 + 0.5)
    return np.stack([boxes[:, :2], tip], axis=1)


def _legend(truth: Boxes, predicted: Boxes, threshold: float) -> list[Any]:
    """What the drawing styles mean, then the classes that are shown with their counts in the ground truth."""
    from matplotlib.patches import Patch

    words = f"prediction, score ≥ {threshold:g}\n(fainter: less sure)"
    handles: list[Any] = [
        Patch(facecolor="#999999", alpha=0.6, label="ground truth"),
        Patch(facecolor="none", edgecolor=drawing.INK, label=words),
        scene.points_in_legend(GREY),
        scene.ego_in_legend(),
    ]
    for label in np.unique(np.concatenate([truth.labels, predicted.labels])):
        name = CLASSES[label]
        text = f"{name.replace('_', ' ')} ({int((truth.labels == label).sum())} true)"
        handles.append(Patch(color=drawing.CLASS_COLOURS[name], label=text))
    return handles
