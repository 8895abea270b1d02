"""Scores without a sensor: the files of that prediction in, one file of scores out, the run's own left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vexkd import boxes, geometry
from vexkd.boxes import CLASSES
from vexkd.data import infos
from vexkd.errors import InputError
from vexkd.evaluate import detection, missing
from vexkd.experiment import Experiment

SPLIT = {"version": "v1.0-mini", "split": "mini_val", "config": "detection_cvpr_2019"}


def write(path: Path, known: infos.Infos, every: int) -> None:
    """The true boxes of a split as predictions, of each sample every second one, say."""
    results = {}
    for keyframe in (known[i] for i in range(len(known))):
        rows = boxes.move(keyframe.boxes, keyframe.global_from_lidar)
        results[keyframe.token] = [
            {"sample_token": keyframe.token, "translation": list(b[:3]), "size": list(b[[4, 3, 5]]), "velocity": [0, 0],
             "rotation": list(geometry.yaw_rotation(b[6]).elements), "detection_name": CLASSES[label],
             "detection_score": 0.9, "attribute_name": ""}
            for b, label in list(zip(rows, keyframe.labels, strict=True))[::every]
        ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": {}, "results": results}))


def test_a_detector_without_a_sensor(settings, town, tmp_path):
    run = settings.run("fusion-det")
    known = infos.load(town / "infos").subset("mini_val")
    folder = tmp_path / "models" / "fusion-det"
    for seed in (0, 1):
        write(folder / f"seed{seed}" / "predictions.json", known, every=1)
        write(folder / f"seed{seed}" / "predictions-without-lidar.json", known, every=2 + seed)
    places = {"experiment": Experiment(tmp_path), "root": town / "data"}
    places |= {"infos": town / "infos", "maps": tmp_path, "seeds": [0, 1]}
    missing.collect(run, "lidar", **places)
    target = tmp_path / "results" / "runs" / "fusion-det"
    assert [path.name for path in target.iterdir()] == ["metrics-without-lidar.json"]
    found = json.loads((target / "metrics-without-lidar.json").read_text())
    alone = [
        detection.evaluate(folder / f"seed{seed}" / "predictions-without-lidar.json", root=town / "data", **SPLIT)
        for seed in (0, 1)
    ]
    assert found["n"] == 2
    assert found["mAP"] == pytest.approx((alone[0]["mAP"] + alone[1]["mAP"]) / 2)
    assert alone[0]["mAP"] > alone[1]["mAP"] > 0
    with pytest.raises(InputError, match=r"predictions-without-camera\.json: .* 'vexkd predict --drop camera'"):
        missing.collect(run, "camera", **places)
