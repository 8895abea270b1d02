"""Detection scores against hand-worked values, on a nuScenes data set of two scenes written here."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.evaluate import detection
from vexkd.experiment import Experiment

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "pedestrian": "human.pedestrian.adult",
    "barrier": "movable_object.barrier",
    "traffic_cone": "movable_object.trafficcone",
}
ATTRIBUTES = {"car": "vehicle.parked", "truck": "vehicle.parked", "pedestrian": "pedestrian.standing"}
PLACES = {"car": (10.0, 5.0), "truck": (-20.0, 3.0), "pedestrian": (0.0, 12.0), "barrier": (8.0, -8.0)}
PLACES["traffic_cone"] = (-5.0, -9.0)
SPLIT = {"version": "v1.0-mini", "split": "mini_val", "config": "detection_cvpr_2019"}
SAMPLES = ["scene-0103-0", "scene-0103-1"]


def write_set(root: Path, classes: tuple[str, ...] = tuple(CATEGORIES)) -> None:
    """Two scenes (mini_train, mini_val) of two keyframes with one standing object of each class, ego at the origin."""
    still = {"translation": [0.0, 0.0, 0.0], "rotation": [1.0, 0.0, 0.0, 0.0]}
    tables: dict[str, list[dict]] = {
        "category": [{"token": c, "name": c} for c in CATEGORIES.values()],
        "attribute": [{"token": a, "name": a} for a in sorted(set(ATTRIBUTES.values()))],
        "visibility": [{"token": "4", "level": "v80-100"}],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [{"token": "cal", "sensor_token": "lidar", "camera_intrinsic": [], **still}],
        "log": [{"token": "log", "location": "boston-seaport"}],
        "map": [{"token": "map", "log_tokens": ["log"], "filename": "maps/one.png", "category": "semantic_prior"}],
        **{name: [] for name in ("ego_pose", "scene", "sample", "sample_data", "instance", "sample_annotation")},
    }
    for scene in ("scene-0061", "scene-0103"):
        samples = [f"{scene}-{i}" for i in range(2)]
        ends = {"first_sample_token": samples[0], "last_sample_token": samples[1]}
        tables["scene"].append({"token": scene, "name": scene, "log_token": "log", "description": "", **ends})
        for i, sample in enumerate(samples):
            order = {"prev": samples[0] if i else "", "next": "" if i else samples[1]}
            tables["sample"].append({"token": sample, "timestamp": 500_000 * i, "scene_token": scene, **order})
            tables["ego_pose"].append({"token": f"pose-{sample}", "timestamp": 500_000 * i, **still})
            tables["sample_data"].append(
                {"token": f"data-{sample}", "sample_token": sample, "ego_pose_token": f"pose-{sample}", "prev": "",
                 "next": "", "calibrated_sensor_token": "cal", "is_key_frame": True, "timestamp": 500_000 * i,
                 "filename": f"samples/LIDAR_TOP/{sample}.pcd.bin"}
            )  # fmt: skip
            for name in classes:
                tables["sample_annotation"].append(
                    {"token": f"{name}-{sample}", "sample_token": sample, "instance_token": f"{name}-{scene}",
                     "translation": [*PLACES[name], 1.0], "size": [2.0, 4.0, 1.5], "rotation": [1.0, 0.0, 0.0, 0.0],
                     "attribute_tokens": [ATTRIBUTES[name]] if name in ATTRIBUTES else [], "num_lidar_pts": 5,
                     "num_radar_pts": 0, "visibility_token": "4",
                     **{k: f"{name}-{v}" if v else "" for k, v in order.items()}}
                )  # fmt: skip
        tables["instance"] += [{"token": f"{name}-{scene}", "category_token": CATEGORIES[name]} for name in classes]
    for name, rows in tables.items():
        file = root / "v1.0-mini" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
    (root / "maps").mkdir()
    Image.new("L", (4, 4)).save(root / "maps" / "one.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nuscenes")
    write_set(folder)
    return folder


def box(sample: str, name: str, **changes) -> dict:
    """The ground truth of one object as a prediction, with changes."""
    return {
        "sample_token": sample,
        "translation": [*PLACES[name], 1.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": name,
        "detection_score": 0.9,
        "attribute_name": ATTRIBUTES.get(name, ""),
        **changes,
    }


def write_predictions(path: Path, boxes: list[dict], samples: list[str] = SAMPLES) -> Path:
    results = {sample: [b for b in boxes if b["sample_token"] == sample] for sample in samples}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": {"use_lidar": True}, "results": results}))
    return path


def truth(*classes: str, **changes) -> list[dict]:
    return [box(sample, name, **changes) for sample in SAMPLES for name in classes or CATEGORIES]


def nds(scores: dict) -> float:
    return (5 * scores["mAP"] + sum(1 - min(1, scores[error]) for error in detection.ERRORS)) / 10


def test_ground_truth_scores_one_on_each_class_that_is_there(root, tmp_path, capfd):
    scores = detection.evaluate(write_predictions(tmp_path / "p.json", truth()), root=root, **SPLIT)
    assert scores["AP"] == pytest.approx({name: float(name in CATEGORIES) for name in CLASSES})
    assert list(scores["AP"]) == list(CLASSES)
    assert scores["mAP"] == pytest.approx(0.5)
    # Five of ten classes are right: absent classes count with an error of 1 where they have one.
    assert scores["mATE"] == pytest.approx(5 / 10)
    assert scores["mAOE"] == pytest.approx(5 / 9)  # not defined for cones
    assert scores["mAVE"] == pytest.approx(5 / 8)  # nor for barriers
    assert scores["NDS"] == pytest.approx((5 * 0.5 + 0.5 + 0.5 + 4 / 9 + 3 / 8 + 3 / 8) / 10)
    cone = {"trans_err": 0, "scale_err": 0, "orient_err": None, "vel_err": None, "attr_err": None}
    assert scores["errors"]["traffic_cone"] == pytest.approx(cone)
    assert "NaN" not in json.dumps(scores)
    assert capfd.readouterr() == ("", "")


def test_one_class_right_is_a_tenth(root, tmp_path):
    scores = detection.evaluate(write_predictions(tmp_path / "p.json", truth("car")), root=root, **SPLIT)
    assert scores["mAP"] == pytest.approx(0.1)
    assert scores["NDS"] == pytest.approx(nds(scores))
    assert scores["mASE"] == pytest.approx(0.9)


def test_errors_are_what_was_put_in(root, tmp_path):
    yaw = 0.3
    changes = {"translation": [10.9, 6.2, 1.0], "velocity": [0.3, 0.4], "size": [2.0, 4.0, 3.0]}
    changes |= {"rotation": [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)], "attribute_name": "vehicle.moving"}
    scores = detection.evaluate(write_predictions(tmp_path / "p.json", truth("car", **changes)), root=root, **SPLIT)
    # 1.5 m off: no match at 0.5 m and 1 m, one at 2 m and 4 m.
    assert scores["AP"]["car"] == pytest.approx(0.5)
    expected = {"trans_err": 1.5, "scale_err": 0.5, "orient_err": yaw, "vel_err": 0.5, "attr_err": 1.0}
    assert scores["errors"]["car"] == pytest.approx(expected)


def test_nothing_predicted_scores_zero(root, tmp_path):
    scores = detection.evaluate(write_predictions(tmp_path / "p.json", []), root=root, **SPLIT)
    assert scores["mAP"] == scores["NDS"] == 0
    assert [scores[error] for error in detection.ERRORS] == [1] * 5
    assert scores["errors"]["barrier"]["vel_err"] is None


def test_equal_to_the_devkit_and_one_file_does_not_change_the_next(root, tmp_path):
    from nuscenes import NuScenes
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    generator = np.random.default_rng(0)
    noisy = []
    for sample in SAMPLES:
        for name in [*CATEGORIES, "car", "bus"]:
            place = np.add(PLACES.get(name, (20.0, 20.0)), generator.normal(0, 0.7, 2)).tolist()
            score = float(generator.uniform())
            changes = {"detection_name": name, "detection_score": score, "translation": [*place, 1.0]}
            noisy.append(box(sample, "car") | changes)
    noisy[0]["velocity"] = [float("nan")] * 2  # the devkit allows it
    file = write_predictions(tmp_path / "noisy.json", noisy)
    full = write_predictions(tmp_path / "full.json", truth())
    ours = detection.evaluate_many({"a": file, "b": full, "c": file}, root=root, **SPLIT)
    with contextlib.redirect_stderr(io.StringIO()):
        nusc = NuScenes(SPLIT["version"], str(root), verbose=False)
        settings = config_factory(SPLIT["config"])
        scorer = DetectionEval(nusc, settings, str(file), "mini_val", str(tmp_path / "out"), verbose=False)
        theirs, _ = scorer.evaluate()
    assert 0 < ours["a"]["mAP"] < 0.5
    assert ours["a"] == ours["c"]
    assert (ours["a"]["mAP"], ours["a"]["NDS"]) == (theirs.mean_ap, theirs.nd_score)
    assert {name: ours["a"][name] for name in detection.ERRORS} == {
        name: theirs.tp_errors[error] for name, error in detection.ERRORS.items()
    }


def test_a_split_of_splits_json(tmp_path):
    write_set(tmp_path)
    (tmp_path / "v1.0-mini" / "splits.json").write_text(json.dumps({"tiny": ["scene-0103"]}))
    file = write_predictions(tmp_path / "p.json", truth(), [*SAMPLES, "scene-0061-0"])
    assert detection.evaluate(file, root=tmp_path, **SPLIT | {"split": "tiny"})["mAP"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="1 samples are not in split 'mini_val', the first is scene-0061-0"):
        detection.evaluate(file, root=tmp_path, **SPLIT)


def test_a_missing_sample_is_refused(root, tmp_path):
    file = write_predictions(tmp_path / "p.json", truth(), SAMPLES[:1])
    with pytest.raises(InputError, match=r"p\.json: 1 of the 2 samples of split 'mini_val' are missing.*scene-0103-1"):
        detection.evaluate(file, root=root, **SPLIT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection_name": "tram"}, "Unknown detection_name tram"),
        ({"size": [0.0, 1.0, 1.0]}, "is not positive"),
        ({"translation": [0.0, float("nan"), 0.0]}, "may not be NaN"),
        ({"velocity": [float("inf"), 0.0]}, "not finite"),
        ({"translation": [0.0, 1.0]}, "must have 3 elements"),
        ({"detection_score": "high"}, "could not convert"),
    ],
)
def test_a_bad_box_is_refused_with_its_place(root, tmp_path, changes, message):
    boxes = truth()
    boxes[1].update(changes)
    with pytest.raises(InputError, match=rf"p\.json: sample scene-0103-0, box 1: .*{message}"):
        detection.evaluate(write_predictions(tmp_path / "p.json", boxes), root=root, **SPLIT)


def test_a_missing_key_and_too_many_boxes_are_refused(root, tmp_path):
    boxes = truth("car")
    del boxes[0]["velocity"]
    with pytest.raises(InputError, match="box 0: key 'velocity' is missing"):
        detection.evaluate(write_predictions(tmp_path / "p.json", boxes), root=root, **SPLIT)
    many = [box(SAMPLES[0], "car") for _ in range(501)]
    with pytest.raises(InputError, match="501 boxes, nuScenes allows 500"):
        detection.evaluate(write_predictions(tmp_path / "p.json", many), root=root, **SPLIT)


@pytest.mark.parametrize("text", ['{"results": {', "[]", '{"results": [], "meta": {}}', '{"results": {}}'])
def test_a_malformed_file_is_refused(root, tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=r"p\.json: "):
        detection.evaluate(tmp_path / "p.json", root=root, **SPLIT)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", "v1.0-trainval", "has no version v1.0-trainval"),
        ("split", "val", "split 'val' is not in v1.0-mini"),
        ("split", "none-such", "split 'none-such' is not in v1.0-mini"),
        ("config", "detection_none", "no configuration 'detection_none'"),
    ],
)
def test_a_wrong_setting_is_refused(root, tmp_path, key, value, message):
    file = write_predictions(tmp_path / "p.json", [])
    with pytest.raises(InputError, match=message):
        detection.evaluate(file, root=root, **SPLIT | {key: value})


def test_collect_means_and_spreads_over_seeds(root, tmp_path):
    models, results = tmp_path / "models", tmp_path / "results"
    for seed, boxes in enumerate([truth("car"), truth("car", "truck")]):
        folder = models / "student" / f"seed{seed}"
        write_predictions(folder / "predictions.json", boxes)
        (folder / "curve.csv").write_text("step,loss\n1,0.50\n2,0.25\n")
        (folder / "provenance.json").write_text(json.dumps({"commit": "abc", "seed": seed}))
        (folder / "weights.safetensors").write_bytes(b"weights")
    where = {"experiment": Experiment(tmp_path), "root": root, **SPLIT}
    detection.collect("student", seeds=[0, 1], **where)
    metrics = json.loads((results / "runs" / "student" / "metrics.json").read_text())
    assert metrics["mAP"] == pytest.approx(0.15)
    assert metrics["n"] == 2
    assert [metrics["seeds"][seed]["mAP"] for seed in "01"] == pytest.approx([0.1, 0.2])
    assert metrics["spread"]["mAP"] == pytest.approx(0.1 / 2**0.5)
    assert metrics["AP"]["truck"] == pytest.approx(0.5)
    assert metrics["errors"]["barrier"]["vel_err"] is None
    assert metrics["NDS"] == pytest.approx(nds(metrics))  # linear here: no error exceeds 1
    curve = (results / "runs" / "student" / "curve.csv").read_text()
    assert curve == "seed,step,loss\n0,1,0.50\n0,2,0.25\n1,1,0.50\n1,2,0.25\n"
    made = json.loads((results / "runs" / "student" / "provenance.json").read_text())
    assert made["seeds"]["1"] == {"commit": "abc", "seed": 1}
    assert set(made["evaluation"]["predictions"]) == {"0", "1"}

    detection.collect("student", seeds=[1], **where)
    metrics = json.loads((results / "runs" / "student" / "metrics.json").read_text())
    assert metrics["spread"]["NDS"] is None
    assert len(pd.read_csv(results / "runs" / "student" / "curve.csv")) == 2


def test_collect_refuses_an_unfinished_run_and_writes_nothing(root, tmp_path):
    where = {"experiment": Experiment(tmp_path), "root": root, **SPLIT}
    with pytest.raises(InputError, match=r"student/seed0/predictions\.json.*vexkd predict"):
        detection.collect("student", seeds=[0], **where)
    assert not (tmp_path / "results").exists()
