"""What a distilled student, the same student alone and their teacher make of one keyframe, and where the masks look.

The energy of a BEV map is the sum of |F| over its channels (Eq. 6 with p = 1; Fig. 8 of the paper). Mask nets are no part of
a student's weights; a training that learned them leaves them beside these, in masks.safetensors.
B batch, C channels, Y X BEV.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vexkd.batch import Batch, collate
from vexkd.content import Digests
from vexkd.data import inspection as files
from vexkd.data.infos import Infos
from vexkd.data.infos import load as load_infos
from vexkd.data.inspection import LEVELS, Name
from vexkd.distill import masks as mask_parts
from vexkd.distill.losses import energy
from vexkd.errors import InputError
from vexkd.experiment import Experiment, Training
from vexkd.models.bev_model import BEVModel
from vexkd.settings import Run
from vexkd.train import checkpoint, tasks


@torch.no_grad()
def inspect(
    name: str, experiment: Experiment, *, root: Path, infos: Path, seed: int, sample: str | None = None
) -> Path:
    """Write models/<run>/seed<k>/inspection.safetensors of a distilled run, on the CPU; returns its path.

    Each model sees the keyframe as it does when it predicts. sample: a token of the validation split; None: the one with
    most valid boxes, which the other figures show too. Raises InputError for a run that is not distilled, an unknown
    sample, and weights or masks that are missing or of another training.
    """
    weights = experiment.training(name, seed).weights
    model, run = checkpoint.load_model(weights)
    if run.student is None or run.teacher is None or run.distill is None:
        raise InputError(f"{weights}: the run {name} has no teacher to be compared with; name a distilled run.")
    teacher, teacher_run = checkpoint.load_model(experiment.training(run.teacher, seed).weights)
    student, student_run = checkpoint.load_model(experiment.training(run.student, seed).weights)
    known = load_infos(infos)
    token = _token(known.subset(run.data.val_split), sample)
    maps: dict[Name, np.ndarray] = {}
    for each, its_run in ((student, student_run), (model, run)):
        maps |= _energies(its_run.name, each.features(_batch(its_run, root, known, token)))
    batch = _batch(teacher_run, root, known, token)
    teacher_features = teacher.features(batch)
    maps |= _energies(teacher_run.name, teacher_features)
    masks = load_masks(run, teacher, weights)
    if masks is not None:
        maps |= {
            Name("mask", name, level): mask[0, 0].numpy() for level, mask in masks(teacher_features, batch).items()
        }
    path = experiment.training(name, seed).inspection
    origin = {"run": name, "student": run.student, "teacher": run.teacher, "seed": seed, "sample": token}
    trainings = {each: experiment.training(each, seed) for each in (name, run.student, run.teacher)}
    origin["made_from"] = _made_from(trainings, infos)
    with checkpoint.writing(path):
        files.write(path, maps, grid=model.grid, **origin, task=run.task, mask=run.distill.mask)
    return path


def _made_from(trainings: dict[str, Training], infos: Path) -> dict[str, str]:
    """Hashes of the weights of these runs, by their names, and of the infos."""
    digests = Digests()
    hashes = {name: digests.file(training.weights) for name, training in trainings.items()}
    return {**hashes, "infos": digests.of(infos)}


def load_masks(run: Run, teacher: BEVModel, weights: Path) -> nn.Module | None:
    """The masks of a distilled run as its training left them, or drawn ones; None where it distils everywhere.

    weights: the student's, whose training the learned masks must be of. Masks of a published method are its own affair.
    """
    if run.distill.method is not None:
        return None
    masks = mask_parts.build(run.distill, teacher, run.teacher)
    if isinstance(masks, mask_parts.LearnedMasks):
        path = weights.with_name(checkpoint.MASKS)
        if not path.is_file():
            raise InputError(f"{path}: the masks that the run {run.name} learned are not there; train it again.")
        header, expected = checkpoint.read_header(path), checkpoint.read_header(weights)
        if any(header[key] != expected[key] for key in ("settings", "inputs", "provenance")):
            raise InputError(f"{path}: these masks are not of the training that made {weights}; train the run again.")
        checkpoint.load_strictly(masks, checkpoint.read_tensors(path), str(path))
    return masks.eval() if masks is not None else None


def _token(split: Infos, sample: str | None) -> str:
    """The sample to inspect: the named one, or the one with most valid boxes."""
    tokens = split.tokens()
    if sample is None and tokens:
        return tokens[max(range(len(tokens)), key=lambda row: int(split[row].valid.sum()))]
    if sample not in tokens:
        raise InputError(
            f"sample {sample} is none of the {len(tokens)} of the validation split; name one of its tokens."
        )
    return sample


def _batch(run: Run, root: Path, infos: Infos, token: str) -> Batch:
    """The sample alone, as the run reads it when it predicts."""
    dataset = tasks.validation_set(run, root=root, infos=infos)
    return collate([dataset[dataset.infos.tokens().index(token)]])


def _energies(run: str, features: dict[str, Tensor]) -> dict[Name, np.ndarray]:
    """Energy maps (Y, X) of a model's two maps (1, C, Y, X)."""
    return {
        Name("energy", run, level): energy(features[level], None, 1).reshape(features[level].shape[-2:]).numpy()
        for level in LEVELS
    }
