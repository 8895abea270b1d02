"""What stands in the environment changes no training, and signals of a terminal save its state."""

import os
import signal
import subprocess
import sys

import pytest

from vexkd.data import shared_memory
from vexkd.errors import InputError
from vexkd.train import environment, launch
from vexkd.train.processes import StopRequest

LEFT_OVER = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "yes",
    "ACCELERATE_DYNAMO_BACKEND": "inductor", "FSDP_OFFLOAD_PARAMS": "true", "WORLD_SIZE": "2", "RANK": "1",
    "LOCAL_RANK": "0", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500", "OMPI_COMM_WORLD_SIZE": "4",
    "PMI_RANK": "1", "NVIDIA_TF32_OVERRIDE": "1", "ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "CUBLAS_WORKSPACE_CONFIG": ":0:0",
}  # fmt: skip


def test_what_is_left_over_is_set_aside_by_name(capsys):
    environ = {**LEFT_OVER, "HOME": "here", "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "2"}
    gone = environment.settle(environ)
    assert sorted(gone) == sorted(LEFT_OVER)
    assert environ == {"HOME": "here", "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "2"}
    environment.announce(gone)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in said
    assert environment.recorded(environ) == {"OMP_NUM_THREADS": "2"}


def test_the_launchers_own_count():
    environ = dict(LEFT_OVER)
    environment.clear_for_launch(environ)
    assert set(environ) == {environment.MARK, "CUBLAS_WORKSPACE_CONFIG"}
    environ |= {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
    assert environment.settle(environ) == ["CUBLAS_WORKSPACE_CONFIG"]
    assert environ["WORLD_SIZE"] == "2"


def test_another_torchrun_is_refused():
    with pytest.raises(InputError, match="TORCHELASTIC_RUN_ID.*vexkd-launch"):
        environment.settle({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"})


def test_a_step_that_srun_did_not_start_is_refused(capsys, monkeypatch):
    for name in launch.STEP:
        monkeypatch.delenv(name, raising=False)
    assert launch.main(["--srun", "-m", "nothing"]) == 2
    assert "SLURM_JOB_ID" in capsys.readouterr().err


def test_an_accelerator_among_left_over_variables():
    """One process, at once, whose gradients are whole."""
    code = (
        "import torch\nfrom vexkd.train import processes\na = processes.start_accelerator('fp32', 'cpu')\n"
        "x = torch.ones(1, requires_grad=True)\na.backward(x.sum())\n"
        "print(a.num_processes, processes.rank(), a.mixed_precision, float(x.grad))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env={**os.environ, **LEFT_OVER}
    )
    assert run.stdout.split() == ["1", "0", "no", "1.0"], run.stderr
    assert "WORLD_SIZE" in run.stderr


def test_a_wait_for_processes_that_never_come_says_so_and_hears_signals():
    code = (
        "from vexkd.train import processes\nprocesses.PATIENCE = 0.2\nprocesses.StopRequest().listen()\n"
        "processes.start_processes('cpu')"
    )
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **ranks, "MASTER_PORT": "29731", environment.MARK: "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert "waits for the other 1 of this job at 127.0.0.1:29731" in run.stderr.readline()
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=20) == -signal.SIGTERM
    finally:
        run.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_what_asks_for_a_stop(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)}
    try:
        for each in before:  # whatever the one that runs the tests has set to be ignored
            signal.signal(each, signal.SIG_DFL)
        stop = StopRequest().listen()
        signal.raise_signal(number)
        assert stop.asked
        assert (signal.getsignal(signal.SIGINT) == signal.SIG_DFL) == (number == signal.SIGINT)  # the second ends
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_what_nohup_ignores_stays_ignored():
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopRequest().listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_closed_pipe_does_not_end_a_training():
    code = (
        "import os, sys\nfrom vexkd.train import processes\nread, write = os.pipe()\nos.dup2(write, 1)\n"
        "os.close(write)\nos.close(read)\n[processes.say('step') for _ in range(3)]\nopen(sys.argv[1], 'w').write('on')"
    )
    run = subprocess.run([sys.executable, "-c", code, os.devnull], capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stderr) == (0, "")


class _Samples:
    def __init__(self, sample) -> None:
        self.sample = sample

    def __getitem__(self, key):
        return self.sample


def test_too_little_shared_memory_is_refused(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(shared_memory, "collate", lambda samples: samples)
    samples = _Samples({"images": torch.zeros(1000, 1000), "points": [torch.zeros(10, 5)]})
    usage = type("Usage", (), {"free": 30_000_000})
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda place: usage)
    shared_memory.check(samples, [[0]], 2, tmp_path)
    with pytest.raises(InputError, match=r"30.0 MB are free, but 2 loader processes need about 80.3 MB.*--workers"):
        shared_memory.check(samples, [[0, 1, 2, 3]], 2, tmp_path)
