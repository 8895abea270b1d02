"""Snakemake's scheduler looks for jobs when one ends, not ever more often."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Twenty short jobs beside a long one, and one that waits for both cores.
SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2] / "workflow")!r})
from scripts import scheduler

onstart:
    scheduler.look_when_jobs_end(workflow)

rule all:
    input: expand("short/{{i}}", i=range(20)), "long", "waiting"
rule short:
    output: "short/{{i}}"
    shell: "touch {{output}}"
rule long:
    output: "long"
    priority: 10
    shell: "sleep 4; touch {{output}}"
rule waiting:
    output: "waiting"
    threads: 2
    shell: "touch {{output}}"
"""


def looks(folder: Path, *options: str) -> int:
    """How often the scheduler looked for jobs to start."""
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    command = ["snakemake", "--cores", "2", "--scheduler", "greedy", "--verbose", *options]
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, check=True, capture_output=True, text=True)
    return done.stderr.count("Ready jobs")


def test_it_looks_when_a_job_ends(tmp_path):
    """About once a job, not ever more often; a limit on submissions that the user sets stays, and costs what it costs."""
    assert looks(tmp_path / "ours") < 30
    assert looks(tmp_path / "limited", "--max-jobs-per-timespan", "50/1s") > 50
