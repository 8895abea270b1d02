"""The plan goes by content: after `git switch`, in clones, with any file times, and for whatever a result was made from."""

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter

import pytest

from vexkd import seal, settings
from workflow.test_rerun import RATE

MADE = ("train", "predict", "evaluate", "paste", "infos", "maps", "doctor", "synthesize")
STUDENT = "models/centerpoint-det/seed0/weights.safetensors"
TEACHER = "teachers.fusion-det.data", {"balance": "cbgs"}


def planned(place) -> Counter[str]:
    """The jobs of a dry run that make something of data or runs."""
    return Counter({rule: count for rule, count in place.plan().items() if rule in MADE})


def shake(place) -> None:
    """Give every file an arbitrary time of the last day."""
    now, draw = time.time(), random.Random(0)
    for path in place.folder.rglob("*"):
        if path.is_file() and ".git" not in path.parts and ".dvc" not in path.parts:
            then = now - draw.uniform(0, 86_400)
            os.utime(path, (then, then))


def test_with_any_times_and_without_memory_there_is_nothing_to_do(sealed):
    shutil.rmtree(sealed.folder / ".snakemake")
    shake(sealed)
    assert not planned(sealed)


def test_with_any_times_and_without_memory_what_is_stale_is_planned_exactly(sealed):
    sealed.set(*TEACHER)
    shutil.rmtree(sealed.folder / ".snakemake")
    shake(sealed)
    assert planned(sealed) == {"train": 2, "predict": 2, "evaluate": 2}  # the teacher and its student
    out = sealed.snakemake("-n", "--", "results/runs/centerpoint-det/metrics.json")
    assert "Nothing to be done" in out  # what is stale elsewhere is no target


def test_after_git_switch_alone_the_weights_of_the_other_branch_are_stale(sealed):
    """`git switch` brings settings, not weights: a new row must not be taught by another branch's teacher."""
    sealed.run("git", "checkout", "-q", "-b", "other")
    sealed.set(*TEACHER)
    sealed.run("dvc", "repro", "-q")
    sealed.commit()
    sealed.calls()
    sealed.run("git", "checkout", "-q", "-")
    taught = {"student": "centerpoint-det", "teacher": "fusion-det", "distill": {"mask": "none"}}
    sealed.set("distilled.centerpoint-det-nomask", taught)
    assert planned(sealed) == {"train": 3, "predict": 3, "evaluate": 3}
    sealed.run("dvc", "checkout", "-q")
    assert planned(sealed) == {"train": 1, "predict": 1, "evaluate": 1}


def test_a_training_refuses_a_teacher_of_other_settings(sealed):
    """Whoever calls it."""
    sealed.set(*TEACHER)
    sealed.plan()
    out = sealed.run("vexkd", "train", "centerpoint-det-vexkd", "--seed", "0", fails=True)
    refusal = (
        "weights.safetensors: centerpoint-det-vexkd: teacher fusion-det: made with other settings than those of now"
    )
    assert refusal in out


def test_another_split_to_score_on_asks_for_no_training(sealed):
    sealed.set("data.val_split", "mini_train")
    assert planned(sealed) == {"predict": 5, "evaluate": 5}
    sealed.snakemake()
    assert not sealed.run("vexkd", "check", "--all")


@pytest.mark.parametrize("split", ["own_train", "own_val"])
def test_what_a_split_held_is_compared(sealed, split):
    """Other scenes in the split to score on ask for no training, in that to learn from for everything."""
    file = sealed.folder / "data/town/v1.0-mini/splits.json"
    splits = {"own_train": ["scene-0061", "scene-0553"], "own_val": ["scene-0103", "scene-0916"]}
    file.write_text(json.dumps(splits))
    sealed.set("data.train_split", "own_train")
    sealed.set("data.val_split", "own_val")
    sealed.snakemake()
    assert not planned(sealed)
    sealed.calls()
    file.write_text(json.dumps({**splits, split: splits[split][:1]}))
    assert "splits.json than the present one" in sealed.run("vexkd", "check", fails=True)
    scored = {"predict": 5, "evaluate": 5}
    assert planned(sealed) == (scored if split == "own_val" else {"paste": 1, "train": 5, **scored})
    sealed.snakemake()
    assert not sealed.run("vexkd", "check", "--all")
    assert not planned(sealed)


def test_a_look_at_more_files_outdates_nothing(sealed):
    """A split that no run has read yet is looked at by doctor; infos and trainings stay."""
    file = sealed.folder / "data/town/v1.0-mini/splits.json"
    file.write_text(json.dumps({"third": ["scene-0103"]}))
    sealed.set("data.val_split", "third")
    assert planned(sealed) == {"doctor": 1, "predict": 5, "evaluate": 5}
    sealed.snakemake()
    assert not planned(sealed)


def test_a_paste_database_of_another_split_is_made_again(sealed):
    """As `vexkd paste` by hand leaves it with other settings, whatever its time."""
    before = (sealed.folder / "params.yaml").read_text()
    sealed.set("data.train_split", "mini_val")
    sealed.run("vexkd", "paste")
    (sealed.folder / "params.yaml").write_text(before)
    sealed.calls()
    assert "was made from another paste" in sealed.run("vexkd", "check", fails=True)
    assert planned(sealed)["paste"] == 1


def test_predictions_of_other_weights_are_made_again(sealed):
    """As after `cp` of another run's predictions."""
    own, other = (sealed.folder / f"models/{run}/seed0/predictions.json" for run in ("centerpoint-det", "fusion-det"))
    meta = {**json.loads(own.read_text()), "meta": json.loads(own.read_text())["meta"]}
    meta["meta"]["made_from"] = json.loads(other.read_text())["meta"]["made_from"]
    own.write_text(json.dumps(meta))
    os.utime(own, (1, 1))
    assert planned(sealed) == {"predict": 1, "evaluate": 1}


def test_metrics_from_another_commit_are_made_again(sealed):
    """As after `git checkout COMMIT -- results/runs`."""
    file = sealed.folder / "results/runs/centerpoint-det/metrics.json"
    file.write_text(json.dumps({"NDS": 0.9}))
    assert "is not the one that was made" in sealed.run("vexkd", "check", fails=True)
    assert planned(sealed) == {"evaluate": 1}


def test_the_root_by_another_path_outdates_nothing(sealed):
    sealed.set("root", str(sealed.folder / "data/town"))
    assert not planned(sealed)


@pytest.mark.parametrize("how", ["moved", "linked", "slash"])
def test_moved_data_outdate_nothing(sealed, how):
    if how == "moved":
        (sealed.folder / "data/town").rename(sealed.folder / "elsewhere")
        sealed.set("root", "elsewhere")
    elif how == "linked":
        (sealed.folder / "link").symlink_to("data/town")
        sealed.set("root", "link")
    else:
        sealed.set("root", "data/town/")
    sealed.snakemake()
    assert not [call for call in sealed.calls() if not call.startswith(("figure", "page"))]


def test_other_data_at_the_same_place_are_seen(sealed):
    table = next((sealed.folder / "data/town").glob("v1.0-*/scene.json"))
    rows = json.loads(table.read_text())
    table.write_text(json.dumps([row | {"description": "edited"} for row in rows]))
    jobs = planned(sealed)
    assert {"doctor", "infos", "train"} <= jobs.keys()


def test_a_switch_while_jobs_wait_reaches_none_of_them(sealed):
    """`results/runs/*/config.yaml` are in git: jobs read the copy of their call, not these."""
    before = json.loads(seal.header(sealed.folder / STUDENT)["settings"])["train"]["lr"]
    sealed.set(RATE, 0.5)
    sealed.set("distilled.centerpoint-det-vexkd.train.lr", 0.25)
    sealed.environment["STAND_IN_MEANWHILE"] = "git stash -q; git checkout -q HEAD -- results params.yaml"
    sealed.snakemake("--", "models/centerpoint-det-vexkd/seed0/weights.safetensors", STUDENT)
    del sealed.environment["STAND_IN_MEANWHILE"]
    made = [
        json.loads(seal.header(sealed.folder / f"models/{run}/seed0/weights.safetensors")["settings"])["train"]["lr"]
        for run in ("centerpoint-det", "centerpoint-det-vexkd")
    ]
    assert made == [0.5, 0.25]
    assert settings.load(sealed.folder / "params.yaml").run("centerpoint-det").train.lr == before
    assert planned(sealed)["train"] == 2


def test_a_killed_call_leaves_nothing_that_lives(sealed):
    """Its lock files stay; a call without lock then works with its own settings."""
    sealed.set(RATE, 0.5)
    sealed.environment |= {"STAND_IN_STEPS": "100", "STAND_IN_STEP_SECONDS": "0.1"}
    command = ["snakemake", "--profile", "local", "--", STUDENT]
    first = subprocess.Popen(command, cwd=sealed.folder, env=sealed.environment, stdout=subprocess.DEVNULL)
    steps = sealed.folder.with_name(f"{sealed.folder.name}.steps")
    while not list(sealed.folder.parent.glob("*.steps")):
        time.sleep(0.2)
    second = sealed.snakemake("--", STUDENT, fails=True)
    assert "another call of Snakemake works in this folder" in second
    first.kill()
    first.wait()
    steps.unlink(missing_ok=True)
    sealed.environment["STAND_IN_STEPS"] = "0"
    sealed.set(RATE, 0.25)
    sealed.snakemake("--nolock", "--", STUDENT)
    assert json.loads(seal.header(sealed.folder / STUDENT)["settings"])["train"]["lr"] == 0.25


def test_a_change_in_the_file_that_settings_extend_is_planned(small):
    """Unless the experiment's own file says otherwise."""
    place, target = small(), "models/lidar-pretrain/seed0/weights.safetensors"
    (place.folder / "other").mkdir()
    own = {"extends": "../params.yaml", "train": {"epochs": 2}}
    (place.folder / "other" / "params.yaml").write_text(settings.dump(own))
    place.snakemake("--directory", "other", "--", target)
    place.set("train.epochs", 9)
    assert not place.plan(target, folder="other")
    place.set("train.weight_decay", 0.5)
    assert place.plan(target, folder="other") == {"train": 1}
