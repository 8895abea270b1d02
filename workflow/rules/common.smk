# Settings and the named functions of the rules. The main process freezes params.yaml; jobs read what it froze, so that an
# edit while the matrix runs reaches none of them (see vexkd/seal.py).
from scripts import machine
from vexkd import seal

machine.find_own_commands()

SETTINGS = seal.freeze() if workflow.is_main_process else seal.frozen()
VERSION = next(iter(SETTINGS.runs.values())).data.version
INFOS = [
    f"artifacts/infos/{name}.parquet"
    for name in ("samples", "sweeps", "cameras", "boxes")
]
WEIGHTS = "models/{run}/seed{seed}/weights.safetensors"
TABLE_FILES = ["csv", "md", "tex", "provenance.json"]


wildcard_constraints:
    run="[a-z0-9-]+",
    table="[a-z0-9_-]+",
    seed="[0-9]+",


def raw_data(wildcards=None):
    """The town where it is embedded: made before it is read; that the same was made again alone changes nothing."""
    if not SETTINGS.synthetic:
        return []
    outdated = machine.is_newer("results/settings/town.yaml", SETTINGS.root)
    return [SETTINGS.root if outdated else ancient(SETTINGS.root)]


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


def start_of(wildcards):
    start = SETTINGS.run(wildcards.run).start
    return WEIGHTS.format(run=start, seed=wildcards.seed) if start else []


def teacher_of(wildcards):
    teacher = SETTINGS.run(wildcards.run).teacher
    return WEIGHTS.format(run=teacher, seed=wildcards.seed) if teacher else []


def train_options(wildcards, input):
    """The options of `vexkd train` that only some runs have."""
    options = {
        "--paste": "artifacts/paste" if input.get("paste") else "",
        "--start": input.get("start"),
        "--teacher": input.get("teacher"),
    }
    return " ".join(f"{option} {value}" for option, value in options.items() if value)


def train_threads(wildcards):
    """Cores for one of the trainings that can run side by side here: two, but one on a GPU or where no other is left."""
    cores = workflow.cores or 1
    peers = sum(
        generation(run) == generation(SETTINGS.run(wildcards.run))
        for run in SETTINGS.runs.values()
    )
    alone = machine.has_gpu() or peers * len(SETTINGS.seeds) == 1
    return cores if alone else max(1, cores // 2)


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


def seed_options(wildcards):
    return " ".join(f"--seeds {seed}" for seed in SETTINGS.seeds)


def table_needs(name):
    """A file of every run in a table, and of the students behind its distilled rows."""

    def files(wildcards):
        rows = [SETTINGS.run(row) for row in SETTINGS.table(wildcards.table)]
        names = dict.fromkeys([run.name for run in rows] + with_students(rows))
        return expand("results/runs/{run}/{name}", run=names, name=name)

    return files


def with_students(runs):
    """The distilled ones of some runs, each with its student."""
    return [name for run in runs if run.student for name in (run.name, run.student)]


def distilled_runs():
    return [name for name, run in SETTINGS.runs.items() if run.student]


def distillation_metrics(wildcards):
    names = sorted(set(with_students(SETTINGS.runs.values())))
    return expand("results/runs/{run}/metrics.json", run=names)


def every_figure():
    birdseyes = [f"birdseye-{name}" for name in SETTINGS.runs]
    named = ["curves", *birdseyes, *(["distillation"] if distilled_runs() else [])]
    return expand(
        "results/figures/{figure}.{end}", figure=named, end=["png", "svg", "csv"]
    )


def every_run():
    """All that DVC tracks or git keeps of every run: a clone without them makes them again."""
    seeds = expand(
        "models/{run}/seed{seed}/{name}",
        run=SETTINGS.runs,
        seed=SETTINGS.seeds,
        name=[
            "weights.safetensors",
            "curve.csv",
            "provenance.json",
            "predictions.json",
        ],
    )
    return seeds + expand("results/runs/{run}/metrics.json", run=SETTINGS.runs)
