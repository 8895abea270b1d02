"""What Snakemake plans, from the literal commands of the README, and the files that decide it."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from vexkd import settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(checkout):
    return checkout()


def reviewed(experiment: str) -> Counter[str]:
    """The jobs of a whole matrix, counted by rule: a snapshot, to be changed by hand where a change means to."""
    return Counter(json.loads((ROOT / "tests/golden/plans.json").read_text())[experiment])


def test_the_paper_is_planned_without_the_data(place):
    assert place.plan() == reviewed("paper")


def test_the_demo_is_planned(place):
    assert place.plan(folder="demo") == reviewed("demo")


def test_a_dry_run_writes_nothing(checkout):
    place = checkout()
    place.plan()
    place.plan(folder="demo")
    assert not place.run("git", "status", "--porcelain")
    ignored = place.run("git", "status", "--porcelain", "--ignored").split("!! ")[1:]
    assert [line.strip() for line in ignored] == [".snakemake/", "demo/.snakemake/"]


def test_a_table_needs_its_rows_and_no_more(place):
    params = settings.load(ROOT / "params.yaml")
    students = {params.run(row).student for row in params.table("main")} - {None}
    planned = place.plan("table_main")
    assert planned["evaluate"] == len({*params.table("main"), *students})
    assert planned["table"] == 1
    assert "figure" not in planned


def test_lint_and_format(place):
    assert "good condition" in place.run("snakemake", "--lint")
    place.run("snakefmt", "--check", "workflow")


def test_the_demo_stays_in_its_folder_and_is_made_once(place):
    place.calls()
    place.snakemake("--directory", "demo")
    assert len(place.calls()) == sum(reviewed("demo").values())
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
    assert str(sum(reviewed("paper").values()) + 1) in out
