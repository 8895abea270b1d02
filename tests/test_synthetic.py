"""The embedded data set: the devkit takes it as nuScenes, its physics and its numbers agree with each other."""

import filecmp
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, view_points
from pyquaternion import Quaternion

from vexkd.synthetic.camera import Light, render
from vexkd.synthetic.lidar import sweep
from vexkd.synthetic.tables import (
    CAMERAS,
    LOCATIONS,
    Recipe,
    ScenePlan,
    SceneWriter,
    camera_quaternion,
    camera_rotation,
    plan_scenes,
    synthesize,
)
from vexkd.synthetic.town import HALF_SIZE, Ground, SolidList, Solids, Texture
from vexkd.synthetic.traffic import straight, turn_path

SMALL = {"scenes": 2, "samples": 3, "image_size": (192, 108), "azimuths": 360, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "town"
    synthesize(out, workers=1, **SMALL)
    return out


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(root), verbose=False)


def block(low: tuple, high: tuple, owner: int, texture: Texture = Texture.PLAIN, colour: tuple = (1, 0, 0)) -> Solids:
    parts = SolidList()
    parts.add(low, high, colour, texture, 0.8)
    return parts.build(owner)


def test_devkit_loads_both_splits(nusc: NuScenes) -> None:
    assert [scene["name"] for scene in nusc.scene] == ["scene-0061", "scene-0103"]
    assert len(nusc.sample) == 6
    assert {channel for sample in nusc.sample for channel in sample["data"]} == {"LIDAR_TOP", *CAMERAS}
    keyframes = sum(record["is_key_frame"] for record in nusc.sample_data)
    assert (keyframes, len(nusc.sample_data)) == (6 * 7, 6 * 9)


def test_chains_are_whole_and_in_time_order(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        first = nusc.get("sample", scene["first_sample_token"])
        for channel, key in first["data"].items():
            record = nusc.get("sample_data", key)
            while record["prev"]:
                record = nusc.get("sample_data", record["prev"])
            times = [record["timestamp"]]
            while record["next"]:
                record = nusc.get("sample_data", record["next"])
                times.append(record["timestamp"])
            assert times == sorted(times)
            assert len(times) == (9 if channel == "LIDAR_TOP" else 3)
    chained = sum(1 for row in nusc.sample_annotation if row["prev"])
    assert chained == len(nusc.sample_annotation) - len(nusc.instance)


def test_every_class_occurs_with_points_in_each_scene(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        samples = {sample["token"] for sample in nusc.sample if sample["scene_token"] == scene["token"]}
        names = Counter(
            category_to_detection_name(row["category_name"])
            for row in nusc.sample_annotation
            if row["sample_token"] in samples and row["num_lidar_pts"]
        )
        assert len(names) == 10, names


def test_point_counts_are_the_devkits(nusc: NuScenes) -> None:
    counted = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            row = nusc.get("sample_annotation", box.token)
            assert row["num_lidar_pts"] == points_in_box(box, points).sum(), box
            counted += row["num_lidar_pts"]
    assert counted > 5000


def test_boxes_hold_their_actors_returns(nusc: NuScenes) -> None:
    """Range noise must not push returns out: growing every box by 10 cm finds few points more."""
    inside = grown = 0
    for sample in nusc.sample[:2]:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        points = points[:, points[2] > -1.7]  # above ground
        for box in boxes:
            inside += points_in_box(box, points).sum()
            box.wlh = box.wlh + 0.1
            grown += points_in_box(box, points).sum()
    assert inside > 0.97 * grown


def test_ground_truth_scores_one(root: Path, nusc: NuScenes, tmp_path: Path) -> None:
    truth = load_gt(nusc, "mini_val", DetectionBox)
    results = {}
    for key in truth.sample_tokens:
        boxes = [box.serialize() for box in truth[key] if box.num_pts]  # the devkit drops truth without points
        for box in boxes:
            del box["ego_translation"], box["num_pts"]
            box |= {"detection_score": 0.5, "velocity": list(box["velocity"])}
        results[key] = boxes
    path = tmp_path / "results.json"
    meta = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
    path.write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(path), "mini_val", str(tmp_path), verbose=False)
    metrics, _ = evaluation.evaluate()
    assert metrics.mean_ap == pytest.approx(1.0, abs=1e-9)
    assert metrics.nd_score == pytest.approx(1.0, abs=1e-6)


def test_attributes_belong_to_the_class_and_the_motion(nusc: NuScenes) -> None:
    for row in nusc.sample_annotation:
        names = [nusc.get("attribute", key)["name"] for key in row["attribute_tokens"]]
        if row["category_name"].startswith("movable_object"):
            assert names == []
            continue
        velocity = np.linalg.norm(nusc.box_velocity(row["token"])[:2])
        assert names[0].split(".")[0] == {"human": "pedestrian"}.get(
            row["category_name"].split(".")[0], "cycle" if "cycle" in row["category_name"] else "vehicle"
        )
        if not np.isnan(velocity) and not names[0].startswith("cycle"):
            assert names[0].endswith("moving") == (velocity > 0.1)


def test_velocities_are_the_true_ones(root: Path, nusc: NuScenes, tmp_path: Path) -> None:
    recipe = Recipe(seed=3, image_size=(192, 108), beams=32, azimuths=360, sweeps=3, sensors=False, crowd=1.0)
    writer = SceneWriter(tmp_path, recipe, plan_scenes(2, 3)[1][0])
    moving = 0
    for index, actor in enumerate(writer.traffic.actors):
        key = writer.key("annotation", writer.key("sample", 1), index)
        try:
            row = nusc.get("sample_annotation", key)
        except KeyError:
            continue
        heading = actor.path.at(np.array([0.5]))[0, 2] + writer.placement.turn
        expected = actor.path.speed * np.array([np.cos(heading), np.sin(heading)])
        if row["prev"] or row["next"]:
            np.testing.assert_allclose(nusc.box_velocity(key)[:2], expected, atol=1e-5)
            moving += actor.path.speed > 0
    assert moving > 5


def test_map_expansion_and_mask(root: Path, nusc: NuScenes) -> None:
    """The patch around the ego vehicle holds road, crossing and walkway; the vehicle itself is on the road."""
    sample = nusc.sample[0]
    pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
    location = nusc.get("log", nusc.scene[0]["log_token"])["location"]
    town = NuScenesMap(str(root), location)
    assert town.canvas_edge == list(LOCATIONS[location][1])
    layers = ["drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider"]
    x, y, _ = pose["translation"]
    masks = town.get_map_mask((x, y, 100, 100), 0.0, layers, (200, 200))
    assert all(mask.any() for mask in masks), dict(zip(layers, masks.sum((1, 2)), strict=True))
    assert masks[0][99:101, 99:101].all()
    assert town.layers_on_point(x, y)["drivable_area"]
    assert nusc.map[0]["mask"].is_on_mask(np.array([x]), np.array([y])).all() == (location == "singapore-onenorth")


def test_worker_count_does_not_change_a_byte(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    synthesize(again, workers=2, **SMALL)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    same, different, failed = filecmp.cmpfiles(root, again, names, shallow=False)
    assert (different, failed) == ([], [])
    assert len(same) == len(names)


def test_projected_boxes_land_on_their_actors(tmp_path: Path) -> None:
    """The pixel of a well visible box centre, projected with the written calibration, shows that very actor."""
    recipe = Recipe(seed=5, image_size=(400, 225), beams=32, azimuths=360, sweeps=1, sensors=True, crowd=1.0)
    plan = ScenePlan(0, "scene-0061", "singapore-onenorth", 0, 1)
    writer = SceneWriter(tmp_path, recipe, plan)
    time, found = writer.begin, 0
    for channel, (place, degrees, *_) in CAMERAS.items():
        picture, town_from_camera, intrinsic = writer.picture(channel, time)
        rotation = Quaternion(camera_quaternion(np.radians(degrees))).rotation_matrix
        np.testing.assert_allclose(rotation, camera_rotation(np.radians(degrees)), atol=1e-12)
        assert place[2] > 1
        for index, actor in enumerate(writer.traffic.actors):
            centre = actor.box_centre(actor.path.at(np.array([0.0])))[0]
            camera = town_from_camera[:3, :3].T @ (centre - town_from_camera[:3, 3])
            if actor.name not in ("car", "bus", "truck", "barrier") or not 4 < camera[2] < 40:
                continue
            u, v, _ = np.floor(view_points(camera[:, None], intrinsic, normalize=True)[:, 0]).astype(int)
            if not (0 <= u < 400 and 0 <= v < 225):
                continue
            own = (picture.owner == index).sum() / max(picture.whole[index], 1)
            if own > 0.95:
                assert picture.owner[v, u] == index, actor.name
                depth = picture.distance[v, u]
                assert abs(depth - np.linalg.norm(camera)) < max(actor.size)
                found += 1
    assert found >= 5


def test_the_nearer_actor_hides_the_farther_in_the_image() -> None:
    solids = Solids.join([block((9, -1, 0), (10, 1, 3), 0), block((14, -1, 0), (15, 1, 2), 1, colour=(0, 0, 1))])
    town_from_camera = np.eye(4)
    town_from_camera[:3, :3], town_from_camera[:3, 3] = camera_rotation(0.0), (0, 0, 1.5)
    intrinsic = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    light = Light(sun=np.array([-1.0, 0, 0]), brightness=1.0, haze=0.0, sky=np.array([0.5, 0.6, 0.7]))
    ground = np.full((1300, 1300), Ground.ASPHALT, np.uint8)
    noise = np.random.default_rng(0)
    picture = render(solids, ground, town_from_camera, intrinsic, (100, 80), light, 2, noise)
    assert set(np.unique(picture.owner)) == {-1, 0}
    assert picture.whole[1] > 0
    assert picture.distance[40, 50] == pytest.approx(9.0, rel=1e-3)
    red, green, blue = picture.rgb[40, 50]
    assert red > 200
    assert max(green, blue) < 30
    # 9 m away, 2 m wide: 22.2 pixels; 3 m high from 1.5 below the optical centre: 33.3 pixels
    assert (picture.owner == 0).sum() == pytest.approx(22.2 * 33.3, rel=0.08)
    picture = render(solids.select(np.array([1])), ground, town_from_camera, intrinsic, (100, 80), light, 2, noise)
    assert (picture.owner == 1).sum() == picture.whole[1] > 0


def test_a_wall_hides_what_stands_behind_it_from_the_lidar() -> None:
    """Without the wall the block returns; with it, nothing beyond the wall's face does."""
    ground = np.full((1300, 1300), Ground.ASPHALT, np.uint8)
    wall, target = block((8, -3, 0), (8.5, 3, 4), -1), block((15, -1, 0), (17, 1, 2), 0)
    pose = (np.array([0.0, 0.0, 1.8]), 0.0)

    def behind(solids: Solids) -> int:
        points = sweep(solids, ground, pose, np.random.default_rng(0), 32, 720)
        forward, left, up = points[:, 1], -points[:, 0], points[:, 2] + 1.8
        return int(((np.abs(left) < 1.1) & (forward > 14.5) & (forward < 17.5) & (up > 0.2) & (up < 2.2)).sum())

    assert behind(target) > 20
    assert behind(Solids.join([wall, target])) == 0
    assert behind(Solids.join([target, wall])) == 0


def test_lidar_ranges_and_rings() -> None:
    """Flat ground lies at minus the sensor's height; a ring keeps one elevation; a wall has its distance."""
    ground = np.full((1300, 1300), Ground.STRIPE, np.uint8)
    wall = block((-20.5, -30, 0), (-20, 30, 30), -1)
    points = sweep(wall, ground, (np.array([0.0, 0.0, 1.8]), np.pi), np.random.default_rng(0), 32, 360)
    assert points.dtype == np.float32
    ahead = points[(points[:, 2] > -1.5) & (np.abs(points[:, 0]) < 20)]  # the sensor faces -x
    np.testing.assert_allclose(ahead[:, 1], 20.0, atol=0.12)
    low = points[points[:, 1] < 0]
    assert np.abs(low[:, 2] + 1.8).max() < 0.06
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    expected = np.linspace(-30.67, 10.67, 32)[points[:, 4].astype(int)]
    np.testing.assert_allclose(elevation, expected, atol=0.01)


def test_paths() -> None:
    path = straight(3.0, 4.0, np.pi / 2, 2.0)
    np.testing.assert_allclose(path.at(np.array([0.0, 1.5])), [[3, 4, np.pi / 2], [3, 7, np.pi / 2]], atol=1e-9)
    writer = plan_scenes(1, 1)[1][0]
    assert (writer.name, writer.samples) == ("scene-0061", 1)


def test_a_turn_is_smooth_and_leaves_along_the_lane(tmp_path: Path) -> None:
    recipe = Recipe(seed=0, image_size=(64, 36), beams=8, azimuths=90, sweeps=1, sensors=False, crowd=0.2)
    town = SceneWriter(tmp_path, recipe, plan_scenes(1, 2)[1][0]).town
    entry = next(lane for lane in town.lanes if lane.street.axis == 0 and lane.direction == 1)
    leave = next(lane for lane in town.lanes if lane.street.axis == 1 and lane.direction == -1)
    path = turn_path(entry, leave, 6.0).starting(390.0, 4.0)
    poses = path.at(np.linspace(0, 10, 401))
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.1, atol=1e-3)
    assert poses[-1, 2] == pytest.approx(-np.pi / 2)
    assert poses[-1, 0] == pytest.approx(leave.street.point(0.0, leave.across)[0])
    heading = np.arctan2(*np.diff(poses[:, :2], axis=0)[:, ::-1].T)
    np.testing.assert_allclose(heading, poses[:-1, 2], atol=0.06)
    assert np.abs(poses[:, :2]).max() < HALF_SIZE


def test_full_size_plan_has_nuscenes_numbers() -> None:
    version, plans = plan_scenes(850, None)
    assert version == "v1.0-trainval"
    assert sum(plan.samples for plan in plans) == 34_149
    assert len({plan.name for plan in plans}) == 850
    version, plans = plan_scenes(10, None)
    assert (version, [plan.name for plan in plans[8:]]) == ("v1.0-mini", ["scene-0103", "scene-0916"])
    assert len({(plan.location, plan.slot) for plan in plans}) == 10


def test_tables_only_set_has_no_sensor_files(tmp_path: Path) -> None:
    out = tmp_path / "tables"
    synthesize(out, scenes=11, samples=2, sensors=False, workers=1, progress=False)
    assert not [path for path in out.rglob("*") if path.suffix in (".jpg", ".bin")]
    nusc = NuScenes("v1.0-trainval", str(out), verbose=False)
    assert len(nusc.sample) == 22
    assert any(row["num_lidar_pts"] for row in nusc.sample_annotation)


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        synthesize(tmp_path / "taken", scenes=1)
    with pytest.raises(ValueError, match="sweeps_per_sample must be 1 to 10, not 11"):
        synthesize(tmp_path / "new", scenes=1, sweeps_per_sample=11)
    with pytest.raises(ValueError, match="scenes must be 1 to 850, not 851"):
        synthesize(tmp_path / "new", scenes=851)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("vexkd.synthetic.tables.write_map", fail)
    with pytest.raises(OSError, match="No space"):
        synthesize(tmp_path / "new", scenes=1, samples=1, sensors=False, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []
