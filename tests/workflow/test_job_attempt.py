"""The script around trainings: what it runs, what it refuses, and that a command's status and signals pass through it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vexkd.train import launch

SCRIPT = Path(__file__).parents[2] / "workflow/scripts/job_attempt.py"
LOG = "logs/train/student-seed0.log"


def start(folder, number, script, seconds="0"):
    (folder / "logs/train").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(number), LOG, "sh", "-c", script]
    heard = {
        signal.SIGINT: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }  # whatever the one that runs the tests ignores
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "VEXKD_LOCK_SECONDS": seconds},
        preexec_fn=lambda: [signal.signal(number, how) for number, how in heard.items()],
    )  # fmt: skip


def test_bad_input_is_not_tried_again_before_the_next_call(tmp_path):
    bad = "echo run >> runs; echo 'vexkd: no such folder' >&2; exit 2"
    for number in (1, 2, 3):
        (tmp_path / LOG).unlink(missing_ok=True)  # as Snakemake does
        assert start(tmp_path, number, bad).wait() == 2
        assert (tmp_path / LOG).read_text() == "vexkd: no such folder\n"
    assert (tmp_path / "runs").read_text() == "run\n"
    assert start(tmp_path, 1, "echo mended").wait() == 0
    assert start(tmp_path, 2, "echo mended").wait() == 0


def test_other_ends_are_tried_again_and_their_logs_gathered(tmp_path):
    assert start(tmp_path, 1, "echo saved; exit 75").wait() == 75
    assert start(tmp_path, 2, "echo crashed; kill -9 $$").wait() == 137
    assert start(tmp_path, 3, "echo done").wait() == 0
    assert (tmp_path / LOG).read_text() == "done\n"
    gathered = (tmp_path / "scratch/attempts/train-student-seed0.log").read_text().splitlines()
    assert [line.partition(", status ")[2] or line for line in gathered] == ["75", "saved", "137", "crashed"]


def test_signals_reach_the_command(tmp_path):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        (tmp_path / "ready").unlink(missing_ok=True)
        process = start(tmp_path, 1, "trap 'exit 75' TERM USR1; touch ready; while :; do sleep 0.05; done")
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=10) == 75


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signals_reach_the_command_as_a_sigterm(tmp_path, number):
    """Which may come twice: Ctrl-C itself reaches the command already, and its second would end it unsaved."""
    process = start(tmp_path, 1, "trap '' INT HUP; trap 'exit 75' TERM; touch ready; while :; do sleep 0.05; done")
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=10) == 75


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a command outlives the script around it")
def test_a_killed_script_takes_its_command_along(tmp_path):
    process = start(tmp_path, 1, "trap 'touch saved; exit 75' TERM; touch ready; while :; do sleep 0.05; done")
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.kill()
    until = time.monotonic() + 10
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_second_writer_is_kept_away(tmp_path):
    first = start(tmp_path, 1, "touch ready; while ! [ -e enough ]; do sleep 0.05; done")
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    (tmp_path / LOG).unlink()
    assert start(tmp_path, 1, "touch twice").wait() == 1
    assert "another job still works on this" in (tmp_path / LOG).read_text()
    waiting = start(tmp_path, 1, "touch afterwards", seconds="30")
    (tmp_path / "enough").touch()
    assert (first.wait(), waiting.wait()) == (0, 0)
    assert (tmp_path / "afterwards").exists()
    assert not (tmp_path / "twice").exists()


def train_command(place, *arguments):
    """How a dry run would train the demo's teacher."""
    out = place.snakemake(
        "-n", "-p", "--directory", "demo", *arguments, "--", "models/fusion-det/seed0/weights.safetensors"
    )
    return next(line for line in out.splitlines() if "logs/train/fusion-det-seed0.log" in line and "exec" in line)


def test_the_command_of_a_training_follows_the_resources(checkout):
    place = checkout()
    plain = train_command(place)
    assert " 1 logs/train/fusion-det-seed0.log vexkd train fusion-det --seed 0" in plain
    assert not [option for option in ("--workers", "--accumulate", "--max-seconds", "nproc") if option in plain]
    asked = ["gpu=2", "workers=3", "accumulate=4", "runtime=60"]
    several = train_command(place, "--set-resources", *(f"train:{one}" for one in asked))
    assert " --standalone --nproc_per_node 2 --no-python vexkd train fusion-det --seed 0" in several
    assert " --workers 3 --accumulate 4 --max-seconds 3000" in several


def test_several_nodes_meet_through_srun(checkout):
    place = checkout()
    spread = [f"train:{one}" for one in ("gpu=4", "nodes=2", "tasks=2", "mpi=srun")]
    command = train_command(place, "--set-resources", *spread, "--set-threads", "train=6", "--cores", "6")
    assert (
        " srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --kill-on-bad-exit=1"
        " vexkd-launch --srun --nproc_per_node 2 --no-python vexkd train fusion-det --seed 0" in command
    )
    assert " --threads 3 " in f"{command} "
    refused = place.snakemake(
        "-n", "--directory", "demo", "--set-resources", "train:gpu=4", "train:nodes=2", fails=True
    )
    assert "`tasks: 2` and `mpi: srun`" in refused


def test_the_nodes_of_a_step_agree_on_where_to_meet():
    step = {"SLURM_JOB_ID": "1234567", "SLURM_STEP_NUM_NODES": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    first, second = (launch.meeting({**step, "SLURM_NODEID": str(number)}) for number in range(2))
    assert [a for a, b in zip(first, second, strict=True) if a != b] == ["0"]
    options = (
        "--nnodes 2 --node_rank 0 --master_addr 10.0.0.7 --master_port 24567 --rdzv_id 1234567 --rdzv_conf timeout=600"
    )
    assert " ".join(first) == options
    assert "node 2 of 2 waits at 10.0.0.7:24567" in launch.waiting({**step, "SLURM_NODEID": "1"})
