"""Data: from raw nuScenes to what a training reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vexkd.cli.app import verb
from vexkd.cli.options import HERE, Here, Root, Seed, Version, Workers
from vexkd.errors import InputError
from vexkd.experiment import TEST_VERSION, Experiment

PANEL = "Data"
Test = Annotated[bool, typer.Option("--test", help="nuScenes' test set, for a submission")]


@verb(PANEL, example="vexkd synthesize town --scenes 4")
def synthesize(
    out: Annotated[
        Path | None,
        typer.Argument(help="folder to make; default: the town that params.yaml asks for", show_default=False),
    ] = None,
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
    experiment: Here = HERE,
) -> None:
    """Write the embedded data set: a procedural town in nuScenes' own format."""
    from vexkd.synthetic import tables

    if out is None:
        _town(experiment, workers)
        return
    tables.synthesize(
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


def _town(experiment: Experiment, workers: int) -> None:
    """The town of the settings, with a copy of what it was made with."""
    from vexkd import provenance, seal, settings
    from vexkd.synthetic import tables

    town = experiment.params.synthetic
    if town is None:
        raise InputError(f"{experiment.params.path}: there is no `synthetic` town in it; name a folder to make one in.")
    tables.synthesize(
        experiment.root,
        scenes=town.scenes,
        samples=town.samples,
        seed=town.seed,
        image_size=tuple(town.image_size),
        beams=town.beams,
        azimuths=town.azimuths,
        sweeps_per_sample=town.sweeps_per_sample,
        workers=workers,
    )
    provenance.write_text(experiment.root / "town.yaml", settings.dump(seal.shared_settings(experiment.params)["town"]))


@verb(PANEL, example="vexkd doctor --root data/nuscenes --version v1.0-mini")
def doctor(
    root: Root = None,
    version: Version = None,
    manifest: Annotated[Path | None, typer.Option(help="where to write sizes and hashes, if all is well")] = None,
    workers: Workers = 2,
    quick: Annotated[bool, typer.Option("--quick", help="only compare sizes with those in the manifest")] = False,
    skip_unused: Annotated[
        bool, typer.Option("--skip-unused", help="let radar files and camera sweeps be absent")
    ] = False,
    splits: Annotated[str | None, typer.Option(help="only files of these splits, separated by commas")] = None,
    sensors: Annotated[
        str | None, typer.Option(help="only files of these sensors: lidar, camera, or both with a comma")
    ] = None,
    test: Test = False,
    experiment: Here = HERE,
) -> None:
    """Check every file that the tables name: there, readable, whole. Names all bad ones in one go.

    In an experiment these are the files that its runs read, and the manifest of them is written for `vexkd infos`. With
    --root and --version any data set is checked, all of it unless --skip-unused is given. --splits and --sensors narrow both.
    """
    from vexkd import needs, provenance, seal, settings
    from vexkd.data import doctor as module

    by_settings = root is None and version is None
    if by_settings:
        runs = list(experiment.params.runs.values())
        needed = needs.submission_files(runs) if test else needs.needed_files(runs)
        version = TEST_VERSION if test else experiment.version
        coverage = module.Coverage(_listed(splits) or tuple(needed[0]), _sensors(sensors) or tuple(needed[1]), False)
        root, manifest = experiment.root, manifest or (experiment.test_manifest if test else experiment.manifest)
    elif root is None or version is None:
        raise InputError("name both --root and --version, or neither in the folder of an experiment.")
    else:
        coverage = module.Coverage(_listed(splits), _sensors(sensors), not skip_unused)
    problems = module.examine(root, version, manifest=manifest, workers=workers, quick=quick, coverage=coverage)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{root}: {count}, listed above; mend these files and look again.")
    if by_settings and not test and not quick:
        data = settings.dump(seal.shared_settings(experiment.params)["data"])
        provenance.write_text(experiment.artifacts / "data.yaml", data)
    if quick:
        print(f"{root}: every file of {manifest} is there and has its size.")
    elif coverage.is_whole:
        print(f"{root}: every file that {version} names is there and whole.")
    else:
        print(f"{root}: what was looked at of {version} is there and whole; not looked at: {coverage.left_out()}.")


def _listed(words: str | None) -> tuple[str, ...] | None:
    """Words between commas, each once."""
    return None if words is None else tuple(dict.fromkeys(words.split(",")))


def _sensors(words: str | None) -> tuple[str, ...] | None:
    """Names of sensors between commas. Raises InputError for any other name."""
    named = _listed(words)
    if named is not None and not set(named) <= {"lidar", "camera"}:
        raise InputError(f"--sensors {words}: name lidar, camera or lidar,camera.")
    return named


@verb(PANEL, example="vexkd infos -C demo")
def infos(
    root: Root = None,
    version: Version = None,
    out: Annotated[Path | None, typer.Option(help="folder to write to; default: artifacts/infos")] = None,
    test: Test = False,
    experiment: Here = HERE,
) -> None:
    """Gather keyframes, sweeps, calibrations and boxes of all splits into four Parquet tables.

    In an experiment its runs are then held against what the data give. With --root, --version and --out any data set is read.
    """
    from vexkd.data import infos_build

    if root is not None or version is not None or out is not None:
        if root is None or version is None or out is None:
            raise InputError("name --root, --version and --out, or none of them in the folder of an experiment.")
        manifest = None
    elif test:
        root, version, out, manifest = experiment.root, TEST_VERSION, experiment.test_infos, experiment.test_manifest
    else:
        root, version, out, manifest = experiment.root, experiment.version, experiment.infos, experiment.manifest
    counts = infos_build.build(root, version, out, manifest=manifest)
    print(", ".join(f"{value} {name}" for name, value in counts._asdict().items()), f"-> {out}")
    if manifest is not None and not test:
        from vexkd.data import demands
        from vexkd.data import infos as info_tools

        for sentence in demands.check_all(experiment.params.runs, info_tools.load(out), root=root):
            print(sentence)


@verb(PANEL, example="vexkd paste --workers 8")
def paste(workers: Workers = 2, experiment: Here = HERE) -> None:
    """Cut the objects out of the training scenes: the ground-truth database for pasting."""
    from vexkd import seal
    from vexkd.data import paste as module

    recipe = seal.shared_settings(experiment.params).get("paste")
    if recipe is None:
        raise InputError(f"{experiment.params.path}: no run pastes objects; there is nothing to cut out.")
    count = module.build(experiment.root, experiment.infos, experiment.paste, **recipe, workers=workers)
    print(f"{count} objects -> {experiment.paste}")


@verb(PANEL, example="vexkd maps --workers 8")
def maps(workers: Workers = 2, experiment: Here = HERE) -> None:
    """Draw the six classes of map segmentation once a sample, from the map expansion."""
    from vexkd import seal
    from vexkd.data import map_drawing

    recipe = seal.shared_settings(experiment.params).get("maps")
    if recipe is None:
        raise InputError(f"{experiment.params.path}: no run segments maps; there is nothing to draw.")
    count = map_drawing.build(experiment.root, experiment.infos, experiment.maps, **recipe, workers=workers)
    print(f"{count} samples -> {experiment.maps}")
