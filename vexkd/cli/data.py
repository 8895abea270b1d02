"""Data: from raw nuScenes to what a training reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vexkd.cli.app import app
from vexkd.cli.options import InfosDir, Root, Seed, Version, Workers
from vexkd.errors import InputError

if TYPE_CHECKING:
    pass


@app.command(rich_help_panel="Data")
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


@app.command(rich_help_panel="Data")
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


@app.command(rich_help_panel="Data")
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


@app.command(rich_help_panel="Data")
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


@app.command(rich_help_panel="Data")
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
