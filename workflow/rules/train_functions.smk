# Functions of the rules in train.smk.


def paste_of(wildcards):
    return PASTE if SETTINGS.run(wildcards.run).paste is not None else []


def backbone_of(wildcards):
    """The published weights that a run's image backbone starts from."""
    return EXPERIMENT.backbone(SETTINGS.run(wildcards.run)) or []


def start_of(wildcards):
    start = SETTINGS.run(wildcards.run).start
    return EXPERIMENT.training(start, wildcards.seed).weights if start else []


def teacher_of(wildcards):
    teacher = SETTINGS.run(wildcards.run).teacher
    return EXPERIMENT.training(teacher, wildcards.seed).weights if teacher else []


def train_options(wildcards, threads, resources):
    """What the machine decides and no result depends on: threads of a process, loaders, parts of a batch, the deadline."""
    return options(
        threads=threads_each(threads, resources),
        workers=resources.get("workers"),
        accumulate=resources.get("accumulate"),
        checkpoint_minutes=resources.get("checkpoint_minutes"),
        max_seconds=deadline(resources.get("runtime")),
    )


def deadline(minutes):
    """Seconds after which a training with this time limit saves and stops: ten minutes before it, or a fifth of it."""
    return 60 * minutes - min(600, 12 * minutes) if minutes else None


def of_every_seed(name):
    """This file of a run's trainings: `weights`, `curve`, `provenance`."""

    def files(wildcards):
        trainings = [EXPERIMENT.training(wildcards.run, s) for s in SETTINGS.seeds]
        return [getattr(training, name) for training in trainings]

    return files


def predictions_of_every_seed(wildcards):
    return [predictions(wildcards.run, seed) for seed in SETTINGS.seeds]


def every_run():
    """All that DVC tracks or git keeps of every run: a clone without them makes them again."""
    files = []
    for name in SETTINGS.runs:
        for seed in SETTINGS.seeds:
            training = EXPERIMENT.training(name, seed)
            files += [training.weights, training.curve, training.provenance]
            files += [predictions(name, seed)]
        files += [EXPERIMENT.run(name).metrics]
    return files
