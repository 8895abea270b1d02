"""A finished result is kept until it is accepted, without torch; the training itself is in tests/test_engine.py."""

import os
import time

from vexkd import content
from vexkd.train import finished

FILES = {"curve.csv": "step\n", "provenance.json": "{}", "weights.safetensors": "weights"}


def result(folder):
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "predictions.json").write_text("another job's")
    return folder


def test_a_result_that_was_removed_is_given_back_with_the_present_time(tmp_path):
    out, kept = result(tmp_path / "models/run/seed0"), tmp_path / "finished/run/seed0-abc"
    os.utime(out / "curve.csv", (1, 1))
    finished.keep(out, kept)
    for name in FILES:
        (out / name).unlink()  # as Snakemake removes what it refuses
    finished.give_back(kept, out)
    assert {name: (out / name).read_text() for name in FILES} == FILES
    assert all(abs((out / name).stat().st_mtime - time.time()) < 60 for name in FILES)
    assert sorted(file.name for file in kept.iterdir()) == sorted(FILES)


def test_only_what_was_accepted_is_cleared(tmp_path):
    folder, models = tmp_path / "finished", tmp_path / "models"
    accepted, refused = result(models / "a/seed0"), result(models / "b/seed0")
    finished.keep(accepted, folder / "a/seed0-1")
    finished.keep(refused, folder / "b/seed0-1")
    (refused / "weights.safetensors").unlink()
    finished.clear(folder, models)
    assert not (folder / "a").exists()
    assert (folder / "b/seed0-1/weights.safetensors").is_file()
    finished.give_back(folder / "b/seed0-1", refused)
    finished.clear(folder, models)
    assert not folder.exists()
    assert (refused / "weights.safetensors").read_text() == "weights"


def test_times_of_tomorrow_are_brought_to_the_present(tmp_path):
    late, early = tmp_path / "made/late", tmp_path / "made/early"
    late.parent.mkdir()
    for file in (late, early):
        file.write_text("")
    os.utime(late, (time.time() + 86_400,) * 2)
    os.utime(early, (1, 1))
    assert content.bring_to_present([late.parent, tmp_path / "missing"]) == []
    assert late.stat().st_mtime <= time.time() + 1
    assert early.stat().st_mtime == 1
