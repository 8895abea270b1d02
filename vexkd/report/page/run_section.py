"""A run's section in report.html: what it is, its scores by class, its curve, pictures, cost, settings and provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vexkd import settings
from vexkd.errors import InputError
from vexkd.report import gains, result_tables, row_provenance
from vexkd.report.page.html_table import HtmlTable
from vexkd.report.page.loss_chart import LossChart, loss_chart
from vexkd.report.page.pictures import Picture
from vexkd.report.results import SCORES, FinishedRun
from vexkd.report.table_rows import cost, size_and_speed
from vexkd.report.table_text import UNLIKE

KINDS = {"pretrained": "pretraining", "teachers": "teacher", "students": "student"}  # a run's kind in words
CLASS_ERRORS = {"trans_err": "ATE (m)", "scale_err": "ASE (1-IoU)", "orient_err": "AOE (rad)"}
CLASS_ERRORS |= {"vel_err": "AVE (m/s)", "attr_err": "AAE (1-acc.)"}
COSTS = {
    "parameters_millions": "Parameters (millions)",
    "flops_giga": "GFLOPs of one sample",
    "latency_ms": "Latency of one sample (ms)",
    "gpu_hours": "GPU-hours of one training",
    "cpu_hours": "CPU-hours of one training",
    "wall_hours": "Hours of one training",
    "memory_gb": "Memory (GB)",
    "gpu_memory_gb": "GPU memory (GB)",
}


@dataclass(frozen=True)
class Fact:
    """A term and what is said of it: text, or links as pairs of an anchor and its text."""

    term: str
    text: str = ""
    links: list[tuple[str, str]] = field(default_factory=list)
    is_code: bool = False


@dataclass(frozen=True)
class Section:
    """What the template shows of a run; of one without results only the facts and settings."""

    name: str
    facts: list[Fact]
    settings: dict[str, str]
    is_finished: bool = False
    scores: list[Fact] = field(default_factory=list)
    by_class: HtmlTable | None = None
    loss: LossChart | None = None
    pictures: list[Picture] = field(default_factory=list)
    provenance: list[Fact] = field(default_factory=list)
    record: str = ""


def section(run: FinishedRun, pictures: list[Picture]) -> Section:
    """The section of a run with its pictures."""
    texts = {
        "config.yaml": settings.dump(run.settings.training()),
        "inference.yaml": settings.dump(run.settings.after_training()),
    }
    if not run.is_finished:
        return Section(run.name, _facts(run), texts)
    return Section(
        run.name,
        _facts(run),
        texts,
        is_finished=True,
        scores=_scores(run),
        by_class=_by_class(run),
        loss=_loss(run),
        pictures=pictures,
        provenance=[fact for fact in _provenance(run) if fact.text],
        record=json.dumps(run.provenance, indent=2),
    )


def _facts(run: FinishedRun) -> list[Fact]:
    """What the run is, and where it stands."""
    row = run.settings
    facts = [
        Fact("Kind", f"{KINDS.get(row.kind, row.kind)}, {row.task}"),
        Fact("Sensors", " + ".join(row.sensors)),
        Fact("Head", row.head + (f", fusion {row.fusion}" if row.fusion else "")),
    ]
    others = (("Starts from", row.start), ("Student", row.student), ("Teacher", row.teacher))
    facts += [Fact(term, links=[(f"run-{other}", other)]) for term, other in others if other]
    if run.is_finished and run.student is not None and run.student.is_finished and (unlike := gains.unlike(run)):
        facts.append(Fact(f"Unlike {row.student}", f"has {', '.join(unlike)} {UNLIKE}"))
    shown = [name for name, rows in run.params.tables.items() if run.name in rows]
    links = [(_anchor(name, run), name) for name in shown]
    return [*facts, *([Fact("In tables", links=links)] if links else [])]


def _anchor(table: str, run: FinishedRun) -> str:
    """The anchor of a run's row in a table, or of the table's heading where it cannot be shown yet."""
    shown = all(each.is_finished for each in result_tables.needed(table, run.results))
    return f"row-{table}-{run.name}" if shown else f"table-{table}"


def _scores(run: FinishedRun) -> list[Fact]:
    """The scores of all seeds and of each."""
    metrics, facts = run.metrics, []
    for score in (score for task in SCORES.values() for score in task if metrics.get(score) is not None):
        spread = metrics["spread"].get(score)
        text = f"{100 * metrics[score]:.1f} %" + ("" if spread is None else f" ± {100 * spread:.1f}")
        each = ", ".join(f"seed {seed}: {100 * values[score]:.1f}" for seed, values in metrics["seeds"].items())
        facts.append(Fact(score, f"{text} ({each})"))
    return facts


def _by_class(run: FinishedRun) -> HtmlTable | None:
    """Scores of every class, those of map classes or of boxes."""
    metrics, label = run.metrics, f"Scores of {run.name} by class"
    if "IoU" in metrics:
        thresholds = metrics.get("threshold") or {}
        rows = [
            [name, f"{100 * value:.1f}", f"{thresholds.get(name, float('nan')):.2f}"]
            for name, value in metrics["IoU"].items()
        ]
        return HtmlTable(["Class", "IoU (%)", "at threshold"], rows, label, {"Class"})
    if "AP" not in metrics:
        return None
    rows = []
    for name, value in metrics["AP"].items():
        errors = [(metrics.get("errors") or {}).get(name, {}).get(key) for key in CLASS_ERRORS]
        shown = ["–" if error is None else f"{error:.3f}" for error in errors]
        rows.append([name.replace("_", " "), f"{100 * value:.1f}", *shown])
    return HtmlTable(["Class", "AP (%)", *CLASS_ERRORS.values()], rows, label, {"Class"})


def _loss(run: FinishedRun) -> LossChart | None:
    try:
        return loss_chart(run.curve, run.name)
    except InputError:  # a page shows what is there
        return None


def _provenance(run: FinishedRun) -> list[Fact]:
    """Cost and provenance in short; the whole record stands below."""
    record, trainings = run.provenance, run.trainings
    costs = cost(trainings) | size_and_speed(run)
    facts = [Fact(words, f"{costs[key]:.3g}") for key, words in COSTS.items() if costs.get(key) is not None]
    dirty = " with uncommitted changes" if row_provenance.dirty(record) else ", nothing uncommitted"
    scored = record["evaluation"].get("dataset") or {}
    commands = dict.fromkeys(str(training.get("command", "")) for training in trainings)
    return [
        *facts,
        Fact("Seeds", ", ".join(record["seeds"])),
        Fact("Hardware", "; ".join(row_provenance.hardware(record))),
        Fact("Versions", row_provenance.environment(record)),
        Fact("Commit", row_provenance.short(row_provenance.commits(record)) + dirty),
        Fact("Trained", ", ".join(dict.fromkeys(str(training.get("time", "")) for training in trainings))),
        Fact("Scored on", " ".join(str(scored[key]) for key in ("version", "split") if key in scored)),
        Fact("Hashes", "; ".join(_hashes(record)), is_code=True),
        *(Fact("Command", command, is_code=True) for command in commands),
    ]


def _hashes(record: dict[str, Any]) -> list[str]:
    """Beginnings of the hashes of what went in and came out, each distinct one once; the record has them whole."""
    trainings = record["seeds"].values()
    pairs = [("settings", training.get("settings_digest")) for training in trainings]
    pairs += [pair for training in trainings for pair in (training.get("inputs") or {}).items()]
    pairs += [pair for files in (record["evaluation"].get("weights") or {}).values() for pair in files.items()]
    return list(dict.fromkeys(f"{name} {str(value)[:16]}" for name, value in pairs if value))
