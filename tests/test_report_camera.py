"""The figure of two runs in six images, on the embedded town, against the devkit's projection and hand-made errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import experiment_on
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import view_points
from PIL import Image

from vexkd import boxes, geometry
from vexkd.boxes import CLASSES
from vexkd.data import infos, infos_build
from vexkd.report.figures import hits_and_misses, six_images
from vexkd.report.figures.scene import Boxes


def test_lines_join_the_corners_that_the_devkit_projects(town):
    """Every end of a line in front of the camera is one of the devkit's corners, to a tenth of a pixel."""
    keyframe = infos.load(town / "infos")[0]
    nusc = NuScenes("v1.0-mini", str(town / "data"), verbose=False)
    name = Path(keyframe.camera_paths[0]).parent.name
    data = nusc.get("sample", keyframe.token)["data"][name]
    _, theirs, intrinsic = nusc.get_sample_data(data)  # boxes in the camera frame that show in the image
    ours = {token: box for token, box in zip(keyframe.annotations, keyframe.boxes, strict=True)}
    compared = 0
    for box in theirs:
        corners = box.corners()
        if box.token not in ours or corners[2].min() < 1:
            continue
        expected = view_points(corners, intrinsic, normalize=True)[:2].T  # 8 2
        found = six_images.lines(ours[box.token], keyframe.camera_from_lidar[0], keyframe.intrinsics[0])
        assert found.shape == (14, 2, 2)
        distance = np.linalg.norm(found.reshape(-1, 1, 2) - expected, axis=-1)
        assert distance.min(axis=1).max() < 0.1
        compared += 1
    assert compared >= 3


def test_lines_on_the_real_keyframe(keyframe, tmp_path):
    """As above on nuScenes itself, in all six cameras."""
    infos_build.build(keyframe, "v1.0-mini", tmp_path, progress=False)
    ours = infos.load(tmp_path)[0]
    nusc = NuScenes("v1.0-mini", str(keyframe), verbose=False)
    boxes_of = dict(zip(ours.annotations, ours.boxes, strict=True))
    compared = np.zeros(len(ours.camera_paths), dtype=int)
    for number, path in enumerate(ours.camera_paths):
        data = nusc.get("sample", ours.token)["data"][Path(path).parent.name]
        _, theirs, intrinsic = nusc.get_sample_data(data)
        for box in theirs:
            corners = box.corners()
            if box.token not in boxes_of or corners[2].min() < 1:
                continue
            expected = view_points(corners, intrinsic, normalize=True)[:2].T  # 8 2
            found = six_images.lines(boxes_of[box.token], ours.camera_from_lidar[number], ours.intrinsics[number])
            distance = np.linalg.norm(found.reshape(-1, 1, 2) - expected, axis=-1)
            assert distance.min(axis=1).max() < 1.0  # pixels
            compared[number] += 1
    assert compared.sum() > 20
    assert (compared > 0).sum() >= 5


def test_lines_are_cut_before_the_camera():
    """A box around the camera: what lies behind it is gone, and no line comes nearer than where it is cut."""
    forward = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # LiDAR x is the optical axis
    intrinsic = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    around = np.array([0.0, 0, 0, 4, 2, 2, 0, 0, 0])
    found = six_images.lines(around, forward, intrinsic)
    # by hand: front face at 2 m, 1 m to each side -> pixels 0 and 100; cut edges end at 1 / 0.3 * 100 from the middle
    assert found.min() == pytest.approx(50 - 100 / 0.3)
    assert len(found) == 4 + 4 + 2  # front face, the edges through the camera's plane, the cross
    behind = np.array([-9.0, 0, 0, 4, 2, 2, 0, 0, 0])
    assert len(six_images.lines(behind, forward, intrinsic)) == 0


def test_the_surest_detection_takes_the_box():
    def some(*rows: tuple[float, int, float]) -> Boxes:
        values = np.array(rows).reshape(-1, 3)
        return Boxes(np.eye(1, 9) * values[:, :1], values[:, 1].astype(int), values[:, 2])

    truth = some((0.0, 0, 1), (5.0, 0, 1), (9.0, 1, 1))
    predicted = some((0.5, 0, 0.3), (1.5, 0, 0.9), (7.1, 0, 0.8), (9.0, 2, 0.7))
    hit, missed = hits_and_misses.outcomes(truth, predicted)
    assert hit.tolist() == [False, True, False, False]  # taken by the surer; 2.1 m away; another class
    assert missed.tolist() == [False, True, True]


def test_the_figure_marks_what_was_put_in(town, tmp_path):
    """The student alone misses every second box and has a false alarm; the distilled one sees all."""
    known = infos.load(town / "infos")
    keyframe = known[0]
    rows = boxes.move(keyframe.boxes, keyframe.global_from_lidar)
    shown = [
        {"translation": list(b[:3]), "size": list(b[[4, 3, 5]]), "velocity": [0, 0], "detection_score": 0.9,
         "rotation": list(geometry.yaw_rotation(b[6]).elements), "detection_name": CLASSES[label]}
        for b, label in zip(rows, keyframe.labels, strict=True)
    ]  # fmt: skip
    alarm = shown[0] | {"translation": [shown[0]["translation"][0] + 30.0, *shown[0]["translation"][1:]]}
    for run, found in (("alone", [*shown[::2], alarm]), ("taught", shown)):
        path = tmp_path / "models" / run / "seed0" / "predictions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"results": {keyframe.token: found}}))
    experiment = experiment_on(tmp_path, town)
    six_images.camera("alone", "taught", experiment, seed=0)
    stem = experiment.figures / "camera-taught"
    frame = pd.read_csv(f"{stem}.csv")
    count = frame.groupby(["run", "outcome"]).size()
    assert "missed" not in count["taught"]
    assert count["alone"]["missed"] > 0
    assert np.asarray(Image.open(f"{stem}.png").convert("L")).std() > 5
    assert Path(f"{stem}.svg").stat().st_size < 3_000_000
