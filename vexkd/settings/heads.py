"""Settings of the heads: how they are built and taught, and how boxes are decoded after training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vexkd.geometry import BevGrid
from vexkd.settings.base import ClassName, Six, Strict, Ten

HEADS = ("centerpoint", "transfusion", "detr", "map")
DENSE_HEADS = ("centerpoint", "transfusion")  # with a heatmap of the objects' centres over the BEV grid
# The classes of map segmentation in BEVFusion's order; `divider` is road or lane divider.
MAP_CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")


class Gaussian(Strict):
    """How wide a box is drawn into the heatmap."""

    overlap: float
    min_radius: int


class CenterPoint(Strict):
    """CenterPoint's head: a heatmap and box values for each group of classes."""

    tasks: list[list[ClassName]]
    shared_channels: int
    branch_channels: int
    gaussian: Gaussian
    max_objects: int
    heatmap_weight: float
    box_weight: float
    code_weights: Ten


class Detr(Strict):
    """BEVFormer's decoder, a query per box."""

    channels: int
    queries: int
    layers: int
    heads: int
    points: int
    ffn: int
    dropout: float
    class_cost: float
    box_cost: float
    class_weight: float
    box_weight: float
    code_weights: Ten


class TransFusion(Strict):
    """TransFusion's head: queries at the peaks of a heatmap."""

    channels: int
    proposals: int
    layers: int
    heads: int
    ffn: int
    dropout: float
    peak_classes: list[ClassName] = Field(description="small classes whose proposals need no local maximum")
    gaussian: Gaussian
    class_cost: float
    box_cost: float
    iou_cost: float
    class_weight: float
    heatmap_weight: float
    box_weight: float
    code_weights: Ten


class MapHead(Strict):
    """Map segmentation: the square of labels around the LiDAR, and how the rasters they are read from are drawn."""

    reach: float = Field(gt=0, description="labels reach from -reach to reach metres in x and y")
    cell: float = Field(gt=0, description="side of a cell of labels and rasters in metres")
    edges: Literal["published", "centre"] = Field(
        description="which cells an area covers: as the devkit draws them for published scores, or by their centres"
    )
    gamma: float = Field(ge=0, description="focusing power of the focal loss")

    @property
    def grid(self) -> BevGrid:
        """The raster of labels and predictions."""
        return BevGrid((-self.reach, -self.reach, 0.0, self.reach, self.reach, 0.0), self.cell)


class CenterPointInference(Strict):
    top: int = Field(description="number of best cells per task")
    score: float
    nms: Literal["rotated", "circle", "scale"] | list[Literal["rotated", "circle", "scale"]] = Field(
        description="for all tasks, or one for each; scale: rotated NMS of boxes scaled by class (BEVDet)"
    )
    threshold: float | list[float] = Field(description="IoU of the rotated NMS, for all tasks or one for each")
    radius: list[float] | None = Field(default=None, description="squared distance of the circle NMS per task")
    scales: Ten | None = Field(default=None, description="factor of the boxes of each class (scale)")
    pre: int
    post: int


class TransFusionInference(Strict):
    score: float


class DetrInference(Strict):
    top: int = Field(description="number of best pairs of query and class that are kept")


class Inference(Strict):
    """What is used only after training. It is written to a file of its own, so that a change does not retrain."""

    range: Six = Field(description="boxes with centres outside are dropped, metres")
    max_boxes: int = Field(description="most boxes per sample; nuScenes allows 500")
    centerpoint: CenterPointInference | None = None
    transfusion: TransFusionInference | None = None
    detr: DetrInference | None = None
    evaluation: str = Field(description="configuration of the nuScenes detection metric")
