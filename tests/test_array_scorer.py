"""The array scorer against nuscenes-devkit, its own loading and filters included, on cases made to tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detection_cases import CONFIG, SPLIT, VERSION, Hardness, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vexkd.errors import InputError
from vexkd.evaluate import array_scorer, box_columns, detection, matching, referee

WHERE = {"version": VERSION, "split": SPLIT, "config": CONFIG}
hardness = st.builds(
    Hardness,
    step=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    digits=st.sampled_from([0, 1, 2, 9]),
    kinds=st.integers(1, 10),
    things=st.integers(1, 40),
    alarms=st.integers(0, 40),
    unknown_velocity=st.booleans(),
    racks=st.booleans(),
    empty=st.booleans(),
    shuffled=st.booleans(),
    lowest=st.sampled_from([-1.0, 0.0, 0.5]),
    offset=st.sampled_from([0.0, 500.0]),
)


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("case")


def scored_or_refused(folder: Path, file: Path) -> tuple[detection.Scored | None, str]:
    """A case's scores, or why there are none."""
    try:
        return next(detection.score_files({"": file}, root=folder / "set", **WHERE))[1], ""
    except InputError as error:
        return None, str(error)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32 - 1), hard=hardness)
@example(seed=0, hard=Hardness(step=0.5, digits=1, things=60, alarms=60, offset=0.0))  # ties everywhere
@example(seed=1, hard=Hardness(digits=0, lowest=-1.0))  # scores of 0, the devkit's mark of an unreached recall
@example(seed=2, hard=Hardness(kinds=1, things=3, alarms=0))
@example(seed=3, hard=Hardness(things=80, alarms=0, racks=False, empty=False, digits=9))
def test_equal_to_the_devkit_on_hard_cases(tmp_path_factory, seed, hard):
    folder = tmp_path_factory.mktemp("case")
    file = write(folder, seed, hard)
    nusc = referee.open_set(folder / "set", VERSION)
    scored, refusal = scored_or_refused(folder, file)
    if scored is None and "no annotated box" in refusal:
        assert referee.score(nusc, file, SPLIT, CONFIG) is None
        return
    if scored is None:
        assert "a score below 0" in refusal
        with pytest.raises(InputError, match="nuscenes-devkit refuses it"):
            referee.score(nusc, file, SPLIT, CONFIG)
        return
    assert referee.hold(scored.score, file, nusc=nusc, split=SPLIT, config=CONFIG) <= 1e-12
    expected = referee.score(nusc, file, SPLIT, CONFIG)
    if expected is not None:
        assert np.array_equal(scored.score.ap, expected.ap)  # no more than the errors' last bits may differ


def plain(truth: np.ndarray, predicted: np.ndarray, score: np.ndarray, threshold: float) -> list[int]:
    """The devkit's loop for one sample and class: the true box of each detection, from the surest on."""
    taken: set[int] = set()
    found = []
    for i in [i for _, i in sorted((s, i) for i, s in enumerate(score))][::-1]:
        nearest, least = -1, np.inf
        for j, place in enumerate(truth):
            distance = np.linalg.norm(predicted[i] - place)
            if j not in taken and distance < least:
                nearest, least = j, distance
        found.append(nearest if least < threshold else -1)
        if least < threshold:
            taken.add(nearest)
    return found


def boxes_at(places: np.ndarray, score: np.ndarray) -> box_columns.Boxes:
    count = len(places)
    zeros = np.zeros(count, dtype=np.int64)
    return box_columns.Boxes(
        sample=zeros, label=zeros, translation=np.column_stack([places, np.zeros(count)]), size=np.ones((count, 3)),
        rotation=np.tile([1.0, 0, 0, 0], (count, 1)), velocity=np.zeros((count, 2)), score=score, attribute=zeros,
        points=zeros - 1,
    )  # fmt: skip


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.tuples(st.integers(0, 25), st.integers(0, 40)),
    lattice=st.booleans(),
    threshold=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_proposals_in_rounds_give_the_pairs_of_the_loop(seed, counts, lattice, threshold):
    rng = np.random.default_rng(seed)
    truth, predicted = (rng.uniform(-4, 4, (count, 2)) for count in counts)
    if lattice:
        truth, predicted = np.round(truth), np.round(predicted * 2) / 2
    score = rng.uniform(size=counts[1]).round(1)
    found = matching.match(boxes_at(truth, np.zeros(counts[0])), boxes_at(predicted, score), [threshold])
    assert found.partner[0].tolist() == plain(truth, predicted, score, threshold)


def test_errors_are_the_devkits():
    from nuscenes.eval.common import utils
    from nuscenes.eval.detection.data_classes import DetectionBox

    rng = np.random.default_rng(0)
    count = 500

    def some() -> box_columns.Boxes:
        rotation = rng.normal(size=(count, 4)) * rng.choice([0.0, 1.0], size=(count, 4), p=[0.3, 0.7]) + [0.1, 0, 0, 0]
        rotation[::2] /= np.linalg.norm(rotation[::2], axis=1, keepdims=True)
        return box_columns.Boxes(
            sample=np.zeros(count, int), label=rng.integers(0, 10, count), translation=rng.normal(size=(count, 3)) * 700,
            size=rng.uniform(0.1, 9, (count, 3)), rotation=rotation, velocity=rng.normal(size=(count, 2)),
            score=np.zeros(count), attribute=rng.integers(0, 9, count), points=np.zeros(count, int),
        )  # fmt: skip

    def devkit(boxes: box_columns.Boxes, i: int) -> DetectionBox:
        return DetectionBox(
            "", *(tuple(getattr(boxes, name)[i]) for name in ("translation", "size", "rotation", "velocity")),
            attribute_name=box_columns.ATTRIBUTES[boxes.attribute[i]],
        )  # fmt: skip

    truth, hits = some(), some()
    found = array_scorer._errors(truth, hits)
    for i in range(count):
        a, b = devkit(truth, i), devkit(hits, i)
        period = np.pi if truth.label[i] == box_columns.CLASS_NUMBER["barrier"] else 2 * np.pi
        expected = [
            utils.center_distance(a, b),
            1 - utils.scale_iou(a, b),
            utils.yaw_diff(a, b, period),
            utils.velocity_l2(a, b),
            1 - utils.attr_acc(a, b),
        ]
        assert np.allclose(found[:, i], expected, rtol=0, atol=1e-12, equal_nan=True), i  # sums may round by alignment


def test_the_referee_refuses_a_score_that_is_not_the_devkits(scratch):
    file = write(scratch, 5, Hardness(things=40))
    where = {"root": scratch / "set", **WHERE}
    ((_, scored),) = detection.score_files({"": file}, **where)
    assert detection.evaluate(file, **where, held_to_devkit=True) == scored.score.plain()
    scored.score.errors[3, 1] += 1e-11
    nusc = referee.open_set(scratch / "set", VERSION)
    with pytest.raises(InputError, match=r"predictions\.json: scale_err of trailer is .* by nuscenes-devkit"):
        referee.hold(scored.score, file, nusc=nusc, split=SPLIT, config=CONFIG)


def test_a_null_is_no_number_and_a_text_may_say_nan(scratch):
    file = write(scratch, 6, Hardness(unknown_velocity=False))
    where = {"root": scratch / "set", **WHERE}
    expected = detection.evaluate(file, **where)
    content = json.loads(file.read_text())
    content["meta"]["note"] = "not NaN, null"
    token = next(token for token, boxes in content["results"].items() if boxes)
    file.write_text(json.dumps(content))
    assert detection.evaluate(file, **where) == expected
    content["results"][token][0]["velocity"] = [float("nan"), 0.0]
    file.write_text(json.dumps(content))
    assert detection.evaluate(file, **where, held_to_devkit=True)["AP"] == expected["AP"]
    content["results"][token][0]["velocity"] = [None, 0.0]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"sample {token}, box 0: its velocity is null"):
        detection.evaluate(file, **where)
