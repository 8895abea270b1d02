"""Jobs that an earlier call left in Slurm's queue: two jobs on one output would spoil each other's work."""

import os
import subprocess
from pathlib import Path


def refuse_beside_running_jobs(executor: str) -> None:
    """Where jobs are to be queued: end this call if jobs of another one, in the same folder, have not ended."""
    jobs = left_running() if executor == "slurm" else []
    if jobs:
        numbers = " ".join(number for number, _ in jobs)
        names = ", ".join(name for _, name in jobs)
        raise SystemExit(
            f"Slurm still runs jobs that an earlier call queued here ({names}). Wait until `squeue --me` shows them no"
            f" more and what they make is kept, or end them, `scancel {numbers}`, and they resume; then call again."
        )


def left_running() -> list[tuple[str, str]]:
    """Number and name of each such job; the plugin names the rule in a job's comment."""
    command = ["squeue", "--me", "--noheader", "--format", "%A|%Z|%k"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # what is wrong with the queue, the executor will say
    rows = [line.split("|", 2) for line in out.splitlines() if line.count("|") >= 2]
    here, own = Path.cwd().resolve(), os.environ.get("SLURM_JOB_ID")
    return [
        (number, comment.removeprefix("rule_"))
        for number, folder, comment in rows
        if comment.startswith("rule_") and number != own and Path(folder).resolve() == here
    ]
