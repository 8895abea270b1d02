"""Before jobs are queued on Slurm: what would stop them, and jobs that an earlier call left in the queue."""

import os
import subprocess
from pathlib import Path

from vexkd.settings import Params


def refuse_what_would_fail(executor: str, settings: Params) -> None:
    """Where jobs are to be queued: end this call if the data, the folder or the clock would stop them all."""
    if executor != "slurm":
        return
    from vexkd.measure import preflight

    if errors := preflight.before_queueing(settings):
        raise SystemExit("\n".join([*map(str, errors), "No job was queued. `vexkd preflight` looks at more."]))


def refuse_beside_running_jobs(executor: str) -> None:
    """End this call if jobs of another one, in the same folder, have not ended: two on one output spoil each other's work."""
    jobs = left_running() if executor == "slurm" else []
    if jobs:
        numbers = " ".join(number for number, _ in jobs)
        names = ", ".join(name for _, name in jobs)
        raise SystemExit(
            f"Slurm still runs jobs that an earlier call queued here ({names}). Wait until `squeue --me` shows them no"
            f" more and what they make is kept, or end them, `scancel {numbers}`, and they resume; then call again."
        )


def left_running() -> list[tuple[str, str]]:
    """Number and name of each such job. The plugin names the rule in a job's comment, and its log lies in our folder."""
    fields = {"JobID": 20, "Comment": 400, "STDOUT": 4096}
    columns = ",".join(f"{name}:{width}" for name, width in fields.items())
    command = ["squeue", "--me", "--noheader", f"--Format={columns}"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, encoding="utf-8").stdout
    except (OSError, subprocess.SubprocessError):
        return []  # what is wrong with the queue, the executor will say
    logs, own = str(Path(".snakemake/slurm_logs").resolve()), os.environ.get("SLURM_JOB_ID")
    rows = [(line[:20].strip(), line[20:420].strip(), line[420:].strip()) for line in out.splitlines()]
    return [
        (number, comment.removeprefix("rule_"))
        for number, comment, log in rows
        if comment.startswith("rule_") and number != own and log.startswith(f"{logs}{os.sep}")
    ]
