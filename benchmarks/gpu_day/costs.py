"""(e) The probe file for `vexkd forecast`: every distinct model of the matrix runs two steps; then the matrix in hours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gpu_day.day import Day, Journal, Row
from gpu_day.trainings import Repeated, micro, probed
from vexkd import provenance
from vexkd.measure import cost
from vexkd.measure.cost import Measured, Probe

PROBE = "probe.json"
WORKERS = 8


def rows(day: Day) -> Iterator[Row]:
    """What part (b) has not measured, then the sums."""
    groups = cost.distinct(day.params, day.params.runs)
    known = measured_models(day)
    left = [members[0] for key, members in groups.items() if key not in known]
    for name in left[:1] if day.tiny else left:
        yield name, lambda name=name: one(day, name)
    for name, names in {"the whole matrix": list(day.params.runs), **day.params.tables}.items():
        yield f"GPU-hours of {name}", lambda name=name, names=names: priced(day, name, names)


def measured_models(day: Day) -> dict[str, Measured]:
    """What this part and part (b) have measured so far, by `cost_key`."""
    models: dict[str, Measured] = {}
    for part in ("trainings", "costs"):
        for values in Journal(day.out / f"{part}.jsonl").rows().values():
            models |= {key: Measured(**entry) for key, entry in values.get("_probe", {}).items()}
    return models


def one(day: Day, name: str) -> dict[str, Any]:
    run = day.params.run(name)
    return probed(day, run, Repeated(day.params, run), steps=1)


def priced(day: Day, name: str, names: list[str]) -> dict[str, Any]:
    """Hours of these runs, each once, and all they are made from; the probe file is written anew."""
    models = measured_models(day)
    save(day, models)
    count = cost.Counter(day.params)
    costs, missing = {}, []
    for member in cost.needed(day.params, names):
        run = day.params.run(member)
        measured = models.get(cost.cost_key(day.params, run))
        if measured is None:
            missing.append(member)
        else:
            costs[member] = cost.price(day.params, run, measured, count(run), devices=1, workers=WORKERS)
    total = cost.total(name, day.params, costs, costs)
    return {
        "runs": len(costs),
        "runs without a measurement": len(missing),
        "GPU-hours": total.device_hours,
        "hours, all side by side": total.hours,
        "longest time limit": total.time_limit,
        "_missing": missing,
    }


def save(day: Day, models: dict[str, Measured]) -> None:
    """As `vexkd forecast --save-probe` writes it."""
    on_gpu = day.device.type == "cuda"
    Probe(
        device=torch.cuda.get_device_name(day.device) if on_gpu else "CPU",
        threads=torch.get_num_threads(),
        data="one made-up sample of each run, repeated",
        micro_batch=micro(day),
        steps=1,
        origin=provenance.record(),
        models=models,
    ).save(day.out / PROBE)
