"""How training went: the loss of every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.report.figures import drawing
from vexkd.report.results import Results, dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 250  # of a training curve; longer ones are averaged in as many bins of steps


def curves(results: Results) -> None:
    """The training loss of every run and seed over optimiser steps, one panel a run, logarithmic.

    Writes results/figures/curves.{png,svg,csv}; long curves are averaged in 250 bins. Raises InputError for a run
    without a curve.
    """
    names = list(results.params.runs)
    thinned = {name: _thin(results.run(name).curve) for name in names}
    frame = pd.concat([part.assign(run=name) for name, part in thinned.items()])[["run", "seed", "step", "loss"]]
    stem = results.experiment.figures / "curves"
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.6g"))

    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    with drawing.figure(stem, (max(4.2, 0.5 + 2.2 * columns), 0.8 + 1.75 * rows)) as figure:
        axes = drawing.panels(figure, len(names), columns)
        for axis, name in zip(axes, names, strict=True):
            _curve(axis, thinned[name])
            axis.set_title(name, **drawing.title_style(name))
        for axis in axes[-columns:]:
            axis.set_xlabel("optimiser step")
        for axis in axes[::columns]:
            axis.set_ylabel("training loss")
        note = f"{dataset(results.params, names)}\nOne colour a seed; thick: running mean"
        drawing.heading(figure, "Training curves", note)


def _thin(logged: pd.DataFrame) -> pd.DataFrame:
    """A run's curve with at most POINTS rows a seed: columns seed, step, loss."""
    logged = logged[["seed", "step", "loss"]].dropna()
    parts = []
    for _, curve in logged.groupby("seed"):
        bins = np.arange(len(curve)) * POINTS // max(len(curve), POINTS)
        parts.append(curve.groupby(bins).mean().astype({"seed": int}))
    return pd.concat(parts, ignore_index=True) if parts else logged


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
