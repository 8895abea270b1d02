"""Settings of the data: what is read of nuScenes, how it is augmented, and the town that the demo makes in its place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vexkd.settings.base import AFTER_TRAINING, MODEL, TRAINING, ClassName, Pair, Size, Strict


class Data(Strict):
    version: Annotated[str, TRAINING] = Field(
        description="nuScenes version: the name of the folder that holds its tables"
    )
    train_split: Annotated[str, TRAINING] = Field(
        description="split to train on, one of nuScenes' names or of splits.json"
    )
    val_split: Annotated[str, AFTER_TRAINING] = Field(description="split to predict and score")
    sweeps: Annotated[int, MODEL] = Field(
        ge=0, le=10, description="previous LiDAR sweeps stacked onto the keyframe; infos list ten"
    )
    balance: Annotated[Literal["cbgs", "none"], TRAINING] = Field(
        description="class-balanced resampling of the training samples, or none"
    )


class Synthetic(Strict):
    """The embedded data set, which `vexkd synthesize` makes at `root` where params.yaml has this block."""

    scenes: int = Field(ge=2)
    samples: int = Field(ge=2, description="keyframes per scene")
    seed: int
    image_size: Size = Field(description="width and height of the rendered images in pixels")
    beams: int = Field(ge=1, description="LiDAR beams, one above another")
    azimuths: int = Field(ge=8, description="LiDAR rays of each beam per turn")
    sweeps_per_sample: int = Field(ge=1)


class BevAugment(Strict):
    """Augmentation of points, boxes and maps alike, in the LiDAR frame."""

    rotation: float = Field(ge=0, description="radians; uniform from -rotation to rotation")
    scale: Pair = Field(description="smallest and largest factor")
    translation: float = Field(ge=0, description="standard deviation per axis in metres")
    flip: float = Field(ge=0, le=1, description="probability per axis")


class Colours(Strict):
    """Photometric distortion as in BEVFormer; see `vexkd.data.augment.ColourAugmentation`."""

    brightness: float
    contrast: Pair
    saturation: Pair
    hue: float = Field(description="degrees")
    swap: float = Field(ge=0, le=1, description="probability that the colour channels are permuted")


class GridMask(Strict):
    """Blanking of a grid of squares in the images."""

    probability: float = Field(ge=0, le=1)
    ratio: float = Field(gt=0, lt=1, description="share of a period that is kept")


class ImageAugment(Strict):
    resize: Pair = Field(description="smallest and largest resize factor in training")
    test_resize: float = Field(description="resize factor in prediction")
    rotation: float = Field(ge=0, description="degrees; uniform from -rotation to rotation")
    flip: float = Field(ge=0, le=1, description="probability of a horizontal flip")
    colours: Colours | None = None
    grid_mask: GridMask | None = None


class Paste(Strict):
    """Ground-truth sampling: objects of other samples are pasted into the point cloud."""

    counts: dict[ClassName, int] = Field(description="objects per class after pasting; 0 or absent: none")
    min_points: int = Field(description="fewest LiDAR points of an object that is pasted")
    until_epoch: int = Field(description="first epoch without pasting, counted from 0")
