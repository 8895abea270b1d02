"""Tables of both tasks, confidence intervals of gains, and the marks at rows and gains that should not be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from vexkd import provenance, seal, settings
from vexkd.experiment import Experiment
from vexkd.report import gains, result_tables
from vexkd.report.results import Results

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = ["student-det", "taught-det", "student-map", "taught-map"]


@pytest.fixture
def raw() -> dict[str, Any]:
    """The repository's blocks of defaults with a student and a distilled run for each task."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    lidar = {"sensors": ["lidar"]}
    both = {"sensors": ["lidar", "camera"], "fusion": "mgfm"}
    detection = {"task": "detection", "head": "centerpoint"}
    segmentation = {"task": "segmentation", "head": "map"}
    groups = {
        "pretrained": {},
        "teachers": {"teacher-det": detection | both, "teacher-map": segmentation | both},
        "students": {"student-det": detection | lidar | {"paste": {"counts": {}}}, "student-map": segmentation | lidar},
        "distilled": {
            "taught-det": {"student": "student-det", "teacher": "teacher-det"},
            "taught-map": {"student": "student-map", "teacher": "teacher-map"},
        },
    }
    floors = {"student-det": {"mAP": 59.22, "NDS": 66.48, "source": "a paper"}}
    reported = {"student-map": {"mIoU": 48.56, "source": "another"}}
    return values | groups | {"tables": {"mixed": ROWS}, "figures": {}, "floors": floors, "reported": reported}


@pytest.fixture
def params(raw: dict[str, Any]) -> settings.Params:
    return settings.parse(raw)


def write_run(
    params: settings.Params, results: Path, name: str, scores: list[dict[str, float]], **changes: Any
) -> None:
    """Scores of each seed, and the record of a training; `changes` go into it."""
    folder = results / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    keys = [*scores[0]]
    means = {key: float(np.mean([seed[key] for seed in scores])) for key in keys}
    spread = {key: float(np.std([seed[key] for seed in scores], ddof=1)) if len(scores) > 1 else None for key in keys}
    seeds = {str(number): seed for number, seed in enumerate(scores)}
    (folder / "metrics.json").write_text(json.dumps(means | {"n": len(scores), "spread": spread, "seeds": seeds}))
    record = {"commit": "a" * 40, "dirty": False, "device": "A GPU", "devices": 2, "threads": 1}
    record |= {"settings_digest": provenance.digest(params.run(name).training()), "training_seconds": 3600.0}
    record |= {"inputs": {"infos": "0123"}, "versions": {"python": "3.11", "torch": "2.13", "dvc": "3"}, "command": "c"}
    evaluation = {"commit": "a" * 40, "dirty": False, "versions": record["versions"]}
    evaluation |= {"dataset": {"version": "v1.0-trainval", "split": "val"}}
    origin = {"seeds": dict.fromkeys(seeds, record | changes), "evaluation": evaluation}
    (folder / "provenance.json").write_text(json.dumps(origin))


@pytest.fixture
def results(tmp_path: Path, params: settings.Params) -> Path:
    errors = dict.fromkeys(("mATE", "mASE", "mAOE", "mAVE", "mAAE"), 0.25)
    folder = tmp_path / "results"
    write_run(params, folder, "student-det", [{"mAP": 0.58, "NDS": 0.67} | errors])
    write_run(params, folder, "taught-det", [{"mAP": 0.60, "NDS": 0.68} | errors])
    write_run(params, folder, "student-map", [{"mIoU": 0.48}, {"mIoU": 0.50}])
    write_run(params, folder, "taught-map", [{"mIoU": 0.53}, {"mIoU": 0.51}])
    return folder


def write_draws(results: Path, run: str, score: str, *seeds: np.ndarray, scenes: int = 150) -> None:
    values = {str(number): {score: list(map(float, seed))} for number, seed in enumerate(seeds)}
    head = {"scenes": [f"scene-{i}" for i in range(scenes)], "draws": len(seeds[0]), "generator_seed": 1}
    (results / "runs" / run / "resamples.json").write_text(json.dumps(head | {"seeds": values}))


def made(params: settings.Params, results: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Cells of the Markdown by run and heading, and the notes below."""
    result_tables.make("mixed", Results(Experiment(results.parent), params))
    short, full = (results / "tables" / "mixed.md").read_text().split("<details>")
    cells: dict[str, dict[str, str]] = {}
    for line in (line for line in full.splitlines() if line.startswith("| ")):
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if row[0] == "Run":
            head = row
        else:
            cells[row[0]] = dict(zip(head, row, strict=True))
    notes = [part for part in (short + full).splitlines() if part and not part.startswith(("|", "<", "**", "["))]
    return cells, [note.removesuffix("<br>") for note in notes]


def test_each_task_has_a_table_of_its_own(params, results):
    rows, notes = made(params, results)
    detection, segmentation = rows["taught-det"], rows["taught-map"]
    assert (detection["mAP ↑ (%)"], detection["NDS ↑ (%)"]) == ("60.0", "68.0")
    assert segmentation["mIoU ↑ (%)"] == "52.0 ± 1.4"
    assert detection["mATE ↓ (m)"] == "0.250"
    assert not [heading for heading in detection if "mIoU" in heading]
    assert not [heading for heading in segmentation if heading.startswith(("mA", "mASE", "NDS", "ΔNDS"))]
    assert segmentation["ΔmIoU"] == "+3.0 ± 2.8"  # +5 and +1
    assert rows["student-map"]["reported mIoU"] == "48.6 (+0.4)"
    assert any("mIoU: mean over the map classes" in note for note in notes)


def test_the_interval_is_that_of_the_paired_differences(params, results):
    """Scores of the draws swing widely, but together: only their differences, 0.00 to 0.04, may matter."""
    swing = np.random.default_rng(0).uniform(0.2, 0.8, 1000)
    difference = np.linspace(0.0, 0.04, 1000)
    write_draws(results, "student-det", "mAP", swing)
    write_draws(results, "taught-det", "mAP", swing + difference)
    rows, notes = made(params, results)
    assert rows["taught-det"]["ΔmAP"] == "+2.0 [+0.1, +3.9] ‡"
    row = pd.read_csv(results / "tables" / "mixed.csv").set_index("run").loc["taught-det"]
    assert row[["mAP_gain_low_points", "mAP_gain_high_points"]].tolist() == pytest.approx([0.1, 3.9], abs=1e-3)
    assert "In brackets: 95% confidence interval of the gain, paired bootstrap over scenes (150 scenes)." in notes


def test_seeds_are_drawn_too(params, results):
    """Two seeds with gains of 5 and 1 points on every draw: their mean is 1, 3 or 5, each end with a chance of 1/4."""
    level = np.full(1000, 0.4)
    write_draws(results, "student-map", "mIoU", level, level, scenes=2)
    write_draws(results, "taught-map", "mIoU", level + 0.05, level + 0.01, scenes=2)
    rows, notes = made(params, results)
    assert rows["taught-map"]["ΔmIoU"] == "+3.0 [+1.0, +5.0]"
    assert any("over scenes and seeds (2 scenes, too few to trust it)" in note for note in notes)


def test_interval_has_the_width_of_a_normal_mean():
    """Each of 4 seeds adds noise of 0.1 to each draw: the mean of 4 drawn ones varies by their own spread over 2."""
    rng = np.random.default_rng(1)
    offsets = rng.normal(scale=0.1, size=(4, 1))
    low, high = gains.interval(np.broadcast_to(offsets, (4, 20000)))
    deviation = offsets.std() / 2
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert gains.interval(np.linspace(0, 1, 1001)[None]) == pytest.approx((0.025, 0.975))


def test_runs_of_other_draws_are_not_paired(params, results):
    for run, scenes in (("student-det", 150), ("taught-det", 149)):
        write_draws(results, run, "mAP", np.full(1000, 0.5), scenes=scenes)
    assert made(params, results)[0]["taught-det"]["ΔmAP"] == "+2.0 ‡"


def test_a_gain_over_a_weak_baseline_is_marked(params, raw, results):
    rows, notes = made(params, results)
    assert rows["taught-det"]["ΔNDS"] == "+1.0 ‡"
    assert "‡ taught-det: its baseline student-det has mAP 58.0, not 59.2 (a paper); part of the gain may be that." in (
        notes
    )
    raw["floors"]["student-det"] = {"mAP": 58.0, "source": "a paper"}
    assert made(settings.parse(raw), results)[0]["taught-det"]["ΔmAP"] == "+2.0"


def test_a_gain_of_more_than_the_teaching_is_marked(params, raw, results):
    """The student learns from pasted objects, which images do not show: its distilled row cannot."""
    assert not any("§" in note for note in made(params, results)[1])
    assert pd.read_csv(results / "tables" / "mixed.csv")["unlike_baseline"].isna().all()
    del raw["students"]["student-det"]["paste"]
    raw["distilled"]["taught-map"]["train"] = {"epochs": 7, "sync_bn": False}
    params = settings.parse(raw)
    write_run(params, results, "student-det", [{"mAP": 0.58, "NDS": 0.67}])
    write_run(params, results, "taught-map", [{"mIoU": 0.53}, {"mIoU": 0.51}])
    rows, notes = made(params, results)
    assert (rows["taught-det"]["ΔmAP"], rows["taught-map"]["ΔmIoU"]) == ("+2.0 ‡§", "+3.0 ± 2.8 §")
    found = "§ taught-det: unlike its baseline it has no paste; part of the difference may be that."
    assert found in notes
    row = pd.read_csv(results / "tables" / "mixed.csv").set_index("run")["unlike_baseline"]
    assert row["taught-det"] == "no paste"
    assert row["taught-map"].startswith("train.epochs 7 (not ")
    assert pd.isna(row["student-det"])
    assert r"$^\S$" in (results / "tables" / "mixed.tex").read_text()


def test_rows_that_differ_alike_share_a_note(raw, results):
    del raw["students"]["student-det"]["paste"]
    raw["distilled"]["again-det"] = {"student": "student-det", "teacher": "teacher-det", "distill": {"mask": "ones"}}
    raw["tables"]["mixed"] = ["student-det", "taught-det", "again-det", "student-map"]
    params = settings.parse(raw)
    write_run(params, results, "again-det", [{"mAP": 0.59, "NDS": 0.67}])
    _, notes = made(params, results)
    shared = "§ taught-det, again-det: unlike their baselines they have no paste; part of the difference may be that."
    assert shared in set(notes)


def test_labels_for_the_teacher_are_part_of_the_teaching(raw, results):
    """A detector taught by a map segmenter has the block `map`, which it needs for its teacher's labels alone."""
    raw["distilled"]["taught-det"]["teacher"] = "teacher-map"
    raw["distilled"]["taught-det"]["distill"] = {"mask": "ones"}
    params = settings.parse(raw)
    assert params.run("taught-det").map is not None
    assert gains.unlike(Results(Experiment(results.parent), params).run("taught-det")) == []
    assert gains.unlike(Results(Experiment(results.parent), params).run("student-det")) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"inputs": {"infos": "4567"}}, "other data"),
        ({"versions": {"python": "3.11", "torch": "2.9"}}, "other versions (fewer known, not torch 2.9)"),
        ({"commit": "b" * 40}, "another commit"),
        ({"dirty": True}, "no uncommitted changes"),
    ],
)
def test_records_that_differ_are_said(params, results, changes, found):
    write_run(params, results, "student-det", [{"mAP": 0.58, "NDS": 0.67}], **changes)
    assert gains.unlike(Results(Experiment(results.parent), params).run("taught-det")) == [found]


def test_other_seeds_are_said(params, results):
    write_run(params, results, "taught-map", [{"mIoU": 0.53}])
    assert gains.unlike(Results(Experiment(results.parent), params).run("taught-map")) == ["seeds 0 (not 0, 1)"]


@pytest.mark.parametrize(
    ("own", "alone", "words"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1.0, "c": [1, 2]}}, {"a": {"b": 2.0, "c": [1, 3]}}, ["a.b 1.0 (not 2.0)", "a.c 1 2 (not 1 3)"]),
        ({"a": 1}, {"a": 1, "b": {"c": 1}}, ["no b"]),
        ({"a": 1, "b": {"c": 1}}, {"a": 1}, ["b"]),
        ({"a": {"b": 1}}, {"a": {}}, ["a.b 1"]),
        ({"a": {"kind": "x", "b": 1}}, {"a": {"kind": "y"}}, ["a.kind x (not y)", "a.b 1"]),
    ],
)
def test_differences_of_settings_in_words(own, alone, words):
    assert [gains._in_words(*setting) for setting in settings.unequal(own, alone)] == words


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": {"infos": "4567"}}, "made from other data than most rows"),
        (
            {"versions": {"python": "3.11", "torch": "2.9"}},
            "made with other versions than most rows (torch 2.9)",
        ),
        ({"versions": {"python": "3.11", "torch": "2.13", "dvc": "4"}}, None),  # decides no result
    ],
)
def test_a_row_of_other_data_or_versions_is_marked(params, results, changes, reason):
    write_run(params, results, "student-map", [{"mIoU": 0.48}, {"mIoU": 0.50}], **changes)
    _, notes = made(params, results)
    found = [note for note in notes if note.startswith("†")]
    assert found == ([f"† student-map: {reason}."] if reason else [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"commit": "b" * 40, "package": "0p"}, None),  # another commit of the same code
        ({"package": "1p"}, "made by other code than most rows (1p)"),
        ({"commit": "b" * 40, "package": "1p"}, "made at commit bbbbbbbbbb"),
    ],
)
def test_rows_are_held_to_the_code_that_made_them(params, results, changes, reason):
    for file in (results / "runs").glob("*/provenance.json"):
        origin = json.loads(file.read_text())
        mine = {"package": "0p"} | (changes if file.parent.name == "student-map" else {})
        for record in (*origin["seeds"].values(), origin["evaluation"]):
            record.update(mine)
        file.write_text(json.dumps(origin))
    _, notes = made(params, results)
    found = [note for note in notes if note.startswith("†")]
    assert found == ([f"† student-map: {reason}."] if reason else [])


def test_what_the_model_costs_comes_from_its_own_files(params, results):
    folder = results / "runs" / "student-det"
    origin = json.loads((folder / "provenance.json").read_text())
    origin["evaluation"]["weights"] = {"0": {"weights.safetensors": "0a"}}
    (folder / "provenance.json").write_text(json.dumps(origin))
    model = seal.model_digest(params, params.run("student-det"))
    summary = {"parameters": 8_320_000, "flops": 91.2e9, "settings_digest": model}
    latency = {"median_ms": 40.0, "device": "A GPU", "weights": "0a"}
    for other in (summary | {"settings_digest": "another"}, {**summary, "settings_digest": None}):
        (folder / "summary.json").write_text(json.dumps(other))
        (folder / "latency.json").write_text(json.dumps(latency | {"weights": "0b"}))
        assert not {"Params (M)", "GFLOPs", "Latency (ms)"} & set(made(params, results)[0]["student-det"])
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "latency.json").write_text(json.dumps(latency))
    rows, notes = made(params, results)
    found = rows["student-det"]
    assert [found[key] for key in ("Params (M)", "GFLOPs", "Latency (ms)", "FPS")] == ["8.32", "91.2", "40.0", "25.0"]
    assert rows["taught-det"]["FPS"] == ""
    assert any("Latency: median of one sample, A GPU." in note for note in notes)


def test_provenance_holds_all_that_a_row_was_made_from(params, results):
    made(params, results)
    row = json.loads((results / "tables" / "mixed.provenance.json").read_text())["rows"]["student-map"]
    assert row["inputs"] == {"0": {"infos": "0123"}, "1": {"infos": "0123"}}
    assert row["dataset"] == {"version": "v1.0-trainval", "split": "val"}
    assert row["environment"]["0"]["torch"] == "2.13"
    assert (row["gpu_hours"], row["wall_hours"]) == (2.0, 1.0)
    assert row["commands"] == ["c", "c", None]
