"""Train, predict, score and check runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from vexkd.cli.app import verb
from vexkd.cli.options import (
    HERE,
    AllRuns,
    Device,
    FirstSeed,
    Here,
    Loaders,
    RunName,
    RunNames,
    SampleToken,
    Seed,
    Threads,
    Weights,
)
from vexkd.errors import InputError

PANEL = "Train and predict"
Sensor = Literal["lidar", "camera"]


@verb(PANEL, example="vexkd configure -C demo")
def configure(experiment: Here = HERE) -> None:
    """Check the settings and write every run's merged ones to results/runs/RUN/{config,inference}.yaml."""
    from vexkd import settings

    settings.write_configs(experiment.params, experiment.results)
    print(f"{experiment.params.path}: {len(experiment.params.runs)} runs -> {experiment.runs}")


@verb(PANEL, example="vexkd train centerpoint-det-vexkd --seed 1 --workers 8")
def train(
    run: RunName,
    seed: Seed = 0,
    start: Annotated[
        Path | None, typer.Option(help="weights to start from; default: those of the run named `start`")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="weights of the teacher; default: those of the run named `teacher`")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for weights, curve and provenance; default: models/RUN/seedK")
    ] = None,
    threads: Threads = None,
    workers: Loaders = 0,
    accumulate: Annotated[
        int, typer.Option(min=1, help="parts that each process splits its share of a batch into")
    ] = 1,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="time between saved states")] = 5.0,
    max_seconds: Annotated[float | None, typer.Option(min=1, help="save and stop after this time (status 75)")] = None,
    device: Device = None,
    experiment: Here = HERE,
) -> None:
    """Train one run with one seed. Started again after a stop, it goes on where it was."""
    from vexkd.train import session
    from vexkd.train.loop import RuntimeOptions

    row = experiment.params.run(run)
    session.train(
        row,
        runs=experiment.params.runs,
        root=experiment.root,
        infos=experiment.infos,
        out=out or experiment.training(run, seed).folder,
        seed=seed,
        paste=experiment.paste if row.paste is not None else None,
        maps=experiment.maps if row.map is not None else None,
        start=start or (experiment.training(row.start, seed).weights if row.start else None),
        teacher=teacher or (experiment.training(row.teacher, seed).weights if row.teacher else None),
        scratch=experiment.scratch,
        threads=threads,
        runtime=RuntimeOptions(accumulate, workers, checkpoint_minutes, max_seconds),
        keep=experiment.finished if experiment.is_job else None,
        device=device,
    )


@verb(PANEL, example="vexkd predict centerpoint-det-vexkd --seed 1")
def predict(
    run: RunName,
    seed: Seed = 0,
    drop: Annotated[Sensor | None, typer.Option(help="do without this one of two sensors, as if it had failed")] = None,
    split: Annotated[
        str | None, typer.Option(help="split to predict, such as nuScenes' test; default: the one that is scored")
    ] = None,
    weights: Weights = None,
    out: Annotated[
        Path | None, typer.Option(help="file to write; default: predictions.* beside the run's own weights")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="samples at a time")] = 4,
    workers: Loaders = 0,
    threads: Threads = None,
    device: Device = None,
    experiment: Here = HERE,
) -> None:
    """Predict the validation split: boxes in nuScenes' submission JSON, or maps in packed arrays, as the run's task is."""
    from vexkd.train import session

    row, test = experiment.params.run(run), split == "test"
    training = experiment.training(run, seed)
    if out is None and split not in (None, "test", row.data.val_split):
        raise InputError(f"--split {split}: predictions of it have no place of their own; name a file with --out.")
    file = experiment.submission(run, seed).predictions if test else training.predictions(row.task, drop)
    session.predict(
        weights or training.weights,
        expected=row,
        root=experiment.root,
        infos=experiment.test_infos if test else experiment.infos,
        out=out or file,
        batch=batch,
        workers=workers,
        threads=threads,
        device=device,
        drop=drop,
        split=split,
    )


@verb(PANEL, example="vexkd evaluate centerpoint-det-vexkd")
def evaluate(
    run: RunName,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, help="a trained seed, again for more; default: all of the settings"),
    ] = None,
    without: Annotated[Sensor | None, typer.Option(help="score what was predicted without this sensor")] = None,
    referee: Annotated[
        bool, typer.Option("--referee", help="score boxes with nuscenes-devkit too, and fail if it says anything else")
    ] = False,
    experiment: Here = HERE,
) -> None:
    """Score a run's predictions, by nuScenes' metrics, and gather metrics, curves and provenance of its seeds."""
    row = experiment.params.run(run)
    if referee and row.task != "detection":
        raise InputError(f"{run}: nuscenes-devkit does not score {row.task}; leave out --referee.")
    shared = {"experiment": experiment, "seeds": list(seeds or experiment.params.seeds)}
    if without is not None:
        from vexkd.evaluate import missing

        data = {"root": experiment.root, "infos": experiment.infos, "maps": experiment.maps}
        missing.collect(row, without, **shared, **data, held_to_devkit=referee)
    elif row.task == "segmentation":
        from vexkd.evaluate import map_scores

        map_scores.collect(row, **shared, infos=experiment.infos, maps=experiment.maps)
    else:
        from vexkd.evaluate import detection

        detection.collect(
            run,
            **shared,
            root=experiment.root,
            version=row.data.version,
            split=row.data.val_split,
            config=row.inference.evaluation,
            held_to_devkit=referee,
        )


@verb(PANEL, example="vexkd submission centerpoint-det-vexkd")
def submission(
    run: RunName,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="zip to write; default: submissions/RUN/seedK/RUN-seedK.zip")
    ] = None,
    experiment: Here = HERE,
) -> None:
    """Check predictions of nuScenes' test split and zip them for its evaluation server, a note of their making beside them."""
    from vexkd.evaluate import submission as module

    files = experiment.submission(run, seed)
    said = module.write(
        experiment.params.run(run),
        seed,
        predictions=files.predictions,
        weights=experiment.training(run, seed).weights,
        infos=experiment.test_infos,
        manifest=experiment.test_manifest,
        out=out or files.zip,
    )
    print(said)


@verb(PANEL, example="vexkd inspect centerpoint-det-vexkd")
def inspect(
    run: RunName,
    seed: FirstSeed = None,
    sample: SampleToken = None,
    threads: Threads = None,
    experiment: Here = HERE,
) -> None:
    """Write what the figures energy and masks show: BEV maps of student, distilled student and teacher of one keyframe."""
    import torch

    from vexkd.measure import inspection

    if threads:
        torch.set_num_threads(threads)
    file = inspection.inspect(
        run,
        experiment,
        root=experiment.root,
        infos=experiment.infos,
        seed=experiment.params.seeds[0] if seed is None else seed,
        sample=sample,
    )
    print(file)


@verb(PANEL, example="vexkd check --all")
def check(runs: RunNames = None, all_runs: AllRuns = False, experiment: Here = HERE) -> None:
    """Compare the settings recorded in trained weights with what params.yaml asks for now."""
    from vexkd import leftovers, seal
    from vexkd.report import outputs

    params = experiment.params
    names = list(params.runs) if all_runs else [params.run(name).name for name in runs or []]
    if not names:
        raise InputError("no run was named to check; name some or pass --all.")
    _refuse(
        seal.check(params, names=names),
        f"{params.path}: {{}} of the trained models differ from the settings; run snakemake first.",
    )
    if all_runs:
        _refuse(
            outputs.problems(params) + leftovers.sentences(params),
            f"{params.path}: {{}} of the tables, figures and other files are not those of the present settings and results.",
        )
    print(f"{len(names)} runs agree with {params.path}.")


def _refuse(problems: list[str], conclusion: str) -> None:
    """Print each problem and raise InputError with their number, if there are any."""
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise InputError(conclusion.format(len(problems)))
