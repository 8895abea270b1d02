"""Backbones' settings, both necks against a hand calculation or a loop, and what Caffe's weights get to see."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vexkd.models.image_encoder import (
    DEVIATIONS,
    Fpn,
    FrozenBatchNorm2d,
    ImageEncoder,
    LssFpn,
    build_backbone,
    build_neck,
)
from vexkd.ops.deform_conv import ModulatedDeformConv2d


def resnet(**more) -> nn.Module:
    torch.manual_seed(0)
    settings = {
        "kind": "resnet", "widths": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "outputs": [1, 2, 3], "layer": "bottleneck",
        "stem": 4,
    }  # fmt: skip
    return build_backbone(**{**settings, **more})


def test_strides_of_the_stages_and_a_list_of_maps():
    encoder = ImageEncoder(backbone=resnet(), neck=build_neck(kind="fpn", widths=[16, 24, 32], channels=6, levels=4))
    maps = encoder(torch.randn(2, 3, 3, 64, 96))
    assert [tuple(level.shape) for level in maps] == [
        (2, 3, 6, 8, 12),
        (2, 3, 6, 4, 6),
        (2, 3, 6, 2, 3),
        (2, 3, 6, 1, 2),
    ]
    one = ImageEncoder(backbone=resnet(), neck=build_neck(kind="lss-fpn", widths=[16, 24, 32], channels=6))
    assert [tuple(level.shape) for level in one(torch.randn(2, 3, 3, 64, 96))] == [(2, 3, 6, 8, 12)]
    assert encoder.out_channels == one.out_channels == 6


def test_fpn_by_hand():
    """Laterals that multiply by 1 and 10, outputs that copy: the coarse map is doubled by nearest neighbours and added."""
    fpn = Fpn(widths=[1, 1], channels=1, levels=3)
    for conv in (*fpn.laterals, *fpn.outputs):
        nn.init.zeros_(conv.weight)
    for conv, factor in zip(fpn.laterals, (1.0, 10.0), strict=True):
        nn.init.constant_(conv.weight, factor)
    for conv in fpn.outputs:
        conv.weight.data[0, 0, 1, 1] = 1.0
    fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([[[[1.0, 2], [3, 4]]]])
    first, second, third = fpn([fine, coarse])
    added = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 20], [30, 30, 40, 40], [30, 30, 40, 40]])
    assert torch.equal(first[0, 0], fine[0, 0] + added)
    assert torch.equal(second[0, 0], 10 * coarse[0, 0])
    assert torch.equal(third[0, 0], torch.tensor([[10.0]]))  # stride 2: the corner


def test_only_extra_levels_after_the_first_pass_a_relu():
    fpn = Fpn(widths=[2], channels=3, levels=3)
    assert [conv.stride for conv in fpn.outputs] == [(1, 1), (2, 2), (2, 2)]
    x = torch.randn(1, 2, 9, 9)
    first, second, third = fpn([x])
    assert (first < 0).any()
    torch.testing.assert_close(second, F.conv2d(first, fpn.outputs[1].weight, fpn.outputs[1].bias, stride=2, padding=1))
    rectified = second.clamp(min=0)
    torch.testing.assert_close(
        third, F.conv2d(rectified, fpn.outputs[2].weight, fpn.outputs[2].bias, stride=2, padding=1)
    )


def test_fpn_keeps_only_the_finest_where_fewer_levels_are_asked():
    """BEVDet's neck: two maps in, one out; sizes that are no exact doubles are met."""
    fpn = Fpn(widths=[4, 6], channels=3, levels=1)
    (found,) = fpn([torch.randn(2, 4, 5, 7), torch.randn(2, 6, 3, 4)])
    assert found.shape == (2, 3, 5, 7)
    assert len(fpn.outputs) == 1


def test_parameters_of_the_papers_necks():
    """BEVFormer: laterals (512 + 1024 + 2048) * 256 + 3 * 256, four outputs of 590,080. BEVDet: one output."""
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(Fpn(widths=[512, 1024, 2048], channels=256, levels=4)) == 3584 * 256 + 3 * 256 + 4 * 590_080
    assert count(Fpn(widths=[1024, 2048], channels=256, levels=1)) == 3072 * 256 + 2 * 256 + 590_080


def test_lss_fpn_goes_from_the_coarsest_map_up():
    torch.manual_seed(0)
    neck = LssFpn(widths=[4, 6, 8], channels=5).eval()
    maps = [torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6), torch.randn(1, 8, 2, 3)]
    middle = torch.cat([maps[1], F.interpolate(maps[2], size=(4, 6), mode="bilinear")], 1)
    middle = neck.smooth[1](neck.laterals[1](middle))
    fine = torch.cat([maps[0], F.interpolate(middle, size=(8, 12), mode="bilinear")], 1)
    (found,) = neck(maps)
    torch.testing.assert_close(found, neck.smooth[0](neck.laterals[0](fine)))


def test_caffe_strides_in_the_first_convolution():
    first, second = (resnet(style=style).encoder.stages[1].layers[0].layer for style in ("pytorch", "caffe"))
    assert [step.convolution.stride[0] for step in first] == [1, 2, 1]
    assert [step.convolution.stride[0] for step in second] == [2, 1, 1]


def test_caffes_pixels_are_bgr_without_a_deviation():
    """A batch holds RGB as (pixel - mean) / deviation; Caffe's weights see BGR as pixel - mean (103.53, 116.28, 123.675)."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return type("Maps", (), {"feature_maps": [x]})

    rgb = torch.tensor([200.0, 100.0, 50.0])
    image = ((rgb - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(DEVIATIONS)).view(1, 1, 3, 1, 1)
    neck = nn.Identity()
    neck.out_channels = 3
    ImageEncoder(backbone=Spy(), neck=neck, pixels="caffe")(image)
    ImageEncoder(backbone=Spy(), neck=neck)(image)
    torch.testing.assert_close(seen[0].flatten(), torch.tensor([50 - 103.53, 100 - 116.28, 200 - 123.675]))
    torch.testing.assert_close(seen[1], image[0])


def test_deformable_stages_keep_every_other_name():
    plain, moving = resnet(), resnet(deformable=[2, 3])
    extra = set(moving.state_dict()) - set(plain.state_dict())
    assert not set(plain.state_dict()) - set(moving.state_dict())
    assert extra == {
        f"encoder.stages.{stage}.layers.{block}.layer.1.convolution.conv_offset.{name}"
        for stage, block in ((2, 0), (2, 1), (3, 0))
        for name in ("weight", "bias")
    }
    assert sum(isinstance(m, ModulatedDeformConv2d) for m in moving.modules()) == 3
    images = torch.randn(1, 3, 64, 64)
    sizes = [[m.shape for m in net(images).feature_maps] for net in (plain, moving)]
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match="bottleneck"):
        resnet(layer="basic", deformable=[3])


def test_frozen_stages_and_norms_learn_nothing():
    backbone = resnet(frozen_stages=1, frozen_norm=True, deformable=[2])
    fixed = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in fixed} == {"embedder", "encoder"}
    assert all(name.startswith(("embedder.", "encoder.stages.0.")) for name in fixed)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    before = copy.deepcopy(backbone.state_dict())
    backbone.train()
    sum(level.square().mean() for level in backbone(torch.randn(2, 3, 64, 64)).feature_maps).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in fixed), name
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_frozen_norm_is_batch_norm_in_evaluation():
    norm, frozen = nn.BatchNorm2d(3), FrozenBatchNorm2d(3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x))
    assert not list(frozen.parameters())


def test_recomputing_changes_no_number():
    settings = {"frozen_norm": True, "deformable": [2], "frozen_stages": 1}
    kept, again = resnet(**settings), resnet(**settings, recompute=True)
    again.load_state_dict(kept.state_dict())
    images = torch.randn(1, 3, 64, 64)
    grads = []
    for net in (kept, again):
        loss = sum(level.square().mean() for level in net(images).feature_maps)
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(grads[0]) == 20
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "swin", "heads": [1, 2, 4, 8]}, "Swin's widths double"),
        ({"kind": "swin", "widths": [8, 16, 32, 64], "heads": [1, 2, 4, 8], "deformable": [3]}, "are for ResNets"),
        ({"recompute": True}, "needs frozen_norm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        resnet(**settings)
