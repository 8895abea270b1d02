"""What the pictures of one keyframe share: which keyframe, its boxes, and the scene seen from above.

Everything is drawn in the LiDAR frame: metres, x right, y forward (up on the page). Letters: M boxes, P points.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import boxes as box_tools
from vexkd import geometry
from vexkd.boxes import CLASSES
from vexkd.data import infos as info_files
from vexkd.data import points as point_files
from vexkd.data import tables as table_files
from vexkd.data.infos import Keyframe
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.report.figures.drawing import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = 54.0  # metres shown to each side
VIEW = (-LIMIT, -LIMIT, -np.inf, LIMIT, LIMIT, np.inf)
RINGS = (10, 30, 50)  # metres
EGO = {"marker": (3, 0, 0), "markersize": 6}  # the ego vehicle, looking up


@dataclass(frozen=True)
class Boxes:
    """Boxes (M, 9) in the LiDAR frame with labels (M,) into CLASSES and scores (M,), 1 for ground truth."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def where(self, chosen: np.ndarray) -> Boxes:
        """Those for which the mask (M,) holds."""
        return Boxes(self.boxes[chosen], self.labels[chosen], self.scores[chosen])

    def table(self) -> pd.DataFrame:
        """For the CSV beside a picture: metres and radians."""
        columns = ["x_m", "y_m", "z_m", "l_m", "w_m", "h_m", "yaw_rad"]
        table = pd.DataFrame(self.boxes[:, :7].round(3), columns=columns)
        table.insert(0, "class", [CLASSES[label] for label in self.labels])
        return table.assign(score=self.scores.round(4))


# ------------------------------------------------------------------------------------------------------- from the files


def predictions(run: str, experiment: Experiment, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Submission boxes of a detector by sample token. Raises InputError for a missing or an empty file."""
    path = experiment.training(run, seed).predictions("detection")
    if not path.is_file():
        raise InputError(f"{path}: there is no such prediction file; make it with 'vexkd predict' for run {run}.")
    try:
        by_token = json.loads(path.read_text(encoding="utf-8"))["results"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: this is not a nuScenes submission file; predict again.") from None
    if not by_token:
        raise InputError(f"{path}: there is no sample in it; predict again.")
    return by_token


def choose(experiment: Experiment, predicted: Iterable[str], sample: int | str | None) -> tuple[Keyframe, str]:
    """The keyframe to draw, among the samples that were predicted, and what it is in words.

    sample: its position among these, its token, or None for the one with most valid boxes. Raises InputError for another.
    """
    infos = info_files.load(experiment.infos)
    position = {token: number for number, token in enumerate(infos.tokens())}
    tokens = [token for token in predicted if token in position]
    if isinstance(sample, str) and sample.isdigit() and sample not in tokens:
        sample = int(sample)
    if isinstance(sample, int) and 0 <= sample < len(tokens):
        sample = tokens[sample]
    if sample is None and tokens:
        keyframe = max((infos[position[token]] for token in tokens), key=lambda each: int(each.valid.sum()))
    elif sample in tokens:
        keyframe = infos[position[sample]]
    else:
        raise InputError(
            f"{experiment.infos}: sample {sample} is not among the {len(tokens)} predicted ones that the infos know; name a"
            " token of the validation split, or its position there from 0."
        )
    rows = table_files.rows(experiment.root, infos.version, "scene")
    descriptions = {row["name"]: row.get("description", "") for row in rows}
    description = textwrap.shorten(descriptions.get(keyframe.scene, ""), 75, placeholder=" ...")
    return keyframe, f"{keyframe.scene}, sample {keyframe.token}\n{description}"


def lidar_points(keyframe: Keyframe, experiment: Experiment) -> np.ndarray:
    """The keyframe's own sweep, (P, 5)."""
    return point_files.read_lidar(Path(experiment.root) / keyframe.lidar_path)


def annotated(keyframe: Keyframe) -> Boxes:
    """Annotated boxes in view that LiDAR or radar has seen."""
    shown = keyframe.valid & box_tools.in_range(keyframe.boxes, VIEW)
    return Boxes(keyframe.boxes[shown], keyframe.labels[shown], np.ones(int(shown.sum())))


def detections(rows: list[dict[str, Any]], keyframe: Keyframe, threshold: float) -> Boxes:
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
    return Boxes(boxes_lidar, labels, scores).where(box_tools.in_range(boxes_lidar, VIEW))


# ----------------------------------------------------------------------------------------------------------- on an axis


def corners_above(boxes: np.ndarray) -> np.ndarray:
    """The four corners of each box seen from above, (M, 4, 2)."""
    return box_tools.corners(boxes)[:, :4, :2]


def draw_points(axis: Axes, points: np.ndarray, *, size: float, color: str) -> None:
    """LiDAR points as dots, a bitmap in an SVG too."""
    near = np.abs(points[:, :2]).max(axis=1) < LIMIT
    axis.scatter(points[near, 0], points[near, 1], s=size, color=color, alpha=0.5, linewidths=0, rasterized=True)


def draw_rings(axis: Axes, *, color: str) -> None:
    """Circles of equal range."""
    from matplotlib.patches import Circle

    for radius in RINGS:
        axis.add_patch(Circle((0, 0), radius, fill=False, color=color, linewidth=0.6, linestyle=(0, (4, 3))))


def draw_outlines(axis: Axes, boxes: np.ndarray, **style: Any) -> None:
    """Outlines of boxes (M, 9)."""
    from matplotlib.collections import PolyCollection

    axis.add_collection(PolyCollection(corners_above(boxes), facecolors="none", **style))


def draw_ego(axis: Axes, **style: Any) -> None:
    """The ego vehicle at the origin."""
    axis.plot(0, 0, **EGO, **({"color": INK} | style))


def show_range(axis: Axes, left: float, right: float, bottom: float, top: float) -> None:
    """Metres that an axis shows."""
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def ego_in_legend(**style: Any) -> Any:
    """The entry of the ego vehicle in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", label="ego vehicle", **EGO, **({"color": INK} | style))


def points_in_legend(color: str) -> Any:
    """The entry of LiDAR points in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=".", markersize=3, color=color, label="LiDAR point")
