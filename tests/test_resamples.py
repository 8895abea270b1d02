"""Scores of resampled scenes against nuscenes-devkit on data sets in which the drawn scenes stand as often as drawn."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from vexkd.evaluate import detection, resamples, segmentation

SETTINGS = config_factory("detection_cvpr_2019")
CLASSES = ("car", "pedestrian", "barrier", "traffic_cone")


def some_box(rng: np.random.Generator, token: str, **changes: Any) -> DetectionBox:
    yaw = rng.uniform(-np.pi, np.pi)
    values = {
        "sample_token": token,
        "translation": (*rng.uniform(-15, 15, 2), 0.0),
        "size": tuple(rng.uniform(0.5, 5, 3)),
        "rotation": (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)),
        "velocity": tuple(rng.normal(size=2)),
        "detection_name": str(rng.choice(CLASSES)),
        "attribute_name": str(rng.choice(["", "vehicle.parked", "vehicle.moving"])),
    }
    return DetectionBox(**values | changes)


def noisy(rng: np.random.Generator, gt: DetectionBox) -> DetectionBox:
    """A true box seen badly, sometimes as another class; the score has few digits, so that there are ties."""
    values = gt.serialize()
    kept = ("sample_token", "size", "rotation", "attribute_name", "detection_name")
    return DetectionBox(
        **{key: values[key] for key in kept} | {"detection_score": round(rng.uniform(), 1)},
        translation=tuple(np.array(gt.translation) + [*rng.normal(scale=1.0, size=2), 0.0]),
        velocity=tuple(rng.normal(size=2)),
    )


@pytest.fixture
def boxes() -> tuple[EvalBoxes, EvalBoxes]:
    """Four scenes of three samples: crowded ground truth, some without velocity, and predictions hits and misses mixed."""
    rng = np.random.default_rng(0)
    truth, predicted = EvalBoxes(), EvalBoxes()
    for sample in range(12):
        token = f"scene{sample // 3}-{sample}"
        gts = [some_box(rng, token) for _ in range(15)]
        gts[0].velocity = (np.nan, np.nan)
        truth.add_boxes(token, gts)
        seen = [noisy(rng, gt) for gt in gts if rng.uniform() < 0.8]
        alarms = [some_box(rng, token, detection_score=round(rng.uniform(), 1)) for _ in range(8)]
        predicted.add_boxes(token, seen + alarms)
    return truth, predicted


def devkit(truth: EvalBoxes, predicted: EvalBoxes) -> tuple[float, float]:
    scorer = DetectionEval.__new__(DetectionEval)
    scorer.cfg, scorer.verbose, scorer.gt_boxes, scorer.pred_boxes = SETTINGS, False, truth, predicted
    metrics, _ = scorer.evaluate()
    return metrics.mean_ap, metrics.nd_score


def repeated(boxes: EvalBoxes, counts: list[int]) -> EvalBoxes:
    """The data set in which every sample of scene s stands counts[s] times, each time under another token."""
    found = EvalBoxes()
    for token in boxes.sample_tokens:
        for copy in range(counts[scene(token)]):
            name = f"{token}-{copy}"
            rows = [DetectionBox(**_fields(box) | {"sample_token": name}) for box in boxes[token]]
            found.add_boxes(name, rows)
    return found


def _fields(box: DetectionBox) -> dict[str, Any]:
    return {key: value for key, value in box.serialize().items() if key in DetectionBox.__init__.__annotations__}


def scene(token: str) -> int:
    return int(token.split("-")[0].removeprefix("scene"))


def scores(truth: EvalBoxes, predicted: EvalBoxes, counts: list[int]) -> tuple[float, float]:
    places = {token: scene(token) for token in truth.sample_tokens}
    matches = resamples.match(truth, predicted, places, len(counts), SETTINGS)
    return resamples.detection_scores(matches, np.array(counts), SETTINGS)


def test_each_scene_once_is_the_devkits_score(boxes):
    found, expected = scores(*boxes, [1, 1, 1, 1]), devkit(*boxes)
    assert 0.05 < expected[0] < 0.5
    assert found == expected  # to the last bit


@pytest.mark.parametrize("counts", [[2, 0, 1, 1], [0, 0, 4, 0], [1, 3, 0, 0]])
def test_a_draw_is_scored_as_a_data_set_of_the_drawn_scenes(boxes, counts):
    """Ties in score between two samples have no order of their own: scores are made distinct for the comparison."""
    truth, predicted = boxes
    for number, box in enumerate(predicted.all):
        box.detection_score += 1e-4 * number
    again = [repeated(each, counts) for each in (truth, predicted)]
    assert scores(truth, predicted, counts) == pytest.approx(devkit(*again), rel=1e-12)


def test_a_class_without_detections_or_ground_truth(boxes):
    truth, predicted = boxes
    for each, gone in ((truth, "barrier"), (predicted, "pedestrian")):
        for token in each.sample_tokens:
            each.boxes[token] = [box for box in each[token] if box.detection_name != gone]
    assert scores(truth, predicted, [1, 1, 1, 1]) == devkit(truth, predicted)


def test_equal_to_the_devkit_on_the_town(town):
    rng = np.random.default_rng(1)
    nusc = detection._open(town / "data", "v1.0-mini")
    truth, _ = detection._ground_truth(nusc, "mini_val", SETTINGS)
    predicted = EvalBoxes()
    for token in truth.sample_tokens:
        predicted.add_boxes(token, [noisy(rng, gt) for gt in truth[token] if rng.uniform() < 0.7])
    matches = resamples.match(truth, predicted, dict.fromkeys(truth.sample_tokens, 0), 1, SETTINGS)
    expected = devkit(truth, predicted)
    assert expected[0] > 0.05
    assert resamples.detection_scores(matches, np.array([1]), SETTINGS) == expected


def test_draws_are_the_same_for_every_run_and_fair():
    drawn = resamples.draws(6)
    assert drawn.shape == (resamples.DRAWS, 6)
    assert (drawn.sum(axis=1) == 6).all()
    assert (drawn == resamples.draws(6)).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(6), abs=0.1)
    assert drawn[:, 0].var() == pytest.approx(6 * 1 / 6 * 5 / 6, rel=0.15)  # binomial


def test_map_scores_of_draws_count_cells_of_drawn_scenes():
    rng = np.random.default_rng(2)
    levels, labels = rng.integers(0, 8, (3, 6, 8, 8)), rng.integers(0, 2, (3, 6, 8, 8))
    counts = {f"scene-{s}": segmentation.Accumulator() for s in range(3)}
    for s, counted in enumerate(counts.values()):
        counted.add(levels[s], labels[s])
    found = resamples.of_segmentation(counts)["mIoU"]
    for draw in (0, 1, 2):
        expected = segmentation.Accumulator()
        for s, number in enumerate(resamples.draws(3)[draw]):
            for _ in range(number):
                expected.add(levels[s], labels[s])
        assert found[draw] == pytest.approx(expected.result()["mIoU"], rel=1e-12)


def test_a_saved_file_says_what_was_drawn(tmp_path, boxes):
    truth, predicted = boxes
    scene_of = {token: f"scene-{scene(token)}" for token in truth.sample_tokens}
    found = resamples.of_detection(truth, predicted, scene_of, SETTINGS)
    resamples.save(tmp_path / "resamples.json", list(scene_of.values()), {"0": found})
    stored = json.loads((tmp_path / "resamples.json").read_text())
    assert stored["scenes"] == ["scene-0", "scene-1", "scene-2", "scene-3"]
    assert stored["seeds"]["0"]["NDS"] == pytest.approx(found["NDS"], abs=1e-6)
    assert np.mean(found["mAP"]) == pytest.approx(devkit(truth, predicted)[0], abs=0.02)
