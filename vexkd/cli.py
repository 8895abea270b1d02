"""The command line: one verb per step of the pipeline; every workflow rule calls one of these.

Imports of torch, spconv and the devkit wait until a verb needs them, so that `vexkd --help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vexkd import code
from vexkd.errors import BusyError, InputError
from vexkd.train import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vexkd.measure.cost import Probe
    from vexkd.settings import Params

# Base of what typer raises for a wrong verb or option; it belongs to click, which newer versions of typer hold within.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="VeXKD as a workflow. Data: synthesize, doctor, infos, paste, maps. "
    "Runs: configure, train, predict, submission, inspect, evaluate, check. "
    "Models: summary, latency, export, import-weights, fetch-weights. Results: table, figure, page, readme. "
    "Around it: preflight, forecast, status, tensorboard.",
)

Root = Annotated[Path, typer.Option(help="nuScenes' folder: samples/ sweeps/ maps/ and the tables' folder")]
Version = Annotated[str, typer.Option(help="folder of the tables, for instance v1.0-trainval")]
InfosDir = Annotated[Path, typer.Option(help="folder that `vexkd infos` wrote")]
Workers = Annotated[int, typer.Option(min=1, help="parallel processes")]
ParamsFile = Annotated[Path, typer.Option(help="settings file")]
Results = Annotated[Path, typer.Option(help="results folder")]
Models = Annotated[Path, typer.Option(help="folder of the trained models")]
RunName = Annotated[str, typer.Argument(help="name of the run")]
DistilledRun = Annotated[str, typer.Argument(help="name of the distilled run")]
Student = Annotated[str, typer.Option(help="name of the run to compare it with, its student alone")]
Seed = Annotated[int, typer.Option(min=0, help="of the random numbers; of trained weights, which of them")]
SampleToken = Annotated[str | None, typer.Option(help="sample token; default: the fullest of the split")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; default: torch's own choice")]
Device = Annotated[Literal["cpu"] | None, typer.Option(help="cpu, or nothing for the GPU that is there")]


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="folder to make; it must not exist or be empty")],
    scenes: Annotated[int, typer.Option(help="up to 10 make a v1.0-mini set, more a v1.0-trainval one")] = 10,
    samples: Annotated[
        int | None, typer.Option(help="keyframes per scene, at 2 Hz; default 10, or nuScenes' own 34,149 in all")
    ] = None,
    seed: Seed = 0,
    width: Annotated[int, typer.Option(help="image width in pixels")] = 400,
    height: Annotated[int, typer.Option(help="image height in pixels")] = 225,
    beams: Annotated[int, typer.Option(help="LiDAR rings")] = 32,
    azimuths: Annotated[int, typer.Option(help="LiDAR directions per turn")] = 720,
    sweeps: Annotated[int, typer.Option(help="LiDAR turns per keyframe, the keyframe's own included")] = 2,
    workers: Workers = 2,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="no sensor files: for measuring preparation")
    ] = False,
    test_scenes: Annotated[
        int, typer.Option(min=0, help="scenes of a v1.0-test set beside it, without annotations")
    ] = 0,
) -> None:
    """Write the embedded data set: a procedural town in nuScenes' own format."""
    from vexkd.synthetic.tables import synthesize as make

    make(
        out,
        scenes=scenes,
        samples=samples,
        seed=seed,
        image_size=(width, height),
        beams=beams,
        azimuths=azimuths,
        sweeps_per_sample=sweeps,
        workers=workers,
        sensors=not tables_only,
        test_scenes=test_scenes,
    )


@app.command()
def doctor(
    root: Root,
    version: Version,
    manifest: Annotated[Path | None, typer.Option(help="where to write sizes and hashes, if all is well")] = None,
    workers: Workers = 2,
    quick: Annotated[bool, typer.Option("--quick", help="only compare sizes with those in --manifest")] = False,
    skip_unused: Annotated[
        bool, typer.Option("--skip-unused", help="let radar files and camera sweeps be absent")
    ] = False,
    splits: Annotated[str | None, typer.Option(help="only files of these splits, separated by commas")] = None,
    sensors: Annotated[
        str | None, typer.Option(help="only files of these sensors: lidar, camera, or both with a comma")
    ] = None,
) -> None:
    """Look at every file the tables name: there, readable, whole. Names each bad one, all in one go.

    The tables are read by the rules that infos has; --splits and --sensors let the files of others be absent.
    """
    from vexkd.data import doctor as module

    named = None if sensors is None else tuple(dict.fromkeys(sensors.split(",")))
    if named is not None and not set(named) <= {"lidar", "camera"}:
        raise InputError(f"--sensors {sensors}: name lidar, camera or lidar,camera.")
    coverage = module.Coverage(
        None if splits is None else tuple(dict.fromkeys(splits.split(","))), named, not skip_unused
    )
    problems = module.examine(root, version, manifest=manifest, workers=workers, quick=quick, coverage=coverage)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{root}: {count}, listed above; mend these files and look again.")
    if quick:
        print(f"{root}: every file of {manifest} is there and has its size.")
    elif coverage.is_whole:
        print(f"{root}: every file that {version} names is there and whole.")
    else:
        print(f"{root}: what was looked at of {version} is there and whole; not looked at: {coverage.left_out()}.")


@app.command()
def infos(
    root: Root,
    version: Version,
    out: InfosDir,
    manifest: Annotated[Path | None, typer.Option(help="what `vexkd doctor` wrote; the infos record its hash")] = None,
    params: Annotated[
        Path | None, typer.Option(help="settings, whose runs are then held against what the data give")
    ] = None,
) -> None:
    """Gather keyframes, sweeps, calibrations and boxes of all splits into four Parquet tables."""
    from vexkd.data import infos as module

    counts = module.build(root, version, out, manifest=manifest)
    print(", ".join(f"{value} {name}" for name, value in counts._asdict().items()), f"-> {out}")
    if params is not None:
        from vexkd import settings
        from vexkd.data import demands

        for sentence in demands.check_all(settings.load(params).runs, module.load(out), root=root):
            print(sentence)


@app.command()
def paste(
    root: Root,
    infos: InfosDir,
    out: Annotated[Path, typer.Option(help="folder to write points.npy and index.parquet to")],
    split: Annotated[str, typer.Option(help="split to cut objects from: the one to train on")],
    min_points: Annotated[int, typer.Option(min=1, help="objects with fewer points are left out")] = 5,
    sweeps: Annotated[int, typer.Option(min=0, max=10, help="previous sweeps stacked, as in training")] = 9,
    workers: Workers = 2,
) -> None:
    """Cut the objects out of the training scenes: the ground-truth database for pasting."""
    from vexkd.data import paste as module

    count = module.build(root, infos, out, split=split, min_points=min_points, sweeps=sweeps, workers=workers)
    print(f"{count} objects -> {out}")


@app.command()
def maps(
    root: Root,
    infos: InfosDir,
    out: Annotated[Path, typer.Option(help="folder to write rasters.npy and index.parquet to")],
    reach: Annotated[float, typer.Option(help="metres around the LiDAR: as far as any augmentation asks for labels")],
    cell: Annotated[float, typer.Option(help="side of a cell in metres")] = 0.5,
    edges: Annotated[
        Literal["published", "centre"],
        typer.Option(help="as the devkit draws for published scores, or by cell centres"),
    ] = "published",
    workers: Workers = 2,
) -> None:
    """Draw the six classes of map segmentation once a sample, from the map expansion."""
    from vexkd.data import maps as module

    count = module.build(root, infos, out, reach=reach, cell=cell, edges=edges, workers=workers)
    print(f"{count} samples -> {out}")


@app.command()
def configure(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Check the settings and write every run's merged ones to results/runs/RUN/{config,inference}.yaml if they changed."""
    from vexkd import settings as module

    settings = module.load(params)
    module.write_configs(settings, results)
    print(f"{params}: {len(settings.runs)} runs -> {results}/runs")


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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
) -> None:
    """Score a run's predictions, boxes with nuscenes-devkit, and gather metrics, curves and provenance of its seeds."""
    from vexkd import settings as params

    folder = (settings or results / "runs") / run
    row = params.read_run(folder / "config.yaml", folder / "inference.yaml")
    if without is not None:
        from vexkd.evaluate import missing

        missing.collect(
            row, without, models=models, results=results, root=root, infos=infos, maps=maps, seeds=list(seeds)
        )
        return
    if row.task == "segmentation":
        from vexkd.evaluate import maps as module

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
    )


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="published checkpoint: .pth of tensors alone, or .safetensors")],
    origin: Annotated[
        Literal[
            "mmdet3d-bevfusion", "mmdet3d-centerpoint", "mmdet3d-bevdet", "bevformer", "torchvision", "transformers"
        ],
        typer.Option("--from", help="whose layout it has"),
    ],
    run: Annotated[str, typer.Option(help="name of the run whose model it becomes")],
    out: Annotated[Path, typer.Option("--out", "-o", help="weights file to write")],
    params: ParamsFile = Path("params.yaml"),
    part: Annotated[
        Literal["backbone", "lidar", "camera", "all"] | None,
        typer.Option(help="what must be complete; default: all, of an image backbone's file the backbone"),
    ] = None,
    boxes: Annotated[
        Literal["current", "legacy"] | None,
        typer.Option(help="its boxes: legacy before mmdetection3d 1.0; default: legacy for bevformer, else current"),
    ] = None,
    weights: Annotated[
        Literal["raw", "averaged"] | None,
        typer.Option(help="which set, where the file holds raw weights and their moving average"),
    ] = None,
) -> None:
    """Turn a published checkpoint into weights of a run, with a report of what fitted (docs/WEIGHTS.md)."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")

    from vexkd import settings as module
    from vexkd.published import convert

    row = module.load(params).run(run)
    print(convert.write(row, file, out, origin=origin, part=part, boxes=boxes, weights=weights))


@app.command("fetch-weights")
def fetch_weights(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="runs to fetch for")] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="every run of the settings")] = False,
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Fetch the published weights that image backbones start from; training itself never asks the network."""
    from vexkd import settings as module
    from vexkd.published import fetch

    settings = module.load(params)
    names = list(settings.runs) if all_runs else [settings.run(name).name for name in runs or []]
    if not names:
        raise InputError("no run was named to fetch weights for; name some or pass --all.")
    done = dict.fromkeys(fetch.fetch(settings.run(name)) for name in names)
    print("\n".join(line for line in done if line) or "random starts alone: there is nothing to fetch")


@app.command()
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
    from vexkd.report import products

    with contextlib.chdir(folder):
        problems = products.problems(settings) + leftovers.sentences(settings)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise InputError(
            f"{settings.path}: {len(problems)} of the tables, figures and other files are not those of the present settings"
            " and results."
        )


@app.command()
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


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="a table of the settings file")],
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
) -> None:
    """Write results/tables/NAME.{csv,md,tex} and its provenance from the runs' metrics."""
    from vexkd import settings as module
    from vexkd.report import tables

    tables.make(name, params=module.load(params), results=results)


figure = typer.Typer(help="Draw one of the figures into results/figures.")
app.add_typer(figure, name="figure")


@figure.command()
def distillation(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Distilled students against their baselines, per class."""
    from vexkd import settings as module
    from vexkd.report import figures, records

    settings = module.load(params)
    figures.distillation(params=settings, results=results)
    records.of_chart("distillation", settings, results)


@figure.command()
def curves(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Training curves of all runs."""
    from vexkd import settings as module
    from vexkd.report import figures, records

    settings = module.load(params)
    figures.curves(params=settings, results=results)
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
    from vexkd.report import figures, records, sources

    figures.birdseye(run, results=results, models=models, root=root, infos=infos, seed=seed, sample=sample)
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
    from vexkd.report import camera as module
    from vexkd.report import records, sources

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
    from vexkd.report import errors as module
    from vexkd.report import records, sources

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
    from vexkd.report import inspection_figures as module
    from vexkd.report import records, sources

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
    from vexkd.report import inspection_figures as module
    from vexkd.report import records, sources

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
    from vexkd.report import figures, records, sources

    figures.maps(run, results=results, models=models, root=root, infos=infos, rasters=maps, seed=seed, sample=sample)
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
    from vexkd.report import charts

    charts.make(cast(module.FigureName, name), params=module.load(params), results=results)


@app.command()
def page(params: ParamsFile = Path("params.yaml"), results: Results = Path("results")) -> None:
    """Write results/report.html: every table, figure and run in one file to open in a browser."""
    from vexkd import settings as module
    from vexkd.report import page as pages

    print(pages.make(params=module.load(params), results=results))


@app.command()
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


@app.command()
def forecast(
    names: Annotated[list[str] | None, typer.Argument(metavar="TABLE", help="tables; default: all runs")] = None,
    params: ParamsFile = Path("params.yaml"),
    runs: Annotated[list[str] | None, typer.Option(help="only this run; again for more")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a training (processes, on CPU)")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="loader processes of each; default: 8 on GPUs, none on CPU")
    ] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="GPU-hours (CPU-hours): which tables fit")] = None,
    root: Annotated[Path | None, typer.Option(help="nuScenes' folder, to measure on real samples")] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote; counts the samples too")] = None,
    probe: Annotated[Path | None, typer.Option(help="stored measurements to use instead of measuring")] = None,
    save_probe: Annotated[Path | None, typer.Option(help="where to store the measurements")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="where to write all numbers")] = None,
    steps: Annotated[int, typer.Option(min=1, help="measured steps after one to warm up")] = 1,
    micro: Annotated[int, typer.Option(min=1, help="samples a step is measured with")] = 1,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Measure a few steps of each distinct model and print hours, memory, disk and time limits of runs and tables."""
    from vexkd import provenance
    from vexkd import settings as module
    from vexkd.measure import cost
    from vexkd.report import tables

    settings = module.load(params)
    chosen = names or list(settings.tables)
    wanted = cost.needed(settings, [row for name in names for row in settings.table(name)]) if names else settings.runs
    kept = [name for name in wanted if not runs or name in runs]
    for name in runs or []:
        if settings.run(name).name not in kept:
            raise InputError(f"{params}: run {name} is not in {', '.join(chosen)}; name its table or leave it out.")
    if not kept:
        raise InputError(f"{params}: there is no run to forecast; name a table with rows.")
    found = cost.load_probe(probe) if probe else _measure(settings, kept, root, infos, steps, micro, threads, device)
    if save_probe:
        found.save(save_probe)
    loaders = workers if workers is not None else 0 if found.unit == "CPU" else 8
    result = cost.forecast(
        settings,
        found,
        kept,
        chosen,
        counter=cost.Counter(settings, infos),
        devices=gpus,
        workers=loaders,
        budget=budget,
    )
    for head, rows in (cost.run_cells(result), cost.table_cells(result)):
        print(tables.markdown(tables.Cells(head, rows, notes=[])).strip(), end="\n\n")
    print("\n".join(f"- {note}" for note in cost.notes(result)))
    if json:
        provenance.write_json(json, result.values())


def _measure(
    settings: Params,
    names: list[str],
    root: Path | None,
    infos: Path | None,
    steps: int,
    micro: int,
    threads: int | None,
    device: str | None,
) -> Probe:
    """The hardware at hand, measured; progress goes to stderr."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd.measure import forecast as module

    if threads:
        torch.set_num_threads(threads)
    return module.measure(
        settings,
        names,
        root=root,
        infos=infos,
        steps=steps,
        micro=micro,
        device=device,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )


@app.command()
def summary(
    run: Annotated[str | None, typer.Argument(help="name of the run")] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="every distinct model of the settings")] = False,
    params: ParamsFile = Path("params.yaml"),
    depth: Annotated[int, typer.Option(min=0, help="how many levels each part is opened further")] = 0,
    only_parameters: Annotated[bool, typer.Option("--params-only", help="count parameters, compute nothing")] = False,
    root: Annotated[
        Path | None, typer.Option(help="nuScenes' folder, for a real sample in place of a made-up one")
    ] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="where to write the numbers")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="page to write the models into, between its markers: docs/MODELS.md")
    ] = None,
    threads: Threads = None,
) -> None:
    """Print the parts of a model: parameters, multiply-adds and FLOPs, output shapes, activation memory."""
    from vexkd import provenance
    from vexkd import settings as module
    from vexkd.report import models

    settings = module.load(params)
    if bool(run) == all_runs:
        raise InputError("name one run, or pass --all for every distinct model.")
    names = None if run is None else [settings.run(run).name]
    found = []
    for values in _summaries(settings, names, depth, only_parameters, root, infos, threads):
        print(f"{values['run']}\n\n{models.table(values)}\n", flush=True)
        found.append(values)
    if json:
        provenance.write_json(json, found if all_runs else found[0])
    if markdown:
        models.update(markdown, found)


def _summaries(
    settings: Params,
    names: list[str] | None,
    depth: int,
    only_parameters: bool,
    root: Path | None,
    infos: Path | None,
    threads: int | None,
) -> Iterator[dict[str, Any]]:
    """Summaries of these runs, or of every distinct model."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd.measure import summary as module

    if threads:
        torch.set_num_threads(threads)
    yield from module.summaries(settings, names, depth=depth, only_parameters=only_parameters, root=root, infos=infos)


@app.command()
def latency(
    run: Annotated[str | None, typer.Argument(help="name of the run; default: that of --weights")] = None,
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
    models: Models = Path("models"),
    seed: Annotated[int, typer.Option(min=0, help="which of the trained weights")] = 0,
    weights: Annotated[Path | None, typer.Option(help="weights that stand elsewhere")] = None,
    random: Annotated[bool, typer.Option("--random", help="random weights: no training is needed")] = False,
    root: Annotated[Path | None, typer.Option(help="nuScenes' folder: real samples, and the time to read them")] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="measured samples")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="unmeasured samples before them")] = 5,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the computation")] = "fp32",
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Time a model from bytes to boxes, one sample at a time, by stages; into results/runs/RUN/latency.json."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="spconv")
    import torch

    from vexkd import settings as module
    from vexkd.measure import latency as measuring

    if threads:
        torch.set_num_threads(threads)
    found = measuring.write(
        run,
        params=None if run is None and root is not None else module.load(params),
        results=results,
        models=models,
        seed=seed,
        weights=weights,
        random=random,
        root=root,
        infos=infos,
        repeats=repeats,
        warmup=warmup,
        dtype=precision,
        device=device,
    )
    print(measuring.in_words(found))


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write")],
    run: Annotated[str | None, typer.Argument(help="name of the run; default: that of --weights")] = None,
    params: ParamsFile = Path("params.yaml"),
    models: Models = Path("models"),
    seed: Annotated[int, typer.Option(min=0, help="which of the trained weights")] = 0,
    weights: Annotated[Path | None, typer.Option(help="weights that stand elsewhere")] = None,
    random: Annotated[bool, typer.Option("--random", help="random weights: no training is needed")] = False,
    root: Annotated[
        Path | None, typer.Option(help="nuScenes' folder: the rig of a camera run, and a real check")
    ] = None,
    infos: Annotated[Path | None, typer.Option(help="folder that `vexkd infos` wrote")] = None,
    sample: Annotated[int, typer.Option(min=0, help="which sample of the validation split has the rig")] = 0,
) -> None:
    """Write the dense part of a single-sensor model as ONNX and check it against PyTorch (needs the extra `export`)."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)

    from vexkd import settings as module
    from vexkd.measure import export as exporting

    print(
        exporting.write(
            run,
            out,
            params=None if run is None and root is not None else module.load(params),
            models=models,
            seed=seed,
            weights=weights,
            random=random,
            root=root,
            infos=infos,
            sample=sample,
        )
    )


@app.command()
def preflight(
    params: ParamsFile = Path("params.yaml"),
    root: Annotated[Path | None, typer.Option(help="nuScenes' folder; default: `root` of the settings")] = None,
    scratch: Annotated[Path, typer.Option(help="folder of the resumable states")] = Path("scratch"),
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that a job on this machine will ask for")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="seconds for processes to find one another")] = 60.0,
) -> None:
    """Look for what would stop a job before one is queued: versions, GPUs, data, disk, clocks, processes, commit."""
    from vexkd import settings as module
    from vexkd.measure import preflight as checks

    settings = module.load(params)
    found = checks.run(
        settings,
        root=root or Path(settings.root),
        scratch=scratch,
        gpus=gpus,
        limit=limit,
        tell=lambda check: print(check, flush=True),
    )
    errors = sum(check.status == "error" for check in found)
    if errors:
        raise InputError(f"{errors} of {len(found)} checks failed; mend what their lines say before queueing jobs.")


@app.command()
def status(
    params: ParamsFile = Path("params.yaml"),
    results: Results = Path("results"),
    models: Models = Path("models"),
    scratch: Annotated[Path, typer.Option(help="folder of the resumable states")] = Path("scratch"),
    logs: Annotated[Path, typer.Option(help="folder of the jobs' logs")] = Path("logs"),
    watch: Annotated[float | None, typer.Option(min=0.5, help="look again every so many seconds")] = None,
) -> None:
    """Show every run and seed: done, running (how far, where, how long still), waiting for what, failed and why."""
    import contextlib

    from vexkd.measure import status as module

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        module.show(params, module.Places(results, models, scratch, logs), watch=watch)


@app.command()
def tensorboard(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="default: all runs")] = None,
    params: ParamsFile = Path("params.yaml"),
    models: Models = Path("models"),
    scratch: Annotated[Path, typer.Option(help="folder of the resumable states")] = Path("scratch"),
    out: Annotated[Path, typer.Option(help="folder for `tensorboard --logdir`")] = Path("logs/tensorboard"),
    watch: Annotated[float | None, typer.Option(min=1, help="add what is new every so many seconds")] = None,
) -> None:
    """Write training curves as TensorBoard's event files; of a training that goes on, up to its last saved state."""
    import contextlib

    from vexkd import settings as module
    from vexkd.measure.status import Places
    from vexkd.report import tensorboard as events

    settings = module.load(params)
    pairs = [(settings.run(name).name, seed) for name in runs or settings.runs for seed in settings.seeds]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        events.write(pairs, Places(models=models, scratch=scratch), out, watch=watch)


def main() -> None:
    """Run a verb; bad input ends in one sentence and status 2, what another process holds in 1, a saved stop in 75."""
    status = 2
    code.version()  # before the verb works: the checkout may move on meanwhile
    for stream in (sys.stdout, sys.stderr):  # a sign that the locale lacks, such as an arrow, must not end a verb
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        environment.announce(environment.settle())  # before torch is imported, which reads some of them only once
        status = app(sys.argv[1:] or ["--help"], prog_name="vexkd", standalone_mode=False)
    except UsageError as error:
        sentence = _wrong_call(error)
    except BusyError as error:
        sentence, status = str(error), 1
    except InputError as error:
        # The error of a loader process comes back as its whole traceback, whose last line is the sentence.
        sentence = str(error).splitlines()[-1].removeprefix("vexkd.errors.InputError: ")
    except OSError as error:  # a folder in place of a file, no permission, a full disk
        if error.filename is None:
            raise
        reason = os.strerror(error.errno) if error.errno else error.args[-1]
        sentence = f"{error.filename}: {reason}; name another place or mend this one."
    else:
        if status:  # of an interrupt: 130
            sys.exit(status)
        return
    print(f"vexkd: {sentence}", file=sys.stderr)
    sys.exit(status)


def _wrong_call(error: UsageError) -> str:
    """What is wrong with a verb or an option, as one sentence."""
    said = " ".join(error.format_message().split()).rstrip(".?")
    said = said.replace("Value error, ", "").replace("Input should", "it should")
    said = said.replace(". Did you mean ", "; the nearest known one is ")
    verb = error.ctx.command_path if error.ctx is not None else "vexkd"
    return f"{said[0].lower()}{said[1:]}; `{verb} --help` lists what there is."


if __name__ == "__main__":
    main()
