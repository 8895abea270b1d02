"""The README's tables are those of the kept demo results, and the kept results are the demo's."""

from pathlib import Path

import yaml

from vexkd.report import readme

ROOT = Path(__file__).parents[1]


def test_readme_tables_are_the_kept_ones():
    assert not readme.update(ROOT / "README.md", results=ROOT / "demo/results", check=True), "run `make readme`"


def test_kept_results_have_the_settings_of_the_demo():
    """Every run's settings beside the kept results are those that demo/params.yaml merges to now."""
    from vexkd import settings

    for name, run in settings.load(ROOT / "demo/params.yaml").runs.items():
        kept = yaml.safe_load((ROOT / "demo/results/runs" / name / "config.yaml").read_text())
        assert kept == run.training(), f"{name}: run `make demo` and commit demo/results"
