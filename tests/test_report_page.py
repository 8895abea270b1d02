"""report.html from the demo's kept results and from results written by hand: whole, escaped, linked, without network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from vexkd import settings
from vexkd.experiment import Experiment
from vexkd.report import page, result_tables
from vexkd.report.page import alt_text, pictures
from vexkd.report.results import Results

REPOSITORY = Path(__file__).resolve().parents[1]
VOID = {"img", "meta", "br", "col"}


class Reader(HTMLParser):
    """Elements in order with their attributes and text; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, int]] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.texts.append([])
        if tag not in VOID:
            self.open.append((tag, len(self.texts) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.texts[place].append(data)

    def of(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of all elements of these kinds."""
        pairs = zip(self.found, self.texts, strict=True)
        return [(attributes, "".join(text)) for (tag, attributes), text in pairs if tag in tags]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the demo's results, which are kept in the repository, with small pictures."""
    kept, folder = REPOSITORY / "demo" / "results", tmp_path / "results"
    shutil.copytree(kept / "runs", folder / "runs")
    shutil.copytree(kept / "figures", folder / "figures", ignore=shutil.ignore_patterns("*.png", "*.svg"))
    for path in (kept / "figures").glob("*.png"):
        Image.new("RGB", (60, 40), "white").save(folder / "figures" / path.name)
    return folder


@pytest.fixture
def params(results: Path) -> settings.Params:
    """The demo's settings, of which only the runs that have results."""
    found = settings.load(REPOSITORY / "demo" / "params.yaml")
    kept = [name for name in found.runs if (results / "runs" / name / "metrics.json").is_file()]
    shown = {name: [row for row in rows if row in kept] for name, rows in found.tables.items()}
    runs = {name: found.runs[name] for name in kept}
    changes = {"runs": runs, "tables": {name: rows for name, rows in shown.items() if rows}}
    return found.model_copy(update=changes)


def read(params: settings.Params, results: Path) -> Results:
    return Results(Experiment(results.parent), params)


def page_of(params: settings.Params, results: Path) -> Reader:
    return Reader(page.make(read(params, results)).read_text())


def test_every_run_table_and_figure_is_there(params, results):
    found = page_of(params, results)
    anchors = {attributes["id"] for _, attributes in found.found if "id" in attributes}
    assert {f"run-{name}" for name in params.runs} | {f"table-{name}" for name in params.tables} <= anchors
    pictures = list((results / "figures").glob("*.png"))
    assert pictures
    assert len(found.of("img")) == len(pictures)
    cells = {text for _, text in found.of("td", "th")}
    for name in params.tables:
        shown = result_tables.read(name, read(params, results)).text
        for part in shown.parts:
            assert {cell for row in part.short.rows + part.full.rows for cell in row} <= cells
        assert set(shown.notes + shown.legend) <= {text for _, text in found.of("p")}


def test_links_lead_somewhere_and_nothing_is_fetched(params, results):
    found = page_of(params, results)
    anchors = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    links = [attributes["href"] for attributes, _ in found.of("a")]
    assert all(link.startswith("#") and link[1:] in anchors for link in links)
    text = (results / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)|url\(|@import|<script|<link""", text)


def test_who_listens_finds_their_way(params, results):
    """Headings in order, one first heading, texts for pictures, headers of tables, regions that the keyboard reaches."""
    found = page_of(params, results)
    levels = [int(tag[1]) for tag, _ in found.found if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(len(attributes["alt"]) > 30 for attributes, _ in found.of("img"))
    assert all(attributes.get("scope") in ("col", "row") for attributes, _ in found.of("th"))
    assert len(found.of("caption")) == len(found.of("table"))
    scrolling = [a for a, _ in found.of("div") if a.get("class") in ("scroll", "pan")]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolling)
    assert found.of("html")[0][0]["lang"] == "en"
    assert found.of("a")[0][0]["href"] == "#main"


def test_the_same_results_make_the_same_page(params, results, monkeypatch):
    """No time, no command and no commit of its own: else each rebuild would be a change to git."""
    name = next(iter(params.runs))
    only = params.model_copy(update={"runs": {name: params.runs[name]}, "tables": {}})
    for path in (results / "figures").glob("*.png"):
        path.unlink()
    before = page.document(read(only, results))
    monkeypatch.setattr("sys.argv", ["vexkd", "another", "command"])
    monkeypatch.setattr("time.gmtime", lambda: pytest.fail("the page asks for the time"))
    assert page.document(read(only, results)) == before


def test_pictures_keep_their_place_and_say_what_one_sees(params, results):
    """Sizes stand at pictures, so that a link's target does not move when they appear; texts have the CSV's numbers."""
    found = page_of(params, results)
    images = [attributes for attributes, _ in found.of("img")]
    assert all(0 < int(image["width"]) <= pictures.WIDTH and int(image["height"]) > 0 for image in images)
    texts = [image["alt"] for image in images]
    assert len(set(texts)) == len(texts)
    frame = pd.read_csv(results / "figures" / "birdseye-fusion-det.csv")
    true = int((frame["source"] == "ground truth").sum())
    words = f"{true} annotated boxes and {len(frame) - true} predicted ones."
    assert f"From above: fusion-det. {words}" in texts
    assert not any("nan" in text.split() for text in texts)


def test_a_run_leads_back_to_its_rows_and_tells_where_it_came_from(params, results):
    text = page.make(read(params, results)).read_text()
    name = params.tables["main"][-1]
    assert f'<tr id="row-main-{name}">' in text
    section = text[text.index(f'id="run-{name}"') :]
    assert f'<a href="#row-main-{name}">main</a>' in section
    origin = json.loads((results / "runs" / name / "provenance.json").read_text())
    record = next(iter(origin["seeds"].values()))
    weights = next(iter(origin["evaluation"]["weights"].values()))["weights.safetensors"]
    for words in (record["settings_digest"], record["inputs"]["infos"], weights[:16], record["commit"][:10]):
        assert words in section.split("<details>")[0]


def test_a_run_unlike_its_student_says_so(params, results):
    run = next(run for run in params.runs.values() if run.kind == "distilled")
    train = run.train.model_copy(update={"epochs": 9})
    runs = params.runs | {run.name: run.model_copy(update={"train": train})}
    text = page.make(read(params.model_copy(update={"runs": runs}), results)).read_text()
    assert f"<dt>Unlike {run.student}</dt><dd>has train.epochs 9 (not " in text


def test_a_wide_picture_is_made_smaller(tmp_path):
    Image.new("RGB", (3 * pictures.WIDTH, 600), "white").save(tmp_path / "wide.png")
    source, width, height = pictures.inlined(tmp_path / "wide.png")
    assert (width, height) == (pictures.WIDTH, 200)
    assert source.startswith("data:image/webp;base64,")


def test_size_of_a_vector_picture(tmp_path):
    path = tmp_path / "curves.svg"
    path.write_text('<svg width="720pt" height="36pt" viewBox="0 0 720 36.2"></svg>')
    assert pictures.inlined(path)[1:] == (960, 48)


def test_texts_of_figures_are_read_from_their_tables(tmp_path):
    tables = {
        "blocks": ("run,student,blocks,score,percent,epochs_to_converge\na,s,1,NDS,50,4\nb,s,2,NDS,51.26,3.5\n",
                   "NDS of s: 50.0 % with 1, 51.3 % with 2. Epochs to settle: 4.0 with 1, 3.5 with 2."),
        "missing-sensor": ("run,sensors,score,percent\na,all sensors,mAP,43.7\na,without lidar,mAP,0\n",
                           "a, mAP: 43.7 % with all sensors, 0.0 % without lidar."),
        "latency": ("run,score,percent,latency_ms\na,NDS,40,12.4\n", "a 40.0 % NDS in 12 ms."),
        "curves": ("run,seed,step,loss\na,0,0,4\na,0,1,1\nb,0,0,2\nb,0,1,0.5\n",
                   "2 panels; the loss ends at 25% of its start on average."),
        "distillation": ("run,metric,baseline,distilled\na,NDS,40,41\nb,NDS,40,38.5\na,mAP,1,2\n",
                         "2 distilled students; NDS changes from -1.5 points (b) to +1.0 (a)."),
        "camera": ("outcome,class,run\nhit,car,a\nhit,bus,a\nmissed,car,a\n", "a: 2 hits, 1 missed."),
        "errors": ("class,hit,false_alarm,missed,run\ncar,1,2,3,a\nbus,1,0,0,a\n", "a: 2 hits, 2 false alarms, 3 missed."),
        "maps": ("class,iou_percent\nstop_line,\ndivider,21.7\n", "IoU on this sample: stop line nowhere, divider 22 %."),
        "energy": ("level,run,cosine_to_teacher\nlow,a,0.5\nhigh,a,1\n",
                   "Cosine of each map to the teacher's, low: a 0.50; high: a 1.00."),
        "masks": ("level,region,mean\nlow,annotated objects,0.5\nlow,not annotated objects,0.25\n",
                  "Mean of the mask, low: 0.500 on annotated objects, 0.250 elsewhere."),
    }  # fmt: skip
    for kind, (content, words) in tables.items():
        (tmp_path / f"{kind}.csv").write_text(content)
        assert alt_text.words(tmp_path / f"{kind}.png", kind) == words
    (tmp_path / "blocks.csv").write_text("of,another,version\n1,2,3\n")
    assert alt_text.words(tmp_path / "blocks.png", "blocks") == ""
    assert alt_text.words(tmp_path / "absent.png", "blocks") == ""


def test_a_run_without_results_is_said(params, results):
    name = next(iter(params.runs))
    shutil.rmtree(results / "runs" / name)
    text = page.make(read(params, results)).read_text()
    assert f"<code>snakemake --cores all results/runs/{name}/metrics.json</code> makes them." in text
    assert "Not there yet:" in text
    Reader(text)


def test_text_from_files_is_escaped(params, results):
    name = next(iter(params.runs))
    path = results / "runs" / name / "provenance.json"
    origin = json.loads(path.read_text())
    for seed in origin["seeds"].values():
        seed["command"] = seed["hardware"]["cpu"] = "<script>alert('1 & 2')</script>"
    path.write_text(json.dumps(origin))
    text = page.make(read(params, results)).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;1 &amp; 2&#39;)&lt;/script&gt;" in text
