"""Predictions of nuScenes' test split as its evaluation server takes them: checked whole, zipped, with a note of their making.

Nobody but the server has the labels, and an entry counts: so everything that it would refuse is refused here. The zip holds
one JSON file; the same predictions make the same bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vexkd import code, content, provenance
from vexkd.data import infos as info_tools
from vexkd.errors import InputError
from vexkd.evaluate import submission_file
from vexkd.settings import Run

SPLIT = "test"
_FLAGS = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
_MOST_BOXES = 500  # per sample: nuScenes' rules
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def write(run: Run, seed: int, *, predictions: Path, weights: Path, infos: Path, manifest: Path, out: Path) -> str:
    """Check the predictions of one seed and write `out` (.zip) and the note beside it (.json); returns what was written.

    infos: of the test version. Raises InputError for a run that no server scores, and for predictions that are not of the
    whole test split, of these sensors or of these weights, or hold a box that nuScenes refuses; then nothing is written.
    """
    refuse_other_tasks(run)
    if out.suffix != ".zip":
        raise InputError(f"{out}: a submission is a .zip file; name one with --out.")
    if not predictions.is_file():
        raise InputError(f"{predictions}: there is no such file; make it with 'vexkd predict --split {SPLIT}'.")
    tokens = info_tools.load(infos).subset(SPLIT).tokens()
    submission = submission_file.read_submission(predictions, tokens, split=SPLIT, most=_MOST_BOXES)
    meta = _meta(submission.meta, run, weights, predictions)
    with provenance.atomic(out) as temporary:
        boxes = _zip(temporary, f"{out.stem}.json", meta, submission.samples)
    note = {
        "run": run.name,
        "seed": seed,
        "split": SPLIT,
        "samples": len(tokens),
        "boxes": boxes,
        "meta": meta,
        "zip": provenance.file_digest(out),
        "predictions": provenance.file_digest(predictions),
        "weights": provenance.file_digest(weights),
        "manifest": provenance.file_digest(manifest),
        "settings": run.training(),
        "inference": run.after_training(),
        "code": code.version(),
    }
    provenance.write_json(out.with_suffix(".json"), note)
    return f"{run.name} seed {seed}: {boxes} boxes in {len(tokens)} samples -> {out}, {out.with_suffix('.json')}"


def refuse_other_tasks(run: Run) -> None:
    """Raises InputError where the server has no labels for what a run predicts."""
    if run.task != "detection":
        raise InputError(
            f"{run.name}: nuScenes' server scores detections, and this run's task is {run.task}; name a detector."
        )


def _meta(made: dict[str, Any], run: Run, weights: Path, predictions: Path) -> dict[str, bool]:
    """The five flags that the server reads, if the predictions were made with all of the run's sensors and these weights."""
    own = {"use_camera": "camera" in run.sensors, "use_lidar": "lidar" in run.sensors}
    expected = {flag: own.get(flag, False) for flag in _FLAGS}
    found = {flag: made.get(flag) for flag in _FLAGS}
    if found != expected:
        differing = ", ".join(f"{flag}: {found[flag]}" for flag in _FLAGS if found[flag] != expected[flag])
        raise InputError(
            f"{predictions}: it was not made with the sensors of {run.name} ({differing}); predict the split again."
        )
    origin = made.get("made_from")
    if isinstance(origin, dict) and origin.get("weights") not in (None, *_weights_digests(weights)):
        raise InputError(f"{predictions}: it was made from other weights than {weights}; predict the split again.")
    return expected


def _weights_digests(weights: Path) -> tuple[str, str]:
    digests = content.Digests()
    return digests.file(weights), digests.tensors(weights)


def _zip(path: Path, name: str, meta: dict[str, bool], samples: Iterable[tuple[str, bytes, int]]) -> int:
    """Write the one file of the zip sample by sample; returns the number of boxes."""
    entry = zipfile.ZipInfo(name, _LONG_AGO)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    boxes = 0
    with zipfile.ZipFile(path, "w") as archive, archive.open(entry, "w", force_zip64=True) as stream:
        stream.write(f'{{"meta": {json.dumps(meta)}, "results": {{'.encode())
        for number, (token, text, count) in enumerate(samples):
            stream.write((", " if number else "").encode() + json.dumps(token).encode() + b": " + text)
            boxes += count
        stream.write(b"}}")
    return boxes
