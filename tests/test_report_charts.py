"""Charts of the rows that `figures` names, from results written by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vexkd import settings
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.report.figures import charts, draw, drawing, inside_distillation
from vexkd.report.results import Results

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def params() -> settings.Params:
    """The repository's defaults with one student, taught with one, two and three mask blocks."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    base = {"task": "detection", "head": "centerpoint"}
    taught = {"student": "student", "teacher": "teacher"}
    groups = {
        "pretrained": {},
        "teachers": {"teacher": base | {"sensors": ["lidar", "camera"], "fusion": "mgfm"}},
        "students": {"student": base | {"sensors": ["lidar"]}},
        "distilled": {f"taught-{count}": taught | {"distill": {"mask_blocks": count}} for count in (1, 2, 3)},
    }
    figures = {"blocks": ["taught-3", "taught-1", "taught-2"], "missing-sensor": ["teacher"]}
    figures |= {"latency": ["student", "taught-1", "teacher"]}
    return settings.parse(values | groups | {"tables": {}, "reported": {}, "floors": {}, "figures": figures})


def write(results: Path, run: str, name: str, values: Any) -> None:
    path = results / "runs" / run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for number, run in enumerate(("student", "teacher", "taught-1", "taught-2", "taught-3")):
        scores = {"mAP": 0.50 + 0.01 * number, "NDS": 0.60 + 0.01 * number}
        spread = {"mAP": 0.005, "NDS": None} if number % 2 else {"mAP": None, "NDS": None}
        write(folder, run, "metrics.json", scores | {"n": 1, "spread": spread})
        latency = {"median_ms": 40.0 + 30 * (run == "teacher"), "device": "A GPU", "weights": run}
        write(folder, run, "latency.json", latency)
        weights = {"weights": {"0": {"weights.safetensors": run}}}
        write(folder, run, "provenance.json", {"seeds": {"0": {"device": "A GPU"}}, "evaluation": weights})
    return folder


def read(params: settings.Params, results: Path) -> Results:
    return Results(Experiment(results.parent), params)


def falling(steps: int, fall: int, start: float, end: float) -> pd.DataFrame:
    """Ten steps an epoch; the distillation loss falls in a line for `fall` steps and then stays."""
    loss = np.interp(np.arange(steps), [0, fall], [start, end])
    columns = {"step": np.arange(steps), "epoch": np.arange(steps) // 10, "loss": 9.0}
    return pd.DataFrame({"seed": 0, **columns, "distill.low": loss, "distill.high": 2 * loss})


def drawn(stem: Path) -> pd.DataFrame:
    assert np.asarray(Image.open(f"{stem}.png").convert("L")).std() > 5
    assert Path(f"{stem}.svg").stat().st_size < 300_000
    return pd.read_csv(f"{stem}.csv")


def test_a_curve_settles_where_its_last_fall_ends():
    """By hand: a fall of 100 steps from 3 to 0, averaged over 10 steps. The mean of steps k-9..k is 3 (1 - (k - 4.5) / 100);
    it is at most 5 % of 3 from k = 99.5 on, so step 99 is the last above: 10 epochs."""
    assert charts.settled(falling(300, 100, 1.0, 0.0)) == pytest.approx(10.0)
    assert charts.settled(falling(300, 200, 1.0, 0.5)) == pytest.approx(19.5)  # k = 194.5
    assert charts.settled(falling(300, 100, 0.5, 0.5)) == 0.0
    only_loss = pd.DataFrame({"epoch": [0, 1, 2, 3], "loss": [4.0, 1.0, 1.0, 1.0]})
    assert charts.settled(only_loss) == 1.0


def test_blocks(params, results):
    for count in (1, 2, 3):
        write(results, f"taught-{count}", "curve.csv", falling(300, 250 - 50 * count, 1.0, 0.0).to_csv(index=False))
    draw("blocks", read(params, results))
    frame = drawn(results / "figures" / "blocks")
    part = frame[frame["score"] == "mAP"]
    assert part["blocks"].tolist() == [1, 2, 3]
    assert part["percent"].tolist() == pytest.approx([52, 53, 54])
    assert part["epochs_to_converge"].tolist() == pytest.approx([20.0, 15.0, 10.0], abs=0.6)


def test_missing_sensor(params, results):
    write(results, "teacher", "metrics-without-lidar.json", {"mAP": 0.2, "NDS": 0.3, "n": 1, "spread": {}})
    draw("missing-sensor", read(params, results))
    frame = drawn(results / "figures" / "missing-sensor")
    assert frame["sensors"].tolist() == ["all sensors"] * 2 + ["without lidar"] * 2
    assert frame[frame["score"] == "mAP"]["percent"].tolist() == pytest.approx([51.0, 20.0])
    (results / "runs" / "teacher" / "metrics-without-lidar.json").unlink()
    with pytest.raises(InputError, match=r"metrics-without-lidar\.json: run teacher was not scored without a sensor"):
        draw("missing-sensor", read(params, results))


def test_names_of_close_marks_hide_nothing():
    made = Figure(figsize=(3.3, 3.4))
    axis = made.subplots()
    marks = {f"centerpoint-{number}": (70.0 + 0.3 * (number % 3), 30.0 + 0.1 * number) for number in range(6)}
    marks |= {"far": (80.0, 40.0)}
    axis.plot(*zip(*marks.values(), strict=True), "o")
    axis.margins(0.3, 0.18)
    charts._names(axis, marks)
    made.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # of the names alone, not of the lines to the marks
    assert len(boxes) == 7
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    places = [axis.transData.transform(mark) for mark in marks.values()]
    assert not any(box.contains(*place) for box in boxes for place in places)


@pytest.mark.parametrize("height", [2.5, 26.0])
def test_notes_stand_above_the_panels(tmp_path, height):
    with drawing.figure(tmp_path / "any", (4.0, height)) as made:
        (axis, _) = drawing.panels(made, 2, 1)
        axis.set_title("a panel")
        drawing.heading(made, "A figure", "a note\nand another")
    notes, title = made.texts[0].get_window_extent(), axis.title.get_window_extent()
    assert title.y1 < notes.y0 < made.bbox.y1
    assert notes.y1 > made.bbox.y1 - 0.2 * made.dpi


def test_latency(params, results):
    draw("latency", read(params, results))
    frame = drawn(results / "figures" / "latency")
    assert frame[frame["score"] == "NDS"]["latency_ms"].tolist() == [40.0, 40.0, 70.0]
    write(results, "student", "latency.json", {"median_ms": 1.0, "device": "A GPU", "weights": "of another training"})
    with pytest.raises(InputError, match="was not measured with the weights that were scored"):
        draw("latency", read(params, results))
    (results / "runs" / "student" / "latency.json").unlink()
    with pytest.raises(InputError, match="run student has no measured latency; make it with 'vexkd latency student'"):
        draw("latency", read(params, results))


@pytest.mark.parametrize(
    ("least", "most", "limits"),
    [(0.2, 0.8, (0.2, 0.8)), (0.9993, 0.9993, (0.95, 1.0)), (0.0, 0.01, (0.0, 0.05)), (0.5, 0.51, (0.48, 0.53))],
)
def test_a_mask_that_hardly_varies_looks_even(least, most, limits):
    mask = np.repeat([least, most], 5000).reshape(100, 100)
    assert inside_distillation.mask_limits(mask) == pytest.approx(limits, abs=1e-9)


def test_a_figure_without_rows_is_refused(params, results):
    with pytest.raises(InputError, match=r"there is no figure blocks"):
        draw("blocks", read(params.model_copy(update={"figures": {}}), results))
    with pytest.raises(InputError, match="there is no figure bars; there are curves"):
        draw("bars", read(params, results))
