"""Scores of resampled scenes against nuscenes-devkit on data sets in which the drawn scenes stand as often as drawn."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from vexkd.evaluate import array_scorer, box_columns, detection, ground_truth, resamples, segmentation

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


def columns(boxes: EvalBoxes, tokens: list[str]) -> box_columns.Boxes:
    rows = [box for token in tokens for box in boxes[token]]

    def vectors(name: str, length: int) -> np.ndarray:
        return np.array([getattr(box, name) for box in rows], dtype=float).reshape(-1, length)

    return box_columns.Boxes(
        sample=np.array([tokens.index(box.sample_token) for box in rows], dtype=int),
        label=np.array([box_columns.CLASS_NUMBER[box.detection_name] for box in rows], dtype=int),
        translation=vectors("translation", 3),
        size=vectors("size", 3),
        rotation=vectors("rotation", 4),
        velocity=vectors("velocity", 2),
        score=np.array([box.detection_score for box in rows]),
        attribute=np.array([box_columns.ATTRIBUTE_NUMBER[box.attribute_name] for box in rows], dtype=int),
        points=np.array([box.num_pts for box in rows], dtype=int),
    )


def matched(truth: EvalBoxes, predicted: EvalBoxes, scenes: int) -> dict[str, array_scorer.Matches]:
    tokens = truth.sample_tokens
    numbers = np.array([scene(token) for token in tokens])
    settings = array_scorer.configuration("detection_cvpr_2019")
    return array_scorer.matches(columns(truth, tokens), columns(predicted, tokens), numbers, scenes, settings)


def scores(truth: EvalBoxes, predicted: EvalBoxes, counts: list[int]) -> tuple[float, float]:
    return resamples.detection_scores(matched(truth, predicted, len(counts)), np.array(counts), SETTINGS)


def expanded(matches: dict[str, array_scorer.Matches], counts: np.ndarray) -> tuple[float, float]:
    """The scores of one draw with every detection written out as often as its scene was drawn, scored as one file is."""
    written = {}
    for name, each in matches.items():
        copies = counts[each.scene]
        strict = each.hit[each.strict]
        written[name] = array_scorer.Matches(
            scene=np.zeros(copies.sum(), dtype=int),
            score=np.repeat(each.score, copies),
            hit=np.repeat(each.hit, copies, axis=1),
            errors=np.repeat(each.errors, copies[strict], axis=1),
            strict=each.strict,
            positives=np.array([each.positives @ counts]),
        )
    found = array_scorer.score(written, array_scorer.configuration("detection_cvpr_2019"))
    return found.mean_ap, found.nds


def test_each_scene_once_is_the_devkits_score(boxes):
    found, expected = scores(*boxes, [1, 1, 1, 1]), devkit(*boxes)
    assert 0.05 < expected[0] < 0.5
    assert found == pytest.approx(expected, abs=1e-14)


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
    assert scores(truth, predicted, [1, 1, 1, 1]) == pytest.approx(devkit(truth, predicted), abs=1e-14)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    detections=st.integers(0, 60),
    hits=st.floats(0, 1),
    digits=st.sampled_from([1, 2, 9]),
    unknown=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_running_sums_give_what_writing_every_copy_out_gives(seed, detections, hits, digits, unknown):
    """Few draws and many ties, unknown errors, scenes that no draw has, classes of which nothing is hit."""
    rng = np.random.default_rng(seed)
    matches = {}
    for name in CLASSES:
        hit = np.cumsum(rng.uniform(size=(4, detections)) < hits / 2, axis=0) > 0  # at each threshold those below, too
        positives = rng.integers(0, 4, 3) + np.bincount(rng.integers(0, 3, hit[3].sum()), minlength=3)
        errors = rng.uniform(0, 2, (5, hit[2].sum()))
        errors[3:, rng.uniform(size=hit[2].sum()) < unknown] = np.nan
        score = np.sort(rng.uniform(size=detections).round(digits))[::-1]
        matches[name] = array_scorer.Matches(rng.integers(0, 3, detections), score, hit, errors, 2, positives)
    counts = np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1], [1, 2, 0], [0, 0, 3]])
    found = np.stack(resamples.scores_of_draws(matches, counts, SETTINGS), axis=1)
    assert np.allclose(found, [expanded(matches, row) for row in counts], rtol=0, atol=1e-13)


def test_equal_to_the_devkit_on_the_town(town):
    rng = np.random.default_rng(1)
    truth = ground_truth.read(town / "data", "v1.0-mini", "mini_val")
    chosen = np.flatnonzero(rng.uniform(size=len(truth.boxes)) < 0.7)
    results: dict[str, list[dict[str, Any]]] = {token: [] for token in truth.tokens}
    for i in chosen:
        token = truth.tokens[truth.boxes.sample[i]]
        place = truth.boxes.translation[i] + [*rng.normal(size=2), 0.0]
        box = {
            "sample_token": token,
            "translation": place.tolist(),
            "size": truth.boxes.size[i].tolist(),
            "rotation": truth.boxes.rotation[i].tolist(),
            "velocity": rng.normal(size=2).tolist(),
            "detection_name": box_columns.CLASSES[truth.boxes.label[i]],
            "detection_score": round(rng.uniform(), 1),
            "attribute_name": box_columns.ATTRIBUTES[truth.boxes.attribute[i]],
        }
        results[token].append(box)
    file = town / "noisy.json"
    file.write_text(json.dumps({"meta": {}, "results": results}))
    where = {"root": town / "data", "version": "v1.0-mini", "split": "mini_val", "config": "detection_cvpr_2019"}
    ((_, scored),) = detection.score_files({"": file}, **where, held_to_devkit=True)
    assert scored.score.mean_ap > 0.05
    counts = np.ones(len(scored.scenes), dtype=int)
    expected = (scored.score.mean_ap, scored.score.nds)
    assert resamples.detection_scores(scored.matches, counts, SETTINGS) == pytest.approx(expected, abs=1e-14)


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
    scenes = [f"scene-{scene(token)}" for token in truth.sample_tokens]
    found = resamples.of_detection(matched(truth, predicted, 4), SETTINGS)
    resamples.save(tmp_path / "resamples.json", scenes, {"0": found})
    stored = json.loads((tmp_path / "resamples.json").read_text())
    assert stored["scenes"] == ["scene-0", "scene-1", "scene-2", "scene-3"]
    assert stored["seeds"]["0"]["NDS"] == pytest.approx(found["NDS"], abs=1e-6)
    assert np.mean(found["mAP"]) == pytest.approx(devkit(truth, predicted)[0], abs=0.02)
