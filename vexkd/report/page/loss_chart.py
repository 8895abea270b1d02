"""The training loss of a run as a small vector chart, one line a seed, logarithmic where it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito, one a seed
POINTS = 200  # of a curve
WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52.0, 630.0, 10.0, 205.0  # of the panel


@dataclass(frozen=True)
class Line:
    path: str
    colour: str


@dataclass(frozen=True)
class Label:
    text: str
    x: str
    y: str
    anchor: str
    colour: str = ""


@dataclass(frozen=True)
class LossChart:
    """What the template draws, in units of the chart. words: what one sees."""

    lines: list[Line]
    grid: list[str]
    labels: list[Label]
    words: str
    width: int = WIDTH
    height: int = HEIGHT


def loss_chart(frame: pd.DataFrame, run: str) -> LossChart | None:
    """Columns seed, step, loss as a chart; None where there is nothing to draw."""
    frame = frame[["seed", "step", "loss"]].dropna()
    frame = frame[np.isfinite(frame["loss"])]
    if len(frame) < 2:
        return None
    logarithmic = bool((frame["loss"] > 0).all())
    frame = frame.assign(level=np.log10(frame["loss"]) if logarithmic else frame["loss"])
    first, last = float(frame["step"].min()), float(frame["step"].max())
    low, high = float(frame["level"].min()), float(frame["level"].max())

    def x(step: Any) -> Any:
        return LEFT + (RIGHT - LEFT) * (step - first) / max(last - first, 1e-12)

    def y(level: Any) -> Any:
        return BOTTOM - (BOTTOM - TOP) * (level - low) / max(high - low, 1e-12)

    lines, labels, grid = [], [], []
    for number, (_, seed) in enumerate(frame.groupby("seed")):
        bins = np.arange(len(seed)) * POINTS // max(len(seed), POINTS)
        thin = seed.groupby(bins)[["step", "level"]].mean()
        points = " L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x(thin["step"]), y(thin["level"]), strict=True))
        lines.append(Line(f"M{points}", COLOURS[number % len(COLOURS)]))
    for level in np.linspace(low, high, 4):
        grid.append(f"M{LEFT} {y(level):.1f} H{RIGHT}")
        shown = 10**level if logarithmic else level
        labels.append(Label(f"{shown:.3g}", str(LEFT - 6), f"{y(level) + 4:.1f}", "end"))
    for step, anchor in ((first, "start"), ((first + last) / 2, "middle"), (last, "end")):
        labels.append(Label(f"{step:.0f}", f"{x(step):.1f}", str(BOTTOM + 16), anchor))
    seeds = frame["seed"].unique()
    for number, seed in enumerate(seeds if len(seeds) > 1 else []):
        labels.append(Label(f"seed {seed}", str(RIGHT), str(TOP + 12 + 13 * number), "end", lines[number].colour))
    scale = "logarithmic" if logarithmic else "linear"
    labels.append(Label(f"optimiser step; loss, {scale}", str((LEFT + RIGHT) / 2), str(BOTTOM + 32), "middle"))
    ends = frame.groupby("seed")["loss"].agg(["first", "last"]).mean()
    span = f"from {ends['first']:.3g} to {ends['last']:.3g} over {last - first:.0f} steps"
    return LossChart(lines, grid, labels, f"Training loss of {run}, {span}.")
