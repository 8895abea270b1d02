"""The training loop, top to bottom: data, forward, backward, step, log, checkpoint; resumable in mid-epoch."""

from __future__ import annotations

import contextlib
import csv
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vexkd import provenance
from vexkd.batch import Batch
from vexkd.data.dataset import EpochSampler, NuScenesDataset, epoch_order, loader
from vexkd.errors import InputError
from vexkd.models.bev_model import BEVModel
from vexkd.models.targets import Counts, Targets
from vexkd.settings import Run
from vexkd.train import checkpoint, optim, processes
from vexkd.train.ema import MovingAverage
from vexkd.train.lock import Lock
from vexkd.train.processes import StopRequest
from vexkd.train.seeding import random_state, restore_random_state

# Lines of a curve at most about twice this, beside those in which gradients were measured (`distill.monitor_every`): it
# travels in the header of the saved state, which must stay small.
CURVE_POINTS = 1000
# What only some steps measure: a line with such a figure is kept, wherever it falls.
MEASURED = "gradient."


class Task(Protocol):
    """What the trainer needs of the `nn.Module` that it trains.

    Plain supervision is one (`vexkd.train.tasks.Supervised`), a distillation another (`vexkd.distill.distiller.Distiller`).
    model: what is kept of the training. masks: what was learned beside it and is kept for figures, or None.
    """

    model: BEVModel
    masks: nn.Module | None

    def begin_step(self, epoch: int, iteration: int) -> None:
        """Prepare for an optimiser step; both count from 0."""

    def targets(self, batch: Batch) -> Targets:
        """What the losses read of the ground truth, with the counts that they are divided by."""

    def __call__(self, batch: Batch, targets: Targets, counts: Counts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss terms, whose sum is minimised, and figures to watch; counts: those of the global batch."""


class NonFiniteError(RuntimeError):
    """A loss term that is not finite; the message names step, term and sample tokens."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass
class Position:
    """Where a run stands: the next optimiser step, the seconds trained so far, and the curve up to there."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class RuntimeOptions:
    """What has no influence on the result: parts a batch is computed in, loader processes, saving and stopping."""

    accumulate: int = 1
    workers: int = 0
    checkpoint_minutes: float = 5.0
    max_seconds: float | None = None


class Trainer:
    """Trains one task on one data set: `prepare`, then `run`, which returns after the last step or raises `Stopped`.

    The result does not depend on the number of processes that share a global batch, up to rounding, save for what draws
    per process (dropout) and BatchNorm, whose statistics are each process's own unless `train.sync_bn` is set. Resumed by
    as many processes it is exact; by another number, dropout draws differ.
    """

    def __init__(
        self,
        *,
        task: Task,
        dataset: NuScenesDataset,
        run: Run,
        seed: int,
        state: Path,
        runtime: RuntimeOptions,
        accelerator: Accelerator,
        stop: StopRequest | None = None,
        lock: Lock | None = None,
    ) -> None:
        self.settings, self.seed, self.dataset, self.runtime, self.state = run, seed, dataset, runtime, state
        self.accelerator, self.stop, self.lock = accelerator, stop or StopRequest(), lock
        self.task = task
        self.position = Position()
        self.resumed = ""

    def prepare(self) -> Trainer:
        """Move the task to its device, go back to the saved state if there is one, and let the processes share gradients."""
        train = self.settings.train
        if train.sync_bn and self.accelerator.num_processes > 1:
            processes.synchronise_batch_norm(self.task)
        self.task.to(self.accelerator.device)
        self.optimiser = optim.optimiser(self.task, train)
        self.average = MovingAverage(self.task.model, train.ema) if train.ema else None
        self.resumed = self._resume() if self.state.is_file() else ""
        self._check_position()
        self.shared_task, self.stepper = self.accelerator.prepare(self.task, self.optimiser)
        self.steps_per_epoch = self._sampler(0).steps
        self.total = self.steps_per_epoch * train.epochs
        return self

    def run(self) -> Position:
        """Train from the present position to the end; where a moving average is asked for, the model ends as that."""
        started, saved = time.monotonic(), time.monotonic()
        before = self.position.seconds
        self._say(f"{self.settings.name} seed {self.seed}: {self.total} steps on {self._devices()}{self.resumed}")
        progress = tqdm(
            total=self.total,
            initial=self.position.step,
            desc=self.settings.name,
            unit="step",
            disable=None if self.accelerator.is_main_process else True,
        )
        self.shared_task.train()
        while self.position.step < self.total:
            for batches in self._epoch(self.position.step // self.steps_per_epoch):
                row = self._step(batches)
                self.position.step += 1
                self.position.seconds = before + time.monotonic() - started
                self._log(row, progress)
                due = time.monotonic() - saved > 60 * self.runtime.checkpoint_minutes
                stop, save = processes.anywhere(
                    self.accelerator,
                    self._should_stop(),
                    due and self.position.step < self.total,
                )
                if stop or save:
                    self._save()
                    saved = time.monotonic()
                if stop:
                    raise Stopped(
                        f"{self.settings.name}: stopped after step {self.position.step} of {self.total}, state saved."
                    )
        progress.close()
        if self.average is not None:
            self.task.model.load_state_dict(self.average.tensors)
        return self.position

    def _epoch(self, epoch: int) -> Iterator[list[Batch]]:
        """The rest of an epoch, as the lists of micro-batches of each optimiser step."""
        sampler = self._sampler(epoch)
        sampler.start_step = self.position.step % self.steps_per_epoch
        batches: DataLoader = loader(self.dataset, sampler, workers=self.runtime.workers)
        waiting: list[Batch] = []
        for batch in batches:
            waiting.append(batch.to(self.accelerator.device))
            if len(waiting) == self.runtime.accumulate:
                yield waiting
                waiting = []

    def _sampler(self, epoch: int) -> EpochSampler:
        order = epoch_order(
            self.dataset.infos, seed=self.seed, epoch=epoch, balanced=self.settings.data.balance == "cbgs"
        )
        return EpochSampler(
            order,
            epoch=epoch,
            batch=self.settings.train.batch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            accumulate=self.runtime.accumulate,
        )

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """One optimiser step on one global batch; returns what the curve shows of it, the mean over all its parts."""
        epoch = self.position.step // self.steps_per_epoch
        self.task.begin_step(epoch, self.position.step)
        rate = optim.apply_schedule(self.optimiser, self.settings.train, self.position.step, self.total)
        targets = [self.task.targets(batch) for batch in batches]
        counts = processes.sum_counts(self.accelerator, Counts.of(targets))
        parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
            last = number == len(batches)  # the gradients of all parts travel between the processes once
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.shared_task):
                with self.accelerator.autocast():
                    terms, watched = self.shared_task(batch, target, counts)
                self.accelerator.backward(sum(terms.values()) / len(batches))
            parts.append(({name: value.detach() for name, value in terms.items()}, watched))
        trainable = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trainable, self.settings.train.clip)
        row = self._read(parts, norm, batches)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.average is not None:
            self.average.update(self.task.model)
        loss = sum(row[name] for name in terms)
        return {"step": self.position.step, "epoch": epoch, "lr": rate, "loss": loss, **row}

    def _read(
        self, parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]], norm: Tensor, batches: list[Batch]
    ) -> dict[str, float]:
        """The gradient's norm and each term's and figure's mean over parts and processes, in one wait for the device.

        Raises NonFiniteError on all processes if a loss term of one is not finite.
        """
        values = torch.stack([torch.stack([v.double() for v in (terms | more).values()]) for terms, more in parts])
        mean = processes.mean(self.accelerator, values.mean(dim=0))  # of parts N
        gradient, *means = torch.cat([torch.as_tensor(norm).to(mean)[None], mean]).tolist()
        terms, watched = parts[0]
        row = dict(zip([*terms, *watched], means, strict=True))
        bad = [name for name in terms if not math.isfinite(row[name])]
        if bad:
            self._refuse(bad[0], [terms for terms, _ in parts], batches)
        return {"gradient": gradient, **row}

    def _refuse(self, bad: str, parts: list[dict[str, Tensor]], batches: list[Batch]) -> NoReturn:
        """Say which samples of this process gave a loss term that is not finite, or that another process has them."""
        for batch, terms in zip(batches, parts, strict=True):
            for name, value in terms.items():
                if not math.isfinite(float(value)):
                    raise NonFiniteError(
                        f"{self.settings.name}: loss term {name} is {float(value)} at step {self.position.step} on "
                        f"samples {', '.join(batch.token)}; look at these samples or lower train.lr."
                    )
        raise NonFiniteError(
            f"{self.settings.name}: loss term {bad} is not finite at step {self.position.step} on another process; "
            "its own message names the samples."
        )

    def _log(self, row: dict[str, float], progress: tqdm) -> None:
        step = self.position.step
        with processes.still_heard():
            progress.update()
            progress.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}")
        measured = any(name.startswith(MEASURED) for name in row)
        if measured or step % max(1, self.total // CURVE_POINTS) == 0 or step == self.total:
            self.position.curve.append(row)
        if not sys.stderr.isatty() and (step % max(1, self.total // 20) == 0 or step == self.total):
            left = (self.total - step) * self.position.seconds / step
            self._say(f"step {step}/{self.total} loss {row['loss']:.3f} lr {row['lr']:.2e} left {left:.0f} s")

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            processes.say(text)

    def _devices(self) -> str:
        count = self.accelerator.num_processes
        return f"{self.accelerator.device}" + (f", {count} processes" if count > 1 else "")

    def _should_stop(self) -> bool:
        """Whether this process wants the run to stop here; all stop if one does. The deadline counts from its start."""
        late = self.runtime.max_seconds is not None and time.monotonic() - self.stop.began > self.runtime.max_seconds
        return (self.stop.asked or late) and self.position.step < self.total

    def _save(self) -> None:
        random = {name: processes.rows(self.accelerator, state) for name, state in random_state().items()}
        processes.on_main(self.accelerator, lambda: self._write_state(random))

    def _write_state(self, random: dict[str, Tensor]) -> None:
        if self.lock is not None:
            self.lock.check()
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        checkpoint.save_state(
            self.state,
            task=self.task,
            optimiser=self.optimiser,
            scaler=scaler,
            position=vars(self.position),
            random=random,
            average=self.average.state() if self.average is not None else {},
        )

    def _resume(self) -> str:
        """Go back to the saved state; returns what to say about it."""
        position, scaler, random, average = checkpoint.load_state(self.state, task=self.task, optimiser=self.optimiser)
        if self.average is not None:
            self.average.restore(average)
        self.position = Position(**position)
        if scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        restore_random_state(random, self.accelerator.process_index)
        before, now = len(random["cpu"]), self.accelerator.num_processes
        changed = (
            f" (saved by {before} processes, now {now}: only dropout will draw otherwise)" if before != now else ""
        )
        return f", resumed at step {self.position.step}{changed}"

    def _check_position(self) -> None:
        """All processes must have found the same state."""
        steps = processes.rows(self.accelerator, torch.tensor([self.position.step]))[:, 0].tolist()
        if len(set(steps)) > 1:
            raise InputError(
                f"{self.state}: the processes found states of different steps ({', '.join(map(str, steps))}); "
                "name a scratch folder that all machines of the job share."
            )


def write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    """The curve as CSV, one line a logged step, columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with provenance.atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if k in ("step", "epoch") else f"{v:.6g}" for k, v in row.items()})


def peak_memory() -> int:
    """Most bytes of GPU memory allocated, or of resident memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
