"""Files that are dated in the future, by a clock ahead of ours or a copy: nothing is lost, and nothing is made twice."""

import os
import time

import pytest

RUN = "centerpoint-det"
TOMORROW = time.time() + 86_400


@pytest.mark.parametrize(
    "path",
    [
        "artifacts/infos/boxes.parquet",
        "artifacts/manifest.parquet",
        "results/runs/centerpoint-det/config.yaml",
        "models/fusion-det/seed0/weights.safetensors",
        "data/town",
    ],
)
def test_an_input_of_tomorrow_costs_no_training(sealed, path):
    os.utime(sealed.folder / path, (TOMORROW, TOMORROW))
    sealed.set("students.centerpoint-det.train.lr", 0.5)
    sealed.snakemake()
    calls = sealed.calls()
    assert [call for call in calls if call.startswith("train")] == [
        f"train {name} seed0" for name in (RUN, f"{RUN}-vexkd")
    ]
    assert (sealed.folder / "models" / RUN / "seed0/weights.safetensors").is_file()
    assert "Nothing to be done" in sealed.snakemake()
    assert not sealed.calls()
