"""What a detector sees from above: LiDAR points, ground truth and predictions of one keyframe.

Everything is drawn in the LiDAR frame: metres, x right, y forward (up on the page).
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import boxes as box_tools
from vexkd import geometry, provenance
from vexkd.boxes import CLASSES
from vexkd.data import infos as info_files
from vexkd.data import points as point_files
from vexkd.data import tables as table_files
from vexkd.errors import InputError
from vexkd.report.figures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = 54.0  # metres shown to each side
VIEW = (-LIMIT, -LIMIT, -np.inf, LIMIT, LIMIT, np.inf)
RINGS = (10, 30, 50)  # metres


@dataclass(frozen=True)
class Boxes:
    """Boxes (M, 9) in the LiDAR frame with labels (M,) into CLASSES and scores (M,), 1 for ground truth."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def birdseye(
    run: str,
    *,
    results: Path,
    models: Path,
    root: Path,
    infos: Path,
    seed: int,
    sample: int | str | None = None,
    threshold: float = 0.2,
) -> None:
    """Draw one keyframe with a run's predictions above a score: results/figures/birdseye-<run>.{png,svg,csv}.

    sample: position among the predicted samples, a sample token, or None for the one with most valid boxes.
    Raises InputError for missing predictions, an unknown sample, or a missing LiDAR file.
    """
    found = read_predictions(run, Path(models), seed)
    keyframe, caption = choose(Path(root), Path(infos), found, sample)
    truth, points = annotated(keyframe), point_files.read_lidar(Path(root) / keyframe.lidar_path)
    predicted = detections(found[keyframe.token], keyframe, threshold)
    stem = Path(results) / "figures" / f"birdseye-{run}"
    provenance.write_text(stem.with_suffix(".csv"), _frame(truth, {run: predicted}).to_csv(index=False))
    with drawing.figure(stem, (7.5, 5.7)) as made:
        axis = made.subplots()
        _scene(axis, points, truth, predicted)
        axis.set_ylabel("y, forward (m)")
        drawing.heading(made, f"{run}, seed {seed}", caption)
        made.legend(handles=_legend(truth, [predicted], threshold), loc="outside right upper")


def read_predictions(run: str, models: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Submission boxes by sample token."""
    path = models / run / f"seed{seed}" / "predictions.json"
    if not path.is_file():
        raise InputError(f"{path}: there is no such prediction file; make it with 'vexkd predict' for run {run}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["results"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: this is not a nuScenes submission file; predict again.") from None
    if not found:
        raise InputError(f"{path}: there is no sample in it; predict again.")
    return found


def choose(root: Path, infos: Path, found: dict[str, Any], sample: int | str | None) -> tuple[info_files.Keyframe, str]:
    """The keyframe to draw, among those predicted, and what it is in words."""
    known = info_files.load(infos)
    position = {token: i for i, token in enumerate(known.tokens())}
    tokens = [token for token in found if token in position]
    if isinstance(sample, str) and sample.isdigit() and sample not in tokens:
        sample = int(sample)
    if isinstance(sample, int) and 0 <= sample < len(tokens):
        sample = tokens[sample]
    if sample is None and tokens:
        keyframe = max((known[position[token]] for token in tokens), key=lambda each: int(each.valid.sum()))
    elif sample in tokens:
        keyframe = known[position[sample]]
    else:
        raise InputError(
            f"{infos}: sample {sample} is not among the {len(tokens)} predicted ones that the infos know; name a token "
            "of the validation split, or its position there from 0."
        )
    scenes = {row["name"]: row.get("description", "") for row in table_files.rows(root, known.version, "scene")}
    description = textwrap.shorten(scenes.get(keyframe.scene, ""), 75, placeholder=" ...")
    return keyframe, f"{keyframe.scene}, sample {keyframe.token}\n{description}"


def annotated(keyframe: info_files.Keyframe) -> Boxes:
    """Annotated boxes in view that LiDAR or radar has seen."""
    shown = keyframe.valid & box_tools.in_range(keyframe.boxes, VIEW)
    return Boxes(keyframe.boxes[shown], keyframe.labels[shown], np.ones(int(shown.sum())))


def detections(rows: list[dict[str, Any]], keyframe: info_files.Keyframe, threshold: float) -> Boxes:
    """Submission boxes (global frame) of one sample in view at or above a score, in the LiDAR frame, best last."""
    kept = sorted((r for r in rows if r["detection_score"] >= threshold), key=lambda row: row["detection_score"])
    if not kept:
        return Boxes(np.zeros((0, 9)), np.zeros(0, dtype=np.int64), np.zeros(0))
    columns = (np.array([row[key] for row in kept], dtype=float) for key in ("translation", "size", "rotation"))
    boxes_global = box_tools.from_nuscenes(*columns)
    boxes_global[:, 7:9] = [row["velocity"] for row in kept]
    boxes_lidar = box_tools.move(boxes_global, geometry.inverse(keyframe.global_from_lidar))
    labels = np.array([CLASSES.index(row["detection_name"]) for row in kept])
    scores = np.array([row["detection_score"] for row in kept])
    shown = box_tools.in_range(boxes_lidar, VIEW)
    return Boxes(boxes_lidar[shown], labels[shown], scores[shown])


def _frame(truth: Boxes, predicted: dict[str, Boxes]) -> pd.DataFrame:
    """The boxes that are drawn as a tidy table: metres and radians in the LiDAR frame."""
    parts = []
    for source, shown in {"ground truth": truth, **predicted}.items():
        part = pd.DataFrame(shown.boxes[:, :7].round(3), columns=["x_m", "y_m", "z_m", "l_m", "w_m", "h_m", "yaw_rad"])
        part.insert(0, "class", [CLASSES[label] for label in shown.labels])
        part.insert(0, "source", source)
        parts.append(part.assign(score=shown.scores.round(4)))
    return pd.concat(parts, ignore_index=True)


def _scene(axis: Axes, points: np.ndarray, truth: Boxes, predicted: Boxes) -> None:
    """Points, range rings, ground truth (filled) and predictions (outlined) on one pair of axes."""
    from matplotlib.patches import Circle

    near = np.abs(points[:, :2]).max(axis=1) < LIMIT
    axis.scatter(points[near, 0], points[near, 1], s=0.5, color="#5A5A5A", alpha=0.5, linewidths=0, rasterized=True)
    for radius in RINGS:
        axis.add_patch(Circle((0, 0), radius, fill=False, color="#BBBBBB", linewidth=0.6, linestyle=(0, (4, 3))))
        place = radius / np.sqrt(2)
        axis.text(place, -place, f"{radius} m", fontsize=6.5, color="#777777", ha="center", va="center", zorder=6,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})  # fmt: skip
    axis.plot(0, 0, marker=(3, 0, 0), markersize=6, color=drawing.INK, zorder=7)  # the ego vehicle, looking up
    _filled(axis, truth)
    _outlined(axis, predicted)
    axis.set_aspect("equal")
    axis.set_xlim(-LIMIT, LIMIT)
    axis.set_ylim(-LIMIT, LIMIT)
    axis.set_xlabel("x, right (m)")


def _filled(axis: Axes, shown: Boxes) -> None:
    """Boxes as areas of their class's colour."""
    from matplotlib.collections import PolyCollection

    colours = [drawing.CLASS_COLOURS[CLASSES[label]] for label in shown.labels]
    axis.add_collection(
        PolyCollection(seen_from_above(shown.boxes), facecolors=colours, edgecolors="none", alpha=0.35, zorder=3)
    )


def _outlined(axis: Axes, shown: Boxes) -> None:
    """Boxes as outlines with a tick from the centre through the front, the more opaque the surer."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    colours = [
        to_rgba(drawing.CLASS_COLOURS[CLASSES[label]], 0.25 + 0.75 * min(1.0, float(score)))
        for label, score in zip(shown.labels, shown.scores, strict=True)
    ]
    plan = seen_from_above(shown.boxes)
    outlines = np.concatenate([plan, plan[:, :1]], axis=1)  # M 5 2
    axis.add_collection(LineCollection(outlines, colors=colours, linewidths=1.0, zorder=4))
    axis.add_collection(LineCollection(_ticks(shown.boxes), colors=colours, linewidths=1.0, zorder=4))


def seen_from_above(boxes: np.ndarray) -> np.ndarray:
    """The four corners of each box seen from above, (M, 4, 2)."""
    return box_tools.corners(boxes)[:, :4, :2]


def _ticks(boxes: np.ndarray) -> np.ndarray:
    """Heading ticks, (M, 2, 2): from the centre to half a metre beyond the middle of the front."""
    direction = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=1)  # M 2
    tip = boxes[:, :2] + direction * (boxes[:, 3:4] / 2 + 0.5)
    return np.stack([boxes[:, :2], tip], axis=1)


def _legend(truth: Boxes, predicted: list[Boxes], threshold: float) -> list[Any]:
    """What the drawing styles mean, then the classes that are shown with their counts in the ground truth."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor="#999999", alpha=0.6, label="ground truth"),
        Patch(
            facecolor="none", edgecolor=drawing.INK, label=f"prediction, score ≥ {threshold:g}\n(fainter: less sure)"
        ),
        Line2D([], [], linestyle="none", marker=".", markersize=3, color="#5A5A5A", label="LiDAR point"),
        Line2D([], [], linestyle="none", marker=(3, 0, 0), markersize=6, color=drawing.INK, label="ego vehicle"),
    ]
    shown = np.unique(np.concatenate([truth.labels, *(each.labels for each in predicted)]))
    for label in shown:
        name = CLASSES[label]
        text = f"{name.replace('_', ' ')} ({int((truth.labels == label).sum())} true)"
        handles.append(Patch(color=drawing.CLASS_COLOURS[name], label=text))
    return handles
