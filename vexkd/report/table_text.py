"""A table's numbers as text: for each task a short table and one with all columns, and the notes below.

A detection table has no columns of map segmentation and the other way round; a column that is empty in every row is left out.
The short table takes columns in the order of their weight as long as a line of it fits `WIDTH` characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vexkd.report import gains, row_provenance
from vexkd.report.results import SCORES, FinishedRun, dataset
from vexkd.report.table_rows import weaknesses

MARK = "†"  # a row that was not made as the others
WEAK = "‡"  # a gain over a baseline that is weaker than public ones
UNLIKE = "§"  # a gain whose two runs differ in more than the teaching
WIDTH = 100  # characters of a short table's line: what GitHub shows without scrolling
TITLES = {"detection": "Detection", "segmentation": "Map segmentation"}
WORDS = ("Run", "Sensors", "Teacher")  # headings of columns that hold words
_PRIMARY = {"detection": "NDS", "segmentation": "mIoU"}
# Column of the CSV -> heading.
_ERRORS = {
    "mATE_m": "mATE ↓ (m)",
    "mASE_one_minus_iou": "mASE ↓ (1-IoU)",
    "mAOE_rad": "mAOE ↓ (rad)",
    "mAVE_m_per_s": "mAVE ↓ (m/s)",
    "mAAE_one_minus_accuracy": "mAAE ↓ (1-acc.)",
}
_COSTS = {
    "parameters_millions": "Params (M)",
    "flops_giga": "GFLOPs",
    "latency_ms": "Latency (ms)",
    "fps": "FPS",
    "gpu_hours": "GPU-hours",
    "cpu_hours": "CPU-hours",
    "wall_hours": "Hours",
    "memory_gb": "Mem. (GB)",
    "gpu_memory_gb": "GPU mem. (GB)",
}


@dataclass(frozen=True)
class Cells:
    """Headings and rows."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Part:
    """The rows of one task."""

    task: str
    short: Cells
    full: Cells

    @property
    def title(self) -> str:
        return TITLES[self.task]


@dataclass(frozen=True)
class TableText:
    """A table for people. legend: what the columns mean that the short tables may lack."""

    parts: list[Part]
    notes: list[str]
    legend: list[str]


def table_text(frame: pd.DataFrame, runs: list[FinishedRun], marked: dict[str, str]) -> TableText:
    """The text of a table's numbers. marked: why a run was not made as the others."""
    columns = {task: _columns(frame[frame["task"] == task], task) for task in dict.fromkeys(frame["task"])}
    fitting = {task: _fitting(columns[task], task) for task in columns}
    # A column of several tasks stands in all of their short tables or in none.
    dropped = {heading for task in columns for heading in columns[task] if heading not in fitting[task]}
    parts = [
        Part(
            task,
            short=_cells({heading: cells for heading, cells in fitting[task].items() if heading not in dropped}),
            full=_cells(columns[task]),
        )
        for task in columns
    ]
    return TableText(parts, _notes(frame, runs, marked), _legend(frame))


# -------------------------------------------------------------------------------------------------------------- columns


def _columns(frame: pd.DataFrame, task: str) -> dict[str, list[str]]:
    """Cells by heading of the rows of one task; without empty columns."""
    rows = frame.to_dict("records")
    columns: dict[str, list[str]] = {
        "Run": [row["run"] + (f" {MARK}" if row["marked"] else "") for row in rows],
        "Sensors": [_sensors(row) for row in rows],
        "Teacher": [row["teacher"] or "" for row in rows],
    }
    for score in SCORES[task]:
        columns[f"{score} ↑ (%)"] = [_score(row, score) for row in rows]
        columns[f"Δ{score}"] = [_gain(row, score) for row in rows]
    columns |= {heading: _each(frame[column], "{:.3f}".format) for column, heading in _ERRORS.items()}
    for score in SCORES[task]:
        columns[f"reported {score}"] = [_reported(row, score) for row in rows]
    shown = {name: heading for name, heading in _COSTS.items() if name in frame}
    if _one_device_each(frame):
        del shown["wall_hours"]
    columns |= {heading: _each(frame[column], _brief) for column, heading in shown.items()}
    columns["n"] = [str(n) for n in frame["n_seeds"]]
    return {heading: cells for heading, cells in columns.items() if any(cells)}


def _fitting(columns: dict[str, list[str]], task: str) -> dict[str, list[str]]:
    """The columns of most weight that fit a line of WIDTH characters."""
    primary = _PRIMARY[task]
    others = [score for score in SCORES[task] if score != primary]
    by_weight = ["Run", f"{primary} ↑ (%)", f"Δ{primary}", *(f"{score} ↑ (%)" for score in others)]
    by_weight += [f"reported {primary}", "Params (M)", "Latency (ms)", "GPU-hours", "CPU-hours"]
    used, chosen = 1, {}
    for heading in (name for name in by_weight if name in columns):
        width = max(map(len, [heading, *columns[heading]])) + 3
        if used + width <= WIDTH:
            used, chosen[heading] = used + width, columns[heading]
    return chosen


def _cells(columns: dict[str, list[str]]) -> Cells:
    return Cells(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _one_device_each(frame: pd.DataFrame) -> bool:
    """Whether wall time says no more than device-hours do."""
    wall = frame["wall_hours"]
    return bool(((frame["gpu_hours"] == wall) | (frame["cpu_hours"] == wall)).all())


# ---------------------------------------------------------------------------------------------------------------- cells


def _each(values: Iterable[float], written: Callable[[float], str]) -> list[str]:
    return ["" if pd.isna(value) else written(value) for value in values]


def _sensors(row: dict[str, Any]) -> str:
    """L, C or L+C; for a distilled row the teacher's, an arrow, and the student's."""
    student = _letters(row["sensors"])
    return f"{_letters(row['teacher_sensors'])} → {student}" if row["teacher_sensors"] else student


def _letters(sensors: str) -> str:
    return "+".join({"lidar": "L", "camera": "C"}[sensor] for sensor in sensors.split("+"))


def _score(row: dict[str, Any], score: str) -> str:
    value = row[f"{score}_percent"]
    return "" if pd.isna(value) else _spread(f"{value:.1f}", row[f"{score}_std_percent"])


def _gain(row: dict[str, Any], score: str) -> str:
    """A gain with its interval, or its spread over the seeds where there is none, and its marks."""
    gain, low, high = (row[f"{score}_gain{part}_points"] for part in ("", "_low", "_high"))
    if pd.isna(gain):
        return ""
    if pd.isna(low):
        text = _spread(_signed(gain), row[f"{score}_gain_std_points"])
    else:
        text = f"{_signed(gain)} [{_signed(low)}, {_signed(high)}]"
    marks = (WEAK if row["weak_baseline"] else "") + ("" if pd.isna(row["unlike_baseline"]) else UNLIKE)
    return f"{text} {marks}" if marks else text


def _reported(row: dict[str, Any], score: str) -> str:
    reported, difference = row[f"{score}_reported_percent"], row[f"{score}_difference_points"]
    return "" if pd.isna(reported) else f"{reported:.1f}" + ("" if pd.isna(difference) else f" ({_signed(difference)})")


def _spread(value: str, deviation: float | None) -> str:
    return value if pd.isna(deviation) else f"{value} ± {deviation:.1f}"


def _signed(value: float) -> str:
    """A difference with one decimal and its sign, the true minus."""
    rounded = round(value, 1)
    return "0.0" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def _brief(value: float) -> str:
    """A positive number in about three digits."""
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


# ---------------------------------------------------------------------------------------------------------------- notes


def _notes(frame: pd.DataFrame, runs: list[FinishedRun], marked: dict[str, str]) -> list[str]:
    """What the reader has to know: data, seeds, commit, hardware, and what the marks mean."""
    params = runs[0].params
    data = dataset(params, [run.name for run in runs])
    notes = [f"{data[0].upper() + data[1:] if params.synthetic else data}."]
    if (frame["kind"] == "distilled").any():
        notes[0] += " Δ: percentage points over the same student trained without a teacher."
    notes += _interval_note(frame)
    seeds = sorted({"seed " + s if " " not in s else "seeds " + s.replace(" ", ", ") for s in frame["seeds"]})
    seeds_note = " or ".join(seeds).capitalize()
    if (frame["n_seeds"] > 1).any():
        seeds_note += "; ±: sample standard deviation over the seeds"
    records = list({run.name: run.provenance for run in runs}.values())
    hardware = "; ".join(dict.fromkeys(word for record in records for word in row_provenance.hardware(record)))
    commit = row_provenance.short(row_provenance.usual_commits(records))
    notes.append(f"{seeds_note}. Commit {commit}. Trained on {hardware}.")
    alike: dict[str, list[str]] = {}
    for name, reason in marked.items():
        alike.setdefault(reason, []).append(name)
    notes += [f"{MARK} {', '.join(names)}: {reason}." for reason, names in alike.items()]
    notes += [note for run in runs for note in _weak_note(run)]
    return notes + _unlike_notes(frame)


def _legend(frame: pd.DataFrame) -> list[str]:
    """What the letters, costs and reported values are."""
    legend = ["L: LiDAR, C: camera."]
    if (frame["task"] == "segmentation").any():
        legend[0] += " mIoU: mean over the map classes, each at its best threshold."
    legend.append("Cost: training of one seed with all its attempts, without its teacher's.")
    if "latency_device" in frame:
        legend[-1] += f" Latency: median of one sample, {'; '.join(frame['latency_device'].dropna().unique())}."
    sources = frame.dropna(subset="reported_source")
    if len(sources):
        legend.append("Reported: the published value, and in parentheses how far from it this run is, in points.")
    return legend + [f"Reported, {row.run}: {row.reported_source}." for row in sources.itertuples()]


def _interval_note(frame: pd.DataFrame) -> list[str]:
    """What the intervals beside the gains are; none where no row has one."""
    scores = [score for task in SCORES.values() for score in task]
    shown = frame.dropna(subset=[f"{score}_gain_low_points" for score in scores], how="all")
    if shown.empty:
        return []
    scenes = sorted({int(number) for number in shown["gain_scenes"]})
    drawn = "scenes and seeds" if (shown["n_seeds"] > 1).any() else "scenes"
    note = f"In brackets: {gains.LEVEL:.0%} confidence interval of the gain, paired bootstrap over {drawn}"
    few = ", too few to trust it" if scenes[0] < gains.FEW_SCENES else ""
    return [f"{note} ({' or '.join(map(str, scenes))} {'scene' if scenes == [1] else 'scenes'}{few})."]


def _weak_note(run: FinishedRun) -> list[str]:
    """One sentence for a row whose baseline is weaker than what is public for the same student."""
    low, student = weaknesses(run), run.settings.student
    if not low or student is None:
        return []
    public = f"{', '.join(low)} ({run.params.floors[student].source})"
    return [f"{WEAK} {run.name}: its baseline {student} has {public}; part of the gain may be that."]


def _unlike_notes(frame: pd.DataFrame) -> list[str]:
    """One sentence for all rows that differ from their baselines in the same."""
    notes = []
    for differences, rows in frame.dropna(subset="unlike_baseline").groupby("unlike_baseline", sort=False):
        whose = "its baseline it has" if len(rows) == 1 else "their baselines they have"
        names = ", ".join(rows["run"])
        notes.append(f"{UNLIKE} {names}: unlike {whose} {differences}; part of the difference may be that.")
    return notes
