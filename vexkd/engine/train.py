"""The training loop, top to bottom: data, forward, backward, step, log, checkpoint; resumable in mid-epoch.

A task is a module with `forward(batch, positives) -> (loss terms, figures to watch)`, `positives(batch)`, `begin_step` and
`model`: plain supervision (`Supervised` below) or distillation (`vexkd.distill.distiller.Distiller`).
"""

from __future__ import annotations

import csv
import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vexkd import provenance
from vexkd.batch import Batch
from vexkd.data.dataset import EpochSampler, NuScenesDataset, epoch_order, loader
from vexkd.engine import checkpoint, optim
from vexkd.models.bev_model import BEVModel
from vexkd.params import Run

# Exit status of a run that saved its state and stopped before its end; started again, it goes on.
STOPPED = 75


class Supervised(nn.Module):
    """A model trained on its own task loss."""

    def __init__(self, model: BEVModel) -> None:
        super().__init__()
        self.model = model

    def begin_step(self, epoch: int, iteration: int) -> None:
        """Nothing changes with the step."""

    def positives(self, batch: Batch) -> Tensor:
        return self.model.positives(batch)

    def forward(self, batch: Batch, positives: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        losses = self.model.loss(self.model(batch).predictions, batch, positives)
        return {f"task.{name}": value for name, value in losses.items()}, {}


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
class Pace:
    """What has no influence on the result: parts a batch is computed in, loader processes, saving and stopping."""

    accumulate: int = 1
    workers: int = 0
    checkpoint_minutes: float = 5.0
    max_seconds: float | None = None
    log_every: int = 1


class Trainer:
    """Trains one task on one data set; `fit` returns when the last step is done or raises `Stopped`."""

    def __init__(
        self,
        *,
        task: nn.Module,
        dataset: NuScenesDataset,
        run: Run,
        seed: int,
        state: Path,
        pace: Pace,
        accelerator: Accelerator,
    ) -> None:
        self.run, self.seed, self.dataset, self.pace, self.state = run, seed, dataset, pace, state
        self.accelerator = accelerator
        if run.train.sync_bn and accelerator.num_processes > 1:
            task = nn.SyncBatchNorm.convert_sync_batchnorm(task)
        self.bare = task.to(accelerator.device)
        self.optimiser = optim.optimiser(task, run.train)
        self.position = Position()
        if state.is_file():
            position, scaler = checkpoint.load_state(state, task=self.bare, optimiser=self.optimiser)
            self.position = Position(**position)
            if scaler and accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(scaler)
        self.task, self.stepper = accelerator.prepare(self.bare, self.optimiser)
        self.stop_asked = False
        self.steps_per_epoch = self._sampler(0).steps
        self.total = self.steps_per_epoch * run.train.epochs

    def fit(self) -> Position:
        """Train from the present position to the end."""
        self._listen()
        started, saved = time.monotonic(), time.monotonic()
        before = self.position.seconds
        resumed = f", resumed at step {self.position.step}" if self.position.step else ""
        print(f"{self.run.name} seed {self.seed}: {self.total} steps on {self.accelerator.device}{resumed}", flush=True)
        progress = tqdm(total=self.total, initial=self.position.step, desc=self.run.name, unit="step", disable=None)
        self.task.train()
        while self.position.step < self.total:
            for batches in self._epoch(self.position.step // self.steps_per_epoch):
                row = self._step(batches)
                self.position.step += 1
                self.position.seconds = before + time.monotonic() - started
                self._log(row, progress)
                if self._should_stop(time.monotonic() - started):
                    self._save()
                    raise Stopped(
                        f"{self.run.name}: stopped after step {self.position.step} of {self.total}, state saved."
                    )
                if time.monotonic() - saved > 60 * self.pace.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
        progress.close()
        return self.position

    def _epoch(self, epoch: int) -> Iterator[list[Batch]]:
        """The rest of an epoch, as the lists of micro-batches of each optimiser step."""
        sampler = self._sampler(epoch)
        sampler.start_step = self.position.step % self.steps_per_epoch
        batches: DataLoader = loader(self.dataset, sampler, workers=self.pace.workers)
        waiting: list[Batch] = []
        for batch in batches:
            waiting.append(batch.to(self.accelerator.device))
            if len(waiting) == self.pace.accumulate:
                yield waiting
                waiting = []

    def _sampler(self, epoch: int) -> EpochSampler:
        order = epoch_order(self.dataset.infos, seed=self.seed, epoch=epoch, balanced=self.run.data.balance == "cbgs")
        return EpochSampler(
            order,
            epoch=epoch,
            batch=self.run.train.batch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            accumulate=self.pace.accumulate,
        )

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """One optimiser step on one global batch; returns what the curve shows of it."""
        epoch = self.position.step // self.steps_per_epoch
        self.bare.begin_step(epoch, self.position.step)
        rate = optim.apply_schedule(self.optimiser, self.run.train, self.position.step, self.total)
        positives = self.accelerator.reduce(sum(self.bare.positives(batch) for batch in batches), reduction="sum")
        positives = positives.clamp(min=1) / (
            len(batches) * self.accelerator.num_processes
        )  # a part's share of the whole
        row: dict[str, float] = {}
        for batch in batches:
            with self.accelerator.autocast():
                terms, watched = self.task(batch, positives)
            self._refuse_non_finite(terms, batch)
            self.accelerator.backward(sum(terms.values()) / len(batches))
            for name, value in {**terms, **watched}.items():
                row[name] = row.get(name, 0.0) + float(value.detach() if isinstance(value, Tensor) else value) / len(
                    batches
                )
        trainable = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trainable, self.run.train.clip)
        self.stepper.step()
        self.stepper.zero_grad()
        loss = sum(value for name, value in row.items() if name in terms)
        return {"step": self.position.step, "epoch": epoch, "lr": rate, "loss": loss, "gradient": float(norm), **row}

    def _refuse_non_finite(self, terms: dict[str, Tensor], batch: Batch) -> None:
        bad = [name for name, value in terms.items() if not math.isfinite(float(value.detach()))]
        if bad:
            raise NonFiniteError(
                f"{self.run.name}: loss term {bad[0]} is {float(terms[bad[0]].detach())} at step {self.position.step} on samples "
                f"{', '.join(batch.token)}; look at these samples or lower train.lr."
            )

    def _log(self, row: dict[str, float], progress: tqdm) -> None:
        step = self.position.step
        progress.update()
        progress.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}")
        if step % self.pace.log_every == 0 or step == self.total:
            self.position.curve.append(row)
        if not sys.stderr.isatty() and (step % max(1, self.total // 20) == 0 or step == self.total):
            left = (self.total - step) * self.position.seconds / step
            print(f"step {step}/{self.total} loss {row['loss']:.3f} lr {row['lr']:.2e} left {left:.0f} s", flush=True)

    def _should_stop(self, seconds: float) -> bool:
        late = self.pace.max_seconds is not None and seconds > self.pace.max_seconds
        return (self.stop_asked or late) and self.position.step < self.total

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            position = vars(self.position)
            checkpoint.save_state(
                self.state, task=self.bare, optimiser=self.optimiser, scaler=scaler, position=position
            )
        self.accelerator.wait_for_everyone()

    def _listen(self) -> None:
        """SIGTERM and SIGUSR1 (what schedulers send before they kill) ask for a saved stop after the present step."""

        def ask(number: int, _frame: Any) -> None:
            self.stop_asked = True

        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, ask)


def write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    """The curve as CSV, one line a logged step, columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with provenance.atomic(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if k in ("step", "epoch") else f"{v:.6g}" for k, v in row.items()})


def peak_memory() -> int:
    """Most bytes of GPU memory allocated, or of resident memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start_accelerator(precision: str, device: str | None) -> Accelerator:
    """Device, processes and precision. device "cpu" keeps to the CPU; None takes the GPU that is there."""
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # masks that no longer learn, for one
    return Accelerator(mixed_precision=mixed, cpu=device == "cpu", kwargs_handlers=[unused])
