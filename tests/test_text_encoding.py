"""Text is read and written as UTF-8 whatever the locale, and printing never fails for a sign that it lacks."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vexkd.settings import dump, read

ROOT = Path(__file__).parents[1]
SOURCES = [
    *(path for folder in ("vexkd", "workflow", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "tests/workflow/stand_in.py",
]


def _without_encoding(path: Path) -> Iterator[str]:
    """Calls in a file that open text, or a process's text, in the encoding of the locale."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if method else ""
        if "encoding" not in given and _is_text(name, owner, node.args, given):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}"


def _is_text(name: str, owner: str, arguments: list[ast.expr], given: dict[str | None, ast.expr]) -> bool:
    if name in ("read_text", "write_text"):
        return owner not in ("", "provenance")
    if (name, owner) in (("open", "os"), ("open", "archive")):
        return False  # a file descriptor or a zip's entry: bytes
    if name in ("open", "fdopen") and owner not in ("Image", "webbrowser"):
        position = 0 if owner and owner not in ("io", "os", "gzip") else 1
        mode = given.get("mode") or (arguments[position] if len(arguments) > position else ast.Constant("r"))
        return "b" not in ast.unparse(mode)
    return "text" in given and name in ("run", "Popen", "check_output")


def test_no_text_is_opened_in_the_encoding_of_the_locale():
    found = [call for path in SOURCES for call in _without_encoding(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"LC_ALL": "en_US.ISO-8859-1"}, {"PYTHONIOENCODING": "ascii"}])
def test_verbs_in_a_locale_without_utf8(tmp_path, settings):
    text = dump(read(ROOT / "demo/params.yaml"))
    (tmp_path / "params.yaml").write_text("# ↑ Δ é\n" + text, encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment = {**clean, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", **settings}
    code = "from vexkd import cli; cli.main()"
    for verb in (["configure"], ["status"], ["fetch-weights", "né↑"], ["summary", "--all"]):
        done = subprocess.run([sys.executable, "-c", code, *verb], cwd=tmp_path, env=environment, capture_output=True)
        assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
        assert done.returncode == (2 if "né↑" in verb else 0), done.stderr.decode(errors="replace")
