"""Published BEVFormer weights: the whole way from pixels to the BEV map, written in the published layout, number by number.

The reference reads the checkpoint under its own names and follows fundamentalvision/BEVFormer: modules/{transformer,encoder,
temporal_self_attention,spatial_cross_attention}.py; mmdetection's ResNet (caffe, DCNv2), FPN and LearnedPositionalEncoding.
Attention is looped over cells, cameras, heads, levels and points; grids are not square and the levels differ in size, so that
no two axes can be mistaken for one another. H W a map, D heights of a pillar, Q cells.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from published import Published, built, put, tiny
from test_models_bevformer import bilinear
from torch import Tensor

from vexkd.batch import Batch

HEAD = "pts_bbox_head"
ENCODER = f"{HEAD}.transformer.encoder.layers"
ROWS, COLUMNS, CHANNELS, HEADS, POINTS, IMAGE_POINTS, PILLAR = 6, 8, 8, 2, 3, 4, 2
CAMERAS, IMAGE = 6, (64, 128)
SIZES = [(8, 16), (4, 8), (2, 4), (1, 2)]
BOUNDS = [-12.8, -9.6, -5.0, 12.8, 9.6, 3.0]  # cells of 3.2 m


def bevformer(raw: dict) -> None:
    """BEVFormer-S, small: four levels, the last by a strided convolution; caffe's ResNet with deformable stages."""
    raw["bev"] |= {"range": BOUNDS, "cell": 3.2, "voxel": [0.8, 0.8, 0.4]}
    backbone = {"kind": "resnet", "widths": [8, 8, 16, 16], "depths": [1, 2, 2, 1], "layer": "bottleneck", "stem": 4}
    backbone |= {"outputs": [1, 2, 3], "style": "caffe", "deformable": [2, 3], "frozen_norm": True}
    view = {"kind": "bevformer", "channels": CHANNELS, "layers": 2, "heads": HEADS, "points": POINTS}
    view |= {"image_points": IMAGE_POINTS, "pillar": PILLAR, "ffn": 12, "dropout": 0.1, "query_std": 1.0}
    raw["detr"] |= {"channels": CHANNELS, "queries": 5, "layers": 1, "heads": 2, "points": 2, "ffn": 12}
    raw["students"]["bevformer-det"] = {
        "task": "detection",
        "sensors": ["camera"],
        "head": "detr",
        "camera": {
            "image_size": list(IMAGE),
            "pixels": "caffe",
            "backbone": backbone,
            "neck": {"kind": "fpn", "channels": CHANNELS, "levels": 4},
            "view": view,
        },
        "bev_encoder": {"kind": "none"},
    }


# ---- from pixels to maps


def deformable(p: Published, x: Tensor, name: str, out: int) -> Tensor:
    """DCNv2, tap by tap: two channels of offsets a tap, rows first; then a share a tap, through a sigmoid."""
    moves = F.conv2d(
        x, p.get(f"{name}.conv_offset.weight", 27, x.shape[1], 3, 3), p.get(f"{name}.conv_offset.bias", 27), padding=1
    )
    weight = p.get(f"{name}.weight", out, x.shape[1], 3, 3)
    height, width = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    total = torch.zeros(len(x), out, height, width, dtype=torch.float64)
    for tap in range(9):
        row = rows + tap // 3 - 1 + moves[:, 2 * tap]
        column = columns + tap % 3 - 1 + moves[:, 2 * tap + 1]
        place = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
        read = F.grid_sample(x, place, align_corners=False) * moves[:, 18 + tap, None].sigmoid()
        total = total + torch.einsum("oc,bchw->bohw", weight[:, :, tap // 3, tap % 3], read)
    return total


def published_resnet(p: Published, x: Tensor, backbone) -> list[Tensor]:
    """mmdetection's bottlenecks in caffe style: the first 1x1 strides."""
    x = F.max_pool2d(
        p.norm(p.conv(x, "img_backbone.conv1", backbone.stem, 7, stride=2), "img_backbone.bn1").relu(), 3, 2, 1
    )
    found = []
    for stage, (depth, width) in enumerate(zip(backbone.depths, backbone.widths, strict=True)):
        for block in range(depth):
            name, stride = f"img_backbone.layer{stage + 1}.{block}", 2 if stage > 0 and block == 0 else 1
            y = p.norm(p.conv(x, f"{name}.conv1", width // 4, 1, stride=stride), f"{name}.bn1").relu()
            if stage in backbone.deformable:
                y = deformable(p, y, f"{name}.conv2", width // 4)
            else:
                y = p.conv(y, f"{name}.conv2", width // 4, 3)
            y = p.norm(p.conv(p.norm(y, f"{name}.bn2").relu(), f"{name}.conv3", width, 1), f"{name}.bn3")
            if x.shape != y.shape or block == 0:
                x = p.norm(p.conv(x, f"{name}.downsample.0", width, 1, stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
        found.append(x)
    return [found[stage] for stage in backbone.outputs]


def published_pyramid(p: Published, maps: list[Tensor]) -> list[Tensor]:
    """FPN with one extra level, by a strided convolution on the last output (add_extra_convs: on_output)."""
    found = [p.conv(m, f"img_neck.lateral_convs.{i}.conv", CHANNELS, 1, bias=True) for i, m in enumerate(maps)]
    for level in (2, 1):
        found[level - 1] = found[level - 1] + F.interpolate(found[level], size=found[level - 1].shape[-2:])
    found = [p.conv(m, f"img_neck.fpn_convs.{i}.conv", CHANNELS, 3, bias=True) for i, m in enumerate(found)]
    return [*found, p.conv(found[-1], "img_neck.fpn_convs.3.conv", CHANNELS, 3, bias=True, stride=2)]


# ---- from maps to the BEV


def rig() -> Batch:
    """Six cameras around, each with its own height and tilt; images that were halved and shifted."""
    poses = []
    for index in range(CAMERAS):
        angle, tilt = index * math.pi / 3 + 0.2, 0.05 * index
        c, s, a, b = math.cos(angle), math.sin(angle), math.cos(tilt), math.sin(tilt)
        level = torch.tensor([[s, -c, 0.0], [0.0, 0.0, -1.0], [c, s, 0.0]])  # right, down, forward
        turned = torch.tensor([[1.0, 0, 0], [0, a, -b], [0, b, a]]) @ level
        pose = torch.eye(4)
        pose[:3, :3], pose[:3, 3] = turned, turned @ -torch.tensor([0.1 * index, -0.2, 0.3 * index - 0.5])
        poses.append(pose)
    return Batch(
        token=["a"],
        points=None,
        images=torch.zeros(1, CAMERAS, 3, *IMAGE),
        intrinsics=torch.tensor([[110.0, 0, 128.0], [0, 120.0, 70.0], [0, 0, 1]]).expand(1, CAMERAS, 3, 3),
        camera_from_lidar=torch.stack(poses)[None],
        image_augment=torch.tensor([[0.5, 0, 1.0], [0, 0.5, -4.0], [0, 0, 1.0]]).expand(1, CAMERAS, 3, 3),
        lidar_augment=torch.eye(4)[None],
        global_from_lidar=torch.eye(4)[None],
        boxes=[torch.zeros(0, 9)],
        labels=[torch.zeros(0, dtype=torch.long)],
    )


def published_places(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """point_sampling: where (N, Q, D, 2) the pillars' points lie in the images, in [0, 1], and whether they are seen.

    Cells run along x within a row, rows along y.
    """
    lidar2img = np.zeros((CAMERAS, 4, 4))
    for camera in range(CAMERAS):
        image = batch.image_augment[0, camera].double().numpy() @ batch.intrinsics[0, camera].double().numpy()
        lidar2img[camera, :3] = image @ batch.camera_from_lidar[0, camera, :3].double().numpy()
        lidar2img[camera, 3, 3] = 1
    places, seen = np.zeros((CAMERAS, ROWS * COLUMNS, PILLAR, 2)), np.zeros((CAMERAS, ROWS * COLUMNS, PILLAR), bool)
    height = BOUNDS[5] - BOUNDS[2]
    for row in range(ROWS):
        for column in range(COLUMNS):
            for anchor, z in enumerate(np.linspace(0.5, height - 0.5, PILLAR)):
                point = [(column + 0.5) / COLUMNS * (BOUNDS[3] - BOUNDS[0]) + BOUNDS[0]]
                point += [(row + 0.5) / ROWS * (BOUNDS[4] - BOUNDS[1]) + BOUNDS[1], z / height * height + BOUNDS[2], 1]
                for camera in range(CAMERAS):
                    u, v, depth, _ = lidar2img[camera] @ point
                    u, v = u / max(depth, 1e-5) / IMAGE[1], v / max(depth, 1e-5) / IMAGE[0]
                    places[camera, row * COLUMNS + column, anchor] = u, v
                    seen[camera, row * COLUMNS + column, anchor] = depth > 1e-5 and 0 < u < 1 and 0 < v < 1
    return places, seen


def published_self_attention(p: Published, query: Tensor, position: Tensor, name: str) -> Tensor:
    """TemporalSelfAttention without a past: both queues are the query; [value; query + position] says where to look."""
    context = torch.cat([query, query + position], dim=-1)
    offsets = p.linear(context, f"{name}.sampling_offsets", 2 * HEADS * POINTS * 2)
    weights = p.linear(context, f"{name}.attention_weights", 2 * HEADS * POINTS)
    offsets = offsets.view(-1, HEADS, 2, POINTS, 2).numpy()
    weights = weights.view(-1, HEADS, 2, POINTS).softmax(-1).numpy()
    value = p.linear(query, f"{name}.value_proj", CHANNELS).view(ROWS, COLUMNS, HEADS, -1).numpy()
    total = np.zeros((len(query), HEADS, CHANNELS // HEADS))
    for cell, head, queue, point in np.ndindex(len(query), HEADS, 2, POINTS):
        x, y = (cell % COLUMNS + 0.5) / COLUMNS, (cell // COLUMNS + 0.5) / ROWS
        move = offsets[cell, head, queue, point] / (COLUMNS, ROWS)
        read = bilinear(value[:, :, head], x + move[0], y + move[1])
        total[cell, head] += weights[cell, head, queue, point] / 2 * read
    return p.linear(torch.from_numpy(total).flatten(1), f"{name}.output_proj", CHANNELS) + query


def published_cross_attention(p: Published, query: Tensor, features: list[Tensor], places, seen, name: str) -> Tensor:
    """SpatialCrossAttention around MSDeformableAttention3D: point k of a level looks around height k mod D.

    features: per level (N, C, H, W), codes added. Cameras that see none of a cell's heights leave it out, the others read
    around all of them; the mean over cameras is projected.
    """
    inner = f"{name}.deformable_attention"
    levels = len(features)
    offsets = p.linear(query, f"{inner}.sampling_offsets", HEADS * levels * IMAGE_POINTS * 2)
    weights = p.linear(query, f"{inner}.attention_weights", HEADS * levels * IMAGE_POINTS)
    offsets = offsets.view(-1, HEADS, levels, IMAGE_POINTS, 2).numpy()
    weights = weights.view(-1, HEADS, levels * IMAGE_POINTS).softmax(-1).view(-1, HEADS, levels, IMAGE_POINTS).numpy()
    values = [
        p.linear(level.permute(0, 2, 3, 1), f"{inner}.value_proj", CHANNELS).unflatten(-1, (HEADS, -1)).numpy()
        for level in features
    ]
    slots = np.zeros((len(query), HEADS, CHANNELS // HEADS))
    for cell in range(len(query)):
        hit = [camera for camera in range(CAMERAS) if seen[camera, cell].any()]
        for camera, head, level, point in np.ndindex(CAMERAS, HEADS, levels, IMAGE_POINTS):
            if camera in hit:
                plane = values[level][camera, :, :, head]
                move = offsets[cell, head, level, point] / (plane.shape[1], plane.shape[0])
                u, v = places[camera, cell, point % PILLAR] + move
                slots[cell, head] += weights[cell, head, level, point] * bilinear(plane, u, v) / len(hit)
    return p.linear(torch.from_numpy(slots).flatten(1), f"{name}.output_proj", CHANNELS) + query


def published_encoder(p: Published, features: list[Tensor], batch: Batch, layers: int) -> Tensor:
    """get_bev_features and the encoder, post-norm; features per level (N, C, H, W) -> (Q, C)."""
    query = p.get(f"{HEAD}.bev_embedding.weight", ROWS * COLUMNS, CHANNELS)
    row = p.get(f"{HEAD}.positional_encoding.row_embed.weight", ROWS, CHANNELS // 2)
    column = p.get(f"{HEAD}.positional_encoding.col_embed.weight", COLUMNS, CHANNELS // 2)
    position = torch.stack([torch.cat([column[i % COLUMNS], row[i // COLUMNS]]) for i in range(ROWS * COLUMNS)])
    cameras = p.get(f"{HEAD}.transformer.cams_embeds", CAMERAS, CHANNELS)
    levels = p.get(f"{HEAD}.transformer.level_embeds", 4, CHANNELS)
    coded = [
        f + cameras[:, :, None, None] + code[None, :, None, None] for f, code in zip(features, levels, strict=True)
    ]
    places, seen = published_places(batch)
    assert seen.any(-1).any(0).mean() > 0.7  # cells that some camera sees
    assert (seen.any(-1) & ~seen.all(-1)).any()  # pillars that are seen in part
    assert (seen.any(-1).sum(0) > 1).any()  # cells of several cameras
    for layer in range(layers):
        name = f"{ENCODER}.{layer}"
        query = published_self_attention(p, query, position, f"{name}.attentions.0")
        query = p.layer_norm(query, f"{name}.norms.0")
        query = published_cross_attention(p, query, coded, places, seen, f"{name}.attentions.1")
        query = p.layer_norm(query, f"{name}.norms.1")
        query = p.layer_norm(query + p.feed_forward(query, f"{name}.ffns.0", 12), f"{name}.norms.2")
    return query


def test_encoder_of_self_attention_image_attention_and_feed_forward():
    """Two layers: orders of heads, levels, points and heights, of rows and columns, codes of cameras and levels."""
    run, p, batch = tiny("bevformer-det", bevformer), Published(), rig()
    model = built(run)
    features = [torch.randn(CAMERAS, CHANNELS, *size, dtype=torch.float64) for size in SIZES]
    expected = published_encoder(p, features, batch, layers=2)
    put(model, run, p, "bevformer", "camera.view.", legacy=True)
    with torch.no_grad():
        found = model.camera.view([level[None] for level in features], batch)  # 1 C Y X
    assert found.shape == (1, CHANNELS, ROWS, COLUMNS)
    torch.testing.assert_close(found[0].flatten(1).T, expected, rtol=1e-4, atol=1e-4)  # places are float32


def test_images_of_bgr_through_the_deformable_backbone_and_the_pyramid():
    """What our data hold (RGB, ImageNet's mean and deviation) gives the maps of BGR pixels without their mean."""
    run, p = tiny("bevformer-det", bevformer), Published()
    model = built(run)
    pixels = torch.randint(0, 256, (2, 3, *IMAGE), generator=torch.Generator().manual_seed(2)).double()  # RGB
    mean = torch.tensor([123.675, 116.28, 103.53]).double().view(3, 1, 1)
    deviation = torch.tensor([58.395, 57.12, 57.375]).double().view(3, 1, 1)
    bgr = pixels.flip(1) - torch.tensor([103.53, 116.28, 123.675]).double().view(3, 1, 1)
    expected = published_pyramid(p, published_resnet(p, bgr, run.camera.backbone))
    put(model, run, p, "bevformer", "camera.encoder.")
    with torch.no_grad():
        found = model.camera.encoder(((pixels - mean) / deviation)[None])
    assert [tuple(level.shape[-2:]) for level in found] == SIZES
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[0], theirs, rtol=1e-4, atol=1e-3)  # constants are float32
