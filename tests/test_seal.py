"""What may not be recorded after a run, because params.yaml as it is would not make it."""

import copy
import json
from pathlib import Path

import pytest

from vexkd import provenance, seal, settings
from vexkd.errors import InputError
from vexkd.experiment import HERE

RAW = settings.read(Path(__file__).parents[1] / "demo" / "params.yaml")
RUNS = list(settings.parse(RAW).runs)


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml and everything made as it asks."""
    monkeypatch.chdir(tmp_path)
    save(RAW)
    loaded = settings.load()
    for name in ("infos/samples.parquet", "infos/boxes.parquet", "paste/index.parquet", "maps/index.parquet"):
        provenance.write_text(Path("artifacts") / name, name)
    for run in sorted(loaded.runs.values(), key=lambda run: (bool(run.teacher), bool(run.start))):
        for seed in loaded.seeds:
            make(run, seed)
    return tmp_path


def save(raw: dict) -> None:
    Path("params.yaml").write_text(settings.dump(raw))


def make(run: settings.Run, seed: int) -> None:
    """Files as training, prediction and evaluation leave them."""
    file = HERE.training(run.name, seed).weights
    hashes = {name: seal.content_digest(path) for name, path in seal.inputs(run, seed).items()}
    write_weights(file, {"format": seal.FORMAT, "settings": json.dumps(run.training()), "inputs": json.dumps(hashes)})
    predictions = HERE.training(run.name, seed).predictions(run.task)
    if predictions.suffix == ".safetensors":
        write_weights(predictions, {"vexkd": json.dumps({"inference": run.after_training()})})
    else:
        meta = {"use_lidar": True, "inference": run.after_training()}
        predictions.write_text(json.dumps({"meta": meta, "results": {}}))
    made = {
        "predictions": {str(seed): provenance.file_digest(predictions)},
        "weights": {str(seed): {"weights.safetensors": provenance.file_digest(file)}},
    }
    provenance.write_json(Path("results/runs") / run.name / "provenance.json", {"run": run.name, "evaluation": made})


def write_weights(file: Path, metadata: dict[str, str]) -> None:
    content = json.dumps({"__metadata__": metadata}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(content).to_bytes(8, "little") + content)


def checked(*names: str) -> list[str]:
    return seal.check(settings.load("params.yaml"), names=names or None)


def changed() -> dict:
    """The settings with another learning rate for one student."""
    raw = copy.deepcopy(RAW)
    raw["students"]["centerpoint-det"]["train"] = {"lr": 0.5}
    return raw


def test_what_was_made_as_asked_is_recorded(experiment):
    assert checked() == []


def test_other_settings_are_named_with_both_values(experiment):
    save(changed())
    problems = checked()
    taught = [name for name, row in RAW["distilled"].items() if row["student"] == "centerpoint-det"]
    assert len(problems) == 1 + len(taught)
    lr = RAW["train"]["lr"]
    weights = HERE.training("centerpoint-det", 0).weights
    assert problems[0].startswith(f"centerpoint-det: {weights} was made with other settings")
    assert f"train.lr ({lr}, now 0.5)" in problems[0]
    assert problems[1].startswith(f"{taught[0]}: ")
    assert checked("fusion-det") == []


def test_a_student_of_another_teacher_is_named(experiment):
    teacher = settings.parse(RAW).run("fusion-det")
    write_weights(
        HERE.training("fusion-det", 0).weights,
        {
            "format": seal.FORMAT,
            "settings": json.dumps(teacher.training()),
            "inputs": json.dumps({k: seal.content_digest(v) for k, v in seal.inputs(teacher, 0).items()}),
            "more": "trained again",
        },
    )
    problems = checked("centerpoint-det-vexkd")
    assert len(problems) == 1
    assert "was made from another teacher than models/fusion-det/seed0/weights.safetensors" in problems[0]
    assert "results/runs/fusion-det was not made from models/fusion-det" in checked("fusion-det")[0]


def test_other_infos_outdate_every_run(experiment):
    Path("artifacts/infos/boxes.parquet").write_text("others")
    problems = checked()
    assert len(problems) == len(RUNS)
    assert all("another infos than artifacts/infos" in problem for problem in problems)


def test_weights_that_do_not_record_an_input_are_refused(experiment):
    run = settings.parse(RAW).run("centerpoint-det")
    metadata = {"format": seal.FORMAT, "settings": json.dumps(run.training()), "inputs": "{}"}
    write_weights(HERE.training(run.name, 0).weights, metadata)
    assert "does not record the infos" in checked("centerpoint-det")[0]


def test_predictions_of_other_thresholds_are_named(experiment):
    raw = copy.deepcopy(RAW)
    raw["inference"]["max_boxes"] = 7
    save(raw)
    problems = checked("centerpoint-det")
    assert len(problems) == 1
    assert f"max_boxes ({RAW['inference']['max_boxes']}, now 7)" in problems[0]
    assert "predict it again" in problems[0]


def test_predictions_that_record_nothing_are_refused(experiment):
    Path("models/fusion-det/seed0/predictions.json").write_text('{"meta": {}, "results": {}}')
    assert "does not record the settings it was made with" in checked("fusion-det")[0]


def test_metrics_of_other_predictions_are_named(experiment):
    predictions = Path("models/fusion-det/seed0/predictions.json")
    predictions.write_text(predictions.read_text() + " ")
    assert f"results/runs/fusion-det was not made from {predictions}" in checked("fusion-det")[0]


def test_missing_and_broken_weights_are_named(experiment):
    file = HERE.training("fusion-det", 0).weights
    file.write_bytes(file.read_bytes()[:40])
    assert "not a whole safetensors file" in checked("fusion-det")[0]
    file.unlink()
    assert "there are no such weights" in checked("fusion-det")[0]


def test_weights_of_another_maker_are_refused(experiment):
    file = HERE.training("fusion-det", 0).weights
    write_weights(file, {"format": "pt"})
    with pytest.raises(InputError, match="vexkd-weights-1"):
        seal.header(file)


def test_an_unknown_run_is_refused(experiment):
    with pytest.raises(InputError, match="no run named 'fusion'"):
        checked("fusion")


def test_the_runs_share_one_preparation(experiment):
    raw = copy.deepcopy(RAW)
    raw["students"]["centerpoint-det"]["data"] = {"version": "v1.0-test"}
    save(raw)
    with pytest.raises(InputError, match=r"data\.version"):
        seal.shared_settings(settings.load())
    raw["students"]["centerpoint-det"] = {**RAW["students"]["centerpoint-det"], "paste": {"min_points": 99}}
    save(raw)
    with pytest.raises(InputError, match=r"paste\.min_points"):
        seal.shared_settings(settings.load())


def test_a_score_on_another_split_is_no_matter_of_training(experiment):
    raw = copy.deepcopy(RAW)
    raw["data"]["val_split"] = "mini_train"
    save(raw)
    problems = checked()
    assert problems
    assert all("predict it again" in problem or "evaluate" in problem for problem in problems)
    assert 'val_split ("mini_val", now "mini_train")' in problems[0]


def test_weights_of_before_with_the_split_to_score_on_are_accepted(experiment):
    """Up to version 0.1 it stood among the training settings, and predictions did not name it."""
    run = settings.load().run("centerpoint-det")
    file = HERE.training(run.name, 0).weights
    metadata = seal.header(file)
    before = run.training()
    before["data"]["val_split"] = run.data.val_split
    write_weights(file, {**metadata, "settings": json.dumps(before)})
    predictions = HERE.training(run.name, 0).predictions(run.task)
    meta = {"inference": {k: v for k, v in run.after_training().items() if k != "val_split"}}
    predictions.write_text(json.dumps({"meta": meta, "results": {}}))
    assert [problem for problem in checked(run.name) if "evaluate" not in problem] == []
    raw = copy.deepcopy(RAW)
    raw["data"]["val_split"] = "mini_train"
    save(raw)
    assert [problem for problem in checked(run.name) if "predict it again" in problem]
    assert not [problem for problem in checked(run.name) if "train it again" in problem]


def test_weights_of_another_seed_are_named(experiment):
    file = HERE.training("centerpoint-det", 0).weights
    write_weights(file, {**seal.header(file), "provenance": json.dumps({"seed": 3})})
    assert "was made with seed 3; train it again." in checked("centerpoint-det")[0]


@pytest.mark.parametrize("role", ["teacher", "start"])
def test_a_training_refuses_weights_of_other_settings_seed_or_run(experiment, capsys, role):
    loaded = settings.load()
    run = loaded.run({"teacher": "centerpoint-det-vexkd", "start": "fusion-det"}[role])
    name = getattr(run, role)
    file, runs = HERE.training(name, 0).weights, loaded.runs
    given = {"start": None, "teacher": None, role: file}
    seal.refuse_other_settings(run, {}, 0, **given)
    assert "not compared with settings" in capsys.readouterr().out
    seal.refuse_other_settings(run, runs, 0, **given)
    metadata = seal.header(file)
    write_weights(file, {**metadata, "provenance": json.dumps({"seed": 0})})
    with pytest.raises(InputError, match=f"{role} {name}: made with seed 0, not 1; train {name} again"):
        seal.refuse_other_settings(run, runs, 1, **given)
    with pytest.raises(InputError, match="these are the weights of centerpoint-det; pass those of"):
        seal.refuse_other_settings(run, runs, 0, **{**given, role: HERE.training("centerpoint-det", 0).weights})
    raw = copy.deepcopy(RAW)
    raw["train"]["clip"] = 77.0
    with pytest.raises(InputError, match=rf"{file}: {run.name}: {role} {name}: made with other settings .*train\.clip"):
        seal.refuse_other_settings(run, settings.parse(raw).runs, 0, **given)


def test_predictions_of_other_weights_are_named(experiment):
    run = settings.load().run("centerpoint-det")
    predictions = HERE.training(run.name, 0).predictions(run.task)
    meta = {"inference": run.after_training(), "made_from": {"weights": "0"}}
    predictions.write_text(json.dumps({"meta": meta, "results": {}}))
    assert "was made from other weights than models/centerpoint-det/seed0" in checked(run.name)[0]


@pytest.mark.parametrize("change", ["seeds", "split", "file"])
def test_metrics_of_other_seeds_splits_or_files_are_named(experiment, change):
    file = Path("results/runs/centerpoint-det/provenance.json")
    record = json.loads(file.read_text())
    if change == "seeds":
        record["evaluation"]["predictions"]["7"] = "0"
    elif change == "split":
        record["evaluation"]["dataset"] = {"split": "mini_train"}
    else:
        record["evaluation"]["files"] = {"metrics.json": "0"}
        file.with_name("metrics.json").write_text("{}")
    file.write_text(json.dumps(record))
    sentence = {"seeds": "was made from seeds 0, 7, not 0", "split": "was scored with data.val_split mini_train"}
    assert sentence.get(change, "metrics.json is not the one that was made with") in checked("centerpoint-det")[0]


def test_differences_name_the_paths():
    made, asked = {"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2]}, "e": None}
    assert seal.differences(made, asked) == ["b.c ([1], now [2])", "b.d (2, now null)"]
    assert seal.differences(made, made) == []
