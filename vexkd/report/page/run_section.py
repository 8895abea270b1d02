"""A run's section in report.html: what it is, its scores by class, its curve, pictures, cost, settings and provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vexkd import settings
from vexkd.errors import InputError
from vexkd.report import gains, result_tables, row_provenance, runs
from vexkd.report.page.markup import Markup, element, join
from vexkd.settings import Params, Run

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito, one a seed
POINTS = 200  # of a curve
KINDS = {"pretrained": "pretraining", "teachers": "teacher", "students": "student"}  # a run's kind in words
CLASS_ERRORS = {"trans_err": "ATE (m)", "scale_err": "ASE (1-IoU)", "orient_err": "AOE (rad)"}
CLASS_ERRORS |= {"vel_err": "AVE (m/s)", "attr_err": "AAE (1-acc.)"}


def is_finished(name: str, results: Path) -> bool:
    """Whether the run has scores."""
    return (Path(results) / "runs" / name / "metrics.json").is_file()


def section(run: Run, params: Params, results: Path, pictures: list[Markup]) -> Markup:
    """The section of a run; `pictures` have headings of level 4."""
    anchor = f"run-{run.name}"
    parts: list[Any] = [element("h3", element("code", run.name), id=anchor), _facts(run, params, results)]
    if is_finished(run.name, results):
        metrics = runs.metrics(run.name, results)
        parts += [element("h4", "Scores"), _scores(metrics), _by_class(run.name, metrics)]
        parts += [_curve(run.name, results), *pictures, _origin(run.name, params, results)]
    else:
        command = f"snakemake --cores all results/runs/{run.name}/metrics.json"
        parts.append(element("p", "No results yet; ", element("code", command), " makes them."))
    parts += [element("h4", "Settings"), _settings(run)]
    parts.append(element("p", element("a", "All runs", href="#overview"), class_="up"))
    return element("section", parts, class_="run", aria_labelledby=anchor)


def _facts(run: Run, params: Params, results: Path) -> Markup:
    """What the run is, and where it stands."""
    facts: list[tuple[str, Any]] = [
        ("Kind", f"{KINDS.get(run.kind, run.kind)}, {run.task}"),
        ("Sensors", " + ".join(run.sensors)),
        ("Head", run.head + (f", fusion {run.fusion}" if run.fusion else "")),
    ]
    for label, other in (("Starts from", run.start), ("Student", run.student), ("Teacher", run.teacher)):
        if other:
            facts.append((label, element("a", other, href=f"#run-{other}")))
    both = [name for name in (run.name, run.student) if name and is_finished(name, results)]
    unlike = gains.unlike(run.name, params, results) if len(both) == 2 else []
    if unlike:
        facts.append((f"Unlike {run.student}", f"has {', '.join(unlike)} {result_tables.UNLIKE}"))
    shown = [name for name, rows in params.tables.items() if run.name in rows]
    links = [join([element("a", name, href=f"#{_place(name, run.name, params, results)}"), " "]) for name in shown]
    return _definitions([*facts, *([("In tables", links)] if links else [])])


def _place(table: str, run: str, params: Params, results: Path) -> str:
    """The anchor of a run's row in a table, or of the table's heading where it cannot be shown yet."""
    there = all(is_finished(name, results) for name in result_tables.needed(table, params=params))
    return f"row-{table}-{run}" if there else f"table-{table}"


def _definitions(pairs: list[tuple[str, Any]]) -> Markup:
    return element("dl", [join([element("dt", name), element("dd", value)]) for name, value in pairs])


def _scores(metrics: dict[str, Any]) -> Markup:
    """The main scores with their spread over the seeds."""
    pairs = []
    for score in result_tables.SCORES:
        if metrics.get(score) is not None:
            spread = metrics["spread"].get(score)
            text = f"{100 * metrics[score]:.1f} %" + ("" if spread is None else f" ± {100 * spread:.1f}")
            each = ", ".join(f"seed {seed}: {100 * found[score]:.1f}" for seed, found in metrics["seeds"].items())
            pairs.append((score, f"{text} ({each})"))
    return _definitions(pairs)


def _by_class(name: str, metrics: dict[str, Any]) -> Markup:
    """Scores of every class, those of map classes or of boxes."""
    if "IoU" in metrics:
        head, rows = ["Class", "IoU (%)", "at threshold"], []
        for each, value in metrics["IoU"].items():
            rows.append([each, f"{100 * value:.1f}", f"{(metrics.get('threshold') or {}).get(each, float('nan')):.2f}"])
    elif "AP" in metrics:
        head, rows = ["Class", "AP (%)", *CLASS_ERRORS.values()], []
        for each, value in metrics["AP"].items():
            errors = [(metrics.get("errors") or {}).get(each, {}).get(key) for key in CLASS_ERRORS]
            shown = ["–" if error is None else f"{error:.3f}" for error in errors]
            rows.append([each.replace("_", " "), f"{100 * value:.1f}", *shown])
    else:
        return Markup("")
    top = [element("th", text, scope="col", class_=None if i else "word") for i, text in enumerate(head)]
    lines = [
        element("tr", element("th", row[0], scope="row", class_="word"), [element("td", cell) for cell in row[1:]])
        for row in rows
    ]
    caption = element("caption", f"Scores of {name} by class")
    made = element("table", caption, element("thead", element("tr", top)), element("tbody", lines))
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=f"Scores of {name} by class")


def _curve(name: str, results: Path) -> Markup:
    """The training loss as a small vector chart, one line a seed, logarithmic where it can be."""
    try:
        frame = runs.curve(name, results)[["seed", "step", "loss"]].dropna()
    except (InputError, KeyError):
        return Markup("")
    frame = frame[np.isfinite(frame["loss"])]
    if len(frame) < 2:
        return Markup("")
    return join([element("h4", "Training loss"), chart(frame, name)])


def chart(frame: pd.DataFrame, name: str) -> Markup:
    """Columns seed, step, loss as an SVG of 640 by 240 units."""
    logarithmic = bool((frame["loss"] > 0).all())
    height = np.log10(frame["loss"]) if logarithmic else frame["loss"]
    frame = frame.assign(height=height)
    left, right, top, bottom = 52.0, 630.0, 10.0, 205.0
    first, last = float(frame["step"].min()), float(frame["step"].max())
    low, high = float(frame["height"].min()), float(frame["height"].max())

    def across(step: Any) -> Any:
        return left + (right - left) * (step - first) / max(last - first, 1e-12)

    def up(value: Any) -> Any:
        return bottom - (bottom - top) * (value - low) / max(high - low, 1e-12)

    lines = []
    for number, (_, seed) in enumerate(frame.groupby("seed")):
        bins = np.arange(len(seed)) * POINTS // max(len(seed), POINTS)
        thin = seed.groupby(bins)[["step", "height"]].mean()
        places = " L".join(f"{x:.1f} {y:.1f}" for x, y in zip(across(thin["step"]), up(thin["height"]), strict=True))
        lines.append(element("path", d=f"M{places}", stroke=COLOURS[number % len(COLOURS)]))
    for value in np.linspace(low, high, 4):
        y, shown = up(value), 10**value if logarithmic else value
        lines.append(element("path", d=f"M{left} {y:.1f} H{right}", class_="axis"))
        lines.append(element("text", f"{shown:.3g}", x=left - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    for step, anchor in ((first, "start"), ((first + last) / 2, "middle"), (last, "end")):
        lines.append(element("text", f"{step:.0f}", x=f"{across(step):.1f}", y=bottom + 16, text_anchor=anchor))
    axis = "optimiser step; loss, " + ("logarithmic" if logarithmic else "linear")
    seeds = frame["seed"].unique()
    for number, seed in enumerate(seeds if len(seeds) > 1 else []):
        place = {"x": right, "y": top + 12 + 13 * number, "text_anchor": "end"}
        lines.append(element("text", f"seed {seed}", style=f"fill: {COLOURS[number % len(COLOURS)]}", **place))
    lines.append(element("text", axis, x=(left + right) / 2, y=bottom + 32, text_anchor="middle"))
    ends = frame.groupby("seed")["loss"].agg(["first", "last"]).mean()
    words = f"Training loss of {name}, from {ends['first']:.3g} to {ends['last']:.3g} over {last - first:.0f} steps."
    picture = element("svg", lines, viewBox="0 0 640 240", class_="chart", role="img", aria_label=words)
    return element("div", picture, class_="pan", tabindex="0", role="region", aria_label=f"Training loss of {name}")


def _origin(name: str, params: Params, results: Path) -> Markup:
    """Cost and provenance: in short, then the whole record."""
    origin = runs.origin(name, results)
    seeds = list(origin["seeds"].values())
    cost = result_tables.cost(seeds) | result_tables.measured(name, params, results, origin)
    units = {"parameters_millions": "Parameters (millions)", "flops_giga": "GFLOPs of one sample"}
    units |= {"latency_ms": "Latency of one sample (ms)", "gpu_hours": "GPU-hours of one training"}
    units |= {"cpu_hours": "CPU-hours of one training", "wall_hours": "Hours of one training"}
    units |= {"memory_gb": "Memory (GB)", "gpu_memory_gb": "GPU memory (GB)"}
    pairs: list[tuple[str, Any]] = [
        (words, f"{cost[key]:.3g}") for key, words in units.items() if cost.get(key) is not None
    ]
    dirty = " with uncommitted changes" if row_provenance.dirty(origin) else ", nothing uncommitted"
    scored = origin["evaluation"].get("dataset") or {}
    pairs += [
        ("Seeds", ", ".join(origin["seeds"])),
        ("Hardware", "; ".join(row_provenance.hardware(origin))),
        ("Versions", row_provenance.environment(origin)),
        ("Commit", row_provenance.short(row_provenance.commits(origin)) + dirty),
        ("Trained", ", ".join(dict.fromkeys(str(seed.get("time", "")) for seed in seeds))),
        ("Scored on", " ".join(str(scored[key]) for key in ("version", "split") if key in scored)),
        ("Hashes", element("code", "; ".join(_hashes(origin)))),
        *(("Command", element("code", line)) for line in dict.fromkeys(str(seed.get("command", "")) for seed in seeds)),
    ]
    pairs = [(words, value) for words, value in pairs if value]
    whole = element("details", element("summary", "Whole record"), element("pre", json.dumps(origin, indent=2)))
    return join([element("h4", "Cost and provenance"), _definitions(pairs), whole])


def _hashes(origin: dict[str, Any]) -> list[str]:
    """Beginnings of the hashes of what went in and came out, each distinct one once; the record has them whole."""
    seeds = list(origin["seeds"].values())
    found = [("settings", seed.get("settings_digest")) for seed in seeds]
    found += [pair for seed in seeds for pair in (seed.get("inputs") or {}).items()]
    found += [pair for files in (origin["evaluation"].get("weights") or {}).values() for pair in files.items()]
    return list(dict.fromkeys(f"{name} {str(value)[:16]}" for name, value in found if value))


def _settings(run: Run) -> Markup:
    """The merged settings as they stand in config.yaml and inference.yaml."""
    texts = {"config.yaml": settings.dump(run.training()), "inference.yaml": settings.dump(run.after_training())}
    return join(
        element("details", element("summary", element("code", name)), element("pre", text))
        for name, text in texts.items()
    )
