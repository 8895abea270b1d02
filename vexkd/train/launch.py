"""torchrun with an exit status that says what happened: `python -m vexkd.train.launch [torchrun's options] -m vexkd.cli train ...`

torchrun itself ends with status 1 whatever its processes ended with, and dies of SIGUSR1, leaving them behind. Here the
status is 0 where the work is done, 75 where the run saved its state and stopped (the same command goes on), 2 for bad
input, 128 + n where a process died of signal n, and 1 otherwise.

With `--srun` in front it is one of the tasks that srun started, one a node: they meet at the first node.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping

from torch.distributed import DistStoreError
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from vexkd.errors import InputError
from vexkd.train import environment

STOPPED = 75
# Where the nodes of a job meet: a port of its own among these, so that a retry, another job, finds a free one.
PORTS = range(20000, 30000)
# Seconds that torchrun waits there for the other nodes.
GIVE_UP = 600
# What srun tells each task of a step.
STEP = ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_STEP_NUM_NODES")


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun; returns the status of the whole job."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--srun"]:
        try:
            arguments = [*meeting(os.environ), *arguments[1:]]
            print(waiting(os.environ), file=sys.stderr, flush=True)
        except InputError as error:
            print(f"vexkd: {error}", file=sys.stderr)
            return 2
    environment.announce(environment.clear_for_launch())
    pass_on_as_sigterm()
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except SignalException as signalled:
        print(
            f"vexkd: stopped by {signalled.sigval.name}; the same command goes on from the last saved state.",
            file=sys.stderr,
        )
        return STOPPED
    except DistStoreError as error:  # nobody came
        print(f"vexkd: the nodes of this job did not meet ({str(error).splitlines()[0]}).", file=sys.stderr)
        return 1
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        status = job_status(codes.values())
        if status not in (2, STOPPED):
            print(f"vexkd: {reason(codes)}; the same command goes on from the last saved state.", file=sys.stderr)
        return status
    return 0


def pass_on_as_sigterm() -> None:
    """What asks for the end in another way reaches the processes as the SIGTERM that torchrun passes to them.

    SIGUSR1 is what schedulers announce the end with. Ctrl-C reaches the processes from the terminal as well: passed on as
    itself it would be their second, which ends them before they have saved their state.
    """
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def meeting(step: Mapping[str, str]) -> list[str]:
    """torchrun's options for one task of a job step, from the step's variables (srun(1)).

    The rendezvous is a fixed one: nodes are numbered by Slurm, none may join later. Its address is that from which srun
    started the step: the first node's, as the batch script runs there.
    """
    lacking = [name for name in STEP if name not in step]
    if lacking:
        raise InputError(
            f"{', '.join(lacking)} not set: --srun is for what srun started; leave it out, or start it with srun."
        )
    port = PORTS[int(step["SLURM_JOB_ID"]) % len(PORTS)]
    rendezvous = {
        "node_rank": step["SLURM_NODEID"],
        "master_addr": step["SLURM_LAUNCH_NODE_IPADDR"],
        "master_port": port,
    }
    options = {"nnodes": step["SLURM_STEP_NUM_NODES"], **rendezvous, "rdzv_id": step["SLURM_JOB_ID"]}
    options["rdzv_conf"] = f"timeout={GIVE_UP}"
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def waiting(step: Mapping[str, str]) -> str:
    """What a node of a job step waits for before anything starts, in words."""
    number, port = int(step["SLURM_NODEID"]) + 1, PORTS[int(step["SLURM_JOB_ID"]) % len(PORTS)]
    return (
        f"vexkd: node {number} of {step['SLURM_STEP_NUM_NODES']} waits at {step['SLURM_LAUNCH_NODE_IPADDR']}:{port} until all"
        f" are there; it gives up after {GIVE_UP} seconds."
    )


def job_status(codes: Iterable[int]) -> int:
    """One status of the exit codes of failed processes: the cause, not what followed from it."""
    codes = list(codes)
    for status in (2, STOPPED):
        if status in codes:
            return status
    code = _cause(codes)
    return 128 - code if code < 0 else code


def reason(codes: dict[int, int]) -> str:
    """Which process failed first and of what, in words."""
    code = _cause(codes.values())
    rank = next(rank for rank, status in codes.items() if status == code)
    if code < 0:
        return f"process {rank} was killed by {signal.Signals(-code).name}"
    return f"process {rank} ended with status {code}"


def _cause(codes: Iterable[int]) -> int:
    """A signal that torchrun did not send itself, or a status, or its SIGTERM."""
    return min(codes, key=lambda code: (code == -signal.SIGTERM, code > 0))


if __name__ == "__main__":
    sys.exit(main())
