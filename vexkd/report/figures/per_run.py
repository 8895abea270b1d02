"""Figures from results files: what distillation gains class by class, and how training went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.report import gains, runs
from vexkd.report.figures import drawing
from vexkd.report.result_tables import UNLIKE
from vexkd.settings import Params

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 250  # of a training curve; longer ones are averaged in as many bins of steps


def distillation(*, params: Params, results: Path) -> None:
    """Every distilled detector against its student trained alone: AP by class, mAP and NDS in percent.

    Writes results/figures/distillation.{png,svg,csv}; the CSV has one row a run, metric and class. Raises InputError if
    there is no such run, or one of them or its student has no results.
    """
    names = [name for name, run in params.runs.items() if run.kind == "distilled" and run.task == "detection"]
    if not names:
        raise InputError(f"{params.path}: there is no distilled detector to draw; add one under 'distilled'.")
    results = Path(results)
    frame = pd.DataFrame([row for name in names for row in _against_student(name, params, results)])
    frame = frame.astype({f"{side}_std": float for side in ("baseline", "distilled")})
    stem = results / "figures" / "distillation"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False))

    unlike = {name for name in names if gains.unlike(name, params, results)}
    high = max((frame[side] + frame[f"{side}_std"].fillna(0)).max() for side in ("baseline", "distilled"))
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    size = (max(5.2, 1.3 + 2.35 * columns), 0.9 + 2.75 * rows)
    with drawing.figure(stem, size) as made:
        axes = drawing.panels(made, len(names), columns, sharex=True, sharey=True)
        for axis, name in zip(axes, names, strict=True):
            _dumbbells(axis, frame[frame.run == name], limit=max(1.0, 1.04 * high))
            run = params.run(name)
            axis.set_title(f"{name}\n", **drawing.title_style(name))
            words = f"{run.student}, taught by {run.teacher}" + (f" {UNLIKE}" if name in unlike else "")
            axis.text(0, 1.015, words, transform=axis.transAxes, fontsize=6.5)
        for axis in axes[-columns:]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("AP, mAP, NDS (%)")
        note = runs.dataset(params, names)
        if unlike:
            note += f"\n{UNLIKE} differs from its student alone in more than the teaching; tables and report.html say in what"
        if frame.distilled_std.notna().any():
            note += "\nBands: ± one standard deviation over the seeds"
        drawing.heading(made, "What distillation gains", note)
        handles, labels = axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower left", ncols=len(labels))


def _against_student(name: str, params: Params, results: Path) -> list[dict[str, Any]]:
    """Scores of a distilled run and of its student, one row a metric and class, with their spreads over seeds."""
    run = params.run(name)
    sides = {"baseline": runs.metrics(str(run.student), results), "distilled": runs.metrics(name, results)}
    rows: list[dict[str, Any]] = []
    for metric, part in [("NDS", ""), ("mAP", ""), *(("AP", each) for each in CLASSES)]:
        row: dict[str, Any] = {"run": name, "student": run.student, "metric": metric, "class": part}
        for side, found in sides.items():
            value, spread = found[metric], found["spread"][metric]
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


def curves(*, params: Params, results: Path) -> None:
    """The training loss of every run and seed over optimiser steps, one panel a run, logarithmic.

    Writes results/figures/curves.{png,svg,csv}; long curves are averaged in 250 bins. Raises InputError for a run
    without a curve.
    """
    results = Path(results)
    names = list(params.runs)
    thinned = {name: _thin(name, results) for name in names}
    frame = pd.concat([part.assign(run=name) for name, part in thinned.items()])[["run", "seed", "step", "loss"]]
    stem = results / "figures" / "curves"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.6g"))

    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    with drawing.figure(stem, (max(4.2, 0.5 + 2.2 * columns), 0.8 + 1.75 * rows)) as made:
        axes = drawing.panels(made, len(names), columns)
        for axis, name in zip(axes, names, strict=True):
            _curve(axis, thinned[name])
            axis.set_title(name, **drawing.title_style(name))
        for axis in axes[-columns:]:
            axis.set_xlabel("optimiser step")
        for axis in axes[::columns]:
            axis.set_ylabel("training loss")
        note = f"{runs.dataset(params, names)}\nOne colour a seed; thick: running mean"
        drawing.heading(made, "Training curves", note)


def _thin(name: str, results: Path) -> pd.DataFrame:
    """A run's curve with at most POINTS rows a seed: columns seed, step, loss."""
    found = runs.curve(name, results)
    if not {"seed", "step", "loss"} <= set(found.columns):
        raise InputError(f"{results / 'runs' / name / 'curve.csv'}: needs the columns seed, step, loss; make it again.")
    found = found[["seed", "step", "loss"]].dropna()
    parts = []
    for _, curve in found.groupby("seed"):
        bins = np.arange(len(curve)) * POINTS // max(len(curve), POINTS)
        parts.append(curve.groupby(bins).mean().astype({"seed": int}))
    return pd.concat(parts, ignore_index=True) if parts else found


def _curve(axis: Axes, frame: pd.DataFrame) -> None:
    """The seeds of one run, as logged and smoothed over about a twentieth of the training."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    palette = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.PURPLE, drawing.SKY, drawing.VERMILLION)
    for i, (_, curve) in enumerate(frame.groupby("seed")):
        colour = palette[i % len(palette)]
        smooth = curve.loss.rolling(max(1, len(curve) // 20), center=True, min_periods=1).mean()
        axis.plot(curve.step, curve.loss, color=colour, linewidth=0.5, alpha=0.4)
        axis.plot(curve.step, smooth, color=colour, linewidth=1.3)
    if (frame.loss > 0).all():
        axis.set_yscale("log")
        low, high = np.log10(frame.loss.min()), np.log10(frame.loss.max())
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high - low < 2.5 else (1.0,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(which="major")
