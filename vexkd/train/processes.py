"""The processes of one job (torchrun's): who this one is, what all of them agree on, and how their messages are told apart.

On one process everything here does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from torch import Tensor, nn

from vexkd.errors import InputError
from vexkd.models.targets import Counts
from vexkd.train import environment

# Exit status of a run that saved its state and stopped before its end; started again, it goes on.
STOPPED = 75
# Exit status where another process of the job has ended; its own message has the reason.
LOST = 1
# How long a process waits for one that answers no more. One that died is noticed at once, by its closed connections.
TIMEOUT = timedelta(minutes=10)
# Seconds after which a process that waits for the others says so.
PATIENCE = 15.0
# What asks a training to save its state and stop: of schedulers, before they kill; of a terminal, Ctrl-C and its end.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def rank() -> int:
    """This process's number in its job, as the launcher gave it."""
    return int(os.environ.get("RANK", "0")) if environment.MARK in os.environ else 0


def start_accelerator(precision: str, device: str | None) -> Accelerator:
    """Device, processes and precision. device "cpu" keeps to the CPU; None takes the GPU that is there."""
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    # Masks that no longer learn are unused. The flag also keeps gradients in the same buckets from the first step on, so
    # that they are summed in the same order after a resume.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    _check_devices(device)
    with _meeting():
        return Accelerator(
            mixed_precision=mixed,
            cpu=_on_cpu(device),
            gradient_accumulation_steps=1,
            kwargs_handlers=[parallel, InitProcessGroupKwargs(timeout=TIMEOUT)],
        )


def start_processes(device: str | None) -> PartialState:
    """Device and processes alone, for what does not train."""
    _check_devices(device)
    with _meeting():
        return PartialState(cpu=_on_cpu(device), timeout=TIMEOUT)


@contextlib.contextmanager
def _meeting():
    """While the processes of a job wait for each other: a signal ends this one, and after a while it says what it waits for.

    Nothing is lost yet, and Python's handlers would only run when the wait in torch's code is over.
    """
    environment.announce(environment.settle())
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield
        return
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    sentence = (
        f"vexkd: process {rank()} waits for the other {world - 1} of this job at {address}, "
        f"{TIMEOUT.total_seconds() / 60:.0f} minutes at most."
    )
    timer = threading.Timer(PATIENCE, lambda: print(sentence, file=sys.stderr, flush=True))
    timer.daemon = True
    caught = [number for number in STOPPING if callable(signal.getsignal(number))]
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in caught}
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _on_cpu(device: str | None) -> bool:
    """Said explicitly: without it accelerate takes each of several processes without a GPU for the only one."""
    return device == "cpu" or not torch.cuda.is_available()


def _check_devices(device: str | None) -> None:
    started = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if environment.MARK in os.environ else 1
    if not _on_cpu(device) and started > torch.cuda.device_count():
        raise InputError(
            f"{started} processes were started on this machine, but torch sees {torch.cuda.device_count()} GPUs: "
            "start one process per GPU, or pass --device cpu."
        )


def finish() -> None:
    """Take leave of the other processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class StopRequest:
    """Whether this process was asked to stop: by SIGTERM or SIGUSR1 (what schedulers send before they kill), by Ctrl-C, or
    by the end of its terminal. A second Ctrl-C ends it at once.

    What was set to be ignored before, as `nohup` does with SIGHUP, stays so.
    """

    def __init__(self) -> None:
        self.asked = False
        self.began = time.monotonic()

    def listen(self) -> StopRequest:
        """From now on; a process of torchrun's also hears of the death of its launcher, so that none is left behind."""
        self.began = _process_start()
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._ask)
        if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        return self

    def _ask(self, number: int, _frame: Any) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            with contextlib.suppress(OSError):  # unbuffered: what was interrupted may be just writing
                os.write(2, b"vexkd: saving the state after this step; Ctrl-C again ends at once.\n")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line; where nobody listens any more (a closed terminal, an ended pipe), be silent from now on."""
    with still_heard():
        print(text, file=stream or sys.stdout, flush=True)


@contextlib.contextmanager
def still_heard():
    """For what prints: an output that is gone must not end a training before it has saved its state."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise
        silence = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(silence, number)
        os.close(silence)


def _process_start() -> float:
    """When this process started, by `time.monotonic`: deadlines count the imports too. Now, where the kernel doesn't say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.monotonic()
    return time.monotonic() - age


def anywhere(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Each flag, true on all processes if it is on one of them."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [value > 0 for value in accelerator.reduce(raised, reduction="sum").tolist()]


def on_main(accelerator: Accelerator, action: Callable[[], Any]) -> None:
    """Run something on the main process while the others wait. Where it fails all end: the main one with its reason."""
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as error:
            failure = error
    failed, users = anywhere(accelerator, failure is not None, isinstance(failure, InputError))
    if failure is not None:
        raise failure
    if failed:
        sys.exit(2 if users else 1)


def sum_counts(accelerator: Accelerator, counts: Counts) -> Counts:
    """The counts of all processes' parts of a global batch."""
    if accelerator.num_processes == 1:
        return counts
    flat = accelerator.reduce(torch.cat([count.flatten() for count in counts.total.values()]), reduction="sum")
    sums = flat.split([count.numel() for count in counts.total.values()])
    total = {name: sums_of.view_as(c) for (name, c), sums_of in zip(counts.total.items(), sums, strict=True)}
    return Counts(total, counts.parts * accelerator.num_processes)


def mean(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Mean over the processes."""
    return accelerator.reduce(values, reduction="mean") if accelerator.num_processes > 1 else values


def rows(accelerator: Accelerator, row: Tensor) -> Tensor:
    """A row (N,) of each process as (processes, N), on the CPU."""
    if accelerator.num_processes == 1:
        return row[None].cpu()
    return accelerator.gather(row[None].to(accelerator.device)).cpu()


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of the job answers no more."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    return isinstance(error, torch.distributed.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    )


class RankStream:
    """A text stream that puts the process's number in front of every line."""

    def __init__(self, stream: TextIO, number: int) -> None:
        self.stream, self.prefix, self.fresh = stream, f"[rank {number}] ", True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(self.prefix + line if self.fresh else line)
            self.fresh = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def mark_messages() -> None:
    """On every process but the main one, whatever is printed from now on says which process it is from."""
    if rank() > 0 and not isinstance(sys.stderr, RankStream):
        sys.stdout, sys.stderr = RankStream(sys.stdout, rank()), RankStream(sys.stderr, rank())


def synchronise_batch_norm(task: nn.Module, *, skip: str = "teacher") -> None:
    """Replace every BatchNorm of a task by `SyncBatchNorm`, in place, names of weights kept; `skip`: a frozen part."""
    for name, child in list(task.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(task, name, SyncBatchNorm.like(child))
        elif name != skip:
            synchronise_batch_norm(child, skip=skip)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are those of the global batch, also where processes hold unequal shares of it.

    torch's own runs on GPUs only and would replace the one over voxels by one that refuses an empty scene; this one runs
    anywhere, in float32. With fewer than two values in the global batch it uses the running statistics.
    """

    @classmethod
    def like(cls, norm: nn.modules.batchnorm._BatchNorm) -> SyncBatchNorm:
        """The same parameters and buffers (the objects themselves), synchronised."""
        new = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
        new.weight, new.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(new, name, buffer)
        return new.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:  # B C ... or V C
        if self.training:
            output, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
            if (
                x.dim() > 2 or count > 1
            ):  # voxels may be that few; asking a GPU for the number of cells would wait for it
                with torch.no_grad():
                    self.num_batches_tracked.add_(1)
                    self.running_mean.lerp_(mean, self.momentum)
                    self.running_var.lerp_(variance * count / (count - 1), self.momentum)
                return output
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return nn.functional.batch_norm(x, *statistics, training=False, eps=self.eps)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over all processes and all axes but the second."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float):
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        values = x.float()
        number = values.new_tensor([values.numel() / values.shape[1]])
        total = _sum(torch.cat([values.sum(axes), number]))
        count = total[-1].clamp(min=1)
        mean = total[:-1] / count
        centred = values - mean.view(shape)
        variance = _sum(centred.square().sum(axes)) / count
        scale = (variance + eps).rsqrt()
        normal = centred * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.axes, ctx.shape = axes, shape
        output = (normal * weight.view(shape) + bias.view(shape)).to(x.dtype)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_unused: Any):
        normal, weight, scale, count = ctx.saved_tensors
        exact = gradient.float()
        for_bias, for_weight = exact.sum(ctx.axes), (exact * normal).sum(ctx.axes)
        over_all = _sum(torch.stack([for_bias, for_weight])) / count
        inner = exact - over_all[0].view(ctx.shape) - normal * over_all[1].view(ctx.shape)
        return (inner * (scale * weight).view(ctx.shape)).to(gradient.dtype), for_weight, for_bias, None


def _sum(values: Tensor) -> Tensor:
    """Sum over the processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
