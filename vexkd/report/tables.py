"""Result tables: one CSV for machines, Markdown and LaTeX for people, and a record of where every row came from.

A table is a list of runs in params.yaml. Scores are shown in percent, gains in percentage points, errors in nuScenes'
units; a distilled row shows its gain over its student trained without a teacher.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.params import Params, Run
from vexkd.report import runs

MARK = "†"
# Column of the CSV -> key in metrics.json and heading.
ERRORS = {
    "mATE_m": ("mATE", "mATE ↓ (m)"),
    "mASE_one_minus_iou": ("mASE", "mASE ↓ (1-IoU)"),
    "mAOE_rad": ("mAOE", "mAOE ↓ (rad)"),
    "mAVE_m_per_s": ("mAVE", "mAVE ↓ (m/s)"),
    "mAAE_one_minus_accuracy": ("mAAE", "mAAE ↓ (1-acc.)"),
}
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "±": r"$\pm$", "−": "$-$",
    MARK: r"$^\dagger$", "Δ": r"$\Delta$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$",
    "×": r"$\times$", "<": "$<$",
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """A table as text, for whatever markup: headings, rows, lines below."""

    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def make(name: str, *, params: Params, results: Path) -> None:
    """Write `results/tables/<name>.{csv,md,tex}` and `<name>.provenance.json` for a table of params.yaml.

    Raises InputError for an unknown table, and for a run (or the student behind a distilled one) without results.
    """
    results = Path(results)
    names = params.table(name)
    if not names:
        raise InputError(f"{params.path}: tables.{name} has no rows; add the name of a run.")
    origins = {run: runs.origin(run, results) for run in names}
    marked = _marked(params, origins)
    frame = pd.DataFrame([_row(params.run(run), params, results, origins[run], run in marked) for run in names])
    frame = frame.drop(columns=[c for c in ("flops_giga", "latency_ms") if frame[c].isna().all()])
    cells = Cells(*_columns(frame), notes=_notes(frame, params, origins, marked))

    folder = results / "tables"
    provenance.write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    provenance.write_text(folder / f"{name}.md", markdown(cells))
    provenance.write_text(folder / f"{name}.tex", latex(cells))
    provenance.write_json(folder / f"{name}.provenance.json", _record(name, params, results, origins, marked))


def needed(name: str, *, params: Params) -> list[str]:
    """The runs whose results a table reads: its rows, and the students behind its distilled rows."""
    names = params.table(name)
    students = [params.run(run).student for run in names]
    return list(dict.fromkeys([*names, *(student for student in students if student)]))


def markdown(cells: Cells) -> str:
    """GitHub's Markdown with aligned columns, first column left and numbers right; notes below."""
    table = [cells.head, *cells.rows]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(cells.head))]
    columns = list(zip(widths, _left(cells), strict=True))
    lines = []
    for row in table:
        padded = [text.ljust(w) if left else text.rjust(w) for text, (w, left) in zip(row, columns, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    rule = "|".join(f":{'-' * (w + 1)}" if left else f"{'-' * (w + 1)}:" for w, left in columns)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:], "", "<br>\n".join(cells.notes)]) + "\n"


def latex(cells: Cells) -> str:
    r"""A booktabs `tabular` with its notes, to be `\input` inside a table environment."""
    columns = "".join("l" if left else "r" for left in _left(cells))
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in [cells.head, *cells.rows]]
    notes = r" \\ ".join(map(_tex, cells.notes))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
            rf"{{\footnotesize {notes}}}",
            "",
        ]
    )


# ------------------------------------------------------------------------------------------------------ values of a row


def _row(run: Run, params: Params, results: Path, origin: dict[str, Any], marked: bool) -> dict[str, Any]:
    """One row of the CSV."""
    metrics = runs.metrics(run.name, results)
    return {
        "run": run.name,
        "kind": run.kind,
        "task": run.task,
        "sensors": "+".join(run.sensors),
        "head": run.head,
        "fusion": run.fusion,
        "student": run.student,
        "teacher": run.teacher,
        "teacher_sensors": "+".join(params.run(run.teacher).sensors) if run.teacher else None,
        "n_seeds": metrics["n"],
        "seeds": " ".join(metrics["seeds"]),
        **{f"{score}_percent": _percent(metrics[score]) for score in ("mAP", "NDS")},
        **{f"{score}_std_percent": _percent(metrics["spread"][score]) for score in ("mAP", "NDS")},
        **{column: metrics[key] for column, (key, _) in ERRORS.items()},
        **_gain(run, metrics, results),
        **_reported(run, params, metrics),
        **_cost(list(origin["seeds"].values())),
        "commit": " ".join(_commits(origin)),
        "dirty": _dirty(origin),
        "marked": marked,
    }


def _gain(run: Run, metrics: dict[str, Any], results: Path) -> dict[str, float | None]:
    """Over the student without a teacher, in percentage points; the spread is that of the differences seed by seed."""
    gain: dict[str, float | None] = {}
    baseline = runs.metrics(run.student, results) if run.kind == "distilled" and run.student else None
    for score in ("mAP", "NDS"):
        mean = deviation = None
        if baseline:
            mean = metrics[score] - baseline[score]
            common = [seed for seed in metrics["seeds"] if seed in baseline["seeds"]]
            paired = [metrics["seeds"][seed][score] - baseline["seeds"][seed][score] for seed in common]
            deviation = statistics.stdev(paired) if len(paired) > 1 else None
        gain |= {f"{score}_gain_points": _percent(mean), f"{score}_gain_std_points": _percent(deviation)}
    return gain


def _reported(run: Run, params: Params, metrics: dict[str, Any]) -> dict[str, Any]:
    """The published values (percent, on nuScenes) and ours minus theirs; nothing to compare on synthetic data."""
    known = params.reported.get(run.name) if params.synthetic is None else None
    values: dict[str, Any] = {}
    for score in ("mAP", "NDS"):
        theirs = getattr(known, score) if known else None
        difference = None if theirs is None else round(100 * metrics[score] - theirs, 6)
        values |= {f"{score}_reported_percent": theirs, f"{score}_difference_points": difference}
    return {**values, "reported_source": known.source if known else None}


def _cost(seeds: list[dict[str, Any]]) -> dict[str, float | None]:
    """Size and mean training cost of one seed: hours are wall time times devices, without the teacher's training."""
    hours = [seed["training_seconds"] * seed["devices"] / 3600 for seed in seeds]
    on_cpu = all(_on_cpu(seed) for seed in seeds)
    mean = round(sum(hours) / len(hours), 6)

    def average(key: str, unit: float) -> float | None:
        values = [seed[key] for seed in seeds if seed.get(key) is not None]
        return round(sum(values) / len(values) / unit, 6) if values else None

    return {
        "parameters_millions": average("parameters", 1e6),
        "flops_giga": average("flops", 1e9),
        "latency_ms": average("latency_ms", 1.0),
        "gpu_hours": None if on_cpu else mean,
        "cpu_hours": mean if on_cpu else None,
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 6)


# ----------------------------------------------------------------------------------------------------------- provenance


def _commits(origin: dict[str, Any]) -> list[str]:
    """The distinct commits that trained and scored a run, training first; "unknown" outside a checkout."""
    records = [*origin["seeds"].values(), origin["evaluation"]]
    return list(dict.fromkeys(record.get("commit") or "unknown" for record in records))


def _dirty(origin: dict[str, Any]) -> bool:
    return any(record.get("dirty") for record in [*origin["seeds"].values(), origin["evaluation"]])


def _majority(origins: dict[str, dict[str, Any]]) -> list[str]:
    """The commits that most rows have."""
    return list(Counter(tuple(_commits(origin)) for origin in origins.values()).most_common(1)[0][0])


def _marked(params: Params, origins: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Why a row is not like the others: another commit, a dirty tree, or settings that are not those asked for now."""
    usual = _majority(origins)
    reasons = {}
    for run, origin in origins.items():
        asked = provenance.digest(params.run(run).training())
        reason = []
        if _commits(origin) != usual or _dirty(origin):
            reason.append(f"made at commit {_short_commits(_commits(origin))}")
        if _dirty(origin):
            reason.append("with uncommitted changes")
        if any(seed.get("settings_digest") != asked for seed in origin["seeds"].values()):
            reason.append(f"trained with other settings than {Path(params.path).name} has now")
        if reason:
            reasons[run] = ", ".join(reason)
    return reasons


def _on_cpu(seed: dict[str, Any]) -> bool:
    """Whether a training record's device is a CPU; else `device` is the name of a GPU."""
    return str(seed["device"]).lower().startswith("cpu")


def _hardware(origin: dict[str, Any]) -> list[str]:
    """What each seed was trained on, in words."""
    words = []
    for seed in origin["seeds"].values():
        cpu = (seed.get("hardware") or {}).get("cpu", seed["device"])
        words.append(f"{cpu} ({seed['threads']} threads)" if _on_cpu(seed) else f"{seed['devices']} × {seed['device']}")
    return list(dict.fromkeys(words))


def _record(
    name: str, params: Params, results: Path, origins: dict[str, dict[str, Any]], marked: dict[str, str]
) -> dict[str, Any]:
    """What stands beside a table: a hash of the settings asked for, and per row what it was made from."""
    settings = {run: [params.run(run).training(), params.run(run).after_training()] for run in params.table(name)}
    reported = {run: value.model_dump() for run, value in params.reported.items() if run in settings}
    rows = {}
    for run, origin in origins.items():
        rows[run] = {
            "metrics": provenance.file_digest(results / "runs" / run / "metrics.json"),
            "commit": _commits(origin),
            "dirty": _dirty(origin),
            "marked": marked.get(run),
            "settings": {seed: record.get("settings_digest") for seed, record in origin["seeds"].items()},
            "weights": origin["evaluation"].get("weights"),
            "hardware": _hardware(origin),
            "seeds": list(origin["seeds"]),
        }
    return provenance.record(
        table=name, settings=provenance.digest([settings, reported]), synthetic=params.synthetic is not None, rows=rows
    )


# ------------------------------------------------------------------------------------------------------ text for people


def _columns(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column that would be empty in every row is left out."""
    columns: dict[str, list[str]] = {
        "Run": [row.run + (f" {MARK}" if row.marked else "") for row in frame.itertuples()],
        "Sensors": [_sensors(row) for row in frame.itertuples()],
        "Teacher": [row.teacher or "" for row in frame.itertuples()],
    }
    for score in ("mAP", "NDS"):
        gains = zip(frame[f"{score}_gain_points"], frame[f"{score}_gain_std_points"], strict=True)
        values = zip(frame[f"{score}_percent"], frame[f"{score}_std_percent"], strict=True)
        columns[f"{score} ↑ (%)"] = [_spread(f"{value:.1f}", std) for value, std in values]
        columns[f"Δ{score}"] = [_spread(_signed(gain), std) for gain, std in gains]
    columns |= {heading: [f"{value:.3f}" for value in frame[column]] for column, (_, heading) in ERRORS.items()}
    for score in ("mAP", "NDS"):
        pairs = zip(frame[f"{score}_reported_percent"], frame[f"{score}_difference_points"], strict=True)
        columns[f"reported {score} (ours − it)"] = ["" if pd.isna(r) else f"{r:.1f} ({_signed(d)})" for r, d in pairs]
    units = {"parameters_millions": "Params (M)", "flops_giga": "GFLOPs", "latency_ms": "Latency (ms)"}
    units |= {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
    columns |= {heading: [_short(v) for v in frame[column]] for column, heading in units.items() if column in frame}
    columns["n"] = [str(n) for n in frame["n_seeds"]]
    kept = {heading: cells for heading, cells in columns.items() if any(cells)}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def _notes(frame: pd.DataFrame, params: Params, origins: dict[str, Any], marked: dict[str, str]) -> list[str]:
    """What the reader has to know: data, seeds, commit, hardware, and what the marks mean."""
    names = list(frame["run"])
    data = runs.dataset(params, names)
    notes = [f"{data[0].upper() + data[1:] if params.synthetic else data}. L: LiDAR, C: camera."]
    if (frame["kind"] == "distilled").any():
        notes[0] += " Δ: percentage points over the same student trained without a teacher."
    seeds = sorted({"seed " + s if " " not in s else "seeds " + s.replace(" ", ", ") for s in frame["seeds"]})
    seeds_note = " or ".join(seeds).capitalize()
    if (frame["n_seeds"] > 1).any():
        seeds_note += "; ±: sample standard deviation over the n seeds"
    notes.append(f"{seeds_note}. Hours: training time of one seed × devices, without its teacher's.")
    hardware = "; ".join(dict.fromkeys(word for origin in origins.values() for word in _hardware(origin)))
    notes.append(f"Commit {_short_commits(_majority(origins))}. Trained on {hardware}.")
    alike: dict[str, list[str]] = {}
    for run, reason in marked.items():
        alike.setdefault(reason, []).append(run)
    notes += [f"{MARK} {', '.join(found)}: {reason}." for reason, found in alike.items()]
    sources = frame.dropna(subset="reported_source")
    notes += [f"Reported, {row.run}: {row.reported_source}." for row in sources.itertuples()]
    return notes


def _left(cells: Cells) -> list[bool]:
    """Which columns hold words."""
    return [heading in ("Run", "Sensors", "Teacher") for heading in cells.head]


def _sensors(row: Any) -> str:
    """L, C or L+C; for a distilled row the teacher's, an arrow, and its own."""
    own = _letters(row.sensors)
    return f"{_letters(row.teacher_sensors)} → {own}" if row.teacher_sensors else own


def _letters(sensors: str) -> str:
    return "+".join({"lidar": "L", "camera": "C"}[sensor] for sensor in sensors.split("+"))


def _spread(value: str, deviation: float | None) -> str:
    return value if pd.isna(deviation) or not value else f"{value} ± {deviation:.1f}"


def _signed(value: float | None) -> str:
    """A difference with one decimal and its sign, the true minus; "" for none."""
    if pd.isna(value):
        return ""
    rounded = round(value, 1)
    return "0.0" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def _short(value: float | None) -> str:
    """A positive number in about three digits."""
    if pd.isna(value):
        return ""
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _short_commits(commits: list[str]) -> str:
    return ", ".join(commit[:10] for commit in commits)


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
