"""What distillation gains, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.report import gains, sources
from vexkd.report.figures import drawing
from vexkd.report.results import FinishedRun, Results, dataset
from vexkd.report.table_text import UNLIKE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def distillation(results: Results) -> None:
    """Every distilled detector against its student trained alone: AP by class, mAP and NDS in percent.

    Writes results/figures/distillation.{png,svg,csv}; the CSV has one row a run, metric and class. Raises InputError if
    there is no such run, or one of them or its student has no results.
    """
    params, names = results.params, sources.distilled_detectors(results.params)
    if not names:
        raise InputError(f"{params.path}: there is no distilled detector to draw; add one under 'distilled'.")
    frame = pd.DataFrame([row for name in names for row in _against_student(results.run(name))])
    frame = frame.astype({f"{side}_std": float for side in ("baseline", "distilled")})
    stem = results.experiment.figures / "distillation"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))

    unlike = {name for name in names if gains.unlike(results.run(name))}
    high = max((frame[side] + frame[f"{side}_std"].fillna(0)).max() for side in ("baseline", "distilled"))
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    size = (max(5.2, 1.3 + 2.35 * columns), 0.9 + 2.75 * rows)
    with drawing.figure(stem, size) as figure:
        axes = drawing.panels(figure, len(names), columns, sharex=True, sharey=True)
        for axis, name in zip(axes, names, strict=True):
            _dumbbells(axis, frame[frame.run == name], limit=max(1.0, 1.04 * high))
            run = params.run(name)
            axis.set_title(f"{name}\n", **drawing.title_style(name))
            words = f"{run.student}, taught by {run.teacher}" + (f" {UNLIKE}" if name in unlike else "")
            axis.text(0, 1.015, words, transform=axis.transAxes, fontsize=6.5)
        for axis in axes[-columns:]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("AP, mAP, NDS (%)")
        note = dataset(params, names)
        if unlike:
            note += f"\n{UNLIKE} differs from its student alone in more than the teaching; tables and report.html say in what"
        if frame.distilled_std.notna().any():
            note += "\nBands: ± one standard deviation over the seeds"
        drawing.heading(figure, "What distillation gains", note)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels))


def _against_student(run: FinishedRun) -> list[dict[str, Any]]:
    """Scores of a distilled run and of its student, one row a metric and class, with their spreads over seeds."""
    sides = {"baseline": run.student, "distilled": run}
    rows: list[dict[str, Any]] = []
    for metric, part in [("NDS", ""), ("mAP", ""), *(("AP", each) for each in CLASSES)]:
        row: dict[str, Any] = {"run": run.name, "student": run.settings.student, "metric": metric, "class": part}
        for side, shown in sides.items():
            value, spread = shown.metrics[metric], shown.metrics["spread"][metric]
            value, spread = (value[part], spread[part]) if part else (value, spread)
            row |= {side: round(100 * value, 6), f"{side}_std": None if spread is None else round(100 * spread, 6)}
        rows.append(row | {"unit": "percent"})
    return rows


def _dumbbells(axis: Axes, frame: pd.DataFrame, limit: float) -> None:
    """One line a metric from the student alone (hollow) to the distilled student (filled), the gain at the right."""
    from matplotlib.transforms import blended_transform_factory

    edge = blended_transform_factory(axis.transAxes, axis.transData)
    labels = [row["class"].replace("_", " ") or row["metric"] for _, row in frame.iterrows()]
    heights = np.arange(len(frame), dtype=float)[::-1]
    heights[:2] += 0.6  # NDS and mAP stand apart from the classes
    baseline, distilled = frame.baseline.to_numpy(float), frame.distilled.to_numpy(float)
    for height, old, new in zip(heights, baseline, distilled, strict=True):
        colour = drawing.GREEN if new >= old else drawing.VERMILLION
        axis.plot([old, new], [height, height], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=3)
        gain = f"{new - old:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
        shade = drawing.GREY if gain == "0.0" else colour
        axis.text(1.02, height, gain, transform=edge, va="center", fontsize=7, color=shade)
    kinds = (("student alone", "baseline", "white"), ("student taught by the teacher", "distilled", drawing.BLUE))
    for label, side, fill in kinds:
        colour = drawing.BLUE if side == "distilled" else "#555555"
        low, high = frame[side] - frame[f"{side}_std"], frame[side] + frame[f"{side}_std"]
        axis.hlines(heights, low, high, color=colour, linewidth=5, alpha=0.22, zorder=2)
        axis.scatter(frame[side], heights, s=22, facecolor=fill, edgecolor=colour, linewidth=1, label=label, zorder=4)
    axis.axhline(len(CLASSES) - 0.2, color="#BBBBBB", linewidth=0.6)
    axis.set_yticks(heights, labels)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(-0.03 * limit, limit)
    axis.grid(axis="x")
