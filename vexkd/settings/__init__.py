"""Typed settings: `params.yaml` in, one fully merged `Run` per named row out.

    base.py            what a block of settings is, and what each setting decides
    data.py, model.py, heads.py, training.py, distillation.py     the sections
    run.py             one run, and the parts of it that training and inference depend on
    checks.py          what the settings of a run ask of each other
    merge.py           the one merge rule, and `extends`
    params.py          the whole file: runs, tables, figures
    messages.py        errors as sentences
    yaml_text.py       reading and writing YAML

An unknown key, a value of the wrong type or a name that does not exist is refused with its path and the nearest known one.
"""

from vexkd.settings.base import ClassName, Decides, Strict, all_but, blocks_of, marker
from vexkd.settings.data import BevAugment, Colours, Data, GridMask, ImageAugment, Paste, Synthetic
from vexkd.settings.distillation import Distill
from vexkd.settings.heads import (
    DENSE_HEADS,
    HEADS,
    MAP_CLASSES,
    CenterPoint,
    CenterPointInference,
    Detr,
    DetrInference,
    Gaussian,
    Inference,
    MapHead,
    TransFusion,
    TransFusionInference,
)
from vexkd.settings.merge import read
from vexkd.settings.model import (
    Backbone,
    BackboneWeights,
    Bev,
    BevFormer,
    Camera,
    ConvFuser,
    History,
    Lidar,
    LiftSplat,
    Mgfm,
    Neck,
    NoEncoder,
    ResNetEncoder,
    SecondEncoder,
)
from vexkd.settings.params import DECIDES_NOTHING, PICTURES, FigureName, Params, Reported, load, parse, write_configs
from vexkd.settings.run import KINDS, Kind, Run, from_values, training_part, unequal, with_inference
from vexkd.settings.training import Ema, Schedule, Train
from vexkd.settings.yaml_text import dump

__all__ = [
    "Backbone",
    "BackboneWeights",
    "Bev",
    "BevAugment",
    "BevFormer",
    "Camera",
    "CenterPoint",
    "CenterPointInference",
    "ClassName",
    "Colours",
    "ConvFuser",
    "DECIDES_NOTHING",
    "DENSE_HEADS",
    "Data",
    "Decides",
    "Detr",
    "DetrInference",
    "Distill",
    "Ema",
    "FigureName",
    "Gaussian",
    "GridMask",
    "HEADS",
    "History",
    "ImageAugment",
    "Inference",
    "KINDS",
    "Kind",
    "Lidar",
    "LiftSplat",
    "MAP_CLASSES",
    "MapHead",
    "Mgfm",
    "Neck",
    "NoEncoder",
    "PICTURES",
    "Params",
    "Paste",
    "Reported",
    "ResNetEncoder",
    "Run",
    "Schedule",
    "SecondEncoder",
    "Strict",
    "Synthetic",
    "Train",
    "TransFusion",
    "TransFusionInference",
    "all_but",
    "blocks_of",
    "dump",
    "from_values",
    "load",
    "marker",
    "parse",
    "read",
    "training_part",
    "unequal",
    "with_inference",
    "write_configs",
]
