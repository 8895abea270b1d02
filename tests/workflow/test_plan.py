"""What Snakemake plans, from the literal commands of the README, and the files that decide it."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from vexkd import seal, settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(checkout):
    return checkout()


def expected(params: settings.Params) -> Counter[str]:
    """The whole matrix, counted from the settings alone."""
    runs, seeds = len(params.runs), len(params.seeds)
    segmenters = sum(run.task == "segmentation" for run in params.runs.values())
    once = {
        "doctor": 1,
        "infos": 1,
        "paste": 1,
        "synthesize": 1 if params.synthetic else 0,
        "maps": int(segmenters > 0),
    }
    once["backbone"] = len(
        {str(files["backbone"]) for run in params.runs.values() if "backbone" in (files := seal.inputs(run, 0))}
    )
    each = {"train": runs * seeds, "predict": runs * seeds, "evaluate": runs, "table": len(params.tables)}
    figures = {"birdseye": runs - segmenters, "map_figure": segmenters, "distillation": 1, "curves": 1}
    shown = {name: len(rows) for name, rows in params.figures.items() if rows}
    figures |= {name: shown.pop(name, 0) for name in settings.PICTURES}
    figures["inspect"] = len({row for name in ("energy", "masks") for row in params.figures.get(name, [])})
    missing = 2 * shown.get("missing-sensor", 0)  # each of two sensors
    figures |= {"chart": len(shown), "predict_without": missing * seeds, "evaluate_without": missing}
    figures |= {"latency": shown.get("latency", 0), "report_page": 1}
    return Counter({**once, **each, **figures}) + Counter()


def test_the_paper_is_planned_without_the_data(place):
    assert place.plan() == expected(settings.load(ROOT / "params.yaml"))


def test_the_demo_is_planned(place):
    assert place.plan(folder="demo") == expected(settings.load(ROOT / "demo" / "params.yaml"))


def test_the_doctor_is_asked_for_what_the_runs_read(place):
    """So that a few of nuScenes' blobs are enough for runs that need no more; infos compare the settings with the data."""
    out = place.snakemake("-n", "-p", "--directory", "demo", "--", "artifacts/infos/samples.parquet")
    [doctor] = [line for line in out.splitlines() if "vexkd doctor" in line]
    assert "--splits mini_train,mini_val --sensors lidar,camera --skip-unused" in doctor
    [infos] = [line for line in out.splitlines() if "vexkd infos" in line]
    assert "--params " in infos


def test_a_table_needs_its_rows_and_no_more(place):
    params = settings.load(ROOT / "params.yaml")
    students = {params.run(row).student for row in params.table("main")} - {None}
    planned = place.plan("table_main")
    assert planned["evaluate"] == len({*params.table("main"), *students})
    assert planned["table"] == 1
    assert "birdseye" not in planned


def test_lint_and_format(place):
    assert "good condition" in place.run("snakemake", "--lint")
    place.run("snakefmt", "--check", "workflow")


def test_the_demo_stays_in_its_folder_and_is_made_once(place):
    place.calls()
    place.snakemake("--directory", "demo")
    params = settings.load(ROOT / "demo" / "params.yaml")
    assert len(place.calls()) == sum(expected(params).values())
    assert (place.folder / "demo/results/tables/main.md").is_file()
    assert place.run("git", "status", "--short", "demo").split() == ["??", "demo/results/"]
    assert not (place.folder / "models").exists()
    assert "Nothing to be done" in place.snakemake("--directory", "demo")
    assert not place.calls()


def test_a_bad_setting_is_named_before_anything_runs(place):
    original = (place.folder / "params.yaml").read_text()
    try:
        (place.folder / "params.yaml").write_text(
            original.replace("\n  weight_decay:", "\n  weight_decoy: 0.1\n  weight_decay:", 1)
        )
        assert "train.weight_decoy: there is no such setting" in place.snakemake("-n", fails=True)
    finally:
        (place.folder / "params.yaml").write_text(original)


@pytest.mark.parametrize("name", ["params.yaml", "demo/params.yaml"])
def test_snakemake_and_dvc_read_equal_values(name):
    text = (ROOT / name).read_text()
    ours, theirs = yaml.safe_load(text), YAML(typ="safe").load(text)
    assert ours == theirs
    assert types(ours) == types(theirs)


def types(value):
    """The same nest of containers with types for values: 1 equals 1.0, but is not the same setting."""
    if isinstance(value, dict):
        return {key: types(item) for key, item in value.items()}
    return [types(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_the_profiles_name_rules_that_exist(place, name):
    assert (ROOT / name).is_symlink()
    profile = yaml.safe_load((ROOT / name / "config.yaml").read_text())
    always = yaml.safe_load((ROOT / "workflow/profiles/default/config.yaml").read_text())
    assert always["max-checksum-file-size"] == "100GB"
    assert "code" not in always["rerun-triggers"]
    assert not set(profile) & set(always)
    rules = set(place.run("snakemake", "--list-rules").split()) | {"synthesize"}
    assert set(profile.get("set-threads", {})) | set(profile.get("set-resources", {})) <= rules


@pytest.mark.skipif(not importlib.util.find_spec("snakemake_executor_plugin_slurm"), reason="needs the extra [slurm]")
def test_the_literal_call_on_a_cluster_plans_the_paper(place):
    out = place.run("snakemake", "--profile", "slurm", "-n", "--quiet", "rules")
    assert str(sum(expected(settings.load(ROOT / "params.yaml")).values()) + 1) in out
