"""What a map segmenter sees from above: predicted against true cells of one keyframe, class by class.

Everything is drawn in the LiDAR frame: metres, x right, y forward (up on the page).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.data import map_predictions
from vexkd.data.map_predictions import THRESHOLDS
from vexkd.data.maps import Maps
from vexkd.geometry import BevGrid
from vexkd.report import runs
from vexkd.report.figures import birdseye as scenes
from vexkd.report.figures import drawing
from vexkd.settings import MAP_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is there is blue, dark where it is found; what is not there but predicted is orange.
FOUND, MISSED, FALSE = drawing.BLUE, "#A9D3F0", drawing.ORANGE


def maps(
    run: str,
    *,
    results: Path,
    models: Path,
    root: Path,
    infos: Path,
    rasters: Path,
    seed: int,
    sample: int | str | None = None,
) -> None:
    """Draw one keyframe's map by a run: results/figures/maps-<run>.{png,svg,csv}; the CSV counts the cells by class.

    Each class is predicted from its best threshold on, as the metric takes it. sample: position among the predicted
    samples, a sample token, or None for the one with most valid boxes. Raises InputError for missing predictions,
    metrics or rasters, and for an unknown sample.
    """
    predicted = map_predictions.read(Path(models) / run / f"seed{seed}" / "predictions.safetensors")
    keyframe, caption = scenes.choose(Path(root), Path(infos), predicted.rows, sample)
    reach, cell = predicted.header["grid"]["reach"], predicted.header["grid"]["cell"]
    grid = BevGrid((-reach, -reach, 0.0, reach, reach, 0.0), cell)
    true = Maps(Path(rasters)).labels(keyframe.token, np.eye(4), grid).astype(bool)  # C Y X
    best = runs.metrics(run, results)["seeds"][str(seed)]["threshold"]
    needed = np.array([THRESHOLDS.index(best[name]) + 1 for name in MAP_CLASSES])
    mask = predicted.levels(keyframe.token) >= needed[:, None, None]  # C Y X

    frame = _counts(mask, true, best)
    stem = Path(results) / "figures" / f"maps-{run}"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))
    with drawing.figure(stem, (8.6, 6.4)) as made:
        axes = drawing.panels(made, len(MAP_CLASSES), 3, sharex=True, sharey=True)
        for axis, row, own, theirs in zip(axes, frame.to_dict("records"), mask, true, strict=True):
            _panel(axis, own, theirs, reach, scenes.annotated(keyframe).boxes)
            axis.set_title(f"{row['class'].replace('_', ' ')}: {_score(row)}", fontweight="bold")
        for axis in axes[3:]:
            axis.set_xlabel("x, right (m)")
        for axis in axes[::3]:
            axis.set_ylabel("y, forward (m)")
        drawing.heading(made, f"{run}, seed {seed}", caption)
        made.legend(handles=_legend(), loc="outside lower left", ncols=5)


def _counts(mask: np.ndarray, true: np.ndarray, thresholds: dict[str, float]) -> pd.DataFrame:
    """Cells by class: found, missed, falsely predicted; IoU of this keyframe, empty where the class is nowhere."""
    rows = []
    for name, own, theirs in zip(MAP_CLASSES, mask, true, strict=True):
        cells = {"found": own & theirs, "missed": ~own & theirs, "false": own & ~theirs}
        counts = {f"{kind}_cells": int(np.count_nonzero(where)) for kind, where in cells.items()}
        union = sum(counts.values())
        iou = round(100 * counts["found_cells"] / union, 2) if union else None
        rows.append({"class": name, "threshold": thresholds[name], **counts, "iou_percent": iou})
    return pd.DataFrame(rows)


def _score(row: dict[str, Any]) -> str:
    return "nowhere" if pd.isna(row["iou_percent"]) else f"IoU {row['iou_percent']:.1f} %"


def _panel(axis: Axes, mask: np.ndarray, true: np.ndarray, reach: float, boxes: np.ndarray) -> None:
    """One class, with the annotated boxes and the ego vehicle for orientation."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb

    image = np.ones((*mask.shape, 3))
    for where, colour in ((mask & true, FOUND), (~mask & true, MISSED), (mask & ~true, FALSE)):
        image[where] = to_rgb(colour)
    axis.imshow(image, origin="lower", extent=(-reach, reach, -reach, reach), interpolation="nearest", zorder=1)
    plan = scenes.seen_from_above(boxes)  # M 4 2
    axis.add_collection(PolyCollection(plan, facecolors="none", edgecolors=drawing.INK, linewidths=0.5, zorder=3))
    axis.plot(0, 0, marker=(3, 0, 0), markersize=6, color=drawing.INK, zorder=4)  # the ego vehicle, looking up
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = ((FOUND, "there and predicted"), (MISSED, "there, not predicted"), (FALSE, "predicted, not there"))
    return [
        *(Patch(color=colour, label=label) for colour, label in kinds),
        Patch(facecolor="none", edgecolor=drawing.INK, linewidth=0.5, label="annotated object"),
        Line2D([], [], linestyle="none", marker=(3, 0, 0), markersize=6, color=drawing.INK, label="ego vehicle"),
    ]
