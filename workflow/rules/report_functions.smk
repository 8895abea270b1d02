# Functions of the rules in report.smk.

TABLE_FILES = ["csv", "md", "tex", "provenance.json"]
FIGURE_FILES = ["png", "svg", "csv", "provenance.json"]
CAPTIONS = {
    "birdseye": "Predicted and annotated boxes of one validation sample from above, in the LiDAR frame.",
    "camera": "A student and the same student distilled, in the six images of one keyframe: hits, false alarms and missed boxes.",
    "curves": "The training loss of every run and seed over optimiser steps.",
    "distillation": "Each distilled student against the same student trained alone: AP by class, mAP and NDS in percent.",
    "energy": "Energy of the BEV maps on one keyframe, the sum of absolute features over channels: a student alone, the same distilled, and its teacher, each over its own mean.",
    "errors": "A student and the same student distilled, on one keyframe from above: hits, false alarms and missed boxes; the CSV counts them by class.",
    "maps": "Predicted against true map cells of one keyframe, class by class, seen from above.",
    "masks": "Where a distilled run is drawn to its teacher's maps: its masks at each level over one keyframe.",
}


def table_sources(wildcards):
    return sources.of_table(wildcards.table, SETTINGS)


def figure_sources(wildcards):
    """The files that a figure shows, and the raw data where it shows a keyframe."""
    figure = sources.figures(SETTINGS)[wildcards.figure]
    whole = {str(EXPERIMENT.infos): INFOS, str(EXPERIMENT.maps): MAPS}
    files = []
    for name in sources.of_figure(wildcards.figure, SETTINGS):
        files += whole.get(name, [name])
    of_keyframe = figure.kind != wildcards.figure
    return [*(raw_data() if of_keyframe else []), *files]


def caption(wildcards):
    """What Snakemake's own report says below a figure."""
    of_rows = f"{wildcards.figure}: the rows that ``figures`` in ``params.yaml`` names for it; the CSV beside it has the numbers."
    return CAPTIONS.get(sources.figures(SETTINGS)[wildcards.figure].kind, of_rows)


def figure_files(names):
    return expand(EXPERIMENT.figures / "{figure}.{end}", figure=names, end=FIGURE_FILES)


def table_files(names):
    return expand(EXPERIMENT.tables / "{table}.{end}", table=names, end=TABLE_FILES)


def named_figures(name):
    """The figures under a name of params.yaml: one chart of all of its rows, or a picture of each."""
    rows = SETTINGS.figures[name]
    return [f"{name}-{row}" for row in rows] if name in PICTURES else [name]


def page_sources(wildcards):
    """What the page shows of runs: scores and records, and what was measured where it is there."""
    files = []
    for name in SETTINGS.runs:
        run = EXPERIMENT.run(name)
        files += [run.metrics, run.curve, run.provenance, run.resamples]
    return files + sources.measured(SETTINGS.runs, SETTINGS)


def every_runs_settings():
    runs = [EXPERIMENT.run(name) for name in SETTINGS.runs]
    return [file for run in runs for file in (run.config, run.inference)]
