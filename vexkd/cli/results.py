"""Results: tables, figures, the page, the README."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vexkd.cli.app import app
from vexkd.cli.options import (
    DistilledRun,
    InfosDir,
    Models,
    ParamsFile,
    Results,
    Root,
    RunName,
    SampleToken,
    Seed,
    Student,
)
from vexkd.errors import InputError

if TYPE_CHECKING:
    pass


@app.command(rich_help_panel="Results")
def clean(
    params: ParamsFile = Path("params.yaml"),
    remove: Annotated[bool, typer.Option("--remove", help="remove what is listed; the default only lists it")] = False,
) -> None:
    """List what runs, seeds, tables and figures that the settings no longer have left in results, models and dvc.lock."""
    from vexkd import leftovers
    from vexkd import settings as module

    settings = module.load(params)
    with contextlib.chdir(params.parent):
        found = leftovers.find(settings)
        for item in found:
            print(item)
        if remove:
            leftovers.remove(found)
            print(f"{len(found)} removed.")
        elif found:
            print("`vexkd clean --remove` removes these; DVC's cache and git's history keep what was recorded of them.")
        else:
            print(f"Nothing is left over from other settings than those of {params}.")


@app.command(rich_help_panel="Results")
def table(
    name: Annotated[str, typer.Argument(help="a table of the settings file")],
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
) -> None:
    """Write results/tables/NAME.{csv,md,tex} and its provenance from the runs' metrics."""
    from vexkd import settings as module
    from vexkd.report import result_tables

    result_tables.make(name, params=module.load(params), results=results)


figure = typer.Typer(help="Draw one of the figures into results/figures.")
app.add_typer(figure, name="figure", rich_help_panel="Results")


@figure.command()
def distillation(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Distilled students against their baselines, per class."""
    from vexkd import settings as module
    from vexkd.report import records
    from vexkd.report.figures import per_run

    settings = module.load(params)
    per_run.distillation(params=settings, results=results)
    records.of_chart("distillation", settings, results)


@figure.command()
def curves(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Training curves of all runs."""
    from vexkd import settings as module
    from vexkd.report import records
    from vexkd.report.figures import per_run

    settings = module.load(params)
    per_run.curves(params=settings, results=results)
    records.of_chart("curves", settings, results)


@figure.command()
def birdseye(
    run: RunName,
    root: Root,
    infos: InfosDir,
    models: Models = Path("models"),
    results: Results = Path("results"),
    seed: Seed = 0,
    sample: SampleToken = None,
) -> None:
    """Points, ground truth and predictions of one keyframe from above."""
    from vexkd.report import records, sources
    from vexkd.report.figures import birdseye as module

    module.birdseye(run, results=results, models=models, root=root, infos=infos, seed=seed, sample=sample)
    places = sources.Places(results, models, infos)
    records.of_sample("birdseye", run, places=places, seed=seed, sample=sample)


@figure.command()
def camera(
    run: DistilledRun,
    student: Student,
    root: Root,
    infos: InfosDir,
    models: Models = Path("models"),
    results: Results = Path("results"),
    seed: Seed = 0,
    sample: SampleToken = None,
) -> None:
    """Detections of two runs in the six images of one keyframe, errors marked."""
    from vexkd.report import records, sources
    from vexkd.report.figures import six_images as module

    module.camera(student, run, results=results, models=models, root=root, infos=infos, seed=seed, sample=sample)
    places = sources.Places(results, models, infos)
    records.of_sample("camera", run, student=student, places=places, seed=seed, sample=sample)


@figure.command()
def errors(
    run: DistilledRun,
    student: Student,
    root: Root,
    infos: InfosDir,
    models: Models = Path("models"),
    results: Results = Path("results"),
    seed: Seed = 0,
    sample: SampleToken = None,
) -> None:
    """Detections of two runs on one keyframe from above, errors marked."""
    from vexkd.report import records, sources
    from vexkd.report.figures import errors_from_above as module

    module.errors(student, run, results=results, models=models, root=root, infos=infos, seed=seed, sample=sample)
    places = sources.Places(results, models, infos)
    records.of_sample("errors", run, student=student, places=places, seed=seed, sample=sample)


@figure.command("energy")
def figure_energy(
    run: DistilledRun,
    root: Root,
    infos: InfosDir,
    models: Models = Path("models"),
    results: Results = Path("results"),
    seed: Seed = 0,
) -> None:
    """Energy of the BEV maps of a student alone, distilled, and of its teacher; from what `vexkd inspect` wrote."""
    from vexkd.report import records, sources
    from vexkd.report.figures import inside_distillation as module

    module.energy(run, results=results, models=models, root=root, infos=infos, seed=seed)
    records.of_sample("energy", run, places=sources.Places(results, models, infos), seed=seed)


@figure.command("masks")
def figure_masks(
    run: DistilledRun,
    root: Root,
    infos: InfosDir,
    maps: Annotated[Path | None, typer.Option(help="folder that `vexkd maps` wrote, for map segmentation")] = None,
    models: Models = Path("models"),
    results: Results = Path("results"),
    seed: Seed = 0,
) -> None:
    """Where a run distils, at each level of the BEV maps; from what `vexkd inspect` wrote."""
    from vexkd.report import records, sources
    from vexkd.report.figures import inside_distillation as module

    module.masks(run, results=results, models=models, root=root, infos=infos, seed=seed, maps=maps)
    places = sources.Places(results, models, infos, maps or Path(sources.MAPS))
    records.of_sample("masks", run, places=places, seed=seed, maps=maps is not None)


@figure.command("maps")
def figure_maps(
    run: RunName,
    root: Root,
    infos: InfosDir,
    maps: Annotated[Path, typer.Option(help="folder that `vexkd maps` wrote")] = Path("artifacts/maps"),
    models: Models = Path("models"),
    results: Results = Path("results"),
    seed: Seed = 0,
    sample: SampleToken = None,
) -> None:
    """Predicted against true maps of one keyframe, class by class."""
    from vexkd.report import records, sources
    from vexkd.report.figures import predicted_maps

    predicted_maps.maps(
        run, results=results, models=models, root=root, infos=infos, rasters=maps, seed=seed, sample=sample
    )
    places = sources.Places(results, models, infos, maps)
    records.of_sample("maps", run, places=places, seed=seed, sample=sample)


@figure.command()
def chart(
    name: Annotated[str, typer.Argument(help="blocks, missing-sensor, latency or one of your own")],
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
) -> None:
    """A chart of the rows that `figures` in the settings names."""
    from typing import cast

    from vexkd import settings as module
    from vexkd.report.figures import charts

    charts.make(cast(module.FigureName, name), params=module.load(params), results=results)


@app.command(rich_help_panel="Results")
def page(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Write results/report.html: every table, figure and run in one file to open in a browser."""
    from vexkd import settings as module
    from vexkd.report import page as pages

    print(pages.make(params=module.load(params), results=results))


@app.command(rich_help_panel="Results")
def readme(
    file: Annotated[Path, typer.Argument()] = Path("README.md"),
    results: Results = Path("demo/results"),
    check: Annotated[bool, typer.Option("--check", help="change nothing; fail if it would")] = False,
) -> None:
    """Put the tables of a results folder between their markers in the README."""
    from vexkd.report import readme as module

    changed = module.update(file, results=results, check=check)
    if check and changed:
        raise InputError(f"{file}: its tables differ from {results}/tables; run `make readme`.")
