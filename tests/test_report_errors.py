"""The figure of two detectors' errors from above, from hand-made predictions, and which rows the pictures may show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import experiment_on, tiny_settings
from PIL import Image

from vexkd import boxes, geometry, settings
from vexkd.boxes import CLASSES
from vexkd.data import infos
from vexkd.errors import InputError
from vexkd.report.figures.errors_from_above import errors


def test_counts_by_class_and_marks(town, tmp_path):
    """The student alone sees every second box, the first of them far too high; the distilled one sees all."""
    keyframe = infos.load(town / "infos")[0]
    shown = keyframe.valid & boxes.in_range(keyframe.boxes, (-54, -54, 0, 54, 54, 0))
    rows, labels = boxes.move(keyframe.boxes[shown], keyframe.global_from_lidar), keyframe.labels[shown]
    found = [
        {"translation": list(b[:3]), "size": list(b[[4, 3, 5]]), "velocity": [0, 0], "detection_score": 0.9,
         "rotation": list(geometry.yaw_rotation(b[6]).elements), "detection_name": CLASSES[label]}
        for b, label in zip(rows, labels, strict=True)
    ]  # fmt: skip
    x, y, z = found[0]["translation"]
    alone = [
        found[0] | {"translation": [x, y, z + 50.0]},
        *found[2::2],
    ]  # higher is no farther: distances are in the plane
    alone.append(found[1] | {"translation": [x + 500.0, y, z]})  # out of view: neither drawn nor counted
    unsure = found[1] | {"detection_score": 0.1}
    for run, rows_of_run in (("alone", [*alone, unsure]), ("taught", found)):
        path = tmp_path / "models" / run / "seed0" / "predictions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"results": {keyframe.token: rows_of_run}}))
    experiment = experiment_on(tmp_path, town)
    errors("alone", "taught", experiment, seed=0)
    stem = experiment.figures / "errors-taught"
    frame = pd.read_csv(f"{stem}.csv").set_index(["run", "class"])
    every, half = np.bincount(labels, minlength=10), np.bincount(labels[::2], minlength=10)
    assert frame.loc["taught", "hit"].tolist() == every.tolist()
    assert frame.loc["taught", ["false_alarm", "missed"]].to_numpy().sum() == 0
    assert frame.loc["alone", "hit"].tolist() == half.tolist()
    assert frame.loc["alone", "missed"].tolist() == (every - half).tolist()
    assert frame.loc["alone", "false_alarm"].sum() == 0
    assert np.asarray(Image.open(f"{stem}.png").convert("L")).std() > 5
    assert Path(f"{stem}.svg").stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("figure", "row", "words"),
    [
        ("energy", "centerpoint-det", "is not distilled"),
        ("errors", "centerpoint-seg-vexkd", "detects nothing"),
        ("masks", "centerpoint-det-ones", "distils everywhere"),
        ("masks", "centerpoint-det-maskd", "distils everywhere or by a method's own masks"),
    ],
)
def test_rows_that_a_picture_cannot_show_are_refused(figure, row, words):
    with pytest.raises(InputError, match=rf"figures\.{figure}: {row} {words}"):
        settings.parse(tiny_settings() | {"figures": {figure: [row]}})
