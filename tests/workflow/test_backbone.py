"""Published weights in the workflow: who fetches what image backbones start from, and what an imported run keeps from running."""

import json
import time

import pytest
import yaml

from vexkd import seal

FILE = "weights/r50.safetensors"
BACKBONE = {"source": "torchvision", "name": "resnet50-0676ba61.pth", "file": FILE}
TEACHER = "models/fusion-det/seed0/weights.safetensors"
START = "models/lidar-pretrain/seed0/weights.safetensors"


@pytest.fixture
def place(checkout):
    """A checkout whose cameras start from one file."""
    made = checkout()
    made.set("camera.backbone.weights", BACKBONE)
    (made.folder / "data/nuscenes").mkdir(parents=True)
    return made


def test_a_rule_fetches_the_file_once_before_a_camera_is_trained(place):
    assert place.plan(TEACHER)["backbone"] == 1
    assert "backbone" not in place.plan(START)
    place.calls()
    place.snakemake("--", TEACHER)
    assert "fetch-weights fusion-det" in place.calls()
    assert (place.folder / FILE).read_text() == "resnet50-0676ba61.pth\n"
    assert "Nothing to be done" in place.snakemake("--", TEACHER)


def test_a_file_put_there_by_hand_is_taken(place):
    (place.folder / FILE).parent.mkdir()
    (place.folder / FILE).write_text("by hand")
    place.calls()
    place.snakemake("--", TEACHER)
    assert not [call for call in place.calls() if call.startswith("fetch-weights")]
    assert (place.folder / FILE).read_text() == "by hand"


def test_imported_weights_stand_for_a_training(place):
    """Put there after the preparation, with their records: the run is not trained, those that start from it are."""
    place.snakemake("--", "artifacts/infos/samples.parquet", "artifacts/paste/points.npy")
    time.sleep(0.1)
    folder = (place.folder / START).parent
    folder.mkdir(parents=True)
    header = {
        "format": seal.FORMAT,
        "settings": json.dumps(yaml.safe_load((place.folder / "results/runs/lidar-pretrain/config.yaml").read_text())),
        "provenance": json.dumps({"imported": {"file": "published.pth"}}),
    }
    content = json.dumps({"__metadata__": header}).encode()
    (folder / "weights.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    for name in ("curve.csv", "provenance.json"):
        (folder / name).write_text("imported")
    planned = place.plan(TEACHER)
    assert planned["train"] == 1
    assert "Nothing to be done" in place.snakemake("-n", "--", START)
