# What all rules share: the settings of this call, paths, and how commands are started. The functions of the rules in NAME.smk
# stand in NAME_functions.smk beside it.
#
# The main process freezes params.yaml; jobs read what it froze (VEXKD_CALL), so that an edit or a `git switch` while the matrix
# runs reaches none of them (see vexkd/calls.py).
import os
import re
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from scripts import machine

machine.run_own_code(workflow.basedir)  # before anything of vexkd is imported

from scripts import plan, scheduler, slurm_queue
from vexkd import calls, needs, products, seal
from vexkd.errors import InputError
from vexkd.experiment import Experiment, TEST_VERSION
from vexkd.report import sources
from vexkd.settings import PICTURES
from vexkd.train import finished

machine.find_own_commands()

CALL = plan.begin(workflow)
SETTINGS = CALL.params
FIRST_SEED = SETTINGS.seeds[0]
shell.prefix(f"export VEXKD_CALL={shlex.quote(CALL.folder.name)}; ")

EXPERIMENT = Experiment()
INFOS, MAPS, PASTE = (
    EXPERIMENT.infos_files,
    EXPERIMENT.maps_files,
    EXPERIMENT.paste_files,
)
TRAINING = EXPERIMENT.training("{run}", "{seed}")
RUN = EXPERIMENT.run("{run}")
LOGS = EXPERIMENT.logs
CORES = workflow.resource_settings.cores or 1  # none on a cluster: the profile says
SCRIPTS = os.path.relpath(
    workflow.basedir
)  # from the experiment's folder: the commands hold no machine's paths
ATTEMPT = f"python3 {shlex.quote(SCRIPTS)}/scripts/job_attempt.py"


wildcard_constraints:
    run="[a-z0-9-]+",
    table="[a-z0-9_-]+",
    seed="[0-9]+",
    ending="json|safetensors",
    sensor="lidar|camera",


def written(*files):
    """Merged settings of this call, which it writes before it plans; a dry run writes nothing and judges by content alone."""

    def paths(wildcards):
        named = [str(file).format(**wildcards) for file in files]
        return [file for file in named if os.path.isfile(file)]

    return paths


def raw_data(wildcards=None):
    """The town where it is embedded: made before it is read; that the same was made again alone changes nothing."""
    if not SETTINGS.synthetic:
        return []
    outdated = machine.is_newer(EXPERIMENT.shared_settings("town"), SETTINGS.root)
    return [SETTINGS.root if outdated else ancient(SETTINGS.root)]


def maps_of(wildcards):
    return MAPS if SETTINGS.run(wildcards.run).map is not None else []


def labels_of(wildcards):
    """What predicted maps are scored against; boxes are scored against the raw data."""
    segments = SETTINGS.run(wildcards.run).task == "segmentation"
    return [*INFOS, *MAPS] if segments else []


def predictions(name, seed, without=None):
    """The predictions of a run with a seed."""
    return EXPERIMENT.training(name, seed).predictions(SETTINGS.run(name).task, without)


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


def options(**values):
    """Options as they stand in a command, quoted for the shell; those without a value are left out."""
    return " ".join(
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in values.items()
        if value not in ("", None)
    )


def predict_options(wildcards, threads, resources):
    """What the machine decides: threads, loaders, samples at a time."""
    return options(
        threads=threads_each(threads, resources),
        workers=resources.get("workers"),
        batch=resources.get("batch"),
    )
