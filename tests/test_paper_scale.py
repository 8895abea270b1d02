"""Every model of params.yaml at the paper's size on the real keyframe: one training step, and what it predicts.

Slow: minutes each on a CPU, at most 12 GiB. The default run keeps one LiDAR student, one camera student and a teacher's
forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from counted import loss_of, step_of

from vexkd import settings
from vexkd.batch import Batch, collate
from vexkd.data import infos as info_tools
from vexkd.data import infos_build
from vexkd.models import bev_model
from vexkd.train import tasks

FEW = {"centerpoint-det", "bevdet-det"}  # whose training step the default run takes
CAMERA_CHANNELS = {"bevdet": 64, "bevdet4d": 9 * 80, "bevformer": 256}


def distinct_models() -> Iterator[str]:
    """A run for each model: a distilled student's is that of its baseline."""
    for name, run in settings.load(ROOT / "params.yaml").runs.items():
        if run.kind != "distilled":
            yield pytest.param(name, marks=[pytest.mark.slow, *([pytest.mark.sample] if name in FEW else [])])


@pytest.fixture(scope="module")
def infos(keyframe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keyframe") / "infos"
    infos_build.build(keyframe, "v1.0-mini", folder, progress=False)
    return folder


def paper() -> settings.Params:
    """params.yaml on the keyframe's version; nothing is pasted, for the keyframe has no database."""
    raw = settings.load(ROOT / "params.yaml").raw
    raw["data"] |= {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_train"}
    raw["paste"]["counts"] = {}
    return settings.parse(raw)


def batch_of(run: settings.Run, teacher: settings.Run, root: Path, infos: Path) -> Batch:
    """The keyframe as the run's training sees it; labels of map classes, which the keyframe has not, are drawn."""
    bare = run.model_copy(update={"map": None})
    dataset = tasks.training_set(bare, teacher, root=root, infos=info_tools.load(infos), paste=None, seed=0)
    batch = collate([dataset[0]])
    if run.map is not None:
        batch.maps = torch.randint(0, 2, (1, 6, *run.map.grid.shape), dtype=torch.uint8)
    return batch


@pytest.mark.parametrize("name", distinct_models())
def test_model_of_the_papers_size_takes_a_step(name, keyframe, infos):
    run = paper().run(name)
    torch.manual_seed(0)
    model = bev_model.build(run)
    batch = batch_of(run, run, keyframe, infos)
    output = model.train()(batch)
    assert {tuple(f.shape[-2:]) for f in output.features.values()} == {(180, 180)}
    if run.sensors == ["camera"]:
        assert output.features["low"].shape[1] == CAMERA_CHANNELS[name.split("-")[0]]
    else:
        assert output.features["low"].shape[1] == 256
        assert output.features["high"].shape[1] == 512
    losses = loss_of(model, output, batch)
    assert all(math.isfinite(value.detach()) for value in losses.values()), losses
    sum(losses.values()).backward()
    learning = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and bool(g.isfinite().all()) for g in learning.values()), name
    first = next(n for n in learning if n.startswith(("lidar.stem", "camera.encoder.backbone")))
    assert float(learning[first].abs().max()) > 0


@pytest.mark.slow
@pytest.mark.sample
def test_teacher_of_the_papers_size_detects(keyframe, infos):
    run = paper().run("fusion-det")
    torch.manual_seed(0)
    model = bev_model.build(run).eval()
    batch = batch_of(run, run, keyframe, infos)
    with torch.no_grad():
        output = model(batch)
    assert {name: tuple(f.shape) for name, f in output.features.items()} == {
        "lidar_bev": (1, 256, 180, 180),
        "camera_bev": (1, 80, 180, 180),
        "low": (1, 256, 180, 180),
        "high": (1, 512, 180, 180),
    }
    assert all(bool(f.isfinite().all()) for f in output.features.values())
    (found,) = model.head.decode(
        output.predictions, bounds=run.inference.range, **run.inference.transfusion.model_dump()
    )
    assert 0 < len(found.scores) <= run.transfusion.proposals
    assert bool(found.boxes[:, :7].isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["centerpoint-det-vexkd", "bevdet-seg-vexkd"])
def test_distillation_of_the_papers_size_takes_a_step(name, keyframe, infos):
    """Teacher, student and masks together; the teacher learns nothing."""
    settings = paper()
    run = settings.run(name)
    teacher = settings.run(run.teacher)
    torch.manual_seed(0)
    from vexkd.distill import distiller

    task = distiller.build(
        settings=run.distill, student=bev_model.build(run), teacher=bev_model.build(teacher), teacher_name=run.teacher
    ).train()
    task.begin_step(0, 0)
    batch = batch_of(run, teacher, keyframe, infos)
    terms, watched = step_of(task, batch)
    assert all(math.isfinite(value.detach()) for value in terms.values()), terms
    sum(terms.values()).backward()
    assert {n for n, p in task.named_parameters() if p.grad is not None and n.startswith("teacher.")} == set()
    assert 0.8 < watched["mask.low.mean"] < 0.95
