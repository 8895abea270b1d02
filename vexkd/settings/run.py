"""One run: a named row with every setting that it uses, and the parts of it that training and inference depend on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import Field, model_validator

from vexkd.settings import checks
from vexkd.settings.base import (
    AFTER_TRAINING,
    COST,
    MODEL,
    TEACHING,
    TRAINING,
    Decides,
    Strict,
    all_but,
    all_of,
    blocks_of,
    marker,
)
from vexkd.settings.data import BevAugment, Data, ImageAugment, Paste
from vexkd.settings.distillation import Distill
from vexkd.settings.heads import HEADS, CenterPoint, Detr, Inference, MapHead, TransFusion
from vexkd.settings.messages import validated
from vexkd.settings.model import Bev, Camera, ConvFuser, Lidar, Mgfm, NoEncoder, ResNetEncoder, SecondEncoder
from vexkd.settings.training import Train

Kind = Literal["pretrained", "teachers", "students", "distilled"]
KINDS: tuple[Kind, ...] = ("pretrained", "teachers", "students", "distilled")


class Run(Strict):
    """One named row with every setting that it uses, and none that it does not."""

    name: Annotated[str, TEACHING]
    kind: Annotated[Kind, TEACHING]
    task: Annotated[Literal["detection", "segmentation"], COST]  # of the deployed model the head says it
    sensors: Annotated[list[Literal["lidar", "camera"]], Len(1), MODEL]
    head: Annotated[Literal["centerpoint", "transfusion", "detr", "map"], MODEL]
    fusion: Annotated[Literal["mgfm", "conv"] | None, MODEL] = None
    start: Annotated[str | None, TRAINING] = None
    student: Annotated[str | None, TEACHING] = None
    teacher: Annotated[str | None, TEACHING] = None
    data: Data
    bev: Annotated[Bev, MODEL]
    bev_augment: Annotated[BevAugment, TRAINING]
    image_augment: Annotated[ImageAugment | None, TRAINING] = None
    paste: Annotated[Paste | None, TRAINING] = None
    lidar: Annotated[Lidar | None, MODEL] = None
    camera: Annotated[Camera | None, MODEL] = None
    mgfm: Annotated[Mgfm | None, MODEL] = None
    conv_fuser: Annotated[ConvFuser | None, MODEL] = None
    bev_encoder: Annotated[SecondEncoder | ResNetEncoder | NoEncoder, Field(discriminator="kind"), MODEL]
    centerpoint: Annotated[CenterPoint | None, MODEL] = None
    transfusion: Annotated[TransFusion | None, MODEL] = None
    detr: Annotated[Detr | None, MODEL] = None
    map: Annotated[MapHead | None, MODEL] = None
    train: Train
    distill: Distill | None = None
    inference: Annotated[Inference, AFTER_TRAINING]

    @model_validator(mode="after")
    def _has_its_parts(self) -> Run:
        """What the run's sensors, head and fusion read is there, and fits together."""
        if (len(self.sensors) == 2) != (self.fusion is not None):
            raise ValueError(
                "fusion: it belongs to a run with both sensors, and to no other; correct fusion or sensors"
            )
        needed = {*self.sensors, self.head} | ({"image_augment"} if "camera" in self.sensors else set())
        needed |= {"distill"} if self.kind == "distilled" else set()
        needed |= {None: set(), "mgfm": {"mgfm"}, "conv": {"conv_fuser"}}[self.fusion]
        for name in sorted(needed):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: the run needs this block of settings; add it")
        if (self.task == "segmentation") != (self.head == "map"):
            raise ValueError("head: map belongs to the task segmentation, and to no other; correct head or task")
        if self.task == "detection" and getattr(self.inference, self.head) is None:
            raise ValueError(f"inference.{self.head}: the run needs this block of settings; add it")
        for problem in checks.problems(self):
            raise ValueError(problem)
        return self

    def values(self, decides: Decides) -> dict[str, Any]:
        """The settings that decide any of these, as plain values; those that are null are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude=all_but(type(self), decides), exclude_none=True)

    def training(self) -> dict[str, Any]:
        """What the weights depend on, as plain values: all but `inference` and the split to score on."""
        return self.values(Decides.WEIGHTS)

    def after_training(self) -> dict[str, Any]:
        """What predictions depend on besides the weights, as plain values: `inference` and `data.val_split`."""
        values = self.values(Decides.RESULTS)
        return {**values["inference"], **{key: values[block][key] for block, key in _after_training_elsewhere()}}

    def besides_teaching(self) -> dict[str, Any]:
        """All settings that a distilled run must share with its student if their difference is to be the teaching.

        They are without names and `distill`, and without blocks that only labels for the teacher's head need.
        """
        apart = all_of(type(self), Decides.TEACHING | Decides.RESULTS)
        values = self.model_dump(mode="json", by_alias=True, exclude=apart, exclude_none=True)
        shared = {key: value for key, value in values.items() if key not in HEADS or key == self.head}
        return shared | {"inference": self.after_training()}


@cache
def _after_training_elsewhere() -> list[tuple[str, str]]:
    """Settings after training that stand in another block than `inference`: the block and the key."""
    return [
        (block, key)
        for block, field in Run.model_fields.items()
        if marker(field) is None
        for key, inner in blocks_of(field)[0].model_fields.items()
        if marker(inner) == AFTER_TRAINING
    ]


def from_values(training: dict[str, Any], inference: dict[str, Any], where: str) -> Run:
    """A run from plain values, such as those in the header of a weights file; `where` says in errors what was read.

    Up to version 0.1 the split to score on was recorded among the training settings; it may still be.
    """
    values = {**training, "inference": inference}
    for block, key in _after_training_elsewhere():
        if isinstance(inference, dict) and key in inference and isinstance(training.get(block), dict):
            values[block] = {**values[block], key: inference[key]}
            values["inference"] = {name: value for name, value in values["inference"].items() if name != key}
    return validated(Run, values, where)


def training_part(values: dict[str, Any]) -> dict[str, Any]:
    """Recorded training settings of any version, without those that are settings after training now."""
    kept = dict(values)
    for block, key in _after_training_elsewhere():
        if isinstance(kept.get(block), dict):
            kept[block] = {name: value for name, value in kept[block].items() if name != key}
    return kept


def with_inference(run: Run, values: dict[str, Any]) -> Run:
    """The same run with other settings of what follows training (see `Run.after_training`)."""
    return from_values(run.training(), values, run.name)


def unequal(first: Any, second: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two settings differ: the path and both values, None for one that is absent; a whole block where one lacks it."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from unequal(first.get(key), second.get(key), f"{path}.{key}" if path else str(key))
    elif first != second:
        yield path, first, second
