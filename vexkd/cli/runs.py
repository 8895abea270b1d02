"""Runs: train, predict, score, check."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vexkd.cli.app import app
from vexkd.cli.options import Device, InfosDir, Models, ParamsFile, Results, Root, RunName, SampleToken, Seed, Threads
from vexkd.errors import InputError

if TYPE_CHECKING:
    from vexkd.settings import Params


@app.command(rich_help_panel="Train and predict")
def configure(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Check the settings and write every run's merged ones to results/runs/RUN/{config,inference}.yaml if they changed."""
    from vexkd import settings as module

    settings = module.load(params)
    module.write_configs(settings, results)
    print(f"{params}: {len(settings.runs)} runs -> {results}/runs")


@app.command(rich_help_panel="Train and predict")
def train(
    config: Annotated[Path, typer.Option(help="results/runs/RUN/config.yaml; inference.yaml stands beside it")],
    root: Root,
    infos: InfosDir,
    out: Annotated[Path, typer.Option(help="folder for weights.safetensors, curve.csv, provenance.json")],
    seed: Seed = 0,
    paste: Annotated[Path | None, typer.Option(help="ground-truth database, if the run pastes objects")] = None,
    maps: Annotated[Path | None, typer.Option(help="map rasters, if the run or its teacher segments maps")] = None,
    start: Annotated[Path | None, typer.Option(help="weights of the run that `start` names")] = None,
    teacher: Annotated[Path | None, typer.Option(help="weights of the run that `teacher` names")] = None,
    scratch: Annotated[Path, typer.Option(help="folder for the state that a stopped run resumes from")] = Path(
        "scratch"
    ),
    threads: Threads = None,
    workers: Annotated[int, typer.Option(min=0, help="loader processes; 0 loads in the training process")] = 0,
    accumulate: Annotated[
        int, typer.Option(min=1, help="parts that each process splits its share of a batch into")
    ] = 1,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="time between saved states")] = 5.0,
    max_seconds: Annotated[float | None, typer.Option(min=1, help="save and stop after this time (status 75)")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="folder that holds the finished result too, to give it back if --out loses it")
    ] = None,
    device: Device = None,
) -> None:
    """Train one run with one seed. Started again after a stop, it goes on where it was."""
    from vexkd.train import session
    from vexkd.train.loop import Pace

    pace = Pace(accumulate, workers, checkpoint_minutes, max_seconds)
    session.train(
        config,
        root=root,
        infos=infos,
        out=out,
        seed=seed,
        paste=paste,
        maps=maps,
        start=start,
        teacher=teacher,
        scratch=scratch,
        threads=threads,
        pace=pace,
        keep=keep,
        device=device,
    )


@app.command(rich_help_panel="Train and predict")
def predict(
    weights: Annotated[Path, typer.Option(help="models/RUN/seedK/weights.safetensors")],
    root: Root,
    infos: InfosDir,
    out: Annotated[Path, typer.Option(help="file to write: submission JSON, or for maps .safetensors")],
    config: Annotated[
        Path | None, typer.Option(help="refuse weights with other settings than this config.yaml's")
    ] = None,
    inference: Annotated[Path | None, typer.Option(help="thresholds and NMS; default: those in the weights")] = None,
    batch: Annotated[int, typer.Option(min=1, help="samples at a time")] = 4,
    workers: Annotated[int, typer.Option(min=0, help="loader processes")] = 0,
    drop: Annotated[
        Literal["lidar", "camera"] | None, typer.Option(help="do without this one of two sensors, as if it had failed")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="split to predict, such as nuScenes' test; default: the one that is scored")
    ] = None,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Predict the validation split: boxes in nuScenes' submission JSON, or maps in packed arrays, as the run's task is."""
    from vexkd.train import session

    session.predict(
        weights,
        root=root,
        infos=infos,
        out=out,
        config=config,
        inference=inference,
        batch=batch,
        workers=workers,
        threads=threads,
        device=device,
        drop=drop,
        split=split,
    )


@app.command(rich_help_panel="Train and predict")
def submission(
    run: RunName,
    predictions: Annotated[Path, typer.Option(help="what `vexkd predict --split test` wrote")],
    weights: Annotated[Path, typer.Option(help="models/RUN/seedK/weights.safetensors that predicted it")],
    infos: Annotated[Path, typer.Option(help="folder that `vexkd infos` wrote of the test version")],
    manifest: Annotated[Path, typer.Option(help="what `vexkd doctor` wrote of the test version")],
    out: Annotated[Path, typer.Option("--out", "-o", help="zip to write; a note of its making goes beside it, .json")],
    settings: Annotated[Path, typer.Option(help="folder of each run's config.yaml and inference.yaml")] = Path(
        "results/runs"
    ),
    seed: Seed = 0,
) -> None:
    """Check predictions of nuScenes' test split and zip them for its evaluation server."""
    from vexkd import settings as params
    from vexkd.evaluate import submission as module

    row = params.read_run(settings / run / "config.yaml", settings / run / "inference.yaml")
    print(module.write(row, seed, predictions=predictions, weights=weights, infos=infos, manifest=manifest, out=out))


@app.command(rich_help_panel="Train and predict")
def evaluate(
    run: RunName,
    root: Root,
    models: Models = Path("models"),
    results: Results = Path("results"),
    seeds: Annotated[list[int], typer.Option(min=0, help="a trained seed; once for each")] = [0],  # noqa: B006 - typer reads it
    infos: Annotated[Path, typer.Option(help="folder that `vexkd infos` wrote, for maps")] = Path("artifacts/infos"),
    maps: Annotated[Path, typer.Option(help="folder that `vexkd maps` wrote, for maps")] = Path("artifacts/maps"),
    without: Annotated[
        Literal["lidar", "camera"] | None, typer.Option(help="score what was predicted without this sensor")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="folder of the runs' config.yaml and inference.yaml; default: runs in --results")
    ] = None,
    referee: Annotated[
        bool, typer.Option("--referee", help="score boxes with nuscenes-devkit too, and fail if it says anything else")
    ] = False,
) -> None:
    """Score a run's predictions, by nuScenes' metrics, and gather metrics, curves and provenance of its seeds."""
    from vexkd import settings as params

    folder = (settings or results / "runs") / run
    row = params.read_run(folder / "config.yaml", folder / "inference.yaml")
    if referee and row.task != "detection":
        raise InputError(f"{run}: nuscenes-devkit does not score {row.task}; leave out --referee.")
    if without is not None:
        from vexkd.evaluate import missing

        missing.collect(
            row,
            without,
            models=models,
            results=results,
            root=root,
            infos=infos,
            maps=maps,
            seeds=list(seeds),
            held_to_devkit=referee,
        )
        return
    if row.task == "segmentation":
        from vexkd.evaluate import map_scores as module

        module.collect(row, models=models, results=results, infos=infos, maps=maps, seeds=list(seeds))
        return
    from vexkd.evaluate.detection import collect

    collect(
        run,
        models=models,
        results=results,
        root=root,
        version=row.data.version,
        split=row.data.val_split,
        config=row.inference.evaluation,
        seeds=list(seeds),
        held_to_devkit=referee,
    )


@app.command(rich_help_panel="Train and predict")
def check(
    runs: Annotated[list[str] | None, typer.Argument(help="runs to check")] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="every run of the settings")] = False,
    params: ParamsFile = Path("params.yaml"),
    models: Models = Path("models"),
) -> None:
    """Compare the settings recorded in trained weights with what the settings file asks for now."""
    from vexkd import seal
    from vexkd import settings as module

    settings = module.load(params)
    names = list(settings.runs) if all_runs else [settings.run(name).name for name in runs or []]
    if not names:
        raise InputError("no run was named to check; name some or pass --all.")
    problems = seal.check(settings, models, names)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise InputError(
            f"{params}: {len(problems)} of the trained models differ from the settings; run snakemake first."
        )
    if all_runs:
        _check_what_shows_them(settings, Path(models).parent)
    print(f"{len(names)} runs agree with {params}.")


def _check_what_shows_them(settings: Params, folder: Path) -> None:
    """Raises InputError where tables, figures or the page are not of the present results, or something is left over."""
    from vexkd import leftovers
    from vexkd.report import outputs

    with contextlib.chdir(folder):
        problems = outputs.problems(settings) + leftovers.sentences(settings)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise InputError(
            f"{settings.path}: {len(problems)} of the tables, figures and other files are not those of the present settings"
            " and results."
        )


@app.command(rich_help_panel="Train and predict")
def inspect(
    run: Annotated[str, typer.Argument(help="name of a distilled run")],
    root: Root,
    infos: InfosDir,
    models: Models = Path("models"),
    seed: Seed = 0,
    sample: SampleToken = None,
    threads: Threads = None,
) -> None:
    """Write what the figures energy and masks show: BEV maps of student, distilled student and teacher of one keyframe."""
    import torch

    from vexkd.measure import inspection

    if threads:
        torch.set_num_threads(threads)
    print(inspection.inspect(run, models=models, root=root, infos=infos, seed=seed, sample=sample))
