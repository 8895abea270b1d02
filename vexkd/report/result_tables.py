"""Result tables: one CSV for machines, Markdown and LaTeX for people, and a record of where every row came from.

A table is a list of runs in params.yaml, of either task. Scores are shown in percent, gains in percentage points, errors
in nuScenes' units; a distilled row shows its gain over its student trained without a teacher, with a confidence interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.report import gains, records, row_provenance, runs, sources
from vexkd.settings import Params, Run

MARK = "†"  # a row that was not made as the others
WEAK = "‡"  # a gain over a baseline that is weaker than public ones
UNLIKE = "§"  # a gain whose two runs differ in more than the teaching
SCORES = ("mAP", "NDS", "mIoU")
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
    MARK: r"$^\dagger$", WEAK: r"$^\ddagger$", UNLIKE: r"$^\S$", "Δ": r"$\Delta$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "×": r"$\times$", "<": "$<$",
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
    made, marked, frame = _assemble(name, params, results)
    cells = Cells(*_columns(frame), notes=_notes(frame, params, made, marked, results))

    folder = results / "tables"
    provenance.write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    provenance.write_text(folder / f"{name}.md", markdown(cells))
    provenance.write_text(folder / f"{name}.tex", latex(cells))
    places = sources.Places(results)
    names, asked = sources.of_table(name, params, places), sources.table_settings(name, params)
    own = records.of_files(folder / name, records.TABLE_FILES, names, asked, places)
    record = _record(name, params, results, made, marked)
    provenance.write_json(folder / f"{name}.provenance.json", {**record, **own})


def read(name: str, *, params: Params, results: Path) -> Cells:
    """The table as text, without writing it; raises InputError as `make`."""
    made, marked, frame = _assemble(name, params, Path(results))
    return Cells(*_columns(frame), notes=_notes(frame, params, made, marked, Path(results)))


def _assemble(name: str, params: Params, results: Path) -> tuple[dict[str, Any], dict[str, str], pd.DataFrame]:
    """The rows' provenance, which of them are marked and why, and the numbers."""
    names = params.table(name)
    if not names:
        raise InputError(f"{params.path}: tables.{name} has no rows; add the name of a run.")
    made = {run: runs.origin(run, results) for run in names}
    marked = row_provenance.marked(params, made)
    frame = pd.DataFrame([_row(params.run(run), params, results, made[run], run in marked) for run in names])
    optional = ("flops_giga", "latency_ms", "fps", "latency_device")
    return made, marked, frame.drop(columns=[column for column in optional if frame[column].isna().all()])


def needed(name: str, *, params: Params) -> list[str]:
    """The runs whose results a table reads: its rows, and the students behind its distilled rows."""
    names = params.table(name)
    students = [params.run(run).student for run in names]
    return list(dict.fromkeys([*names, *(student for student in students if student)]))


def markdown(cells: Cells) -> str:
    """GitHub's Markdown with aligned columns, first column left and numbers right; notes below."""
    table = [cells.head, *cells.rows]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(cells.head))]
    columns = list(zip(widths, words(cells), strict=True))
    lines = []
    for row in table:
        padded = [text.ljust(w) if left else text.rjust(w) for text, (w, left) in zip(row, columns, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    rule = "|".join(f":{'-' * (w + 1)}" if left else f"{'-' * (w + 1)}:" for w, left in columns)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:], "", "<br>\n".join(cells.notes)]) + "\n"


def latex(cells: Cells) -> str:
    r"""A booktabs `tabular` with its notes, to be `\input` inside a table environment."""
    columns = "".join("l" if left else "r" for left in words(cells))
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
        **{f"{score}_percent": _percent(metrics.get(score)) for score in SCORES},
        **{f"{score}_std_percent": _percent(metrics["spread"].get(score)) for score in SCORES},
        **{column: metrics.get(key) for column, (key, _) in ERRORS.items()},
        **_gain(run, results),
        "weak_baseline": bool(_weak(run, params, results)),
        "unlike_baseline": ", ".join(gains.unlike(run.name, params, results)) or None,
        **_reported(run, params, metrics),
        **cost(list(origin["seeds"].values())),
        **measured(run.name, params, results, origin),
        "commit": " ".join(row_provenance.commits(origin)),
        "dirty": row_provenance.dirty(origin),
        "marked": marked,
    }


def _gain(run: Run, results: Path) -> dict[str, float | None]:
    """Over the student without a teacher, in percentage points; see `vexkd.report.gains`."""
    values: dict[str, float | None] = {}
    for score in SCORES:
        found = gains.gain(run.name, run.student, score, results) if run.kind == "distilled" and run.student else None
        values[f"{score}_gain_points"] = _percent(found.mean if found else None)
        values[f"{score}_gain_std_points"] = _percent(found.deviation if found else None)
        values[f"{score}_gain_low_points"] = _percent(found.low if found else None)
        values[f"{score}_gain_high_points"] = _percent(found.high if found else None)
        if found and found.scenes:
            values["gain_scenes"] = found.scenes
    return {"gain_scenes": None, **values}


def _weak(run: Run, params: Params, results: Path) -> list[str]:
    """What a distilled run's baseline scores below the best that is public for it; synthetic data has nothing public."""
    floor = params.floors.get(run.student) if run.student and params.synthetic is None else None
    if floor is None or run.student is None:
        return []
    alone = runs.metrics(run.student, results)
    known = [(score, _percent(alone.get(score)), getattr(floor, score)) for score in SCORES]
    low = [(score, own, best) for score, own, best in known if own is not None and best is not None and own < best]
    return [f"{score} {own:.1f}, not {best:.1f}" for score, own, best in low]


def _reported(run: Run, params: Params, metrics: dict[str, Any]) -> dict[str, Any]:
    """The published values (percent, on nuScenes) and ours minus theirs; nothing to compare on synthetic data."""
    known = params.reported.get(run.name) if params.synthetic is None else None
    values: dict[str, Any] = {}
    for score in SCORES:
        theirs = getattr(known, score) if known else None
        own = metrics.get(score)
        difference = None if theirs is None or own is None else round(100 * own - theirs, 6)
        values |= {f"{score}_reported_percent": theirs, f"{score}_difference_points": difference}
    return {**values, "reported_source": known.source if known else None}


def cost(seeds: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean training cost of one seed, without its teacher's training; device-hours are wall time x devices."""
    on_cpu = all(row_provenance.on_cpu(seed) for seed in seeds)
    device_hours = _mean([_seconds(seed) * seed["devices"] for seed in seeds], 3600)
    return {
        "gpu_hours": None if on_cpu else device_hours,
        "cpu_hours": device_hours if on_cpu else None,
        "wall_hours": _mean([_seconds(seed) for seed in seeds], 3600),
        "memory_gb": _mean([_memory(seed) for seed in seeds], 1e9),
        "gpu_memory_gb": None if on_cpu else _mean([seed.get("peak_memory_bytes") for seed in seeds], 1e9),
    }


def measured(run: str, params: Params, results: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """What the finished model costs to run: size, work of one sample, time of one sample and where it was taken.

    Only where it was measured of this model and of the weights that were scored.
    """
    seeds = list(origin["seeds"].values())
    summary, latency = runs.summary(run, params, results), runs.latency(run, results, origin)
    counted = latency | summary
    parameters = counted.get("parameters") or _mean([seed.get("parameters") for seed in seeds])
    flops = counted.get("flops") or _mean([seed.get("flops") for seed in seeds])
    milliseconds = latency.get("median_ms") or _mean([seed.get("latency_ms") for seed in seeds])
    return {
        "parameters_millions": _mean([parameters], 1e6),
        "flops_giga": _mean([flops], 1e9),
        "latency_ms": milliseconds,
        "fps": round(1000 / milliseconds, 6) if milliseconds else None,
        "latency_device": latency.get("device"),
    }


def _mean(values: list[float | None], unit: float = 1.0) -> float | None:
    """The mean of what is known, in this unit; None where nothing is."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known) / unit, 6) if known else None


def _seconds(seed: dict[str, Any]) -> float:
    """Wall time of a training: all attempts up to their last saved state, or its only job with start and end."""
    return max(seed["training_seconds"], seed.get("benchmark", {}).get("wall_seconds", 0.0))


def _memory(seed: dict[str, Any]) -> float | None:
    """Peak resident bytes of a training's processes; the record's own are those of its GPU where it has one."""
    own = seed.get("peak_memory_bytes") if row_provenance.on_cpu(seed) else None
    known = [value for value in (own, seed.get("benchmark", {}).get("memory_bytes")) if value is not None]
    return max(known, default=None)


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 6)


def _record(
    name: str, params: Params, results: Path, made: dict[str, dict[str, Any]], marked: dict[str, str]
) -> dict[str, Any]:
    """What stands beside a table: a hash of the settings asked for, and per row what it was made from."""
    settings = {run: [params.run(run).training(), params.run(run).after_training()] for run in params.table(name)}
    known = {**params.reported, **{f"floor of {run}": value for run, value in params.floors.items()}}
    reported = {
        run: v.model_dump() for run, v in known.items() if run.removeprefix("floor of ") in needed(name, params=params)
    }
    rows = {}
    for run, origin in made.items():
        rows[run] = {
            "metrics": provenance.file_digest(results / "runs" / run / "metrics.json"),
            "commit": row_provenance.commits(origin),
            "dirty": row_provenance.dirty(origin),
            "marked": marked.get(run),
            "settings": {seed: record.get("settings_digest") for seed, record in origin["seeds"].items()},
            "inputs": {seed: record.get("inputs") for seed, record in origin["seeds"].items()},
            "dataset": origin["evaluation"].get("dataset"),
            "weights": origin["evaluation"].get("weights"),
            "environment": {seed: record.get("versions") for seed, record in origin["seeds"].items()},
            "hardware": row_provenance.hardware(origin),
            "seeds": list(origin["seeds"]),
            **cost(list(origin["seeds"].values())),
            "commands": [record.get("command") for record in [*origin["seeds"].values(), origin["evaluation"]]],
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
    for score in SCORES:
        values = zip(frame[f"{score}_percent"], frame[f"{score}_std_percent"], strict=True)
        columns[f"{score} ↑ (%)"] = ["" if pd.isna(value) else _spread(f"{value:.1f}", std) for value, std in values]
        columns[f"Δ{score}"] = [_gain_text(row, score) for row in frame.to_dict("records")]
    columns |= {
        heading: ["" if pd.isna(value) else f"{value:.3f}" for value in frame[column]]
        for column, (_, heading) in ERRORS.items()
    }
    for score in SCORES:
        pairs = zip(frame[f"{score}_reported_percent"], frame[f"{score}_difference_points"], strict=True)
        columns[f"reported {score} (ours − it)"] = [_reported_text(*pair) for pair in pairs]
    units = {"parameters_millions": "Params (M)", "flops_giga": "GFLOPs", "latency_ms": "Latency (ms)", "fps": "FPS"}
    units |= {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
    units |= {} if _one_device_each(frame) else {"wall_hours": "Hours"}
    units |= {"memory_gb": "Mem. (GB)", "gpu_memory_gb": "GPU mem. (GB)"}
    columns |= {heading: [_short(v) for v in frame[column]] for column, heading in units.items() if column in frame}
    columns["n"] = [str(n) for n in frame["n_seeds"]]
    kept = {heading: cells for heading, cells in columns.items() if any(cells)}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def _notes(
    frame: pd.DataFrame, params: Params, made: dict[str, Any], marked: dict[str, str], results: Path
) -> list[str]:
    """What the reader has to know: data, seeds, commit, hardware, and what the marks mean."""
    names = list(frame["run"])
    data = runs.dataset(params, names)
    notes = [f"{data[0].upper() + data[1:] if params.synthetic else data}. L: LiDAR, C: camera."]
    if (frame["task"] == "segmentation").any():
        notes[0] += " mIoU: mean over the map classes, each at its best threshold."
    if (frame["kind"] == "distilled").any():
        notes[0] += " Δ: percentage points over the same student trained without a teacher."
    notes += _interval_note(frame)
    seeds = sorted({"seed " + s if " " not in s else "seeds " + s.replace(" ", ", ") for s in frame["seeds"]})
    seeds_note = " or ".join(seeds).capitalize()
    if (frame["n_seeds"] > 1).any():
        seeds_note += "; ±: sample standard deviation over the n seeds"
    notes.append(f"{seeds_note}. Cost: training of one seed with all its attempts, without its teacher's.")
    hardware = "; ".join(dict.fromkeys(word for origin in made.values() for word in row_provenance.hardware(origin)))
    notes.append(f"Commit {row_provenance.short(row_provenance.usual_commits(made))}. Trained on {hardware}.")
    if "latency_device" in frame:
        notes[-1] += f" Latency: median of one sample, {'; '.join(frame['latency_device'].dropna().unique())}."
    alike: dict[str, list[str]] = {}
    for run, reason in marked.items():
        alike.setdefault(reason, []).append(run)
    notes += [f"{MARK} {', '.join(found)}: {reason}." for reason, found in alike.items()]
    notes += [note for name in names for note in _weak_note(params.run(name), params, results)]
    notes += _unlike_notes(frame)
    sources = frame.dropna(subset="reported_source")
    notes += [f"Reported, {row.run}: {row.reported_source}." for row in sources.itertuples()]
    return notes


def _interval_note(frame: pd.DataFrame) -> list[str]:
    """What the intervals beside the gains are; none where no row has one."""
    shown = frame.dropna(subset=[f"{score}_gain_low_points" for score in SCORES], how="all")
    if shown.empty:
        return []
    scenes = sorted({int(number) for number in shown["gain_scenes"]})
    drawn = "scenes and seeds" if (shown["n_seeds"] > 1).any() else "scenes"
    note = f"In brackets: {gains.LEVEL:.0%} confidence interval of the gain, paired bootstrap over {drawn}"
    few = ", too few to trust it" if scenes[0] < gains.FEW_SCENES else ""
    return [f"{note} ({' or '.join(map(str, scenes))} {'scene' if scenes == [1] else 'scenes'}{few})."]


def _weak_note(run: Run, params: Params, results: Path) -> list[str]:
    """One sentence for a row whose baseline is weaker than what is public for the same student."""
    low = _weak(run, params, results)
    if not low or run.student is None:
        return []
    public = f"{', '.join(low)} ({params.floors[run.student].source})"
    return [f"{WEAK} {run.name}: its baseline {run.student} has {public}; part of the gain may be that."]


def _unlike_notes(frame: pd.DataFrame) -> list[str]:
    """One sentence for all rows that differ from their baselines in the same."""
    notes = []
    for found, rows in frame.dropna(subset="unlike_baseline").groupby("unlike_baseline", sort=False):
        whose = "its baseline it has" if len(rows) == 1 else "their baselines they have"
        notes.append(f"{UNLIKE} {', '.join(rows['run'])}: unlike {whose} {found}; part of the difference may be that.")
    return notes


def _one_device_each(frame: pd.DataFrame) -> bool:
    """Whether wall time says no more than device-hours do."""
    wall = frame["wall_hours"]
    return bool(((frame["gpu_hours"] == wall) | (frame["cpu_hours"] == wall)).all())


def words(cells: Cells) -> list[bool]:
    """Which columns hold words."""
    return [heading in ("Run", "Sensors", "Teacher") for heading in cells.head]


def _sensors(row: Any) -> str:
    """L, C or L+C; for a distilled row the teacher's, an arrow, and its own."""
    own = _letters(row.sensors)
    return f"{_letters(row.teacher_sensors)} → {own}" if row.teacher_sensors else own


def _letters(sensors: str) -> str:
    return "+".join({"lidar": "L", "camera": "C"}[sensor] for sensor in sensors.split("+"))


def _gain_text(row: dict[str, Any], score: str) -> str:
    """A gain with its interval, or its spread over the seeds where there is none, and its marks."""
    gain, low, high = (row[f"{score}_gain{part}_points"] for part in ("", "_low", "_high"))
    if pd.isna(gain):
        return ""
    bare = _signed(gain)
    text = (
        _spread(bare, row[f"{score}_gain_std_points"]) if pd.isna(low) else f"{bare} [{_signed(low)}, {_signed(high)}]"
    )
    marks = (WEAK if row["weak_baseline"] else "") + ("" if pd.isna(row["unlike_baseline"]) else UNLIKE)
    return f"{text} {marks}" if marks else text


def _reported_text(reported: float | None, difference: float | None) -> str:
    return "" if pd.isna(reported) else f"{reported:.1f}" + ("" if pd.isna(difference) else f" ({_signed(difference)})")


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


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
