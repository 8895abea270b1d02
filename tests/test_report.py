"""Tables, figures and the README's markers from results folders written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from vexkd import boxes, geometry, provenance, settings
from vexkd.boxes import CLASSES
from vexkd.errors import InputError
from vexkd.evaluate.detection import ERRORS, summarise
from vexkd.experiment import Experiment
from vexkd.report import readme, result_tables
from vexkd.report.figures.birdseye import birdseye
from vexkd.report.figures.curves import POINTS, curves
from vexkd.report.figures.distillation import distillation
from vexkd.report.results import Results

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = ["lidar-pretrain", "fusion-det", "centerpoint-det", "centerpoint-det-vexkd"]
DIGESTS = {
    name: provenance.digest(run.training()) for name, run in settings.load(REPOSITORY / "params.yaml").runs.items()
}


@pytest.fixture
def raw() -> dict[str, Any]:
    """The repository's settings with one small table, as plain values."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    reported = {"centerpoint-det": {"mAP": 57.63, "NDS": 65.39, "source": "the source"}}
    synthetic = {"scenes": 2, "samples": 2, "seed": 0, "image_size": [32, 16], "beams": 4, "azimuths": 8}
    assert not values.get("synthetic")
    for kind in settings.KINDS:
        values[kind] = {name: row for name, row in values[kind].items() if name in (*NAMES, "fusion-conv-det")}
    return values | {
        "tables": {"small": NAMES},
        "reported": reported,
        "floors": {},
        "figures": {},
        "synthetic": synthetic | {"sweeps_per_sample": 2},
    }


@pytest.fixture
def params(raw: dict[str, Any]) -> settings.Params:
    return settings.parse(raw | {"synthetic": None})


def score(mean_ap: float, nds: float) -> dict[str, Any]:
    errors = {name: 0.1 * (i + 1) for i, name in enumerate(ERRORS)}
    per_class = {name: {error: 0.25 for error in ERRORS.values()} for name in CLASSES}
    return {"mAP": mean_ap, "NDS": nds, **errors, "AP": dict.fromkeys(CLASSES, mean_ap), "errors": per_class}


def write_run(results: Path, name: str, scores: list[tuple[float, float]], **changes: Any) -> None:
    """What `collect` leaves for a run, one (mAP, NDS) a seed; `changes` go into the training records."""
    folder = results / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    trained = {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "A CPU", "cpus": 4, "gpus": ["A GPU"]}}
    trained |= {"settings_digest": DIGESTS.get(name), "parameters": 8_320_000, "training_seconds": 5400.0, "devices": 4}
    trained |= {"device": "A GPU", "threads": 2} | changes
    by_seed = {str(seed): score(*pair) for seed, pair in enumerate(scores)}
    (folder / "metrics.json").write_text(json.dumps(summarise(by_seed)))
    evaluation = {"commit": "a" * 40, "dirty": False, "weights": {seed: {"w": "0a"} for seed in by_seed}}
    origin = {"run": name, "seeds": {seed: trained | {"seed": int(seed)} for seed in by_seed}, "evaluation": evaluation}
    (folder / "provenance.json").write_text(json.dumps(origin))
    steps = np.arange(1, 41)
    rows = [pd.DataFrame({"seed": s, "step": steps, "loss": np.exp(-steps / 20) + 0.1}) for s in range(len(scores))]
    pd.concat(rows).to_csv(folder / "curve.csv", index=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_run(folder, "lidar-pretrain", [(0.60, 0.65)])
    write_run(folder, "fusion-det", [(0.65, 0.70)], commit="b" * 40)
    write_run(folder, "centerpoint-det", [(0.55, 0.60), (0.57, 0.62)])
    write_run(folder, "centerpoint-det-vexkd", [(0.58, 0.625), (0.59, 0.635)], dirty=True)
    return folder


def read(params: settings.Params, results: Path) -> Results:
    return Results(Experiment(results.parent), params)


def table(results: Path, suffix: str) -> str:
    return (results / "tables" / f"small.{suffix}").read_text()


def rows_of(markdown: str) -> list[dict[str, str]]:
    """Cells by heading of the first table in a text; all of its lines are equally long."""
    lines = [line for line in markdown.split("\n\n") if line.startswith("| ")][0].splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_markdown_of_a_small_table(params, results):
    result_tables.make("small", read(params, results))
    short, full = table(results, "md").split("<details>")
    rows = rows_of(short)
    assert rows[3] == {
        "Run": "centerpoint-det-vexkd †",
        "NDS ↑ (%)": "63.0 ± 0.7",
        "ΔNDS": "+2.0 ± 0.7 §",
        "mAP ↑ (%)": "58.5 ± 0.7",
        "reported NDS": "",
        "Params (M)": "8.32",
    }
    assert rows[2]["reported NDS"] == "65.4 (−4.4)"
    assert [row["Run"] for row in rows] == [
        "lidar-pretrain",
        "fusion-det †",
        "centerpoint-det",
        "centerpoint-det-vexkd †",
    ]
    rows = rows_of(full)
    assert rows[3] == {
        "Run": "centerpoint-det-vexkd †",
        "Sensors": "L+C → L",
        "Teacher": "fusion-det",
        "mAP ↑ (%)": "58.5 ± 0.7",
        "ΔmAP": "+2.5 ± 0.7 §",
        "NDS ↑ (%)": "63.0 ± 0.7",
        "ΔNDS": "+2.0 ± 0.7 §",
        "mATE ↓ (m)": "0.100",
        "mASE ↓ (1-IoU)": "0.200",
        "mAOE ↓ (rad)": "0.300",
        "mAVE ↓ (m/s)": "0.400",
        "mAAE ↓ (1-acc.)": "0.500",
        "reported mAP": "",
        "reported NDS": "",
        "Params (M)": "8.32",
        "GPU-hours": "6.00",
        "Hours": "1.50",
        "n": "2",
    }
    assert [row["Sensors"] for row in rows[:3]] == ["L", "L+C", "L"]
    assert rows[2]["reported mAP"] == "57.6 (−1.6)"
    assert short.split("\n\n")[1].split("<br>\n") == [
        "nuScenes v1.0-trainval, split val. Δ: percentage points over the same student trained without a teacher.",
        "Seed 0 or seeds 0, 1; ±: sample standard deviation over the seeds. Commit aaaaaaaaaa. Trained on 4 × A GPU.",
        "† fusion-det: made at commit bbbbbbbbbb, aaaaaaaaaa.",
        "† centerpoint-det-vexkd: made at commit aaaaaaaaaa, with uncommitted changes.",
        "§ centerpoint-det-vexkd: unlike its baseline it has no paste, uncommitted changes; "
        "part of the difference may be that.",
    ]
    legend = "L: LiDAR, C: camera.<br>\nCost: training of one seed with all its attempts, without its teacher's."
    legend += "<br>\nReported: the published value, and in parentheses how far from it this run is, in points."
    assert f"{legend}<br>\nReported, centerpoint-det: the source.\n\n[All numbers as CSV](small.csv)" in full


def test_a_short_table_stays_narrow(params, results):
    """Columns of little weight go first; the names of runs decide how many fit."""
    for name in NAMES:
        write_run(results, name, [(0.5, 0.5)], device="CPU", latency_ms=12.5)
    result_tables.make("small", read(params, results))
    head = list(rows_of(table(results, "md"))[0])
    assert head[-1] == "Latency (ms)"
    assert "CPU-hours" in rows_of(table(results, "md").split("<details>")[1])[0]


def test_csv_has_the_arithmetic(params, results):
    result_tables.make("small", read(params, results))
    frame = pd.read_csv(results / "tables" / "small.csv").set_index("run")
    row = frame.loc["centerpoint-det-vexkd"]
    assert list(frame.index) == NAMES
    assert row.mAP_percent == pytest.approx(58.5)
    assert row.mAP_gain_points == pytest.approx(2.5)
    assert row.NDS_gain_points == pytest.approx(2.0)
    assert row.mAP_gain_std_points == pytest.approx(np.std([3.0, 2.0], ddof=1))  # seed by seed
    assert frame.loc["centerpoint-det"].mAP_difference_points == pytest.approx(56.0 - 57.63)
    assert frame.loc["centerpoint-det"].NDS_std_percent == pytest.approx(2**0.5)
    assert np.isnan(frame.loc["centerpoint-det"].mAP_gain_points)
    assert row.gpu_hours == pytest.approx(6.0)
    assert frame.cpu_hours.isna().all()
    assert list(frame.marked) == [False, True, False, True]
    assert "latency_ms" not in frame


def test_latex_has_the_same_rows(params, results):
    result_tables.make("small", read(params, results))
    text = table(results, "tex")
    assert (
        r"centerpoint-det-vexkd $^\dagger$ & L+C $\rightarrow$ L & fusion-det & 58.5 $\pm$ 0.7 & +2.5 $\pm$ 0.7" in text
    )
    assert r"mAP $\uparrow$ (\%)" in text
    assert [text.count(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")] == [1, 1, 1]
    assert text.isascii()


def test_synthetic_data_is_said_and_not_compared(raw, results):
    result_tables.make("small", read(settings.parse(raw), results))
    for suffix in ("md", "tex"):
        assert "Synthetic data (embedded town), not nuScenes" in table(results, suffix)
    assert "reported" not in table(results, "md").lower()
    assert pd.read_csv(results / "tables" / "small.csv").mAP_reported_percent.isna().all()


def test_optional_costs_and_cpu_hours(params, results):
    changes = {"device": "CPU", "devices": 1, "flops": 3.2e9, "latency_ms": 12.5, "training_seconds": 3.6}
    for name in NAMES:
        write_run(results, name, [(0.5, 0.5)], **changes)
    result_tables.make("small", read(params, results))
    text = table(results, "md")
    assert "GFLOPs" in text
    assert " 12.5 " in text
    assert "CPU-hours" in text
    assert "<0.01" in text
    assert "GPU-hours" not in text
    assert "Trained on A CPU (2 threads)." in text
    assert "†" not in text
    assert rows_of(text)[3]["ΔNDS"] == "0.0 §"  # a gain of nothing has no sign


def test_costs_take_in_what_snakemake_measured(params, results):
    """By hand: a job of 2 h around 1.5 h of training on 4 GPUs; after a restart the job is the shorter of the two."""
    benchmark = {"wall_seconds": 7200.0, "memory_bytes": 3.2e10}
    write_run(results, "fusion-det", [(0.65, 0.70)], benchmark=benchmark, peak_memory_bytes=2.1e10)
    write_run(results, "centerpoint-det", [(0.55, 0.60)], benchmark={"wall_seconds": 60.0})
    result_tables.make("small", read(params, results))
    frame = pd.read_csv(results / "tables" / "small.csv").set_index("run")
    costs = frame.loc["fusion-det", ["gpu_hours", "wall_hours", "memory_gb", "gpu_memory_gb"]]
    assert costs.tolist() == pytest.approx([8.0, 2.0, 32.0, 21.0])
    assert frame.loc["centerpoint-det", ["gpu_hours", "wall_hours"]].tolist() == pytest.approx([6.0, 1.5])
    assert frame.loc["centerpoint-det", ["memory_gb", "gpu_memory_gb"]].isna().all()
    found = {row["Run"]: row for row in rows_of(table(results, "md").split("<details>")[1])}
    assert found["fusion-det"]["Mem. (GB)"] == "32.0"
    assert found["centerpoint-det"]["Mem. (GB)"] == ""


def test_provenance_of_each_row(params, results):
    result_tables.make("small", read(params, results))
    record = json.loads(table(results, "provenance.json"))
    row = record["rows"]["centerpoint-det"]
    assert row["seeds"] == ["0", "1"]
    assert row["settings"] == dict.fromkeys("01", DIGESTS["centerpoint-det"])
    assert row["weights"] == {"0": {"w": "0a"}, "1": {"w": "0a"}}
    assert len(row["metrics"]) == 64
    assert row["marked"] is None
    assert record["rows"]["fusion-det"]["marked"] == "made at commit bbbbbbbbbb, aaaaaaaaaa"


def test_settings_hash_follows_the_settings(raw, params, results):
    result_tables.make("small", read(params, results))
    before = json.loads(table(results, "provenance.json"))["settings"]
    raw["train"]["lr"] = 2.0e-4
    result_tables.make("small", read(settings.parse(raw | {"synthetic": None}), results))
    assert json.loads(table(results, "provenance.json"))["settings"] != before
    note = "† lidar-pretrain, centerpoint-det: trained with other settings than params.yaml has now."
    assert note in table(results, "md")  # the teacher has a learning rate of its own


def test_missing_results_name_the_run_and_the_command(params, results):
    file = results / "runs" / "centerpoint-det" / "metrics.json"
    file.unlink()
    with pytest.raises(InputError, match=rf"run centerpoint-det has no results yet.*'snakemake --cores all {file}'"):
        result_tables.make("small", read(params, results))
    assert not (results / "tables").exists()
    assert [run.name for run in result_tables.needed("small", read(params, results))] == NAMES


def test_distillation_figure(params, results):
    distillation(read(params, results))
    frame = pd.read_csv(results / "figures" / "distillation.csv", keep_default_na=False)
    assert list(frame.columns[:6]) == ["run", "student", "metric", "class", "baseline", "baseline_std"]
    row = frame[frame.metric == "mAP"].iloc[0]
    assert (row.run, row.student, row.unit) == ("centerpoint-det-vexkd", "centerpoint-det", "percent")
    assert (float(row.baseline), float(row.distilled)) == pytest.approx((56.0, 58.5))
    assert list(frame[frame.metric == "AP"]["class"]) == list(CLASSES)
    drawn(results / "figures" / "distillation")


def test_distillation_figure_of_many_single_seed_runs_says_synthetic(raw, results):
    for i in range(5):
        raw["distilled"][f"variant-{i}"] = dict(raw["distilled"]["centerpoint-det-vexkd"])
        write_run(results, f"variant-{i}", [(0.5 + 0.02 * i, 0.6)])
    distillation(read(settings.parse(raw), results))
    drawn(results / "figures" / "distillation")
    assert "synthetic data (embedded town), not nuScenes" in (results / "figures" / "distillation.svg").read_text()
    assert len(pd.read_csv(results / "figures" / "distillation.csv")) == 6 * 12


def test_curves_are_averaged_not_sampled(params, results):
    write_run(results, "fusion-conv-det", [(0.6, 0.6)])
    steps = np.arange(1000)
    long = pd.DataFrame({"seed": 0, "step": steps, "loss": np.where(steps % 2, 1.0, 3.0)})
    long.to_csv(results / "runs" / "fusion-det" / "curve.csv", index=False)
    curves(read(params, results))
    frame = pd.read_csv(results / "figures" / "curves.csv")
    assert set(frame.run) == set(params.runs)
    drawn_curve = frame[frame.run == "fusion-det"]
    assert len(drawn_curve) == POINTS
    assert (drawn_curve.loss == 2.0).all()
    drawn(results / "figures" / "curves")


def drawn(stem: Path) -> None:
    """Both files are there, the picture is not blank, the SVG is small."""
    picture = np.asarray(Image.open(f"{stem}.png").convert("L"))
    assert picture.std() > 5
    assert Path(f"{stem}.svg").stat().st_size < 400_000


class TwoKeyframes:
    """Infos with two keyframes; the ego stands at (100, 200), turned by 0.5 rad; the second keyframe has more boxes."""

    version = "v1.0-mini"

    def tokens(self) -> list[str]:
        return ["first", "second"]

    def __getitem__(self, position: int) -> Any:
        count = position + 1
        shown = np.array([[10.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.2, 0, 0], [-20.0, 8.0, 0.0, 0.8, 0.7, 1.8, 1.0, 0, 0]])
        pose = geometry.rigid([np.cos(0.25), 0.0, 0.0, np.sin(0.25)], [100.0, 200.0, 0.0])
        values = {"token": self.tokens()[position], "scene": "scene-0103", "lidar_path": "points.bin"}
        values |= {"boxes": shown[:count], "labels": np.array([0, 8])[:count], "valid": np.ones(count, dtype=bool)}
        return SimpleNamespace(**values, global_from_lidar=pose)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The keyframes above, whose predictions are the ground truth and a faint box."""
    monkeypatch.setattr("vexkd.data.infos.load", lambda folder: TwoKeyframes())
    generator = np.random.default_rng(0)
    generator.uniform(-50, 50, (5000, 5)).astype("<f4").tofile(tmp_path / "points.bin")
    (tmp_path / "v1.0-mini").mkdir()
    scenes = [{"token": "s", "log_token": "l", "name": "scene-0103", "description": "A synthetic town"}]
    (tmp_path / "v1.0-mini" / "scene.json").write_text(json.dumps(scenes))
    found = {}
    for position, token in enumerate(TwoKeyframes().tokens()):
        keyframe = TwoKeyframes()[position]
        rows = boxes.move(keyframe.boxes, keyframe.global_from_lidar)
        found[token] = [
            {"translation": list(b[:3]), "size": list(b[[4, 3, 5]]), "velocity": [0, 0], "detection_score": score,
             "rotation": list(geometry.yaw_rotation(b[6]).elements), "detection_name": CLASSES[label]}
            for b, label, score in [*zip(rows, keyframe.labels, (0.9, 0.8), strict=False), (rows[0], 1, 0.1)]
        ]  # fmt: skip
    for run in ("a-run", "b-run"):
        provenance.write_json(tmp_path / "models" / run / "seed0" / "predictions.json", {"results": found})
    experiment = Experiment(tmp_path)
    experiment.__dict__["params"] = SimpleNamespace(root=".")
    return experiment


def test_birdseye_puts_predictions_on_their_ground_truth(scene):
    birdseye("a-run", scene, seed=0)
    stem = scene.figures / "birdseye-a-run"
    drawn(stem)
    frame = pd.read_csv(f"{stem}.csv")
    assert list(frame.source.value_counts()) == [2, 2]  # the fuller keyframe; the faint box is left out
    numbers = ["x_m", "y_m", "z_m", "l_m", "w_m", "h_m", "yaw_rad"]
    truth, predicted = (frame[frame.source == name].set_index("class") for name in ("ground truth", "a-run"))
    np.testing.assert_allclose(predicted.loc[truth.index, numbers], truth[numbers], atol=2e-3)
    birdseye("a-run", scene, seed=0, sample="first", threshold=0.0)
    assert list(pd.read_csv(f"{stem}.csv").source) == ["ground truth", "a-run", "a-run"]


def test_birdseye_refuses_what_is_not_there(scene):
    with pytest.raises(InputError, match="sample third is not among the 2 predicted"):
        birdseye("a-run", scene, seed=0, sample="third")
    with pytest.raises(InputError, match=r"c-run/seed0/predictions\.json: there is no such prediction file"):
        birdseye("c-run", scene, seed=0)


def test_readme_markers(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "main.md").write_text("| a |\n|---|\n| 1 |\n")
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- table:main:begin -->\nold\n<!-- table:main:end -->\nafter\n")
    assert readme.update(file, results=tmp_path, check=True)
    assert "old" in file.read_text()
    assert readme.update(file, results=tmp_path)
    expected = "before\n<!-- table:main:begin -->\n\n| a |\n|---|\n| 1 |\n\n<!-- table:main:end -->\nafter\n"
    assert file.read_text() == expected
    assert not readme.update(file, results=tmp_path)


def test_readme_refuses_a_lost_marker_or_table(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("<!-- table:main:begin -->\n")
    with pytest.raises(InputError, match="has no 'table:main:end'"):
        readme.update(file, results=tmp_path)
    file.write_text("<!-- table:main:begin -->\n<!-- table:main:end -->\n")
    with pytest.raises(InputError, match=r"main\.md: there is no such table.*table_main"):
        readme.update(file, results=tmp_path)


def test_report_imports_no_torch():
    code = (
        "import sys; from vexkd.report import figures, page, readme, result_tables; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
