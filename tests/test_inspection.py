"""What `vexkd inspect` writes of a distilled run and the figures drawn from it, against plain sums and made-up maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import experiment_on
from PIL import Image
from safetensors.torch import load_file, save_file

from vexkd import seal
from vexkd.batch import collate
from vexkd.data import infos as info_files
from vexkd.data import inspection as files
from vexkd.data.inspection import Name
from vexkd.distill import masks as mask_parts
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.geometry import BevGrid
from vexkd.measure import inspection
from vexkd.models import bev_model
from vexkd.report.figures import inside_distillation
from vexkd.settings import Run, from_values
from vexkd.train import checkpoint, session, tasks
from vexkd.train.loop import RuntimeOptions

RUN, STUDENT, TEACHER = "centerpoint-det-vexkd", "centerpoint-det", "fusion-det"
RECORD = {"seed": 0}


def save(models: Path, run: Run, seed: int = 1) -> torch.nn.Module:
    """A model with random weights in the folder of its run."""
    torch.manual_seed(seed)
    model = bev_model.build(run).eval()
    checkpoint.save_weights(
        Experiment(models.parent).training(run.name, 0).weights, model, run=run, inputs={}, record=RECORD
    )
    return model


@pytest.fixture
def models(settings, tmp_path) -> Path:
    """Student alone, distilled student with its masks, teacher: all with random weights."""
    for number, name in enumerate((STUDENT, RUN, TEACHER)):
        save(tmp_path / "models", settings.run(name), number)
    teacher, _ = checkpoint.load_model(Experiment(tmp_path).training(TEACHER, 0).weights)
    run = settings.run(RUN)
    torch.manual_seed(7)
    masks = mask_parts.build(run.distill, teacher, TEACHER)
    for net in masks.nets.values():
        torch.nn.init.normal_(net.mask.weight)  # far from even
    path = Experiment(tmp_path).training(RUN, 0).weights.with_name(checkpoint.MASKS)
    checkpoint.save_weights(path, masks, run=run, inputs={}, record=RECORD)
    return tmp_path / "models"


def places(models: Path, town: Path) -> dict:
    return {"models": models, "root": town / "data", "infos": town / "infos", "seed": 0}


def data_of(models: Path, town: Path) -> dict:
    return {"experiment": Experiment(models.parent), "root": town / "data", "infos": town / "infos", "seed": 0}


def test_energies_and_masks_are_those_of_the_models(settings, models, town):
    """Against a plain sum in float64 over the channels of maps that each model computes by itself, and the nets' own output."""
    path = inspection.inspect(RUN, **data_of(models, town))
    found = files.read(path)
    known = info_files.load(town / "infos")
    split = known.subset(settings.run(RUN).data.val_split)
    fullest = max(split.tokens(), key=lambda token: int(split[split.tokens().index(token)].valid.sum()))
    assert found.header["sample"] == fullest
    assert set(found.maps) == {
        *(Name("energy", name, level) for name in (STUDENT, RUN, TEACHER) for level in ("low", "high")),
        *(Name("mask", RUN, level) for level in ("low", "high")),
    }
    for name in (STUDENT, RUN, TEACHER):
        model, run = checkpoint.load_model(Experiment(models.parent).training(name, 0).weights)
        dataset = tasks.validation_set(run, root=town / "data", infos=known)
        batch = collate([dataset[dataset.infos.tokens().index(fullest)]])
        with torch.no_grad():
            features = model.features(batch)
        for level in ("low", "high"):
            plain = np.zeros(model.grid.shape)
            for channel in features[level][0].double().numpy():
                plain += np.abs(channel)
            np.testing.assert_allclose(found.maps[Name("energy", name, level)], plain, rtol=1e-5)
    nets = mask_parts.build(settings.run(RUN).distill, model, TEACHER).eval()
    nets.load_state_dict(load_file(models / RUN / "seed0/masks.safetensors"))
    for level in ("low", "high"):
        with torch.no_grad():
            expected = nets.nets[level](features[level])[0, 0].numpy()
        assert expected.std() > 0.01
        np.testing.assert_allclose(found.maps[Name("mask", RUN, level)], expected, rtol=1e-5)
    before = path.read_bytes()
    inspection.inspect(RUN, **data_of(models, town), sample=fullest)
    assert path.read_bytes() == before  # the same bytes again


def test_masks_that_are_missing_or_of_another_training_are_refused(settings, models, town):
    path = models / RUN / "seed0/masks.safetensors"
    tensors = load_file(path)
    header = seal.header(path)
    save_file(tensors, path, metadata=header | {"inputs": json.dumps({"teacher": "another"})})
    with pytest.raises(InputError, match="not of the training that made"):
        inspection.inspect(RUN, **data_of(models, town))
    path.unlink()
    with pytest.raises(InputError, match=r"masks\.safetensors: the masks .* are not there; train it again"):
        inspection.inspect(RUN, **data_of(models, town))
    with pytest.raises(InputError, match="the run centerpoint-det has no teacher"):
        inspection.inspect(STUDENT, **data_of(models, town))
    save(models, settings.run("centerpoint-det-ones"))
    with pytest.raises(InputError, match="sample nowhere is none of the"):
        inspection.inspect("centerpoint-det-ones", **data_of(models, town), sample="nowhere")
    found = files.read(inspection.inspect("centerpoint-det-ones", **data_of(models, town)))
    assert {name.kind for name in found.maps} == {"energy"}


def test_a_training_leaves_its_masks_beside_the_weights(settings, town, tmp_path):
    """And a later one that learns none takes them away; the student's own file holds the student alone."""
    run = settings.run(RUN)
    save(tmp_path / "models", settings.run(TEACHER))
    out = tmp_path / "models" / RUN / "seed0"
    arguments = {
        "root": town / "data", "infos": town / "infos", "out": out, "seed": 0, "paste": None, "start": None, "threads": 1,
        "teacher": Experiment(tmp_path).training(TEACHER, 0).weights, "scratch": tmp_path / "scratch", "runtime": RuntimeOptions(),
        "device": "cpu",
    }  # fmt: skip
    session.train(run, **arguments)
    teacher, _ = checkpoint.load_model(arguments["teacher"])
    masks = inspection.load_masks(run, teacher, out / "weights.safetensors")
    start = teacher.fusion.query
    assert not masks.training
    assert not torch.equal(masks.nets["low"].query, start)  # it has learned
    assert set(load_file(out / "weights.safetensors")) == set(bev_model.build(run).state_dict())
    values = run.training()
    values["distill"]["mask"] = "none"
    session.train(from_values(values, run.after_training(), RUN), **arguments)
    assert not (out / "masks.safetensors").exists()


@pytest.fixture
def inspected(town, tmp_path) -> tuple[Experiment, np.ndarray]:
    """A file with made-up maps of the first keyframe: the teacher's energy is 3 inside boxes and 1 elsewhere."""
    keyframe = info_files.load(town / "infos")[0]
    grid = BevGrid((-24.0, -16.0, -5.0, 24.0, 16.0, 3.0), 1.0)  # wider than deep: rows are y
    boxes = keyframe.boxes[keyframe.valid]
    inside = plain_inside(boxes, grid)
    assert 0 < inside.sum() < inside.size
    even = np.ones(grid.shape)
    teacher = np.where(inside, 3.0, 1.0)
    maps = {}
    for level in ("low", "high"):
        maps |= {Name("energy", name, level): one for name, one in (("s", even), ("d", 2 * teacher), ("t", teacher))}
        maps[Name("mask", "d", level)] = np.where(inside, 0.9, 0.1)
    path = files.path_of(tmp_path / "models", "d", 0)
    origin = {"run": "d", "student": "s", "teacher": "t", "seed": 0, "sample": keyframe.token, "task": "detection"}
    files.write(path, maps, grid=grid, mask="learned-query", **origin)
    return experiment_on(tmp_path, town), inside


def plain_inside(boxes: np.ndarray, grid: BevGrid) -> np.ndarray:
    """Cells whose centres lie in a box, one by one, by the box's own axes."""
    rows, columns = grid.shape
    found = np.zeros((rows, columns), dtype=bool)
    for row in range(rows):
        for column in range(columns):
            x, y = grid.bounds[0] + (column + 0.5) * grid.cell, grid.bounds[1] + (row + 0.5) * grid.cell
            for box in boxes:
                turned = complex(x - box[0], y - box[1]) * np.exp(-1j * box[6])
                if abs(turned.real) <= box[3] / 2 and abs(turned.imag) <= box[4] / 2:
                    found[row, column] = True
    return found


def drawn(stem: Path) -> pd.DataFrame:
    assert np.asarray(Image.open(f"{stem}.png").convert("L")).std() > 5
    assert Path(f"{stem}.svg").stat().st_size < 3_000_000
    return pd.read_csv(f"{stem}.csv")


def test_the_figure_of_energies(inspected):
    """By hand: objects are 3 times as bright as the rest; an even map's cosine to the teacher's is a ratio of sums."""
    experiment, inside = inspected
    inside_distillation.energy("d", experiment, seed=0)
    stem = experiment.figures / "energy-d"
    frame = drawn(stem).set_index(["level", "run"])
    m, n = int(inside.sum()), inside.size
    cosine = (n + 2 * m) / np.sqrt(n * (n + 8 * m))
    for level in ("low", "high"):
        assert frame.loc[level, "objects_over_rest"].tolist() == pytest.approx([1.0, 3.0, 3.0], rel=1e-4)
        assert frame.loc[level, "cosine_to_teacher"].tolist() == pytest.approx([cosine, 1.0, 1.0], rel=1e-4)
        assert frame.loc[(level, "d"), "mean_energy"] == pytest.approx(2 * (n + 2 * m) / n, rel=1e-4)
    first = {end: Path(f"{stem}.{end}").read_bytes() for end in ("png", "svg", "csv")}
    inside_distillation.energy("d", experiment, seed=0)
    assert first == {end: Path(f"{stem}.{end}").read_bytes() for end in first}


def test_the_figure_of_masks(inspected):
    experiment, inside = inspected
    inside_distillation.masks("d", experiment, seed=0)
    frame = drawn(experiment.figures / "masks-d").set_index(["level", "region"])
    assert frame.loc[("low", "annotated objects"), "cells"] == inside.sum()
    assert frame.loc[("high", "annotated objects"), "mean"] == pytest.approx(0.9)
    assert frame.loc[("high", "not annotated objects"), "max"] == pytest.approx(0.1)


def test_a_damaged_file_is_refused(inspected, town):
    experiment, _ = inspected
    path = files.path_of(experiment.models, "d", 0)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a whole file of inspected maps"):
        inside_distillation.energy("d", experiment, seed=0)
    path.unlink()
    with pytest.raises(InputError, match="make it with 'vexkd inspect'"):
        inside_distillation.masks("d", experiment, seed=0)
