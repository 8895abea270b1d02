"""Convolutions in the layout that models are trained in, against float64, where torch's build computes some layouts wrongly.

Each check runs in a process of its own, as the fault may end it; oneDNN is held to AVX2, as on a processor without AVX-512,
and left as it is.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from vexkd.models.layout import lay_out, needs_outermost

LIMITS = {"as it is": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin would be slow on a busy machine


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("limit", LIMITS)
def test_gradients_of_every_kind_of_convolution_and_model_are_right(limit, threads):
    """The smallest widths: strided, grouped, transposed, dilated and plain convolutions, and the parts that models have."""
    command = [sys.executable, __file__, str(threads)]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **LIMITS[limit], **PATIENT}, timeout=400
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "all right" in run.stdout


def test_only_strided_pointwise_convolutions_of_few_channels_keep_channels_outermost():
    convolutions = nn.Sequential(
        nn.Conv2d(4, 16, 1, stride=2),
        nn.Conv2d(16, 32, 1, stride=2),
        nn.Conv2d(4, 16, 3, stride=2),
        nn.Conv2d(4, 16, 1),
    )
    lay_out(lay_out(convolutions, torch.channels_last), torch.channels_last)  # twice does no more than once
    assert [needs_outermost(conv) for conv in convolutions] == [True, False, False, False]
    assert [len(conv._forward_pre_hooks) for conv in convolutions] == [1, 0, 0, 0]
    assert convolutions[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert convolutions[0].weight.stride() == (4, 1, 1, 1)


def kinds():
    """Modules by name, with the channels of their input."""
    from vexkd.models.image_encoder import build_backbone
    from vexkd.ops.deform_conv import ModulatedDeformConv2d

    few = [(1, 1), (1, 8), (2, 3), (3, 16), (4, 4), (6, 3), (7, 12), (8, 8), (12, 1), (20, 20)]
    for narrow, wide in few:
        for kernel, stride in [(1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (7, 2)]:
            conv = nn.Conv2d(narrow, wide, kernel, stride=stride, padding=kernel // 2, bias=wide % 2 == 0)
            yield f"convolution {narrow} {wide} {kernel} {stride}", conv, narrow
        for stride in (1, 2, 4):
            yield (
                f"transposed {narrow} {wide} {stride}",
                nn.ConvTranspose2d(narrow, wide, stride, stride=stride),
                narrow,
            )
        yield f"dilated {narrow} {wide}", nn.Conv2d(narrow, wide, 3, padding=6, dilation=6), narrow
        yield f"depthwise {narrow}", nn.Conv2d(narrow, narrow, 3, stride=2, padding=1, groups=narrow), narrow
        deformable = ModulatedDeformConv2d(narrow, wide, stride=2)
        nn.init.normal_(deformable.conv_offset.weight, std=0.01)
        nn.init.constant_(deformable.conv_offset.bias, 0.4)  # off the grid, where interpolation has no kinks
        yield f"deformable {narrow} {wide}", deformable, narrow
    for width in (4, 6, 12):
        for layer in ("basic", "bottleneck"):
            backbone = build_backbone(
                kind="resnet", widths=[width, 2 * width, 4 * width, 8 * width], depths=[1, 1, 1, 1], layer=layer,
                stem=width, outputs=[1, 2, 3],
            )  # fmt: skip
            yield f"ResNet {layer} {width}", backbone, 3


def worst_difference(module: nn.Module, channels: int, *, batch: int, size: tuple[int, int]) -> float:
    """The largest difference to float64 of the outputs and of all gradients, over the largest of each."""
    from copy import deepcopy

    module.zero_grad()
    exact = deepcopy(module).double()
    module = lay_out(module, torch.channels_last)
    x = torch.randn(batch, channels, *size)
    found, expected = x.clone(memory_format=torch.channels_last).requires_grad_(), x.double().requires_grad_()
    outputs, wanted = module(found), exact(expected)
    if not isinstance(outputs, torch.Tensor):  # of transformers
        outputs, wanted = outputs.feature_maps, wanted.feature_maps
    else:
        outputs, wanted = [outputs], [wanted]
    for ours, theirs in zip(outputs, wanted, strict=True):
        gradient = torch.randn(theirs.shape)
        theirs.backward(gradient.double(), retain_graph=True)
        ours.backward(gradient.clone(memory_format=torch.channels_last), retain_graph=True)
    pairs = [(a.detach(), b.detach()) for a, b in zip(outputs, wanted, strict=True)] + [(found.grad, expected.grad)]
    pairs += [
        (a.grad, b.grad) for a, b in zip(module.parameters(), exact.parameters(), strict=True) if b.grad is not None
    ]
    return max(float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs)


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for name, module, channels in kinds():
        deep = name.startswith("ResNet")
        sizes = [(2, (64, 96))] if deep else [(2, (8, 16)), (1, (9, 13))]
        for batch, size in sizes:
            # Statistics of a batch would multiply rounding, and a ReLU near zero turns it into a jump.
            module.train(not deep)
            worst = worst_difference(module, channels, batch=batch, size=size)
            assert worst < (2e-2 if deep else 1e-3), f"{name}, {batch} of {size}: off by {worst:.2g}"
    print("all right")


if __name__ == "__main__":
    main(int(sys.argv[1]))
