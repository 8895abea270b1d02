"""Curves for TensorBoard: of finished runs, of one that trains, and again as it goes on."""

import json
import sys

import pytest

from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.report import tensorboard


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    """A finished run, and one whose state was saved after two logged steps."""
    found = Experiment(tmp_path)
    finished = found.models / "done" / "seed0" / "curve.csv"
    finished.parent.mkdir(parents=True)
    finished.write_text("step,epoch,loss,task.box,mask.low\n0,0,2.5,1.5,\n1,0,2.25,1.25,0.5\n")
    save(found, [{"step": 0, "loss": 9.0}, {"step": 1, "loss": 8.0}])
    return found


def save(experiment: Experiment, rows: list[dict[str, float]]) -> None:
    """A state as training leaves it, with a tensor after its header."""
    metadata = {"position": json.dumps({"step": len(rows), "seconds": 1.0, "curve": rows}), "scaler": "null"}
    head = json.dumps({"__metadata__": metadata, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file = experiment.scratch / "running" / "seed0-ab" / "state.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"0")


def test_curves_come_from_results_and_from_saved_states(experiment):
    assert [row["loss"] for row in tensorboard.curve("done", 0, experiment)] == [2.5, 2.25]
    assert [row["loss"] for row in tensorboard.curve("running", 0, experiment)] == [9.0, 8.0]
    assert tensorboard.curve("waiting", 0, experiment) == []


def test_without_tensorboard_or_a_curve_it_says_what_to_do(experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(InputError, match=r"not installed; install it with `pip install 'vexkd\[tensorboard\]'`"):
        tensorboard.write([("done", 0)], experiment, tmp_path / "events")
    monkeypatch.setattr(tensorboard, "_writer", lambda: pytest.fail)
    with pytest.raises(InputError, match="there is no curve of waiting yet"):
        tensorboard.write([("waiting", 0)], experiment, tmp_path / "events")


def test_tensorboard_reads_what_was_written(experiment, tmp_path):
    """Also what a training adds while it is watched; a second call reexperiment the first."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def goes_on(_seconds: float) -> None:
        rows = tensorboard.curve("running", 0, experiment)
        if len(rows) == 3:
            raise KeyboardInterrupt
        save(experiment, [*rows, {"step": 2, "loss": 7.0}])

    for _ in range(2):
        save(experiment, [{"step": 0, "loss": 9.0}, {"step": 1, "loss": 8.0}])
        pairs = [("done", 0), ("running", 0), ("waiting", 0)]
        with pytest.raises(KeyboardInterrupt):
            tensorboard.write(pairs, experiment, tmp_path / "events", watch=1.0, tell=lambda _: None, sleep=goes_on)
    found = {}
    for run in ("done", "running"):
        reader = accumulator.EventAccumulator(str(tmp_path / "events" / run / "seed0"))
        reader.Reload()
        found[run] = {
            tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
        }
    assert found["done"]["task/box"] == [(0, 1.5), (1, 1.25)]
    assert found["done"]["mask/low"] == [(1, 0.5)]
    assert found["running"]["loss"] == [(0, 9.0), (1, 8.0), (2, 7.0)]
