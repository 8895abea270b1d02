"""What settings ask for is held against what the data give before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_data_tiny import VERSION, write

from vexkd.data import demands, infos_build
from vexkd.data import infos as info_tools
from vexkd.errors import InputError

RUN = "centerpoint-det"


@pytest.fixture
def root(tmp_path) -> Path:
    return write(tmp_path / "set")


def change(root: Path, table: str, **values: Any) -> None:
    """Change columns of all rows of a table."""
    path = root / VERSION / f"{table}.json"
    path.write_text(json.dumps([row | values for row in json.loads(path.read_text())]))


@pytest.fixture
def asked(settings):
    """A detection run of the LiDAR, with some of its settings changed."""

    def make(name: str = RUN, **changes: Any):
        run = settings.runs[name]
        run = run.model_copy(update={"data": run.data.model_copy(update={"sweeps": 2, **changes.pop("data", {})})})
        run = run.model_copy(update={"train": run.train.model_copy(update={"batch": 1, **changes.pop("train", {})})})
        return run.model_copy(update=changes)

    return make


def check(root: Path, /, run, **keywords: Any) -> list[str]:
    infos_build.build(root, VERSION, root / "infos", progress=False)
    return demands.check(run, info_tools.load(root / "infos"), **keywords)


def test_missing_classes_are_counted(root, asked):
    [sentence] = check(root, asked())
    assert sentence == (
        "centerpoint-det: the training split 'mini_train' has no valid box of 8 of the ten classes within bev.range "
        "(truck, construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, traffic_cone), so these are not learned; "
        "it has 6 of the others."
    )


def test_no_box_that_any_sensor_sees(root, asked):
    change(root, "sample_annotation", num_lidar_pts=0, num_radar_pts=0)
    with pytest.raises(InputError, match=r"no LiDAR or radar point lies in any of the 9 boxes of the training split"):
        check(root, asked())


def test_no_box_of_the_ten_classes(root, asked):
    change(root, "category", name="animal")
    with pytest.raises(InputError, match=r"'mini_train' has no box of the ten classes .category\.json"):
        check(root, asked())


def test_no_box_within_range(root, asked):
    change(root, "sample_annotation", translation=[500.0, 0.0, 1.0])
    with pytest.raises(InputError, match=r"bev\.range: none of the 6 boxes of the training split 'mini_train'"):
        check(root, asked())


def test_velocities_and_attributes_that_are_missing_are_said(root, asked):
    change(root, "sample_annotation", prev="", next="", attribute_tokens=[])
    found = check(root, asked())
    assert "no box of the training split 'mini_train' has a velocity (prev, next), so none is learned." in found[1]
    assert "data.val_split: no box of 'mini_val' has an attribute" in found[2]


@pytest.mark.parametrize("sweeps", [0, 2, 9])
def test_sweeps(root, asked, sweeps):
    found = [sentence for sentence in check(root, asked(data={"sweeps": sweeps})) if "data.sweeps" in sentence]
    expected = (
        "data.sweeps: 9 earlier sweeps are asked for, but no sample of 'mini_train' has more than 8, 1 of 3 have none."
    )
    assert found == ([f"centerpoint-det: {expected}"] if sweeps == 9 else [])
    change(root, "sample_data", prev="")
    if not sweeps:
        check(root, asked(data={"sweeps": 0}))
        return
    with pytest.raises(InputError, match=rf"data\.sweeps: {sweeps} earlier sweeps are asked for, but no sample of"):
        check(root, asked(data={"sweeps": sweeps}))


def without_cameras(root: Path) -> None:
    path = root / VERSION / "sample_data.json"
    path.write_text(json.dumps([row for row in json.loads(path.read_text()) if "CAM_" not in row["token"]]))


def test_cameras_are_asked_for_by_the_run_or_its_teacher(root, asked, settings):
    without_cameras(root)
    assert check(root, asked())
    for run, teacher in ((asked("bevdet-seg"), None), (asked(), settings.runs["fusion-det"])):
        with pytest.raises(InputError, match=rf"{run.name}: sensors: .* has no image of the six"):
            check(root, run, teacher=teacher)


def test_maps_of_every_place(root, settings, asked):
    run = asked("centerpoint-seg")
    with pytest.raises(InputError, match=r"'singapore-onenorth' .log\.json. .*singapore-onenorth\.json does not exist"):
        check(root, run, root=root)
    (root / "maps/expansion").mkdir()
    (root / "maps/expansion/singapore-onenorth.json").write_text("{}")
    assert check(root, run, root=root) == []


def test_batch_larger_than_an_epoch(root, asked):
    check(root, asked(data={"balance": "none"}, train={"batch": 3}))
    with pytest.raises(
        InputError, match=r"train\.batch: an epoch holds 3 samples, fewer than one batch of 4; lower train"
    ):
        check(root, asked(data={"balance": "none"}, train={"batch": 4}))


# ---- splits


def splits(root: Path, **named: list[str]) -> None:
    (root / VERSION / "splits.json").write_text(json.dumps(named))


def test_a_scene_in_both_splits(root, asked):
    splits(root, mine=["scene-0061", "scene-0103"], other=["scene-0103"])
    with pytest.raises(
        InputError, match=r"data\.val_split: 'mine' shares scene-0061 with the training split 'mini_train'"
    ):
        check(root, asked(data={"val_split": "mine"}))
    with pytest.raises(InputError, match=r"'other' shares scene-0103 with the training split 'mine'"):
        check(root, asked(data={"train_split": "mine", "val_split": "other"}))
    said = check(root, asked(data={"train_split": "mine", "val_split": "mine"}))
    assert said[0].endswith(
        "data.val_split: 'mine' is the training split of centerpoint-det, so the score is of what was learned."
    )
    teacher = asked("fusion-det", data={"train_split": "mine"})
    for place in ("teacher", "start"):
        with pytest.raises(
            InputError, match=r"'mini_val' shares scene-0103 with the training split 'mine' of fusion-det"
        ):
            check(root, asked(), **{place: teacher})
    check(root, asked(data={"val_split": "other"}))
    known = info_tools.load(root / "infos")
    assert demands.check_scoring(asked(data={"val_split": "other"}), known) == []
    with pytest.raises(
        InputError, match="'mine' shares scene-0061 with"
    ):  # as predict asks, where val_split was changed
        demands.check_scoring(asked(data={"val_split": "mine"}), known)


def test_a_split_without_samples(root, asked):
    for table, column in (("sample", "token"), ("sample_data", "sample_token"), ("sample_annotation", "sample_token")):
        path = root / VERSION / f"{table}.json"
        path.write_text(json.dumps([r for r in json.loads(path.read_text()) if not r[column].startswith("scene-0103")]))
    with pytest.raises(InputError, match=r"data\.val_split: split 'mini_val' has scenes in v1\.0-mini, but no sample"):
        check(root, asked())


def test_an_unknown_split(root, asked):
    with pytest.raises(
        InputError, match=r"data\.train_split: split 'mine' has no samples in .*: choose one of mini_train"
    ):
        check(root, asked(data={"train_split": "mine"}))


def test_a_split_that_the_devkit_does_not_score_in_this_version(root, asked):
    own = root / "v1.0-own"
    (root / VERSION).rename(own)
    infos_build.build(root, "v1.0-own", root / "infos", progress=False)
    with pytest.raises(InputError, match=r"scores 'mini_val' in versions that end in 'mini' only, not in v1\.0-own"):
        demands.check(asked(), info_tools.load(root / "infos"))


BAD_SPLITS = {
    '{"mine": ["scene-0016"]}': r"split 'mine' names scene 'scene-0016', which is not there; did you mean scene-0061\?",
    '{"mine": ["town"]}': r"names scene 'town', which is not there; scene\.json of v1\.0-mini has none like it",
    '{"mine": []}': r"split 'mine' has no scenes; list some or remove it",
    '{"mine": ["scene-0061", "scene-0061"]}': r"split 'mine' names scene-0061 twice; list each scene once",
    '{"mine": ["scene-0061"], "mine": ["scene-0103"]}': r"defines split 'mine' twice",
    '{"mini_val": ["scene-0061"]}': r"split 'mini_val' is nuScenes' own and scored as such",
    '{"train": ["scene-0061"]}': r"split 'train' is nuScenes' own and scored as such",
    '{"mine": "scene-0061"}': r"split 'mine' is no list of scene names; a splits\.json holds",
    '{"mine": [61]}': r"split 'mine' is no list of scene names",
    '{"": ["scene-0061"]}': r"split '' is no list of scene names",
    '["scene-0061"]': r"is not of the form",
    '{"mine": ["scene-0061"],}': r"is no JSON .line 1, column",
    "": r"splits\.json is cut or damaged .it is empty.",
    "\ufeff{}": r"is UTF-8 text with a byte order mark",
    "<html></html>": r"is an HTML or XML page",
    "{}\nx": r"is no JSON .line 2",
}


@pytest.mark.parametrize("content", BAD_SPLITS)
def test_bad_splits_are_refused_by_infos_and_doctor(root, content):
    from vexkd.data import doctor

    (root / VERSION / "splits.json").write_text(content)
    with pytest.raises(InputError, match=BAD_SPLITS[content]) as caught:
        infos_build.build(root, VERSION, root / "infos", progress=False)
    assert doctor.examine(root, VERSION, progress=False) == [str(caught.value)]


def test_an_official_split_written_out_is_no_fault(root):
    from nuscenes.utils.splits import create_splits_scenes

    splits(root, mini_val=create_splits_scenes()["mini_val"], mine=["scene-0061"])
    infos_build.build(root, VERSION, root / "infos", progress=False)
    assert info_tools.load(root / "infos").splits["mini_val"] == ["scene-0103"]


# ---- where it is asked


def test_train_refuses_before_the_first_step(root, asked, tmp_path, capsys):
    from vexkd.train import session
    from vexkd.train.loop import RuntimeOptions

    run = asked(data={"sweeps": 9})
    change(root, "sample_data", prev="")
    infos_build.build(root, VERSION, root / "infos", progress=False)
    with pytest.raises(InputError, match=r"data\.sweeps: 9 earlier sweeps are asked for, but no sample"):
        session.train(
            run,
            root=root,
            infos=root / "infos",
            out=tmp_path / "out",
            seed=0,
            paste=None,
            start=None,
            teacher=None,
            scratch=tmp_path / "scratch",
            threads=1,
            runtime=RuntimeOptions(1, 0, 5.0, None),
            device="cpu",
        )
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_infos_and_preflight_hold_all_runs_against_the_data(root, tmp_path, settings, monkeypatch, capsys):
    import sys

    from conftest import experiment, tiny_settings

    from vexkd import cli
    from vexkd.data import doctor
    from vexkd.measure import preflight

    experiment(tmp_path, {**tiny_settings(), "root": str(root)})
    doctor.examine(root, VERSION, manifest=tmp_path / "artifacts/manifest.parquet", workers=1)
    out = tmp_path / "artifacts/infos"
    command = ["infos", "-C", tmp_path]
    monkeypatch.setattr(sys, "argv", ["vexkd", *map(str, command)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "-seg: task: map labels of 'singapore-onenorth'" in said
    monkeypatch.chdir(tmp_path)
    assert str(preflight.check_demands(settings, root)).startswith(
        "error    demands      fusion-seg: task: map labels of"
    )
    (root / "maps/expansion").mkdir()
    (root / "maps/expansion/singapore-onenorth.json").write_text("{}")
    found = preflight.check_demands(settings, root)
    assert found.status == "warning"
    assert "has no valid box of 8 of the ten classes" in found.text
    (out / "samples.parquet").unlink()
    assert preflight.check_demands(settings, root).status == "ok"
    splits(root, mine=["scene-0062"])
    assert "names scene 'scene-0062'" in preflight.check_demands(settings, root).text


def test_a_manifest_that_covers_too_little_is_said(settings):
    """So that a camera run that is added has its images looked at, and one that is taken out changes nothing."""
    from vexkd import needs

    runs = [settings.runs[RUN], settings.runs["fusion-det"]]
    assert needs.needed_files(runs) == (["mini_train", "mini_val"], ["lidar", "camera"])
    some = {"splits": ["mini_train", "mine"], "sensors": ["lidar"], "unused": False}
    assert needs.uncovered(some, runs) == "splits mini_val and sensors camera"
    assert needs.uncovered(some | {"splits": None}, runs[:1]) == ""
    assert needs.uncovered({}, runs) == ""
