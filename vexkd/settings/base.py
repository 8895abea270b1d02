"""What all sections of the settings share: strict blocks, the types of lists, and what each setting decides.

Every setting says on its own field what depends on it, as `epochs: Annotated[int, TRAINING]`. A block of which all settings
decide the same is marked as a whole, where it stands in another; otherwise each of its fields is marked, and the block is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Flag, auto
from functools import cache
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from vexkd.boxes import CLASSES

Pair = Annotated[list[float], Len(2, 2)]
Triple = Annotated[list[float], Len(3, 3)]
Six = Annotated[list[float], Len(6, 6)]
Ten = Annotated[list[float], Len(10, 10)]
Size = Annotated[list[int], Len(2, 2)]
ClassName = Literal[CLASSES]  # any one of them


class Decides(Flag):
    """What depends on a setting. Whatever no flag names may change without making anything again."""

    NOTHING = 0
    WEIGHTS = auto()  # what training makes
    DEPLOYED = auto()  # the model that is deployed, and what a sample costs it
    TRAINING_COST = auto()  # what a sample costs in training, besides the deployed model
    TEACHING = auto()  # in what a distilled run and its student differ by definition
    RESULTS = auto()  # predictions and scores of finished weights
    PREPARATION = auto()  # the data that are prepared once for all runs
    REPORT = auto()  # tables and figures


# The markers of the fields.
NOTHING = Decides.NOTHING
TRAINING = Decides.WEIGHTS  # changing it trains again
COST = Decides.WEIGHTS | Decides.TRAINING_COST
MODEL = Decides.WEIGHTS | Decides.DEPLOYED
TEACHING = Decides.WEIGHTS | Decides.TEACHING
TEACHING_COST = TEACHING | Decides.TRAINING_COST
AFTER_TRAINING = Decides.RESULTS  # changing it predicts or scores again, and does not retrain
PREPARATION = Decides.PREPARATION
REPORT = Decides.REPORT


class Strict(BaseModel):
    """A block of settings: unknown keys are refused, and no value is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False)


def marker(field: FieldInfo) -> Decides | None:
    """What a field says that it decides; None where it is a block whose own fields say so."""
    return next((value for value in field.metadata if isinstance(value, Decides)), None)


def blocks_of(field: FieldInfo) -> list[type[Strict]]:
    """The blocks of settings that a field may hold; none for a plain value."""
    return list(_blocks_in(field.annotation))


def _blocks_in(annotation: Any) -> Iterator[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for part in get_args(annotation):
        yield from _blocks_in(part)


def all_but(block: type[Strict], decides: Decides) -> dict[str, Any]:
    """The fields of a block that decide none of these, in the form of pydantic's `exclude`."""
    return _exclude(block, decides, False)


def all_of(block: type[Strict], decides: Decides) -> dict[str, Any]:
    """The fields of a block that decide any of these, in the form of pydantic's `exclude`."""
    return _exclude(block, decides, True)


@cache
def _exclude(block: type[Strict], decides: Decides, whether: bool) -> dict[str, Any]:
    """The fields of a block of which it is true, or not, that they decide any of these."""
    excluded: dict[str, Any] = {}
    for name, field in block.model_fields.items():
        decided = marker(field)
        if decided is not None:
            excluded |= {name: True} if bool(decided & decides) == whether else {}
            continue
        (inner,) = blocks_of(field)
        below = _exclude(inner, decides, whether)
        if below:
            excluded[name] = True if all(below.get(key) is True for key in inner.model_fields) else below
    return excluded
