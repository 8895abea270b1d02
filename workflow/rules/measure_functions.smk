# Functions of the rules in measure.smk.


def predictions_without(wildcards):
    """What every seed of a run predicts without one of its sensors."""
    return [predictions(wildcards.run, s, wildcards.sensor) for s in SETTINGS.seeds]


def inspected_weights(wildcards):
    """A distilled run, its student alone and its teacher, with the first seed."""
    run = SETTINGS.run(wildcards.run)
    names = [name for name in (run.name, run.student, run.teacher) if name]
    return [EXPERIMENT.training(name, FIRST_SEED).weights for name in names]
