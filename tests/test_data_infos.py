"""Tables and infos: against the devkit, against the real keyframe, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_data_tiny import VERSION, real_keyframe, write

from vexkd import boxes as box_tools
from vexkd import content, geometry, provenance
from vexkd.content import Digests
from vexkd.data import infos as info_tools
from vexkd.data import infos_build, tables
from vexkd.data.annotations import Annotations
from vexkd.data.points import read_lidar
from vexkd.errors import InputError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny") / "set")


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("infos")
    infos_build.build(tiny, VERSION, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def devkit(tiny):
    from nuscenes.nuscenes import NuScenes

    return NuScenes(VERSION, str(tiny), verbose=False)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root, folder = real_keyframe(), tmp_path_factory.mktemp("real")
    counts = infos_build.build(root, VERSION, folder, progress=False)
    return root, counts, info_tools.load(folder)


def test_counts_and_splits_of_the_tiny_set(built):
    infos = info_tools.load(built)
    assert len(infos) == 4
    assert infos.subset("mini_train").tokens() == ["scene-0061-0", "scene-0061-1", "scene-0061-2"]
    assert infos.subset("mini_val").tokens() == ["scene-0103-0"]
    assert [len(keyframe.sweep_paths) for keyframe in infos] == [0, 4, 8, 0]
    assert [len(keyframe.boxes) for keyframe in infos] == [3, 3, 3, 3], "the animal is none of the ten classes"
    frame = pd.read_parquet(built / "samples.parquet")
    assert frame["split"].tolist() == ["mini_train"] * 3 + ["mini_val"]
    assert set(frame["location"]) == {"singapore-onenorth"}
    boxes = pd.read_parquet(built / "boxes.parquet")
    assert boxes["class"].tolist()[:3] == ["car", "pedestrian", "barrier"]
    assert boxes["valid"].tolist()[:3] == [True, True, False]
    assert boxes["attribute"].tolist()[:3] == ["vehicle.moving", "", ""]


def test_sweeps_go_back_from_the_nearest(built):
    keyframe = info_tools.load(built)[2]
    np.testing.assert_allclose(keyframe.sweep_lags, np.arange(1, 9) * 0.05, atol=1e-9)
    assert keyframe.sweep_paths[3] == info_tools.load(built)[1].lidar_path


def test_max_sweeps_limits_the_list(tiny, tmp_path):
    assert infos_build.build(tiny, VERSION, tmp_path, max_sweeps=3, progress=False).sweeps == 6


def test_boxes_and_velocities_equal_the_devkit(built, devkit):
    for keyframe in info_tools.load(built):
        found = devkit.get_sample_data(devkit.get("sample", keyframe.token)["data"][tables.LIDAR])[1]
        by_token = {box.token: box for box in found}
        lidar_from_global = geometry.inverse(keyframe.global_from_lidar)[:3, :3]
        for token, box in zip(keyframe.annotations, keyframe.boxes, strict=True):
            theirs = by_token[token]
            np.testing.assert_allclose(box[:3], theirs.center, atol=1e-6)
            np.testing.assert_allclose(box[3:6], theirs.wlh[[1, 0, 2]])
            ahead = theirs.rotation_matrix[:, 0]
            assert box[6] == pytest.approx(np.arctan2(ahead[1], ahead[0]), abs=1e-6)
            velocity = devkit.box_velocity(token)
            expected = (lidar_from_global @ [velocity[0], velocity[1], 0])[:2]
            np.testing.assert_allclose(box[7:9], expected, atol=1e-6)
    assert np.isnan(info_tools.load(built)[3].boxes[:, 7:9]).all(), "a single annotation has no velocity"


def test_velocity_is_unknown_over_a_long_gap():
    rows = Annotations(
        *([["a", "b", "c"]] * 4),
        sample=np.arange(3),
        label=np.zeros(3),
        translation=np.array([[0.0, 0, 0], [1, 0, 0], [4, 2, 0]]),
        size=np.ones((3, 3)),
        rotation=np.ones((3, 4)),
        lidar_points=np.ones(3),
        radar_points=np.ones(3),
        previous=np.array([-1, 0, 1]),
        next=np.array([1, 2, -1]),
    )
    velocity = rows.velocities(np.array([0, 1_000_000, 2_600_000]))
    np.testing.assert_allclose(velocity[:2], [[1, 0], [4 / 2.6, 2 / 2.6]])
    assert np.isnan(velocity[2]).all(), "1.6 s one-sided is more than the devkit's 1.5 s"


def test_class_holders_ignore_unseen_boxes(built):
    holds = info_tools.load(built).holds_class()
    names = [name for name, any_sample in zip(box_tools.CLASSES, holds.any(axis=0), strict=True) if any_sample]
    assert names == ["car", "pedestrian"]


def test_infos_are_the_same_bytes_again(tiny, built, tmp_path):
    infos_build.build(tiny, VERSION, tmp_path, progress=False)
    for name in info_tools.FILES:
        assert (tmp_path / f"{name}.parquet").read_bytes() == (built / f"{name}.parquet").read_bytes()


def test_test_split_without_annotations(tmp_path):
    root = write(tmp_path / "set")
    (root / VERSION / "sample_annotation.json").write_text("[]")
    (root / VERSION / "instance.json").write_text("[]")
    assert infos_build.build(root, VERSION, tmp_path / "infos", progress=False).boxes == 0
    assert info_tools.load(tmp_path / "infos")[0].boxes.shape == (0, 9)


def test_custom_splits(tmp_path):
    root = write(tmp_path / "set")
    (root / VERSION / "splits.json").write_text(json.dumps({"mine": ["scene-0103"]}))
    infos_build.build(root, VERSION, tmp_path / "infos", progress=False)
    assert info_tools.load(tmp_path / "infos").subset("mine").tokens() == ["scene-0103-0"]


def test_unknown_split_names_the_known_ones(built):
    with pytest.raises(InputError, match="'train' has no samples in v1.0-mini: choose one of mini_train, mini_val"):
        info_tools.load(built).subset("train")


def test_missing_root_version_and_table(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist: set root"):
        infos_build.build(tmp_path / "nowhere", VERSION, tmp_path / "out", progress=False)
    root = write(tmp_path / "set")
    with pytest.raises(InputError, match="has no version v1.0-trainval .it holds v1.0-mini.: correct data.version"):
        infos_build.build(root, "v1.0-trainval", tmp_path / "out", progress=False)
    (root / VERSION / "ego_pose.json").unlink()
    with pytest.raises(InputError, match=r"lacks ego_pose\.json: extract"):
        infos_build.build(root, VERSION, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_cut_table_names_the_file(tmp_path, keep):
    root = write(tmp_path / "set")
    path = root / VERSION / "sample_data.json"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match=r"sample_data\.json is cut or damaged"):
        infos_build.build(root, VERSION, tmp_path / "out", progress=False)


@pytest.mark.parametrize("attribute", ["flying", ["moving"], 3])
def test_an_unknown_attribute_is_refused(tmp_path, attribute):
    root = write(tmp_path / "set")
    path = root / VERSION / "sample_annotation.json"
    rows = json.loads(path.read_text())
    rows[-1]["attribute_tokens"] = [attribute]
    path.write_text(json.dumps(rows))
    with pytest.raises(
        InputError, match=f"json: row {rows[-1]['token']}: it names an attribute that attribute.json lacks"
    ):
        infos_build.build(root, VERSION, tmp_path / "out", progress=False)


def test_rows_survive_block_borders(tmp_path, monkeypatch):
    rows = [{"token": str(i), "text": 'a "}" or ], {' * (i % 5)} for i in range(50)]
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "visibility.json").write_text(json.dumps(rows, indent=1))
    for block in (7, 64, 1000):
        monkeypatch.setattr(tables, "_BLOCK", block)
        assert list(tables.rows(tmp_path, "v", "visibility")) == rows


def test_repeated_token_and_lost_keyframe(tmp_path):
    root = write(tmp_path / "set")
    path = root / VERSION / "sample.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(InputError, match=r"sample\.json: row scene-0061-0: its token stands twice"):
        infos_build.build(root, VERSION, tmp_path / "out", progress=False)
    path.write_text(json.dumps(rows))
    path = root / VERSION / "sample_data.json"
    kept = [row for row in json.loads(path.read_text()) if "CAM_BACK-scene-0103" not in row["token"]]
    path.write_text(json.dumps(kept))
    with pytest.raises(InputError, match="sample scene-0103-0 has no keyframe of CAM_BACK:"):
        infos_build.build(root, VERSION, tmp_path / "out", progress=False)


def test_lost_sensor_and_lost_ego_pose(tmp_path):
    root = write(tmp_path / "set")
    for table, message in (("sensor", "names a sensor that"), ("ego_pose", "names an ego pose that")):
        path = root / VERSION / f"{table}.json"
        whole = path.read_text()
        path.write_text(json.dumps(json.loads(whole)[:-1]))
        with pytest.raises(InputError, match=message):
            infos_build.build(root, VERSION, tmp_path / "out", progress=False)
        path.write_text(whole)


@pytest.mark.parametrize("name", info_tools.FILES)
def test_damaged_infos_are_refused(built, tmp_path, name):
    for file in info_tools.FILES:
        (tmp_path / f"{file}.parquet").write_bytes((built / f"{file}.parquet").read_bytes())
    path = tmp_path / f"{name}.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{name}.parquet is damaged.*run vexkd infos again"):
        info_tools.load(tmp_path)
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 4]) + whole[201:])
    with pytest.raises(InputError, match=r"run vexkd infos again"):
        info_tools.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}.parquet does not exist: run vexkd infos again"):
        info_tools.load(tmp_path)


def test_infos_of_two_builds_are_not_mixed(tiny, built, tmp_path):
    infos_build.build(tiny, VERSION, tmp_path, max_sweeps=2, progress=False)
    (tmp_path / "sweeps.parquet").write_bytes((built / "sweeps.parquet").read_bytes())
    with pytest.raises(InputError, match=r"sweeps\.parquet was not made together with samples"):
        info_tools.load(tmp_path)


def test_infos_of_another_schema_are_refused(built, tmp_path):
    for file in info_tools.FILES:
        table = pq.read_table(built / f"{file}.parquet")
        metadata = {**table.schema.metadata, b"vexkd.schema": b"0"}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{file}.parquet")
    with pytest.raises(InputError, match="has schema 0 instead of 1: run vexkd infos again"):
        info_tools.load(tmp_path)


def test_real_keyframe_counts_points_in_boxes(real):
    root, counts, infos = real
    assert counts == (1, 0, 6, 68)
    keyframe = infos[0]
    points = read_lidar(root / keyframe.lidar_path, keyframe.lidar_bytes)
    difference = [
        int(box_tools.points_inside(points, box).sum()) - count
        for box, count in zip(keyframe.boxes, keyframe.lidar_points, strict=True)
    ]
    assert difference.count(0) == 60
    assert max(map(abs, difference)) <= 16


def test_real_keyframe_projects_as_the_devkit(real):
    from nuscenes.nuscenes import NuScenes, NuScenesExplorer

    root, _, infos = real
    keyframe = infos[0]
    nusc = NuScenes(VERSION, str(root), verbose=False)
    data = nusc.get("sample", keyframe.token)["data"]
    points = read_lidar(root / keyframe.lidar_path)[:, :3].astype(np.float64)
    for i, channel in enumerate(tables.CAMERAS):
        theirs, _, _ = NuScenesExplorer(nusc).map_pointcloud_to_image(data[tables.LIDAR], data[channel])
        camera = geometry.move(keyframe.camera_from_lidar[i], points)
        pixels, depths = geometry.project(keyframe.intrinsics[i], camera)
        width, height = keyframe.camera_sizes[i]
        seen = (depths > 1) & (pixels > 1).all(axis=1) & (pixels[:, 0] < width - 1) & (pixels[:, 1] < height - 1)
        assert abs(seen.sum() - theirs.shape[1]) <= 2
        assert seen.sum() > 1000
        if seen.sum() == theirs.shape[1]:
            assert np.abs(pixels[seen] - theirs[:2].T).max() < 0.5
        assert os.path.samefile(nusc.get_sample_data_path(data[channel]), root / keyframe.camera_paths[i])


def test_a_changed_splits_file_is_taken_over_as_if_made_anew(town, tmp_path):
    """What was made from the rest of the infos keeps its record of them."""
    root, out = tmp_path / "data", tmp_path / "infos"
    shutil.copytree(town / "data" / "v1.0-mini", root / "v1.0-mini")
    (root / "samples").symlink_to(town / "data" / "samples")
    (root / "sweeps").symlink_to(town / "data" / "sweeps")
    infos_build.build(root, "v1.0-mini", out, progress=False)
    before, identity = (out / "samples.parquet").stat(), Digests().of(out)
    assert infos_build.renew_splits(out, root, "v1.0-mini", write=True) is None
    scenes = [row["name"] for row in json.loads((root / "v1.0-mini/scene.json").read_text())]
    (root / "v1.0-mini/splits.json").write_text(json.dumps({"mine": scenes[:1]}))
    looked = infos_build.renew_splits(out, root, "v1.0-mini", write=False)
    assert "mine" not in info_tools.load(out).splits
    assert infos_build.renew_splits(out, root, "v1.0-mini", write=True) == looked == content.split_digests(out)
    assert info_tools.load(out).splits["mine"] == scenes[:1]
    assert looked["mine"] == provenance.digest(info_tools.load(out).subset("mine").tokens())
    assert (out / "samples.parquet").stat().st_mtime_ns == before.st_mtime_ns
    assert Digests().of(out) == identity
    infos_build.build(root, "v1.0-mini", tmp_path / "anew", progress=False)
    made, taken_over = (pq.read_table(folder / "samples.parquet") for folder in (tmp_path / "anew", out))
    assert taken_over.equals(made)
    assert taken_over.schema.metadata == made.schema.metadata
