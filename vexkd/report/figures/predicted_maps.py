"""What a map segmenter sees from above: predicted against true cells of one keyframe, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.data import map_predictions
from vexkd.data.map_predictions import THRESHOLDS
from vexkd.data.maps import Maps
from vexkd.experiment import Experiment
from vexkd.geometry import BevGrid
from vexkd.report.figures import drawing, scene
from vexkd.report.results import FinishedRun
from vexkd.settings import MAP_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is there is blue, dark where it is found; what is not there but predicted is orange.
FOUND, MISSED, FALSE = drawing.BLUE, "#A9D3F0", drawing.ORANGE


def maps(run: FinishedRun, experiment: Experiment, *, seed: int, sample: int | str | None = None) -> None:
    """Draw one keyframe's map by a run: results/figures/maps-<run>.{png,svg,csv}; the CSV counts the cells by class.

    Each class is predicted from its best threshold on, as the metric takes it. sample: as for `scene.choose`.
    Raises InputError for missing predictions, metrics or rasters, and for an unknown sample.
    """
    predicted = map_predictions.read(experiment.training(run.name, seed).predictions("segmentation"))
    keyframe, caption = scene.choose(experiment, predicted.rows, sample)
    reach, cell = predicted.header["grid"]["reach"], predicted.header["grid"]["cell"]
    grid = BevGrid((-reach, -reach, 0.0, reach, reach, 0.0), cell)
    true = Maps(experiment.maps).labels(keyframe.token, np.eye(4), grid).astype(bool)  # C Y X
    best = run.metrics["seeds"][str(seed)]["threshold"]
    needed = np.array([THRESHOLDS.index(best[name]) + 1 for name in MAP_CLASSES])
    mask = predicted.levels(keyframe.token) >= needed[:, None, None]  # C Y X

    frame = _counts(mask, true, best)
    stem = experiment.figures / f"maps-{run.name}"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))
    with drawing.figure(stem, (8.6, 6.4)) as figure:
        axes = drawing.panels(figure, len(MAP_CLASSES), 3, sharex=True, sharey=True)
        for axis, row, predicted_cells, true_cells in zip(axes, frame.to_dict("records"), mask, true, strict=True):
            _panel(axis, predicted_cells, true_cells, reach, scene.annotated(keyframe).boxes)
            axis.set_title(f"{row['class'].replace('_', ' ')}: {_score(row)}", fontweight="bold")
        for axis in axes[3:]:
            axis.set_xlabel("x, right (m)")
        for axis in axes[::3]:
            axis.set_ylabel("y, forward (m)")
        drawing.heading(figure, f"{run.name}, seed {seed}", caption)
        figure.legend(handles=_legend(), loc="outside lower left", ncols=5)


def _counts(mask: np.ndarray, true: np.ndarray, thresholds: dict[str, float]) -> pd.DataFrame:
    """Cells by class: found, missed, falsely predicted; IoU of this keyframe, empty where the class is nowhere."""
    rows = []
    for name, predicted, labelled in zip(MAP_CLASSES, mask, true, strict=True):
        cells = {
            "found": predicted & labelled,
            "missed": ~predicted & labelled,
            "false": predicted & ~labelled,
        }
        counts = {f"{kind}_cells": int(np.count_nonzero(where)) for kind, where in cells.items()}
        union = sum(counts.values())
        iou = round(100 * counts["found_cells"] / union, 2) if union else None
        rows.append({"class": name, "threshold": thresholds[name], **counts, "iou_percent": iou})
    return pd.DataFrame(rows)


def _score(row: dict[str, Any]) -> str:
    return "nowhere" if pd.isna(row["iou_percent"]) else f"IoU {row['iou_percent']:.1f} %"


def _panel(axis: Axes, mask: np.ndarray, true: np.ndarray, reach: float, boxes: np.ndarray) -> None:
    """One class, with the annotated boxes and the ego vehicle for orientation."""
    from matplotlib.colors import to_rgb

    image = np.ones((*mask.shape, 3))
    for where, colour in ((mask & true, FOUND), (~mask & true, MISSED), (mask & ~true, FALSE)):
        image[where] = to_rgb(colour)
    axis.imshow(image, origin="lower", extent=(-reach, reach, -reach, reach), interpolation="nearest", zorder=1)
    scene.draw_outlines(axis, boxes, edgecolors=drawing.INK, linewidths=0.5, zorder=3)
    scene.draw_ego(axis, zorder=4)
    scene.show_range(axis, -reach, reach, -reach, reach)


def _legend() -> list[Any]:
    from matplotlib.patches import Patch

    kinds = ((FOUND, "there and predicted"), (MISSED, "there, not predicted"), (FALSE, "predicted, not there"))
    return [
        *(Patch(color=colour, label=label) for colour, label in kinds),
        Patch(facecolor="none", edgecolor=drawing.INK, linewidth=0.5, label="annotated object"),
        scene.ego_in_legend(),
    ]
