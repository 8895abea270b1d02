# Settings and the named functions of the rules. The main process freezes params.yaml; jobs read what it froze, so that an
# edit or a `git switch` while the matrix runs reaches none of them (see vexkd/calls.py).
import os
import re
import shlex
from pathlib import Path
from typing import get_args

from snakemake.exceptions import WorkflowError

from scripts import machine

machine.run_own_code(workflow.basedir)  # before anything of vexkd is imported

from scripts import plan, scheduler, slurm_queue
from vexkd import calls, needs, products, seal
from vexkd.train import finished
from vexkd.errors import InputError
from vexkd.settings import PICTURES, FigureName
from vexkd.report import sources

machine.find_own_commands()

CALL = plan.begin(workflow)
SETTINGS = CALL.params
FROZEN_PARAMS = str(CALL.settings)  # what the jobs of this call read
FROZEN_RUNS = str(CALL.runs)
FROZEN_SETTINGS = str(CALL.folder / "settings")  # those that belong to no single run
VERSION = next(iter(SETTINGS.runs.values())).data.version
INFOS = [
    f"artifacts/infos/{name}.parquet"
    for name in ("samples", "sweeps", "cameras", "boxes")
]
MAPS = ["artifacts/maps/rasters.npy", "artifacts/maps/index.parquet"]
WEIGHTS = "models/{run}/seed{seed}/weights.safetensors"
INSPECTION = f"models/{{run}}/seed{SETTINGS.seeds[0]}/inspection.safetensors"
BACKBONES = {
    str(seal.inputs(run, 0)["backbone"]): run.name
    for run in reversed(SETTINGS.runs.values())
    if "backbone" in seal.inputs(run, 0)
}  # files that image backbones start from, each with the first run that does
CORES = workflow.resource_settings.cores or 1  # none on a cluster: the profile says
SCRIPTS = os.path.relpath(
    workflow.basedir
)  # from the experiment's folder: the commands hold no machine's paths
ATTEMPT = f"python3 {shlex.quote(SCRIPTS)}/scripts/attempt.py"
TABLE_FILES = ["csv", "md", "tex", "provenance.json"]
FIGURE_FILES = ["png", "svg", "csv", "provenance.json"]


wildcard_constraints:
    run="[a-z0-9-]+",
    table="[a-z0-9_-]+",
    seed="[0-9]+",
    ending="json|safetensors",


def raw_data(wildcards=None):
    """The town where it is embedded: made before it is read; that the same was made again alone changes nothing."""
    if not SETTINGS.synthetic:
        return []
    outdated = machine.is_newer("results/settings/town.yaml", SETTINGS.root)
    return [SETTINGS.root if outdated else ancient(SETTINGS.root)]


def needed_files(wildcards):
    """The splits and sensors whose files some run reads: the doctor looks at these."""
    splits, sensors = needs.needed_files(SETTINGS.runs.values())
    return {"splits": ",".join(splits), "sensors": ",".join(sensors)}


def manifest_of_infos(wildcards):
    """Doctor's manifest; that it looks at more files of the same data outdates no infos.

    Not `ancient`: behind such an input Snakemake 9.27.1 forgets jobs that have to run for another reason.
    """
    return (
        [] if products.manifest_only_widens(SETTINGS) else "artifacts/manifest.parquet"
    )


def pasting_runs():
    return [name for name, run in SETTINGS.runs.items() if run.paste is not None]


def paste_settings(wildcards):
    run = SETTINGS.run(pasting_runs()[0])
    return {
        "split": run.data.train_split,
        "min_points": run.paste.min_points,
        "sweeps": run.data.sweeps,
    }


def paste_database():
    return (
        ["artifacts/paste/points.npy", "artifacts/paste/index.parquet"]
        if pasting_runs()
        else []
    )


def paste_of(wildcards):
    return paste_database() if wildcards.run in pasting_runs() else []


def map_rasters():
    """The labels of map segmentation, where a run reads them."""
    read = any(run.map is not None for run in SETTINGS.runs.values())
    return MAPS if read else []


def map_settings(wildcards):
    return seal.map_settings(SETTINGS)


def maps_of(wildcards):
    return MAPS if SETTINGS.run(wildcards.run).map is not None else []


def backbone_of(wildcards):
    """The published weights that a run's image backbone starts from."""
    return seal.inputs(SETTINGS.run(wildcards.run), 0).get("backbone", [])


def first_with_backbone(wildcards):
    return BACKBONES[wildcards.backbone]


def labels_of(wildcards):
    """What predicted maps are scored against; boxes are scored against the raw data."""
    return [*INFOS, *MAPS] if is_segmenter(wildcards.run) else []


def is_segmenter(name):
    return SETTINGS.run(name).task == "segmentation"


def start_of(wildcards):
    start = SETTINGS.run(wildcards.run).start
    return WEIGHTS.format(run=start, seed=wildcards.seed) if start else []


def teacher_of(wildcards):
    teacher = SETTINGS.run(wildcards.run).teacher
    return WEIGHTS.format(run=teacher, seed=wildcards.seed) if teacher else []


def given(options):
    """Options as they stand in a command, quoted for the shell; those without a value are left out."""
    return " ".join(
        f"{option} {shlex.quote(str(value))}"
        for option, value in options.items()
        if value not in ("", None)
    )


def train_options(wildcards, input):
    """The options of `vexkd train` that only some runs have."""
    return given(
        {
            "--paste": "artifacts/paste" if input.get("paste") else "",
            "--maps": "artifacts/maps" if input.get("maps") else "",
            "--start": "".join(input.get("start", "")),
            "--teacher": "".join(input.get("teacher", "")),
        }
    )


def attempt_number(wildcards, attempt):
    return attempt


def processes(wildcards, resources):
    """`vexkd` itself, or where the profile asks for several GPUs, torchrun with one of it for each, on each node."""
    gpus, nodes = resources.get("gpu") or 1, resources.get("nodes") or 1
    if nodes > 1:
        if resources.get("tasks") != nodes or not resources.get("mpi") or gpus % nodes:
            raise InputError(
                f"the profile asks for {gpus} GPUs on {nodes} nodes: that needs as many GPUs on each, `tasks: {nodes}`"
                " and `mpi: srun` (docs/CLUSTER.md)."
            )
        step = f"srun --nodes {nodes} --ntasks {nodes} --ntasks-per-node 1 --kill-on-bad-exit=1"
        return f"{step} vexkd-launch --srun --nproc_per_node {gpus // nodes} --no-python vexkd"
    torchrun = f"vexkd-launch --standalone --nproc_per_node {gpus} --no-python"
    return f"{torchrun} vexkd" if gpus > 1 else "vexkd"


def threads_each(threads, resources):
    """Threads of each process: those of the job are shared by the GPUs of a node."""
    gpus, nodes = resources.get("gpu") or 1, resources.get("nodes") or 1
    return max(1, threads * nodes // max(gpus, nodes))


def train_pace(wildcards, threads, resources):
    """What the machine decides and no result depends on: threads of a process, loaders, parts of a batch, the deadline."""
    return given(
        {
            "--threads": threads_each(threads, resources),
            "--workers": resources.get("workers"),
            "--accumulate": resources.get("accumulate"),
            "--checkpoint-minutes": resources.get("checkpoint_minutes"),
            "--max-seconds": deadline(resources.get("runtime")),
        }
    )


def predict_options(wildcards, threads, resources):
    return given(
        {
            "--threads": threads_each(threads, resources),
            "--workers": resources.get("workers"),
            "--batch": resources.get("batch"),
        }
    )


def deadline(minutes):
    """Seconds after which a training with this time limit saves and stops: ten minutes before it, or a fifth of it."""
    return 60 * minutes - min(600, 12 * minutes) if minutes else None


def train_threads(wildcards):
    """Cores for one of the trainings that can run side by side here: two, but one on a GPU or where no other is left."""
    peers = sum(
        generation(run) == generation(SETTINGS.run(wildcards.run))
        for run in SETTINGS.runs.values()
    )
    alone = machine.has_gpu() or peers * len(SETTINGS.seeds) == 1
    return CORES if alone else max(1, CORES // 2)


def generation(run):
    """0 needs no other run, 1 starts from one, 2 has a teacher."""
    return 2 if run.teacher else 1 if run.start else 0


def of_every_seed(name):
    """A file of a run for every seed: `name` stands in the folder of the seed."""

    def files(wildcards):
        return expand(
            "models/{run}/seed{seed}/{name}",
            run=wildcards.run,
            seed=SETTINGS.seeds,
            name=name,
        )

    return files


def predictions_of_every_seed(wildcards):
    run = SETTINGS.run(wildcards.run)
    return [seal.predictions_path("models", run, seed) for seed in SETTINGS.seeds]


def first_predictions(wildcards):
    """What the figures of a run show."""
    run = SETTINGS.run(wildcards.run)
    return seal.predictions_path("models", run, SETTINGS.seeds[0])


def seed_options(wildcards):
    return " ".join(f"--seeds {seed}" for seed in SETTINGS.seeds)


def table_sources(wildcards):
    return sources.of_table(wildcards.table, SETTINGS)


def chart_sources(name=None):
    """What a figure of several runs reads."""

    def files(wildcards):
        return sources.of_chart(name or wildcards.chart, SETTINGS)

    return files


def measurements(names):
    """What tables and the page show of runs where it is there."""
    return sources.measured(names, SETTINGS)


def every_figure():
    return expand(
        "results/figures/{figure}.{end}",
        figure=sources.figures(SETTINGS),
        end=FIGURE_FILES,
    )


def every_run():
    """All that DVC tracks or git keeps of every run: a clone without them makes them again."""
    seeds = expand(
        "models/{run}/seed{seed}/{name}",
        run=SETTINGS.runs,
        seed=SETTINGS.seeds,
        name=["weights.safetensors", "curve.csv", "provenance.json"],
    )
    seeds += [
        seal.predictions_path("models", run, seed)
        for run in SETTINGS.runs.values()
        for seed in SETTINGS.seeds
    ]
    return seeds + expand("results/runs/{run}/metrics.json", run=SETTINGS.runs)


def named_figures(name):
    """The files of a figure of some rows: one chart of all of them, or pictures of each."""
    rows = SETTINGS.figures[name]
    return (
        [f"{name}-{row}" for row in rows]
        if name in PICTURES
        else [name] if rows else []
    )


def student_of(wildcards):
    """The student of a distilled run; a row of a figure in PICTURES is one."""
    return SETTINGS.run(wildcards.run).student


def predictions_beside_student(wildcards):
    """What a distilled run and its student alone predict, with the first seed."""
    names = [wildcards.run, student_of(wildcards)]
    runs = [SETTINGS.run(name) for name in names if name]
    return [seal.predictions_path("models", run, SETTINGS.seeds[0]) for run in runs]


def inspected_weights(wildcards):
    """A distilled run, its student alone and its teacher, with the first seed."""
    run = SETTINGS.run(wildcards.run)
    names = [name for name in (run.name, run.student, run.teacher) if name]
    return expand(WEIGHTS, run=names, seed=SETTINGS.seeds[0])


def mask_options(wildcards, input):
    """The option of `vexkd figure masks` that only a map segmentation has."""
    return given({"--maps": "artifacts/maps" if input.get("maps") else ""})


def predictions_without(wildcards):
    """What every seed of a run predicts without one of its sensors."""
    run = SETTINGS.run(wildcards.run)
    files = [seal.predictions_path("models", run, seed) for seed in SETTINGS.seeds]
    return [file.with_stem(f"{file.stem}-without-{wildcards.sensor}") for file in files]


TEST_VERSION = "v1.0-test"
TEST_MANIFEST = "submissions/manifest.parquet"
TEST_INFOS = [
    f"submissions/infos/{name}.parquet"
    for name in ("samples", "sweeps", "cameras", "boxes")
]


def test_tables(wildcards):
    """The tables of the test set; without one there is nothing to predict."""
    table = os.path.join(SETTINGS.root, TEST_VERSION, "sample.json")
    if not os.path.isfile(table):
        raise WorkflowError(
            f"{SETTINGS.root} holds no {TEST_VERSION}: put nuScenes' test set, tables and sensor files, beside {VERSION}."
        )
    return table


def sensors_of_detectors(wildcards):
    """What the runs that can be submitted read of the test set."""
    runs = SETTINGS.runs.values()
    sensors = {name for run in runs if run.task == "detection" for name in run.sensors}
    return ",".join(sorted(sensors))


def submitted_weights(wildcards):
    """Those of a detector; the server scores nothing else."""
    if is_segmenter(wildcards.run):
        raise WorkflowError(
            f"{wildcards.run}: nuScenes' server scores detections, and this run segments maps; name a detector."
        )
    return WEIGHTS.format(run=wildcards.run, seed=wildcards.seed)
