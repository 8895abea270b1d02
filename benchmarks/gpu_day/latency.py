"""(d) From a sample's bytes in memory to its boxes or maps: teachers and students with random weights, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gpu_day.day import Day, Row
from vexkd.measure import latency
from vexkd.models import bev_model


def rows(day: Day) -> Iterator[Row]:
    names = [name for name, run in day.params.runs.items() if run.kind in ("teachers", "students")]
    for name in ["centerpoint-det"] if day.tiny else names:
        for dtype in ("fp32", "bf16"):
            yield f"{name}, {dtype}", lambda name=name, dtype=dtype: measured(day, name, dtype)


def measured(day: Day, name: str, dtype: str) -> dict[str, Any]:
    """Medians in milliseconds, by stage."""
    run = day.params.run(name)
    torch.manual_seed(0)
    model = bev_model.build(run)
    source = latency.made_up(day.params, run)
    repeats, warmup = (1, 1) if day.tiny else (20, 4)
    found = latency.measure(model, run, source, repeats=repeats, warmup=warmup, device=day.device, dtype=dtype)
    whole = {f"{key} ms": found[f"{key}_ms"] for key in ("median", "p5", "p95")}
    parts = {f"{stage} ms": times["median_ms"] for stage, times in found["stages"].items()}
    return (
        whole | {"without decoding ms": found["without_decoding"]["median_ms"], "GFLOPs": found["flops"] / 1e9} | parts
    )
