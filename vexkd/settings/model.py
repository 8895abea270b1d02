"""Settings of the model without its head: the grid, encoders, views, fusion and BEV encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field, model_validator

from vexkd.settings.base import Pair, Six, Size, Strict, Triple


class Bev(Strict):
    """The space that the model looks at, in the LiDAR frame, and the cells of its BEV maps."""

    range: Six = Field(description="x0, y0, z0, x1, y1, z1 in metres")
    voxel: Triple = Field(description="voxel size x, y, z in metres")
    cell: float = Field(gt=0, description="side of a cell of the BEV maps in metres")


class Lidar(Strict):
    """Voxels of the point cloud and the sparse encoder over them."""

    max_points: int = Field(description="most points that a voxel averages")
    max_voxels_train: int = Field(description="most voxels of a sample in training")
    max_voxels_test: int = Field(description="most voxels of a sample in prediction")
    channels: Annotated[list[int], Len(2)] = Field(
        description="widths of the sparse stages; each after the first halves the grid"
    )
    blocks: int = Field(description="residual blocks per stage")
    out_channels: int = Field(description="width after the last convolution over z")


class BackboneWeights(Strict):
    """Published weights that an image backbone starts from; see `vexkd.published.fetch` and docs/WEIGHTS.md."""

    source: Literal["transformers", "torchvision", "mmdet"] = Field(description="whose names the tensors have")
    name: str = Field(description="model on the Hugging Face hub, torchvision's file name, or an https address")
    file: str = Field(
        description="the file that training reads: .safetensors, as `vexkd fetch-weights` writes it, or .pth"
    )


class Backbone(Strict):
    kind: Literal["swin", "resnet"]
    widths: list[int] = Field(description="channels per stage")
    depths: list[int]
    outputs: list[int] = Field(description="stages handed to the neck, counted from 0")
    heads: list[int] = []
    window: int = 7
    drop_path: float = 0.0
    layer: Literal["basic", "bottleneck"] = "bottleneck"
    stem: int = 64
    style: Literal["pytorch", "caffe"] | None = Field(
        default=None, description="which convolution of a bottleneck has the stride"
    )
    deformable: list[int] | None = Field(default=None, description="stages with modulated deformable convolutions")
    frozen_stages: int | None = Field(default=None, description="the stem and this many stages are not trained")
    frozen_norm: bool | None = Field(default=None, description="statistics and weights of BatchNorm stay as they are")
    recompute: bool | None = Field(default=None, description="save memory: recompute activations in the backward pass")
    weights: BackboneWeights | None = Field(
        default=None, description="published weights to start from; null: random weights"
    )


class Neck(Strict):
    kind: Literal["lss-fpn", "fpn"]
    channels: int
    levels: int = Field(default=1, ge=1, description="number of maps that an fpn returns; an lss-fpn returns one")


class BevFormer(Strict):
    """BEV queries that attend to the images (BEVFormer without history); see `vexkd.models.bevformer`."""

    kind: Literal["bevformer"]
    channels: int
    layers: int
    heads: int
    points: int = Field(description="sampling points of the self-attention, per head")
    image_points: int = Field(description="sampling points in the images, per head and level, shared by the heights")
    pillar: int = Field(description="heights of a cell that are projected into the images")
    ffn: int
    dropout: float
    query_std: float = Field(gt=0, description="standard deviation of the queries' initial values")
    recompute: bool | None = Field(default=None, description="save memory: recompute activations in the backward pass")


class LiftSplat(Strict):
    """Image features lifted by a depth distribution and pooled into BEV cells; see `vexkd.models.lss`."""

    kind: Literal["lift-splat"]
    depth_net: Literal["lidar", "plain", "bevdepth"] = Field(
        description="depth from a LiDAR depth image (BEVFusion), from the image alone (BEVDet), or trained on LiDAR (BEVDepth)"
    )
    channels: int = Field(description="context channels lifted to BEV")
    depth: Triple = Field(description="first, last and step of the depth bins in metres")
    step: float = Field(
        description="side of a cell of the lifted map in metres, before it is down-sampled to `bev.cell`"
    )
    z: Pair = Field(description="height range in metres that is lifted")
    border: Literal["exact", "published"] | None = Field(
        default=None,
        description="points below the lowest corner are dropped (exact), or kept up to one cell beyond it, in z a whole "
        "range (published); null: exact, but published for imported weights",
    )
    depth_channels: Annotated[list[int], Len(3, 3)] | None = Field(
        default=None, description="widths of the three convolutions over the depth image (lidar)"
    )
    aspp_channels: int | None = Field(default=None, description="width of the ASPP branches (bevdepth)")
    depth_weight: float | None = Field(default=None, description="weight of the depth loss (bevdepth)")

    @model_validator(mode="after")
    def _depth_net_has_its_settings(self) -> LiftSplat:
        needed = {"lidar": ["depth_channels"], "plain": [], "bevdepth": ["aspp_channels", "depth_weight"]}
        for name in needed[self.depth_net]:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: the depth net {self.depth_net} needs this setting; add it")
        return self


class History(Strict):
    """Cameras over time (BEVDet4D); see `vexkd.models.temporal`."""

    keyframes: int = Field(ge=1, description="number of earlier keyframes whose images are used")
    start_epoch: int = Field(ge=0, description="first epoch in which they are used, counted from 0")


class Camera(Strict):
    """The image network and its view of the BEV grid."""

    image_size: Size = Field(description="height and width in pixels that the image network sees")
    pixels: Literal["imagenet", "caffe"] = Field(
        default="imagenet",
        description="what the backbone's weights expect: normalised RGB (imagenet), or BGR from 0 to 255 (caffe)",
    )
    backbone: Backbone
    neck: Neck
    view: Annotated[LiftSplat | BevFormer, Field(discriminator="kind")]
    history: History | None = None


class Mgfm(Strict):
    """VeXKD's modality-general fusion module; see `vexkd.models.fusion`."""

    channels: int
    blocks: int
    query_std: float = Field(gt=0, description="standard deviation of the BEV query's initial values")
    heads: int
    points: int
    ffn: int
    dropout: float


class ConvFuser(Strict):
    """BEVFusion's fusion: a convolution over the concatenated maps."""

    channels: int


class SecondEncoder(Strict):
    kind: Literal["second"]
    channels: list[int]
    layers: list[int] = Field(description="convolutions per stage after the strided one")
    strides: list[int]
    neck_channels: list[int]


class ResNetEncoder(Strict):
    kind: Literal["resnet"]
    channels: list[int]
    layers: list[int] = Field(description="residual blocks per stage")
    strides: list[int]
    neck_channels: Annotated[list[int], Len(2, 2)]
    out_channels: int


class NoEncoder(Strict):
    """No BEV encoder, as in BEVFormer: the map `high` is the map `low`."""

    kind: Literal["none"]
