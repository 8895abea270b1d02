"""The one merge: what a row inherits, what is left out of it, and how a slip is refused."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vexkd import settings
from vexkd.errors import InputError

ROOT = Path(__file__).parents[1]
RAW = settings.read(ROOT / "demo" / "params.yaml")


@pytest.fixture
def raw() -> dict:
    return copy.deepcopy(RAW)


def refusal(raw: dict) -> str:
    with pytest.raises(InputError) as error:
        settings.parse(raw)
    return str(error.value)


@pytest.mark.parametrize("name", ["params.yaml", "demo/params.yaml"])
def test_both_files_are_whole(name):
    loaded = settings.load(ROOT / name)
    assert {"pretrained", "teachers", "students", "distilled"} == {run.kind for run in loaded.runs.values()}
    assert all(run.name == key for key, run in loaded.runs.items())


def test_a_row_says_only_what_differs(raw):
    raw["students"]["centerpoint-det"]["train"] = {"lr": 0.5, "schedule": {"peak": 3.0}}
    run = settings.parse(raw).run("centerpoint-det")
    assert run.train.lr == 0.5
    assert run.train.schedule.peak == 3.0
    assert run.train.epochs == raw["train"]["epochs"]
    assert run.train.schedule.rise == raw["train"]["schedule"]["rise"]


def test_a_distilled_run_inherits_its_student_and_overrides_it(raw):
    raw["students"]["centerpoint-det"]["train"] = {"lr": 0.5, "clip": 7.0}
    raw["distilled"]["centerpoint-det-vexkd"]["train"] = {"lr": 0.25}
    run = settings.parse(raw).run("centerpoint-det-vexkd")
    assert run.train.lr == 0.25
    assert run.train.clip == 7.0
    assert run.head == raw["students"]["centerpoint-det"]["head"]
    assert run.distill is not None
    assert run.distill.lambda_ == raw["distill"]["lambda"]


def test_lists_and_counts_are_replaced_whole(raw):
    raw["students"]["centerpoint-det"]["paste"] = {"counts": {"car": 1}}
    raw["students"]["centerpoint-det"]["bev_augment"] = {"scale": [1.0, 1.0]}
    run = settings.parse(raw).run("centerpoint-det")
    assert run.paste.counts == {"car": 1}
    assert run.paste.min_points == raw["paste"]["min_points"]
    assert run.bev_augment.scale == [1.0, 1.0]


def test_blocks_that_cannot_matter_are_left_out(raw):
    loaded = settings.parse(raw)
    student, teacher = loaded.run("centerpoint-det"), loaded.run("fusion-det")
    assert student.camera is None
    assert student.mgfm is None
    assert student.transfusion is None
    assert student.distill is None
    assert student.inference.transfusion is None
    assert teacher.paste is None
    assert teacher.conv_fuser is None
    assert teacher.centerpoint is None
    assert loaded.run("centerpoint-det-vexkd").paste is None


def test_a_change_reaches_the_runs_that_use_it_and_no_other(raw):
    before = settings.parse(raw)
    raw["mgfm"]["blocks"] += 1
    after = settings.parse(raw)
    changed = {name for name in before.runs if before.run(name).training() != after.run(name).training()}
    assert changed == {name for name, run in before.runs.items() if run.fusion == "mgfm"}


def test_inference_is_apart_from_training(raw):
    before = settings.parse(raw).run("centerpoint-det")
    raw["inference"]["centerpoint"]["score"] = 0.3
    after = settings.parse(raw).run("centerpoint-det")
    assert before.training() == after.training()
    assert before.after_training() != after.after_training()
    assert "inference" not in after.training()


def test_an_unknown_key_is_refused_with_its_path_and_the_nearest(raw):
    raw["train"]["epoch"] = 3
    message = refusal(raw)
    assert "train.epoch: there is no such setting" in message
    assert "'epochs'" in message


def test_an_unknown_block_is_refused(raw):
    raw["tran"] = {}
    assert "params.yaml: tran: there is no such setting; the nearest known one is 'train'" in refusal(raw)


def test_a_depth_net_that_reads_lidar_is_refused_without_it(raw):
    raw["students"]["blind"] = {"task": "detection", "sensors": ["camera"], "head": "centerpoint"}
    raw["camera"]["view"]["depth_net"] = "lidar"
    assert "students.blind: camera.view.depth_net: lidar reads LiDAR points" in refusal(raw)


def test_an_unknown_key_of_a_row_is_refused(raw):
    raw["students"]["centerpoint-det"]["heed"] = "centerpoint"
    message = refusal(raw)
    assert "students.centerpoint-det.heed" in message
    assert "'head'" in message


def test_a_missing_setting_is_named(raw):
    del raw["train"]["clip"]
    assert "train.clip: the setting is missing" in refusal(raw)


def test_a_number_that_yaml_reads_as_text_is_explained(raw):
    raw["train"]["lr"] = yaml.safe_load("1e-4")
    message = refusal(raw)
    assert "train.lr: '1e-4' is text to YAML" in message
    assert "1.0e-4" in message


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 2.5), ("epochs", "2"), ("epochs", 0), ("sync_bn", 1), ("precision", "fp8")]
)
def test_a_wrong_type_is_not_converted(raw, key, value):
    raw["train"][key] = value
    assert f"train.{key}" in refusal(raw)


def test_names_that_do_not_exist_are_refused(raw):
    raw["distilled"]["centerpoint-det-vexkd"]["teacher"] = "fusion-dat"
    message = refusal(raw)
    assert "distilled.centerpoint-det-vexkd.teacher" in message
    assert "'fusion-det'" in message


def test_a_teacher_must_be_a_teacher(raw):
    raw["distilled"]["centerpoint-det-vexkd"]["teacher"] = "lidar-pretrain"
    assert "there is no run 'lidar-pretrain' in teachers" in refusal(raw)


def test_a_table_lists_runs(raw):
    raw["tables"]["main"] = ["centerpoint-dat"]
    message = refusal(raw)
    assert "tables.main" in message
    assert "'centerpoint-det'" in message


def test_an_unknown_run_or_table_is_refused():
    loaded = settings.parse(RAW)
    with pytest.raises(InputError, match="no run named 'fusion'"):
        loaded.run("fusion")
    with pytest.raises(InputError, match="no table named 'mian'; the nearest known one is 'main'"):
        loaded.table("mian")


def test_a_name_is_given_once(raw):
    raw["teachers"]["centerpoint-det"] = raw["teachers"]["fusion-det"]
    assert "students.centerpoint-det: the name is taken by teachers.centerpoint-det" in refusal(raw)


@pytest.mark.parametrize("name", ["a.b", "A", "-a", "a b", "a/b", ""])
def test_a_name_fits_a_folder_and_a_wildcard(raw, name):
    raw["students"][name] = raw["students"]["centerpoint-det"]
    assert "a run's name has small letters" in refusal(raw)


def test_a_distilled_run_names_both(raw):
    del raw["distilled"]["centerpoint-det-vexkd"]["teacher"]
    assert "names its student and its teacher" in refusal(raw)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="there is no such settings file"):
        settings.load(tmp_path / "params.yaml")


def test_a_file_that_is_no_yaml_is_said(tmp_path):
    (tmp_path / "params.yaml").write_text("a: [1\nb: }")
    with pytest.raises(InputError, match="this is not YAML"):
        settings.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("scale", ["params.yaml", "demo/params.yaml"])
def test_written_settings_are_read_back(tmp_path, scale):
    loaded = settings.load(ROOT / scale)
    settings.write_configs(loaded, tmp_path)
    for name, run in loaded.runs.items():
        folder = tmp_path / "runs" / name
        assert (
            settings.from_values(
                *(yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("config", "inference")), "files"
            )
            == run
        )


def test_equal_settings_are_not_written_again(tmp_path, raw):
    settings.write_configs(settings.parse(raw), tmp_path)
    files = sorted(tmp_path.rglob("*.yaml"))
    first = [file.stat().st_mtime_ns for file in files]
    settings.write_configs(settings.parse(raw), tmp_path)
    assert [file.stat().st_mtime_ns for file in files] == first
    raw["students"]["centerpoint-det"]["train"] = {"lr": 0.5}
    settings.write_configs(settings.parse(raw), tmp_path)
    changed = {file.parent.name for file, time in zip(files, first, strict=True) if file.stat().st_mtime_ns != time}
    taught = {name for name, row in raw["distilled"].items() if row["student"] == "centerpoint-det"}
    assert changed == {"centerpoint-det", *taught}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_a_number_survives_being_written(value):
    back = yaml.safe_load(settings.dump({"a": value, "b": [value]}))
    assert back == {"a": value, "b": [value]}
    assert type(back["a"]) is type(value)


def test_a_key_given_twice_is_refused(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("  lr: 1.0e-4\n", "  lr: 1.0e-4\n  lr: 1.0e-3\n")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match="the key lr is given twice"):
        settings.load(tmp_path / "params.yaml")


def test_a_file_extends_others(tmp_path, raw):
    """Blocks merge key by key, runs, tables and figures are replaced by name, and the last word is the file's own."""
    (tmp_path / "base.yaml").write_text(settings.dump(raw))
    (tmp_path / "small").mkdir()
    alike = {"task": "detection", "sensors": ["lidar"], "head": "centerpoint"}
    over = {"seeds": [7], "train": {"lr": 0.5}, "students": {"other": alike, "centerpoint-det": alike}, "reported": {}}
    (tmp_path / "over.yaml").write_text(settings.dump(over))
    own = {"extends": ["../base.yaml", "../over.yaml"], "seeds": [8], "tables": {"extra": ["other"]}}
    (tmp_path / "small" / "params.yaml").write_text(settings.dump(own))
    loaded = settings.load(tmp_path / "small" / "params.yaml")
    assert loaded.seeds == [8]
    assert set(loaded.runs) == {*settings.parse(raw).runs, "other"}
    assert loaded.run("other").train.lr == 0.5
    assert loaded.run("other").train.clip == raw["train"]["clip"]
    assert (
        loaded.run("centerpoint-det").lidar.max_voxels_train == raw["lidar"]["max_voxels_train"]
    )  # not the base's row
    assert set(loaded.tables) == {*raw["tables"], "extra"}
    assert settings.parse(loaded.raw).runs == loaded.runs


def test_a_part_of_another_kind_replaces_that_of_the_file_below(tmp_path, raw):
    (tmp_path / "base.yaml").write_text(settings.dump(raw))
    swin = {"kind": "swin", "widths": [8, 16], "depths": [1, 1], "heads": [1, 2], "outputs": [0, 1]}
    own = {"extends": "base.yaml", "camera": {"backbone": swin, "neck": {"channels": 7}}}
    (tmp_path / "params.yaml").write_text(settings.dump(own))
    camera = settings.read(tmp_path / "params.yaml")["camera"]
    assert camera["backbone"] == swin
    assert camera["neck"] == {**raw["camera"]["neck"], "channels": 7}


def test_what_a_file_leaves_out_of_the_one_below(tmp_path, raw):
    (tmp_path / "base.yaml").write_text(settings.dump(raw))
    own = {"extends": {"file": "base.yaml", "without": ["tables", "figures", "distilled.centerpoint-det-maskd"]}}
    (tmp_path / "params.yaml").write_text(settings.dump(own))
    loaded = settings.load(tmp_path / "params.yaml")
    assert not loaded.tables
    assert list(loaded.runs) == [name for name in settings.parse(raw).runs if name != "centerpoint-det-maskd"]


@pytest.mark.parametrize(
    ("extends", "reason"),
    [
        ({"file": "base.yaml", "without": ["tabels"]}, "has no tabels; the nearest known one is 'tables'"),
        ({"file": "base.yaml", "without": ["students.nobody"]}, "has no students.nobody"),
        ({"file": "base.yaml", "without": "tables"}, "must name settings files"),
        ({"files": ["base.yaml"]}, "must name settings files"),
        ([["base.yaml"]], "must name settings files"),
    ],
)
def test_a_slip_in_extends_is_refused(tmp_path, raw, extends, reason):
    (tmp_path / "base.yaml").write_text(settings.dump(raw))
    (tmp_path / "params.yaml").write_text(settings.dump({"extends": extends}))
    with pytest.raises(InputError, match=f"params.yaml: extends.*{reason}"):
        settings.load(tmp_path / "params.yaml")


def test_the_demo_says_only_what_differs():
    """And a change in the file below reaches every run of the demo that uses it, unless the demo says otherwise."""
    paper, demo = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", "demo/params.yaml"))
    blocks = {key: value for key, value in demo.items() if isinstance(paper.get(key), dict) and key not in APART}
    assert {"bev", "train", "camera"} < set(blocks)
    for name, block in blocks.items():
        repeated = [path for path, value in leaves(block, name) if value == at(paper, path)]
        assert not repeated


APART = {*settings.KINDS, "tables", "figures"}


def leaves(block: dict, path: str):
    for key, value in block.items():
        if not isinstance(value, dict):
            yield f"{path}.{key}", value
        elif "kind" not in value:  # else a part of another kind, which is replaced as a whole
            yield from leaves(value, f"{path}.{key}")


def at(values: dict, path: str):
    for key in path.split("."):
        values = values.get(key, {})
    return values


def test_extending_beside_dvc_is_refused(tmp_path, raw):
    """DVC would say up to date after a change in the lower file."""
    (tmp_path / "base.yaml").write_text(settings.dump(raw))
    for name in ("params.yaml", "other.yaml"):
        (tmp_path / name).write_text("extends: [base.yaml]\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(
        InputError, match=r"params\.yaml: extends: DVC reads this file alone.*write their settings into it"
    ):
        settings.load(tmp_path / "params.yaml")
    assert settings.load(tmp_path / "other.yaml").runs  # none that DVC reads


def test_extending_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("extends: [nowhere.yaml]\n")
    with pytest.raises(InputError, match="extends: there is no file"):
        settings.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("names", [["params.yaml"], ["params.yaml", "base.yaml"]], ids=["itself", "one another"])
def test_files_that_extend_themselves_are_refused(tmp_path, names):
    for name, below in zip(names, [*names[1:], names[0]], strict=True):
        (tmp_path / name).write_text(f"extends: [{below}]\n")
    with pytest.raises(InputError, match=r"params\.yaml: extends: the file extends itself"):
        settings.load(tmp_path / "params.yaml")


def test_a_key_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("? [seeds]\n: [0]\n")
    with pytest.raises(InputError, match="a key is not a plain word"):
        settings.load(tmp_path / "params.yaml")


def test_more_sweeps_than_infos_list_are_refused(raw):
    raw["data"] = raw["data"] | {"sweeps": 11}
    with pytest.raises(InputError, match=r"data\.sweeps: 11 does not fit"):
        settings.parse(raw)


def test_every_row_and_table_of_the_paper_stands_at_laptop_scale_too():
    paper, laptop = settings.load(ROOT / "params.yaml"), settings.load(ROOT / "demo/full/params.yaml")
    assert set(laptop.runs) >= set(paper.runs)  # a user may add rows to the demo alone
    assert laptop.tables == {**laptop.tables, **paper.tables}
    assert {**laptop.figures, "blocks": None} == {**paper.figures, "blocks": None}
    for params in (paper, laptop):  # the laptop's default is one block, the paper's three
        blocks = [params.run(name) for name in params.figures["blocks"]]
        assert [run.distill.mask_blocks for run in blocks] == [1, 2, 3, 4, 5, 6]
    assert all(run.data.version == "v1.0-mini" and run.train.batch <= 4 for run in laptop.runs.values())
    for name, run in paper.runs.items():
        own = laptop.run(name)
        assert (own.task, own.sensors, own.head, own.student, own.teacher) == (
            run.task, run.sensors, run.head, run.student, run.teacher,
        )  # fmt: skip
        if run.distill is not None:
            names = ("method", "mask", "loss", "levels", "coupling", "power")
            assert [getattr(own.distill, n) for n in names] == [getattr(run.distill, n) for n in names]


@pytest.mark.parametrize("file", ["params.yaml", "demo/full/params.yaml"])
def test_models_start_from_weights_of_their_shape(file):
    """What a teacher takes over from pretraining has the shapes it needs, without building either on a device."""
    import torch

    from vexkd.models import bev_model

    loaded = settings.load(ROOT / file)
    started = [run for run in loaded.runs.values() if run.start]
    assert started
    with torch.device("meta"):
        for run in started:
            before, after = bev_model.build(loaded.run(run.start)).state_dict(), bev_model.build(run).state_dict()
            taken = {k: v.shape for k, v in before.items() if not k.startswith("head.") or run.task == "detection"}
            assert {k: after[k].shape for k in taken} == taken, run.name
