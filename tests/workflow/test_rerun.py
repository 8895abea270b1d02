"""What a change remakes, in Snakemake and in `dvc repro`, here and in a clone; and what can't be recorded."""

import os
import shutil

import pytest

from vexkd import seal, settings

RATE = "students.centerpoint-det.train.lr"


def touched_by_the_student(place) -> list[str]:
    """The student, the runs it is the student of, and what shows them."""
    params = settings.load(place.folder / "params.yaml")
    runs = [name for name, run in params.runs.items() if "centerpoint-det" in (name, run.student)]
    jobs = [f"{verb} {run} seed{seed}" for verb in ("train", "predict") for run in runs for seed in params.seeds]
    jobs += [f"evaluate {run}" for run in runs] + ["figure curves", "figure distillation", "page"]
    jobs += [f"figure birdseye-{run}" for run in runs]
    jobs += [f"table {name}" for name, rows in params.tables.items() if set(rows) & set(runs)]
    return sorted(jobs)


def assert_settled(place) -> None:
    """Neither tool finds anything to do."""
    assert "Nothing to be done" in place.snakemake()
    assert "up to date" in place.run("dvc", "status")
    assert not place.calls()


def test_a_second_call_does_nothing(sealed):
    assert_settled(sealed)
    assert "up to date" in sealed.run("dvc", "repro")
    assert not sealed.calls()


def test_snakemake_remakes_what_a_changed_student_touches(sealed):
    sealed.set(RATE, 0.5)
    sealed.snakemake()
    assert sealed.calls() == touched_by_the_student(sealed)
    sealed.run("make", "-o", ".venv/.made", "seal")
    assert_settled(sealed)


def test_dvc_remakes_what_a_changed_student_touches(sealed):
    sealed.set(RATE, 0.5)
    sealed.run("dvc", "repro", "-q")
    assert sealed.calls() == touched_by_the_student(sealed)
    assert_settled(sealed)
    changed = sealed.run("dvc", "metrics", "diff")
    assert "centerpoint-det/metrics.json" in changed
    assert "fusion-det/metrics.json" not in changed


def test_a_setting_of_inference_does_not_retrain(sealed):
    sealed.set("inference.max_boxes", 7)
    sealed.snakemake()
    calls = sealed.calls()
    assert not [call for call in calls if call.startswith("train")]
    assert not sealed.run("vexkd", "check", "--all")
    runs = settings.load(sealed.folder / "params.yaml").runs
    assert (
        sum(call.startswith("predict") for call in calls)
        == sum(call.startswith("evaluate") for call in calls)
        == len(runs)
    )


@pytest.mark.slow
def test_a_new_run_is_made_alone(sealed):
    taught = {"student": "centerpoint-det", "teacher": "fusion-det", "distill": {"mask": "none"}}
    sealed.set("distilled.centerpoint-det-nomask", taught)
    sealed.run("dvc", "repro", "-q")
    trained = [call for call in sealed.calls() if call.startswith(("train", "evaluate", "table"))]
    assert trained == ["evaluate centerpoint-det-nomask", "train centerpoint-det-nomask seed0"]
    assert_settled(sealed)


def test_a_published_value_touches_its_table_and_the_report_only(sealed):
    sealed.set("reported", {"centerpoint-det": {"mAP": 50.0, "source": "here"}})
    sealed.snakemake()
    params = settings.load(sealed.folder / "params.yaml")
    tables = [f"table {name}" for name, rows in params.tables.items() if "centerpoint-det" in rows]
    assert sealed.calls() == ["page", *sorted(tables)]


def test_stale_weights_are_not_recorded(sealed):
    sealed.set(RATE, 0.5)
    lock = (sealed.folder / "dvc.lock").read_text()
    message = sealed.run("make", "-o", ".venv/.made", "seal", fails=True)
    assert "centerpoint-det: models/centerpoint-det/seed0/weights.safetensors was made with other settings" in message
    assert ", now 0.5)" in message
    assert "lidar-pretrain" not in message
    assert (sealed.folder / "dvc.lock").read_text() == lock


def test_a_teacher_put_there_by_hand_is_not_recorded_and_its_student_is_trained_again(sealed):
    """Its time tells nothing; the hashes in the student's weights and in the predictions do."""
    file = sealed.folder / "models/fusion-det/seed0/weights.safetensors"
    times = file.stat()
    file.write_bytes(file.read_bytes() + b"0")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    message = sealed.run("make", "-o", ".venv/.made", "seal", fails=True)
    assert (
        "centerpoint-det-vexkd: models/centerpoint-det-vexkd/seed0/weights.safetensors was made from another" in message
    )
    sealed.snakemake()
    calls = [call for call in sealed.calls() if call.startswith(("train", "predict", "evaluate"))]
    runs = ["centerpoint-det-vexkd", "fusion-det"]
    assert calls == [
        *(f"evaluate {run}" for run in runs),
        *(f"predict {run} seed0" for run in runs),
        "train centerpoint-det-vexkd seed0",
    ]
    sealed.run("make", "-o", ".venv/.made", "seal")
    assert_settled(sealed)


def test_settings_that_came_without_weights_are_made(sealed):
    """As after `git pull` of settings that were never made, in a folder where Snakemake remembers nothing."""
    shutil.rmtree(sealed.folder / ".snakemake")
    assert not sealed.plan()
    sealed.set(RATE, 0.5)
    params = settings.load(sealed.folder / "params.yaml")
    settings.write_configs(params, sealed.folder / "results")
    os.utime(sealed.folder / "results/runs/centerpoint-det/config.yaml", (1, 1))
    os.utime(sealed.folder / "results/runs/centerpoint-det-vexkd/config.yaml", (1, 1))
    sealed.snakemake()
    assert sealed.calls() == touched_by_the_student(sealed)


def test_a_clone_pulls_and_has_nothing_to_do(finished, tmp_path):
    clone = finished.at(tmp_path / "clone")
    finished.run("git", "clone", "-q", str(finished.folder), str(clone.folder))
    assert clone.plan()["train"] == len(settings.load(clone.folder / "params.yaml").runs)
    clone.run("dvc", "pull", "-q")
    assert_settled(clone)
    assert not clone.run("git", "status", "--short")
    clone.set(RATE, 0.5)
    clone.run("dvc", "repro", "-q")
    assert clone.calls() == sorted([*touched_by_the_student(clone), "synthesize"])
    assert_settled(clone)


def test_an_edit_while_a_run_goes_on_reaches_none_of_its_jobs(sealed):
    """Nor does a look at the plan meanwhile; and DVC, which would read the edited file, is told of a failure."""
    sealed.set(RATE, 0.5)
    boxes = settings.load(sealed.folder / "params.yaml").run("centerpoint-det").inference.max_boxes
    sealed.set("inference.max_boxes", boxes - 1, "edited.yaml")
    sealed.environment["STAND_IN_MEANWHILE"] = "cp edited.yaml params.yaml && snakemake --profile local -n"
    message = sealed.run("python", "workflow/scripts/dvc_stage.py", "all", fails=True)
    del sealed.environment["STAND_IN_MEANWHILE"]
    assert "params.yaml changed while this ran" in message
    for run in ("centerpoint-det", "centerpoint-det-vexkd"):
        weights = seal.header(sealed.folder / f"models/{run}/seed0/weights.safetensors")
        assert '"lr": 0.5' in weights["settings"]
    assert f"max_boxes: {boxes}\n" in (sealed.folder / "results/runs/centerpoint-det/inference.yaml").read_text()
    planned = sealed.plan()
    assert planned["train"] == 0
    assert planned["predict"] == len(settings.load(sealed.folder / "params.yaml").runs)


@pytest.mark.slow
def test_a_failed_job_leaves_nothing_recorded(sealed):
    sealed.set(RATE, 0.5)
    sealed.environment["STAND_IN_MEANWHILE"] = "exit 3"
    lock = (sealed.folder / "dvc.lock").read_text()
    sealed.run("dvc", "repro", "-q", fails=True)
    assert (sealed.folder / "dvc.lock").read_text() == lock
    assert not (sealed.folder / "models/centerpoint-det/seed0/weights.safetensors").exists()
    assert (sealed.folder / "models/lidar-pretrain/seed0/weights.safetensors").exists()
