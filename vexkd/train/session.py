"""`vexkd train` and `vexkd predict` from files to files: settings and weights in, weights, curve, provenance out."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vexkd import content, provenance, seal, settings
from vexkd.data import demands
from vexkd.data.dataset import NuScenesDataset, loader
from vexkd.data.infos import load as load_infos
from vexkd.errors import InputError
from vexkd.experiment import HERE
from vexkd.published import fetch
from vexkd.settings import Run
from vexkd.train import attempts, checkpoint, environment, finished, processes, tasks
from vexkd.train import predict as prediction
from vexkd.train.lock import Lock
from vexkd.train.loop import NonFiniteError, RuntimeOptions, Stopped, Trainer, peak_memory, write_curve
from vexkd.train.processes import LOST, STOPPED, StopRequest
from vexkd.train.seeding import seed_everything

STATE = "state.safetensors"  # beside the lock and the attempts, in the scratch folder of a training


def train(
    run: Run,
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
    runtime: RuntimeOptions,
    device: str | None,
    maps: Path | None = None,
    keep: Path | None = None,
    runs: Mapping[str, Run] | None = None,
) -> None:
    """Train one run with one seed; exits with status 75 where it saved its state and stopped early.

    Resumable state is keyed by settings, inputs and seed, so a run never resumes under another teacher or other data. A
    lock beside it refuses a second training of the same; a training whose result stands in `out` is not repeated. keep: a
    folder that holds the result a second time, from which a later call gives it back (`vexkd.train.finished`). runs: those
    of the experiment, whose settings the weights to start from and the teacher's must have.
    """
    stop = StopRequest().listen()
    processes.mark_messages()
    if threads:
        torch.set_num_threads(threads)
    accelerator = processes.start_accelerator(run.train.precision, device)
    seal.refuse_other_settings(run, runs or {}, seed, start=start, teacher=teacher)
    sources = Sources(root, infos, paste, maps, start, teacher)
    with _as_one_job():
        backbone = fetch.local(run)
        inputs = input_hashes(infos=infos, paste=paste, maps=maps, start=start, teacher=teacher, backbone=backbone)
        if samples := content.split_digests(infos).get(run.data.train_split):
            inputs["samples"] = samples
        key = provenance.digest({"settings": run.training(), "inputs": inputs, "seed": seed})
        kept = keep / run.name / f"seed{seed}-{key}" if keep else None
        if _is_finished(out, kept, accelerator, run=run, inputs=inputs, seed=seed):
            return
        processes.on_main(accelerator, lambda: checkpoint.require_writable(out))
        folder = scratch / run.name / f"seed{seed}-{key}"
        lock = Lock(folder / "lock")
        processes.on_main(accelerator, lambda: _take(lock))
        try:
            processes.on_main(accelerator, lambda: _take_over(folder, run, inputs, seed))
            processes.on_main(accelerator, lambda: attempts.begin(folder))
            trainer = _fit(run, seed, sources, folder, lock, runtime=runtime, accelerator=accelerator, stop=stop)
            history = attempts.of(folder) if accelerator.is_main_process else []
            processes.on_main(accelerator, lambda: _write_result(out, trainer, run, seed, inputs, history))
            if accelerator.is_main_process:
                if kept is not None:
                    finished.keep(out, kept)
                shutil.rmtree(folder, ignore_errors=True)
        except NonFiniteError as error:
            raise InputError(str(error)) from None
        finally:
            if accelerator.is_main_process:
                lock.release()


@dataclass(frozen=True)
class Sources:
    """What a training reads: raw data, infos, pasted objects, map rasters, the weights it starts from and is taught by."""

    root: Path
    infos: Path
    paste: Path | None
    maps: Path | None
    start: Path | None
    teacher: Path | None


def _fit(
    run: Run,
    seed: int,
    sources: Sources,
    folder: Path,
    lock: Lock,
    *,
    runtime: RuntimeOptions,
    accelerator: Accelerator,
    stop: StopRequest,
) -> Trainer:
    """Train to the end, with resumable state in `folder`; returns the trainer, whose task holds the result."""
    main = accelerator.is_main_process
    seed_everything(seed, accelerator.process_index)
    with contextlib.nullcontext() if main else contextlib.redirect_stdout(io.StringIO()):
        task, images = tasks.build_task(run, start=sources.start, teacher=sources.teacher)
        known = load_infos(sources.infos)
        for sentence in demands.check(run, known, teacher=images):
            print(sentence, flush=True)
    dataset = tasks.training_set(
        run,
        images,
        root=sources.root,
        infos=known,
        paste=sources.paste,
        maps=sources.maps,
        seed=seed,
    )
    trainer = Trainer(
        task=task,
        dataset=dataset,
        run=run,
        seed=seed,
        state=folder / STATE,
        runtime=runtime,
        accelerator=accelerator,
        stop=stop,
        lock=lock if main else None,
    )
    trainer.prepare().run()
    return trainer


def _is_finished(out: Path, kept: Path | None, accelerator: Accelerator, **training: Any) -> bool:
    """Whether the result of this training stands in `out`, or was kept and is given back; on all processes."""

    def stands() -> bool:
        if not accelerator.is_main_process:
            return False
        name = f"{training['run'].name} seed {training['seed']}"
        if checkpoint.is_finished(out, **training):
            print(f"{name}: {out} holds the result of this training already; remove it to train again.", flush=True)
            return True
        if kept is None or not checkpoint.is_finished(kept, **training):
            return False
        with checkpoint.writing(out):
            finished.give_back(kept, out)
        print(f"{name}: {kept} held the finished result, which is {out} again; remove both to train again.", flush=True)
        return True

    return any(processes.anywhere(accelerator, stands()))


def _take(lock: Lock) -> None:
    with checkpoint.writing(lock.path):
        lock.acquire()


def _take_over(folder: Path, run: Run, inputs: dict[str, str], seed: int) -> None:
    """Move a state into `folder` that code up to version 0.1 has saved of the same training, under the key of that time.

    The split to score on counted then, and the samples of a split were part of the hash of the infos.
    """
    training = run.training()
    training["data"] = {**training["data"], "val_split": run.data.val_split}
    known = {name: value for name, value in inputs.items() if name != "samples"}
    key = provenance.digest({"settings": training, "inputs": known, "seed": seed})
    earlier = folder.with_name(f"seed{seed}-{key}")
    if (folder / STATE).exists() or not (earlier / STATE).exists():
        return
    lock = Lock(earlier / "lock")
    _take(lock)  # refuses where an earlier call still trains
    try:
        for file in sorted(earlier.glob("*.json")) + [earlier / STATE]:
            os.replace(file, folder / file.name)
    finally:
        lock.release()
    shutil.rmtree(earlier, ignore_errors=True)


def _write_result(
    out: Path, trainer: Trainer, run: Run, seed: int, inputs: dict[str, str], made: list[dict[str, Any]]
) -> None:
    """Curve, provenance, learned masks and, last, the weights: where they are, the training is finished."""
    position = trainer.position
    record = training_record(run, seed, inputs, trainer, position.seconds, trainer.accelerator) | {"attempts": made}
    with checkpoint.writing(out / "curve.csv"):
        write_curve(out / "curve.csv", position.curve)
    with checkpoint.writing(out / "provenance.json"):
        provenance.write_json(out / "provenance.json", record)
    if trainer.task.masks is not None:
        checkpoint.save_weights(out / checkpoint.MASKS, trainer.task.masks, run=run, inputs=inputs, record=record)
    else:
        (out / checkpoint.MASKS).unlink(missing_ok=True)  # of an earlier training with other settings
    checkpoint.save_weights(out / "weights.safetensors", trainer.task.model, run=run, inputs=inputs, record=record)
    print(f"{run.name} seed {seed}: {position.step} steps in {position.seconds:.0f} s -> {out}", flush=True)


@contextlib.contextmanager
def _as_one_job():
    """A saved stop ends in status 75, the death of another process in one sentence and status 1."""
    try:
        yield
    except Stopped as stop:
        if processes.rank() == 0:
            processes.say(str(stop), sys.stderr)
        atexit.register(processes.finish)
        sys.exit(STOPPED)
    except RuntimeError as error:
        if not processes.lost_another(error):
            raise
        print(
            f"vexkd: another process of this job has ended or answers no more ({str(error).splitlines()[0]}); "
            "the same command goes on from the last saved state.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(LOST)
    atexit.register(processes.finish)


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
        parameters=sum(p.numel() for p in trainer.task.model.parameters()),
        training_seconds=round(seconds, 1),
        devices=accelerator.num_processes,
        device=torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU",
        steps=trainer.position.step,
        samples_seen=trainer.position.step * run.train.batch,
        threads=torch.get_num_threads(),
        variables=environment.recorded(),
        peak_memory_bytes=peak_memory(),
    )


def predict(
    weights: Path,
    *,
    expected: Run | None = None,
    root: Path,
    infos: Path,
    out: Path,
    batch: int,
    workers: int,
    threads: int | None,
    device: str | None,
    drop: str | None = None,
    split: str | None = None,
) -> None:
    """Predict the validation split with trained weights; their own settings of training decide.

    expected: the run as it is asked for now: weights with other settings of training are refused, and its thresholds, NMS
    and split are used in place of those in the weights. drop: a sensor to do without. split: another one to predict, such
    as nuScenes' test split with the infos of its version.
    Several processes share the scenes; the file is the same, byte for byte, whatever their number.
    """
    processes.mark_messages()
    if threads:
        torch.set_num_threads(threads)
    model, run = checkpoint.load_model(weights, expected=expected)
    if expected is not None:
        run = settings.with_inference(run, expected.after_training())
    if split is not None:
        run = run.model_copy(update={"data": run.data.model_copy(update={"val_split": split})})
    ending = HERE.training(run.name, 0).predictions(run.task).suffix
    if out.suffix != ending:
        raise InputError(f"{out}: predictions of a {run.task} run are a {ending} file; name one with --out.")
    if drop is not None:
        model.drop(drop)
    known = load_infos(infos)
    said = demands.check_scoring(run, known)
    dataset = tasks.validation_set(run, root=root, infos=known, drop=drop)
    state = processes.start_processes(device)
    with _as_one_job():
        keys = prediction.scene_batches(
            _scenes(dataset), batch=batch, rank=state.process_index, world=state.num_processes
        )
        seed_everything(0)
        chosen = torch.device("cuda", state.local_process_index) if state.device.type == "cuda" else torch.device("cpu")
        batches = loader(dataset, keys, workers=workers)
        summary = prediction.predict(
            model,
            batches,
            out,
            run=run,
            device=chosen,
            tokens=dataset.infos.tokens(),
            state=state,
            origin=predicted_from(weights, infos, dataset.infos.tokens()),
        )
        if state.is_main_process:
            print(*said, sep="\n", end="\n" if said else "")
            print(f"{run.name}: {summary} in {len(dataset)} samples -> {out}", flush=True)


def predicted_from(weights: Path, infos: Path, tokens: list[str]) -> dict[str, str]:
    """What predictions record of their making: the weights' tensors, the infos, and the samples of the split."""
    digests = content.Digests()
    return {
        "weights": digests.tensors(weights),
        "infos": digests.of(infos),
        "samples": provenance.digest(tokens),
    }


def _scenes(dataset: NuScenesDataset) -> list[str]:
    """The scene of each sample of a data set."""
    return dataset.infos.samples["scene"].take(dataset.infos.rows).to_pylist()
