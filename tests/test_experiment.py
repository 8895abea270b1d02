"""Where everything of an experiment stands: one object knows, rules take their patterns from it, jobs find frozen settings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import experiment, tiny_settings

from vexkd.cli.options import run_names
from vexkd.errors import InputError
from vexkd.experiment import CALL, Experiment

ROOT = Path(__file__).parents[1]
WORDS = ("help", "example")


def test_a_pattern_is_a_path_with_wildcards_for_names():
    pattern, path = Experiment().training("{run}", "{seed}"), Experiment(Path("demo")).training("fusion-det", 3)
    for name in ("weights", "curve", "provenance", "masks", "inspection", "benchmark"):
        filled = str(getattr(pattern, name)).format(run="fusion-det", seed=3)
        assert Path("demo") / filled == getattr(path, name)
    assert path.predictions("detection") == Path("demo/models/fusion-det/seed3/predictions.json")
    assert path.predictions("segmentation", without="lidar").name == "predictions-without-lidar.safetensors"


def test_a_job_reads_the_settings_of_its_call(tmp_path, monkeypatch):
    experiment(tmp_path, {**tiny_settings(), "seeds": [0]})
    frozen = tmp_path / ".snakemake/calls/call-1"
    experiment(frozen, {**tiny_settings(), "seeds": [7]})
    assert Experiment(tmp_path).params.seeds == [0]
    assert not Experiment(tmp_path).is_job
    monkeypatch.setenv(CALL, "call-1")
    assert Experiment(tmp_path).params.seeds == [7]
    assert Experiment(tmp_path).is_job
    monkeypatch.setenv(CALL, "call-2")
    with pytest.raises(InputError, match=r"call-2/params\.yaml: .* VEXKD_CALL"):
        _ = Experiment(tmp_path).params


def test_a_folder_without_settings_is_no_experiment(tmp_path):
    with pytest.raises(InputError, match="name it with -C FOLDER"):
        _ = Experiment(tmp_path).params


def test_the_shell_completes_names_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(experiment(tmp_path, tiny_settings()))
    assert run_names("centerpoint-det-v") == ["centerpoint-det-vexkd"]
    assert "fusion-det" in run_names("")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump([1]))
    assert run_names("") == []


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string of a module, docstrings and help of options apart."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    prose |= {
        id(word.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in WORDS
        for word in [node]
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", sorted((ROOT / "vexkd").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_joins_these_paths(path):
    """Names of an experiment's folders stand in vexkd/experiment.py alone."""
    if path.name != "experiment.py":
        for line, text in strings(path):
            assert not re.match(r"(artifacts|models|results|scratch|submissions)/", text), f"{path}:{line}: {text}"
