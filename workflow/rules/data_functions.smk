# Functions of the rules in data.smk.


def manifest_of_infos(wildcards):
    """Doctor's manifest; that it looks at more files of the same data outdates no infos.

    Not `ancient`: behind such an input Snakemake 9.27.1 forgets jobs that have to run for another reason.
    """
    return [] if products.manifest_only_widens(SETTINGS) else EXPERIMENT.manifest


def paste_database():
    """The database of objects, where a run pastes some."""
    pastes = any(run.paste is not None for run in SETTINGS.runs.values())
    return PASTE if pastes else []


def map_rasters():
    """The labels of map segmentation, where a run reads them."""
    reads = any(run.map is not None for run in SETTINGS.runs.values())
    return MAPS if reads else []


def backbones():
    """Files that image backbones start from, each with the first run that does."""
    files = {}
    for run in SETTINGS.runs.values():
        if file := EXPERIMENT.backbone(run):
            files.setdefault(str(file), run.name)
    return files


def first_with_backbone(wildcards):
    return backbones()[wildcards.backbone]
