"""nuScenes' submission files for detection, read into columns.

The fast way decodes one sample's boxes at a time into structs and moves them into arrays; it knows nothing of errors.
A sample that it cannot take, or whose numbers look wrong, goes through nuscenes-devkit's own box class, whose verdict
holds and whose message names the box. Python writes NaN, an unknown velocity, as a bare word, which is no JSON: such words
become null first, and null becomes NaN again in the arrays.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.evaluate.box_columns import ATTRIBUTE_NUMBER, ATTRIBUTES, CLASS_NUMBER, Boxes

_TOGETHER = 16  # samples whose boxes become arrays at a time
_NAN, _BEFORE_NUMBER, _AFTER_NUMBER = b"NaN", b"[,: \t\r\n", b",]} \t\r\n"
_Three = tuple[float, float, float]
_ClassName = Literal[CLASSES]  # type: ignore[valid-type]
_AttributeName = Literal[tuple(ATTRIBUTE_NUMBER)]  # type: ignore[valid-type]


class _Box(msgspec.Struct, gc=False):
    """One box as the submission format has it, and the two keys that the devkit reads beside it."""

    sample_token: str
    translation: _Three
    size: _Three
    rotation: tuple[float, float, float, float]
    velocity: tuple[float | None, float | None]
    detection_name: _ClassName
    detection_score: float
    attribute_name: _AttributeName
    num_pts: int = -1
    ego_translation: _Three = (0.0, 0.0, 0.0)


class _File(msgspec.Struct, gc=False):
    """The two parts of a submission file."""

    meta: dict[str, msgspec.Raw]
    results: dict[str, msgspec.Raw]


_DECODER = msgspec.json.Decoder(list[_Box])


def read(path: Path, tokens: Sequence[str], *, split: str, most: int, custom: bool) -> Boxes:
    """The boxes of a submission file in the devkit's order: of the file, or, of a split of splits.json, of `tokens`.

    tokens: the samples of the split; a box's `sample` is a number into them. most: boxes that a sample may have. Raises
    InputError for a file that is malformed or incomplete, or holds a bad box, which it names.
    """
    texts = _split(path)
    refuse_other_samples(path, texts.by_sample, tokens, split, more=custom)
    number = {token: i for i, token in enumerate(tokens)}
    order = list(tokens) if custom else list(texts.by_sample)
    groups = [order[start : start + _TOGETHER] for start in range(0, len(order), _TOGETHER)]
    with _no_collection():
        parts = [_group(path, texts, {token: number[token] for token in group}, most) for group in groups]
    return Boxes(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Boxes)})


@dataclass(frozen=True)
class Submission:
    """A checked submission file: its `meta`, and the boxes of each sample as JSON text, of which one is made at a time."""

    meta: dict[str, Any]
    samples: Iterator[tuple[str, bytes, int]]  # token, text, number of boxes


def read_submission(path: Path, wanted: Sequence[str], *, split: str, most: int) -> Submission:
    """A submission file that holds these samples and no others; its boxes are checked as its samples are gone through.

    wanted: the sample tokens of the split. most: boxes that a sample may have. Raises InputError as scoring does, here or
    in going through the samples, and for an attribute that the box's class does not have.
    """
    texts = _split(path)
    refuse_other_samples(path, texts.by_sample, wanted, split, more=False)
    return Submission(texts.meta, _checked_samples(path, texts, wanted, most))


def _checked_samples(path: Path, texts: _Texts, wanted: Sequence[str], most: int) -> Iterator[tuple[str, bytes, int]]:
    """Each sample's token, text and number of boxes, checked some samples at a time."""
    from nuscenes.eval.detection.utils import detection_name_to_rel_attributes

    allowed = np.zeros((len(CLASSES), len(ATTRIBUTES)), dtype=bool)
    for name, number in CLASS_NUMBER.items():
        allowed[number, [ATTRIBUTE_NUMBER[a] for a in ("", *detection_name_to_rel_attributes(name))]] = True
    for start in range(0, len(wanted), _TOGETHER):
        tokens = wanted[start : start + _TOGETHER]
        boxes = _group(path, texts, {token: number for number, token in enumerate(tokens)}, most)
        counts = np.bincount(boxes.sample, minlength=len(tokens))
        wrong = np.flatnonzero(~allowed[boxes.label, boxes.attribute])
        if len(wrong):
            sample, index = boxes.sample[wrong[0]], wrong[0] - counts[: boxes.sample[wrong[0]]].sum()
            raise InputError(
                f"{path}: sample {tokens[sample]}, box {index}: a {CLASSES[boxes.label[wrong[0]]]} has no attribute"
                f" {ATTRIBUTES[boxes.attribute[wrong[0]]]}; predict again."
            )
        for token, count in zip(tokens, counts.tolist(), strict=True):
            yield token, texts.written(token), count


def refuse_other_samples(path: Path, results: dict[str, Any], wanted: Sequence[str], split: str, *, more: bool) -> None:
    """The samples of a split are all there; none beside them but where `more` says so, as the devkit does for its own."""
    missing = [token for token in wanted if token not in results]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of the {len(wanted)} samples of split '{split}' are missing, the first is "
            f"{missing[0]}; predict the whole split (a sample without boxes keeps an empty list)."
        )
    extra = sorted(set(results) - set(wanted))
    if extra and not more:
        raise InputError(
            f"{path}: {len(extra)} samples are not in split '{split}', the first is {extra[0]}; predict that split."
        )


# ---- the file in parts


@dataclass(frozen=True)
class _Texts:
    """The boxes of each sample as the text that stands in the file; `nulled`: null stands for NaN there."""

    by_sample: dict[str, msgspec.Raw]
    meta: dict[str, Any]
    nulled: bool

    def written(self, token: str) -> bytes:
        """The boxes of a sample as they stand in the file."""
        return json.dumps(self.rows(token)).encode() if self.nulled else bytes(self.by_sample[token])

    def rows(self, token: str) -> Any:
        """The boxes of a sample as Python reads them."""
        text = bytes(self.by_sample[token])
        return json.loads(text.replace(b"null", b"NaN") if self.nulled else text)


def _split(path: Path) -> _Texts:
    """A file in parts: its `meta` and the texts of its samples."""
    decoder = msgspec.json.Decoder(_File)
    try:
        with path.open("rb") as stream:
            text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # lives as long as the texts, parts of it
        return _texts(decoder.decode(text), nulled=False)
    except (msgspec.MsgspecError, ValueError, OSError):
        pass
    nulled = _with_null(path)
    if nulled is not None:
        try:
            return _texts(decoder.decode(nulled), nulled=True)
        except msgspec.MsgspecError:
            pass
    content = _content(path)
    texts = {token: msgspec.Raw(json.dumps(rows).encode()) for token, rows in content["results"].items()}
    return _Texts(texts, content["meta"], nulled=False)


def _texts(file: _File, *, nulled: bool) -> _Texts:
    return _Texts(file.results, {name: json.loads(bytes(value)) for name, value in file.meta.items()}, nulled)


def _with_null(path: Path) -> bytes | None:
    """A file's text with null for each bare NaN; None where there is none, or where that could not be undone."""
    text = path.read_bytes()
    start = text.find(_NAN)
    if start < 0 or b"null" in text:
        return None
    while start >= 0:
        end = start + len(_NAN)
        if text[start - 1] not in _BEFORE_NUMBER or text[end] not in _AFTER_NUMBER:
            return None  # inside a text
        start = text.find(_NAN, end)
    return text.replace(_NAN, b"null")


def _content(path: Path) -> dict[str, Any]:
    """A submission file with its `meta` and `results`."""
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise InputError(f"{path}: there is no mapping 'results'; write nuScenes' detection submission format.")
    if not isinstance(content.get("meta"), dict):
        raise InputError(f"{path}: there is no mapping 'meta'; write nuScenes' detection submission format.")
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: this is not JSON ({first_line(error)}); make the file again.") from error


# ---- boxes


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for circles of references, of which millions of short-lived boxes have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _group(path: Path, texts: _Texts, number: dict[str, int], most: int) -> Boxes:
    """The boxes of some samples, by the fast way where nothing speaks against it. number: of each sample's token."""
    try:
        boxes = {token: _DECODER.decode(texts.by_sample[token]) for token in number}
    except msgspec.MsgspecError:
        boxes = {}
    columns = _columns(boxes, number) if boxes else None
    if columns is None or not _is_proper(columns, boxes, most, nan=texts.nulled):
        boxes = {
            token: [_converted(box) for box in checked_boxes(path, token, texts.rows(token), most)] for token in number
        }
        columns = _columns(boxes, number)
    return columns


def _is_proper(columns: Boxes, boxes: dict[str, list[_Box]], most: int, *, nan: bool) -> bool:
    """Whether no box needs a second look. nan: velocities may be unknown."""
    finite = all(
        np.isfinite(values).all() for values in (columns.translation, columns.size, columns.rotation, columns.score)
    )
    velocity = ~np.isinf(columns.velocity) if nan else np.isfinite(columns.velocity)
    return (
        finite
        and bool(velocity.all() and (columns.size > 0).all())
        and all(len(rows) <= most and {box.sample_token for box in rows} <= {token} for token, rows in boxes.items())
    )


def checked_boxes(path: Path, token: str, rows: Any, most: int) -> list[Any]:
    """One sample's boxes as the devkit's `DetectionBox`, each checked; raises InputError that names the box."""
    from nuscenes.eval.detection.data_classes import DetectionBox

    where = f"{path}: sample {token}"
    if not isinstance(rows, list):
        raise InputError(f"{where}: the boxes must be a list; predict again.")
    if len(rows) > most:
        raise InputError(f"{where}: {len(rows)} boxes, nuScenes allows {most}; lower inference.max_boxes.")
    boxes = []
    for index, row in enumerate(rows):
        try:
            box = DetectionBox.deserialize(row)
            numbers = np.array([*box.translation, *box.size, *box.rotation, row["detection_score"]], dtype=np.float64)
            velocity = np.array(box.velocity, dtype=np.float64)
        except KeyError as error:
            raise InputError(f"{where}, box {index}: key {error} is missing; predict again.") from None
        except (AssertionError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}, box {index}: {first_line(error)}; predict again.") from None
        if None in box.velocity:
            raise InputError(f"{where}, box {index}: its velocity is null; predict again.")
        if not np.isfinite(numbers).all() or np.isinf(velocity).any():
            raise InputError(f"{where}, box {index}: a value is not finite; look for the step where training diverged.")
        if min(box.size) <= 0:
            raise InputError(f"{where}, box {index}: size {box.size} is not positive; predict again.")
        if box.sample_token != token:
            raise InputError(f"{where}, box {index}: it names another sample, {box.sample_token}; predict again.")
        boxes.append(box)
    return boxes


def _converted(box: Any) -> _Box:
    """A box of the devkit's."""
    return _Box(
        sample_token=box.sample_token,
        translation=tuple(map(float, box.translation)),
        size=tuple(map(float, box.size)),
        rotation=tuple(map(float, box.rotation)),
        velocity=tuple(map(float, box.velocity)),
        detection_name=box.detection_name,
        detection_score=box.detection_score,
        attribute_name=box.attribute_name,
        num_pts=box.num_pts,
    )


def _columns(boxes: dict[str, list[_Box]], number: dict[str, int]) -> Boxes:
    """The boxes of some samples, in their order."""
    flat = [box for rows in boxes.values() for box in rows]
    counts = [len(rows) for rows in boxes.values()]

    def vectors(values: Iterable[tuple[float | None, ...]], length: int) -> np.ndarray:
        numbers = chain.from_iterable(values)
        return np.fromiter(numbers, np.float64, count=length * len(flat)).reshape(-1, length)

    def numbers(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return Boxes(
        sample=np.repeat(numbers([number[token] for token in boxes]), counts),
        label=numbers([CLASS_NUMBER[box.detection_name] for box in flat]),
        translation=vectors([box.translation for box in flat], 3),
        size=vectors([box.size for box in flat], 3),
        rotation=vectors([box.rotation for box in flat], 4),
        velocity=np.array([box.velocity for box in flat], dtype=np.float64).reshape(-1, 2),  # None becomes NaN
        score=np.array([box.detection_score for box in flat], dtype=np.float64),
        attribute=numbers([ATTRIBUTE_NUMBER[box.attribute_name] for box in flat]),
        points=numbers([box.num_pts for box in flat]),
    )


def first_line(error: Exception) -> str:
    """An exception's first line without the devkit's prefix and full stop."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("Error: ").rstrip(".!")
