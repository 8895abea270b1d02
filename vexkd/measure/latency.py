"""How long a model takes from bytes to boxes (or maps), one sample at a time, stage by stage on a named device.

Every moment between a sample's first byte and its last box belongs to one stage, so the stages add up to the whole. Reading is
timed apart: it depends on the disk, and published times leave it out.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from vexkd import provenance
from vexkd.batch import Sample, collate
from vexkd.data.infos import load as load_infos
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.measure import summary
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Params, Run
from vexkd.train import tasks
from vexkd.train.predict import infer

READ, TRANSFER, DECODE, REST = "read and decode files", "to the device", "decode and NMS", "between parts"
VOXELIZE = "voxelize"
# A stage begins with the call of the part at this path and ends with its return; a call inside has its own.
STAGES = {
    "lidar": VOXELIZE,  # until its first convolution, from where on it is the encoder's
    "camera": "view",
    "camera.encoder": "camera encoder",
    "camera.view": "view",
    "fusion": "fusion",
    "bev_encoder": "bev encoder",
    "head": "head",
}
LIDAR_ENCODER = "lidar encoder"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where samples come from: `read` gives the sample of a number; reads: whether that reads files; words: what they are."""

    read: Callable[[int], Sample]
    reads: bool
    words: str


def real(run: Run, *, root: Path, infos: Path) -> Source:
    """The validation samples, each read anew from its files."""
    dataset = tasks.validation_set(run, root=root, infos=load_infos(infos))
    return Source(lambda number: dataset[number % len(dataset)], True, f"{run.data.version}, {run.data.val_split}")


def made_up(params: Params, run: Run) -> Source:
    """One made-up sample of realistic size, again and again."""
    sample = summary.made_up_sample(params, run)
    return Source(lambda number: sample, False, "one made-up sample")


def measure(
    model: BEVModel,
    run: Run,
    source: Source,
    *,
    repeats: int,
    warmup: int,
    device: torch.device,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> dict[str, Any]:
    """Times in milliseconds over `repeats` samples after `warmup` unmeasured ones; see `write` for the keys.

    Weights stay float32; a half precision is autocast's, as in training.
    """
    model = model.to(device).eval()
    taken: dict[str, list[float]] = defaultdict(list)
    for number in range(-warmup, repeats):
        stages = _one(model, run, source, number + warmup, device, DTYPES[dtype])
        if number >= 0:
            for name, seconds in stages.items():
                taken[name].append(1e3 * seconds)
    count = len(taken[DECODE])
    per_sample = {name: np.pad(values, (0, count - len(values))) for name, values in taken.items()}
    whole = sum(values for name, values in per_sample.items() if name != READ)
    found = {**_spread(whole), "stages": {name: _spread(values) for name, values in per_sample.items()}}
    found["without_decoding"] = _spread(whole - per_sample[DECODE])
    found["with_reading"] = _spread(whole + per_sample[READ]) if READ in per_sample else None
    counted = summary.of_model(model, collate([source.read(0)]).to(device), name=run.name).values()
    return found | {key: counted[key] for key in ("parameters", "macs", "flops", "graph", "sample")}


def write(
    name: str | None,
    *,
    params: Params | None,
    experiment: Experiment,
    seed: int,
    weights: Path | None,
    random: bool,
    root: Path | None,
    infos: Path | None,
    repeats: int,
    warmup: int,
    dtype: Literal["fp32", "bf16", "fp16"],
    device: str | None,
) -> dict[str, Any]:
    """Measure a run and write `results/runs/<run>/latency.json`.

    median_ms, p5_ms, p95_ms: from the sample in memory to boxes or maps, transfer to the device included. The same three:
    `without_decoding`, to the head's raw output; `with_reading`, from the sample's files, null for made-up samples; each of
    `stages`. device, dtype, threads, batch, repeats, warmup, data, weights (SHA-256, null: random) and provenance say what
    was measured; macs, flops, parameters and graph are those of `vexkd.measure.summary`, on one of the samples.
    """
    if (root is None) != (infos is None):
        raise InputError("real samples need both --root and --infos; give both or neither.")
    model, run, path = summary.deployed(
        name, params=params, experiment=experiment, seed=seed, weights=weights, random=random
    )
    if root is not None and infos is not None:
        source = real(run, root=root, infos=infos)
    elif params is not None:
        source = made_up(params, run)
    else:
        raise InputError("there are neither real samples nor settings to make one up; pass --root and --infos.")
    chosen = torch.device("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu")
    measured = measure(model, run, source, repeats=repeats, warmup=warmup, device=chosen, dtype=dtype)
    values = {
        "run": run.name,
        **measured,
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else provenance.hardware()["cpu"],
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "batch": 1,
        "repeats": repeats,
        "warmup": warmup,
        "data": source.words,
        "weights": provenance.file_digest(path) if path is not None else None,
        "settings_digest": provenance.digest(run.training()),
        **provenance.record(),
    }
    provenance.write_json(experiment.run(run.name).latency, values)
    return values


def in_words(values: dict[str, Any]) -> str:
    """What `write` found, for people."""
    reading = values["with_reading"]
    lines = [
        f"{values['run']}: median {values['median_ms']:.1f} ms (p5 {values['p5_ms']:.1f}, p95 {values['p95_ms']:.1f}) "
        f"without reading files, {'not measured' if reading is None else format(reading['median_ms'], '.1f') + ' ms'} with it; "
        f"{values['without_decoding']['median_ms']:.1f} ms without decoding and NMS",
        f"{values['device']}, {values['dtype']}, {values['threads']} threads, batch 1, {values['repeats']} samples "
        f"after {values['warmup']} to warm up, {values['data']}",
        f"{values['parameters'] / 1e6:.2f} M parameters, {values['macs'] / 1e9:.2f} G multiply-adds "
        f"({values['flops'] / 1e9:.2f} GFLOPs) on {values['sample']}",
    ]
    return "\n".join(lines + [f"{t['median_ms']:10.2f} ms  {name}" for name, t in values["stages"].items()])


def _spread(values: Any) -> dict[str, float]:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {"median_ms": round(float(middle), 3), "p5_ms": round(float(low), 3), "p95_ms": round(float(high), 3)}


@torch.no_grad()
def _one(
    model: BEVModel, run: Run, source: Source, number: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of each stage for one sample."""
    began = time.perf_counter()
    sample = source.read(number)
    reading = time.perf_counter() - began
    watch = Stopwatch(device)
    with watch, _hooked(model, watch):
        watch.begin(TRANSFER)
        batch = collate([sample]).to(device)
        watch.begin(DECODE)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predictions = infer(model, batch, run)
        _to_memory(predictions)
    return ({READ: reading} if source.reads else {}) | watch.seconds()


def _to_memory(found: Any) -> None:
    """Boxes or maps are ready once they are where the next program reads them."""
    for tensor in summary.tensors(found):
        tensor.cpu()


class Stopwatch:
    """Times stages without gaps: as one begins the one before ends. On a GPU events mark the moments, which wait for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def __enter__(self) -> Stopwatch:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return self

    def __exit__(self, *details: Any) -> None:
        self.begin("")
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    @property
    def stage(self) -> str:
        """The stage that is running."""
        return self._marks[-1][0]

    def begin(self, stage: str) -> None:
        self._marks.append((stage, self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, in the order in which they first began."""
        taken: dict[str, float] = {}
        for (stage, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            lasted = start.elapsed_time(end) / 1e3 if self.on_gpu else end - start
            taken[stage] = taken.get(stage, 0.0) + lasted
        return taken


@contextlib.contextmanager
def _hooked(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Meanwhile the model's parts tell the stopwatch when they are called and when they return."""
    before: list[str] = []
    hooks = []

    def enter(stage: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            before.append(watch.stage)
            watch.begin(stage)

        return hook

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        watch.begin(before.pop())

    def encode(module: nn.Module, inputs: Any) -> None:
        watch.begin(LIDAR_ENCODER)

    parts = {"": REST, **STAGES}
    for path, module in model.named_modules():
        if path in parts:
            hooks += [module.register_forward_pre_hook(enter(parts[path])), module.register_forward_hook(leave)]
        elif path.rpartition(".")[0] == "lidar":
            hooks.append(module.register_forward_pre_hook(encode))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
