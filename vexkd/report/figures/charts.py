"""Charts of the rows that `figures` in params.yaml names: mask blocks, a missing sensor, accuracy against latency.

Each writes results/figures/<name>.{png,svg,csv}; the CSV holds what is drawn, units in its column names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.experiment import SENSORS, Experiment
from vexkd.report.figures import drawing
from vexkd.report.results import SCORES, FinishedRun, Results, dataset
from vexkd.settings import Params

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETTLED = 0.05  # a curve has settled when it stays within this share of its whole fall above its end
PALETTE = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.PURPLE, drawing.SKY, drawing.VERMILLION)
MARKERS = ("o", "s", "^", "D", "v", "P")


def blocks(rows: list[FinishedRun], results: Results) -> None:
    """Number of mask blocks against the scores and against the epochs until the distillation loss has settled (Fig. 5)."""
    lines = []
    for run in rows:
        settings = run.settings
        if settings.distill is None:
            path = results.params.path
            raise InputError(f"{path}: figures.blocks: {run.name} is not distilled; list distilled runs.")
        epochs = [settled(curve) for _, curve in run.curve.groupby("seed")]
        spread = float(np.std(epochs, ddof=1)) if len(epochs) > 1 else None
        for score in SCORES[settings.task]:
            row = {"run": run.name, "student": settings.student, "blocks": settings.distill.mask_blocks, "score": score}
            row |= _value(run.metrics, score)
            lines.append(row | {"epochs_to_converge": float(np.mean(epochs)), "epochs_to_converge_std": spread})
    frame = pd.DataFrame(lines).sort_values(["student", "score", "blocks"], kind="stable")
    stem = _write(frame, results.experiment, "blocks")
    with drawing.figure(stem, (6.6, 3.3)) as figure:
        left, right = figure.subplots(1, 2)
        for number, ((student, score), part) in enumerate(frame.groupby(["student", "score"])):
            _line(left, part, "percent", "percent_std", number, f"{student}, {score}")
        for number, (student, part) in enumerate(frame.drop_duplicates(["run"]).groupby("student")):
            _line(right, part, "epochs_to_converge", "epochs_to_converge_std", number, str(student))
        for axis, words in ((left, "score (%)"), (right, "epochs until the distillation loss settles")):
            axis.set_xlabel("mask blocks")
            axis.set_ylabel(words)
            axis.set_xticks(sorted(frame["blocks"].unique()))
            axis.grid(axis="y")
            axis.legend()
        drawing.heading(figure, "Number of mask blocks", _note(results.params, rows, frame))


def settled(curve: pd.DataFrame) -> float:
    """Epochs after which a curve stays near its end: its mean over the last epoch, of all distillation terms together."""
    terms = [column for column in curve if column.startswith("distill.")] or ["loss"]
    loss = curve[terms].sum(axis=1).reset_index(drop=True)
    epoch = max(1, int((curve["epoch"] == curve["epoch"].iloc[0]).sum()))
    smooth = loss.rolling(epoch, min_periods=1).mean()
    limit = smooth.iloc[-1] + SETTLED * max(0.0, smooth.iloc[0] - smooth.iloc[-1])
    above = np.flatnonzero(smooth > limit)
    return float((above[-1] + 1) / epoch) if len(above) else 0.0


def missing_sensor(rows: list[FinishedRun], results: Results) -> None:
    """Scores with all sensors, and with one dropped at test time, of each run that has such scores (Fig. 1)."""
    lines = []
    for run in rows:
        if not run.metrics_without:
            path = run.files.metrics_without(SENSORS[0])
            raise InputError(
                f"{path}: run {run.name} was not scored without a sensor; make it with 'snakemake {path}'."
            )
        states = {"all sensors": run.metrics}
        states |= {f"without {sensor}": metrics for sensor, metrics in run.metrics_without.items()}
        for state, metrics in states.items():
            for score in SCORES[run.settings.task]:
                lines.append({"run": run.name, "sensors": state, "score": score} | _value(metrics, score))
    frame = pd.DataFrame(lines)
    stem = _write(frame, results.experiment, "missing-sensor")
    scores = list(dict.fromkeys(frame["score"]))
    height = 1.2 + 0.75 * frame.groupby("score")["run"].nunique().max()
    with drawing.figure(stem, (max(4.6, 1.6 + 2.6 * len(scores)), height)) as figure:
        axes = drawing.panels(figure, len(scores), 3)
        for axis, score in zip(axes, scores, strict=True):
            _bars(axis, frame[frame["score"] == score])
            axis.set_xlabel(f"{score} (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels))
        drawing.heading(figure, "A sensor missing at test time", _note(results.params, rows, frame))


def latency(rows: list[FinishedRun], results: Results) -> None:
    """Every score against the median time of one sample; an arrow leads from a student alone to its distilled ones."""
    lines = []
    for run in rows:
        if not run.files.latency.is_file():
            raise InputError(
                f"{run.files.latency}: run {run.name} has no measured latency; make it with 'vexkd latency {run.name}'."
            )
        if not run.latency:
            raise InputError(
                f"{run.files.latency}: this was not measured with the weights that were scored; measure again with"
                f" 'vexkd latency {run.name}'."
            )
        measured = {"latency_ms": run.latency["median_ms"], "device": run.latency.get("device", "unknown device")}
        for score in SCORES[run.settings.task]:
            line = {"run": run.name, "student": run.settings.student, "score": score}
            lines.append(line | _value(run.metrics, score) | measured)
    frame = pd.DataFrame(lines)
    stem = _write(frame, results.experiment, "latency")
    scores = list(dict.fromkeys(frame["score"]))
    with drawing.figure(stem, (max(4.2, 3.3 * len(scores)), 3.4)) as figure:
        axes = drawing.panels(figure, len(scores), 3)
        for axis, score in zip(axes, scores, strict=True):
            _scatter(axis, frame[frame["score"] == score])
            axis.set_xlabel("time of one sample (ms)")
            axis.set_ylabel(f"{score} (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2)
        drawing.heading(figure, "Accuracy against latency", _note(results.params, rows, frame))


# ---------------------------------------------------------------------------------------------------------------- parts


def _value(metrics: dict[str, Any], score: str) -> dict[str, float | None]:
    """A score and its spread over the seeds in percent."""
    spread = (metrics.get("spread") or {}).get(score)
    return {
        "percent": round(100 * metrics[score], 6),
        "percent_std": None if spread is None else round(100 * spread, 6),
    }


def _write(frame: pd.DataFrame, experiment: Experiment, name: str) -> Path:
    """The CSV beside the figure; the figure's path without its ending."""
    stem = experiment.figures / name
    provenance.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.6g"))
    return stem


def _note(params: Params, rows: Iterable[FinishedRun], frame: pd.DataFrame) -> str:
    note = dataset(params, [run.name for run in rows])
    return note + ("; whiskers: one standard deviation over the seeds" if frame["percent_std"].notna().any() else "")


def _whiskers(part: pd.DataFrame, column: str) -> np.ndarray | None:
    known = part[column].astype(float)
    return known.fillna(0.0).to_numpy() if known.notna().any() else None


def _line(axis: Axes, part: pd.DataFrame, value: str, spread: str, number: int, label: str) -> None:
    colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
    axis.errorbar(
        part["blocks"], part[value], yerr=_whiskers(part, spread), color=colour, marker=marker, markersize=4.5,
        linewidth=1.4, capsize=2.5, label=label,
    )  # fmt: skip


def _bars(axis: Axes, part: pd.DataFrame) -> None:
    """One group of bars a run, one bar a state of its sensors, the value at its end."""
    names = list(dict.fromkeys(part["run"]))
    states = ["all sensors", *(f"without {sensor}" for sensor in SENSORS)]
    hatches = ("", "///", "...")
    for number, state in enumerate(states):
        shown = part[part["sensors"] == state]
        if shown.empty:
            continue
        heights = [names.index(run) + 0.27 * (number - 1) for run in shown["run"]]
        axis.barh(
            heights, shown["percent"], 0.25, xerr=_whiskers(shown, "percent_std"), color=PALETTE[number], label=state,
            hatch=hatches[number], edgecolor="white", linewidth=0, error_kw={"elinewidth": 0.9, "capsize": 2},
        )  # fmt: skip
        for height, value in zip(heights, shown["percent"], strict=True):
            axis.text(value, height, f" {value:.1f}", va="center", fontsize=6.5, zorder=5)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, max(1.0, 1.18 * part["percent"].max()))
    axis.grid(axis="x")


def _scatter(axis: Axes, part: pd.DataFrame) -> None:
    """One mark a run, named beside it, one colour and shape a device; arrows from student to distilled."""
    devices = list(dict.fromkeys(part["device"]))
    for number, device in enumerate(devices):
        shown = part[part["device"] == device]
        axis.errorbar(
            shown["latency_ms"], shown["percent"], yerr=_whiskers(shown, "percent_std"), linestyle="none",
            color=PALETTE[number % len(PALETTE)], marker=MARKERS[number % len(MARKERS)], capsize=2, label=device, zorder=4,
        )  # fmt: skip
    places = part.set_index("run")[["latency_ms", "percent"]]
    for row in part.itertuples():
        if row.student in places.index:
            arrow = {"arrowstyle": "->", "color": drawing.GREY, "linewidth": 0.9, "shrinkA": 4, "shrinkB": 4}
            axis.annotate("", (row.latency_ms, row.percent), tuple(places.loc[row.student]), arrowprops=arrow, zorder=3)
    axis.margins(0.3, 0.18)
    axis.grid()
    _names(axis, {str(run): (x, y) for run, (x, y) in zip(places.index, places.to_numpy(), strict=True)})


def _names(axis: Axes, marks: dict[str, tuple[float, float]], size: float = 6.5) -> None:
    """Names at the right of their marks, each raised until it hides nothing below; from a raised one a line leads back."""
    axis.autoscale_view()
    places = {name: axis.transData.transform(mark) * 72 / axis.figure.dpi for name, mark in marks.items()}  # in points
    taken = [(x - 4, x + 4, y - 4) for x, y in places.values()]  # left, right and lower edge of marks, then of names
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
        left, right, low = x + 6, x + 6 + 0.6 * size * len(name), y + 3
        for other_left, other_right, other_low in sorted(taken, key=lambda edges: edges[2]):
            if left < other_right and other_left < right and abs(low - other_low) < 1.25 * size:
                low = other_low + 1.25 * size
        taken.append((left, right, low))
        line = {"arrowstyle": "-", "color": drawing.GREY, "linewidth": 0.5, "shrinkB": 3, "relpos": (0, 0)}
        axis.annotate(
            name, marks[name], (left - x, low - y), textcoords="offset points", fontsize=size,
            arrowprops=line if low > y + 3 else None,
        )  # fmt: skip
