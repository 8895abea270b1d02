"""Names with spaces, accents and signs that a shell would read: they reach `vexkd` as they are."""

import shutil
from pathlib import Path

import pytest
import yaml

from vexkd import settings

ODD = "my thèse's $HOME * (2)"


@pytest.mark.parametrize("root", [f"-data {ODD}/nuScenes", "data/with space/"])
def test_a_root_and_a_checkout_with_odd_names(small, tmp_path, root):
    made = small()
    folder = tmp_path / ODD
    shutil.copytree(made.folder, folder, symlinks=True)
    place = made.at(folder)
    experiment = folder / f"an {ODD}"
    experiment.mkdir()
    raw = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    (experiment / "params.yaml").write_text(settings.dump({**raw, "root": root}), encoding="utf-8")
    targets = ["artifacts/paste/index.parquet", "results/runs/lidar-pretrain/metrics.json"]
    place.snakemake("--directory", str(experiment), "--", *targets)
    assert (experiment / root / "v1.0-mini" / "scene.json").is_file()
    assert all((experiment / target).is_file() for target in targets)
    assert not place.plan(targets[1], folder=str(experiment))


def test_a_tilde_in_root_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    assert settings.parse({**raw, "root": "~/nu scenes/"}, "params.yaml").root == str(tmp_path / "nu scenes")
