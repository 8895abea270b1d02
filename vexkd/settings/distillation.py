"""Settings of distillation: what a student learns from its teacher, where, and for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import Field, model_validator

from vexkd.settings.base import TEACHING, TEACHING_COST, Strict
from vexkd.settings.heads import DENSE_HEADS

Method = Literal["unidistill", "bevdistill", "fgd", "distillbev", "maskd", "s2m2"]
Mask = Literal["none", "ones", "key-points", "gaussian", "activation", "random-query", "learned-query"]
Loss = Literal["attention", "l1", "l2", "smooth-l1", "pkd", "cwd", "mgd"]


class Distill(Strict):
    """What a student learns from its teacher. Where a setting is null, the code uses the published value named beside it."""

    method: Annotated[Method | None, TEACHING_COST] = Field(
        default=None,
        description="a published method as a whole, with its own masks and losses, in place of VeXKD; null: VeXKD",
    )
    levels: Annotated[list[Literal["low", "high"]], Len(1, 2), TEACHING_COST]
    mask: Annotated[Mask, TEACHING] = Field(
        description="where to distil; none and ones are the same, everywhere (complete mimic). A student that is not "
        "distilled at all is a row of `students`"
    )
    mask_blocks: Annotated[int, TEACHING_COST] = Field(
        ge=1, description="transformer blocks of a learned mask, 1 to 6 in Fig. 5"
    )
    mask_heads: Annotated[int, TEACHING_COST]
    mask_points: Annotated[int, TEACHING_COST]
    mask_ffn: Annotated[int, TEACHING_COST]
    mask_dropout: Annotated[float, TEACHING]
    mask_bias: Annotated[float, TEACHING] = Field(
        description="initial value of the mask's last bias: sigmoid(2) = 0.88"
    )
    temperature: Annotated[float | None, TEACHING_COST] = Field(
        default=None, gt=0, description="of the activation mask and of FGD's attention"
    )
    loss: Annotated[Loss, TEACHING_COST]
    power: Annotated[Literal[1, 2], TEACHING] = Field(description="p of the channel sum of |F|^p")
    tau: Annotated[float | None, TEACHING_COST] = Field(default=None, gt=0, description="temperature of the loss cwd")
    hidden: Annotated[float | None, TEACHING_COST] = Field(
        default=None, ge=0, lt=1, description="share of the cells that the loss mgd hides"
    )
    lambda_: Annotated[float, TEACHING] = Field(
        alias="lambda", description="weight of the distillation loss for the student, Eq. 8"
    )
    mu: Annotated[float, TEACHING] = Field(description="weight of the distillation loss for the masks, Eq. 5")
    weights: Annotated[dict[str, float] | None, TEACHING_COST] = Field(
        default=None,
        description="replace published weights by name: the scale of a loss before lambda, or a method's terms",
    )
    coupling: Annotated[Literal["detached", "summed"], TEACHING_COST] = Field(
        description="detached: student and masks each see only their own objective; summed: both see the sum"
    )
    stop_mask_epoch: Annotated[int | None, TEACHING] = Field(
        default=None, description="first epoch in which the masks no longer learn, counted from 0; null: they always do"
    )
    stop_mask_iteration: Annotated[int | None, TEACHING_COST] = Field(
        default=None, description="the same by the number of steps"
    )
    monitor_every: Annotated[int | None, TEACHING_COST] = Field(
        default=None, ge=0, description="steps between two measurements of each loss term's gradient; null or 0: never"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, values: Any) -> Any:
        """`method: vexkd` is the default, and a published method uses none of VeXKD's masks."""
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
        """Why this cannot be done for a task, these heads and the teacher's fusion, as a sentence; None if it can.

        teacher, fusion: None where only the student is known.
        """
        if task == "segmentation" and self.mask in ("key-points", "gaussian"):
            return f"mask: {self.mask} is drawn from boxes, which {task} lacks; choose another mask"
        if task == "segmentation" and self.method not in (None, "maskd"):
            return f"method: {self.method} needs boxes, which {task} lacks; choose maskd, or leave it out for VeXKD"
        heads = {"unidistill": (student, teacher), "s2m2": (student, teacher), "distillbev": (teacher,)}
        for head in heads.get(self.method or "", ()):
            if head is not None and head not in DENSE_HEADS:
                known = " or ".join(DENSE_HEADS)
                return f"method: {self.method} reads heatmaps, which the head {head} lacks; use {known}"
        if self.mask == "learned-query" and teacher is not None and fusion != "mgfm":
            return (
                "mask: learned-query starts from the query of a teacher with fusion: mgfm; choose such a teacher or "
                "another mask"
            )
        return None
