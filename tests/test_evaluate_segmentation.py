"""The map metric: closed-form cases, and a plain count of the same definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vexkd.data.map_predictions import THRESHOLDS, levels, pack, unpack
from vexkd.errors import InputError
from vexkd.evaluate import segmentation
from vexkd.evaluate.segmentation import Accumulator, score

SHAPE = (6, 20, 30)


def labels_of(share: float, seed: int = 0) -> np.ndarray:
    """Exactly this share of each class's cells are 1."""
    flat = np.zeros((6, 600), dtype=np.uint8)
    flat[:, : round(600 * share)] = 1
    return np.random.default_rng(seed).permuted(flat, axis=1).reshape(SHAPE)


def result_of(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    counts = Accumulator()
    counts.add(levels(probabilities), labels)
    return counts.result()


def plain_iou(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, T), as the definition reads."""
    found = np.zeros((6, 7))
    for c in range(6):
        for t, threshold in enumerate(THRESHOLDS):
            predicted, true = probabilities[:, c] >= np.float32(threshold), labels[:, c].astype(bool)
            hit, union = (predicted & true).sum(), (predicted | true).sum()
            found[c, t] = hit / (union + 1e-7)
    return found


def test_a_perfect_prediction_scores_one():
    labels = labels_of(0.3)
    result = result_of(labels.astype(np.float32), labels)
    assert result["mIoU"] == pytest.approx(1.0)
    assert np.allclose(list(result["curve"]["IoU"].values()), 1.0), "at every threshold"
    assert list(result["IoU"]) == list(segmentation.CLASSES)


def test_a_constant_half_on_thirty_percent():
    result = result_of(np.full(SHAPE, 0.5), labels_of(0.3))
    for name in segmentation.CLASSES:
        assert result["IoU"][name] == pytest.approx(0.30)
        assert result["curve"]["IoU"][name] == pytest.approx([0.3] * 4 + [0.0] * 3)
        assert result["threshold"][name] == 0.35
    assert result["mIoU"] == pytest.approx(0.30)


def test_counts_run_over_the_data_set_not_over_samples():
    """A sample with one cell right of one and one with 10 of 100: (1 + 10) / 101, not the mean of 1 and 0.1."""
    counts = Accumulator()
    for cells, right in ((1, 1), (100, 10)):
        labels, prediction = np.zeros((2, 6, 600), dtype=np.uint8)
        labels[:, :cells] = 1
        prediction[:, :right] = 1
        counts.add(levels(prediction.reshape(SHAPE)), labels.reshape(SHAPE))
    assert counts.result()["mIoU"] == pytest.approx(11 / 101)


def test_each_class_has_its_own_best_threshold():
    labels = labels_of(0.2)
    probabilities = np.where(labels == 1, 0.9, 0.1)
    probabilities[1] = np.where(labels[1] == 1, 0.9, 0.52)  # best from 0.55 on
    probabilities[2] = np.where(labels[2] == 1, 0.41, 0.36)  # best at 0.40 alone
    result = result_of(probabilities, labels)
    assert [result["threshold"][name] for name in segmentation.CLASSES] == [0.35, 0.55, 0.40, 0.35, 0.35, 0.35]
    assert result["mIoU"] == pytest.approx(1.0)


def test_a_class_that_is_nowhere_scores_zero_without_nan():
    result = result_of(np.zeros(SHAPE), np.zeros(SHAPE, dtype=np.uint8))
    assert result["mIoU"] == 0.0
    assert "NaN" not in json.dumps(result)


def test_thresholds_count_in_single_precision():
    values = np.array([*THRESHOLDS, *np.nextafter(np.float32(THRESHOLDS), np.float32(0))], dtype=np.float32)
    assert levels(values).tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6]
    assert levels(np.array([0.0, 1.0])).tolist() == [0, 7]


@given(arrays.arrays(np.float32, (2, 6, 3, 11), elements=st.floats(0, 1, width=32)), st.integers(0, 2**32 - 1))
def test_packed_and_merged_counts_are_the_plain_ones(probabilities, seed):
    labels = np.random.default_rng(seed).integers(0, 2, probabilities.shape, dtype=np.uint8)
    packed = [(pack(levels(p)), np.packbits(a, axis=-1)) for p, a in zip(probabilities, labels, strict=True)]
    assert packed[0][0].shape == (3, 6, 3, 2)
    assert (unpack(packed[1][0], 11) == levels(probabilities[1])).all()
    expected = plain_iou(probabilities, labels)
    result = score(packed, columns=11)
    assert np.allclose(list(result["curve"]["IoU"].values()), expected, atol=1e-12)
    assert result["mIoU"] == pytest.approx(expected.max(axis=1).mean())
    first, second = Accumulator(), Accumulator()
    first.add_packed(*packed[0], columns=11)
    second.add_packed(*packed[1], columns=11)
    first.merge(second)
    assert first.result() == result


def test_what_is_no_prediction_is_refused():
    for bad in (np.nan, 1.5, -0.1, np.inf):
        probabilities = np.full(SHAPE, 0.5)
        probabilities[3, 2, 1] = bad
        with pytest.raises(InputError, match="not finite or not within 0 and 1"):
            levels(probabilities)
    counts = Accumulator()
    with pytest.raises(InputError, match="are not both of 6 classes"):
        counts.add(np.zeros((6, 20, 30), np.uint8), np.zeros((6, 30, 20), np.uint8))
    with pytest.raises(InputError, match="levels of 0 to 7"):
        counts.add(np.full(SHAPE, 8, np.uint8), np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match="predict at least one sample"):
        counts.result()
    with pytest.raises(InputError, match="count both alike"):
        counts.merge(Accumulator(thresholds=(0.5,)))
