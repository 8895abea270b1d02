"""(b) Paper-scale trainings: pretraining, teachers, students, and on each student VeXKD and one peer method.

One sample is made up and repeated, so that no loader is measured. What is measured here goes into the forecast too.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from gpu_day.day import Day, Row, is_out_of_memory, release
from vexkd.batch import Batch, Sample, collate
from vexkd.measure import cost, forecast
from vexkd.measure.latency import DTYPES, Stopwatch
from vexkd.settings import Params, Run
from vexkd.train import optim
from vexkd.train.seeding import seed_everything

PARTS = {
    "teacher": ["teacher.features"],
    "student": ["student", "student.loss", "model", "model.loss"],
    "masks and distillation": ["method"],
}
REST, BACKWARD, UPDATE = "other", "backward", "update"


class Repeated:
    """One made-up sample of a run again and again, as `forecast.measure_model` reads samples."""

    real = False

    def __init__(self, params: Params, run: Run) -> None:
        images = params.run(run.teacher) if run.teacher else run
        rng = np.random.default_rng(0)
        shown = images if images.camera else run
        self.sample: Sample = forecast.made_up_sample(params, run, shown, rng)
        alone = forecast.made_up_sample(params, run, run, rng, points="lidar" in run.sensors)
        self.training, self.validation = itertools.repeat(self.sample), itertools.repeat(alone)


def chosen(params: Params) -> list[str]:
    """The names of these trainings, each once."""
    names = [name for name, run in params.runs.items() if run.kind in ("pretrained", "teachers", "students")]
    distilled = [run for run in params.runs.values() if run.kind == "distilled"]
    for student in [name for name, run in params.runs.items() if run.kind == "students"]:
        taught = [run for run in distilled if run.student == student]
        ours = next((run.name for run in taught if run.distill.method in (None, "vexkd")), None)
        peer = next((run.name for run in taught if run.distill.method not in (None, "vexkd")), None)
        names += [name for name in (ours, peer) if name]
    return names


def rows(day: Day) -> Iterator[Row]:
    names = chosen(day.params)
    if day.tiny:
        names = ["centerpoint-det-vexkd"]
    for name in names:
        yield name, lambda name=name: training(day, name)


def micro(day: Day) -> int:
    """Samples a step of the forecast is measured with."""
    return 1 if day.tiny else 4


def probed(day: Day, run: Run, source: Repeated, *, steps: int) -> dict[str, Any]:
    """The entry of a run in the probe file; a model too large for the usual batch is measured with one sample."""
    for size in dict.fromkeys((micro(day), 1)):
        found = forecast.measure_model(day.params, run, source, steps=steps, micro=size, device=day.device)
        if not found.trouble:
            break
    values: dict[str, Any] = {"parameters M": found.parameters / 1e6, "ms a sample": 1e3 * found.seconds}
    if found.trouble:
        raise MemoryError(found.trouble)
    if found.frozen_seconds is not None:
        values["ms a sample, masks frozen"] = 1e3 * found.frozen_seconds
    values["update ms"] = 1e3 * found.step_seconds
    values["peak GB"] = (found.gpu_memory or found.memory) / 1e9
    values["batch"] = size
    return values | {"_probe": {cost.cost_key(day.params, run): asdict(found)}}


def training(day: Day, name: str) -> dict[str, Any]:
    """Steps by `forecast.measure_model`, then each part's share, then the largest batch that fits."""
    run = day.params.run(name)
    source = Repeated(day.params, run)
    values = probed(day, run, source, steps=1 if day.tiny else 2)
    seed_everything(0)
    task = forecast.build_task(day.params, run).to(day.device)
    optimiser = optim.optimiser(task, run.train)
    task.train()
    task.begin_step(0, 0)
    try:
        values |= shares(day, task, optimiser, run, source.sample)
        values |= largest_batch(day, task, optimiser, run, source.sample)
    finally:
        del task, optimiser
        release()
        torch.use_deterministic_algorithms(False)
    return values


def step(day: Day, task: nn.Module, optimiser: Any, run: Run, batch: Batch, watch: Stopwatch | None = None) -> None:
    """Forward, backward and update, as the trainer does them."""
    begin: Callable[[str], None] = watch.begin if watch else lambda stage: None
    dtype = DTYPES[run.train.precision]
    begin(REST)
    with torch.autocast(day.device.type, dtype, enabled=dtype != torch.float32):
        terms, _ = task(batch, task.divisors(task.positives(batch)))
    begin(BACKWARD)
    sum(terms.values()).backward()
    begin(UPDATE)
    torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], run.train.clip)
    optimiser.step()
    optimiser.zero_grad()


def shares(day: Day, task: nn.Module, optimiser: Any, run: Run, sample: Sample) -> dict[str, float]:
    """What each part takes of a step, in percent: teacher, student, masks and distillation, backward, update."""
    batch = collate([sample] * micro(day)).to(day.device)
    step(day, task, optimiser, run, batch)
    taken: list[dict[str, float]] = []
    for _ in range(1 if day.tiny else 2):
        watch = Stopwatch(day.device)
        with watch, Timed(task, watch):
            step(day, task, optimiser, run, batch, watch)
        taken.append(watch.seconds())
    means = {stage: statistics.mean(t.get(stage, 0.0) for t in taken) for stage in taken[0]}
    whole = sum(means.values())
    return {f"{stage} %": 100 * seconds / whole for stage, seconds in means.items()}


class Timed:
    """Meanwhile calls of the task's parts tell the stopwatch when they begin and when what was before goes on."""

    def __init__(self, task: nn.Module, watch: Stopwatch) -> None:
        self.task, self.watch = task, watch
        self.changed: list[tuple[Any, str]] = []

    def __enter__(self) -> None:
        for stage, paths in PARTS.items():
            for path in paths:
                self._wrap(stage, path)

    def __exit__(self, *details: Any) -> None:
        for owner, name in self.changed:
            del owner.__dict__[name]

    def _wrap(self, stage: str, path: str) -> None:
        owner, names = self.task, path.split(".")
        for name in names:
            parent, owner = owner, getattr(owner, name, None)
        if isinstance(owner, nn.Module):
            parent, names = owner, ["forward"]
        if owner is None or names[-1] in parent.__dict__:
            return
        call = getattr(parent, names[-1])

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.watch.stage
            self.watch.begin(stage)
            try:
                return call(*args, **kwargs)
            finally:
                self.watch.begin(before)

        parent.__dict__[names[-1]] = timed
        self.changed.append((parent, names[-1]))


def largest_batch(day: Day, task: nn.Module, optimiser: Any, run: Run, sample: Sample) -> dict[str, Any]:
    """Double the batch until memory, the run's own batch or the row's time ends it; samples a second at the last."""
    values: dict[str, Any] = {}
    began, size, most = day.left, 1, 1 if day.tiny else run.train.batch
    while size <= most:
        try:
            batch = collate([sample] * size).to(day.device)
            times = day.milliseconds(lambda b=batch: step(day, task, optimiser, run, b), seconds=0.2, most=3)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            values["ended by"] = "memory"
            break
        values |= {"largest batch": size, "samples/s there": 1e3 * size / min(times)}
        values["ended by"] = "train.batch" if size * 2 > most else "time"
        spent = began - day.left
        if spent > 10 or day.left < 2 * spent:
            break
        size *= 2
        optimiser.zero_grad()
        release()
    return values
