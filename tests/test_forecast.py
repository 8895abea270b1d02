"""Costs: measured on tiny models, made-up samples against real sizes, and the arithmetic from a probe by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from conftest import tiny_settings as all_tiny_settings

from vexkd import cli, settings
from vexkd.data import infos as infos_module
from vexkd.data.dataset import cbgs_indices
from vexkd.data.points import in_bounds, read_lidar
from vexkd.errors import InputError
from vexkd.measure import cost, forecast
from vexkd.measure.cost import Measured, Probe, Samples
from vexkd.ops.voxelize import voxelize
from vexkd.train import checkpoint, optim

MEASURED = Measured(
    run="x",
    parameters=10**6,
    weights=4 * 10**6,
    state=12 * 10**6,
    seconds=0.5,
    step_seconds=0.1,
    predict_seconds=0.2,
    memory=10**9,
)


# The rows that these tests are about; another row would only be one more to measure.
ROWS = {"lidar-pretrain", "fusion-det", "fusion-conv-det", "centerpoint-det", "centerpoint-det-vexkd"}


def tiny_settings() -> dict:
    """A few of the tiny runs."""
    raw = all_tiny_settings()
    for kind in settings.KINDS:
        raw[kind] = {name: row for name, row in raw[kind].items() if name in ROWS}
    return raw | {"tables": {"main": sorted(ROWS)}, "figures": {}}


@pytest.fixture(scope="module")
def paper() -> settings.Params:
    return settings.load(ROOT / "params.yaml")


def probe_of(params: settings.Params, **changes: Measured) -> Probe:
    """A probe in which every run costs what MEASURED does, but for `changes` (names with _ for -)."""
    models = {}
    for run in params.runs.values():
        measured = changes.get(run.name.replace("-", "_"), MEASURED)
        models[cost.cost_key(params, run)] = replace(measured, run=run.name)
    return Probe("CPU", threads=2, data="made-up samples", micro_batch=1, steps=1, origin={}, models=models)


def varied(name: str, **rows) -> settings.Params:
    """The tiny settings with another distilled run."""
    raw = tiny_settings()
    raw["distilled"][name] = {**raw["distilled"]["centerpoint-det-vexkd"], **rows}
    return settings.parse(raw)


# ------------------------------------------------------------------------------------------------ what is measured once


@pytest.mark.parametrize("change", [{"distill": {"lambda": 9.0}}, {"train": {"epochs": 7}}, {"distill": {"mu": 0.5}}])
def test_runs_that_cost_the_same_are_measured_once(change):
    settings = varied("another", **change)
    groups = cost.distinct(settings, settings.runs)
    assert ["centerpoint-det-vexkd", "another"] in list(groups.values())
    assert len(groups) == len(settings.runs) - 1


@pytest.mark.parametrize(
    "change",
    [
        {"distill": {"mask": "none"}},
        {"distill": {"levels": ["low"]}},
        {"train": {"precision": "bf16"}},
        {"data": {"sweeps": 3}},
    ],
)
def test_runs_that_cost_something_else_are_measured_apart(change):
    settings = varied("another", **change)
    assert len(cost.distinct(settings, settings.runs)) == len(settings.runs)


# ------------------------------------------------------------------------------------------------------------ arithmetic


def test_hours_follow_epochs_samples_and_seeds(paper):
    run = paper.run("lidar-pretrain")
    priced = cost.price(paper, run, MEASURED, cost.Counter(paper)(run), devices=1, workers=0)
    steps = 123_580 // 32 * 20
    assert priced.steps == steps
    assert priced.train_hours == pytest.approx((steps * 32 * 0.5 + steps * 0.1) / 3600)
    assert priced.predict_hours == pytest.approx(6_019 * 0.2 / 3600)
    assert priced.device_hours == pytest.approx(priced.hours)
    assert priced.disk == 4 * 10**6 + 200 * 6_019 * 340 + steps * 200
    assert priced.scratch == 24 * 10**6
    seeds = paper.model_copy(update={"seeds": [0, 1, 2]})
    thrice = cost.price(seeds, run, MEASURED, cost.Counter(paper)(run), devices=1, workers=0)
    assert (thrice.hours, thrice.device_hours) == (priced.hours, pytest.approx(3 * priced.hours))


def test_more_devices_share_the_samples_but_not_the_optimiser(paper):
    run = paper.run("lidar-pretrain")
    one, eight = (
        cost.price(paper, run, MEASURED, Samples(3_200, 3_200, 800, ""), devices=n, workers=0) for n in (1, 8)
    )
    assert eight.train_hours == pytest.approx(20 * (3_200 * 0.5 / 8 + 100 * 0.1) / 3600)
    assert eight.device_hours == pytest.approx(8 * eight.hours)
    assert eight.predict_hours == pytest.approx(one.predict_hours / 8)


@pytest.mark.parametrize(("workers", "seconds"), [(0, 2.5), (1, 2.0), (4, 0.5), (8, 0.5)])
def test_loading_comes_on_top_or_beside(paper, workers, seconds):
    run = paper.run("lidar-pretrain")
    measured = replace(MEASURED, loading=2.0)
    priced = cost.price(paper, run, measured, Samples(320, 320, 80, ""), devices=1, workers=workers)
    assert priced.seconds_per_sample == pytest.approx(seconds)


def test_masks_cost_only_while_they_learn(paper):
    run = paper.run("centerpoint-det-vexkd")  # masks stop after 10 of 20 epochs
    measured = replace(MEASURED, frozen_seconds=0.1)
    priced = cost.price(paper, run, measured, Samples(320, 320, 80, ""), devices=1, workers=0)
    assert priced.seconds_per_sample == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [(0, "00:10:00"), (1800, "00:50:00"), (3600, "01:30:00"), (35 * 3600, "1-20:00:00")],
)
def test_time_limits_have_a_margin_and_are_round(seconds, limit):
    assert cost.slurm_time(cost.limit_minutes(seconds)) == limit


def test_the_printed_limit_is_what_a_profile_takes(paper):
    """Minutes, as Snakemake reads `runtime`; what the rule hands to the training before the deadline is enough."""
    long = replace(MEASURED, seconds=3.0)
    names = ["lidar-pretrain"]
    found = cost.forecast(paper, probe_of(paper, lidar_pretrain=long), names, [], counter=cost.Counter(paper))
    priced = found.costs["lidar-pretrain"]
    minutes, slurm = cost.run_cells(found)[1][0][-1].rstrip(")").split(" (")
    days, hours, half, _ = (int(part) for part in slurm.replace("-", ":").split(":"))
    assert int(minutes) == days * 1440 + hours * 60 + half
    assert f"`runtime: {minutes}`" in "".join(cost.notes(found))
    assert int(minutes) * 60 - 600 > priced.train_hours * 3600


def test_a_table_needs_starts_teachers_and_students_once(paper):
    assert cost.needed(paper, ["centerpoint-det-vexkd"]) == [
        "lidar-pretrain",
        "fusion-det",
        "centerpoint-det",
        "centerpoint-det-vexkd",
    ]
    probe = probe_of(paper)
    tables = paper.model_copy(
        update={"tables": {"a": ["centerpoint-det-vexkd"], "b": ["fusion-det", "fusion-conv-det"]}}
    )
    found = cost.forecast(tables, probe, sorted(ROWS), ["a", "b"], counter=cost.Counter(paper), budget=0)
    a, b = found.tables
    hours = {name: priced.device_hours for name, priced in found.costs.items()}
    assert b.runs == ["lidar-pretrain", "fusion-det", "fusion-conv-det"]
    assert a.device_hours + b.device_hours > found.everything.device_hours == pytest.approx(sum(hours.values()))
    chain = sum(found.costs[name].train_hours for name in ("lidar-pretrain", "fusion-det"))
    assert a.hours == pytest.approx(chain + found.costs["centerpoint-det-vexkd"].hours)


def test_a_budget_takes_tables_in_order_and_counts_shared_runs_once(paper):
    costs = {
        name: cost.price(paper, paper.run(name), MEASURED, Samples(320, 320, 1, ""), devices=1, workers=0)
        for name in paper.runs
    }
    costs = {name: replace(priced, device_hours=10.0) for name, priced in costs.items()}
    tables = {
        "first": ["lidar-pretrain", "fusion-det"],
        "second": ["lidar-pretrain", "fusion-conv-det", "centerpoint-det"],
        "third": ["fusion-det", "fusion-conv-det"],
    }
    verdicts = cost.within(35.0, tables, costs)
    assert [(v.table, v.fits, v.adds, v.spent) for v in verdicts] == [
        ("first", True, 20.0, 20.0),
        ("second", False, 20.0, 20.0),
        ("third", True, 10.0, 30.0),
    ]


def test_what_does_not_fit_in_memory_is_left_out_of_the_sums(paper):
    trouble = replace(MEASURED, trouble="out of memory")
    probe = probe_of(paper, fusion_det=trouble)
    found = cost.forecast(paper, probe, list(paper.runs), ["main"], counter=cost.Counter(paper), budget=1e9)
    assert found.everything.without == ["fusion-det"]
    assert "out of memory" in cost.run_cells(found)[1][1]
    assert [verdict.fits for verdict in found.verdicts] == [False]
    assert any("Left out of the sums: fusion-det" in line for line in cost.notes(found))


# ---------------------------------------------------------------------------------------------------------------- samples


def test_samples_are_counted_in_infos_where_they_are(settings, town):
    run = settings.run("lidar-pretrain")
    counter = cost.Counter(settings, town / "infos")
    assert (counter(run).epoch, counter(run).validation) == (3, 3)
    balanced = run.model_copy(update={"data": run.data.model_copy(update={"balance": "cbgs"})})
    drawn = cbgs_indices(infos_module.load(town / "infos").subset("mini_train"), np.random.default_rng(0))
    assert counter(balanced).epoch == len(drawn) > 3


def test_samples_without_infos_are_planned_or_published(settings, paper, tmp_path):
    from vexkd.synthetic.tables import plan_scenes

    counted = cost.Counter(settings)(settings.run("lidar-pretrain"))
    _, plans = plan_scenes(settings.synthetic.scenes, settings.synthetic.samples)
    assert counted.epoch + counted.validation == sum(plan.samples for plan in plans) == 100
    published = cost.Counter(paper)(paper.run("lidar-pretrain"))
    assert (published.epoch, published.train, published.validation) == (123_580, 28_130, 6_019)
    other = paper.run("lidar-pretrain")
    other = other.model_copy(update={"data": other.data.model_copy(update={"train_split": "train_detect"})})
    with pytest.raises(InputError, match="train_detect"):
        cost.Counter(paper)(other)


def test_made_up_points_are_as_many_as_a_real_keyframe_has(paper, keyframe):
    run = paper.run("lidar-pretrain")
    run = run.model_copy(update={"data": run.data.model_copy(update={"sweeps": 0})})
    real = read_lidar(next((keyframe / "samples/LIDAR_TOP").glob("*.bin")))
    real = real[in_bounds(real, run.bev.range)][:, :5]
    made_up = forecast.made_up_points(paper, run, np.random.default_rng(0))
    sizes = {"range": tuple(run.bev.range), "voxel": tuple(run.bev.voxel), "max_points": 10, "max_voxels": 10**9}
    voxels = [len(voxelize([torch.from_numpy(np.ascontiguousarray(p))], **sizes)[0]) for p in (real, made_up)]
    assert len(made_up) == pytest.approx(len(real), rel=0.25)
    assert voxels[1] == pytest.approx(voxels[0], rel=0.25)


def test_made_up_cameras_see_the_ground_ahead(paper):
    run = paper.run("fusion-det")
    sample = forecast.made_up_sample(paper, run, run, np.random.default_rng(0))
    height, width = run.camera.image_size
    assert sample.images.shape == (6, 3, height, width)
    ahead = torch.tensor([0.0, 20.0, -1.0, 1.0])
    camera = sample.camera_from_lidar[0] @ ahead
    pixel = sample.image_augment[0] @ (sample.intrinsics[0] @ (camera[:3] / camera[2]))
    assert camera[2] == pytest.approx(19.3)
    assert 0 < pixel[0] < width
    assert 0 < pixel[1] < height


# --------------------------------------------------------------------------------------------------------------- measured


@pytest.fixture(scope="module")
def measured(town) -> tuple[settings.Params, Probe]:
    """A pretraining, and a student with its teacher and masks, at test size on real samples."""
    params = settings.parse(tiny_settings())
    names = ("lidar-pretrain", "centerpoint-det-vexkd")
    lines: list[str] = []
    probe = forecast.measure(
        params, list(names), root=town / "data", infos=town / "infos", device="cpu", tell=lines.append
    )
    assert [line.split(":")[0] for line in lines] == ["1 of 2", "2 of 2"]
    return params, probe


def test_every_distinct_model_is_measured(measured):
    settings, probe = measured
    for name in ("lidar-pretrain", "centerpoint-det-vexkd"):
        model = probe.of(settings, settings.run(name))
        numbers = (model.seconds, model.step_seconds, model.predict_seconds, model.loading, model.predict_loading)
        assert all(0 < number < 60 for number in numbers), model
        assert 10**8 < model.memory < 10**10
        assert model.gpu_memory is None
    taught = probe.of(settings, settings.run("centerpoint-det-vexkd"))
    assert (
        taught.parameters
        == forecast.sizes(forecast.build_task(settings, settings.run("centerpoint-det")))["parameters"]
    )
    assert taught.frozen_seconds > 0
    assert probe.of(settings, settings.run("lidar-pretrain")).frozen_seconds is None
    assert "real samples" in probe.data


def test_masks_are_measured_learning_and_frozen(settings, monkeypatch):
    seen = []

    def train(task, *_arguments, **_options):
        seen.append(task.learn_masks)
        return (0.8, 0.1) if task.learn_masks else (0.5, 0.1)

    monkeypatch.setattr(forecast, "_train", train)
    monkeypatch.setattr(forecast, "_predict", lambda *_: 0.2)
    probe = forecast.measure(settings, ["centerpoint-det-vexkd"], device="cpu", micro=2, tell=lambda _: None)
    taught = probe.of(settings, settings.run("centerpoint-det-vexkd"))
    assert seen == [True, False]
    assert (taught.seconds, taught.frozen_seconds, taught.step_seconds, taught.predict_seconds) == (0.4, 0.25, 0.1, 0.1)


def test_map_segmentation_and_camera_teachers_are_measured_without_data():
    """Made-up batches hold what such runs read: labels on their own grid, the teacher's images, points for both."""
    raw = tiny_settings()
    raw["students"]["lidar-map"] = {"task": "segmentation", "sensors": ["lidar"], "head": "map"}
    changed = settings.parse(raw)
    names = ["lidar-map", "fusion-conv-det"]
    probe = forecast.measure(changed, names, device="cpu", tell=lambda _: None)
    counter = cost.Counter(changed)
    found = cost.forecast(changed, probe, names, [], counter=counter)
    assert all(priced.train_hours > 0 and not priced.trouble for priced in found.costs.values())
    run, taught = changed.run("lidar-map"), changed.run("centerpoint-det-vexkd")
    sample = next(forecast._MadeUpSamples(changed, run).training)
    assert (tuple(sample.maps.shape), sample.images) == ((6, *run.map.grid.shape), None)
    assert set(sample.maps.unique().tolist()) == {0, 1}
    source = forecast._MadeUpSamples(changed, taught)
    assert next(source.training).images.shape[0] == 6
    assert next(source.validation).images is None


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/probes").glob("*.json")), ids=lambda path: path.stem)
def test_stored_probes_answer_or_say_what_they_lack(path):
    """Runs that changed since are refused by name; the others are priced as by hand."""
    demo, probe = settings.load(ROOT / "demo/params.yaml"), cost.load_probe(path)
    counter = cost.Counter(demo)
    for run in demo.runs.values():
        model = probe.models.get(cost.cost_key(demo, run))
        if model is None:
            with pytest.raises(InputError, match=f"{run.name}: the probe of {probe.device} has no measurement"):
                cost.forecast(demo, probe, [run.name], [], counter=counter)
            continue
        priced = cost.forecast(demo, probe, [run.name], [], counter=counter).costs[run.name]
        frozen = model.seconds if model.frozen_seconds is None else model.frozen_seconds
        steps = priced.samples // run.train.batch * run.train.epochs
        bounds = [
            steps * (run.train.batch * seconds + model.step_seconds) / 3600 for seconds in (frozen, model.seconds)
        ]
        assert min(bounds) * 0.999 <= priced.train_hours <= max(bounds) * 1.001


def test_a_probe_is_stored_and_read_back(measured, tmp_path):
    settings, probe = measured
    probe.save(tmp_path / "probe.json")
    assert cost.load_probe(tmp_path / "probe.json") == probe
    changed = varied("another", distill={"levels": ["low"]})
    with pytest.raises(InputError, match="another: the probe of CPU has no measurement"):
        probe.of(changed, changed.run("another"))
    for text in ("{", "[]", '{"format": "other"}', '{"format": "vexkd-probe-1"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="not a probe"):
            cost.load_probe(tmp_path / "bad.json")
    with pytest.raises(InputError, match="no such probe"):
        cost.load_probe(tmp_path / "none.json")


def test_bytes_are_those_of_the_files(settings, tmp_path):
    run = settings.run("lidar-pretrain")
    task = forecast.build_task(settings, run)
    sizes = forecast.sizes(task)
    checkpoint.save_weights(tmp_path / "w.safetensors", task.model, run=run, inputs={}, record={})
    optimiser = optim.optimiser(task, run.train)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    tensors = {**task.state_dict()}
    for number, moments in enumerate(optimiser.state.values()):
        tensors |= {f"{number}.{name}": value for name, value in moments.items()}
    state = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    header = 60_000
    assert sizes["weights"] <= (tmp_path / "w.safetensors").stat().st_size <= sizes["weights"] + header
    assert sizes["state"] == pytest.approx(state, rel=0.01)
    assert sizes["parameters"] == sum(p.numel() for p in task.parameters())


def test_running_out_of_memory_is_told_and_the_rest_goes_on(settings, monkeypatch):
    train = forecast._train

    def too_large(task, optimiser, run, *arguments, **options):
        if run.name == "lidar-pretrain":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(task, optimiser, run, *arguments, **options)

    monkeypatch.setattr(forecast, "_train", too_large)
    lines: list[str] = []
    probe = forecast.measure(settings, ["lidar-pretrain", "centerpoint-det"], device="cpu", tell=lines.append)
    assert lines[0].startswith("1 of 2: lidar-pretrain out of memory")
    assert probe.of(settings, settings.run("lidar-pretrain")).trouble == "out of memory"
    assert probe.of(settings, settings.run("centerpoint-det")).seconds > 0
    assert probe.of(settings, settings.run("centerpoint-det")).loading is None


# --------------------------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
    """`vexkd forecast` in a folder with the paper's settings and a probe: arguments -> status, stdout, stderr."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    probe_of(settings.load(Path("params.yaml"))).save(Path("probe.json"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vexkd", "forecast", *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def test_the_verb_prints_aligned_markdown_and_writes_json(verb):
    status, out, err = verb("main", "--probe", "probe.json", "--budget", "500", "--gpus", "8", "--json", "cost.json")
    assert (status, err) == (0, "")
    tables = [block.splitlines() for block in out.split("\n\n")[:2]]
    for lines in tables:
        assert len({len(line) for line in lines}) == 1
        assert all(line.startswith("|") for line in lines)
    assert tables[0][0].split("|")[1].strip() == "Run"
    params = settings.load(Path("params.yaml"))
    assert len(tables[0]) == 2 + len(cost.needed(params, params.table("main")))
    assert "no, +" in tables[1][2]
    assert "25% and 10 minutes" in out
    values = json.loads(Path("cost.json").read_text())
    assert list(values["runs"]) == cost.needed(params, params.table("main"))
    assert values["tables"]["main"]["device_hours"] == pytest.approx(values["total"]["device_hours"])
    assert values["within_budget"][0]["fits"] is False


def test_the_verb_takes_some_runs(verb):
    status, out, _ = verb("--probe", "probe.json", "--runs", "centerpoint-det")
    assert status == 0
    assert "centerpoint-det" in out
    assert "fusion-det" not in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--probe", "absent.json"], "no such probe"),
        (["mian", "--probe", "probe.json"], "no table named 'mian'"),
        (["--probe", "probe.json", "--runs", "centerpoint"], "no run named 'centerpoint'"),
        (["--root", "data", "--runs", "centerpoint-det"], "give both or neither"),
    ],
)
def test_the_verb_refuses_in_one_sentence(verb, arguments, sentence):
    status, _, err = verb(*arguments)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_the_tiny_settings_are_forecast_from_end_to_end(verb, town):
    Path("params.yaml").write_text(yaml.safe_dump(tiny_settings()))
    files = ["--root", str(town / "data"), "--infos", str(town / "infos"), "--save-probe", "own.json"]
    status, out, err = verb("--runs", "centerpoint-det", "--device", "cpu", *files)
    assert status == 0
    assert err.startswith("1 of 1: centerpoint-det ")
    assert "2 × 3" in out
    assert "Loading: measured, in the training process" in out
    assert verb("--runs", "centerpoint-det", "--probe", "own.json", "--infos", str(town / "infos"))[1] == out
