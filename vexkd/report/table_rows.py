"""The numbers of a table's row, taken from a finished run: scores, gain, reported values, cost, size and speed.

Scores are in percent, gains in percentage points, errors in nuScenes' units: a row is a line of the table's CSV.
"""

from __future__ import annotations

from typing import Any

from vexkd.report import row_provenance
from vexkd.report.gains import gain, unlike
from vexkd.report.results import FinishedRun

SCORES = ("mAP", "NDS", "mIoU")
# Column of the CSV -> key in metrics.json.
ERRORS = {
    "mATE_m": "mATE",
    "mASE_one_minus_iou": "mASE",
    "mAOE_rad": "mAOE",
    "mAVE_m_per_s": "mAVE",
    "mAAE_one_minus_accuracy": "mAAE",
}


def row(run: FinishedRun, *, marked: bool) -> dict[str, Any]:
    """One line of the CSV. marked: whether the run was not made as the other rows."""
    settings, metrics, params = run.settings, run.metrics, run.params
    return {
        "run": run.name,
        "kind": settings.kind,
        "task": settings.task,
        "sensors": "+".join(settings.sensors),
        "head": settings.head,
        "fusion": settings.fusion,
        "student": settings.student,
        "teacher": settings.teacher,
        "teacher_sensors": "+".join(params.run(settings.teacher).sensors) if settings.teacher else None,
        "n_seeds": metrics["n"],
        "seeds": " ".join(metrics["seeds"]),
        **{f"{score}_percent": _percent(metrics.get(score)) for score in SCORES},
        **{f"{score}_std_percent": _percent(metrics["spread"].get(score)) for score in SCORES},
        **{column: metrics.get(key) for column, key in ERRORS.items()},
        **_gains(run),
        "weak_baseline": bool(weaknesses(run)),
        "unlike_baseline": ", ".join(unlike(run)) or None,
        **_reported(run),
        **cost(run.trainings),
        **size_and_speed(run),
        "commit": " ".join(row_provenance.commits(run.provenance)),
        "dirty": row_provenance.dirty(run.provenance),
        "marked": marked,
    }


def _gains(run: FinishedRun) -> dict[str, float | None]:
    """Over the student without a teacher; see `vexkd.report.gains`."""
    values: dict[str, float | None] = {"gain_scenes": None}
    for score in SCORES:
        difference = gain(run, score)
        values[f"{score}_gain_points"] = _percent(difference.mean if difference else None)
        values[f"{score}_gain_std_points"] = _percent(difference.deviation if difference else None)
        values[f"{score}_gain_low_points"] = _percent(difference.low if difference else None)
        values[f"{score}_gain_high_points"] = _percent(difference.high if difference else None)
        if difference and difference.scenes:
            values["gain_scenes"] = difference.scenes
    return values


def weaknesses(run: FinishedRun) -> list[str]:
    """Scores of a distilled run's baseline below the best that is public for it; synthetic data has nothing public."""
    student, params = run.student, run.params
    best = params.floors.get(student.name) if student and params.synthetic is None else None
    if best is None or student is None:
        return []
    pairs = [(score, _percent(student.metrics.get(score)), getattr(best, score)) for score in SCORES]
    low = [(score, value, floor) for score, value, floor in pairs if None not in (value, floor) and value < floor]
    return [f"{score} {value:.1f}, not {floor:.1f}" for score, value, floor in low]


def _reported(run: FinishedRun) -> dict[str, Any]:
    """The published values (percent, on nuScenes) and how far this run is from them; none on synthetic data."""
    known = run.params.reported.get(run.name) if run.params.synthetic is None else None
    values: dict[str, Any] = {}
    for score in SCORES:
        reported = getattr(known, score) if known else None
        measured = run.metrics.get(score)
        difference = None if reported is None or measured is None else round(100 * measured - reported, 6)
        values |= {f"{score}_reported_percent": reported, f"{score}_difference_points": difference}
    return {**values, "reported_source": known.source if known else None}


def cost(trainings: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean training cost of one seed, without its teacher's training; device-hours are wall time x devices."""
    on_cpu = all(row_provenance.on_cpu(training) for training in trainings)
    device_hours = _mean([_seconds(training) * training["devices"] for training in trainings], 3600)
    return {
        "gpu_hours": None if on_cpu else device_hours,
        "cpu_hours": device_hours if on_cpu else None,
        "wall_hours": _mean([_seconds(training) for training in trainings], 3600),
        "memory_gb": _mean([_memory(training) for training in trainings], 1e9),
        "gpu_memory_gb": None if on_cpu else _mean([t.get("peak_memory_bytes") for t in trainings], 1e9),
    }


def size_and_speed(run: FinishedRun) -> dict[str, Any]:
    """What the finished model costs to run: size, work of one sample, time of one sample and where it was taken.

    Only where it was measured of this model and of the weights that were scored.
    """
    trainings, latency = run.trainings, run.latency
    counted = latency | run.summary
    parameters = counted.get("parameters") or _mean([training.get("parameters") for training in trainings])
    flops = counted.get("flops") or _mean([training.get("flops") for training in trainings])
    milliseconds = latency.get("median_ms") or _mean([training.get("latency_ms") for training in trainings])
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


def _seconds(training: dict[str, Any]) -> float:
    """Wall time of a training: all attempts up to their last saved state, or its only job with start and end."""
    return max(training["training_seconds"], training.get("benchmark", {}).get("wall_seconds", 0.0))


def _memory(training: dict[str, Any]) -> float | None:
    """Peak resident bytes of a training's processes; the record's own are those of its GPU where it has one."""
    recorded = training.get("peak_memory_bytes") if row_provenance.on_cpu(training) else None
    known = [v for v in (recorded, training.get("benchmark", {}).get("memory_bytes")) if v is not None]
    return max(known, default=None)


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 6)
