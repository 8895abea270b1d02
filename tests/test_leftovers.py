"""What is taken for left over, and what is left alone."""

import pytest
import yaml
from conftest import tiny_settings

from vexkd import leftovers
from vexkd.settings import Params, parse


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Params:
    monkeypatch.chdir(tmp_path)
    return parse(tiny_settings())


def write(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("made")


def test_a_stage_is_taken_out_of_dvc_lock_and_nothing_else(tmp_path, settings):
    stages = {"prepare": {"cmd": "a"}, "teachers@gone": {"outs": [{"path": "b"}]}, "teachers@fusion-det": {"cmd": "c"}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    found = leftovers.find(settings)
    assert [item.stage for item in found] == ["teachers@gone"]
    leftovers.remove(found)
    kept = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    assert kept == {"schema": "2.0", "stages": {name: stages[name] for name in ("prepare", "teachers@fusion-det")}}
    assert leftovers.find(settings) == []


def test_only_what_the_workflow_makes_is_left_over(tmp_path, settings):
    own = [
        "models/pretrained/resnet.pth",
        "models/gone/seed0/notes.txt",
        "results/tables/notes.md",
        "results/README.md",
    ]
    own += [
        "results/figures/architecture.png",
        "results/figures/curves.csv",
        "models/fusion-det/seed0/weights.safetensors",
    ]
    left = ["models/gone/seed0/weights.safetensors", "results/runs/gone/metrics.json", "logs/train/gone-seed0.log"]
    left += ["models/fusion-det/seed7/curve.csv", "results/settings/table-gone.yaml"]
    left += [f"results/tables/gone.{end}" for end in ("csv", "md", "tex")]
    left += [f"results/figures/maps-fusion-det.{end}" for end in ("csv", "png")]  # it detects boxes
    write(tmp_path, *own, *left)
    found = leftovers.find(settings)
    assert sorted(str(file) for item in found for file in item.files) == sorted(left)
    assert any("seed 7 of fusion-det" in str(item) for item in found)
    said = leftovers.sentences(settings)  # settings alone are no results
    assert len(said) == len(found) - 1
    assert all("`vexkd clean --remove` removes them" in sentence for sentence in said)
    leftovers.remove(found)
    assert all((tmp_path / name).is_file() for name in own)
    assert not any((tmp_path / name).exists() for name in left)
    assert not (tmp_path / "results/runs/gone").exists()
    assert not (tmp_path / "models/fusion-det/seed7").exists()
    assert leftovers.find(settings) == []
