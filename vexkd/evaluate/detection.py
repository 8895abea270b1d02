"""nuScenes' detection metric on prediction files, computed by nuscenes-devkit's own code.

mAP: centre distance at 0.5, 1, 2, 4 m in the ground plane. True-positive errors at 2 m: mATE (m), mASE (1 - IoU),
mAOE (rad), mAVE (m/s), mAAE (1 - accuracy). NDS = (5 mAP + sum over the five errors of 1 - min(1, error)) / 10.
All scores are fractions in [0, 1]; boxes are in the global frame, as nuScenes' submission format has them.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.evaluate import resamples, seed_files

# Our name of each mean error -> the devkit's name of the error.
ERRORS = {"mATE": "trans_err", "mASE": "scale_err", "mAOE": "orient_err", "mAVE": "vel_err", "mAAE": "attr_err"}
SUMMARY = ("mAP", "NDS", *ERRORS)


def evaluate(predictions: Path, *, root: Path, version: str, split: str, config: str) -> dict[str, Any]:
    """Score one prediction file; see `evaluate_many`."""
    return evaluate_many({"": predictions}, root=root, version=version, split=split, config=config)[""]


def evaluate_many(
    predictions: dict[str, Path], *, root: Path, version: str, split: str, config: str
) -> dict[str, dict[str, Any]]:
    """Score nuScenes submission files on one split, reading the data set's tables once.

    `predictions` maps any name to a file; `config` names one of the devkit's configurations ("detection_cvpr_2019").
    Returns by name {"mAP", "NDS", the five mean errors, "AP": {class: mean over thresholds}, "errors": {class: {error:
    value, or None where nuScenes defines none}}}. A file without a single box scores 0 with errors of 1. Raises
    InputError for a data set, split or configuration that is not there, and for a file that is malformed or incomplete.
    """
    opened = _boxes(predictions, root=root, version=version, split=split, config=config)
    return {name: _score(*boxes) for name, *boxes in opened}


def _boxes(
    predictions: dict[str, Path], *, root: Path, version: str, split: str, config: str
) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """Of each file: its name, the devkit's handle, ground truth and predictions, and the configuration; one at a time."""
    settings = _configuration(config)
    for path in predictions.values():
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such prediction file; make it with 'vexkd predict'.")
    with _quiet():
        nusc = _open(Path(root), version)
        truth, custom = _ground_truth(nusc, split, settings)
        for name, path in predictions.items():
            yield name, nusc, truth, _predicted(nusc, Path(path), truth, split, custom, settings), settings


def collect(
    run: str, *, models: Path, results: Path, root: Path, version: str, split: str, config: str, seeds: list[int]
) -> None:
    """Score every seed of a run: models/<run>/seed<k>/{predictions.json,curve.csv,provenance.json} in,
    results/runs/<run>/{metrics.json,curve.csv,provenance.json,resamples.json} out.

    Top-level metrics are means over the seeds, `seeds` has each seed's own, `spread` their sample standard deviations
    (null for one seed). Raises InputError for a missing file and for whatever `evaluate_many` refuses; then nothing is
    written.
    """
    found = seed_files.read(run, models=models, seeds=seeds, predictions="predictions.json")
    scores, drawn, scene_of = {}, {}, {}
    for seed, *boxes in _boxes(found.predictions, root=root, version=version, split=split, config=config):
        nusc, truth, predicted, settings = boxes
        scores[seed] = _score(*boxes)
        scene_of = {token: _scene(nusc, token) for token in truth.sample_tokens}
        drawn[seed] = resamples.of_detection(truth, predicted, scene_of, settings)
    resamples.save(Path(results) / "runs" / run / resamples.FILE, list(scene_of.values()), drawn)
    dataset = {"version": version, "split": split}
    seed_files.write(found, summarise(scores), results=results, dataset=dataset, config=config)


def summarise(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, then `n`, `spread` (sample standard deviations, None for one seed) and `seeds`."""
    return seed_files.summarise(scores, spread=(*SUMMARY, "AP"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the devkit's prints and progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _configuration(name: str) -> Any:
    """The devkit's detection configuration of this name."""
    from nuscenes.eval.detection.config import config_factory

    try:
        return config_factory(name)
    except AssertionError:
        raise InputError(
            f"inference.evaluation: nuscenes-devkit has no configuration '{name}'; use detection_cvpr_2019."
        ) from None


def _open(root: Path, version: str) -> Any:
    """The devkit's handle on a data set."""
    from nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{root / version}: nuscenes-devkit cannot read this data set ({_first_line(error)}); run 'vexkd doctor'."
        ) from error


def _ground_truth(nusc: Any, split: str, settings: Any) -> tuple[Any, bool]:
    """The filtered ground-truth boxes of a split by sample, and whether the split comes from splits.json."""
    from nuscenes.eval.common import loaders
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.utils.splits import is_predefined_split

    custom = not is_predefined_split(split_name=split)
    try:
        if custom:
            tokens = loaders.get_samples_of_custom_split(split_name=split, nusc=nusc)
            truth = loaders.load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
        else:
            truth = loaders.load_gt(nusc, split, DetectionBox)
    except (AssertionError, ValueError) as error:
        raise InputError(
            f"data.val_split: split '{split}' is not in {nusc.version} ({_first_line(error)}); name another split."
        ) from error
    if not truth.all:
        raise InputError(
            f"data.val_split: split '{split}' of {nusc.version} has no annotated box, so nothing can be scored; "
            "name a split that has annotations."
        )
    truth = loaders.add_center_dist(nusc, truth)
    return loaders.filter_eval_boxes(nusc, truth, settings.class_range), custom


def _predicted(nusc: Any, path: Path, truth: Any, split: str, custom: bool, settings: Any) -> Any:
    """The filtered boxes of a prediction file by sample, every sample of the split among them."""
    from nuscenes.eval.common import loaders
    from nuscenes.eval.common.data_classes import EvalBoxes

    results = _content(path)["results"]
    wanted = truth.sample_tokens
    _refuse_other_samples(path, results, wanted, split, more=custom)
    boxes = EvalBoxes()
    for token in wanted:
        boxes.add_boxes(token, _boxes_of(path, token, results[token], settings.max_boxes_per_sample))
    if not boxes.all:  # the devkit's filter cannot tell the box type of an empty set
        return boxes
    return loaders.filter_eval_boxes(nusc, loaders.add_center_dist(nusc, boxes), settings.class_range)


def read_submission(path: Path, wanted: Sequence[str], *, split: str, most: int) -> tuple[dict[str, Any], int]:
    """The content of a submission file that holds these samples and no others, each box checked, and how many boxes it has.

    wanted: the sample tokens of the split. most: boxes that a sample may have. Raises InputError as scoring does, and for
    an attribute that the box's class does not have.
    """
    from nuscenes.eval.detection.utils import detection_name_to_rel_attributes

    attributes = {name: ("", *detection_name_to_rel_attributes(name)) for name in CLASSES}
    content = _content(path)
    results = content["results"]
    _refuse_other_samples(path, results, wanted, split, more=False)
    count = 0
    for token in wanted:
        for index, box in enumerate(_boxes_of(path, token, results[token], most)):
            count += 1
            if box.attribute_name not in attributes[box.detection_name]:
                raise InputError(
                    f"{path}: sample {token}, box {index}: a {box.detection_name} has no attribute"
                    f" {box.attribute_name}; predict again."
                )
    return content, count


def _refuse_other_samples(
    path: Path, results: dict[str, Any], wanted: Sequence[str], split: str, *, more: bool
) -> None:
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


def _content(path: Path) -> dict[str, Any]:
    """A submission file with its `meta` and `results`."""
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise InputError(f"{path}: there is no mapping 'results'; write nuScenes' detection submission format.")
    if not isinstance(content.get("meta"), dict):
        raise InputError(f"{path}: there is no mapping 'meta'; write nuScenes' detection submission format.")
    return content


def _boxes_of(path: Path, token: str, rows: Any, most: int) -> list[Any]:
    """One sample's boxes as the devkit's, each checked."""
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
            raise InputError(f"{where}, box {index}: {_first_line(error)}; predict again.") from None
        if not np.isfinite(numbers).all() or np.isinf(velocity).any():
            raise InputError(f"{where}, box {index}: a value is not finite; look for the step where training diverged.")
        if min(box.size) <= 0:
            raise InputError(f"{where}, box {index}: size {box.size} is not positive; predict again.")
        if box.sample_token != token:
            raise InputError(f"{where}, box {index}: it names another sample, {box.sample_token}; predict again.")
        boxes.append(box)
    return boxes


def _score(nusc: Any, truth: Any, predicted: Any, settings: Any) -> dict[str, Any]:
    """The metric as plain numbers; the loop over classes and thresholds is the devkit's own."""
    from nuscenes.eval.detection.evaluate import DetectionEval

    scorer = DetectionEval.__new__(DetectionEval)  # its constructor reads the tables again and makes folders
    scorer.nusc, scorer.cfg, scorer.verbose = nusc, settings, False
    scorer.gt_boxes, scorer.pred_boxes = truth, predicted
    metrics, _ = scorer.evaluate()
    errors = metrics.tp_errors
    return {
        "mAP": metrics.mean_ap,
        "NDS": metrics.nd_score,
        **{name: errors[theirs] for name, theirs in ERRORS.items()},
        "AP": {name: float(metrics.mean_dist_aps[name]) for name in CLASSES},
        "errors": {
            name: {error: _or_none(metrics.get_label_tp(name, error)) for error in ERRORS.values()} for name in CLASSES
        },
    }


def _scene(nusc: Any, sample: str) -> str:
    """The name of a sample's scene."""
    return nusc.get("scene", nusc.get("sample", sample)["scene_token"])["name"]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: this is not JSON ({_first_line(error)}); make the file again.") from error


def _first_line(error: Exception) -> str:
    """An exception's first line without the devkit's prefix and full stop."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("Error: ").rstrip(".!")
