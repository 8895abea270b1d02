"""Times of stages: they add up, they are where the time is spent, and a distilled student costs what its baseline costs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_settings

from vexkd import cli, provenance, settings
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.measure import latency, summary
from vexkd.models import bev_model
from vexkd.train import checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still but for what `slowly` adds: a busy machine changes no test."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def slowly(function, clock: SimpleNamespace, seconds: float = 1.0):
    """The same function, taking this long."""

    def slow(*args, **kwargs):
        clock.now += seconds
        return function(*args, **kwargs)

    return slow


def quick(params: settings.Params, name: str, **more) -> dict:
    run = params.run(name)
    model = bev_model.build(run)
    source = more.pop("source", None) or latency.made_up(params, run)
    return latency.measure(model, run, source, repeats=2, warmup=1, device=CPU, **more)


def test_stages_add_up_without_gaps(clock):
    watch = latency.Stopwatch(CPU)
    with watch:
        for name, seconds in (("a", 2.0), ("b", 3.0), ("a", 4.0)):
            watch.begin(name)
            clock.now += seconds
    assert watch.seconds() == {"a": 6.0, "b": 3.0}


@pytest.mark.parametrize("name", ["centerpoint-det", "fusion-det"])
def test_every_part_has_its_stage(settings, name):
    found = quick(settings, name)
    expected = {latency.TRANSFER, latency.DECODE, latency.REST, latency.VOXELIZE, latency.LIDAR_ENCODER}
    expected |= {"bev encoder", "head"}
    expected |= {"camera encoder", "view", "fusion"} if name == "fusion-det" else set()
    assert set(found["stages"]) == expected
    assert found["with_reading"] is None
    assert found["p5_ms"] <= found["median_ms"] <= found["p95_ms"]
    total = sum(stage["median_ms"] for stage in found["stages"].values())
    assert total == pytest.approx(found["median_ms"], rel=0.01)  # of two samples the median is the mean


@pytest.mark.parametrize(
    ("part", "stage"),
    [("lidar.stem", "lidar encoder"), ("camera.encoder", "camera encoder"), ("camera.view", "view"), ("fusion", "fusion"),
     ("bev_encoder", "bev encoder"), ("head", "head")],
)  # fmt: skip
def test_a_slow_part_shows_in_its_own_stage(settings, clock, part, stage):
    run = settings.run("fusion-det")
    model = bev_model.build(run)
    source = latency.made_up(settings, run)
    module = model.get_submodule(part)
    module.forward = slowly(module.forward, clock)
    found = latency.measure(model, run, source, repeats=1, warmup=1, device=CPU)["stages"]
    assert {name: times["median_ms"] for name, times in found.items() if times["median_ms"]} == {stage: 1000.0}


def test_slow_voxels_decoding_and_files_show_in_theirs(settings, clock, monkeypatch):
    from vexkd.models import sparse_encoder
    from vexkd.models.centerpoint import CenterPointHead

    monkeypatch.setattr(sparse_encoder, "voxelize", slowly(sparse_encoder.voxelize, clock, 1.0))
    monkeypatch.setattr(CenterPointHead, "decode", slowly(CenterPointHead.decode, clock, 2.0))
    once = latency.made_up(settings, settings.run("centerpoint-det"))
    source = latency.Source(slowly(once.read, clock, 4.0), True, "slow disk")
    found = quick(settings, "centerpoint-det", source=source)
    times = {name: stage["median_ms"] for name, stage in found["stages"].items() if stage["median_ms"]}
    assert times == {latency.READ: 4000.0, latency.VOXELIZE: 1000.0, latency.DECODE: 2000.0}
    assert found["median_ms"] == 3000.0
    assert found["without_decoding"]["median_ms"] == 1000.0
    assert found["with_reading"]["median_ms"] == 7000.0


def test_a_distilled_student_has_the_graph_of_its_baseline(settings):
    baseline, distilled = quick(settings, "centerpoint-det"), quick(settings, "centerpoint-det-vexkd")
    for key in ("graph", "parameters", "macs", "flops", "sample"):
        assert baseline[key] == distilled[key]
    assert baseline["graph"] != quick(settings, "lidar-pretrain")["graph"]


def test_half_precision_is_named_and_runs(settings):
    assert quick(settings, "centerpoint-det", dtype="bf16")["median_ms"] > 0


@pytest.fixture
def home(tmp_path, monkeypatch, town):
    import yaml

    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_settings()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["vexkd", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.app(list(arguments), standalone_mode=True)
    assert stop.value.code == 0


def test_the_verb_measures_trained_weights_on_real_samples(home, town, monkeypatch, capsys):
    params = settings.load(home / "params.yaml")
    run = params.run("centerpoint-det")
    weights = home / "models/centerpoint-det/seed0/weights.safetensors"
    checkpoint.save_weights(weights, bev_model.build(run), run=run, inputs={}, record={"seed": 0})
    options = ["--root", str(town / "data"), "--infos", str(town / "infos"), "--repeats", "3", "--warmup", "1"]
    call(monkeypatch, "latency", "centerpoint-det", *options, "--device", "cpu", "--threads", "1")
    kept = json.loads((home / "results/runs/centerpoint-det/latency.json").read_text())
    assert kept["weights"] == provenance.file_digest(weights)
    assert kept["repeats"] == 3
    assert kept["threads"] == 1
    assert kept["dtype"] == "fp32"
    assert kept["batch"] == 1
    assert {"device", "commit", "versions", "graph", "macs", "parameters"} <= set(kept)
    assert kept["with_reading"]["median_ms"] > kept["median_ms"] > kept["without_decoding"]["median_ms"] > 0
    assert latency.READ in kept["stages"]
    assert "centerpoint-det" in capsys.readouterr().out


def test_no_weights_is_one_sentence(home):
    params = settings.load(home / "params.yaml")
    options = {"params": params, "experiment": Experiment(home), "seed": 0, "weights": None, "random": False}
    both = {"weights": Path("some.safetensors"), "random": True}
    with pytest.raises(InputError, match="--random and --weights some.safetensors exclude each other"):
        summary.deployed("centerpoint-det", **options | both)
    with pytest.raises(InputError, match=r"models/centerpoint-det/seed0.*--random"):
        summary.deployed("centerpoint-det", **options)
    run = params.run("lidar-pretrain")
    path = home / "other.safetensors"
    checkpoint.save_weights(path, bev_model.build(run), run=run, inputs={}, record={})
    with pytest.raises(InputError, match="weights of lidar-pretrain, not of centerpoint-det"):
        summary.deployed("centerpoint-det", **options | {"weights": path})
    assert summary.deployed(None, **options | {"weights": path})[1].name == "lidar-pretrain"
