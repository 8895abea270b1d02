"""Published checkpoints become ours: networks written here in the published layout and conventions give the same outputs.

Each reference makes the tensors it reads as it goes, under the published names, so that it is the state dict's definition too.
Numbers are float64. C channels, X Y Z the published LiDAR axes, Y X ours.
"""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_settings
from published import Published, built, put, tiny
from torch import Tensor

from vexkd import boxes, seal, settings
from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.models import bev_model
from vexkd.published import convert, files
from vexkd.published.mapping import Layout, Source, apply
from vexkd.train import checkpoint

EXACT = {"rtol": 1e-9, "atol": 1e-9}


# ---- BEVFusion: maps (X, Y), grids (X, Y, Z)


def sparse_block(p: Published, x: Tensor, seen: Tensor, name: str, out: int, *, kernel, stride=1, padding=None):
    """A sparse convolution as a dense one over (X, Y, Z): features and which cells are active, before and after."""
    weight = p.get(f"{name}.weight", out, *kernel, x.shape[1]).permute(0, 4, 1, 2, 3)
    if padding is None:
        return F.conv3d(x, weight, padding=tuple(k // 2 for k in kernel)) * seen, seen
    reached = F.conv3d(seen, torch.ones(1, 1, *kernel, dtype=seen.dtype), stride=stride, padding=padding) > 0
    return F.conv3d(x, weight, stride=stride, padding=padding) * reached, reached.double()


def published_sparse_encoder(p: Published, x: Tensor, seen: Tensor, run: settings.Run, *, xyz: bool) -> Tensor:
    """Of blocks at each stage and a halving at its end; the order of axes is that of `x`."""
    name, widths = "pts_middle_encoder", run.lidar.channels
    turn = (lambda triple: triple) if xyz else (lambda triple: triple[::-1])
    cube = (3, 3, 3)

    def normed(y: Tensor, active: Tensor, norm: str, rest=0.0) -> Tensor:
        return (p.norm(y, norm, eps=1e-3) + rest).relu() * active

    x, seen = sparse_block(p, x, seen, f"{name}.conv_input.0", widths[0], kernel=cube)
    x = normed(x, seen, f"{name}.conv_input.1")
    for stage, width in enumerate(widths):
        layer = f"{name}.encoder_layers.encoder_layer{stage + 1}"
        for block in range(run.lidar.blocks):
            y, _ = sparse_block(p, x, seen, f"{layer}.{block}.conv1", width, kernel=cube)
            y, _ = sparse_block(
                p, normed(y, seen, f"{layer}.{block}.bn1"), seen, f"{layer}.{block}.conv2", width, kernel=cube
            )
            x = normed(y, seen, f"{layer}.{block}.bn2", rest=x)
        if stage < len(widths) - 1:
            padding = turn((1, 1, 0)) if stage == len(widths) - 2 else (1, 1, 1)
            down = f"{layer}.{run.lidar.blocks}"
            x, seen = sparse_block(p, x, seen, f"{down}.0", widths[stage + 1], kernel=cube, stride=2, padding=padding)
            x = normed(x, seen, f"{down}.1")
    how = {"kernel": turn((1, 1, 3)), "stride": turn((1, 1, 2)), "padding": 0}
    x, seen = sparse_block(p, x, seen, f"{name}.conv_out.0", run.lidar.out_channels, **how)
    x = normed(x, seen, f"{name}.conv_out.1")
    return x.permute(0, 1, 4, 2, 3).flatten(1, 2) if xyz else x.flatten(1, 2)


def voxels(run: settings.Run) -> tuple[Tensor, Tensor, Tensor]:
    """Points, one a voxel, and the same as a dense grid (1, 5, X, Y, Z) with what is active."""
    random = torch.Generator().manual_seed(4)
    low, size = torch.tensor(run.bev.range[:3]).double(), torch.tensor(run.bev.voxel).double()
    count = torch.tensor([32, 32, 20])
    cells = torch.unique((torch.rand(150, 3, generator=random) * count).long(), dim=0)
    points = torch.cat([low + (cells + 0.5) * size, torch.rand(len(cells), 2, generator=random)], dim=1)
    grid = torch.zeros(1, 5, 32, 32, 21, dtype=torch.float64)
    grid[0, :, cells[:, 0], cells[:, 1], cells[:, 2]] = points.T
    seen = torch.zeros(1, 1, 32, 32, 21, dtype=torch.float64)
    seen[0, 0, cells[:, 0], cells[:, 1], cells[:, 2]] = 1.0
    return points, grid, seen


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("origin", ["mmdet3d-bevfusion", "mmdet3d-centerpoint"])
def test_sparse_encoder(origin, generation):
    """BEVFusion's over (X, Y, Z), CenterPoint's over (Z, Y, X), with kernels as spconv 1 or 2 keeps them."""
    run, p, xyz = tiny("centerpoint-det"), Published(), origin == "mmdet3d-bevfusion"
    points, grid, seen = voxels(run)
    if not xyz:
        grid, seen = grid.permute(0, 1, 4, 3, 2), seen.permute(0, 1, 4, 3, 2)
    expected = published_sparse_encoder(p, grid, seen, run, xyz=xyz)
    if generation == 1:
        p.tensors = {k: t.permute(1, 2, 3, 4, 0) if t.dim() == 5 else t for k, t in p.tensors.items()}
    model = built(run)
    put(model, run, p, origin, "lidar.")
    with torch.no_grad():
        torch.testing.assert_close(model.lidar([points]), expected.mT if xyz else expected, **EXACT)


def published_second(p: Published, x: Tensor, run: settings.Run) -> Tensor:
    encoder, outputs, scale = run.bev_encoder, [], 1
    for stage, width in enumerate(encoder.channels):
        for layer in range(encoder.layers[stage] + 1):
            name, stride = f"pts_backbone.blocks.{stage}", encoder.strides[stage] if layer == 0 else 1
            x = p.norm(
                p.conv(x, f"{name}.{3 * layer}", width, 3, stride=stride), f"{name}.{3 * layer + 1}", 1e-3
            ).relu()
        scale *= encoder.strides[stage]
        name, out = f"pts_neck.deblocks.{stage}", encoder.neck_channels[stage]
        if scale == 1:
            y = p.conv(x, f"{name}.0", out, 1)
        else:
            y = F.conv_transpose2d(x, p.get(f"{name}.0.weight", x.shape[1], out, scale, scale), stride=scale)
        outputs.append(p.norm(y, f"{name}.1", 1e-3).relu())
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize(("origin", "xy"), [("mmdet3d-bevfusion", True), ("mmdet3d-centerpoint", False)])
def test_second_and_its_neck(origin, xy):
    run, p = tiny("centerpoint-det"), Published()
    model = built(run)
    low = torch.randn(2, model.lidar.out_channels, 8, 8, dtype=torch.float64)
    expected = published_second(p, low.mT if xy else low, run)
    put(model, run, p, origin, "bev_encoder.")
    with torch.no_grad():
        torch.testing.assert_close(model.bev_encoder(low), expected.mT if xy else expected, **EXACT)


def published_transfusion(p: Published, x: Tensor, run: settings.Run) -> dict[str, Tensor]:
    """TransFusionHead over a map (B, C, X, Y): every layer's outputs by name, (B, Q, ...), best proposal first."""
    head, width = run.transfusion, run.transfusion.channels
    shared = p.conv(x, "bbox_head.shared_conv", width, 3, bias=True)
    dense = p.conv(p.module(shared, "bbox_head.heatmap_head.0", width, 3), "bbox_head.heatmap_head.1", 10, 3, bias=True)
    heat = dense.sigmoid()
    peak = torch.zeros_like(heat)
    peak[:, :, 1:-1, 1:-1] = F.max_pool2d(heat, 3, stride=1)
    peak[:, 8:] = heat[:, 8:]
    heat = (heat * (heat == peak)).flatten(2)
    top = heat.flatten(1).argsort(dim=-1, descending=True)[:, : head.proposals]
    kind, cell = top // heat.shape[-1], top % heat.shape[-1]
    places = (
        torch.stack(torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij"), -1).double()
        + 0.5
    )
    places = places.view(1, -1, 2).expand(len(x), -1, -1)  # (x, y) of each cell
    memory = shared.flatten(2).mT
    query = memory.gather(1, cell[..., None].expand(-1, -1, width))
    code = p.get("bbox_head.class_encoding.weight", width, 10, 1)[..., 0]
    query = query + F.linear(F.one_hot(kind, 10).double(), code, p.get("bbox_head.class_encoding.bias", width))
    place = places.gather(1, cell[..., None].expand(-1, -1, 2))

    def position(where: Tensor, name: str) -> Tensor:
        inner = f"bbox_head.decoder.0.{name}.position_embedding_head"
        y = p.norm(p.conv(where.mT, f"{inner}.0", width, 1, bias=True), f"{inner}.1").relu()
        return p.conv(y, f"{inner}.3", width, 1, bias=True).mT

    own, other = position(place, "self_posembed"), position(places, "cross_posembed")
    name = "bbox_head.decoder.0"
    query = query + p.attention(query + own, query + own, query + own, f"{name}.self_attn.attn", head.heads)
    query = p.layer_norm(query, f"{name}.norms.0")
    query = query + p.attention(query + own, memory + other, memory + other, f"{name}.cross_attn.attn", head.heads)
    query = p.layer_norm(query, f"{name}.norms.1")
    query = p.layer_norm(query + p.feed_forward(query, f"{name}.ffn", head.ffn), f"{name}.norms.2")
    found = {}
    for branch, out in {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": 10}.items():
        inner = f"bbox_head.prediction_heads.0.{branch}"
        found[branch] = p.conv(p.module(query.mT, f"{inner}.0", 64, 1), f"{inner}.1", out, 1, bias=True).mT
    found["center"] = found["center"] + place
    return found | {"dense": dense, "kind": kind}


@pytest.mark.parametrize("legacy", [False, True])
def test_transfusion_head(legacy):
    """The whole head over the transposed map; old boxes come out with our yaw and order of sizes."""
    run, p = tiny("lidar-pretrain"), Published()
    model = built(run).float()  # so are the places that it counts in
    high = torch.randn(2, model.bev_encoder.out_channels, 8, 8, dtype=torch.float64)
    expected = published_transfusion(p, high.mT, run)
    put(model, run, p, "mmdet3d-bevfusion", "head.", legacy=legacy)
    with torch.no_grad():
        found = model.head(high.float())
    loose = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found["heatmap"].double(), expected["dense"].mT, **loose)
    assert torch.equal(found["label"], expected["kind"])
    codes, logits = found["layers"][0]["codes"].double(), found["layers"][0]["logits"].double()
    torch.testing.assert_close(logits, expected["heatmap"], **loose)
    torch.testing.assert_close(codes[..., :2], expected["center"], **loose)
    torch.testing.assert_close(codes[..., 2:3], expected["height"], **loose)
    torch.testing.assert_close(codes[..., 8:], expected["vel"], **loose)
    sizes, yaw = expected["dim"].exp(), torch.atan2(expected["rot"][..., 0], expected["rot"][..., 1])
    if legacy:
        sizes, yaw = sizes[..., [1, 0, 2]], -yaw - math.pi / 2
    torch.testing.assert_close(codes[..., 3:6].exp(), sizes, **loose)
    turn = torch.atan2(codes[..., 6], codes[..., 7]) - yaw
    torch.testing.assert_close(turn.cos(), torch.ones_like(turn), **loose)


def test_conv_fuser():
    """Published are camera, then LiDAR, over (X, Y)."""
    run, p = tiny("fusion-conv-det"), Published()
    model = built(run)
    lidar = torch.randn(1, model.lidar.out_channels, 8, 8, dtype=torch.float64)
    camera = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    joined = torch.cat([camera, lidar], dim=1).mT
    expected = p.norm(p.conv(joined, "fusion_layer.0", 16, 3), "fusion_layer.1").relu()
    put(model, run, p, "mmdet3d-bevfusion", "fusion.")
    with torch.no_grad():
        torch.testing.assert_close(model.fusion({"lidar": lidar, "camera": camera}), expected.mT, **EXACT)


def test_depth_lss():
    """Biases before norms are folded, the guidance changes places, the map is transposed."""
    run, p = tiny("fusion-conv-det"), Published()
    model = built(run)
    view = model.camera.view
    depth, image = torch.rand(1, 1, 32, 64, dtype=torch.float64), torch.randn(1, 8, 4, 8, dtype=torch.float64)
    guidance, widths = depth, run.camera.view.depth_channels
    for step, (out, kernel, stride) in enumerate(zip(widths, (1, 5, 5), (1, 4, 2), strict=True)):
        name = "vtransform.dtransform"
        guidance = p.conv(guidance, f"{name}.{3 * step}", out, kernel, bias=True, stride=stride)
        guidance = p.norm(guidance, f"{name}.{3 * step + 1}").relu()
    x = torch.cat([guidance, image], dim=1)
    for step in range(2):
        x = p.norm(
            p.conv(x, f"vtransform.depthnet.{3 * step}", 8, 3, bias=True), f"vtransform.depthnet.{3 * step + 1}"
        ).relu()
    expected = p.conv(x, "vtransform.depthnet.6", len(view.bins) + 8, 1, bias=True)
    bev = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    down = bev.mT
    for step in range(3):
        down = p.norm(
            p.conv(down, f"vtransform.downsample.{3 * step}", 8, 3), f"vtransform.downsample.{3 * step + 1}"
        ).relu()
    p.tensors["vtransform.frustum"] = torch.zeros(2, 3)
    p.tensors["vtransform.dx"] = torch.zeros(3)
    result = put(model, run, p, "mmdet3d-bevfusion", "camera.view.")
    assert {"vtransform.frustum", "vtransform.dx"} <= set(result.ignored)
    with torch.no_grad():
        torch.testing.assert_close(view.depth_net(torch.cat([image, view.depth_image(depth)], 1)), expected, **EXACT)
        torch.testing.assert_close(view.down(bev), down.mT, **EXACT)


def test_generalized_lss_fpn():
    run, p = tiny("fusion-conv-det"), Published()
    model = built(run)
    maps = [torch.randn(1, 8, 8 // 2**i, 16 // 2**i, dtype=torch.float64) for i in range(3)]
    coarse = maps[2]
    for level in (1, 0):
        coarse = F.interpolate(coarse, size=maps[level].shape[-2:], mode="bilinear", align_corners=False)
        coarse = p.module(torch.cat([maps[level], coarse], 1), f"img_neck.lateral_convs.{level}", 8, 1)
        coarse = p.module(coarse, f"img_neck.fpn_convs.{level}", 8, 3)
    put(model, run, p, "mmdet3d-bevfusion", "camera.encoder.neck.")
    with torch.no_grad():
        torch.testing.assert_close(model.camera.encoder.neck(maps)[0], coarse, **EXACT)


# ---- CenterPoint's head


@pytest.mark.parametrize("legacy", [False, True])
def test_center_head(legacy):
    run, p = tiny("centerpoint-det"), Published()
    model = built(run)
    high = torch.randn(1, model.bev_encoder.out_channels, 8, 8, dtype=torch.float64)
    shared = p.module(high, "pts_bbox_head.shared_conv", 8, 3)
    put_out = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    expected = []
    for task, names in enumerate(run.centerpoint.tasks):
        name = f"pts_bbox_head.task_heads.{task}"
        widths = put_out | {"heatmap": len(names)}
        expected.append(
            {
                b: p.conv(p.module(shared, f"{name}.{b}.0", 8, 3), f"{name}.{b}.1", n, 3, bias=True)
                for b, n in widths.items()
            }
        )
    put(model, run, p, "mmdet3d-centerpoint", "head.", legacy=legacy)
    with torch.no_grad():
        outputs = model.head(high)
    for found, wanted in zip(outputs, expected, strict=True):
        same = {"offset": "reg", "z": "height", "velocity": "vel", "heatmap": "heatmap"}
        for ours, theirs in same.items():
            torch.testing.assert_close(found[ours], wanted[theirs], **EXACT)
        sizes, sine, cosine = wanted["dim"], wanted["rot"][:, :1], wanted["rot"][:, 1:]
        if legacy:
            sizes, sine, cosine = sizes[:, [1, 0, 2]], -cosine, -sine
        torch.testing.assert_close(found["size"], sizes, **EXACT)
        torch.testing.assert_close(found["yaw"], torch.cat([sine, cosine], 1), **EXACT)


def test_a_tasks_classes_are_published_in_the_order_of_the_data_set():
    """BEVDet's one task has the bus before the trailer; a run that has it after still reads the bus's own channel."""

    def trailer_first(raw: dict) -> None:
        raw["centerpoint"]["tasks"] = [[*boxes.CLASSES[:3], "trailer", "bus", *boxes.CLASSES[5:]]]

    run, p = tiny("centerpoint-det", trailer_first), Published()
    name = "pts_bbox_head.task_heads.0.heatmap.1"
    published = {"weight": p.get(f"{name}.weight", 10, 8, 3, 3), "bias": p.get(f"{name}.bias", 10)}
    result = convert.convert(run, built(run).state_dict(), p.tensors, origin="mmdet3d-bevdet", legacy=False)
    for channel, kind in enumerate(run.centerpoint.tasks[0]):
        for end, tensor in published.items():
            mine = result.tensors[f"head.tasks.0.branches.heatmap.1.{end}"][channel]
            assert torch.equal(mine, tensor[boxes.CLASSES.index(kind)])


def test_old_boxes_by_hand():
    """A car that looks along +y (yaw 90 degrees), 4 m long and 2 m wide, was kept as w 2, l 4, yaw -180 degrees."""
    change = convert.detectors.parts.LEGACY
    old_yaw = torch.tensor(-math.pi / 2 - math.pi / 2, dtype=torch.float64)
    sine, cosine = change["yaw"]["bias"](torch.stack([old_yaw.sin(), old_yaw.cos()]))
    assert math.degrees(math.atan2(sine, cosine)) == pytest.approx(90.0)
    assert change["size"]["bias"](torch.tensor([2.0, 4.0, 1.5])).tolist() == [4.0, 2.0, 1.5]


# ---- BEVDet


def with_bevdet4d(raw: dict) -> None:
    raw["students"]["camera-only"]["camera"] = {
        "neck": {"kind": "fpn", "channels": 8},
        "view": {"depth_net": "bevdepth", "depth_channels": None, "step": 1.6, "aspp_channels": 4, "depth_weight": 3.0},
        "history": {"keyframes": 1, "start_epoch": 0},
    }


def basic_block(p: Published, x: Tensor, name: str, out: int, stride: int = 1, *, shortcut: bool = False) -> Tensor:
    y = p.norm(p.conv(x, f"{name}.conv1", out, 3, stride=stride), f"{name}.bn1").relu()
    y = p.norm(p.conv(y, f"{name}.conv2", out, 3), f"{name}.bn2")
    rest = p.conv(x, f"{name}.downsample", out, 3, bias=True, stride=stride) if shortcut else x
    return (y + rest).relu()


def test_bevdet_encoder_neck_and_pre_process():
    run, p = tiny("camera-only", with_bevdet4d), Published()
    model = built(run)
    low = torch.randn(1, 16, 16, 16, dtype=torch.float64)
    stages, x, widths = [], low, run.bev_encoder.channels
    for stage, width in enumerate(widths):
        x = basic_block(p, x, f"img_bev_encoder_backbone.layers.{stage}.0", width, 2, shortcut=True)
        stages.append(x)
    up = F.interpolate(stages[2], scale_factor=4, mode="bilinear", align_corners=True)
    name, y = "img_bev_encoder_neck", torch.cat([stages[0], up], dim=1)
    y = p.norm(p.conv(y, f"{name}.conv.0", 8, 3), f"{name}.conv.1").relu()
    y = p.norm(p.conv(y, f"{name}.conv.3", 8, 3), f"{name}.conv.4").relu()
    y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
    y = p.norm(p.conv(y, f"{name}.up2.1", 8, 3), f"{name}.up2.2").relu()
    expected = p.conv(y, f"{name}.up2.4", 8, 1, bias=True)
    bev = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    before = basic_block(p, bev, "pre_process_net.layers.0.0", 8, shortcut=True)
    before = basic_block(p, before, "pre_process_net.layers.0.1", 8)
    put(model, run, p, "mmdet3d-bevdet", "bev_encoder.", "camera.pre_process.")
    with torch.no_grad():
        torch.testing.assert_close(model.bev_encoder(low), expected, **EXACT)
        torch.testing.assert_close(model.camera.pre_process(bev)[-1], before, **EXACT)


def test_bevdepth_depth_net():
    run, p = tiny("camera-only", with_bevdet4d), Published()
    model = built(run)
    net = model.camera.view.depth_net
    image, cameras = torch.randn(2, 8, 6, 8, dtype=torch.float64), torch.randn(2, 27, dtype=torch.float64)
    name = "img_view_transformer.depth_net"
    x = p.norm(p.conv(image, f"{name}.reduce_conv.0", 8, 3, bias=True), f"{name}.reduce_conv.1").relu()
    numbers = p.norm(cameras, f"{name}.bn")

    def gated(which: str) -> Tensor:
        squeeze = p.linear(p.linear(numbers, f"{name}.{which}_mlp.fc1", 8).relu(), f"{name}.{which}_mlp.fc2", 8)
        squeeze = p.conv(squeeze[..., None, None], f"{name}.{which}_se.conv_reduce", 8, 1, bias=True).relu()
        return x * p.conv(squeeze, f"{name}.{which}_se.conv_expand", 8, 1, bias=True).sigmoid()

    context = p.conv(gated("context"), f"{name}.context_conv", 8, 1, bias=True)
    y = gated("depth")
    for block in range(3):
        y = basic_block(p, y, f"{name}.depth_conv.{block}", 8)
    aspp, branches = f"{name}.depth_conv.3", []
    for index, dilation in enumerate((1, 6, 12, 18), start=1):
        size = 1 if index == 1 else 3
        weight = p.get(f"{aspp}.aspp{index}.atrous_conv.weight", 4, 8, size, size)
        branch = F.conv2d(y, weight, padding=dilation if size == 3 else 0, dilation=dilation)
        branches.append(p.norm(branch, f"{aspp}.aspp{index}.bn").relu())
    whole = p.norm(
        p.conv(y.mean((2, 3), keepdim=True), f"{aspp}.global_avg_pool.1", 4, 1), f"{aspp}.global_avg_pool.2"
    ).relu()
    joined = torch.cat([*branches, whole.expand_as(branches[0])], dim=1)
    y = p.norm(p.conv(joined, f"{aspp}.conv1", 8, 1), f"{aspp}.bn1").relu()
    expected = torch.cat([p.conv(y, f"{name}.depth_conv.4", len(model.camera.view.bins), 1, bias=True), context], dim=1)
    put(model, run, p, "mmdet3d-bevdet", "camera.view.")
    with torch.no_grad():
        torch.testing.assert_close(net(image, cameras), expected, **EXACT)


def test_standard_pyramid():
    run, p = tiny("camera-only", with_bevdet4d), Published()
    model = built(run)
    maps = [torch.randn(1, 8, 8 // 2**i, 16 // 2**i, dtype=torch.float64) for i in range(3)]
    summed = [p.conv(m, f"img_neck.lateral_convs.{i}.conv", 8, 1, bias=True) for i, m in enumerate(maps)]
    for level in (1, 0):
        summed[level] = summed[level] + F.interpolate(summed[level + 1], scale_factor=2, mode="nearest")
    expected = p.conv(summed[0], "img_neck.fpn_convs.0.conv", 8, 3, bias=True)
    put(model, run, p, "mmdet3d-bevdet", "camera.encoder.neck.")
    with torch.no_grad():
        torch.testing.assert_close(model.camera.encoder.neck(maps)[0], expected, **EXACT)


@pytest.mark.parametrize("kind", ["resnet", "swin"])
@pytest.mark.parametrize("version", ["first", "dev2.1"])
def test_bevdets_images_are_rgb_at_first_and_bgr_later(kind, version):
    """Pixels as each version feeds them, ours as our data give them: the same stem, but for a ResNet's border of zeros."""
    run, p = tiny("camera-only", bottlenecks if kind == "resnet" else swin), Published()
    model = built(run)
    pixels = torch.randint(0, 256, (1, 3, 32, 64), generator=torch.Generator().manual_seed(5)).double()  # RGB
    mean = torch.tensor([123.675, 116.28, 103.53]).double().view(3, 1, 1)
    deviation = torch.tensor([58.395, 57.12, 57.375]).double().view(3, 1, 1)
    fed = ((pixels if version == "first" else pixels.flip(1)) - mean) / deviation  # the mean stays that of RGB
    p.get(f"img_view_transformer.{'depthnet' if version == 'first' else 'depth_net'}.bias", 21)
    backbone = model.camera.encoder.backbone
    if kind == "resnet":
        expected = p.norm(p.conv(fed, "img_backbone.conv1", 4, 7, stride=2), "img_backbone.bn1").relu()
    else:
        name = "img_backbone.patch_embed.projection"
        expected = F.conv2d(fed, p.get(f"{name}.weight", 8, 3, 4, 4), p.get(f"{name}.bias", 8), stride=4)
    own = model.state_dict()
    result = convert.convert(run, own, p.tensors, origin="mmdet3d-bevdet", legacy=False)
    model.load_state_dict({**own, **result.tensors})
    with torch.no_grad():
        ours = (pixels - mean) / deviation
        if kind == "resnet":
            found = backbone.embedder.embedder(ours)
            inner = (..., slice(2, -2), slice(2, -2))
            torch.testing.assert_close(found[inner], expected[inner], rtol=1e-5, atol=1e-5)
        else:
            found = backbone.swin.embeddings.patch_embeddings.projection(ours)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- BEVFormer


def with_bevformer(raw: dict) -> None:
    view = {"kind": "bevformer", "channels": 8, "layers": 2, "heads": 2, "points": 2, "image_points": 4, "pillar": 2}
    view |= {"ffn": 12, "dropout": 0.1, "query_std": 1.0}
    raw["detr"] |= {"channels": 8, "queries": 5, "layers": 2, "heads": 2, "points": 2, "ffn": 12}
    raw["students"]["bevformer-det"] = {
        "task": "detection",
        "sensors": ["camera"],
        "head": "detr",
        "camera": {"neck": {"kind": "fpn", "channels": 8, "levels": 2}, "view": view},
        "bev_encoder": {"kind": "none"},
    }


def deform(
    p: Published, query: Tensor, places: Tensor, value: Tensor, shape, name: str, heads: int, points: int, output: str
):
    """One level: query (B, Q, C) looks around places (B, Q, 2) in value (B, H*W, C), sampled by grid_sample."""
    batch, queries, _ = query.shape
    offsets = p.linear(query, f"{name}.sampling_offsets", heads * points * 2).view(batch, queries, heads, points, 2)
    weights = (
        p.linear(query, f"{name}.attention_weights", heads * points).view(batch, queries, heads, points).softmax(-1)
    )
    where = places[:, :, None, None] + offsets / offsets.new_tensor([shape[1], shape[0]])
    maps = p.linear(value, f"{name}.value_proj", 8).view(batch, *shape, heads, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
    found = F.grid_sample(maps, (2 * where - 1).transpose(1, 2).flatten(0, 1), align_corners=False)  # BH dim Q K
    found = (found * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1).view(batch, -1, queries).mT
    return p.linear(found, output, 8)


def test_bevformer_decoder_and_boxes():
    """Six-layer logic at two layers: queries, deformable attention, refinement, and the published code to our boxes."""
    run, p = tiny("bevformer-det", with_bevformer), Published()
    model = built(run).float()  # so is what the head finds its places with
    high, head, name = torch.randn(2, 8, 8, 8, dtype=torch.float64), "pts_bbox_head", "pts_bbox_head.transformer"
    memory = high.flatten(2).mT
    position, query = (
        t[None].expand(2, -1, -1) for t in p.get(f"{head}.query_embedding.weight", 5, 16).split(8, dim=1)
    )
    place = p.linear(position, f"{name}.reference_points", 3).sigmoid()
    for layer in range(2):
        inner = f"{name}.decoder.layers.{layer}"
        query = query + p.attention(query + position, query + position, query, f"{inner}.attentions.0.attn", 2)
        query = p.layer_norm(query, f"{inner}.norms.0")
        cross = f"{inner}.attentions.1"
        seen = deform(p, query + position, place[..., :2], memory, (8, 8), cross, 2, 2, f"{cross}.output_proj")
        query = p.layer_norm(query + seen, f"{inner}.norms.1")
        query = p.layer_norm(query + p.feed_forward(query, f"{inner}.ffns.0", 12), f"{inner}.norms.2")
        logits, raw = query, query
        for step in (0, 3):
            logits = p.layer_norm(
                p.linear(logits, f"{head}.cls_branches.{layer}.{step}", 8), f"{head}.cls_branches.{layer}.{step + 1}"
            ).relu()
        logits = p.linear(logits, f"{head}.cls_branches.{layer}.6", 10)
        for step in (0, 2):
            raw = p.linear(raw, f"{head}.reg_branches.{layer}.{step}", 8).relu()
        raw = p.linear(raw, f"{head}.reg_branches.{layer}.4", 10)
        centre = (raw[..., [0, 1, 4]] + place.logit()).sigmoid()
        place = centre
    low, upper = torch.tensor(run.bev.range).double().chunk(2)
    w, l, h = raw[..., 2].exp(), raw[..., 3].exp(), raw[..., 5].exp()
    old_yaw = torch.atan2(raw[..., 6], raw[..., 7])
    p.tensors[f"{head}.code_weights"] = torch.ones(10)
    p.get(f"{name}.can_bus_mlp.0.weight", 4, 18)
    put(model, run, p, "bevformer", "head.", legacy=True)
    with torch.no_grad():
        last = model.head(high.float())[-1]
    codes, loose = last["codes"].double(), {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(last["logits"].double(), logits, **loose)
    torch.testing.assert_close(codes[..., :3], centre * (upper - low) + low, **loose)
    torch.testing.assert_close(codes[..., 3:6].exp(), torch.stack([l, w, h], -1), **loose)
    turn = torch.atan2(codes[..., 6], codes[..., 7]) - (-old_yaw - math.pi / 2)
    torch.testing.assert_close(turn.cos(), torch.ones_like(turn), **loose)
    torch.testing.assert_close(codes[..., 8:], raw[..., 8:], **loose)


def test_bevformer_self_attention_and_codes():
    """Two queues that are both the query; positions hold the column's code first."""
    run, p = tiny("bevformer-det", with_bevformer), Published()
    model = built(run)
    view, name = model.camera.view, "pts_bbox_head.transformer.encoder.layers.1.attentions.0"
    query = torch.randn(1, 64, 8, dtype=torch.float64)
    rows, columns = (p.get(f"pts_bbox_head.positional_encoding.{axis}_embed.weight", 8, 4) for axis in ("row", "col"))
    position = torch.stack([torch.cat([columns[x], rows[y]]) for y in range(8) for x in range(8)])[None]
    context = torch.cat([query, query + position], dim=-1)
    offsets = p.linear(context, f"{name}.sampling_offsets", 2 * 2 * 2 * 2).view(64, 2, 2, 2, 2)  # Q heads queue K 2
    weights = p.linear(context, f"{name}.attention_weights", 2 * 2 * 2).view(64, 2, 2, 2).softmax(-1)
    value = p.linear(query, f"{name}.value_proj", 8).view(8, 8, 2, 4)
    total = torch.zeros(64, 2, 4, dtype=torch.float64)
    for cell in range(64):
        for attention_head in range(2):
            for queue in range(2):
                for point in range(2):
                    x, y = offsets[cell, attention_head, queue, point] + torch.tensor([cell % 8, cell // 8])
                    for row in (math.floor(y), math.floor(y) + 1):
                        for column in (math.floor(x), math.floor(x) + 1):
                            if 0 <= row < 8 and 0 <= column < 8:
                                share = (
                                    (1 - abs(y - row))
                                    * (1 - abs(x - column))
                                    * weights[cell, attention_head, queue, point]
                                )
                                total[cell, attention_head] += share / 2 * value[row, column, attention_head]
    expected = p.linear(total.flatten(1)[None], f"{name}.output_proj", 8)
    p.get("pts_bbox_head.transformer.level_embeds", 4, 8)
    p.get("pts_bbox_head.bev_embedding.weight", 64, 8)
    p.get("pts_bbox_head.transformer.cams_embeds", 6, 8)
    result = put(model, run, p, "bevformer", "camera.view.layers.1.itself.", "camera.view.query", "camera.view.rows")
    assert torch.equal(view.level_code, p.tensors["pts_bbox_head.transformer.level_embeds"][:2])
    assert torch.equal(view.query, p.tensors["pts_bbox_head.bev_embedding.weight"])
    assert "camera.view.camera_code" in result.tensors
    with torch.no_grad():
        torch.testing.assert_close(view.position(), position, **EXACT)
        torch.testing.assert_close(view.layers[1].itself(query, position, (8, 8)), expected, rtol=1e-6, atol=1e-6)


# ---- image backbones


def swin(raw: dict) -> None:
    raw["camera"]["backbone"] = {
        "kind": "swin",
        "widths": [8, 16],
        "depths": [1, 2],
        "heads": [2, 4],
        "window": 4,
        "outputs": [0, 1],
    }


def test_swin_attention_and_merging_of_mmdetection():
    """A window's attention with a joint projection and mmdetection's index of relative places; merging by unfolding."""
    run, p = tiny("fusion-conv-det", swin), Published()
    model = built(run)
    ours = model.camera.encoder.backbone.swin.encoder.layers
    name = "img_backbone.stages.0.blocks.0.attn.w_msa"
    x = torch.randn(3, 16, 8, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in p.linear(x, f"{name}.qkv", 24).chunk(3, dim=-1))
    steps = (torch.arange(0, 7 * 4, 7)[:, None] + torch.arange(4)[None]).view(1, -1)  # of rows 2 W - 1 wide
    index = (steps + steps.T).flip(1)
    bias = p.get(f"{name}.relative_position_bias_table", 49, 2)[index].permute(2, 0, 1)
    attended = ((q * 4**-0.5) @ k.mT + bias).softmax(-1) @ v
    expected = p.linear(attended.transpose(1, 2).flatten(2), f"{name}.proj", 8)
    p.tensors[f"{name}.relative_position_index"] = index
    grid = torch.randn(1, 8, 6, 4, dtype=torch.float64)
    patches = F.unfold(grid, 2, stride=2).mT  # B Y*X 4C
    patches = p.layer_norm(patches, "img_backbone.stages.0.downsample.norm")
    merged = patches @ p.get("img_backbone.stages.0.downsample.reduction.weight", 16, 32).T
    own = model.state_dict()
    result = convert.convert(run, own, p.tensors, origin="mmdet3d-bevfusion", legacy=False)
    assert result.ignored == [f"{name}.relative_position_index"]
    assert not result.unexpected
    model.load_state_dict({**own, **result.tensors})
    with torch.no_grad():
        torch.testing.assert_close(ours[0].blocks[0].attention(x)[0], expected, **EXACT)
        torch.testing.assert_close(ours[0].downsample(grid.flatten(2).mT, (6, 4)), merged, **EXACT)


def shifted_windows(p: Published, x: Tensor, name: str, heads: int, window: int, shift: int) -> Tensor:
    """torchvision's ShiftedWindowAttention over (B, Y, X, C), token by token: who is in whose window, and how far apart."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // window) * window, -(-width // window) * window
    qkv = p.linear(F.pad(x, (0, 0, 0, columns - width, 0, rows - height)), f"{name}.qkv", 3 * channels)
    q, k, v = (t.reshape(batch, rows * columns, heads, -1).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
    table = p.get(f"{name}.relative_position_bias_table", (2 * window - 1) ** 2, heads)
    y, x_ = (t.flatten() for t in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    # Windows that begin `shift` cells later; those cut by the border are rolled around, but do not see across it.
    place = [((t - shift) // window, t) for t in (y, x_)]
    same = (place[0][0][:, None] == place[0][0]) & (place[1][0][:, None] == place[1][0])
    dy, dx = y[:, None] - y + window - 1, x_[:, None] - x_ + window - 1
    bias = table[(dy * (2 * window - 1) + dx).clamp(0, len(table) - 1)].permute(2, 0, 1)
    weights = (q @ k.mT * (channels // heads) ** -0.5 + bias).masked_fill(~same, -torch.inf).softmax(-1)
    found = p.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.proj", channels)
    return found.view(batch, rows, columns, channels)[:, :height, :width]


def test_swin_of_torchvision():
    """The whole backbone: windows at rest and shifted, over maps that no window divides, joint projections, merging."""
    run, p = tiny("fusion-conv-det", swin), Published()
    model = built(run)
    backbone, image = run.camera.backbone, torch.randn(1, 3, 72, 128, dtype=torch.float64)
    x = F.conv2d(image, p.get("features.0.0.weight", 8, 3, 4, 4), p.get("features.0.0.bias", 8), stride=4)
    x, stages = p.layer_norm(x.permute(0, 2, 3, 1), "features.0.2"), []
    for stage, depth in enumerate(backbone.depths):
        for block in range(depth):
            name, shift = f"features.{2 * stage + 1}.{block}", 2 * (block % 2)
            attended = shifted_windows(
                p, p.layer_norm(x, f"{name}.norm1"), f"{name}.attn", backbone.heads[stage], 4, shift
            )
            x = x + attended
            hidden = F.gelu(p.linear(p.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.0", 4 * x.shape[-1]))
            x = x + p.linear(hidden, f"{name}.mlp.3", x.shape[-1])
        stages.append(x)
        if stage < len(backbone.depths) - 1:
            name, x = f"features.{2 * stage + 2}", F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = p.layer_norm(torch.cat(four, dim=-1), f"{name}.norm")
            x = x @ p.get(f"{name}.reduction.weight", 16, 32).T
    p.get("head.weight", 10, 16)
    own = model.state_dict()
    result = convert.convert(run, own, p.tensors, origin="torchvision", legacy=False)
    assert (result.unexpected, result.shapes) == ([], [])
    model.load_state_dict({**own, **result.tensors})
    ours = model.camera.encoder.backbone
    ours.hidden_states_norms = torch.nn.ModuleDict({name: torch.nn.Identity() for name in ours.hidden_states_norms})
    with torch.no_grad():
        for found, wanted in zip(ours(image).feature_maps, stages, strict=True):
            torch.testing.assert_close(found.permute(0, 2, 3, 1), wanted, rtol=1e-6, atol=1e-6)


def published_resnet(p: Published, x: Tensor, prefix: str, depths, widths) -> list[Tensor]:
    """torchvision's bottlenecks, the 3x3 strides."""
    x = p.norm(p.conv(x, f"{prefix}conv1", 4, 7, stride=2), f"{prefix}bn1").relu()
    x, outputs = F.max_pool2d(x, 3, stride=2, padding=1), []
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            name, stride = f"{prefix}layer{stage + 1}.{block}", 2 if stage > 0 and block == 0 else 1
            y = p.norm(p.conv(x, f"{name}.conv1", width // 4, 1), f"{name}.bn1").relu()
            y = p.norm(p.conv(y, f"{name}.conv2", width // 4, 3, stride=stride), f"{name}.bn2").relu()
            y = p.norm(p.conv(y, f"{name}.conv3", width, 1), f"{name}.bn3")
            if block == 0:
                x = p.norm(p.conv(x, f"{name}.downsample.0", width, 1, stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
        outputs.append(x)
    return outputs


def bottlenecks(raw: dict) -> None:
    raw["camera"]["backbone"] = {
        "kind": "resnet", "widths": [8, 16, 16, 16], "depths": [1, 2, 1, 1], "layer": "bottleneck", "stem": 4, "outputs": [1, 2, 3]
    }  # fmt: skip


@pytest.mark.parametrize(("origin", "prefix"), [("torchvision", ""), ("mmdet3d-bevdet", "img_backbone.")])
def test_resnet(origin, prefix):
    run, p = tiny("camera-only", bottlenecks), Published()
    model = built(run)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = published_resnet(p, image, prefix, (1, 2, 1, 1), (8, 16, 16, 16))
    if origin == "torchvision":
        p.get("fc.weight", 10, 16)
    put(model, run, p, origin, "camera.encoder.backbone.")
    with torch.no_grad():
        for found, wanted in zip(model.camera.encoder.backbone(image).feature_maps, expected[1:], strict=True):
            torch.testing.assert_close(found, wanted, **EXACT)


# ---- reports, files, the verb


@pytest.fixture(scope="module")
def lidar_only() -> dict[str, Tensor]:
    """A whole LiDAR-only BEVFusion in the published layout."""
    run, p = tiny("lidar-pretrain"), Published()
    _, grid, seen = voxels(run)
    published_transfusion(p, published_second(p, published_sparse_encoder(p, grid, seen, run, xyz=True), run), run)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in p.tensors.items()}


def test_a_lidar_checkpoint_becomes_a_run_that_others_start_from(lidar_only, tmp_path, capsys):
    file, out = tmp_path / "lidar.pth", tmp_path / "models/lidar-pretrain/seed0/weights.safetensors"
    torch.save({"meta": {"epoch": 20}, "state_dict": lidar_only}, file)
    run = tiny("lidar-pretrain")
    said = convert.write(run, file, out, origin="mmdet3d-bevfusion", part="lidar")
    assert "missing in lidar: 0" in said
    assert "of another shape: 0" in said
    model, found = checkpoint.load_model(out, expected=run)
    assert found == run
    assert not model.training
    header = checkpoint.read_header(out)
    assert header["inputs"]["checkpoint"] == header["provenance"]["imported"]["sha256"] == seal.content_digest(file)
    assert header["provenance"]["imported"]["file"] == "lidar.pth"
    teacher = bev_model.build(tiny("fusion-conv-det"))
    assert checkpoint.start_from(teacher, out) == ["camera", "fusion"]
    assert json.loads((out.parent / "provenance.json").read_text())["imported"]["new"] == []
    assert (out.parent / "curve.csv").read_text().splitlines() == ["step,epoch,loss", "0,0,nan"]


def test_imported_weights_pass_the_check_while_settings_agree(lidar_only, tmp_path):
    file = tmp_path / "lidar.pth"
    torch.save(lidar_only, file)
    params = settings.parse(copy.deepcopy(tiny_settings()))
    run = params.run("lidar-pretrain")
    out = Experiment(tmp_path).training(run.name, 0).weights
    convert.write(run, file, out, origin="mmdet3d-bevfusion", part="lidar")
    assert seal.check(params, Experiment(tmp_path), [run.name]) == []
    other = tiny_settings()
    other["train"]["lr"] = 0.5
    assert "other settings" in seal.check(settings.parse(other), Experiment(tmp_path), [run.name])[0]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda t: t.pop("bbox_head.shared_conv.bias"), "1 tensors of lidar are missing, the first head.shared.bias"),
        (lambda t: t.update({"pts_neck.deblocks.0.1.bias": torch.zeros(3)}), "1 tensors of lidar have another shape"),
        (lambda t: t.update({"pts_backbone.blocks.2.0.weight": torch.zeros(3)}), "it is of another network"),
        (
            lambda t: t.update({"bbox_head.shared_conv.bias": t["bbox_head.shared_conv.bias"] / 0}),
            "1 tensors in it have numbers that are not finite, the first becomes head.shared.bias",
        ),
    ],
)
def test_what_is_not_complete_is_not_written(lidar_only, tmp_path, capsys, spoil, sentence):
    tensors = dict(lidar_only)
    spoil(tensors)
    torch.save(tensors, tmp_path / "spoilt.pth")
    with pytest.raises(InputError, match=sentence):
        convert.write(
            tiny("lidar-pretrain"), tmp_path / "spoilt.pth", tmp_path / "out.safetensors", origin="mmdet3d-bevfusion", part="lidar"
        )  # fmt: skip
    assert "mapped: " in capsys.readouterr().out
    assert not (tmp_path / "out.safetensors").exists()


def test_the_checkpoint_is_not_overwritten(tmp_path):
    (tmp_path / "lidar.pth").write_bytes(b"kept")
    with pytest.raises(InputError, match="the checkpoint itself"):
        convert.write(
            tiny("lidar-pretrain"), tmp_path / "lidar.pth", tmp_path / "." / "lidar.pth", origin="mmdet3d-bevfusion"
        )
    assert (tmp_path / "lidar.pth").read_bytes() == b"kept"


def test_a_teacher_takes_the_lidar_part_and_tells_what_is_new(lidar_only, tmp_path):
    torch.save(lidar_only, tmp_path / "lidar.pth")
    run, out = tiny("fusion-conv-det"), tmp_path / "teacher.safetensors"
    with pytest.raises(InputError, match="tensors of all are missing"):
        convert.write(run, tmp_path / "lidar.pth", out, origin="mmdet3d-bevfusion")
    said = convert.write(run, tmp_path / "lidar.pth", out, origin="mmdet3d-bevfusion", part="lidar", boxes="legacy")
    assert "camera.encoder" in said
    assert "fusion.conv" in said
    new = checkpoint.read_header(out)["provenance"]["imported"]["new"]
    assert {"camera.encoder", "camera.view", "fusion.conv"} <= set(new)
    assert not (tmp_path / "curve.csv").exists()


class Extra:
    """Something besides tensors, as trainers leave it in checkpoints."""


def test_files_with_more_than_tensors_are_refused_with_the_way_out(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Extra()}, tmp_path / "full.pth")
    with pytest.raises(InputError, match=r"more than tensors.*python -c .*full-tensors.pth") as refused:
        files.read(tmp_path / "full.pth")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>log in</html>", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_damaged_files_are_named_and_never_trusted(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*download it again") as refused:
        files.read(tmp_path / name)
    assert "python -c" not in str(refused.value)


def test_a_table_takes_the_longest_name_and_keeps_ends():
    table = {"head": Source("top"), "head.last": Source("end", {"bias": lambda t: -t})}
    own = {"head.a.weight": torch.zeros(2), "head.last.bias": torch.zeros(2), "other": torch.zeros(1)}
    result = apply(
        Layout(table), own, {"top.a.weight": torch.ones(2), "end.bias": torch.ones(2), "more": torch.ones(1)}
    )
    assert result.tensors["head.last.bias"].tolist() == [-1.0, -1.0]
    assert result.missing == ["other"]
    assert result.unexpected == ["more"]
    assert not result.foreign


RAW, AVERAGED = (
    {"a.weight": torch.zeros(2), "b.bias": torch.zeros(1)},
    {"a.weight": torch.ones(2), "b.bias": torch.ones(1)},
)
TWO_SETS = {
    "mmengine": {
        "state_dict": AVERAGED,
        "ema_state_dict": {f"module.{k}": v for k, v in RAW.items()} | {"steps": torch.ones(1)},
    },
    "mmcv": {"state_dict": AVERAGED | {f"ema_{k.replace('.', '_')}": v for k, v in RAW.items()}},
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGED},
    "ema beside model": {"model": RAW, "ema": AVERAGED},
    "prefix": {"state_dict": RAW | {f"model_ema.{k}": v for k, v in AVERAGED.items()}},
    "flat": RAW | {f"ema.{k}": v for k, v in AVERAGED.items()},
}


@pytest.mark.parametrize("layout", TWO_SETS)
def test_of_raw_and_averaged_weights_one_must_be_named(tmp_path, layout):
    path = tmp_path / "both.pth"
    torch.save(TWO_SETS[layout], path)
    with pytest.raises(InputError, match=r"both\.pth: it holds raw weights and their moving average.*--weights raw or"):
        files.read(path)
    for wanted, expected in (("raw", RAW), ("averaged", AVERAGED)):
        found = {key: value for key, value in files.read(path, wanted).items() if key != "steps"}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_one_set_is_taken_as_it_is(tmp_path):
    path = tmp_path / "one.pth"
    torch.save({"state_dict": RAW, "ema_state_dict": {}}, path)
    assert files.read(path).keys() == RAW.keys()
    with pytest.raises(InputError, match="one set of weights"):
        files.read(path, "averaged")


def test_imported_weights_keep_the_published_border_unless_the_settings_name_one():
    run = settings.parse(tiny_settings()).run("fusion-det")
    assert run.camera.view.border is None
    imported = convert._as_published(run, "all")
    assert imported.camera.view.border == "published"
    assert convert._as_published(run, "lidar") is run
    metadata = {"settings": json.dumps(imported.training()), "provenance": json.dumps({"imported": {"file": "x"}})}
    assert seal.recorded_training(run, metadata) == run.training()
    trained = {**metadata, "provenance": "{}"}
    assert seal.recorded_training(run, trained) != run.training()
