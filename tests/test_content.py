"""Content decides what is stale: digests that are kept only as long as they hold, and times that follow the verdicts."""

import json
import os
import time
from pathlib import Path

import pytest

from vexkd import content, provenance
from vexkd.content import Digests, Product, Verdicts

OLD = time.time_ns() - 3_600_000_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("input", "output"):
        Path(name).write_text(name)
        os.utime(name, ns=(OLD, OLD))
    return tmp_path


def product(verdict: str | None) -> Product:
    return Product("it", (Path("output"),), (Path("input"),), lambda: verdict)


def test_what_agrees_is_no_older_than_its_inputs():
    os.utime("input")
    beside = Path("benchmark.tsv")
    beside.write_text("")
    os.utime(beside, ns=(OLD, OLD))
    agrees = Product("it", (Path("output"),), (Path("input"),), lambda: "", (beside,))
    assert content.settle([agrees], Digests()) == Verdicts({}, {Path("output")})
    newest = Path("input").stat().st_mtime_ns
    assert [path.stat().st_mtime_ns for path in (Path("output"), beside)] == [newest, newest]


def test_what_disagrees_is_named_and_what_records_nothing_is_left_alone():
    os.utime("input")
    assert content.settle([product("because")], Digests()) == Verdicts({Path("output"): "because"}, set())
    assert content.settle([product(None)], Digests()) == Verdicts({}, set())
    assert Path("output").stat().st_mtime_ns == OLD


def test_missing_files_are_not_judged():
    Path("output").unlink()
    assert content.settle([product("because")], Digests()) == Verdicts({}, set())


def test_a_digest_holds_as_long_as_the_file_is_the_same(monkeypatch):
    read = []
    monkeypatch.setattr(provenance, "file_digest", lambda path: read.append(path) or str(len(read)))
    monkeypatch.setattr(content, "_FRESH", -1.0)
    memory, file = Path("memory.json"), Path("input")
    digests = Digests(memory)
    assert [digests.of(file), digests.of(file)] == ["1", "1"]
    digests.save()
    assert Digests(memory).of(file) == "1"
    file.write_text("INPUT")  # same size, same time: the inode was written to
    os.utime(file, ns=(OLD, OLD))
    digests = Digests(memory)
    assert digests.of(file) == "2"
    assert digests.touch(file, OLD + 1)
    assert digests.of(file) == "2"  # a new time that we set ourselves


def test_a_digest_of_a_file_changed_just_now_is_not_kept():
    Path("input").write_text("now")
    digests = Digests(Path("memory.json"))
    digests.of(Path("input"))
    digests.save()
    assert not Path("memory.json").exists()


def test_a_damaged_memory_is_no_obstacle():
    Path("memory.json").write_text("[1")
    assert Digests(Path("memory.json")).of(Path("input")) == provenance.file_digest("input")


def test_weights_count_without_their_header():
    digests = []
    for text in ("one", "another"):
        head = json.dumps({"__metadata__": {"time": text}}).encode()
        Path(text).write_bytes(len(head).to_bytes(8, "little") + head + b"tensors")
        digests.append(Digests().tensors(Path(text)))
    assert digests[0] == digests[1]
    assert Digests().of(Path("one")) != Digests().of(Path("another"))
