"""One step of every kind of model at its smallest, in the layout that it is trained in, against channels outermost.

In a process of its own, as the fault of vexkd/models/layout.py may end it. Differences are those of float32: sparse
convolutions and losses don't run in float64.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import tiny_settings
from counted import step_of
from test_layout import LIMITS, PATIENT

from vexkd import settings
from vexkd.batch import collate
from vexkd.measure import forecast
from vexkd.models.layout import outermost
from vexkd.train.seeding import seed_everything

# Most of what convolves in 2D: both sensors, cameras over time, deformable convolutions. All together are slow.
WIDEST = ("fusion-det", "bevdet4d-det", "bevformer-det")
TRAINED = (
    "lidar-pretrain",
    "fusion-det",
    "fusion-conv-det",
    "fusion-seg",
    "centerpoint-det-vexkd",
    "bevdet-seg-vexkd",
    "bevdet4d-det",
    "bevformer-det",
    "swin-seg",
)
METHODS = ("unidistill", "bevdistill", "fgd", "distillbev", "maskd", "s2m2")
LOSSES = ("pkd", "cwd", "mgd")
SLOW = (("AVX2", 1), ("AVX2", 2), ("as it is", 1), ("as it is", 2))


@pytest.mark.parametrize(
    ("limit", "threads", "names"),
    [
        ("AVX2", 1, WIDEST),
        ("AVX2", 2, WIDEST),
        *(pytest.param(limit, threads, (), marks=pytest.mark.slow) for limit, threads in SLOW),
    ],
)
def test_gradients_of_every_kind_of_training_do_not_depend_on_the_layout(limit, threads, names):
    """`names`: the runs; default: all."""
    command = [sys.executable, __file__, str(threads), *names]
    environment = {**os.environ, **LIMITS[limit], **PATIENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
    assert "all right" in run.stdout


def small() -> settings.Params:
    """The tiny runs, and those of the paper's scale that they lack: cameras over time, BEVFormer, other teaching."""
    raw = tiny_settings()
    camera = raw["students"]["bevdet-seg"]
    backbone = {"kind": "resnet", "widths": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "stem": 4, "outputs": [1, 2, 3]}
    raw["students"]["bevdet4d-det"] = {
        **camera,
        "task": "detection",
        "head": "centerpoint",
        "camera": {
            "backbone": {**backbone, "layer": "bottleneck"},
            "neck": {"kind": "fpn", "channels": 8},
            "view": {**camera["camera"]["view"], "depth_net": "bevdepth", "aspp_channels": 4, "depth_weight": 3.0},
            "history": {"keyframes": 1, "start_epoch": 0},
        },
    }
    windows = {
        "kind": "swin",
        "widths": [4, 8, 16],
        "depths": [1, 2, 1],
        "heads": [1, 2, 4],
        "window": 4,
        "outputs": [0, 1, 2],
    }
    raw["students"]["swin-seg"] = {**camera, "camera": {**camera["camera"], "backbone": windows}}
    raw["students"]["bevformer-det"] = {
        **camera,
        "task": "detection",
        "head": "detr",
        "camera": {
            "backbone": {**backbone, "layer": "bottleneck", "style": "caffe", "deformable": [2, 3]},
            "neck": {"kind": "fpn", "channels": 8, "levels": 2},
            "view": {
                "kind": "bevformer",
                "channels": 8, "layers": 1, "heads": 2, "points": 2, "image_points": 4, "pillar": 2,
                "ffn": 16, "dropout": 0.0, "query_std": 1.0,
            },
        },
        "bev_encoder": {"kind": "none"},
    }  # fmt: skip
    raw["detr"] |= {"channels": 16, "queries": 20, "layers": 1, "heads": 2, "points": 2, "ffn": 16}
    pupil = {"student": "centerpoint-det", "teacher": "fusion-det"}
    raw["distilled"] |= {name: {**pupil, "distill": {"method": name}} for name in METHODS}
    raw["distilled"] |= {name: {**pupil, "distill": {"mask": "ones", "loss": name}} for name in LOSSES}
    return settings.parse(raw)


def gradients(task: torch.nn.Module, batch, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Of one backward pass, by the parameters' names; the draws are the same every time."""
    seed_everything(1)
    task.zero_grad()
    task.begin_step(0, 0)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        terms, _ = step_of(task, batch)
    sum(terms.values()).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def worst_difference(params: settings.Params, name: str) -> tuple[float, str]:
    """The largest difference of a parameter's gradient to that with channels outermost, in lengths of the latter."""
    run = params.run(name)
    images = params.run(run.teacher) if run.teacher and not run.camera else run
    seed_everything(0)
    task = forecast.build_task(params, run).eval()  # statistics of a batch would multiply rounding
    batch = collate([forecast.made_up_sample(params, run, images, np.random.default_rng(0))])
    found = gradients(task, batch)
    if name == "fusion-det":
        rounded = gradients(task, batch, torch.bfloat16)
        assert all(gradient.isfinite().all() for gradient in rounded.values()), "bf16: a gradient is not finite"
    for module in task.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(outermost)
    exact = gradients(task, batch)
    assert found.keys() == exact.keys()
    total = torch.stack([gradient.norm() for gradient in exact.values()]).max()
    return max(
        (float((found[key] - exact[key]).norm() / exact[key].norm().clamp(min=1e-5 * total)), key) for key in exact
    )


def main(threads: int, names: list[str]) -> None:
    torch.set_num_threads(threads)
    settings = small()
    for name in names or (*TRAINED, *METHODS, *LOSSES):
        worst, parameter = worst_difference(settings, name)
        print(f"{name}: {worst:.2g} ({parameter})", flush=True)
        assert worst < 1e-2, f"{name}, {parameter}: off by {worst:.2g}"
    print("all right")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
