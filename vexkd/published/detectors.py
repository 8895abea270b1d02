"""Whole detectors: the layouts of BEVFusion and CenterPoint (mmdetection3d), BEVDet and BEVFormer for one of our runs.

A part that a run has and the published detector has not gets no entry, and is reported as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vexkd.published import backbones, parts
from vexkd.published.mapping import (
    Layout,
    Source,
    Table,
    both,
    chained,
    conv_module,
    feed_forward,
    last_first,
    rows,
    sequence,
    transposed,
)
from vexkd.settings import BevFormer, LiftSplat, ResNetEncoder, Run, SecondEncoder

_GEOMETRY = "geometry, which follows from the settings"


def bevfusion(run: Run, *, legacy: bool) -> Layout:
    """mmdetection3d's BEVFusion, whose maps are (B, C, X, Y) and whose grids are (X, Y, Z): kernels are transposed.

    Read from projects/BEVFusion/bevfusion of mmdetection3d 1.4.0: sparse_encoder.py, depth_lss.py, bevfusion_necks.py,
    transfusion_head.py, transformer.py, bevfusion.py. Positions of the head are (x, y) on both sides.
    """
    table: Table = {}
    if run.lidar is not None:
        table |= parts.sparse_encoder(run.lidar, xyz=True)
    if isinstance(run.bev_encoder, SecondEncoder):
        table |= parts.second(run.bev_encoder, xy=True)
    if run.camera is not None:
        table |= backbones.table(run.camera.backbone, "img_backbone.", source="mmdet") | parts.pyramid(run.camera)
        if isinstance(run.camera.view, LiftSplat):
            table |= _depth_lss(run.camera.view)
    if run.fusion == "conv" and run.lidar is not None:
        table |= _conv_fuser(run)
    if run.head == "transfusion":
        table |= _transfusion(run, legacy=legacy)
    ignored = backbones.IGNORED | {r"^vtransform\.(dx|bx|nx|frustum)$": _GEOMETRY}
    roots = ("img_backbone.", "img_neck.", "vtransform.", "fusion_layer.", "pts_", "bbox_head.")
    return Layout(table, backbones.UNUSED, ignored, roots)


def _depth_lss(view: LiftSplat) -> Table:
    """DepthLSSTransform; LSSTransform where depth comes from the image alone. Its convolutions have biases before norms."""
    table: Table = {}
    for step in range(3):
        table |= sequence(f"camera.view.down.{step}", "vtransform.downsample", 3 * step, transposed)
    if view.depth_net == "plain":
        return table | {"camera.view.depth_net": Source("vtransform.depthnet")}
    for step in range(3):
        table |= sequence(f"camera.view.depth_image.{step}", "vtransform.dtransform", 3 * step)
    guidance = view.depth_channels[-1]  # published first, ours last
    table |= sequence("camera.view.depth_net.0", "vtransform.depthnet", 0, _first_last(guidance))
    table |= sequence("camera.view.depth_net.1", "vtransform.depthnet", 3)
    return table | {"camera.view.depth_net.2": Source("vtransform.depthnet.6")}


def _first_last(count: int) -> Callable:
    """A kernel whose published input begins with the `count` channels that ours ends with."""
    return lambda tensor: tensor.roll(-count, dims=1)


def _conv_fuser(run: Run) -> Table:
    """ConvFuser; it concatenates camera and LiDAR, ours LiDAR and camera."""
    lidar_channels = run.lidar.out_channels * _layers_left(run)
    return sequence("fusion.conv", "fusion_layer", 0, chained(last_first(lidar_channels), transposed))


def _layers_left(run: Run) -> int:
    """Layers of z that the LiDAR encoder folds into channels; see `vexkd.models.sparse_encoder`."""
    z = round((run.bev.range[5] - run.bev.range[2]) / run.bev.voxel[2]) + 1
    for index in range(len(run.lidar.channels) - 1, 0, -1):
        z = (z + (0 if index == 1 else 2) - 3) // 2 + 1
    return (z - 3) // 2 + 1


def _transfusion(run: Run, *, legacy: bool) -> Table:
    """TransFusionHead over maps (B, C, X, Y)."""
    kernel = {"weight": transposed}
    table = {
        "head.shared": Source("bbox_head.shared_conv", kernel),
        "head.heatmap.1": Source("bbox_head.heatmap_head.1", kernel),
        "head.class_code": Source("bbox_head.class_encoding", {"weight": lambda tensor: tensor.squeeze(-1)}),
        **conv_module("head.heatmap.0", "bbox_head.heatmap_head.0", transposed),
    }
    for layer in range(run.transfusion.layers):
        ours, theirs = f"head.layers.{layer}", f"bbox_head.decoder.{layer}"
        table |= {
            f"{ours}.itself": Source(f"{theirs}.self_attn.attn"),
            f"{ours}.cross": Source(f"{theirs}.cross_attn.attn"),
        }
        table |= feed_forward(f"{ours}.feed_forward", f"{theirs}.ffn")
        table[f"{ours}.norms"] = Source(f"{theirs}.norms")
        for place, other in (("query_place", "self_posembed"), ("memory_place", "cross_posembed")):
            for name, index in (("first", 0), ("norm", 1), ("second", 3)):
                table[f"{ours}.{place}.{name}"] = Source(f"{theirs}.{other}.position_embedding_head.{index}")
        for branch, other in {"centre": "center", **parts.BRANCHES}.items():
            ours, theirs = f"head.predictors.{layer}.branches.{branch}", f"bbox_head.prediction_heads.{layer}.{other}"
            table |= conv_module(ours, f"{theirs}.0")
            table[f"{ours}.3"] = Source(f"{theirs}.1", parts.box_changes(branch, legacy=legacy))
    return table


def centerpoint(run: Run, *, legacy: bool) -> Layout:
    """mmdetection3d's CenterPoint with voxels: maps (B, C, Y, X), grids (Z, Y, X), as ours.

    Read from mmdetection3d 1.4.0, see `vexkd.published.parts`. Heads with deformable convolutions have no place here.
    """
    table: Table = {}
    if run.lidar is not None:
        table |= parts.sparse_encoder(run.lidar, xyz=False)
    if isinstance(run.bev_encoder, SecondEncoder):
        table |= parts.second(run.bev_encoder, xy=False)
    if run.head == "centerpoint":
        table |= parts.center_head(run.centerpoint, "pts_bbox_head", legacy=legacy)
    return Layout(table, roots=("pts_",))


def bevdet(run: Run, *, legacy: bool) -> Layout:
    """BEVDet, BEVDet4D and BEVDepth as in BEVDet's dev2.1; its first version has `depthnet` for `depth_net`.

    Read from mmdet3d/models of BEVDet: backbones/resnet.py, necks/{lss_fpn,view_transformer}.py, detectors/bevdet.py. Maps
    are (B, C, Y, X) as ours, but of dev2.1 in the ego frame: see docs/WEIGHTS.md.
    """
    table: Table = {}
    if run.camera is not None:
        table |= backbones.table(run.camera.backbone, "img_backbone.", source="mmdet") | parts.pyramid(run.camera)
        if isinstance(run.camera.view, LiftSplat):
            table |= _bevdepth() if run.camera.view.depth_net == "bevdepth" else {}
            if run.camera.view.depth_net == "plain":
                table["camera.view.depth_net"] = Source("img_view_transformer.depth_net")
        if run.camera.history is not None:
            for block in range(2):
                table |= _basic_block(f"camera.pre_process.stages.0.{block}", f"pre_process_net.layers.0.{block}")
    if isinstance(run.bev_encoder, ResNetEncoder):
        table |= _bev_resnet(run.bev_encoder)
    if run.head == "centerpoint":
        table |= parts.center_head(run.centerpoint, "pts_bbox_head", legacy=legacy)
    ignored = backbones.IGNORED | {r"^img_view_transformer\.(dx|bx|nx|frustum)$": _GEOMETRY}
    roots = (
        "img_backbone.",
        "img_neck.",
        "img_view_transformer.",
        "pre_process_net.",
        "img_bev_encoder_",
        "pts_bbox_head.",
    )
    return Layout(table, backbones.UNUSED, ignored, roots)


def one_bevdet(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a BEVDet, of whichever version, under dev2.1's names and for RGB.

    The first version calls its depth net `depthnet` and normalises RGB. From dev2.0 on images are turned to BGR before RGB's
    mean is taken out (its issue 274), and the weights have learned it.
    """
    old, new = "img_view_transformer.depthnet.", "img_view_transformer.depth_net."
    if any(name.startswith(new) for name in published):
        return backbones.fed_rgb(published, "img_backbone.")
    return {name.replace(old, new): tensor for name, tensor in published.items()}


def _basic_block(ours: str, theirs: str) -> Table:
    """mmdetection's BasicBlock."""
    return {
        f"{ours}.first.0": Source(f"{theirs}.conv1"),
        f"{ours}.first.1": Source(f"{theirs}.bn1"),
        f"{ours}.second": Source(f"{theirs}.conv2"),
        f"{ours}.norm": Source(f"{theirs}.bn2"),
        f"{ours}.shortcut": Source(f"{theirs}.downsample"),
    }


def _bev_resnet(encoder: ResNetEncoder) -> Table:
    """CustomResNet and FPN_LSS."""
    table: Table = {}
    for stage, layers in enumerate(encoder.layers):
        for block in range(layers):
            ours, theirs = f"bev_encoder.backbone.stages.{stage}.{block}", "img_bev_encoder_backbone.layers"
            table |= _basic_block(ours, f"{theirs}.{stage}.{block}")
    table |= sequence("bev_encoder.join.0", "img_bev_encoder_neck.conv", 0)
    table |= sequence("bev_encoder.join.1", "img_bev_encoder_neck.conv", 3)
    table |= sequence("bev_encoder.out.0", "img_bev_encoder_neck.up2", 1)
    return table | {"bev_encoder.out.1": Source("img_bev_encoder_neck.up2.4")}


def _bevdepth() -> Table:
    """BEVDepth's DepthNet without the deformable convolution."""
    ours, theirs = "camera.view.depth_net", "img_view_transformer.depth_net"
    table = {
        f"{ours}.reduce": Source(f"{theirs}.reduce_conv"),
        f"{ours}.camera_norm": Source(f"{theirs}.bn"),
        f"{ours}.context": Source(f"{theirs}.context_conv"),
        f"{ours}.depth.4": Source(f"{theirs}.depth_conv.4"),
    }
    for gate in ("context", "depth"):
        table[f"{ours}.{gate}_gate.mlp.0"] = Source(f"{theirs}.{gate}_mlp.fc1")
        table[f"{ours}.{gate}_gate.mlp.2"] = Source(f"{theirs}.{gate}_mlp.fc2")
        table[f"{ours}.{gate}_gate.gate.0"] = Source(f"{theirs}.{gate}_se.conv_reduce")
        table[f"{ours}.{gate}_gate.gate.2"] = Source(f"{theirs}.{gate}_se.conv_expand")
    for block in range(3):
        table |= _basic_block(f"{ours}.depth.{block}", f"{theirs}.depth_conv.{block}")
    places = {"point": "aspp1", "dilated.0": "aspp2", "dilated.1": "aspp3", "dilated.2": "aspp4"}
    for place, other in places.items():
        table[f"{ours}.depth.3.{place}.0"] = Source(f"{theirs}.depth_conv.3.{other}.atrous_conv")
        table[f"{ours}.depth.3.{place}.1"] = Source(f"{theirs}.depth_conv.3.{other}.bn")
    table[f"{ours}.depth.3.whole.1.0"] = Source(f"{theirs}.depth_conv.3.global_avg_pool.1")
    table[f"{ours}.depth.3.whole.1.1"] = Source(f"{theirs}.depth_conv.3.global_avg_pool.2")
    table[f"{ours}.depth.3.out.0.0"] = Source(f"{theirs}.depth_conv.3.conv1")
    table[f"{ours}.depth.3.out.0.1"] = Source(f"{theirs}.depth_conv.3.bn1")
    return table


# Of BEVFormer's box code (x, y, w, l, z, h, sin, cos, vx, vy), with boxes from before mmdetection3d 1.0 (see
# `parts.LEGACY`), the numbers of ours (x, y, z, l, w, h, sin, cos, vx, vy).
_CODE_LEGACY = both(rows([0, 1, 4, 3, 2, 5, 7, 6, 8, 9], [1.0] * 6 + [-1.0, -1.0] + [1.0] * 2))
# The same in a port to later boxes, whose first size is the length.
_CODE = both(rows([0, 1, 4, 2, 3, 5, 6, 7, 8, 9]))


def bevformer(run: Run, *, legacy: bool) -> Layout:
    """BEVFormer: queries row by row in y as ours; the CAN bus has no part here.

    Read from projects/mmdet3d_plugin/bevformer of BEVFormer: modules/{transformer,encoder,decoder,temporal_self_attention,
    spatial_cross_attention}.py, dense_heads/bevformer_head.py, and core/bbox/util.py for the code.
    """
    theirs = "pts_bbox_head"
    table: Table = {}
    if run.camera is not None:
        table |= backbones.table(run.camera.backbone, "img_backbone.", source="mmdet") | parts.pyramid(run.camera)
        if isinstance(run.camera.view, BevFormer):
            table |= _bevformer_view(run.camera.view, run.camera.neck.levels, theirs)
    if run.head == "detr":
        table |= _detr_head(run, theirs, legacy=legacy)
    ignored = backbones.IGNORED | {
        rf"^{theirs}\.transformer\.can_bus_mlp\.": "the vehicle's motion, which has no part here",
        rf"^{theirs}\.code_weights$": "weights of the loss",
    }
    inner = [f"{theirs}.{name}" for name in ("transformer.encoder.", "transformer.decoder.", "cls_", "reg_")]
    return Layout(table, backbones.UNUSED, ignored, roots=("img_backbone.", "img_neck.", *inner))


def _deformable(ours: str, theirs: str, output: str | None = None) -> Table:
    """Deformable attention in mmcv's names; output: where the last projection stands, if elsewhere."""
    return {
        f"{ours}.offsets": Source(f"{theirs}.sampling_offsets"),
        f"{ours}.weights": Source(f"{theirs}.attention_weights"),
        f"{ours}.value": Source(f"{theirs}.value_proj"),
        f"{ours}.output": Source(output or f"{theirs}.output_proj"),
    }


def _bevformer_view(view: BevFormer, levels: int, theirs: str) -> Table:
    """Queries, codes and encoder. Published are always four levels' codes, of which the first are used."""
    table = {
        "camera.view.query": Source(f"{theirs}.bev_embedding.weight"),
        "camera.view.rows": Source(f"{theirs}.positional_encoding.row_embed.weight"),
        "camera.view.columns": Source(f"{theirs}.positional_encoding.col_embed.weight"),
        "camera.view.camera_code": Source(f"{theirs}.transformer.cams_embeds"),
        "camera.view.level_code": Source(f"{theirs}.transformer.level_embeds", {"": lambda t: t[:levels]}),
    }
    for layer in range(view.layers):
        ours, other = f"camera.view.layers.{layer}", f"{theirs}.transformer.encoder.layers.{layer}"
        table |= _deformable(f"{ours}.itself", f"{other}.attentions.0")
        images = f"{other}.attentions.1"
        table |= _deformable(f"{ours}.images", f"{images}.deformable_attention", f"{images}.output_proj")
        table |= feed_forward(f"{ours}.feed_forward", f"{other}.ffns.0")
        table[f"{ours}.norms"] = Source(f"{other}.norms")
    return table


def _detr_head(run: Run, theirs: str, *, legacy: bool) -> Table:
    """Decoder and branches. A query's embedding holds its position first, then its content."""
    width = run.detr.channels
    table = {
        "head.position": Source(f"{theirs}.query_embedding.weight", {"": lambda t: t[:, :width]}),
        "head.query": Source(f"{theirs}.query_embedding.weight", {"": lambda t: t[:, width:]}),
        "head.reference": Source(f"{theirs}.transformer.reference_points"),
    }
    for layer in range(run.detr.layers):
        ours, other = f"head.layers.{layer}", f"{theirs}.transformer.decoder.layers.{layer}"
        table[f"{ours}.itself"] = Source(f"{other}.attentions.0.attn")
        table |= _deformable(f"{ours}.cross", f"{other}.attentions.1")
        table |= feed_forward(f"{ours}.feed_forward", f"{other}.ffns.0")
        table[f"{ours}.norms"] = Source(f"{other}.norms")
        table[f"head.classes.{layer}"] = Source(f"{theirs}.cls_branches.{layer}")
        table[f"head.boxes.{layer}"] = Source(f"{theirs}.reg_branches.{layer}")
        table[f"head.boxes.{layer}.4"] = Source(f"{theirs}.reg_branches.{layer}.4", _CODE_LEGACY if legacy else _CODE)
    return table
