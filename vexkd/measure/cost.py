"""What runs and tables cost: a probe's seconds and bytes a sample, times epochs, samples and seeds. No torch.

A probe holds what `vexkd.measure.forecast` measured on named hardware, one entry for each distinct model: runs that share
every setting that decides cost share an entry (`cost_key`). Hours are wall time, device-hours are GPU-hours or CPU-hours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vexkd import provenance
from vexkd.data import infos as infos_module
from vexkd.data.map_predictions import THRESHOLDS
from vexkd.data.maps import map_bytes
from vexkd.errors import InputError
from vexkd.settings import Decides, Params, Run, all_but

FORMAT = "vexkd-probe-1"
# Samples of nuScenes' splits, and of an epoch drawn by CBGS from `train` (mmdetection3d's CBGSDataset; BEVDet's log shows
# 1,931 iterations of 64 = 123,584).
SPLITS = {"train": 28_130, "val": 6_019, "mini_train": 323, "mini_val": 81}
CBGS_EPOCH = 123_580
# The time limit to ask for: this much over the forecast, and minutes for starting, hashing inputs and saving.
MARGIN = 0.25
START_MINUTES = 10
_BOX_BYTES = 340  # one box in the submission JSON
_CURVE_BYTES = 200  # one step in curve.csv


@dataclass(frozen=True)
class Measured:
    """One distinct model on one device (one process). Seconds are for one sample unless the name says otherwise.

    seconds, frozen_seconds: forward, loss and backward while the masks learn, and after (None: there is no after).
    step_seconds: the optimiser's step, once a global batch. loading, predict_loading: reading and augmenting; None where
    it was not measured. memory: peak resident bytes of the process; gpu_memory: peak allocated bytes, None on CPU.
    state: bytes of the resumable state. trouble: why there is nothing else, for instance out of memory.
    """

    run: str
    parameters: int
    weights: int
    state: int
    seconds: float = 0.0
    frozen_seconds: float | None = None
    step_seconds: float = 0.0
    predict_seconds: float = 0.0
    loading: float | None = None
    predict_loading: float | None = None
    memory: int = 0
    gpu_memory: int | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Probe:
    """Measurements of one kind of device. `origin` is provenance: commit, versions, hardware, time."""

    device: str
    threads: int
    data: str
    micro_batch: int
    steps: int
    origin: dict[str, Any]
    models: dict[str, Measured] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return "CPU" if self.device == "CPU" else "GPU"

    def save(self, path: Path) -> None:
        provenance.write_json(path, {"format": FORMAT, **asdict(self)})

    def of(self, params: Params, run: Run) -> Measured:
        """The measurement of a run; InputError where its settings are not among the measured ones."""
        try:
            return self.models[cost_key(params, run)]
        except KeyError:
            known = ", ".join(sorted(model.run for model in self.models.values()))
            raise InputError(
                f"{run.name}: the probe of {self.device} has no measurement with its settings (it has {known}); "
                "measure again, or choose runs with --runs."
            ) from None


def load_probe(path: Path) -> Probe:
    """A stored probe; InputError where the file is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError
        models = {key: Measured(**model) for key, model in values.pop("models").items()}
        return Probe(**values, models=models)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such probe; make one with `vexkd forecast --save-probe`.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: this is not a probe ({FORMAT}); make one with `vexkd forecast --save-probe`."
        ) from None


def cost_key(params: Params, run: Run) -> str:
    """Hash of the settings that decide what one sample of a run costs: model, teacher, masks, precision, points."""
    values = {
        "model": _deciding(run),
        "precision": run.train.precision,
        "data": [run.data.sweeps, run.paste is not None],
    }
    if run.teacher is not None and run.distill is not None:
        values["teacher"] = _deciding(params.run(run.teacher))
        free = all_but(type(run.distill), Decides.TRAINING_COST)
        values["distill"] = run.distill.model_dump(mode="json", by_alias=True, exclude=free)
        values["masks"] = run.distill.learns_masks
        values["frozen masks"] = freezes(run)
    return provenance.digest(values)


def _deciding(run: Run) -> dict[str, Any]:
    """The settings of a run's model and of its decoding."""
    deciding = run.values(Decides.DEPLOYED | Decides.TRAINING_COST)
    kept = {key: value for key, value in deciding.items() if key not in ("data", "train", "distill")}  # named apart
    decoding = getattr(run.inference, run.head, None)  # maps have none
    return kept | {"decoding": decoding.model_dump(mode="json") if decoding else None}


def freezes(run: Run) -> bool:
    """Whether a run's masks stop learning at some time, after which its steps are cheaper."""
    distill = run.distill
    if distill is None or not distill.learns_masks:
        return False
    return distill.stop_mask_epoch is not None or distill.stop_mask_iteration is not None


def distinct(params: Params, names: Iterable[str]) -> dict[str, list[str]]:
    """Runs that cost the same for a sample, by `cost_key`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(cost_key(params, params.run(name)), []).append(name)
    return groups


def needed(params: Params, names: Iterable[str]) -> list[str]:
    """These runs and all they are made from or compared with: starts, teachers, students; in the order of params.yaml."""
    names_needed, waiting = set(), [params.run(name).name for name in names]
    while waiting:
        name = waiting.pop()
        if name not in names_needed:
            names_needed.add(name)
            run = params.run(name)
            waiting += [other for other in (run.start, run.teacher, run.student) if other is not None]
    return [name for name in params.runs if name in names_needed]


# -------------------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class Samples:
    """How many samples an epoch of a run has, its training split and its validation split; `source` says who counted."""

    epoch: int
    train: int
    validation: int
    source: str


class Counter:
    """Samples of each run: from infos where they are given, else nuScenes' own numbers or the embedded town's plan."""

    def __init__(self, params: Params, infos: Path | None = None) -> None:
        self.params, self.folder = params, infos

    @cached_property
    def infos(self) -> infos_module.Infos:
        return infos_module.load(self.folder)

    def __call__(self, run: Run) -> Samples:
        if self.folder is not None:
            split = self.infos.subset(run.data.train_split)
            balanced = run.data.balance == "cbgs"
            epoch = balanced_length(split.holds_class().sum(axis=0).tolist()) if balanced else len(split)
            validation = len(self.infos.subset(run.data.val_split))
            return Samples(epoch, len(split), validation, f"counted in {self.folder}")
        town = self.params.synthetic
        if town is not None:
            share = 2 / 10 if town.scenes <= 10 else 150 / 850  # nuScenes' own; see synthetic.tables.plan_scenes
            validation = max(1, round(town.scenes * share)) * town.samples
            return self._drawn(
                run, town.scenes * town.samples - validation, validation, "the plan of the embedded town"
            )
        try:
            sizes = SPLITS[run.data.train_split], SPLITS[run.data.val_split]
        except KeyError as unknown:
            raise InputError(
                f"{run.name}: nuScenes has no split {unknown} whose size is known; pass --root and --infos."
            ) from None
        return self._drawn(run, *sizes, "nuScenes' splits")

    @staticmethod
    def _drawn(run: Run, train: int, validation: int, source: str) -> Samples:
        if run.data.balance == "none":
            return Samples(train, train, validation, source)
        ratio = f"{CBGS_EPOCH:,}/{SPLITS['train']:,}"
        epoch = round(train * CBGS_EPOCH / SPLITS["train"])
        return Samples(
            epoch, train, validation, f"{source}, CBGS as on nuScenes ({ratio}, mmdetection3d's CBGSDataset)"
        )


def balanced_length(holders: list[int]) -> int:
    """Samples of an epoch drawn by `data.dataset.cbgs_indices`, from the number of samples that hold each class."""
    return sum(int(sum(holders) / len(holders)) for count in holders if count)


# ---------------------------------------------------------------------------------------------------------------- costs


@dataclass(frozen=True)
class Cost:
    """What one run costs. Hours are those of one seed, device_hours, disk those of all; bytes otherwise."""

    run: str
    parameters: int
    epochs: int
    samples: int
    steps: int
    seeds: int
    seconds_per_sample: float
    train_hours: float
    predict_hours: float
    device_hours: float
    disk: int
    scratch: int
    memory: int
    gpu_memory: int | None
    time_limit: str
    runtime_minutes: int
    trouble: str
    samples_from: str

    @property
    def hours(self) -> float:
        return self.train_hours + self.predict_hours


def price(params: Params, run: Run, measured: Measured, samples: Samples, *, devices: int, workers: int) -> Cost:
    """The cost of a run on `devices` processes with `workers` loader processes each; perfect scaling over devices.

    Loader processes work beside the training; without any, loading comes on top.
    """
    steps = samples.epoch // run.train.batch * run.train.epochs
    seen = steps * run.train.batch
    learning = _share_learning(run, steps)
    frozen = measured.seconds if measured.frozen_seconds is None else measured.frozen_seconds
    compute = learning * measured.seconds + (1 - learning) * frozen
    per_sample = _with_loading(compute, measured.loading, workers)
    train = seen * per_sample / devices + steps * measured.step_seconds
    predict = samples.validation * _with_loading(measured.predict_seconds, measured.predict_loading, workers) / devices
    seeds, minutes = len(params.seeds), limit_minutes(train)
    lasting = measured.weights + prediction_bytes(run, samples.validation) + steps * _CURVE_BYTES
    return Cost(
        run=run.name,
        parameters=measured.parameters,
        epochs=run.train.epochs,
        samples=samples.epoch,
        steps=steps,
        seeds=seeds,
        seconds_per_sample=per_sample,
        train_hours=train / 3600,
        predict_hours=predict / 3600,
        device_hours=(train + predict) / 3600 * devices * seeds,
        disk=lasting * seeds,
        scratch=2 * measured.state * seeds,  # a new state is written beside the old one
        memory=measured.memory,
        gpu_memory=measured.gpu_memory,
        time_limit=slurm_time(minutes),
        runtime_minutes=minutes,
        trouble=measured.trouble,
        samples_from=samples.source,
    )


def _with_loading(compute: float, loading: float | None, workers: int) -> float:
    if loading is None:
        return compute
    return max(compute, loading / workers) if workers else compute + loading


def _share_learning(run: Run, steps: int) -> float:
    """The part of a training in which the masks learn; 1 where nothing ever freezes."""
    if not freezes(run) or run.distill is None:
        return 1.0
    epoch, iteration = run.distill.stop_mask_epoch, run.distill.stop_mask_iteration
    shares = [1.0] if epoch is None else [epoch / run.train.epochs]
    shares += [] if iteration is None else [iteration / max(1, steps)]
    return min(1.0, *shares)


def prediction_bytes(run: Run, samples: int) -> int:
    """At most the size of a predictions file: as many boxes a sample as the head gives and nuScenes takes, or maps."""
    if run.task == "segmentation":
        return samples * len(THRESHOLDS).bit_length() * map_bytes(run.map.reach, run.map.cell)
    most = run.inference.max_boxes if run.transfusion is None else run.transfusion.proposals
    return min(most, run.inference.max_boxes) * samples * _BOX_BYTES


def limit_minutes(seconds: float) -> int:
    """Minutes to ask Slurm for: the margin, the start, rounded up to 5 minutes below an hour, to half an hour above."""
    minutes = seconds / 60 * (1 + MARGIN) + START_MINUTES
    step = 5 if minutes <= 60 else 30
    return math.ceil(minutes / step) * step


def slurm_time(minutes: int) -> str:
    """Minutes as Slurm's D-HH:MM:SS, without days where there are none."""
    days, rest = divmod(minutes, 1440)
    return f"{f'{days}-' if days else ''}{rest // 60:02d}:{rest % 60:02d}:00"


@dataclass(frozen=True)
class Total:
    """Costs of several runs, each counted once. hours: wall time if every run starts as soon as it can."""

    name: str
    runs: list[str]
    hours: float
    device_hours: float
    disk: int
    scratch: int
    memory: int
    runtime_minutes: int
    time_limit: str
    without: list[str]


def total(name: str, params: Params, names: Iterable[str], costs: dict[str, Cost]) -> Total:
    """The sum over some runs; those that cannot be trained are named in `without`."""
    members = [name for name in names if name in costs]
    sound = [costs[name] for name in members if not costs[name].trouble]
    minutes = max((cost.runtime_minutes for cost in sound), default=0)
    return Total(
        name=name,
        runs=members,
        hours=max((_finish(params, cost.run, costs) for cost in sound), default=0.0),
        device_hours=sum(cost.device_hours for cost in sound),
        disk=sum(cost.disk for cost in sound),
        scratch=sum(cost.scratch for cost in sound),
        memory=max((cost.memory for cost in sound), default=0),
        runtime_minutes=minutes,
        time_limit=slurm_time(minutes),
        without=[name for name in members if costs[name].trouble],
    )


def _finish(params: Params, name: str, costs: dict[str, Cost]) -> float:
    """Hours until a run is predicted if it and all it is made from start as soon as they can."""
    run = params.run(name)
    before = [_trained(params, other, costs) for other in (run.start, run.teacher) if other in costs]
    return max(before, default=0.0) + costs[name].hours


def _trained(params: Params, name: str, costs: dict[str, Cost]) -> float:
    """Hours until a run's weights are there."""
    return _finish(params, name, costs) - costs[name].predict_hours


@dataclass(frozen=True)
class Verdict:
    """Whether a table still fits a budget after those before it."""

    table: str
    fits: bool
    adds: float
    spent: float


def within(budget: float, tables: dict[str, list[str]], costs: dict[str, Cost]) -> list[Verdict]:
    """Tables in their order: each is taken if its runs, less those taken already, still fit the device-hours."""
    taken: set[str] = set()
    spent, verdicts = 0.0, []
    for table, names in tables.items():
        new = set(names) - taken
        adds = sum(costs[name].device_hours for name in new)
        fits = spent + adds <= budget and not any(costs[name].trouble for name in new)
        if fits:
            taken |= new
            spent += adds
        verdicts.append(Verdict(table, fits, adds, spent))
    return verdicts


# ----------------------------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Forecast:
    """Costs of runs, of tables, of all, and what a budget allows."""

    probe: Probe
    devices: int
    workers: int
    costs: dict[str, Cost]
    tables: list[Total]
    everything: Total
    budget: float | None
    verdicts: list[Verdict]
    shared: dict[str, list[str]]

    def values(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        probe = {key: value for key, value in asdict(self.probe).items() if key != "models"}
        return {
            "probe": probe,
            "devices": self.devices,
            "workers": self.workers,
            "time_limit_margin": {"share": MARGIN, "minutes": START_MINUTES},
            "runs": {name: asdict(cost) | {"hours": cost.hours} for name, cost in self.costs.items()},
            "tables": {table.name: asdict(table) for table in self.tables},
            "total": asdict(self.everything),
            "budget": self.budget,
            "within_budget": [asdict(verdict) for verdict in self.verdicts],
        }


def forecast(
    params: Params,
    probe: Probe,
    names: list[str],
    tables: list[str],
    *,
    counter: Counter,
    devices: int = 1,
    workers: int = 0,
    budget: float | None = None,
) -> Forecast:
    """Put a price on runs and on those tables all of whose runs are among them."""
    runs = [params.run(name) for name in names]
    costs = {
        run.name: price(params, run, probe.of(params, run), counter(run), devices=devices, workers=workers)
        for run in runs
    }
    members = {table: needed(params, params.table(table)) for table in tables}
    whole = {table: runs for table, runs in members.items() if set(runs) <= set(names)}
    return Forecast(
        probe=probe,
        devices=devices,
        workers=workers,
        costs=costs,
        tables=[total(table, params, runs, costs) for table, runs in whole.items()],
        everything=total("all runs", params, names, costs),
        budget=budget,
        verdicts=[] if budget is None else within(budget, whole, costs),
        shared=distinct(params, names),
    )


def run_cells(found: Forecast) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of runs."""
    unit = found.probe.unit
    gpu = unit == "GPU"
    head = ["Run", "Params (M)", "s/sample", "Epochs × samples", "Seeds", "Hours", f"{unit}-hours", "Disk (GB)"]
    head += ["Scratch (GB)", "Memory (GB)", *(["GPU mem. (GB)"] if gpu else []), "runtime (min)"]
    return head, [_run_row(cost, gpu) for cost in found.costs.values()]


def _run_row(cost: Cost, gpu: bool) -> list[str]:
    plan = f"{cost.epochs} × {cost.samples:,}"
    start = [cost.run, f"{cost.parameters / 1e6:.2f}"]
    if cost.trouble:
        return [*start, cost.trouble, plan, str(cost.seeds), *["–"] * (7 if gpu else 6)]
    sizes = [gigabytes(cost.disk), gigabytes(cost.scratch), gigabytes(cost.memory)]
    sizes += [gigabytes(cost.gpu_memory or 0)] if gpu else []
    hours = [number(cost.hours), number(cost.device_hours)]
    limit = f"{cost.runtime_minutes} ({cost.time_limit})"
    return [*start, f"{cost.seconds_per_sample:.3g}", plan, str(cost.seeds), *hours, *sizes, limit]


def table_cells(found: Forecast) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of tables, the total last."""
    unit = found.probe.unit
    verdicts = {verdict.table: verdict for verdict in found.verdicts}
    head = ["Table", "Runs", "Hours at best", f"{unit}-hours", "Disk (GB)", "Scratch (GB)", "Memory (GB)"]
    head += [f"Fits {found.budget:g}"] if found.budget is not None else []
    rows = []
    for entry in [*found.tables, found.everything]:
        sizes = [gigabytes(entry.disk), gigabytes(entry.scratch), gigabytes(entry.memory)]
        row = [entry.name, str(len(entry.runs)), number(entry.hours), number(entry.device_hours), *sizes]
        rows.append([*row, *([_verdict(verdicts.get(entry.name))] if found.budget is not None else [])])
    return head, rows


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return f"{'yes' if verdict.fits else 'no'}, +{number(verdict.adds)}"


def notes(found: Forecast) -> list[str]:
    """What the numbers rest on, one sentence a line."""
    probe, unit = found.probe, found.probe.unit
    origin = probe.origin
    cpu = origin.get("hardware", {}).get("cpu", "CPU")
    processes = f"process(es) of {probe.threads} thread(s)" if unit == "CPU" else "GPU(s)"
    hardware = f"{cpu} ({probe.threads} thread(s))" if unit == "CPU" else probe.device
    commit = (origin.get("commit") or "unknown commit")[:7] + (" with changes" if origin.get("dirty") else "")
    lines = [
        f"Measured on {hardware}; torch {origin.get('versions', {}).get('torch', '?')}, {commit}, "
        f"{origin.get('time', '?')}; {probe.data}; {probe.steps} steps after a warm-up, "
        f"{probe.micro_batch} sample(s) at a time, scaled linearly.",
        f"Hours: training and prediction of one seed on {found.devices} {processes}, scaling without loss; "
        f"{unit}-hours: of all seeds and {'processes' if unit == 'CPU' else 'GPUs'}.",
        _loading_note(found),
        f"Samples: {'; '.join(sorted({cost.samples_from for cost in found.costs.values()}))}.",
        "Disk: weights, predictions and curves. Scratch: the resumable state while it is rewritten. Memory: the peak of "
        "one process, its loader processes apart.",
        f"runtime: the time limit of one training, {MARGIN:.0%} and {START_MINUTES} minutes over its forecast, in minutes "
        "as a profile has it under `set-resources: train` (and as Slurm writes it); a training that takes longer goes on "
        f"in the next job. The longest here: `runtime: {found.everything.runtime_minutes}`.",
        "Not in it: preparation, scoring and figures (CPU).",
    ]
    lines += [f"Measured once: {', '.join(group)}." for group in found.shared.values() if len(group) > 1]
    if found.everything.without:
        lines.append(f"Left out of the sums: {', '.join(found.everything.without)}.")
    return lines


def _loading_note(found: Forecast) -> str:
    if all(model.loading is None for model in found.probe.models.values()):
        return "Loading: not measured (pass --root and --infos); assumed to keep up."
    if found.workers:
        return f"Loading: measured, shared by {found.workers} loader processes beside each training process."
    return "Loading: measured, in the training process (--workers 0), so it comes on top."


def number(value: float) -> str:
    """Hours with two digits that matter, whole from 100 on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def gigabytes(value: int) -> str:
    return number(value / 1e9)
