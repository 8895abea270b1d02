"""Settings of the optimiser and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vexkd.settings.base import COST, TRAINING, Pair, Strict


class Ema(Strict):
    """The saved weights are an exponential moving average, as in BEVDet; see `vexkd.train.ema`."""

    decay: float = Field(gt=0, lt=1)
    ramp: float = Field(gt=0, description="updates after which the decay has reached 63 % of its value")
    updates: int = Field(ge=0, description="number at which the count of updates starts")


class Schedule(Strict):
    """Learning rate and Adam's beta1 over the course of a training."""

    kind: Literal["one-cycle", "warmup-cosine", "step"]
    peak: float = Field(description="highest learning rate over `lr` (one-cycle)")
    rise: float = Field(description="share of the training in which lr rises and beta1 falls")
    final: float = Field(description="last learning rate over `lr`")
    warmup: int = Field(description="iterations of linear warm-up (warmup-cosine, step)")
    warmup_from: float = Field(description="first learning rate of the warm-up over `lr`")
    beta1: Pair = Field(description="Adam's beta1 at both ends of the training, and at its lowest")
    milestones: list[int] | None = Field(
        default=None, description="epochs, counted from 0, at whose start the learning rate drops (step)"
    )
    gamma: float | None = Field(default=None, description="factor of the learning rate at each milestone (step)")

    @model_validator(mode="after")
    def _milestones_change_something(self) -> Schedule:
        if self.milestones and self.gamma is None:
            raise ValueError("milestones: they need gamma, by which each multiplies the learning rate; add it")
        return self


class Train(Strict):
    epochs: Annotated[int, TRAINING] = Field(ge=1)
    batch: Annotated[int, TRAINING] = Field(
        ge=1, description="samples per optimiser step, over all GPUs and accumulation steps"
    )
    lr: Annotated[float, TRAINING] = Field(gt=0)
    backbone_lr: Annotated[float, TRAINING] = Field(gt=0, description="learning rate of the image backbone over `lr`")
    weight_decay: Annotated[float, TRAINING]
    clip: Annotated[float, TRAINING] = Field(gt=0, description="largest norm of the gradient")
    precision: Annotated[Literal["fp32", "bf16", "fp16"], COST]
    sync_bn: Annotated[bool, TRAINING] = Field(description="statistics of BatchNorm over the global batch")
    schedule: Annotated[Schedule, TRAINING]
    ema: Annotated[Ema | None, TRAINING] = None
