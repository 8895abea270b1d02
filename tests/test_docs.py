"""The documents name code that exists, link to files that exist, and tell nothing of the machine they were written on."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer

from vexkd import cli

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"`([\w./-]+\.py):([\w.]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MACHINE = re.compile(r"(?<![\w.~$}*/-])/(?:work|tmp|root|home|Users)/")


def committed() -> list[Path]:
    """Files that git tracks or would track; outside a checkout all Markdown files."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        return sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")))
    return sorted(ROOT / name for name in names if name and (ROOT / name).is_file())


FILES = committed()
PAGES = [path for path in FILES if path.suffix == ".md"]


@cache
def names(path: Path) -> set[str]:
    """Functions, classes, constants and methods (as Class.method) that a module defines."""
    found: set[str] = set()
    waiting = [("", ast.parse(path.read_text()))]
    while waiting:
        prefix, parent = waiting.pop()
        for node in parent.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                waiting.append((f"{prefix}{node.name}.", node))
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
    return found


def missing_code(text: str) -> list[str]:
    """Each `path:name` of a text whose file or name is not there."""
    return [
        f"{path}:{name}"
        for path, name in CODE.findall(text)
        if not (ROOT / path).is_file() or name not in names(ROOT / path)
    ]


def missing_links(text: str, folder: Path) -> list[str]:
    """Each relative link of a Markdown text, images included, that leads nowhere; fenced code is no text."""
    targets = (target.split("#")[0] for target in LINK.findall(FENCE.sub("", text)))
    local = (target for target in targets if target and not re.match(r"[a-z]+:", target))
    return [target for target in local if not (folder / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_named_in_a_page_exists(page):
    assert missing_code(page.read_text()) == []


def unknown_commands(text: str) -> list[str]:
    """Each `vexkd VERB --option` of a text, to the end of its code or line, whose verb or options do not exist."""
    verbs = typer.main.get_command(cli.app).commands
    found = []
    for call in re.findall(r"(?:`|^)vexkd ([a-z][^`\n#]*)", text, re.MULTILINE):
        words = call.split()
        command = verbs.get(words[0])
        known = {name for parameter in command.params for name in parameter.opts} if command is not None else set()
        found += [f"vexkd {call}"] if command is None else []
        found += [f"vexkd {call}: {word}" for word in words if re.fullmatch("--[a-z-]+", word) and word not in known]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_a_page_exist(page):
    assert unknown_commands(page.read_text()) == []


def test_commands_that_do_not_exist_are_found():
    assert unknown_commands("`vexkd trian`") == ["vexkd trian"]
    assert unknown_commands("```\nvexkd train --out a --bogus b\n```") == ["vexkd train --out a --bogus b: --bogus"]


def test_the_paper_page_names_code():
    assert len(CODE.findall((ROOT / "docs/PAPER.md").read_text())) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(page):
    assert missing_links(page.read_text(), page.parent) == []


def test_no_file_knows_the_machine():
    found = []
    for path in FILES:
        content = path.read_bytes()
        if b"\0" not in content:
            lines = enumerate(content.decode("utf-8", "replace").splitlines(), start=1)
            found += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if MACHINE.search(line)]
    assert found == []


def test_wrong_names_links_and_paths_are_found():
    good, bad = "`vexkd/distill/losses.py:energy`", "`vexkd/distill/losses.py:nothing` `vexkd/absent.py:energy`"
    assert missing_code(good) == []
    assert missing_code(bad) == ["vexkd/distill/losses.py:nothing", "vexkd/absent.py:energy"]
    text = "[a](README.md) [b](absent.md#x) [c](https://example.org/x) [d](#part)\n```\n[e](absent)\n```\n"
    assert missing_links(text, ROOT) == ["absent.md"]
    slash = "/"  # written apart, or this file would be found itself
    assert all(map(MACHINE.search, (f"in {slash}work/main", f'"{slash}tmp/x"', f"({slash}root/")))
    assert not any(map(MACHINE.search, ("network/main", f"a{slash}tmp/b", f"{slash}etc/slurm", f"{slash}dev/null")))
