"""A figure by the name of its files: what is drawn, from which files, with its record beside it."""

from __future__ import annotations

from typing import cast

from vexkd.errors import InputError
from vexkd.experiment import Experiment
from vexkd.report import records, sources
from vexkd.report.figures import (
    birdseye,
    charts,
    errors_from_above,
    inside_distillation,
    per_run,
    predicted_maps,
    six_images,
)
from vexkd.settings import FigureName


def draw(name: str, experiment: Experiment, *, seed: int | None = None, sample: str | None = None) -> None:
    """Write results/figures/NAME.{png,svg,csv,provenance.json}.

    seed: of the trained weights that a picture shows, by default the first. sample: the token of the keyframe that it shows,
    by default the fullest of the split. Raises InputError where the settings have no such figure.
    """
    params = experiment.params
    known = sources.figures(params)
    if name not in known:
        raise InputError(f"{params.path}: there is no figure {name}; there are {', '.join(known)}.")
    kind, rows = known[name].kind, known[name].rows
    if kind in ("curves", "distillation"):
        {"curves": per_run.curves, "distillation": per_run.distillation}[kind](
            params=params, results=experiment.results
        )
        records.of_chart(kind, params, experiment.results)
    elif kind == name:
        charts.make(cast(FigureName, name), params=params, results=experiment.results)
    else:
        _picture(kind, rows[0], experiment, params.seeds[0] if seed is None else seed, sample)


def _picture(kind: str, run: str, experiment: Experiment, seed: int, sample: str | None) -> None:
    """A figure of one keyframe."""
    row = experiment.params.run(run)
    segments = row.task == "segmentation"
    files = {"results": experiment.results, "models": experiment.models, "root": experiment.root}
    shared = {**files, "infos": experiment.infos, "seed": seed}
    places = sources.Places(experiment.results, experiment.models, experiment.infos, experiment.maps)
    if kind == "birdseye":
        birdseye.birdseye(run, **shared, sample=sample)
    elif kind == "maps":
        predicted_maps.maps(run, **shared, rasters=experiment.maps, sample=sample)
    elif kind in ("camera", "errors"):
        compare = {"camera": six_images.camera, "errors": errors_from_above.errors}[kind]
        compare(row.student, run, **shared, sample=sample)
    elif kind == "energy":
        inside_distillation.energy(run, **shared)
    else:
        inside_distillation.masks(run, **shared, maps=experiment.maps if segments else None)
    records.of_sample(
        kind,
        run,
        student=row.student if kind in ("camera", "errors") else None,
        places=places,
        seed=seed,
        sample=sample,
        maps=kind == "masks" and segments,
    )
