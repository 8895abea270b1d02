"""Map segmentation from rasters to metrics: labels in batches, training, prediction by any number of processes, scores, figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import experiment, tiny_settings
from counted import step_of
from safetensors.torch import load_file

from vexkd import cli, seal, settings
from vexkd.batch import collate
from vexkd.data import infos as info_tools
from vexkd.data import map_drawing, map_predictions, maps
from vexkd.data.dataset import loader
from vexkd.data.expansions import read_expansion
from vexkd.errors import InputError
from vexkd.evaluate import map_scores as scoring
from vexkd.evaluate.segmentation import THRESHOLDS
from vexkd.experiment import HERE, Experiment
from vexkd.models import bev_model
from vexkd.train import checkpoint, predict, session, tasks
from vexkd.train.loop import RuntimeOptions

SEGMENTERS = ("fusion-seg", "centerpoint-seg", "centerpoint-seg-vexkd")


def rows() -> dict:
    """The settings at test size, with a teacher of the other fusion and a student taught across tasks."""
    raw = tiny_settings()
    raw["teachers"]["fusion-conv-seg"] = {**raw["teachers"]["fusion-seg"], "fusion": "conv"}
    raw["distilled"]["crossed"] = {"student": "centerpoint-det", "teacher": "fusion-seg"}
    return raw


@pytest.fixture(scope="module")
def desk(town, tmp_path_factory) -> SimpleNamespace:
    """A folder with all runs at test size, map rasters, and weights of the segmenters in which nothing was learnt."""
    folder = tmp_path_factory.mktemp("desk")
    raw = {**rows(), "root": str(town / "data")}
    experiment(folder, raw, infos=town / "infos")
    params = settings.parse(raw)
    settings.write_configs(params, folder / "results")
    map_drawing.build(
        town / "data", town / "infos", folder / "artifacts/maps", **seal.map_settings(params), progress=False
    )
    for seed, name in enumerate(SEGMENTERS):
        torch.manual_seed(seed)
        model = bev_model.build(params.run(name))
        with torch.no_grad():
            model.head.classifier[2].weight *= 100  # probabilities all over the thresholds
            model.head.classifier[2].bias.copy_(torch.linspace(-1.0, 1.0, 6))
        path = Experiment(folder).training(name, 0).weights
        checkpoint.save_weights(path, model, run=params.run(name), inputs={}, record={})
        (path.parent / "curve.csv").write_text("step,loss\n0,0.5\n")
        (path.parent / "provenance.json").write_text("{}")
    return SimpleNamespace(folder=folder, town=town, settings=params, infos=info_tools.load(town / "infos"))


def dataset(desk, name: str, **changes):
    """The training set of a run, and whose images it reads."""
    run = desk.settings.run(name)
    images = desk.settings.run(run.teacher) if run.teacher else run
    where = {"root": desk.town / "data", "infos": desk.infos, "paste": None, "maps": desk.folder / "artifacts/maps"}
    return tasks.training_set(run, images, **{**where, "seed": 0, **changes})


def predicted(desk, name: str, out: Path, **options) -> Path:
    session.predict(
        Experiment(desk.folder).training(name, 0).weights, root=desk.town / "data", infos=desk.town / "infos", out=out,
        batch=2, workers=0, threads=1, device="cpu", **options,
    )  # fmt: skip
    return out


# ---- settings


def test_who_reads_labels():
    """Segmenters, and whoever is taught by one; they paste nothing and all share one set of rasters."""
    loaded = settings.parse(rows())
    segmenters = {name for name, run in loaded.runs.items() if run.task == "segmentation"}
    assert segmenters >= {*SEGMENTERS, "fusion-conv-seg"}
    assert {name for name, run in loaded.runs.items() if run.map} == {*segmenters, "crossed"}
    assert all(run.paste is None for run in loaded.runs.values() if run.map)
    assert seal.inputs(loaded.run("crossed"), 0)["maps"] == Path("artifacts/maps")
    assert "maps" not in seal.inputs(loaded.run("centerpoint-det"), 0)


def test_rasters_reach_as_far_as_the_widest_augmentation():
    raw = rows()
    raw["map"] |= {"reach": 20.0, "cell": 0.5}
    raw["bev_augment"] = {"rotation": 0.0, "scale": [0.8, 1.0], "translation": 0.5, "flip": 0.5}
    raw["students"]["centerpoint-seg"]["bev_augment"] = {"scale": [0.5, 1.0], "translation": 0.0}
    found = seal.map_settings(settings.parse(raw))
    assert found == {"reach": 40.0, "cell": 0.5, "edges": "published"}, "20 / 0.5, more than 23 / 0.8"


@pytest.mark.parametrize(
    ("row", "block", "message"),
    [
        (
            ("students", "centerpoint-seg"),
            {"cell": 0.25},
            r"students\.centerpoint-seg\.map\.cell: .* make them equal\.",
        ),
        (("teachers", "fusion-conv-seg"), {"edges": "centre"}, r"fusion-conv-seg\.map\.edges: .* make them equal\."),
        (("students", "centerpoint-seg"), {"reach": 12.0}, r"student and teacher fusion-seg must be taught the same"),
        (("students", "centerpoint-seg"), {"reach": 30.0}, r"map\.reach: labels to 30 m lie beyond bev\.range"),
    ],
)
def test_runs_that_cannot_share_labels_are_refused(row, block, message):
    raw = rows()
    raw[row[0]][row[1]]["map"] = block
    with pytest.raises(InputError, match=message) as caught:
        settings.parse(raw)
    assert "\n" not in str(caught.value)


# ---- labels


def test_labels_follow_the_samples_own_augmentation(desk):
    """What a training sample holds is the map drawn in its augmented frame, but along edges."""
    data = dataset(desk, "fusion-seg")
    for key in ((0, 0, 0), (3, 2, 1)):
        sample, keyframe = data[key], desk.infos[key[1]]
        augment = sample.lidar_augment.double().numpy()
        assert np.abs(augment - np.eye(4)).max() > 0.05
        expansion = read_expansion(desk.town / "data/maps/expansion" / f"{keyframe.location}.json")
        drawn = map_drawing.rasterise(
            expansion, keyframe.global_from_lidar, reach=24.0, cell=1.0, lidar_augment=augment
        )
        found = sample.maps.numpy()
        assert found.dtype == np.uint8
        assert found.shape == drawn.shape == (6, 48, 48)
        assert not ((found != drawn) & ~(along_edges(found) | along_edges(drawn))).any()
        assert found[0].mean() > 0.1
        assert len(sample.boxes), "they stay"


def along_edges(mask: np.ndarray) -> np.ndarray:
    """Cells with both values at most two cells away, (..., Y, X): a line one cell wide is truncated to cells twice."""
    padded = np.pad(mask, [(0, 0), (2, 2), (2, 2)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(-2, -1))
    return windows.max(axis=(-2, -1)) != windows.min(axis=(-2, -1))


def test_labels_move_with_the_points(desk):
    """Points that lie on the drivable area without augmentation still do under it."""
    run = desk.settings.run("centerpoint-seg")
    none = run.bev_augment.model_copy(update={"rotation": 0.0, "scale": [1.0, 1.0], "flip": 0.0})
    still = run.model_copy(update={"bev_augment": none})
    where = {"root": desk.town / "data", "infos": desk.infos, "paste": None, "maps": desk.folder / "artifacts/maps"}
    shares = []
    for each in (still, run):
        sample = tasks.training_set(each, each, **where, seed=0)[(1, 0, 0)]
        xy = sample.points[sample.points[:, :2].abs().max(dim=1).values < 20, :2]
        column, row = ((xy + 24.0) / 1.0).floor().long().unbind(1)
        shares.append(sample.maps[0][row, column].float().mean().item())
    assert 0.05 < shares[0] < 0.98
    assert shares[1] == pytest.approx(shares[0], abs=0.06)


def test_rasters_of_other_cells_or_none_are_refused(desk, tmp_path):
    with pytest.raises(InputError, match="pass the folder of their rasters with --maps"):
        dataset(desk, "centerpoint-seg", maps=None)
    map_drawing.build(desk.town / "data", desk.town / "infos", tmp_path, reach=40.0, cell=0.5, progress=False)
    with pytest.raises(InputError, match="have cells of 0.5 m and published edges, but the run asks for 1 m"):
        dataset(desk, "centerpoint-seg", maps=tmp_path)
    assert dataset(desk, "centerpoint-det")[(0, 0, 0)].maps is None


# ---- training


def test_the_chain_of_segmenters(desk, tmp_path):
    """Teacher from a detector's weights, student, distilled student: each learns from the labels, and says from which."""
    pretrain = desk.settings.run("lidar-pretrain")
    start = tmp_path / "start.safetensors"
    checkpoint.save_weights(start, bev_model.build(pretrain), run=pretrain, inputs={}, record={})

    def train(name: str, **weights) -> Path:
        session.train(
            desk.settings.run(name), root=desk.town / "data", infos=desk.town / "infos",
            out=tmp_path / name, seed=0, paste=None, maps=desk.folder / "artifacts/maps", scratch=tmp_path / "scratch",
            threads=1, runtime=RuntimeOptions(), device="cpu", **{"start": None, "teacher": None, **weights},
        )  # fmt: skip
        return tmp_path / name / "weights.safetensors"

    teacher = train("fusion-seg", start=start)
    student = train("centerpoint-seg-vexkd", teacher=teacher)
    header = checkpoint.read_header(student)
    assert set(header["inputs"]) == {"infos", "maps", "samples", "teacher"}
    assert header["inputs"]["maps"] == seal.content_digest(desk.folder / "artifacts/maps")
    assert load_file(student).keys() == bev_model.build(desk.settings.run("centerpoint-seg")).state_dict().keys()
    curve = pd.read_csv(student.parent / "curve.csv")
    assert {"task.map", "masked.map", "distill.low", "mask.low"} <= set(curve.columns)
    assert curve["task.map"].gt(0).all()


def test_a_detector_taught_by_a_segmenter(desk):
    """Across tasks: the batch holds boxes for the student and maps for the masked teacher."""
    run = desk.settings.run("crossed")
    task, images = tasks.build_task(run, start=None, teacher=Experiment(desk.folder).training("fusion-seg", 0).weights)
    where = {"root": desk.town / "data", "infos": desk.infos, "paste": None, "maps": desk.folder / "artifacts/maps"}
    batch = collate([tasks.training_set(run, images, **where, seed=0)[(0, 0, 0)]])
    task.begin_step(0, 0)
    terms, _ = step_of(task, batch)
    assert {"task.heatmap", "task.box", "masked.map"} <= set(terms)


def test_only_the_head_of_another_task_is_left_out(desk, tmp_path):
    pretrain, teacher = desk.settings.run("lidar-pretrain"), bev_model.build(desk.settings.run("fusion-seg"))
    path = tmp_path / "weights.safetensors"
    checkpoint.save_weights(path, bev_model.build(pretrain), run=pretrain, inputs={}, record={})
    assert checkpoint.start_from(teacher, path, head=False) == ["camera", "fusion", "head"]
    tensors = load_file(path)
    own = teacher.state_dict()
    assert all(torch.equal(own[k], t) for k, t in tensors.items() if not k.startswith("head."))
    with pytest.raises(InputError, match="cannot start from these weights: head"):
        checkpoint.start_from(teacher, path)


# ---- prediction


def test_predictions_hold_the_levels_of_the_models_probabilities(desk, tmp_path):
    out = predicted(desk, "centerpoint-seg", tmp_path / "predictions.safetensors")
    model, run = checkpoint.load_model(Experiment(desk.folder).training("centerpoint-seg", 0).weights)
    data = tasks.validation_set(run, root=desk.town / "data", infos=desk.infos)
    opened = map_predictions.read(out)
    assert list(opened.rows) == data.infos.tokens()
    assert opened.header["inference"] == run.after_training()
    assert (opened.header["use_lidar"], opened.header["use_camera"]) == (True, False)
    assert opened.header["grid"] == {"reach": 24.0, "cell": 1.0}
    assert opened.packed.shape == (3, 3, 6, 48, 6)
    seen = set()
    for sample in (data[i] for i in range(3)):
        probabilities = model.segment(collate([sample]))[0].numpy()
        found = opened.levels(sample.token)
        seen |= set(np.unique(found).tolist())
        for number, threshold in enumerate(THRESHOLDS):
            near = np.abs(probabilities - threshold) < 1e-3  # a batch of one is not to the last digit one of two
            assert (((found > number) == (probabilities >= np.float32(threshold))) | near).all()
    assert len(seen) > 4, "so that the test can fail"


def test_any_number_of_processes_writes_the_same_bytes(desk, town, tmp_path):
    """Three processes, more than there are scenes, against one; the others' shares are gone at the end."""
    model, run = checkpoint.load_model(Experiment(desk.folder).training("centerpoint-seg", 0).weights)
    everything = replace(tasks.validation_set(run, root=town / "data", infos=desk.infos).infos, rows=desk.infos.rows)
    data = tasks.validation_set(run, root=town / "data", infos=desk.infos)
    data.infos = everything
    for count in (1, 3):
        for rank in reversed(range(count)):
            state = SimpleNamespace(
                is_main_process=rank == 0, process_index=rank, num_processes=count, wait_for_everyone=lambda: None
            )
            keys = predict.scene_batches(session._scenes(data), batch=2, rank=rank, world=count)
            predict.predict(
                model, loader(data, keys), tmp_path / f"{count}.safetensors", run=run, device=torch.device("cpu"),
                tokens=everything.tokens(), state=state,
            )  # fmt: skip
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()
    assert len(map_predictions.read(tmp_path / "1.safetensors").rows) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "3.safetensors"]


@pytest.mark.parametrize("sensor", ["lidar", "camera"])
def test_a_dropped_sensor_is_not_read_and_its_map_is_zero(desk, tmp_path, monkeypatch, sensor):
    reader = {"lidar": "read_lidar", "camera": "image_tools"}[sensor]
    monkeypatch.setattr(f"vexkd.data.dataset.{reader}", None)
    out = predicted(desk, "fusion-seg", tmp_path / "predictions.safetensors", drop=sensor)
    opened = map_predictions.read(out)
    assert opened.header["dropped"] == [sensor]
    other = {"lidar": "camera", "camera": "lidar"}[sensor]
    assert (opened.header[f"use_{sensor}"], opened.header[f"use_{other}"]) == (False, True)
    monkeypatch.undo()
    model, run = checkpoint.load_model(Experiment(desk.folder).training("fusion-seg", 0).weights)
    batch = collate([tasks.validation_set(run, root=desk.town / "data", infos=desk.infos)[0]])
    with torch.no_grad():
        whole = model.features(batch)
        model.drop(sensor)
        features = model.features(batch)
    assert features[f"{sensor}_bev"].shape == whole[f"{sensor}_bev"].shape
    assert not features[f"{sensor}_bev"].any()
    assert features[f"{other}_bev"].any()
    assert not torch.equal(features["low"], whole["low"])
    if sensor == "lidar":
        assert not torch.allclose(features["camera_bev"], whole["camera_bev"]), "no depth image"


def test_what_cannot_be_dropped_or_written_is_refused(desk, tmp_path):
    for name, sensor in (("centerpoint-seg", "lidar"), ("centerpoint-seg", "camera")):
        with pytest.raises(InputError, match=rf"the sensor {sensor} cannot be dropped from a model of lidar"):
            predicted(desk, name, tmp_path / "a.safetensors", drop=sensor)
    with pytest.raises(InputError, match=r"predictions of a segmentation run are a \.safetensors file"):
        predicted(desk, "centerpoint-seg", tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


# ---- scores


def plain_scores(desk, path: Path) -> dict[str, list[float]]:
    """IoU of each class at each threshold by a plain loop over samples and thresholds, labels drawn anew by hand."""
    opened, rasters = map_predictions.read(path), maps.Maps(desk.folder / "artifacts/maps")
    counts = np.zeros((6, 7, 2))
    for token in opened.rows:
        whole = rasters.raster(token)  # the label grid is the middle of it
        edge = (whole.shape[-1] - 48) // 2
        true = whole[:, edge : edge + 48, edge : edge + 48].astype(bool)
        levels = opened.levels(token)
        for c in range(6):
            for t in range(7):
                own = levels[c] > t
                counts[c, t] += [(own & true[c]).sum(), (own | true[c]).sum()]
    return {name: (counts[c, :, 0] / (counts[c, :, 1] + 1e-7)).tolist() for c, name in enumerate(settings.MAP_CLASSES)}


def test_metrics_of_a_run(desk, town, monkeypatch, tmp_path):
    """`vexkd evaluate` and the figure, held to a plain count."""
    monkeypatch.chdir(desk.folder)
    place = HERE.training("centerpoint-seg", 0).predictions("segmentation")
    path = predicted(desk, "centerpoint-seg", place)
    run("evaluate", "centerpoint-seg")
    metrics = json.loads(Path("results/runs/centerpoint-seg/metrics.json").read_text())
    expected = plain_scores(desk, path)
    assert metrics["mIoU"] == pytest.approx(np.mean([max(found) for found in expected.values()]), abs=1e-12)
    assert 0 < metrics["mIoU"] < 1
    for name, found in expected.items():
        assert metrics["IoU"][name] == pytest.approx(max(found), abs=1e-12)
        assert metrics["threshold"][name] == THRESHOLDS[int(np.argmax(found))]
        assert metrics["seeds"]["0"]["curve"]["IoU"][name] == pytest.approx(found, abs=1e-12)
    assert (metrics["n"], metrics["spread"]["mIoU"]) == (1, None)
    record = json.loads(Path("results/runs/centerpoint-seg/provenance.json").read_text())
    assert record["evaluation"]["predictions"] == {"0": seal.content_digest(path)}
    assert list(record["evaluation"]["weights"]["0"]) == ["weights.safetensors"]

    run("figure", "maps-centerpoint-seg", "--sample", "1")
    frame = pd.read_csv("results/figures/maps-centerpoint-seg.csv").set_index("class")
    token = list(map_predictions.read(path).rows)[1]
    labels = maps.Maps(Path("artifacts/maps")).labels(token, np.eye(4), desk.settings.run("centerpoint-seg").map.grid)
    there = frame.found_cells + frame.missed_cells
    assert there.tolist() == labels.sum(axis=(1, 2)).tolist()
    assert frame.loc["drivable_area", "threshold"] == metrics["threshold"]["drivable_area"]
    assert Path("results/figures/maps-centerpoint-seg.svg").stat().st_size > 1000


def run(*arguments) -> None:
    """A verb of the command line, in this process."""
    cli.app([str(argument) for argument in arguments], standalone_mode=False)


def test_seeds_are_averaged(desk, town, tmp_path):
    row = desk.settings.run("centerpoint-seg")
    for seed, name in enumerate(("centerpoint-seg", "centerpoint-seg-vexkd")):
        source = Experiment(desk.folder).training(name, 0).weights.parent
        target = tmp_path / "models/centerpoint-seg" / f"seed{seed}"
        target.mkdir(parents=True)
        for file in ("curve.csv", "provenance.json"):
            (target / file).write_text((source / file).read_text())
        predicted(desk, name, target / "predictions.safetensors")
    where = {"experiment": Experiment(tmp_path), "infos": town / "infos"}
    scoring.collect(row, **where, maps=desk.folder / "artifacts/maps", seeds=[0, 1])
    metrics = json.loads((tmp_path / "results/runs/centerpoint-seg/metrics.json").read_text())
    each = [metrics["seeds"][seed]["mIoU"] for seed in "01"]
    assert each[0] != each[1]
    assert metrics["mIoU"] == pytest.approx(sum(each) / 2)
    assert metrics["spread"]["mIoU"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert set(metrics["spread"]["IoU"]) == set(settings.MAP_CLASSES)


def test_scenes_are_counted_apart(desk, tmp_path):
    path = predicted(desk, "centerpoint-seg", tmp_path / "predictions.safetensors")
    split, grid = desk.infos.subset("mini_val"), desk.settings.run("centerpoint-seg").map.grid
    rasters = maps.Maps(desk.folder / "artifacts/maps")
    counts = scoring.count_scenes({"a": map_predictions.read(path)}, split=split, maps=rasters, grid=grid)["a"]
    assert set(counts) == set(split.splits["mini_val"])
    total = sum(each.histogram for each in counts.values())
    assert (total.sum(axis=(1, 2)) == 3 * 48 * 48).all()
    assert (scoring.total(counts.values()).histogram == total).all()


def test_predictions_that_are_not_the_splits_are_refused(desk, town, tmp_path):
    path = predicted(desk, "centerpoint-seg", tmp_path / "predictions.safetensors")
    opened, grid = map_predictions.read(path), desk.settings.run("centerpoint-seg").map.grid
    where = {"split": desk.infos.subset("mini_val"), "maps": maps.Maps(desk.folder / "artifacts/maps")}
    fewer = dict(list(opened.rows.items())[1:])
    with pytest.raises(
        InputError, match=rf"1 samples are missing or not in the split, the first is {next(iter(opened.rows))}"
    ):
        scoring.count_scenes({"a": replace(opened, rows=fewer)}, **where, grid=grid)
    with pytest.raises(InputError, match="these maps reach 24 m with cells of 1 m"):
        scoring.count_scenes({"a": opened}, **where, grid=type(grid)((-24.0, -24.0, 0.0, 24.0, 24.0, 0.0), 0.5))
    for spoil in (b"", path.read_bytes()[:-100], b"x" * 2000):
        (tmp_path / "bad.safetensors").write_bytes(spoil)
        with pytest.raises(
            InputError, match=r"bad\.safetensors: this is not a whole file of predicted maps; predict again"
        ):
            map_predictions.read(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="make it with 'vexkd predict'"):
        map_predictions.read(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="not a whole file of predicted maps"):
        map_predictions.read(Experiment(desk.folder).training("fusion-seg", 0).weights)


def test_a_seal_on_map_predictions(desk, tmp_path, monkeypatch):
    """Predictions of other inference settings than params.yaml asks for are named."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((desk.folder / "params.yaml").read_text())
    loaded = settings.parse(raw)
    path = HERE.training(loaded.run("centerpoint-seg").name, 0).predictions(loaded.run("centerpoint-seg").task)
    path.parent.mkdir(parents=True)
    predicted(desk, "centerpoint-seg", path)
    named = [line for line in seal.check(loaded, names=["centerpoint-seg"]) if "predict" in line]
    assert named == []
    raw["inference"]["max_boxes"] = 7
    named = [line for line in seal.check(settings.parse(raw), names=["centerpoint-seg"]) if "predict" in line]
    assert len(named) == 1
    assert "max_boxes" in named[0]
