"""What distillation does inside: BEV feature energy before and after it, and where its masks look, over one keyframe.

Letters: Y X BEV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import boxes as box_tools
from vexkd import provenance
from vexkd.data import inspection as files
from vexkd.data.inspection import LEVELS, Inspection, Name
from vexkd.data.maps import Maps
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.geometry import BevGrid
from vexkd.report.figures import drawing, scene
from vexkd.settings import MAP_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

WORDS = {"low": "low: before the BEV encoder", "high": "high: after it"}
SPAN = (0.5, 99.5)  # percentiles of the cells between which the colours run
EGO_STYLE = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.5}
LEAST = 0.05  # of a mask, from one end of its colours to the other: one that hardly varies shall look even


def energy(run: str, experiment: Experiment, *, seed: int) -> None:
    """Energy of a student alone, distilled, and of the teacher: results/figures/energy-<run>.{png,svg,csv}.

    The models' energies have no common unit, so that each map is drawn over its own mean. The two students of a row share
    their colours; the teacher has its own, for a map that ends in a LayerNorm (MGFM's) is almost even. The CSV says how
    bright annotated objects are over the rest, and the cosine to the teacher's map. Raises InputError for a run that was
    not inspected.
    """
    inspected = files.read(experiment.training(run, seed).inspection)
    keyframe, caption = scene.choose(experiment, [inspected.header["sample"]], None)
    boxes = scene.annotated(keyframe).boxes
    roles = {inspected.header[role]: words for role, words in (("student", "alone"), ("run", "distilled"))}
    roles[inspected.header["teacher"]] = "teacher"
    frame = _energies(inspected, list(roles), cells_inside(boxes, inspected.grid))
    stem = experiment.figures / f"energy-{run}"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))
    titles = [f"{words}: {name}" for name, words in roles.items()]
    with drawing.figure(stem, (8.8, 6.0)) as figure:
        axes = figure.subplots(len(LEVELS), len(roles), sharex=True, sharey=True)
        for row, level in zip(axes, LEVELS, strict=True):
            shown = [inspected.maps[Name("energy", name, level)] for name in roles]
            shown = [one / max(float(one.mean()), 1e-30) for one in shown]
            for places in (slice(0, 2), slice(2, 3)):  # students, teacher
                limits = _limits(*shown[places])
                images = [
                    _panel(*pair, inspected.grid, boxes, limits)
                    for pair in zip(row[places], shown[places], strict=True)
                ]
                figure.colorbar(
                    images[0], ax=list(row[places]), label="energy over its mean", extend="both", shrink=0.85
                )
            for axis, title in zip(row, titles, strict=True):
                axis.set_title(title, **drawing.title_style(max(titles, key=len)))
            row[0].set_ylabel(f"{WORDS[level]}\ny, forward (m)")
        for axis in axes[-1]:
            axis.set_xlabel("x, right (m)")
        drawing.heading(figure, f"Energy of the BEV maps (sum of |F| over channels), seed {seed}", caption)
        figure.legend(handles=_legend(), loc="outside lower left", ncols=3)


def masks(run: str, experiment: Experiment, *, seed: int) -> None:
    """Where a run distils, level by level: results/figures/masks-<run>.{png,svg,csv}; each level has its own colours, which
    span LEAST at the least.

    For a map segmentation the outline of the drivable area is drawn too. The CSV holds the masks' means by region. Raises
    InputError for a run that was not inspected or has no masks.
    """
    path = experiment.training(run, seed).inspection
    inspected = files.read(path)
    shown = {level: inspected.maps[key] for level in LEVELS if (key := Name("mask", run, level)) in inspected.maps}
    if not shown:
        raise InputError(
            f"{path}: the run {run} distils everywhere alike or by a method's own masks; name another run."
        )
    keyframe, caption = scene.choose(experiment, [inspected.header["sample"]], None)
    boxes = scene.annotated(keyframe).boxes
    regions = {"annotated objects": cells_inside(boxes, inspected.grid)}
    if inspected.header["task"] == "segmentation":
        regions["drivable area"] = _drivable(Maps(experiment.maps), keyframe.token, inspected.grid)
    stem = experiment.figures / f"masks-{run}"
    provenance.write_text(stem.with_suffix(".csv"), _by_region(shown, regions).to_csv(index=False))
    with drawing.figure(stem, (1.1 + 3.75 * len(shown), 4.5)) as figure:
        axes = drawing.panels(figure, len(shown), len(shown), sharey=True)
        for axis, (level, one) in zip(axes, shown.items(), strict=True):
            image = _panel(axis, one, inspected.grid, boxes, mask_limits(one))
            if "drivable area" in regions:
                _outline(axis, regions["drivable area"], inspected.grid)
            axis.set_title(f"{WORDS[level]}, mean {one.mean():.3f}", fontweight="bold")
            axis.set_xlabel("x, right (m)")
            figure.colorbar(image, ax=axis, label="mask", extend="both", shrink=0.8)
        axes[0].set_ylabel("y, forward (m)")
        words = inspected.header["mask"].replace("-", " ")
        drawing.heading(figure, f"Masks of {run} ({inspected.header['task']}, {words}), seed {seed}", caption)
        figure.legend(
            handles=_legend(*(["drivable area"] if len(regions) > 1 else [])), loc="outside lower left", ncols=4
        )


def cells_inside(boxes: np.ndarray, grid: BevGrid) -> np.ndarray:
    """Mask (Y, X) of the cells whose centres lie in one of the boxes (M, 9) seen from above, borders included."""
    rows, columns = grid.shape
    y, x = np.mgrid[:rows, :columns] + 0.5
    centres = np.zeros((rows * columns, 3))
    centres[:, :2] = grid.to_metres(np.stack([x, y], axis=-1)).reshape(-1, 2)
    flat = boxes.copy()
    flat[:, 2] = 0.0  # heights do not count
    inside = [box_tools.points_inside(centres, box) for box in flat]
    return np.any(inside, axis=0).reshape(rows, columns) if inside else np.zeros((rows, columns), dtype=bool)


def _limits(*shown: np.ndarray) -> tuple[float, float]:
    """Where the colours of some maps begin and end."""
    low, high = np.percentile(np.stack(shown), SPAN)
    return float(low), float(max(high, low + 1e-6))


def mask_limits(mask: np.ndarray) -> tuple[float, float]:
    """Where the colours of a mask (Y, X) in [0, 1] begin and end, at least LEAST apart."""
    low, high = _limits(mask)
    if high - low >= LEAST:
        return low, high
    low = min(max(0.0, (low + high - LEAST) / 2), 1.0 - LEAST)
    return low, low + LEAST


def _energies(inspected: Inspection, names: list[str], objects: np.ndarray) -> pd.DataFrame:
    """Numbers of each map: its mean, how bright objects are over all else, and the cosine to the teacher's map."""
    rows = []
    for level in LEVELS:
        teacher = inspected.maps[Name("energy", names[-1], level)].ravel().astype(float)
        for name in names:
            values = inspected.maps[Name("energy", name, level)].astype(float)
            length = float(np.linalg.norm(values) * np.linalg.norm(teacher))
            numbers = {
                "mean_energy": values.mean(),
                "objects_over_rest": _over(values, objects),
                "cosine_to_teacher": values.ravel() @ teacher / length if length else None,
            }
            rows.append({"level": level, "run": name} | {k: _rounded(v) for k, v in numbers.items()})
    return pd.DataFrame(rows)


def _over(values: np.ndarray, inside: np.ndarray) -> float | None:
    """Mean inside a region over the mean outside; None where one of them is empty or dark."""
    if not inside.any() or inside.all() or not values[~inside].any():
        return None
    return float(values[inside].mean() / values[~inside].mean())


def _by_region(shown: dict[str, np.ndarray], regions: dict[str, np.ndarray]) -> pd.DataFrame:
    """Mean, least and greatest value of each mask everywhere, inside each region and outside it."""
    rows = []
    for level, one in shown.items():
        places = {"everywhere": np.ones_like(one, dtype=bool)}
        for name, inside in regions.items():
            places |= {name: inside, f"not {name}": ~inside}
        for name, where in places.items():
            numbers = [one[where].astype(float)] if where.any() else []
            values = {k: _rounded(getattr(n, k)()) for n in numbers for k in ("mean", "min", "max")}
            rows.append({"level": level, "region": name, "cells": int(where.sum()), **values})
    return pd.DataFrame(rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _drivable(maps: Maps, token: str, grid: BevGrid) -> np.ndarray:
    """Mask (Y, X) of the drivable area; cells beyond the rasters are not."""
    rows, columns = grid.shape
    reach = np.floor(min(maps.reach, *np.abs(np.array(grid.bounds)[[0, 1, 3, 4]])) / grid.cell + 1e-6) * grid.cell
    inner = BevGrid((-reach, -reach, 0.0, reach, reach, 0.0), grid.cell)
    label = maps.labels(token, np.eye(4), inner)[MAP_CLASSES.index("drivable_area")].astype(bool)
    column, row = np.round(grid.to_cells(np.array([-reach, -reach]))).astype(int)
    drivable = np.zeros((rows, columns), dtype=bool)
    drivable[row : row + len(label), column : column + label.shape[1]] = label
    return drivable


def _panel(axis: Axes, values: np.ndarray, grid: BevGrid, boxes: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """One map in colours that rise in lightness, with the annotated boxes and the ego vehicle for orientation."""
    x0, y0, _, x1, y1, _ = grid.bounds
    image = axis.imshow(
        values, origin="lower", extent=(x0, x1, y0, y1), cmap="viridis", vmin=limits[0], vmax=limits[1],
        interpolation="nearest",
    )  # fmt: skip
    for colour, width in (("black", 1.1), ("white", 0.5)):
        scene.draw_outlines(axis, boxes, edgecolors=colour, linewidths=width)
    scene.draw_ego(axis, **EGO_STYLE)
    scene.show_range(axis, x0, x1, y0, y1)
    return image


def _outline(axis: Axes, region: np.ndarray, grid: BevGrid) -> None:
    """The border of a region."""
    x0, y0, _, x1, y1, _ = grid.bounds
    axis.contour(region.astype(float), levels=[0.5], extent=(x0, x1, y0, y1), colors="white", linewidths=0.8,
                 linestyles="dashed")  # fmt: skip


def _legend(*more: str) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.patheffects import Normal, Stroke

    shadow = {"path_effects": [Stroke(linewidth=1.6, foreground="black"), Normal()]}
    return [
        Patch(facecolor="none", edgecolor="white", linewidth=0.6, label="annotated object", **shadow),
        scene.ego_in_legend(**EGO_STYLE),
        *(Line2D([], [], color="white", linewidth=0.9, linestyle="dashed", label=words, **shadow) for words in more),
    ]  # fmt: skip
