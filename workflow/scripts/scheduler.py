"""What the workflow asks of Snakemake's scheduler."""

from typing import Any

# The limit on submissions that Snakemake sets where the user sets none: 100 jobs a second.
_DEFAULT = (100, 1)


def look_when_jobs_end(workflow: Any) -> None:
    """Let the scheduler look for jobs to start when one ends, and only then. To be called in `onstart`.

    With a limit on submissions Snakemake 9.27.1 looks again a second after each look and also when a job ends, so that
    its looks a second grow with the jobs that have ended: after 50 of the paper's they took a quarter of a core
    (snakemake/snakemake#3744). Without one it looks when a job ends. A limit that the user sets stays.
    """
    limiter = workflow.scheduler.job_rate_limiter
    if limiter is not None and (limiter.max_jobs, limiter.timespan) == _DEFAULT:
        workflow.scheduler.job_rate_limiter = None
