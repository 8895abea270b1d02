"""The matrix from files written by hand: done, stale, running, quiet, waiting and failed, each with its reason."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
import yaml
from conftest import tiny_settings

from vexkd import calls, seal
from vexkd import settings as settings_module
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.measure import status

NOW = 2_000_000_000.0
STEP = "step 40/480 loss 5.123 lr 1.00e-03 left 330 s\n"


@pytest.fixture
def desk(settings, tmp_path):
    return Desk(settings, tmp_path)


class Desk:
    """An experiment's folder, filled by hand; times are seconds before NOW."""

    def __init__(self, params, path: Path) -> None:
        self.params, self.path = params, path
        self.experiment = Experiment(path)
        self.write("artifacts/infos/samples.parquet", "x")
        self.write("artifacts/paste/index.parquet", "x")
        settings_module.write_configs(params, self.experiment.results)
        for file in self.experiment.results.rglob("config.yaml"):
            os.utime(file, (NOW - 100_000, NOW - 100_000))

    def write(self, name: str, text: str, age: float = 0.0) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (NOW - age, NOW - age))
        return path

    def weights(self, run: str, age: float = 0.0, **changes) -> None:
        values = {**self.params.run(run).training(), **changes}
        header = json.dumps({"__metadata__": {"format": seal.FORMAT, "settings": json.dumps(values)}}).encode()
        path = self.write(f"models/{run}/seed0/weights.safetensors", "")
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        os.utime(path, (NOW - age, NOW - age))

    def log(self, text: str, run: str = "lidar-pretrain", age: float = 5.0) -> None:
        self.write(f"logs/train/{run}-seed0.log", text, age)

    def row(self, run: str = "lidar-pretrain") -> status.Row:
        return status.look(self.params, self.params.run(run), 0, self.experiment, NOW)


def test_what_is_trained_predicted_and_scored_is_done(desk):
    desk.weights("lidar-pretrain")
    assert (desk.row().state, desk.row().detail) == ("waiting", "to be predicted")
    desk.write("models/lidar-pretrain/seed0/predictions.json", "{}")
    assert (desk.row().state, desk.row().detail) == ("waiting", "to be scored")
    desk.write("results/runs/lidar-pretrain/metrics.json", json.dumps({"mAP": 0.1234, "NDS": 0.2}))
    assert (desk.row().state, desk.row().detail) == ("done", "mAP 12.3, NDS 20.0")


def test_weights_of_other_settings_are_stale(desk):
    changed = {**desk.params.run("lidar-pretrain").training()["train"], "lr": 0.5}
    desk.weights("lidar-pretrain", train=changed)
    assert desk.row().state == "stale"
    assert desk.row().detail == "trained with other settings: train.lr (0.5, now 0.0006)"


def test_weights_cut_short_are_stale_and_end_nothing(desk):
    desk.write("models/lidar-pretrain/seed0/weights.safetensors", "half")
    assert desk.row().state == "stale"


def test_running_shows_how_far_and_how_long(desk):
    desk.log(f"lidar-pretrain seed 0: 480 steps on cpu\n{STEP}", age=30)
    row = desk.row()
    assert (row.state, row.progress, row.loss) == ("running", "epoch 1/2, step 40/480", "5.123")
    assert (row.left, row.age, row.where) == (300, 30, "")


def test_running_names_host_and_process_of_its_lock_and_sees_its_beat(desk):
    desk.log(STEP, age=5000)
    desk.write("scratch/lidar-pretrain/seed0-abc/state.safetensors", "x", 400)
    desk.write("scratch/lidar-pretrain/seed0-abc/lock", json.dumps({"host": "node7", "pid": 42}), 7)
    row = desk.row()
    assert (row.state, row.where, row.age, row.left) == ("running", "node7:42", 7, 0)


def test_a_lock_without_a_beat_is_no_sign_of_life(desk):
    desk.log(STEP, age=200)
    desk.write("scratch/lidar-pretrain/seed0-abc/lock", json.dumps({"host": "node7", "pid": 42}), 200)
    assert desk.row().state == "quiet"


def test_no_sign_of_life_is_quiet(desk):
    desk.log(STEP, age=status.QUIET + 1)
    row = desk.row()
    assert (row.state, row.progress) == ("quiet", "epoch 1/2, step 40/480")
    assert "logs/train/lidar-pretrain-seed0.log" in row.detail


def test_resumed_shows_where_it_went_on(desk):
    desk.log("lidar-pretrain seed 0: 480 steps on cuda, 2 processes, resumed at step 400\n")
    assert desk.row().progress == "epoch 2/2, step 400/480"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vexkd: data root x does not exist: set root to nuScenes' folder.", "data root x does not exist: set root"),
        ("[rank 1] vexkd: a.bin is broken; download it again.", "a.bin is broken; download it again."),
        ("Traceback (most recent call last):\n  File x\nValueError: 3 is odd\n", "ValueError: 3 is odd"),
        (
            "Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory\n"
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "slurmstepd: error: Detected 1 oom_kill event"),
        (
            "vexkd: another process of this job has ended or answers no more (gloo); the same command goes on.\n"
            "[rank 1] vexkd: weights are bad; train again.",
            "weights are bad; train again.",
        ),
    ],
)
def test_failed_shows_the_first_line_of_the_reason(desk, text, reason):
    desk.log(f"{STEP}{text}\n")
    row = desk.row()
    assert row.state == "failed"
    assert row.detail.startswith(reason)
    assert row.detail.endswith("logs/train/lidar-pretrain-seed0.log]")


@pytest.mark.parametrize("text", [STEP, "FutureWarning: `torch.cuda.amp` is old\n", "UserError said the sample\n"])
def test_what_only_looks_like_an_error_is_none(text):
    assert status.failure(text) == ""


def test_a_saved_stop_waits_for_its_next_attempt(desk):
    desk.log(f"{STEP}lidar-pretrain: stopped after step 57 of 480, state saved.\n")
    row = desk.row()
    assert (row.state, row.progress) == ("waiting", "epoch 1/2, step 57/480")
    assert "resume" in row.detail


def test_waiting_says_for_what(desk):
    assert desk.row("lidar-pretrain").detail == "to be started"
    assert desk.row("fusion-det").detail == "for lidar-pretrain (seed 0)"
    (desk.path / "artifacts/infos/samples.parquet").unlink()
    assert desk.row("fusion-det").detail == "for lidar-pretrain (seed 0), infos"
    desk.weights("lidar-pretrain")
    assert desk.row("fusion-det").detail == "for infos"


def test_waiting_tells_how_the_last_attempt_ended(desk):
    kept = "--- attempt 1, 2026-01-01 10:00:00, status 75\nlidar-pretrain: stopped after step 5 of 480, state saved.\n"
    desk.write("scratch/attempts/train-lidar-pretrain-seed0.log", kept)
    assert desk.row().detail == "to be started; attempt 1 ended with status 75 (saved its state)"
    more = kept + "--- attempt 2, 2026-01-01 11:00:00, status 2\nvexkd: no data; set root.\n"
    desk.write("scratch/attempts/train-lidar-pretrain-seed0.log", more)
    assert desk.row().detail == "to be started; attempt 2 ended with status 2 (no data; set root.)"


def test_the_log_of_former_settings_is_forgotten(desk):
    desk.log("vexkd: the loss is not finite; lower train.lr.\n", age=200_000)
    assert (desk.row().state, desk.row().detail) == ("waiting", "to be started")


def test_a_failed_prediction_is_a_failed_row(desk):
    desk.weights("lidar-pretrain", age=50)
    desk.write(
        "logs/predict/lidar-pretrain-seed0.json.log", "vexkd: image a.jpg cannot be decoded; download it again.\n", 5
    )
    row = desk.row()
    assert (row.state, row.progress) == ("failed", "trained")
    assert row.detail.startswith("image a.jpg cannot be decoded")


def test_a_failed_preparation_is_told(desk):
    assert status.preparation(desk.experiment) == []
    desk.write("logs/doctor.log", "a.bin: 17 bytes\nvexkd: data: 1 problems, listed above; mend these files.\n")
    assert status.preparation(desk.experiment)[0].startswith("doctor failed: data: 1 problems, listed above")


def test_progress_bars_count_as_their_last_state(desk):
    path = desk.write("a.log", "a: 1%\ra: 2%\ra: done\nb\n")
    assert status.tail(path) == "a: done\nb\n"


def test_text_is_aligned_and_plain_and_loses_nothing(desk):
    desk.log(STEP)
    rows = status.matrix(desk.params, desk.experiment, NOW)
    text = status.render(rows)
    lines = text.splitlines()
    assert lines[0].split() == ["run", "seed", "state", "progress", "loss", "left", "seen", "detail"]
    assert len(rows) == len(desk.params.runs)
    assert len({line.index(row.state) for line, row in zip(lines[1:], rows, strict=False)}) == 1
    assert text.isascii()
    count = len(desk.params.runs)
    assert lines[-1] == f"{count} trainings: 1 running, {count - 1} waiting; what runs takes 5 min more."
    narrow = status.render(rows, width=60)
    assert "\n    for lidar-pretrain (seed 0)\n" in narrow
    assert all(row.detail in narrow for row in rows)
    assert "\033[36mrunning\033[0m" in status.render(rows, colour=True)


def test_show_watches_until_nothing_is_left(desk, monkeypatch, tmp_path):
    from conftest import tiny_settings
    from yaml import safe_dump

    raw = tiny_settings()
    raw |= {"teachers": {}, "students": {}, "distilled": {}, "tables": {}}
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        desk.weights("lidar-pretrain")
        desk.write("models/lidar-pretrain/seed0/predictions.json", "{}")
        desk.write("results/runs/lidar-pretrain/metrics.json", "{}")

    stream = io.StringIO()
    status.show(desk.experiment, watch=3.0, stream=stream, sleep=sleep)
    assert slept == [3.0]
    assert stream.getvalue().count("1 trainings: 1 ") == 2
    assert "\033" not in stream.getvalue()
    with pytest.raises(InputError, match="this folder|no experiment"):
        status.show(Experiment(tmp_path / "other"), stream=stream)


@pytest.mark.parametrize("place", [".", "full"], ids=["from its folder", "from above"])
def test_a_change_since_the_start_is_told_and_only_a_change(tmp_path, monkeypatch, place):
    """Settings are compared, not texts: comments and the files of `extends` are no part of what was frozen."""
    folder = tmp_path / "full"
    folder.mkdir()
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(tiny_settings()))
    (folder / "params.yaml").write_text("# a comment\nextends: [../base.yaml]\n")
    monkeypatch.chdir(folder)
    locks = calls.freeze(calls.begin())
    if place == "full":
        monkeypatch.chdir(tmp_path)
    experiment = Experiment(Path(place))

    def warned() -> bool:
        stream = io.StringIO()
        status.show(experiment, stream=stream)
        return "has changed since Snakemake started" in stream.getvalue()

    assert not warned()
    changed = tiny_settings()
    changed["train"]["lr"] = 0.5
    base.write_text(yaml.safe_dump(changed))
    assert warned()
    for lock in locks:
        lock.close()
    assert not warned()


def test_durations():
    shown = [status.duration(seconds) for seconds in (0, 59.6, 119, 3_700, 90_000)]
    assert shown == ["0 s", "1 min", "1 min", "1 h 01 min", "1 d 1 h"]


def test_a_hundred_rows_are_seen_in_a_moment(desk):
    desk.log(STEP * 2000)
    began = time.monotonic()
    for _ in range(20):
        status.matrix(desk.params, desk.experiment, NOW)
    assert time.monotonic() - began < 2
