"""What tables, figures and the page say of their making, and what is seen of changes by it."""

import json
from pathlib import Path

import pytest
from conftest import tiny_settings

from vexkd.content import Digests
from vexkd.experiment import Experiment
from vexkd.report import outputs, page, records, sources
from vexkd.report.page import pictures
from vexkd.report.results import Results
from vexkd.settings import Params, Reported, parse


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Params:
    """An experiment with results that no one reads here, in the working directory."""
    monkeypatch.chdir(tmp_path)
    raw = tiny_settings()
    found = parse(raw | {"figures": {"latency": ["centerpoint-det"], "masks": ["centerpoint-det-vexkd"]}})
    for name in sources.of_table("main", found):
        write(name, name)
    return found


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def make_table(params: Params) -> Path:
    stem = Path("results/tables/main")
    for end in records.TABLE_FILES:
        write(f"{stem}.{end}", f"a table as {end}\n")
    names, asked = sources.of_table("main", params), sources.table_settings("main", params)
    found = records.of_files(stem, records.TABLE_FILES, names, asked, Path())
    write(f"{stem}.provenance.json", json.dumps(found))
    return stem


def make_page(params: Params) -> Path:
    path = Path("results/report.html")
    names, asked = sources.of_page(params), sources.page_settings(params)
    write(str(path), records.signed("<p>all of it</p>\n", names, asked, Path()))
    return path


MAKE = {"table": make_table, "page": make_page}
METRICS = "results/runs/centerpoint-det/metrics.json"


@pytest.mark.parametrize("what", MAKE)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: None, None),
        (lambda: write(METRICS, "other scores"), f"was not made from the present {METRICS}"),
        (lambda: write("results/runs/centerpoint-det/summary.json", "{}"), "not made from the present"),
        (lambda: Path("results/runs/centerpoint-det/latency.json").unlink(), "which is not shown any more"),
    ],
)
def test_what_something_was_made_from_is_compared(settings, what, change, reason):
    write("results/runs/centerpoint-det/latency.json", "{}")
    made = MAKE[what](settings)
    change()
    found = outputs.problems(settings)
    assert (len(found) == 1) == (reason is not None), found
    assert all(reason in sentence and str(made) in sentence for sentence in found)


@pytest.mark.parametrize("what", MAKE)
def test_settings_that_are_shown_are_compared(settings, what):
    MAKE[what](settings)
    published = Reported(mAP=50.0, source="here")
    other = settings.model_copy(update={"reported": {"centerpoint-det": published}})
    assert "was made with other settings than those of now" in outputs.problems(other)[0]


@pytest.mark.parametrize("ending", [*records.TABLE_FILES, "provenance.json"])
def test_a_file_of_a_table_that_was_changed_is_named(settings, ending):
    stem = make_table(settings)
    path = stem.with_name(f"main.{ending}")
    path.write_text("<<<<<<< HEAD\n" + path.read_text())
    (found,) = outputs.problems(settings)
    assert found.startswith(f"{path} is ")


@pytest.mark.parametrize(
    "change", [lambda text: f" {text}", lambda text: f"{text}\n<p>more</p>", lambda text: text[:-9]]
)
def test_a_page_that_was_changed_is_named(settings, change):
    path = make_page(settings)
    path.write_text(change(path.read_text()))
    assert outputs.problems(settings) == [f"{path} was changed after it was made; run snakemake, which makes it again."]


def test_without_a_record_times_decide_and_check_names_it(settings):
    write("results/report.html", "<p>of an earlier version</p>")
    stem = make_table(settings)
    write(f"{stem}.provenance.json", json.dumps({"table": "main"}))
    verdicts = [product.judge() for product in outputs.of_report(settings, Digests()) if product.outputs[0].is_file()]
    assert verdicts == [None, None]
    assert [sentence.split(";")[0] for sentence in outputs.problems(settings)] == [
        "results/tables/main.csv does not say what it was made from",
        "results/report.html does not say what it was made from",
    ]


def test_a_figure_of_other_predictions_is_named(settings):
    name = "models/centerpoint-det/seed0/predictions.json"
    write(name, "boxes")
    stem = Path("results/figures/birdseye-centerpoint-det")
    for end in records.FIGURE_FILES:
        write(f"{stem}.{end}", end)
    for sample in (3, None):  # one of a sample that was asked for by hand is another figure
        records.write_figure("birdseye-centerpoint-det", settings, Experiment(), sample=sample)
        assert len(outputs.problems(settings)) == (sample is not None)
    write(name, "other boxes")
    assert f"{stem}.png was not made from the present {name}" in outputs.problems(settings)[0]


def test_the_page_shows_nothing_left_over(settings):
    for name in ("birdseye-gone", "blocks", "masks-centerpoint-det"):
        write(f"results/figures/{name}.png", "a picture")
    assert pictures.of_page(Results(Experiment(), settings))[0] == []
    assert "gone" not in page.document(Results(Experiment(Path("nowhere")), settings))
