"""Figures of an experiment, by the name of their files: each is a PNG, an SVG, the CSV of what is drawn, and its record."""

from __future__ import annotations

from vexkd.errors import InputError
from vexkd.report import records, sources
from vexkd.report.figures import charts, inside_distillation
from vexkd.report.figures.birdseye import birdseye
from vexkd.report.figures.curves import curves
from vexkd.report.figures.distillation import distillation
from vexkd.report.figures.errors_from_above import errors
from vexkd.report.figures.predicted_maps import maps
from vexkd.report.figures.six_images import camera
from vexkd.report.results import Results

OF_ALL_RUNS = {"curves": curves, "distillation": distillation}
OF_NAMED_ROWS = {"blocks": charts.blocks, "missing-sensor": charts.missing_sensor, "latency": charts.latency}
BESIDE_STUDENT = {"camera": camera, "errors": errors}
OF_INSPECTION = {"energy": inside_distillation.energy, "masks": inside_distillation.masks}


def draw(name: str, results: Results, *, seed: int | None = None, sample: int | str | None = None) -> None:
    """Write results/figures/NAME.{png,svg,csv,provenance.json}.

    seed: of the trained weights that a picture shows, by default the first. sample: the token of the keyframe that it shows,
    by default the fullest of the split. Raises InputError where the settings have no such figure.
    """
    params, known = results.params, sources.figures(results.params)
    if name not in known:
        raise InputError(f"{params.path}: there is no figure {name}; there are {', '.join(known)}.")
    kind, rows = known[name].kind, known[name].rows
    if kind in OF_ALL_RUNS:
        OF_ALL_RUNS[kind](results)
    elif kind in OF_NAMED_ROWS:
        OF_NAMED_ROWS[kind]([results.run(row) for row in rows], results)
    else:
        _picture(kind, rows[0], results, params.seeds[0] if seed is None else seed, sample)
    records.write_figure(name, params, results.experiment, seed=seed, sample=sample)


def _picture(kind: str, name: str, results: Results, seed: int, sample: int | str | None) -> None:
    """A figure of one keyframe."""
    experiment, run = results.experiment, results.run(name)
    if kind == "birdseye":
        birdseye(name, experiment, seed=seed, sample=sample)
    elif kind == "maps":
        maps(run, experiment, seed=seed, sample=sample)
    elif kind in BESIDE_STUDENT:
        BESIDE_STUDENT[kind](str(run.settings.student), name, experiment, seed=seed, sample=sample)
    else:
        OF_INSPECTION[kind](name, experiment, seed=seed)
