"""Several processes, on the CPU with gloo through torchrun: two equal one, stop together, resume exactly, survive no death.

Two processes equal one up to rounding where BatchNorm is in evaluation mode or synchronised, and nothing draws per process
(dropout 0). With BatchNorm's usual statistics, each process's own, they cannot. AdamW's steps do not shrink with the
gradient, so rounding moves a weight whose gradient is almost zero as far as any other: weights are compared by the
length of their difference over the length of the way they went in training.
"""

import csv
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import parallel
import pytest
import torch
from conftest import experiment
from safetensors.torch import load_file

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.train import checkpoint, processes, session
from vexkd.train.launch import job_status, reason
from vexkd.train.lock import Lock
from vexkd.train.loop import RuntimeOptions
from vexkd.train.predict import scene_batches

HERE = Path(__file__).parent
LAUNCH = [sys.executable, "-m", "vexkd.train.launch", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    """Three scenes to train on and one for validation, of three keyframes each."""
    from vexkd.data import infos_build
    from vexkd.synthetic.tables import synthesize

    base = tmp_path_factory.mktemp("four")
    synthesize(
        base / "data", scenes=4, samples=3, seed=3, image_size=(160, 90), beams=16, azimuths=240, sweeps_per_sample=2,
        workers=1, progress=False,
    )  # fmt: skip
    infos_build.build(base / "data", "v1.0-mini", base / "infos", progress=False)
    parallel.save_origins(base)
    return base


@pytest.fixture(scope="module")
def pair(town, tmp_path_factory) -> Path:
    """The folder that two processes filled (see `parallel.py`)."""
    out = tmp_path_factory.mktemp("pair")
    command = [*LAUNCH, str(HERE / "parallel.py"), str(town), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, env=ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    (out / "stdout").write_text(run.stdout)
    return out


@pytest.mark.parametrize(
    ("case", "weights", "curve"),
    [
        ("supervision", 5e-3, 1e-3),
        ("supervision in parts", 1e-2, 1e-3),  # 0.007 on an AMD EPYC, where one more L1 turns its sign
        ("distillation", 1e-4, 1e-4),
        ("fusion teacher", 2e-2, 1e-2),
        ("synchronised supervision", 5e-3, 5e-2),
        ("synchronised teacher", 5e-3, 2e-2),
    ],
)
def test_two_processes_equal_one(pair, town, tmp_path, case, weights, curve):
    """After four steps, masks learning in the first three.

    Mostly they are apart by 1e-6, but a step is not continuous everywhere: rounding turns the sign of an L1 near its zero (seen:
    losses equal to the last digit, gradient 4e-4 apart), and the teacher's proposals are discrete choices among near ties.
    """
    parallel.train(case, town, tmp_path, whole=True)
    first, alone = load_file(tmp_path / f"{case}.first.safetensors"), load_file(tmp_path / f"{case}.safetensors")
    both = load_file(pair / f"{case}.safetensors")
    went = sum(float((alone[k].double() - first[k].double()).square().sum()) for k in alone) ** 0.5
    apart = sum(float((alone[k].double() - both[k].double()).square().sum()) for k in alone) ** 0.5
    rows, others = (list(csv.DictReader((folder / f"{case}.csv").open())) for folder in (tmp_path, pair))
    worst = max(
        abs(float(a[k]) - float(b[k])) / abs(float(a[k]))
        for a, b in zip(rows, others, strict=True) for k in a if a[k] and float(a[k]) and not k.endswith(".max")
    )  # fmt: skip
    print(case, apart / went, worst)
    assert apart < weights * went
    assert worst < curve
    assert len(rows) == 4  # of nine samples in batches of four, twice: the rest of an epoch is left out on any number


def test_synchronised_statistics_are_those_of_the_whole_batch(pair):
    """Outputs, gradients and running statistics, where one process has three times the voxels of the other."""
    alone = parallel.sum_of_norms(0, 1)
    found = [load_file(pair / f"norms{rank}.safetensors") for rank in range(2)]
    for name, value in alone.items():
        if name in ("voxels", "maps", "voxels.grad", "maps.grad"):
            together = torch.cat([part[name] for part in found])
        elif name.endswith(".grad"):  # DDP takes the mean of what each process adds
            together = found[0][name] + found[1][name]
        else:
            together = found[1][name]
        torch.testing.assert_close(together, value, rtol=1e-5, atol=1e-4)
    plain = torch.nn.functional.batch_norm(
        torch.arange(6.0).view(3, 2), torch.zeros(2), torch.ones(2), training=True, eps=1e-3
    )
    norm = torch.nn.ModuleList([torch.nn.BatchNorm1d(2, eps=1e-3)])
    processes.synchronise_batch_norm(norm)
    torch.testing.assert_close(norm[0](torch.arange(6.0).view(3, 2)).detach(), plain)


def test_a_loss_that_is_not_finite_ends_all_processes(pair):
    """The one that has it names the samples, the other says where to look."""
    said = [(pair / f"poison{rank}.txt").read_text() for rank in range(2)]
    assert "on another process" in said[0]
    assert "on samples" in said[1]
    assert all("at step 0" in line for line in said)


def test_predictions_are_the_same_file_on_any_number_of_processes(pair, town, tmp_path):
    parallel.predict(town, tmp_path)
    assert (pair / "predictions.json").read_bytes() == (tmp_path / "predictions.json").read_bytes()
    assert len(json.loads((pair / "predictions.json").read_text())["results"]) == 9
    assert not list(pair.glob(".predictions*"))


def test_a_scene_stays_on_one_process():
    scenes = ["a", "a", "a", "b", "c", "c"]
    shares = [[[key.index for key in keys] for keys in scene_batches(scenes, batch=2, rank=r, world=2)] for r in (0, 1)]
    assert shares == [[[0, 1], [2], [4, 5]], [[3]]]
    assert scene_batches(scenes, batch=2, rank=3, world=4) == []


def test_progress_is_the_main_processs(pair):
    """Every step is reported once, and what the other process prints carries its number."""
    lines = (pair / "stdout").read_text().splitlines()
    assert sum(line.startswith("step 8/8") for line in lines) == 1
    assert not any("step" in line for line in lines if line.startswith("[rank 1]"))


def start(town, out, *options):
    """`vexkd train` on two processes; the run draws dropout in each."""
    raw = {**parallel.settings(epochs=4, dropout=0.3).raw, "root": str(town / "data")}
    raw["teachers"]["fusion-det"]["train"]["epochs"] = (
        parallel.settings().run("fusion-det").train.epochs
    )  # as it was saved
    experiment(out, raw, infos=town / "infos")
    command = [
        *LAUNCH, "-m", "vexkd.cli", "train", "centerpoint-det-vexkd", "-C", out, "--out", "model",
        "--teacher", town / "fusion-det.safetensors", "--threads", "1", "--device", "cpu", *options,
    ]  # fmt: skip
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def wait_for(run, text):
    for line in run.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"{text!r} was never printed: {run.stderr.read()}")


def member(run, rank):
    """The process id of one process of a job."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for pid in children:
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"no process {rank} among {children}")


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_stopped_and_then_killed_pair_resumes_bit_for_bit(pair, town, tmp_path):
    """SIGUSR1 to one process stops both after one step with status 75; kill -9 of one ends the job; dropout goes on exactly."""
    run = start(town, tmp_path)
    wait_for(run, "step 2/")
    os.kill(member(run, 1), signal.SIGUSR1)
    assert run.wait(timeout=60) == 75
    error = run.stderr.read()
    assert error.count("state saved") == 1, error
    (state,) = tmp_path.glob("scratch/*/*/state.safetensors")
    assert load_file(state)["random.cpu"].shape[0] == 2
    assert not (state.parent / "lock").exists()

    run = start(town, tmp_path, "--checkpoint-minutes", "0")
    wait_for(run, "step 5/")
    began = time.monotonic()
    os.kill(member(run, 1), signal.SIGKILL)
    assert run.wait(timeout=60) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 20
    error = run.stderr.read()
    assert "process 1 was killed by SIGKILL" in error
    assert "another process of this job has ended" in error

    run = start(town, tmp_path)
    output, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    assert "resumed at step" in output
    for name in ("weights.safetensors", "curve.csv"):
        made, expected = tmp_path / "model" / name, pair / "undisturbed" / name
        if name == "curve.csv":
            assert made.read_text() == expected.read_text()
        else:
            made, expected = load_file(made), load_file(expected)
            assert all(torch.equal(made[k], expected[k]) for k in expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all(town, tmp_path, number):
    """What Slurm sends to the batch step: both processes end, one state is saved, the status is 75."""
    run = start(town, tmp_path)
    wait_for(run, "step 2/")
    members = [member(run, rank) for rank in range(2)]
    run.send_signal(number)
    assert run.wait(timeout=60) == 75
    error = run.stderr.read()
    assert "goes on from the last saved state" in error
    assert error.count("state saved") == 1, error
    assert len(list(tmp_path.glob("scratch/*/*/state.safetensors"))) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_nothing_runs_on_when_the_launcher_was_killed(town, tmp_path):
    """The processes hear of its death as of a SIGTERM, save their state and end."""
    run = start(town, tmp_path)
    wait_for(run, "step 2/")
    members = [member(run, rank) for rank in range(2)]
    run.kill()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in members):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert len(list(tmp_path.glob("scratch/*/*/state.safetensors"))) == 1


def train_alone(town, out, runtime=None, scratch="scratch"):
    session.train(
        parallel.settings(epochs=4, dropout=0.3).run("centerpoint-det-vexkd"),
        root=town / "data", infos=town / "infos", out=out / "model", seed=0, paste=None,
        start=None, teacher=town / "fusion-det.safetensors", scratch=out / scratch, threads=1, runtime=runtime or RuntimeOptions(),
        device="cpu",
    )  # fmt: skip
    return out / "model/weights.safetensors"


@pytest.fixture(scope="module")
def alone(town, tmp_path_factory) -> Path:
    """The weights of an undisturbed training by one process."""
    return train_alone(town, tmp_path_factory.mktemp("alone"))


def same(first, second):
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_training_is_not_repeated(alone, town, capsys):
    """Also where its resumable state is gone; other settings, another seed or a missing part are not finished."""
    before = alone.stat().st_mtime_ns
    train_alone(town, alone.parents[1])
    assert "holds the result of this training already" in capsys.readouterr().out
    assert alone.stat().st_mtime_ns == before
    header = checkpoint.read_header(alone)
    run = parallel.settings(epochs=4, dropout=0.3).run("centerpoint-det-vexkd")
    assert checkpoint.is_finished(alone.parent, run=run, inputs=header["inputs"], seed=0)
    assert not checkpoint.is_finished(alone.parent, run=run, inputs=header["inputs"], seed=1)
    assert not checkpoint.is_finished(alone.parent, run=run, inputs={**header["inputs"], "teacher": "x"}, seed=0)
    other = parallel.settings(epochs=3, dropout=0.3).run("centerpoint-det-vexkd")
    assert not checkpoint.is_finished(alone.parent, run=other, inputs=header["inputs"], seed=0)


def test_what_is_not_whole_is_not_finished(alone, tmp_path):
    run = parallel.settings(epochs=4, dropout=0.3).run("centerpoint-det-vexkd")
    inputs = checkpoint.read_header(alone)["inputs"]
    shutil.copytree(alone.parent, tmp_path / "model")
    weights = tmp_path / "model/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not checkpoint.is_finished(tmp_path / "model", run=run, inputs=inputs, seed=0)
    shutil.copy(alone, weights)
    assert checkpoint.is_finished(tmp_path / "model", run=run, inputs=inputs, seed=0)
    (tmp_path / "model/curve.csv").unlink()
    assert not checkpoint.is_finished(tmp_path / "model", run=run, inputs=inputs, seed=0)


def test_the_state_of_two_processes_resumes_on_one_and_says_so(pair, town, tmp_path, capsys):
    """The rows of the curve up to there stay; order, batches and schedule go on as they were."""
    with pytest.raises(SystemExit) as stop:
        train_alone(town, tmp_path, RuntimeOptions(max_seconds=0.0))
    assert stop.value.code == 75
    (state,) = tmp_path.glob("scratch/*/*/state.safetensors")
    pretend_two(state)
    train_alone(town, tmp_path)
    assert (
        "resumed at step 1 (saved by 2 processes, now 1: only dropout will draw otherwise)" in capsys.readouterr().out
    )
    made, expected = ((f / "curve.csv").read_text().splitlines() for f in (tmp_path / "model", pair / "undisturbed"))
    assert [line.split(",")[:3] for line in made] == [line.split(",")[:3] for line in expected]  # step, epoch, rate


def test_a_state_saved_under_the_key_of_version_0_1_is_resumed(alone, town, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_alone(town, tmp_path, RuntimeOptions(max_seconds=0.0))
    (state,) = tmp_path.glob("scratch/*/*/state.safetensors")
    run = parallel.settings(epochs=4, dropout=0.3).run("centerpoint-det-vexkd")
    values = run.training()
    values["data"]["val_split"] = "mini_val"
    inputs = session.input_hashes(infos=town / "infos", teacher=town / "fusion-det.safetensors")
    key = provenance.digest({"settings": values, "inputs": inputs, "seed": 0})
    earlier = state.parent.rename(state.parent.with_name(f"seed0-{key}"))
    assert earlier != state.parent
    assert same(train_alone(town, tmp_path), alone)
    assert "resumed at step 1" in capsys.readouterr().out
    assert not list(tmp_path.glob("scratch/*/*"))


def pretend_two(state):
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = load_file(state)
    with safe_open(state, framework="pt") as stream:
        header = stream.metadata()
    tensors["random.cpu"] = tensors["random.cpu"].repeat(2, 1)
    save_file(tensors, state, metadata=header)


def test_a_full_disk_leaves_the_last_state_and_the_rerun_is_exact(alone, town, tmp_path, monkeypatch):
    """The third save finds no room: one sentence that names the file; nothing half-written is left."""
    fsync, left = os.fsync, [3]  # the list of attempts, and two saves

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(provenance.os, "fsync", full)
    with pytest.raises(InputError, match=r"state.safetensors: cannot be written \(No space left on device\)"):
        train_alone(town, tmp_path, RuntimeOptions(checkpoint_minutes=0.0))
    monkeypatch.undo()
    (folder,) = tmp_path.glob("scratch/*/*")
    assert sorted(path.name for path in folder.iterdir()) == ["attempts.json", "state.safetensors"]
    assert json.loads(position_of(folder / "state.safetensors"))["step"] == 2
    assert same(train_alone(town, tmp_path), alone)


def position_of(state):
    from safetensors import safe_open

    with safe_open(state, framework="pt") as stream:
        return stream.metadata()["position"]


def test_a_result_that_could_not_be_written_is_refused_before_training(town, tmp_path):
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"/model: cannot be written \(Not a directory\)"):
        train_alone(town, tmp_path)
    assert not (tmp_path / "scratch").exists()


def test_a_really_full_disk(alone, town, tmp_path):
    """A small file system in memory that holds one state but not two; needs the right to mount one."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(SystemExit):
        train_alone(town, tmp_path, RuntimeOptions(max_seconds=0.0), scratch="probe")
    (probe,) = tmp_path.glob("probe/*/*/state.safetensors")
    size = int(probe.stat().st_size * 1.5)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(scratch)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        with pytest.raises(InputError, match=r"state.safetensors: cannot be written \(.*[Nn]o space left"):
            train_alone(town, tmp_path, RuntimeOptions(checkpoint_minutes=0.0))
        (state,) = scratch.glob("*/*/state.safetensors")
        assert json.loads(position_of(state))["step"] == 1
        subprocess.run(["mount", "-o", f"remount,size={3 * size}", str(scratch)], check=True)
        assert same(train_alone(town, tmp_path), alone)
    finally:
        subprocess.run(["umount", str(scratch)], check=True)


def test_a_second_training_of_the_same_run_is_refused(town, tmp_path):
    with pytest.raises(SystemExit):
        train_alone(town, tmp_path, RuntimeOptions(max_seconds=0.0))
    (folder,) = tmp_path.glob("scratch/*/*")
    lock = Lock(folder / "lock")
    lock.acquire()
    with pytest.raises(InputError, match=rf"process {os.getpid()} on {socket.gethostname()} is training this run"):
        train_alone(town, tmp_path)
    lock.release()
    assert not lock.path.exists()


def write_lock(path, **changes):
    path.write_text(json.dumps({**json.loads(Lock(path).owner), **changes}))


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    """Also where its number belongs to another process by now, or the file is empty and old."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = tmp_path / "lock"
    write_lock(path, pid=dead.pid)
    first = Lock(path)
    first.acquire()
    write_lock(path, started="12")
    with pytest.raises(InputError, match="has lost its lock"):
        first.check()
    second = Lock(path)
    second.acquire()
    second.check()
    first.release()
    second.check()
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_the_lock_of_another_machine_is_watched(tmp_path, capsys):
    """Renewed, its holder lives; not renewed, it is dead; long not renewed, it is dead without a look."""
    path = tmp_path / "lock"
    write_lock(path, host="far", pid=7)
    done = threading.Event()

    def renew():
        while not done.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(InputError, match="process 7 on far is training this run"):
        Lock(path, beat=0.05, patience=2.0).acquire()
    done.set()
    thread.join()
    Lock(path, beat=0.05, patience=0.3).acquire()
    assert "watching" in capsys.readouterr().out
    write_lock(path, host="far", pid=7)
    os.utime(path, (time.time() - 1000,) * 2)
    Lock(path).acquire()
    assert "watching" not in capsys.readouterr().out


def test_the_status_of_a_job_is_its_cause():
    """-15 is torchrun's own, sent to the rest when one has ended."""
    assert job_status([75, 75]) == 75
    assert job_status([-15, 2]) == 2
    assert job_status([1, -9]) == 137
    assert job_status([1, -15]) == 1
    assert reason({0: 1, 1: -9}) == "process 1 was killed by SIGKILL"
    assert reason({0: -15, 1: 1}) == "process 1 ended with status 1"


def test_lines_of_other_processes_carry_their_number(capsys):
    stream = processes.RankStream(sys.stdout, 3)
    print("one\ntwo", file=stream)
    print("three", end="", file=stream)
    assert capsys.readouterr().out == "[rank 3] one\n[rank 3] two\n[rank 3] three"
