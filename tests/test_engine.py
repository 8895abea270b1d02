"""Training from files to files: resumed equals undisturbed bit for bit, bad weights are refused, predictions are nuScenes'."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import experiment, tiny_settings
from safetensors.torch import load_file

from vexkd.errors import InputError
from vexkd.models import bev_model
from vexkd.settings import Schedule, from_values, parse
from vexkd.train import checkpoint, optim, session
from vexkd.train.loop import NonFiniteError, RuntimeOptions, Trainer
from vexkd.train.predict import attribute, submission
from vexkd.train.processes import start_accelerator


def test_one_cycle_schedule():
    schedule = Schedule(
        kind="one-cycle", peak=10.0, rise=0.4, final=1e-4, warmup=0, warmup_from=1.0, beta1=[0.9, 0.805]
    )
    points = {0: (1.0, 0.9), 20: (5.5, 0.8525), 40: (10.0, 0.805), 100: (1e-4, 0.9)}
    for step, (factor, beta1) in points.items():
        assert optim.factors(schedule, step, 100) == pytest.approx((factor, beta1), rel=1e-6)


def test_warmup_cosine_schedule():
    schedule = Schedule(
        kind="warmup-cosine", peak=1.0, rise=0.4, final=0.0, warmup=10, warmup_from=1 / 3, beta1=[0.9, 0.805]
    )
    assert optim.factors(schedule, 0, 100)[0] == pytest.approx(1 / 3)
    assert optim.factors(schedule, 5, 100)[0] == pytest.approx(2 / 3 * (1 + math.cos(math.pi * 0.05)) / 2)
    assert optim.factors(schedule, 50, 100)[0] == pytest.approx(0.5)


@pytest.fixture
def desk(town, tmp_path):
    """A folder with the runs' settings at test size, and what to train them with."""
    params = parse(tiny_settings())

    def train(name, out="models", runtime=None, changes=None, **weights):
        run = params.run(name)
        run = from_values({**run.training(), **(changes or {})}, run.after_training(), name)
        arguments = {"start": None, "teacher": None, "paste": None, **weights}
        if name == "lidar-pretrain":
            arguments["paste"] = town / "paste"
        session.train(
            run, root=town / "data", infos=town / "infos", out=tmp_path / out / name / "seed0", seed=0,
            scratch=tmp_path / "scratch", threads=1, runtime=runtime or RuntimeOptions(), device="cpu", **arguments,
        )  # fmt: skip
        return tmp_path / out / name / "seed0/weights.safetensors"

    return type("Desk", (), {"params": params, "train": staticmethod(train), "path": tmp_path, "town": town})


def same(first, second):
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_result_that_was_refused_is_given_back_without_training(desk, capsys):
    keep = desk.path / "scratch/finished"
    weights = desk.train("centerpoint-det", keep=keep)
    before = weights.read_bytes()
    for file in weights.parent.iterdir():
        file.unlink()  # as Snakemake removes outputs that are older than an input
    capsys.readouterr()
    desk.train("centerpoint-det", keep=keep)
    said = capsys.readouterr().out
    assert "held the finished result" in said
    assert "step" not in said
    assert weights.read_bytes() == before
    weights.unlink()
    desk.train("centerpoint-det")  # by hand, without the option, a removed result is made again
    assert "steps in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.sample
def test_the_chain_from_pretraining_to_the_distilled_student(desk):
    """Every run trains on the one before; the distilled weights hold the student alone and predict without the teacher."""
    pretrained = desk.train("lidar-pretrain")
    teacher = desk.train("fusion-det", start=pretrained)
    student = desk.train("centerpoint-det-vexkd", teacher=teacher)
    baseline = desk.train("centerpoint-det")
    assert load_file(student).keys() == load_file(baseline).keys()
    header = checkpoint.read_header(student)
    assert header["settings"]["name"] == "centerpoint-det-vexkd"
    assert set(header["inputs"]) == {"infos", "samples", "teacher"}
    out = desk.path / "predictions.json"
    session.predict(
        student, root=desk.town / "data", infos=desk.town / "infos", out=out,
        expected=desk.params.run("centerpoint-det-vexkd"), batch=2, workers=0, threads=1, device="cpu",
    )  # fmt: skip
    assert len(json.loads(out.read_text())["results"]) == 3
    curve = (student.parent / "curve.csv").read_text().splitlines()
    assert len(curve) == 1 + 6  # two epochs of three samples
    assert {"distill.low", "masked.heatmap", "mask.low.entropy", "gradient"} <= set(curve[0].split(","))
    with pytest.raises(InputError, match="these are the weights of lidar-pretrain"):
        desk.train("centerpoint-det-vexkd", out="other", teacher=pretrained)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_killed_run_resumes_bit_for_bit(desk, number):
    """A signal to all its processes in the middle of an epoch, then the same command again: weights and curve equal an
    undisturbed run's, whatever other programs left in the environment.
    """
    undisturbed = desk.train("centerpoint-det", out="undisturbed")
    experiment(desk.path, {**tiny_settings(), "root": str(desk.town / "data")}, infos=desk.town / "infos")
    command = [
        sys.executable, "-m", "vexkd.cli", "train", "centerpoint-det", "-C", desk.path, "--out", "killed",
        "--threads", "1", "--device", "cpu", "--workers", "1",
    ]  # fmt: skip
    command = [str(part) for part in command]
    left_over = {
        **os.environ,
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "nowhere",
    }
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=left_over,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # whatever the one that runs the tests ignores
    )
    for line in run.stdout:
        if line.startswith("step 2/"):
            os.killpg(run.pid, number)
            break
    assert run.wait(timeout=120) == 75, run.stderr.read()
    assert not (desk.path / "killed/weights.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    assert same(undisturbed, desk.path / "killed/weights.safetensors")
    assert (undisturbed.parent / "curve.csv").read_text() == (desk.path / "killed/curve.csv").read_text()
    assert not list((desk.path / "scratch").glob("*/*/state.safetensors"))


def test_a_distillation_resumes_bit_for_bit(desk, monkeypatch):
    """Optimiser, masks, random state and the moving average included; the stop of the masks lies in between."""
    params = parse(tiny_settings())
    values = params.run("centerpoint-det-vexkd").training()["train"]
    averaged = {"train": values | {"ema": {"decay": 0.9, "ramp": 5.0, "updates": 0}}}
    teacher_run = params.run("fusion-det")
    torch.manual_seed(1)
    teacher = desk.path / "teacher.safetensors"
    checkpoint.save_weights(teacher, bev_model.build(teacher_run), run=teacher_run, inputs={}, record={})
    undisturbed = desk.train("centerpoint-det-vexkd", out="undisturbed", changes=averaged, teacher=teacher)
    stops = [2, 4]

    def stop_at_each_once(self):
        if stops and self.position.step == stops[0]:
            stops.pop(0)
            return True
        return False

    monkeypatch.setattr(Trainer, "_should_stop", stop_at_each_once)
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            desk.train("centerpoint-det-vexkd", changes=averaged, teacher=teacher)
        assert stop.value.code == 75
    assert same(undisturbed, desk.train("centerpoint-det-vexkd", changes=averaged, teacher=teacher))


def test_accumulated_parts_equal_the_whole_batch(desk, town):
    """Frozen BatchNorm, so that only the loss's own normalisation is compared: two parts of one sample, one of two."""
    values = tiny_settings()
    values["train"] |= {"batch": 2}
    run = parse(values).run("centerpoint-det")
    found = []
    for accumulate in (1, 2):
        trainer = make_trainer(run, town, desk.path / f"state{accumulate}", RuntimeOptions(accumulate=accumulate))
        trainer.task.eval()
        row = trainer._step(next(trainer._epoch(0)))
        found.append((row["loss"], row["gradient"]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_teacher_and_its_student_train_in_half_precision(town, tmp_path):
    """Geometry, voxels and losses stay in float32 under autocast; every term is finite."""
    values = tiny_settings()
    values["train"]["precision"] = "bf16"
    params = parse(values)
    weights = {}
    for name in ("lidar-pretrain", "fusion-det"):
        run = params.run(name)
        weights[name] = tmp_path / f"{name}.safetensors"
        checkpoint.save_weights(weights[name], bev_model.build(run), run=run, inputs={}, record={})
    origins = {
        "fusion-det": {"start": weights["lidar-pretrain"]},
        "centerpoint-det-vexkd": {"teacher": weights["fusion-det"]},
    }
    for name, origin in origins.items():
        trainer = make_trainer(params.run(name), town, tmp_path / name, **origin)
        row = trainer._step(next(trainer._epoch(0)))
        assert all(math.isfinite(value) for value in row.values())


def make_trainer(run, town, state, runtime=None, start=None, teacher=None):
    from vexkd.data.infos import load
    from vexkd.train import tasks
    from vexkd.train.seeding import seed_everything

    seed_everything(0)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process, several trainings of different precision
    task, images = tasks.build_task(run, start=start, teacher=teacher)
    paste = town / "paste" if run.paste else None
    dataset = tasks.training_set(run, images, root=town / "data", infos=load(town / "infos"), paste=paste, seed=0)
    accelerator = start_accelerator(run.train.precision, "cpu")
    return Trainer(
        task=task,
        dataset=dataset,
        run=run,
        seed=0,
        state=state,
        runtime=runtime or RuntimeOptions(),
        accelerator=accelerator,
    ).prepare()


def test_a_loss_that_is_not_finite_stops_the_run(settings, town, tmp_path):
    trainer = make_trainer(settings.run("centerpoint-det"), town, tmp_path / "state")
    with torch.no_grad():
        trainer.task.model.head.shared[0].weight.fill_(float("nan"))
    batches = next(trainer._epoch(0))
    with pytest.raises(NonFiniteError) as error:
        trainer._step(batches)
    message = str(error.value)
    assert "task.heatmap" in message
    assert "at step 0" in message
    assert batches[0].token[0] in message


def test_starting_from_a_part_lists_what_is_new(settings, tmp_path):
    pretrain, teacher = settings.run("lidar-pretrain"), settings.run("fusion-det")
    path = tmp_path / "weights.safetensors"
    checkpoint.save_weights(path, bev_model.build(pretrain), run=pretrain, inputs={}, record={})
    model = bev_model.build(teacher)
    assert checkpoint.start_from(model, path) == ["camera", "fusion"]
    stem = load_file(path)["lidar.stem.conv.conv.weight"]
    assert torch.equal(model.lidar.stem.conv.conv.weight, stem)
    student = bev_model.build(settings.run("centerpoint-det"))
    with pytest.raises(InputError, match="cannot start from these weights"):
        checkpoint.start_from(student, path)


def test_weights_of_another_model_or_other_settings_are_refused(settings, tmp_path):
    run = settings.run("centerpoint-det")
    path = tmp_path / "weights.safetensors"
    checkpoint.save_weights(path, bev_model.build(run), run=run, inputs={}, record={})
    model, found = checkpoint.load_model(path, expected=run)
    assert found == run
    with pytest.raises(InputError, match="those of run centerpoint-det, not of lidar-pretrain"):
        checkpoint.load_model(path, expected=settings.run("lidar-pretrain"))
    changed = from_values(
        {**run.training(), "train": {**run.training()["train"], "lr": 0.5}}, run.after_training(), "x"
    )
    with pytest.raises(InputError, match=r"other settings: train.lr \(.*, now 0.5\)"):
        checkpoint.load_model(path, expected=changed)
    with pytest.raises(InputError, match="do not fit the model"):
        checkpoint.load_strictly(bev_model.build(settings.run("lidar-pretrain")), checkpoint.read_tensors(path), "x")


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_cut_weights_are_refused(settings, tmp_path, keep):
    run = settings.run("centerpoint-det")
    path = tmp_path / "weights.safetensors"
    checkpoint.save_weights(path, bev_model.build(run), run=run, inputs={}, record={})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="weights.safetensors"):
        checkpoint.load_model(path)


def test_submission_is_in_the_global_frame():
    from vexkd import geometry
    from vexkd.batch import Detections

    matrix = geometry.rigid(
        [math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)], [100.0, 200.0, 1.0]
    )  # a quarter turn left
    found = Detections(
        boxes=torch.tensor([[2.0, 1.0, 0.5, 4.0, 2.0, 1.5, 0.0, 3.0, 0.0]] * 2),
        scores=torch.tensor([0.3, 0.9]),
        labels=torch.tensor([0, 9]),
    )
    entries = submission("t", found, matrix, limit=1)
    assert len(entries) == 1
    entry = entries[0]
    assert entry["detection_name"] == "traffic_cone"
    assert entry["attribute_name"] == ""
    assert entry["translation"] == pytest.approx([99.0, 202.0, 1.5])
    assert entry["size"] == [2.0, 4.0, 1.5]
    assert entry["velocity"] == pytest.approx([0.0, 3.0], abs=1e-6)
    assert entry["rotation"] == pytest.approx([math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)], abs=1e-5)


def test_a_size_that_rounds_to_nothing_is_written_as_scoring_accepts_it():
    from vexkd.batch import Detections

    box = torch.tensor([[2.0, 1.0, 0.5, 4e-5, 1e-7, 1.5, 0.0, 3.0, 0.0]])
    found = Detections(boxes=box, scores=torch.tensor([0.9]), labels=torch.tensor([9]))
    assert submission("t", found, torch.eye(4, dtype=torch.float64).numpy(), limit=1)[0]["size"] == [1e-4, 1e-4, 1.5]


def test_attributes_follow_the_speed():
    assert attribute("car", 1.0) == "vehicle.moving"
    assert attribute("bus", 0.1) == "vehicle.stopped"
    assert attribute("pedestrian", 0.1) == "pedestrian.standing"
    assert attribute("barrier", 5.0) == ""
