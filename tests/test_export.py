"""Exported files against PyTorch, for every view transform and both kinds of head; and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vexkd.batch import collate
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.geometry import BevGrid
from vexkd.measure import export, summary
from vexkd.models import bev_model
from vexkd.models.bevformer import BEVFormerView
from vexkd.models.image_encoder import ImageEncoder, build_backbone, build_neck
from vexkd.models.lss import LiftSplat
from vexkd.models.temporal import TemporalCameraBranch

onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("onnxscript", reason="the extra [export] is not installed")

FRAMES = 2


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_dense_part_of_a_lidar_student_takes_any_batch(settings, tmp_path):
    run = settings.run("centerpoint-det")
    model = bev_model.build(run).eval()
    batch = collate([summary.made_up_sample(settings, run)])
    out = tmp_path / "student.onnx"
    found = export.to_onnx(model, batch, out, run=run, record={"run": run.name})
    assert max(found.differences.values()) < 1e-5
    assert list(found.outputs)[:2] == ["0.offset", "0.z"]
    given = torch.randn(3, *found.inputs["low"][1:])
    with torch.no_grad():
        wanted = export.named(model.head(model.bev_encoder(given)))
    given_to = session(out)
    assert [value.name for value in given_to.get_inputs()] == ["low"]
    for (name, tensor), value in zip(wanted.items(), given_to.run(list(wanted), {"low": given.numpy()}), strict=True):
        np.testing.assert_allclose(value, tensor.numpy(), atol=1e-4, err_msg=name)
    kept = onnx.load(out)
    onnx.checker.check_model(kept)
    assert {entry.key: entry.value for entry in kept.metadata_props}["run"] == "centerpoint-det"
    assert [entry.version for entry in kept.opset_import if entry.domain == ""] == [export.OPSET]


def camera_model(settings, kind: str) -> bev_model.BEVModel:
    """A tiny camera student with each view transform."""
    torch.manual_seed(0)
    run = settings.run("fusion-det")
    camera, bev = run.camera, {"bounds": run.bev.range, "cell": run.bev.cell}
    widths = [camera.backbone.widths[index] for index in camera.backbone.outputs]
    levels = 2 if kind == "bevformer" else 1
    neck = build_neck(kind="fpn", widths=widths, channels=8, levels=levels)
    encoder = ImageEncoder(backbone=build_backbone(**camera.backbone.model_dump(exclude_none=True)), neck=neck)
    if kind == "bevformer":
        view = BEVFormerView(
            in_channels=8, channels=16, cameras=6, levels=levels, layers=1, heads=2, points=2, image_points=4, pillar=2,
            ffn=16, dropout=0.1, query_std=1.0, **bev,
        )  # fmt: skip
    else:
        net = "plain" if kind == "plain" else "bevdepth"
        view = LiftSplat(
            in_channels=8, channels=8, z=(-10.0, 10.0), depth=(1.0, 27.0, 2.0), step=run.bev.cell, stride=8,
            depth_net=net, aspp_channels=8, **bev,
        )  # fmt: skip
    branch = bev_model.CameraBranch(encoder=encoder, view=view)
    if kind == "temporal":
        branch = TemporalCameraBranch(encoder=encoder, view=view, frames=FRAMES, channels=8, start_epoch=0)
    bev_encoder = bev_model.build_bev_encoder(run, branch.out_channels)
    grid = BevGrid(tuple(run.bev.range), run.bev.cell)
    head = bev_model.build_head(settings.run("centerpoint-det"), bev_encoder.out_channels, grid)
    parts = {"lidar": None, "camera": branch, "fusion": None, "bev_encoder": bev_encoder, "head": head}
    return bev_model.BEVModel(grid=grid, **parts).eval()


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bevdepth", "bevformer", "temporal"))]
)
def test_a_camera_student_is_exported_for_its_rig(settings, tmp_path, kind):
    """On images that the exporter never saw; and another rig gives something else, so the view is in the file."""
    model = camera_model(settings, kind)
    run = settings.run("fusion-det")
    batch = replace(collate([summary.made_up_sample(settings, run)]), points=None)
    if kind == "temporal":
        names = ("images", "intrinsics", "camera_from_lidar", "image_augment")
        batch = replace(batch, **{name: torch.cat([getattr(batch, name)] * FRAMES, dim=1) for name in names})
    out = tmp_path / "student.onnx"
    found = export.to_onnx(model, batch, out, run=run, record={})
    assert max(found.differences.values()) < 1e-4
    images = 3 * torch.randn(batch.images.shape)
    with torch.no_grad():
        wanted = export.named(model(replace(batch, images=images)).predictions)
        turned = batch.camera_from_lidar.roll(1, dims=1)
        other = export.named(model(replace(batch, images=images, camera_from_lidar=turned)).predictions)
    values = session(out).run(list(wanted), {"images": images.numpy()})
    for (name, tensor), value in zip(wanted.items(), values, strict=True):
        np.testing.assert_allclose(value, tensor.numpy(), atol=1e-3 * float(tensor.abs().max()), err_msg=name)
    gap = max(float((wanted[name] - other[name]).abs().max() / wanted[name].abs().max()) for name in wanted)
    assert gap > 1e-2


def test_what_differs_is_not_written(settings, tmp_path, monkeypatch):
    run = settings.run("centerpoint-det")
    model = bev_model.build(run).eval()
    batch = collate([summary.made_up_sample(settings, run)])
    module = export._dense_part(model, batch)[1]
    proto = export._translate(module, "low", model.features(batch)["low"].detach(), ["0.offset"], one_rig=False)
    wrong = model.features(batch)["low"].detach() * 0 + 1
    monkeypatch.setattr(module, "predictions", lambda low: {"0.offset": module.head(module.bev_encoder(low))[0]["z"]})
    with pytest.raises(InputError, match=r"exported 0\.offset differs .* nothing was written"):
        export._check(proto.SerializeToString(), module, "low", wrong, ["0.offset"], run)


@pytest.mark.parametrize("place", [0, 1])
def test_numbers_that_are_not_finite_never_agree(place):
    """Neither where one side alone has them nor where both do: no comparison with NaN is true."""
    pair = [torch.ones(2, 3), torch.ones(2, 3)]
    assert export.relative_difference(*pair) == 0.0
    pair[place][0, 0] = float("nan")
    assert export.relative_difference(*pair) == float("inf")
    assert export.relative_difference(pair[place], pair[place]) == float("inf")


def test_what_cannot_be_exported_is_one_sentence(settings, tmp_path, monkeypatch):
    out = tmp_path / "model.onnx"
    run = settings.run("fusion-det")
    batch = collate([summary.made_up_sample(settings, run)])
    with pytest.raises(InputError, match="fusion-det: it has both sensors"):
        export.to_onnx(bev_model.build(run).eval(), batch, out, run=run, record={})

    class Strange(torch.nn.Module):
        def forward(self, high):
            return {"values": torch.linalg.eigvals(high[..., :4, :4]).real}

    run = settings.run("centerpoint-det")
    model = bev_model.build(run).eval()
    model.head = Strange()
    with pytest.raises(InputError, match=r"^centerpoint-det: it cannot be written as ONNX") as refusal:
        export.to_onnx(model, collate([summary.made_up_sample(settings, run)]), out, run=run, record={})
    assert "\n" not in str(refusal.value)
    assert not out.exists()
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("-e '.[export]'")):
        export.write(
            None,
            out,
            params=None,
            experiment=Experiment(tmp_path),
            seed=0,
            weights=None,
            random=False,
            root=None,
            infos=None,
        )
