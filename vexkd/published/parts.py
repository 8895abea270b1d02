"""Parts that several published detectors share: the sparse encoder, SECOND and its neck, pyramids, CenterPoint's head.

Layouts read from mmdetection3d 1.4.0: models/middle_encoders/sparse_encoder.py, models/backbones/second.py,
models/necks/second_fpn.py, models/dense_heads/centerpoint_head.py; pyramids from mmdetection models/necks/fpn.py.
"""

from __future__ import annotations

from vexkd.boxes import CLASSES
from vexkd.published.mapping import Source, Table, both, conv_module, rows, sequence, sparse_kernel, transposed
from vexkd.settings import Camera, CenterPoint, Lidar, SecondEncoder

# Our branches of a head and the published ones, besides the centre's.
BRANCHES = {"z": "height", "size": "dim", "yaw": "rot", "velocity": "vel", "heatmap": "heatmap"}
# Boxes before mmdetection3d 1.0 (and MIT's BEVFusion): w before l, and a yaw that runs the other way from another axis,
# -yaw - pi/2. As codes: log w, log l change places; sin(yaw) is minus their cosine, cos(yaw) minus their sine.
LEGACY = {"size": both(rows([1, 0, 2])), "yaw": both(rows([1, 0], [-1.0, -1.0]))}


def box_changes(branch: str, *, legacy: bool) -> dict:
    """What is done to a branch's last layer."""
    return LEGACY.get(branch, {}) if legacy else {}


def sparse_encoder(lidar: Lidar, *, xyz: bool) -> Table:
    """The LiDAR encoder of basic blocks; xyz: its grid is (X, Y, Z). Published, each stage ends with what halves the grid."""
    theirs, kernel = "pts_middle_encoder", {"weight": sparse_kernel(xyz=xyz)}
    table = {
        "lidar.stem.conv.conv": Source(f"{theirs}.conv_input.0", kernel),
        "lidar.stem.norm": Source(f"{theirs}.conv_input.1"),
        "lidar.out.conv.conv": Source(f"{theirs}.conv_out.0", kernel),
        "lidar.out.norm": Source(f"{theirs}.conv_out.1"),
    }
    place = 0
    for stage in range(len(lidar.channels)):
        other = f"{theirs}.encoder_layers.encoder_layer{stage + 1}"
        for block in range(lidar.blocks):
            ours = f"lidar.stages.{place}"
            table[f"{ours}.first.conv.conv"] = Source(f"{other}.{block}.conv1", kernel)
            table[f"{ours}.first.norm"] = Source(f"{other}.{block}.bn1")
            table[f"{ours}.second.conv"] = Source(f"{other}.{block}.conv2", kernel)
            table[f"{ours}.norm"] = Source(f"{other}.{block}.bn2")
            place += 1
        if stage < len(lidar.channels) - 1:
            table[f"lidar.stages.{place}.conv.conv"] = Source(f"{other}.{lidar.blocks}.0", kernel)
            table[f"lidar.stages.{place}.norm"] = Source(f"{other}.{lidar.blocks}.1")
            place += 1
    return table


def second(encoder: SecondEncoder, *, xy: bool) -> Table:
    """SECOND and SECONDFPN; xy: its maps are (B, C, X, Y)."""
    change = transposed if xy else None
    table: Table = {}
    for stage, layers in enumerate(encoder.layers):
        for layer in range(layers + 1):
            table |= sequence(f"bev_encoder.stages.{stage}.{layer}", f"pts_backbone.blocks.{stage}", 3 * layer, change)
        table |= sequence(f"bev_encoder.ups.{stage}", f"pts_neck.deblocks.{stage}", 0, change)
    return table


def center_head(head: CenterPoint, theirs: str, *, legacy: bool) -> Table:
    """CenterPoint's head, tasks in the order of the run; a published task numbers its classes in the data set's order."""
    table = conv_module("head.shared", f"{theirs}.shared_conv")
    for task, classes in enumerate(head.tasks):
        order = [sorted(classes, key=CLASSES.index).index(name) for name in classes]
        for branch, other in {"offset": "reg", **BRANCHES}.items():
            ours, their = f"head.tasks.{task}.branches.{branch}", f"{theirs}.task_heads.{task}.{other}"
            change = both(rows(order)) if branch == "heatmap" else box_changes(branch, legacy=legacy)
            table |= conv_module(f"{ours}.0", f"{their}.0")
            table[f"{ours}.1"] = Source(f"{their}.1", change)
    return table


def pyramid(camera: Camera) -> Table:
    """The neck over image features: BEVFusion's GeneralizedLSSFPN, or a standard pyramid without norms."""
    table: Table = {}
    if camera.neck.kind == "lss-fpn":
        for level in range(len(camera.backbone.outputs) - 1):
            table |= conv_module(f"camera.encoder.neck.laterals.{level}", f"img_neck.lateral_convs.{level}")
            table |= conv_module(f"camera.encoder.neck.smooth.{level}", f"img_neck.fpn_convs.{level}")
        return table
    for level in range(len(camera.backbone.outputs)):
        table[f"camera.encoder.neck.laterals.{level}"] = Source(f"img_neck.lateral_convs.{level}.conv")
    for level in range(camera.neck.levels):
        table[f"camera.encoder.neck.outputs.{level}"] = Source(f"img_neck.fpn_convs.{level}.conv")
    return table
