"""Typed settings: `params.yaml` in, one fully merged `Run` per named row out.

The merge lives here and nowhere else: the blocks of defaults, then the student's row, then the run's own row. A key that
is unknown, a value of the wrong type or a name that does not exist is refused with its path and the nearest known one.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vexkd import provenance, settings_checks
from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.geometry import BevGrid

Pair = Annotated[list[float], Len(2, 2)]
Triple = Annotated[list[float], Len(3, 3)]
Six = Annotated[list[float], Len(6, 6)]
Ten = Annotated[list[float], Len(10, 10)]
Size = Annotated[list[int], Len(2, 2)]
ClassName = Literal[CLASSES]  # any one of them
Kind = Literal["pretrained", "teachers", "students", "distilled"]
# Those that are drawn only of rows that `figures` names, and among them those that show each row, a distilled run, by itself.
FigureName = Literal["blocks", "missing-sensor", "latency", "camera", "errors", "energy", "masks"]
PICTURES = ("camera", "errors", "energy", "masks")
KINDS: tuple[Kind, ...] = ("pretrained", "teachers", "students", "distilled")
HEADS = ("centerpoint", "transfusion", "detr", "map")
DENSE_HEADS = ("centerpoint", "transfusion")  # with a heatmap of the objects' centres over the BEV grid
# The classes of map segmentation in BEVFusion's order; `divider` is road or lane divider.
MAP_CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")


class Strict(BaseModel):
    """A block of settings: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False)


class Data(Strict):
    version: str = Field(description="nuScenes version, the name of the folder that holds the tables")
    train_split: str = Field(description="split to learn from, one of nuScenes' names or of splits.json")
    val_split: str = Field(description="split to score on")
    sweeps: int = Field(ge=0, le=10, description="previous LiDAR sweeps stacked onto the keyframe; infos list ten")
    balance: Literal["cbgs", "none"] = Field(description="class-balanced resampling of the training samples, or none")


class Synthetic(Strict):
    """The embedded data set, made at `root` by `vexkd synthesize` where params.yaml has this block."""

    scenes: int = Field(ge=2)
    samples: int = Field(ge=2, description="keyframes per scene")
    seed: int
    image_size: Size = Field(description="width and height of the rendered images in pixels")
    beams: int = Field(ge=1)
    azimuths: int = Field(ge=8)
    sweeps_per_sample: int = Field(ge=1)


class Bev(Strict):
    range: Six = Field(description="x0, y0, z0, x1, y1, z1 in metres, LiDAR frame")
    voxel: Triple = Field(description="voxel size x, y, z in metres")
    cell: float = Field(gt=0, description="side of a cell of the BEV maps in metres")


class BevAugment(Strict):
    rotation: float = Field(ge=0, description="uniform in +-rotation radians")
    scale: Pair
    translation: float = Field(ge=0, description="standard deviation per axis in metres")
    flip: float = Field(ge=0, le=1, description="probability per axis")


class Colours(Strict):
    """Photometric distortion (BEVFormer); see `vexkd.data.augment.ColourAugmentation`."""

    brightness: float
    contrast: Pair
    saturation: Pair
    hue: float = Field(description="degrees")
    swap: float = Field(ge=0, le=1, description="probability that the channels change places")


class GridMask(Strict):
    probability: float = Field(ge=0, le=1)
    ratio: float = Field(gt=0, lt=1, description="share of a period that stays")


class ImageAugment(Strict):
    resize: Pair = Field(description="range of the resize factor in training")
    test_resize: float
    rotation: float = Field(ge=0, description="uniform in +-rotation degrees")
    flip: float = Field(ge=0, le=1)
    colours: Colours | None = None
    grid_mask: GridMask | None = None


class Paste(Strict):
    counts: dict[ClassName, int] = Field(description="objects per class after pasting; 0 or absent: none")
    min_points: int
    until_epoch: int = Field(description="first epoch without pasting")


class Lidar(Strict):
    max_points: int = Field(description="points averaged per voxel at most")
    max_voxels_train: int
    max_voxels_test: int
    channels: Annotated[list[int], Len(2)] = Field(
        description="widths of the sparse stages; each after the first halves the grid"
    )
    blocks: int = Field(description="residual blocks per stage")
    out_channels: int = Field(description="width after the last convolution over z")


class BackboneWeights(Strict):
    """Published weights that an image backbone starts from; see `vexkd.published.fetch` and docs/WEIGHTS.md."""

    source: Literal["transformers", "torchvision", "mmdet"] = Field(description="whose names the file's tensors have")
    name: str = Field(description="model on the Hugging Face hub, file of torchvision's, or an https address")
    file: str = Field(description="what training reads: .safetensors, as `vexkd fetch-weights` writes it, or .pth")


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
        default=None, description="which convolution of a bottleneck strides"
    )
    deformable: list[int] | None = Field(default=None, description="stages with modulated deformable convolutions")
    frozen_stages: int | None = Field(default=None, description="the stem and this many stages learn nothing")
    frozen_norm: bool | None = Field(default=None, description="BatchNorm keeps its statistics and weights")
    recompute: bool | None = Field(default=None, description="less memory: compute again on the way back")
    weights: BackboneWeights | None = Field(default=None, description="what it starts from; null: random weights")


class Neck(Strict):
    kind: Literal["lss-fpn", "fpn"]
    channels: int
    levels: int = Field(default=1, ge=1, description="maps that an fpn hands on; an lss-fpn hands on one")


class BevFormer(Strict):
    """BEV queries that look into the images (BEVFormer without history); see `vexkd.models.bevformer`."""

    kind: Literal["bevformer"]
    channels: int
    layers: int
    heads: int
    points: int = Field(description="of the self-attention, per head")
    image_points: int = Field(description="of the attention into the images, per head and level; shared by the heights")
    pillar: int = Field(description="heights of a cell that look for images")
    ffn: int
    dropout: float
    query_std: float = Field(gt=0, description="standard deviation of the queries' random start")
    recompute: bool | None = Field(default=None, description="less memory: compute again on the way back")


class LiftSplat(Strict):
    kind: Literal["lift-splat"]
    depth_net: Literal["lidar", "plain", "bevdepth"] = Field(
        description="depth from a LiDAR depth image (BEVFusion), the image alone (BEVDet), or taught by LiDAR (BEVDepth)"
    )
    channels: int = Field(description="context channels lifted to BEV")
    depth: Triple = Field(description="first, last and step of the depth bins in metres")
    step: float = Field(description="cell of the lifted map in metres, before the down-sampling to `bev.cell`")
    z: Pair = Field(description="height range in metres that is lifted")
    border: Literal["exact", "published"] | None = Field(
        default=None,
        description="points below the lowest corner: dropped, or (published) kept up to a cell beyond it, in z a whole "
        "range; null: exact, and published for imported weights",
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

    keyframes: int = Field(ge=1, description="earlier keyframes whose images are used too")
    start_epoch: int = Field(ge=0, description="first epoch, from 0, in which they are")


class Camera(Strict):
    image_size: Size = Field(description="height and width in pixels that the image network sees")
    pixels: Literal["imagenet", "caffe"] = Field(
        default="imagenet",
        description="what the backbone's weights expect: RGB with unit deviation, or BGR of 0 to 255",
    )
    backbone: Backbone
    neck: Neck
    view: Annotated[LiftSplat | BevFormer, Field(discriminator="kind")]
    history: History | None = None


class Mgfm(Strict):
    channels: int
    blocks: int
    query_std: float = Field(gt=0, description="standard deviation of the BEV query's random start")
    heads: int
    points: int
    ffn: int
    dropout: float


class ConvFuser(Strict):
    channels: int


class SecondEncoder(Strict):
    kind: Literal["second"]
    channels: list[int]
    layers: list[int] = Field(description="convolutions after the strided one, per stage")
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
    """`high` is `low`: BEVFormer has no BEV encoder."""

    kind: Literal["none"]


class Gaussian(Strict):
    overlap: float
    min_radius: int


class CenterPoint(Strict):
    tasks: list[list[ClassName]]
    shared_channels: int
    branch_channels: int
    gaussian: Gaussian
    max_objects: int
    heatmap_weight: float
    box_weight: float
    code_weights: Ten


class Detr(Strict):
    """BEVFormer's query decoder."""

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
    """Map segmentation: the square of labels around the LiDAR, and how the rasters that they are read from are drawn."""

    reach: float = Field(gt=0, description="labels reach +-reach metres in x and y")
    cell: float = Field(gt=0, description="side of a label cell in metres, the rasters' too")
    edges: Literal["published", "centre"] = Field(
        description="as the devkit draws for published scores, or by cell centres"
    )
    gamma: float = Field(ge=0, description="focusing power of the focal loss")

    @property
    def grid(self) -> BevGrid:
        """The raster of labels and predictions."""
        return BevGrid((-self.reach, -self.reach, 0.0, self.reach, self.reach, 0.0), self.cell)


class Ema(Strict):
    """The kept weights are a moving average (BEVDet); see `vexkd.train.ema`."""

    decay: float = Field(gt=0, lt=1)
    ramp: float = Field(gt=0, description="updates after which the decay has come to 63 % of its value")
    updates: int = Field(ge=0, description="updates that are counted as done at the start")


class Schedule(Strict):
    kind: Literal["one-cycle", "warmup-cosine", "step"]
    peak: float = Field(description="highest learning rate over `lr` (one-cycle)")
    rise: float = Field(description="share of the training in which lr rises and beta1 falls")
    final: float = Field(description="last learning rate over `lr`")
    warmup: int = Field(description="iterations of linear warm-up (warmup-cosine, step)")
    warmup_from: float
    beta1: Pair = Field(description="Adam's beta1 at both ends and at its lowest")
    milestones: list[int] | None = Field(
        default=None, description="epochs, from 0, that begin with a smaller learning rate (step)"
    )
    gamma: float | None = Field(default=None, description="what each milestone multiplies the learning rate by (step)")

    @model_validator(mode="after")
    def _milestones_change_something(self) -> Schedule:
        if self.milestones and self.gamma is None:
            raise ValueError("milestones: they need gamma, by which each multiplies the learning rate; add it")
        return self


class Train(Strict):
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1, description="samples per optimiser step over all GPUs and accumulation steps")
    lr: float = Field(gt=0)
    backbone_lr: float = Field(gt=0, description="learning rate of the image backbone over `lr`")
    weight_decay: float
    clip: float = Field(gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16", "fp16"]
    sync_bn: bool
    schedule: Schedule
    ema: Ema | None = None


class Distill(Strict):
    """What a student learns of its teacher. Settings that are null take the published value named beside them in the code."""

    method: Literal["unidistill", "bevdistill", "fgd", "distillbev", "maskd", "s2m2"] | None = Field(
        default=None,
        description="a published method as a whole, with its own masks and losses, in place of VeXKD; null: VeXKD",
    )
    levels: Annotated[list[Literal["low", "high"]], Len(1, 2)]
    mask: Literal["none", "ones", "key-points", "gaussian", "activation", "random-query", "learned-query"] = Field(
        description="where to distil; none and ones are the same, everywhere (complete mimic); without a teacher there is "
        "no distillation: that is the student's own row"
    )
    mask_blocks: int = Field(ge=1, description="transformer blocks of a learned mask, 1 to 6 in Fig. 5")
    mask_heads: int
    mask_points: int
    mask_ffn: int
    mask_dropout: float
    mask_bias: float = Field(description="start of the mask's last bias: sigmoid(2) = 0.88")
    temperature: float | None = Field(default=None, gt=0, description="of the mask activation and of FGD's attention")
    loss: Literal["attention", "l1", "l2", "smooth-l1", "pkd", "cwd", "mgd"]
    power: Literal[1, 2] = Field(description="p of the channel sum of |F|^p")
    tau: float | None = Field(default=None, gt=0, description="temperature of the loss cwd")
    hidden: float | None = Field(default=None, ge=0, lt=1, description="share of the cells that the loss mgd hides")
    lambda_: float = Field(alias="lambda", description="weight of the distillation loss for the student, Eq. 8")
    mu: float = Field(description="weight of the distillation loss for the masks, Eq. 5")
    weights: dict[str, float] | None = Field(
        default=None, description="by name, in place of published ones: a loss's scale before lambda, a method's terms"
    )
    coupling: Literal["detached", "summed"] = Field(
        description="whether student and masks see only their own objective"
    )
    stop_mask_epoch: int | None = Field(default=None, description="first epoch without mask learning; null: never")
    stop_mask_iteration: int | None = None
    monitor_every: int | None = Field(
        default=None, ge=0, description="steps between two measurements of each loss term's gradient; null or 0: never"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, values: Any) -> Any:
        """`method: vexkd` is the default; a published method has no mask of VeXKD's."""
        if not isinstance(values, dict):
            return values
        if values.get("method") in (None, "vexkd"):
            return {key: value for key, value in values.items() if key != "method"}
        return {**values, "mask": "none"}

    @property
    def learns_masks(self) -> bool:
        """Whether masks are trained beside the student."""
        return self.method == "maskd" or self.mask in ("learned-query", "random-query")

    def trouble(self, *, task: str, student: str, teacher: str | None = None, fusion: str | None = None) -> str | None:
        """Why this cannot be done for a task with these heads and the teacher's fusion, as a sentence; None: it can.

        What is known of the teacher is None where only the student is read.
        """
        if task == "segmentation" and self.mask in ("key-points", "gaussian"):
            return f"mask: {self.mask} is drawn from boxes, which {task} lacks; choose another mask"
        if task == "segmentation" and self.method not in (None, "maskd"):
            return f"method: {self.method} needs boxes, which {task} lacks; choose maskd, or leave it out for VeXKD"
        heads = {"unidistill": (student, teacher), "s2m2": (student, teacher), "distillbev": (teacher,)}
        for head in heads.get(self.method or "", ()):
            if head is not None and head not in DENSE_HEADS:
                known = " or ".join(DENSE_HEADS)
                return f"method: {self.method} reads heatmaps, which the head {head} has not; use {known}"
        if self.mask == "learned-query" and teacher is not None and fusion != "mgfm":
            return "mask: learned-query starts from the query of a teacher with fusion: mgfm; use one or another mask"
        return None


class CenterPointInference(Strict):
    top: int = Field(description="highest cells per task")
    score: float
    nms: Literal["rotated", "circle", "scale"] | list[Literal["rotated", "circle", "scale"]] = Field(
        description="for all tasks, or one for each; scale: rotated, of boxes scaled by class (BEVDet)"
    )
    threshold: float | list[float] = Field(description="IoU of the rotated NMS, for all tasks or one for each")
    radius: list[float] | None = Field(default=None, description="squared distance of the circle NMS per task")
    scales: Ten | None = Field(default=None, description="factor of the boxes of each class (scale)")
    pre: int
    post: int


class TransFusionInference(Strict):
    score: float


class DetrInference(Strict):
    top: int = Field(description="best pairs of query and class that are kept")


class Inference(Strict):
    """Settings used only after training; they stand in a file of their own, so that changing one does not retrain."""

    range: Six = Field(description="boxes with centres outside are dropped, metres")
    max_boxes: int = Field(description="per sample, nuScenes allows 500")
    centerpoint: CenterPointInference | None = None
    transfusion: TransFusionInference | None = None
    detr: DetrInference | None = None
    evaluation: str = Field(description="configuration of the nuScenes detection metric")


class Run(Strict):
    """One named row with every setting it uses, and none it does not."""

    name: str
    kind: Kind
    task: Literal["detection", "segmentation"]
    sensors: Annotated[list[Literal["lidar", "camera"]], Len(1)]
    head: Literal["centerpoint", "transfusion", "detr", "map"]
    fusion: Literal["mgfm", "conv"] | None = None
    start: str | None = None
    student: str | None = None
    teacher: str | None = None
    data: Data
    bev: Bev
    bev_augment: BevAugment
    image_augment: ImageAugment | None = None
    paste: Paste | None = None
    lidar: Lidar | None = None
    camera: Camera | None = None
    mgfm: Mgfm | None = None
    conv_fuser: ConvFuser | None = None
    bev_encoder: Annotated[SecondEncoder | ResNetEncoder | NoEncoder, Field(discriminator="kind")]
    centerpoint: CenterPoint | None = None
    transfusion: TransFusion | None = None
    detr: Detr | None = None
    map: MapHead | None = None
    train: Train
    distill: Distill | None = None
    inference: Inference

    @model_validator(mode="after")
    def _has_its_parts(self) -> Run:
        """What the run's sensors, head and fusion read is there."""
        if (len(self.sensors) == 2) != (self.fusion is not None):
            raise ValueError("fusion: it belongs to a run with both sensors, and to no other; mend fusion or sensors")
        needed = {*self.sensors, self.head} | ({"image_augment"} if "camera" in self.sensors else set())
        needed |= {"distill"} if self.kind == "distilled" else set()
        needed |= {None: set(), "mgfm": {"mgfm"}, "conv": {"conv_fuser"}}[self.fusion]
        for name in sorted(needed):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: the run needs this block of settings; add it")
        if (self.task == "segmentation") != (self.head == "map"):
            raise ValueError("head: map belongs to the task segmentation, and to no other; mend head or task")
        if "lidar" not in self.sensors and getattr(self.camera.view, "depth_net", None) == "lidar":
            raise ValueError(
                "camera.view.depth_net: lidar reads LiDAR points, which the run lacks; use plain or bevdepth"
            )
        x0, y0, _, x1, y1, _ = self.bev.range
        if self.map is not None and self.map.reach > min(-x0, -y0, x1, y1):
            raise ValueError(f"map.reach: labels to {self.map.reach:g} m lie beyond bev.range; lower it or widen that")
        if self.task == "detection" and getattr(self.inference, self.head) is None:
            raise ValueError(f"inference.{self.head}: the run needs this block of settings; add it")
        trouble = self.distill.trouble(task=self.task, student=self.head) if self.distill is not None else None
        if trouble is not None:
            raise ValueError(f"distill.{trouble}")
        for problem in settings_checks.problems(self):
            raise ValueError(problem)
        return self

    def training(self) -> dict[str, Any]:
        """What training depends on, as plain values: everything but `inference` and the split to score on."""
        apart = {"inference": True, "data": {"val_split"}}
        return self.model_dump(mode="json", by_alias=True, exclude=apart, exclude_none=True)

    def besides_teaching(self) -> dict[str, Any]:
        """All settings that a student and the same student distilled have to share for their difference to be the teaching.

        Without names and `distill`, and without what only labels for the teacher's head need.
        """
        teaching = {"name", "kind", "student", "teacher", "distill"} | {head for head in HEADS if head != self.head}
        training = {key: value for key, value in self.training().items() if key not in teaching}
        return training | {"inference": self.after_training()}

    def after_training(self) -> dict[str, Any]:
        """What predictions depend on besides the weights, as plain values: `inference` and `data.val_split`."""
        return {**self.inference.model_dump(mode="json", exclude_none=True), "val_split": self.data.val_split}


class Reported(Strict):
    """A published value of a row, with its source; what is not known stays null."""

    mAP: float | None = None
    NDS: float | None = None
    mIoU: float | None = None
    source: str


class Params(Strict):
    """The whole of params.yaml, checked: every row merged and every name resolved."""

    path: str
    root: str
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Len(1)]
    synthetic: Synthetic | None
    runs: dict[str, Run]
    tables: dict[str, list[str]]
    reported: dict[str, Reported]
    floors: dict[str, Reported] = Field(description="best public score of a student alone: below it a gain is marked")
    figures: dict[FigureName, list[str]] = Field(description="rows of the figures that not every run belongs to")
    raw: dict[str, Any] = Field(repr=False)

    @model_validator(mode="after")
    def _each_seed_once(self) -> Params:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed stands twice, and its result would count twice; name each once")
        return self

    def run(self, name: str) -> Run:
        """The row of this name; an unknown one is refused with the nearest known name."""
        if name not in self.runs:
            raise InputError(f"{self.path}: there is no run named '{name}'{_nearest(name, self.runs)}.")
        return self.runs[name]

    def table(self, name: str) -> list[str]:
        """The rows of this table; an unknown one is refused with the nearest known name."""
        if name not in self.tables:
            raise InputError(f"{self.path}: there is no table named '{name}'{_nearest(name, self.tables)}.")
        return self.tables[name]


_ROW_KEYS = {"task", "sensors", "head", "fusion", "start", "student", "teacher"}
_BLOCKS = {name for name in Run.model_fields if name not in _ROW_KEYS | {"name", "kind"}}
_TOP = _BLOCKS | set(KINDS) | {"root", "seeds", "synthetic", "tables", "reported", "floors", "figures"}
_NAMED = {*KINDS, "tables", "figures"}  # whose entries a file adds to those of the files it extends
_ALTERNATIVES = {"backbone", "neck", "view", "bev_encoder"}  # parts with a `kind`, each with settings of its own
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def load(path: Path | str = "params.yaml") -> Params:
    """Read and check a params.yaml, merging every row. Raises InputError with the path of the first bad key."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such settings file; run from the folder that holds it or name it with --params."
        )
    content = _extended(path)
    if path.name == "params.yaml" and (path.parent / "dvc.yaml").is_file() and _extends(path):
        raise InputError(
            f"{path}: extends: DVC reads this file alone, so `dvc repro` beside it would miss what changes in the others; "
            "write their settings into it, or keep the experiment in a folder without dvc.yaml, as demo/full."
        )
    return parse(content, str(path))


def _extends(path: Path) -> bool:
    """Whether a settings file stands on others."""
    own = _read_yaml(path)
    return isinstance(own, dict) and bool(own.get("extends"))


def _extended(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """The content of a settings file, on top of the files that its key `extends` lists, the first lowest.

    A later file replaces an earlier one's blocks whole; runs, tables and figures it adds to, or replaces by their name.
    above: the files that it is read for.
    """
    if path.resolve() in above:
        raise InputError(f"{path}: extends: the file extends itself, if by way of others; take one of these keys away.")
    own = _read_yaml(path)
    if not isinstance(own, dict) or "extends" not in own:
        return own
    below = own.pop("extends")
    if not (isinstance(below, list) and all(isinstance(name, str) for name in below)):
        raise InputError(f"{path}: extends: it must be a list of settings files; write it as one.")
    whole: dict[str, Any] = {}
    above = (*above, path.resolve())
    for content in (*(_read_base(path, path.parent / name, above) for name in below), own):
        for key, value in content.items():
            named = key in _NAMED and isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = {**whole[key], **value} if named else value
    return whole


def _read_base(path: Path, base: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if not base.is_file():
        raise InputError(f"{path}: extends: there is no file {base}; name one that is there.")
    content = _extended(base, above)
    if not isinstance(content, dict):
        raise InputError(f"{base}: the settings must be a mapping of keys to values; mend the file.")
    return content


def parse(raw: Any, path: str = "params.yaml") -> Params:
    """Check a parsed params.yaml; `path` is the name that errors show."""
    if not isinstance(raw, dict):
        raise InputError(f"{path}: the settings must be a mapping of keys to values; see the file in the repository.")
    _refuse_unknown(raw, _TOP, path)
    rows: dict[str, tuple[Kind, dict[str, Any]]] = {}
    for kind in KINDS:
        if not isinstance(raw.get(kind) or {}, dict):
            raise InputError(f"{path}: {kind}: it must be a mapping of runs' names to their settings; write it as one.")
        for name, row in (raw.get(kind) or {}).items():
            if not _NAME.fullmatch(str(name)):
                raise InputError(
                    f"{path}: {kind}.{name}: a run's name has small letters, digits and dashes only; rename it."
                )
            if name in rows:
                raise InputError(
                    f"{path}: {kind}.{name}: the name is taken by {rows[name][0]}.{name}; rename one of them."
                )
            if not isinstance(row or {}, dict):
                raise InputError(f"{path}: {kind}.{name}: a run must be a mapping of settings; write it as one.")
            rows[name] = (kind, dict(row or {}))
    defaults = {block: raw[block] for block in _BLOCKS if block in raw}
    runs = {name: _merge(name, kind, row, rows, defaults, path) for name, (kind, row) in rows.items()}
    top = {key: raw.get(key) for key in ("root", "seeds", "synthetic")}
    if top["root"] and isinstance(top["root"], str):  # as every reader gets it: `~` expanded, no slash at the end
        top["root"] = str(Path(top["root"]).expanduser())
    named = {key: raw.get(key) or {} for key in ("tables", "reported", "floors", "figures")}
    params = _validate(Params, {"path": path, **top, **named, "runs": runs, "raw": raw}, path)
    _refuse_other_rasters(params)
    _refuse_teachers(params)
    lists = {f"tables.{table}": names for table, names in params.tables.items()}
    lists |= {f"figures.{figure}": names for figure, names in params.figures.items()}
    for where, names in {**lists, "floors": list(params.floors)}.items():
        for name in names:
            if name not in params.runs:
                raise InputError(f"{path}: {where}: there is no run named '{name}'{_nearest(name, params.runs)}.")
    _refuse_pictures(params)
    return params


def read_run(config: Path | str, inference: Path | str) -> Run:
    """The run that a written config.yaml and inference.yaml describe (see `write_configs`)."""
    for file in (config, inference):
        if not Path(file).is_file():
            raise InputError(
                f"{file}: there is no such file; mend the run's name, or write the runs' settings with `vexkd configure`."
            )
    training = _read_yaml(config)
    if not isinstance(training, dict):
        raise InputError(f"{config}: there is no mapping of settings; write it again with `vexkd configure`.")
    return from_values(training, _read_yaml(inference), str(config))


def with_inference(run: Run, inference: Path | str) -> Run:
    """The same run with the settings of another inference.yaml."""
    if not Path(inference).is_file():
        raise InputError(f"{inference}: there is no such file; write the runs' settings with `vexkd configure`.")
    values = _read_yaml(inference)
    if isinstance(
        values, dict
    ):  # those written up to version 0.1 lack the split, which stood with the training settings
        values = {"val_split": run.data.val_split, **values}
    return from_values(run.training(), values, str(inference))


def _read_yaml(path: Path | str) -> Any:
    """The content of a YAML file that is there."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this is not YAML: {str(error).splitlines()[0]}; mend the file.") from error


def write_configs(params: Params, results: Path | str = "results") -> None:
    """Write `runs/<run>/{config,inference}.yaml` under `results` for every run, each only if its content changes.

    Training depends on the first file and prediction on the second, so what a change touches follows from content alone.
    """
    for name, run in params.runs.items():
        folder = Path(results) / "runs" / name
        provenance.write_text(folder / "config.yaml", dump(run.training()), only_if_changed=True)
        provenance.write_text(folder / "inference.yaml", dump(run.after_training()), only_if_changed=True)


def from_values(training: dict[str, Any], inference: dict[str, Any], where: str) -> Run:
    """A run from plain values, for instance those in the header of a weights file; `where` names their origin.

    Up to version 0.1 the split to score on stood with the training settings; it may still.
    """
    own = {**training, "inference": inference}
    if isinstance(inference, dict) and "val_split" in inference and isinstance(training.get("data"), dict):
        own["data"] = {**training["data"], "val_split": inference["val_split"]}
        own["inference"] = {key: value for key, value in inference.items() if key != "val_split"}
    return _validate(Run, own, where)


def unequal(own: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two settings differ: the path, then both values, None for one that is absent; whole blocks where one lacks them."""
    if isinstance(own, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*own, *other]):
            yield from unequal(own.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif own != other:
        yield path, own, other


def dump(values: dict[str, Any]) -> str:
    """Plain values as YAML that PyYAML and DVC's parser read alike: floats carry a dot, keys keep their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no plain word", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose floats always carry a dot."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)


def _merge(
    name: str, kind: Kind, row: dict[str, Any], rows: dict[str, Any], defaults: dict[str, Any], path: str
) -> Run:
    """Defaults, then the student's row, then the run's own; blocks that the run cannot use are left out."""
    where = f"{kind}.{name}"
    layers = [row]
    for key, group in (("student", "students"), ("teacher", "teachers"), ("start", "pretrained")):
        target = row.get(key)
        if target is not None and (not isinstance(target, str) or rows.get(target, ("",))[0] != group):
            known = [n for n, (k, _) in rows.items() if k == group]
            raise InputError(
                f"{path}: {where}.{key}: there is no run '{target}' in {group}{_nearest(str(target), known)}."
            )
    if kind == "distilled":
        if not (row.get("student") and row.get("teacher")):
            raise InputError(f"{path}: {where}: a distilled run names its student and its teacher; add both.")
        layers.insert(0, rows[row["student"]][1])
    merged = copy.deepcopy(defaults)
    for layer in layers:
        _refuse_unknown(layer, _ROW_KEYS | _BLOCKS, path, where)
        merged = _overlay(merged, layer)
    teacher = rows[row["teacher"]][1] if row.get("teacher") else {}
    values = {"name": name, "kind": kind, **_relevant(merged, kind, taught_maps=teacher.get("head") == "map")}
    return _validate(Run, values, path, where)


def _refuse_teachers(params: Params) -> None:
    """A distilled run's teacher must have what its method reads."""
    for name, run in params.runs.items():
        if run.distill is None or run.teacher is None:
            continue
        teacher = params.runs[run.teacher]
        trouble = run.distill.trouble(task=run.task, student=run.head, teacher=teacher.head, fusion=teacher.fusion)
        if trouble is not None:
            raise InputError(f"{params.path}: distilled.{name}: distill.{trouble}.")
        unlike = settings_checks.unlike_teacher(run, teacher)
        if unlike is not None:
            raise InputError(f"{params.path}: distilled.{name}: {unlike}.")


def _refuse_pictures(params: Params) -> None:
    """A picture compares a student with itself alone: detections, the inside of both, or the masks it learned by."""
    for figure in PICTURES:
        for name in params.figures.get(figure, []):
            run, where = params.run(name), f"{params.path}: figures.{figure}: {name}"
            if run.distill is None or run.kind != "distilled":
                raise InputError(f"{where} is not distilled; list distilled runs.")
            if figure in ("camera", "errors") and run.task != "detection":
                raise InputError(f"{where} detects nothing; list distilled detectors.")
            if figure == "masks" and (run.distill.method is not None or run.distill.mask in ("none", "ones")):
                raise InputError(f"{where} distils everywhere or by a method's own masks; list runs with another mask.")


def _refuse_other_rasters(params: Params) -> None:
    """All runs read labels from the same map rasters, and a distilled run's teacher from the same grid."""
    runs = [run for run in params.runs.values() if run.map is not None]
    for run in runs:
        for key in ("cell", "edges"):
            first, own = getattr(runs[0].map, key), getattr(run.map, key)
            if own != first:
                raise InputError(
                    f"{params.path}: {run.kind}.{run.name}.map.{key}: all runs share one set of map rasters, but this asks "
                    f"for {own} and {runs[0].name} for {first}; make them equal."
                )
        teacher = params.runs[run.teacher].map if run.teacher else None
        if teacher is not None and teacher.reach != run.map.reach:
            raise InputError(
                f"{params.path}: {run.kind}.{run.name}.map.reach: student and teacher {run.teacher} must be taught the "
                "same labels; make their map.reach equal."
            )


def _overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `base`: mappings merge key by key; a part of another kind, or anything else, replaces."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "counts"
        if both and key in _ALTERNATIVES:
            both = value.get("kind") in (None, merged[key].get("kind"))
        merged[key] = _overlay(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _relevant(merged: dict[str, Any], kind: Kind, *, taught_maps: bool) -> dict[str, Any]:
    """Without the blocks that cannot change this run, so that changing one of them does not retrain it.

    taught_maps: its teacher segments maps, so that its batches hold their labels too.
    """
    sensors, head, fusion = merged.get("sensors") or [], merged.get("head"), merged.get("fusion")
    unused = set()
    unused |= set() if "lidar" in sensors else {"lidar"}
    unused |= set() if "camera" in sensors else {"camera", "image_augment"}
    unused |= {"paste"} if "camera" in sensors or kind == "distilled" else set()  # images do not hold pasted objects
    unused |= {"paste"} if merged.get("task") == "segmentation" else set()  # as published: they would hide the ground
    pasted = merged.get("paste")
    unused |= {"paste"} if isinstance(pasted, dict) and pasted.get("counts") == {} else set()
    unused |= {"mgfm", "conv_fuser"} - {"mgfm" if fusion == "mgfm" else "conv_fuser" if fusion == "conv" else ""}
    other_heads = {name for name in HEADS if name != head}
    unused |= other_heads - ({"map"} if taught_maps else set())
    unused |= set() if kind == "distilled" else {"distill"}
    kept = {key: value for key, value in merged.items() if key not in unused}
    if isinstance(kept.get("inference"), dict):
        kept["inference"] = {k: v for k, v in kept["inference"].items() if k not in other_heads}
    return kept


def _refuse_unknown(values: dict[str, Any], known: set[str], path: str, where: str = "") -> None:
    for key in values:
        if key not in known:
            full = f"{where}.{key}" if where else str(key)
            raise InputError(f"{path}: {full}: there is no such setting{_nearest(str(key), known)}.")


def _validate(model: type[Strict], values: dict[str, Any], path: str, where: str = "") -> Any:
    """Pydantic's check, its first error turned into one sentence."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = min(
            error.errors(), key=lambda e: e["type"] != "extra_forbidden"
        )  # a misspelt key explains a missing one
        location = ".".join(str(part) for part in ([where] if where else []) + list(first["loc"]))
        raise InputError(f"{': '.join(filter(None, (path, location)))}: {_sentence(first, model)}.") from None


def _sentence(error: dict[str, Any], model: type[Strict]) -> str:
    """One of pydantic's errors in the words of this project."""
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return "there is no such setting" + _nearest(str(error["loc"][-1]), _fields_at(model, error["loc"][:-1]))
    if error["type"] == "missing":
        return "the setting is missing; add it"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        return f"'{value}' is text to YAML, not a number; write {mantissa}.0e{exponent}"
    return f"{value!r} does not fit: {error['msg'][0].lower()}{error['msg'][1:]}"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the settings in the block at `location`, aliases included."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(name: str, known: Any) -> str:
    """'; did you mean X?' without the question mark's company of guesses: the nearest known name, or all of a few."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; the nearest known one is '{close[0]}'"
    listed = sorted(known)
    return f"; known are {', '.join(listed)}" if 0 < len(listed) <= 20 else ""
