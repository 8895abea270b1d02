"""The one model: sensors -> BEV maps -> (fusion) -> `low` -> BEV encoder -> `high` -> head. And its builder.

B batch, C channels, Y X BEV. Teachers, students and pretraining differ only in the parts that the builder puts in. The
names of the features are what distillation reads (Sec. 3.1 and Appendix A of the paper).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vexkd.batch import Batch, Detections, Output
from vexkd.errors import InputError
from vexkd.geometry import BevGrid
from vexkd.models.bev_neck import NoBevEncoder, ResNetBevEncoder, SecondBackbone
from vexkd.models.bevformer import BEVFormerView
from vexkd.models.centerpoint import CenterPointHead
from vexkd.models.detr_head import DetrHead
from vexkd.models.fusion import ConvFuser, ModalityGeneralFusion
from vexkd.models.image_encoder import ImageEncoder, build_backbone, build_neck
from vexkd.models.layout import lay_out
from vexkd.models.lss import LiftSplat
from vexkd.models.map_head import MapHead
from vexkd.models.sparse_encoder import SparseEncoder
from vexkd.models.targets import Counts, Targets
from vexkd.models.temporal import TemporalCameraBranch
from vexkd.models.transfusion import TransFusionHead
from vexkd.settings import MAP_CLASSES, Run

# x, y, z, intensity, time lag (see `vexkd.batch.Sample.points`).
POINT_CHANNELS = 5
# nuScenes' cameras, each with a code of its own in BEVFormer.
CAMERAS = 6


class CameraBranch(nn.Module):
    """Images to a BEV map: backbone and neck, then the view transform."""

    def __init__(self, *, encoder: nn.Module, view: nn.Module) -> None:
        super().__init__()
        self.encoder, self.view = encoder, view
        self.learns_depth = view.learns_depth  # whether the view has a loss of its own
        self.out_channels = view.out_channels

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The BEV map (B, C, Y, X), and in training what `auxiliary_loss` reads."""
        features = self.encoder(batch.images)
        if self.learns_depth and self.training:
            return self.view.forward_with_auxiliary(features, batch)
        return self.view(features, batch), {}

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes with the epoch."""

    def targets(self, batch: Batch) -> Targets:
        """What the view's own loss reads."""
        return self.view.targets(batch)

    def auxiliary_loss(self, auxiliary: dict[str, Tensor], targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """The view's own loss terms."""
        return self.view.auxiliary_loss(auxiliary, targets, counts)


class BEVModel(nn.Module):
    """A detector or segmenter over BEV maps. Parts that a model lacks are None; with one sensor there is no fusion.

    grid: the BEV raster of `low` and `high`.
    """

    def __init__(
        self,
        *,
        grid: BevGrid,
        lidar: SparseEncoder | None,
        camera: CameraBranch | None,
        fusion: nn.Module | None,
        bev_encoder: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.lidar, self.camera, self.fusion = lidar, camera, fusion
        self.bev_encoder, self.head = bev_encoder, head
        self.dropped: tuple[str, ...] = ()

    def drop(self, sensor: str) -> None:
        """Do without a sensor from now on: its BEV map is zero, and without LiDAR the depth images are empty."""
        present = [name for name in ("lidar", "camera") if getattr(self, name) is not None]
        if sensor not in present or len(present) < 2:
            raise InputError(
                f"the sensor {sensor} cannot be dropped from a model of {' and '.join(present)}: take one of two."
            )
        self.dropped = (sensor,)

    def forward(self, batch: Batch) -> Output:
        features, auxiliary = self._features(batch)
        return Output(features, self.head(features["high"]), auxiliary)

    def features(self, batch: Batch, *, high: bool = True) -> dict[str, Tensor]:
        """The named BEV maps (B, C, Y, X) without the head: all that a teacher has to compute (see `batch.Output`).

        high: False leaves out the BEV encoder and its map, where nobody reads it.
        """
        return self._features(batch, high=high)[0]

    def _features(self, batch: Batch, *, high: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The named BEV maps, and what the camera branch's own loss reads."""
        features: dict[str, Tensor] = {}
        auxiliary: dict[str, Tensor] = {}
        if "lidar" in self.dropped:
            features["lidar_bev"] = self._nothing(batch, self.lidar.out_channels)
            batch = replace(batch, points=[batch.lidar_augment.new_zeros(0, POINT_CHANNELS)] * len(batch))
        elif self.lidar is not None:
            features["lidar_bev"] = self.lidar(batch.points)
        if "camera" in self.dropped:
            features["camera_bev"] = self._nothing(batch, self.camera.out_channels)
        elif self.camera is not None:
            features["camera_bev"], auxiliary = self.camera(batch)
        if self.fusion is not None:
            maps = {"lidar": features["lidar_bev"], "camera": features["camera_bev"]}
            features["low"] = self.fusion(maps)
        else:
            features["low"] = next(iter(features.values()))
        if high:
            features["high"] = self.bev_encoder(features["low"])
        return features, auxiliary

    def _nothing(self, batch: Batch, channels: int) -> Tensor:
        """The BEV map of a sensor that is dropped."""
        return batch.lidar_augment.new_zeros(len(batch), channels, *self.grid.shape)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the parts that change with the epoch, counted from 0."""
        if self.camera is not None:
            self.camera.begin_epoch(epoch)

    def targets(self, batch: Batch) -> Targets:
        """What the losses read of a batch: the head's targets and, where the camera branch has a loss of its own, its."""
        parts = {"head": self.head.targets(batch)}
        if self.camera is not None and self.camera.learns_depth:
            parts["camera"] = self.camera.targets(batch)
        return Targets.join(**parts)

    def loss(self, output: Output, targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """The loss terms of the head, and of the camera branch where the output holds what its own loss reads."""
        terms = self.head.loss(output.predictions, targets.under("head"), counts.under("head"))
        if output.auxiliary:
            camera_part = targets.under("camera"), counts.under("camera")
            terms = terms | self.camera.auxiliary_loss(output.auxiliary, *camera_part)
        return terms

    @torch.no_grad()
    def detect(self, batch: Batch, *, bounds, settings: dict) -> list[Detections]:
        """Decoded boxes of each sample; `settings` are the head's part of `inference`."""
        return self.head.decode(self(batch).predictions, bounds=bounds, **settings)

    @torch.no_grad()
    def segment(self, batch: Batch) -> Tensor:
        """Probabilities of the map classes, (B, K, Y', X') float32 on the head's label grid."""
        return self.head.probabilities(self(batch).predictions)


def build(run: Run) -> BEVModel:
    """The model of a run, with random weights."""
    grid = BevGrid(tuple(run.bev.range), run.bev.cell)
    lidar = build_lidar(run) if run.lidar else None
    camera = build_camera(run) if run.camera else None
    widths = {name: part.out_channels for name, part in (("lidar", lidar), ("camera", camera)) if part is not None}
    fusion = build_fusion(run, widths, grid)
    low_channels = fusion.out_channels if fusion is not None else next(iter(widths.values()))
    bev_encoder = build_bev_encoder(run, low_channels)
    head = build_head(run, bev_encoder.out_channels, grid)
    model = BEVModel(grid=grid, lidar=lidar, camera=camera, fusion=fusion, bev_encoder=bev_encoder, head=head)
    return lay_out(model, torch.channels_last)  # faster: benchmarks/models.py


def build_lidar(run: Run) -> SparseEncoder:
    """The LiDAR branch."""
    scale = 2 ** (len(run.lidar.channels) - 1)
    if abs(run.bev.voxel[0] * scale - run.bev.cell) > 1e-6:
        raise InputError(
            f"{run.name}: {len(run.lidar.channels)} stages turn voxels of {run.bev.voxel[0]} m into cells of "
            f"{run.bev.voxel[0] * scale} m, but bev.cell is {run.bev.cell} m; make them agree."
        )
    encoder = SparseEncoder(
        bounds=run.bev.range, voxel=run.bev.voxel, point_channels=POINT_CHANNELS, **run.lidar.model_dump()
    )
    if encoder.out_channels <= 0:
        raise InputError(
            f"{run.name}: {encoder.shape[0]} voxel layers along z are too few for the stages of lidar.channels; "
            "lower the z size of bev.voxel."
        )
    return encoder


def build_camera(run: Run) -> CameraBranch:
    """The camera branch."""
    camera = run.camera
    outputs = camera.backbone.outputs
    backbone = build_backbone(**camera.backbone.model_dump(exclude_none=True, exclude={"weights"}))
    widths = [camera.backbone.widths[index] for index in outputs]
    neck = build_neck(widths=widths, **camera.neck.model_dump())
    encoder = ImageEncoder(backbone=backbone, neck=neck, pixels=camera.pixels)
    view = build_view(run, encoder.out_channels)
    if camera.history is None:
        return CameraBranch(encoder=encoder, view=view)
    return TemporalCameraBranch(
        encoder=encoder,
        view=view,
        frames=1 + camera.history.keyframes,
        channels=view.out_channels,
        start_epoch=camera.history.start_epoch,
    )


def build_view(run: Run, in_channels: int) -> nn.Module:
    """What turns image features into a BEV map."""
    view, raster = run.camera.view, {"bounds": run.bev.range, "cell": run.bev.cell}
    settings = view.model_dump(exclude={"kind"}, exclude_none=True)
    if view.kind == "bevformer":
        levels = run.camera.neck.levels
        return BEVFormerView(in_channels=in_channels, cameras=CAMERAS, levels=levels, **raster, **settings)
    stride = 4 * 2 ** run.camera.backbone.outputs[0]
    return LiftSplat(in_channels=in_channels, stride=stride, **raster, **settings)


def build_fusion(run: Run, widths: dict[str, int], grid: BevGrid) -> nn.Module | None:
    """The fusion module of a model with both sensors."""
    if run.fusion == "mgfm":
        return ModalityGeneralFusion(in_channels=widths, shape=grid.shape, **run.mgfm.model_dump())
    if run.fusion == "conv":
        return ConvFuser(in_channels=widths, **run.conv_fuser.model_dump())
    return None


def build_bev_encoder(run: Run, in_channels: int) -> nn.Module:
    """What makes `high` of `low`."""
    kinds = {"second": SecondBackbone, "resnet": ResNetBevEncoder, "none": NoBevEncoder}
    return kinds[run.bev_encoder.kind](in_channels=in_channels, **run.bev_encoder.model_dump(exclude={"kind"}))


def build_head(run: Run, in_channels: int, grid: BevGrid) -> nn.Module:
    """The head of the run's task."""
    if run.head == "map":
        labels, gamma = run.map.grid, run.map.gamma
        return MapHead(in_channels=in_channels, grid=grid, labels=labels, classes=len(MAP_CLASSES), gamma=gamma)
    kinds = {"centerpoint": CenterPointHead, "transfusion": TransFusionHead, "detr": DetrHead}
    settings = getattr(run, run.head).model_dump()
    gaussian = settings.pop("gaussian", {})
    return kinds[run.head](in_channels=in_channels, grid=grid, **settings, **gaussian)
