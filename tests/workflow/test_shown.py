"""Tables, figures and the page are held to what they show, by content; what is left over is named and removed on request."""

import json
import shutil

import pytest
import yaml

from vexkd import settings
from workflow.test_rerun import RATE, assert_settled

TABLE = "results/tables/main.md"
PAGE = "results/report.html"
SHOWN = ("table", "figure", "report_page")


def shown(place) -> dict[str, int]:
    """The jobs of a dry run that make tables, figures or the page, and no others."""
    planned = place.plan()
    assert set(planned) <= set(SHOWN), planned
    return dict(planned)


def make_seal(place) -> str:
    return place.run("make", "-o", ".venv/.made", "seal", fails=True)


def assert_held(place, file: str, jobs: dict[str, int]) -> None:
    """The plan has these jobs, check and seal name the file, and `dvc repro` makes it as it was asked for."""
    lock = (place.folder / "dvc.lock").read_text()
    for memory in (True, False):
        if not memory:
            shutil.rmtree(place.folder / ".snakemake", ignore_errors=True)
        assert shown(place) == jobs
    assert file in place.snakemake("-n")
    assert file in place.run("vexkd", "check", "--all", fails=True)
    assert file in make_seal(place)
    assert (place.folder / "dvc.lock").read_text() == lock
    place.run("dvc", "repro", "-q")
    place.calls()
    assert not place.run("vexkd", "check", "--all")
    assert_settled(place)


@pytest.fixture
def older(sealed):
    """A checkout whose HEAD~1 has results of another learning rate."""
    sealed.set(RATE, 0.5)
    sealed.run("dvc", "repro", "-q")
    sealed.commit()
    sealed.calls()
    return sealed


@pytest.mark.parametrize("files", ["results/tables", TABLE])
def test_an_older_table_is_not_sealed(older, files):
    """All of it, or one of its files: as after `git checkout COMMIT -- FILES`."""
    new = (older.folder / TABLE).read_text()
    older.run("git", "checkout", "-q", "HEAD~1", "--", files)
    assert (older.folder / TABLE).read_text() != new
    assert_held(older, "results/tables/main", {"table": 1, "report_page": 1})
    assert (older.folder / TABLE).read_text() == new


def test_the_page_of_another_commit_is_not_sealed(older):
    older.run("git", "checkout", "-q", "HEAD~1", "--", PAGE)
    assert_held(older, PAGE, {"report_page": 1})


def test_an_older_figure_is_not_sealed(older):
    older.run("git", "checkout", "-q", "HEAD~1", "--", "results/figures")
    assert_held(older, "results/figures/distillation", {"figure": 3, "report_page": 1})


@pytest.mark.parametrize("ending", ["png", "svg", "csv"])
def test_a_replaced_file_of_a_figure_is_made_again(sealed, ending):
    file = f"results/figures/birdseye-fusion-det.{ending}"
    (sealed.folder / file).write_text("of another run")
    assert_held(sealed, file, {"figure": 1, "report_page": 1})


@pytest.mark.parametrize("file", [TABLE, "results/tables/main.provenance.json", "results/tables/main.csv", PAGE])
def test_a_conflict_marker_is_found(sealed, file):
    path = sealed.folder / file
    text = path.read_text()
    path.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n")
    assert_held(sealed, file, {"report_page": 1} | ({"table": 1} if file != PAGE else {}))
    assert "<<<<" not in path.read_text()


def test_metrics_edited_by_hand_reach_no_table(sealed):
    """DVC, which has one stage for all runs and one for each, refuses them; Snakemake makes them again."""
    folder = sealed.folder / "results/runs/centerpoint-det"
    (folder / "metrics.json").write_text(json.dumps({"NDS": 0.9}))
    assert "metrics.json is not the one" in sealed.run("vexkd", "check", "--all", fails=True)
    assert "metrics.json is not the one" in make_seal(sealed)
    planned = sealed.plan()
    assert (planned["evaluate"], planned["table"], planned["report_page"]) == (1, 1, 1)
    assert "metrics.json is not the one" in sealed.run("dvc", "repro", "-q", fails=True)
    sealed.snakemake()
    sealed.run("dvc", "repro", "-q")
    assert "0.9" not in (folder / "metrics.json").read_text()
    assert not sealed.run("vexkd", "check", "--all")


def test_files_of_earlier_versions_go_by_their_times_and_check_names_them(sealed):
    record = sealed.folder / "results/tables/main.provenance.json"
    record.write_text(json.dumps({"table": "main"}))
    page = sealed.folder / PAGE
    page.write_text("<!DOCTYPE html>\n")
    assert "table" not in sealed.plan("results/tables/main.md")
    out = sealed.run("vexkd", "check", "--all", fails=True)
    assert out.count("does not say what it was made from") == 2
    record.unlink()
    page.unlink()
    sealed.snakemake()
    assert not sealed.run("vexkd", "check", "--all")


# ---- left-overs


def without_a_row(place) -> None:
    """Takes a table and a teacher out of params.yaml."""
    raw = yaml.safe_load((place.folder / "params.yaml").read_text())
    del raw["tables"]["teachers"], raw["teachers"]["fusion-conv-det"]
    raw["tables"]["main"].remove("fusion-conv-det")
    (place.folder / "params.yaml").write_text(settings.dump(raw))


def test_what_was_taken_out_is_named_and_removed_on_request(sealed):
    without_a_row(sealed)
    own = sealed.folder / "models/fusion-conv-det/notes.txt"
    own.write_text("mine")
    (sealed.folder / "results/figures/sketch.png").write_text("mine")
    (sealed.folder / "results/tables/notes.md").write_text("mine")
    for words in (sealed.snakemake("-n"), sealed.run("dvc", "repro", fails=True), make_seal(sealed)):
        for name in ("run fusion-conv-det", "table teachers", "figure birdseye-fusion-conv-det"):
            assert name in words
    listed = sealed.run("vexkd", "clean")
    for name in ("run fusion-conv-det", "table teachers", "birdseye-fusion-conv-det", "teachers@fusion-conv-det"):
        assert name in listed
    for kept in ("notes", "sketch"):
        assert kept not in listed
    assert (sealed.folder / "results/tables/teachers.md").is_file()  # listing removes nothing
    sealed.run("vexkd", "clean", "--remove")
    assert "teachers" not in " ".join(path.name for path in (sealed.folder / "results/tables").iterdir())
    assert not (sealed.folder / "results/runs/fusion-conv-det").exists()
    assert [path.name for path in (sealed.folder / "models/fusion-conv-det").iterdir()] == ["notes.txt"]
    assert not list((sealed.folder / "results/figures").glob("*fusion-conv-det*"))
    assert (sealed.folder / "results/figures/sketch.png").is_file()
    sealed.run("dvc", "repro", "-q")
    assert "fusion-conv-det" not in (sealed.folder / "dvc.lock").read_text()
    assert not sealed.run("vexkd", "check", "--all")
    sealed.calls()
    assert_settled(sealed)


def test_surplus_seeds_are_named(sealed):
    """Of three seeds one is kept: neither the metrics of three nor the weights of two more pass as those of one."""
    sealed.set("seeds", [0, 1])
    sealed.run("dvc", "repro", "-q")
    sealed.set("seeds", [0])
    shutil.rmtree(sealed.folder / ".snakemake")
    planned = sealed.plan()
    assert (planned["train"], planned["evaluate"]) == (0, 5)
    assert "made from seeds 0, 1, not 0" in sealed.run("vexkd", "check", "--all", fails=True)
    assert "seed 1 of fusion-det" in sealed.run("dvc", "repro", fails=True)
    sealed.run("vexkd", "clean", "--remove")
    sealed.run("dvc", "repro", "-q")
    assert not list((sealed.folder / "models").glob("*/seed1"))
    assert not sealed.run("vexkd", "check", "--all")


# ---- what is shown where it is measured


def test_a_summary_of_another_model_is_made_again_with_the_table_that_shows_it(sealed):
    summary = "results/runs/centerpoint-det/summary.json"
    sealed.snakemake("--", summary)
    assert shown(sealed) == {"table": 1, "report_page": 1}  # it is shown from now on
    sealed.snakemake()
    assert shown(sealed) == {}
    sealed.set("students.centerpoint-det.bev_encoder.channels", [32, 48])
    assert sealed.plan()["summary"] == 1
    sealed.snakemake()
    assert sealed.plan() == {}
    assert not sealed.run("vexkd", "check", "--all")


def test_a_latency_of_other_weights_is_measured_again_with_the_table_that_shows_it(sealed):
    sealed.snakemake("--", "results/runs/centerpoint-det/latency.json")
    sealed.snakemake()
    assert shown(sealed) == {}
    sealed.set(RATE, 0.5)
    assert sealed.plan()["latency"] == 1
