"""`vexkd train` and `vexkd predict` from files to files: settings and weights in, weights, curve, provenance out."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vexkd import params, provenance, seal
from vexkd.data.dataset import in_order, loader
from vexkd.data.infos import load as load_infos
from vexkd.engine import checkpoint, tasks
from vexkd.engine import predict as prediction
from vexkd.engine.seeding import seed_everything
from vexkd.engine.train import (
    STOPPED,
    NonFiniteError,
    Pace,
    Stopped,
    Trainer,
    peak_memory,
    start_accelerator,
    write_curve,
)
from vexkd.errors import InputError
from vexkd.params import Run


def train(
    config: Path,
    *,
    root: Path,
    infos: Path,
    out: Path,
    seed: int,
    paste: Path | None,
    start: Path | None,
    teacher: Path | None,
    scratch: Path,
    threads: int | None,
    pace: Pace,
    device: str | None,
) -> None:
    """Train one run with one seed; exits with status 75 where it saved its state and stopped early.

    Resumable state is keyed by settings, inputs and seed, so a run never resumes under another teacher or other data.
    """
    run = params.read_run(config, config.with_name("inference.yaml"))
    if threads:
        torch.set_num_threads(threads)
    accelerator = start_accelerator(run.train.precision, device)
    inputs = input_hashes(infos=infos, paste=paste, start=start, teacher=teacher)
    key = provenance.digest({"settings": run.training(), "inputs": inputs, "seed": seed})
    folder = scratch / run.name / f"seed{seed}-{key}"
    seed_everything(seed, accelerator.process_index)
    task, images = tasks.build_task(run, start=start, teacher=teacher)
    dataset = tasks.training_set(run, images, root=root, infos=load_infos(infos), paste=paste, seed=seed)
    try:
        trainer = Trainer(
            task=task,
            dataset=dataset,
            run=run,
            seed=seed,
            state=folder / "state.safetensors",
            pace=pace,
            accelerator=accelerator,
        )
        position = trainer.fit()
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(STOPPED)
    except NonFiniteError as error:
        raise InputError(str(error)) from None
    if not accelerator.is_main_process:
        return
    record = training_record(run, seed, inputs, trainer, position.seconds, accelerator)
    out.mkdir(parents=True, exist_ok=True)
    write_curve(out / "curve.csv", position.curve)
    provenance.write_json(out / "provenance.json", record)
    checkpoint.save_weights(out / "weights.safetensors", task.model, run=run, inputs=inputs, record=record)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{run.name} seed {seed}: {position.step} steps in {position.seconds:.0f} s -> {out}", flush=True)


def input_hashes(**files: Path | None) -> dict[str, str]:
    """SHA-256 of what a run is made from; see `seal.content_digest` for folders."""
    hashes = {}
    for name, path in files.items():
        if path is None:
            continue
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder ({name} of this run); make it first.")
        hashes[name] = seal.content_digest(path)
    return hashes


def training_record(
    run: Run, seed: int, inputs: dict[str, str], trainer: Trainer, seconds: float, accelerator: Accelerator
) -> dict[str, Any]:
    """The provenance of one training."""
    return provenance.record(
        run=run.name,
        seed=seed,
        settings_digest=provenance.digest(run.training()),
        inputs=inputs,
        parameters=sum(p.numel() for p in trainer.bare.model.parameters()),
        training_seconds=round(seconds, 1),
        devices=accelerator.num_processes,
        device=torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU",
        steps=trainer.position.step,
        samples_seen=trainer.position.step * run.train.batch,
        threads=torch.get_num_threads(),
        peak_memory_bytes=peak_memory(),
    )


def predict(
    weights: Path,
    *,
    root: Path,
    infos: Path,
    out: Path,
    config: Path | None,
    inference: Path | None,
    batch: int,
    workers: int,
    threads: int | None,
    device: str | None,
) -> None:
    """Predict the validation split with trained weights; their own settings decide, `config` only checks them."""
    if threads:
        torch.set_num_threads(threads)
    expected = params.read_run(config, config.with_name("inference.yaml")) if config else None
    model, run = checkpoint.load_model(weights, expected=expected)
    if inference is not None:
        run = params.with_inference(run, inference)
    dataset = tasks.validation_set(run, root=root, infos=load_infos(infos))
    batches = loader(dataset, in_order(len(dataset), batch=batch), workers=workers)
    seed_everything(0)
    chosen = torch.device("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu")
    boxes = prediction.predict(model, batches, out, run=run, device=chosen)
    print(f"{run.name}: {boxes} boxes in {len(dataset)} samples -> {out}", flush=True)
