"""The report page, the charts of named rows and Snakemake's own report, made by the stand-in."""

import pytest


@pytest.fixture
def charted(sealed):
    """The finished checkout with rows for all three charts."""
    rows = {"blocks": ["centerpoint-det-vexkd"], "missing-sensor": ["fusion-det"], "latency": ["centerpoint-det"]}
    rows |= {name: ["centerpoint-det-vexkd"] for name in ("camera", "errors", "energy", "masks")}
    sealed.set("figures", rows)
    return sealed


def test_the_page_is_made_last_and_again_when_a_table_changes(sealed):
    assert sealed.plan() == {}
    assert (sealed.folder / "results" / "report.html").is_file()
    sealed.set("tables.main", ["fusion-det"])
    assert sealed.plan() == {"table": 1, "report_page": 1}


def test_a_chart_is_a_target_and_makes_what_it_shows(charted):
    assert charted.plan("figure_blocks") == {"figure": 1}
    assert charted.plan("figure_camera") == {"figure": 1}
    assert charted.plan("figure_errors") == {"figure": 1}
    assert charted.plan("figure_energy") == {"inspect": 1, "figure": 1}
    assert charted.plan("figure_masks") == {"inspect": 1, "figure": 1}
    assert charted.plan("figure_latency") == {"latency": 1, "figure": 1}
    assert charted.plan("figure_missing_sensor") == {"predict_without": 2, "evaluate_without": 2, "figure": 1}
    charted.snakemake("figure_missing_sensor")
    assert (charted.folder / "results" / "figures" / "missing-sensor.svg").is_file()
    charted.set("figures", {"missing-sensor": ["fusion-conv-det"]})
    assert charted.plan("figure_missing_sensor")["figure"] == 1


def test_snakemakes_own_report_has_every_output_with_its_caption(charted):
    charted.snakemake()
    charted.snakemake("--report", "own.html")
    text = (charted.folder / "own.html").read_text()
    captions = [
        "The training loss of every run",
        "Energy of the BEV maps",
        "in the six images of one keyframe",
        "The runs of one table",
    ]
    captions += ["blocks: the rows that"]
    assert all(words in text for words in captions)
    pictures = ["curves", "distillation", "blocks", "missing-sensor", "latency"]
    pictures += [f"{name}-centerpoint-det-vexkd" for name in ("camera", "errors", "energy", "masks")]
    assert all(f"results/figures/{name}.png" in text for name in pictures)
