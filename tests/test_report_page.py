"""report.html from the demo's kept results and from results written by hand: whole, escaped, linked, without network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vexkd import params as settings
from vexkd.report import page, tables
from vexkd.report.markup import Markup, element, join

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
    """A copy of the demo's results, which are kept in the repository."""
    kept = REPOSITORY / "demo" / "results"
    for name in ("runs", "figures"):
        shutil.copytree(kept / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def params(results: Path) -> settings.Params:
    """The demo's settings, of which only the runs that have results."""
    found = settings.load(REPOSITORY / "demo" / "params.yaml")
    kept = [name for name in found.runs if (results / "runs" / name / "metrics.json").is_file()]
    shown = {name: [row for row in rows if row in kept] for name, rows in found.tables.items()}
    runs = {name: found.runs[name] for name in kept}
    changes = {"runs": runs, "tables": {name: rows for name, rows in shown.items() if rows}}
    return found.model_copy(update=changes)


def read(params: settings.Params, results: Path) -> Reader:
    return Reader(page.make(params=params, results=results).read_text())


def test_every_run_table_and_figure_is_there(params, results):
    found = read(params, results)
    anchors = {attributes["id"] for _, attributes in found.found if "id" in attributes}
    assert {f"run-{name}" for name in params.runs} | {f"table-{name}" for name in params.tables} <= anchors
    pictures = list((results / "figures").glob("*.png"))
    assert pictures
    assert len(found.of("img")) == len(pictures)
    cells = {text for _, text in found.of("td", "th")}
    for name in params.tables:
        shown = tables.read(name, params=params, results=results)
        assert {cell for row in shown.rows for cell in row} <= cells
        assert set(shown.notes) <= {text for _, text in found.of("p")}


def test_links_lead_somewhere_and_nothing_is_fetched(params, results):
    found = read(params, results)
    anchors = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    links = [attributes["href"] for attributes, _ in found.of("a")]
    assert all(link.startswith("#") and link[1:] in anchors for link in links)
    text = (results / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)|url\(|@import|<script|<link""", text)


def test_who_listens_finds_their_way(params, results):
    """Headings in order, one first heading, texts for pictures, headers of tables, regions that the keyboard reaches."""
    found = read(params, results)
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


def test_a_run_without_results_is_said(params, results):
    name = next(iter(params.runs))
    shutil.rmtree(results / "runs" / name)
    text = page.make(params=params, results=results).read_text()
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
    text = page.make(params=params, results=results).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert('1 &amp; 2')&lt;/script&gt;" in text


def test_elements():
    made = element(
        "a", "1 < 2", None, [Markup("<b>x</b>"), 3], class_="k", href='"', aria_label="l", hidden=True, id=None
    )
    assert made == '<a class="k" href="&quot;" aria-label="l" hidden>1 &lt; 2<b>x</b>3</a>'
    assert element("img", alt="") == '<img alt="">'
    assert join(["&", Markup("&amp;")]) == "&amp;&amp;"
