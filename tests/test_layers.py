"""Imports point one way, `report` needs no torch, and nothing reads or writes a pickle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {
        "code",
        "settings",
        "geometry",
        "boxes",
        "batch",
        "provenance",
        "errors",
        "experiment",
        "seal",
        "content",
        "products",
        "leftovers",
        "calls",
        "needs",
        "pool",
    },
    {"ops"},
    {"synthetic", "data"},
    {"models"},
    {"distill"},
    {"train", "published"},
    {"measure", "evaluate"},
    {"report"},
    {"cli"},
]
STRANGERS = [
    ("synthetic", "data"),
    ("data", "synthetic"),
    ("models", "data"),
    ("data", "models"),
    ("report", "train"),
    ("evaluate", "train"),
]
SOURCES = sorted((ROOT / "vexkd").rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in SOURCES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def layer(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(path: Path, *, at_load: bool) -> set[str]:
    """Modules that a file imports, as it is loaded or anywhere; those of this package by the name of their file."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write whole module names"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in inner}
        elif not (at_load and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or for_types(node))):
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"vexkd"}))
def test_imports_point_one_way(name):
    rank = {part: level for level, parts in enumerate(LAYERS) for part in parts}
    assert layer(name) in rank, f"{name} belongs to no layer of LAYERS"
    for other in imported(MODULES[name], at_load=False):
        if other.startswith("vexkd.") and layer(other) != layer(name):
            assert rank[layer(other)] <= rank[layer(name)], f"{name} imports {other}"
            assert (layer(name), layer(other)) not in STRANGERS, f"{name} imports {other}"


def test_no_import_circle():
    graph = {name: imported(path, at_load=True) & set(MODULES) - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("start", ["vexkd.report", "vexkd.cli", "vexkd.settings", "vexkd.seal"])
def test_what_answers_at_once_loads_no_torch(start):
    waiting = [name for name in MODULES if name == start or name.startswith(f"{start}.")]
    assert waiting
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        outside = {other.split(".")[0] for other in imported(MODULES[name], at_load=True) - set(MODULES)}
        assert not outside & {"torch", "spconv", "accelerate", "transformers"}, f"{name}, loaded by {start}"
        waiting += (imported(MODULES[name], at_load=True) & set(MODULES)) - seen


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_no_pickle(path):
    outside = {name.split(".")[0] for name in imported(path, at_load=False)}
    assert not outside & {"pickle", "joblib", "dill", "cloudpickle"}
    for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert options.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
        assert options.get("weights_only", "True") == "True", f"{path}:{call.lineno}"
        function = ast.unparse(call.func)
        assert function != "torch.save", f"{path}:{call.lineno} writes a pickle"
        assert not function.endswith((".to_pickle", "read_pickle")), f"{path}:{call.lineno}"
