"""Every setting says on its own field what depends on it, once, and what is asked of settings follows from that."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from vexkd import provenance, seal, settings
from vexkd.settings import Decides, Params, Run, Strict, blocks_of, marker

ROOT = Path(__file__).parents[1]


def fields(block: type[Strict], path: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a block and of the blocks in it, with its path."""
    for name, field in block.model_fields.items():
        yield f"{path}.{name}", field
        for inner in blocks_of(field):
            yield from fields(inner, f"{path}.{name}")


def test_every_setting_says_once_what_depends_on_it():
    """A field is marked, or stands in a block that is marked as a whole, or is a block whose fields are all marked."""
    every = {**dict(fields(Params, "params")), **dict(fields(Run, "run"))}
    marked = {path for path, field in every.items() if marker(field) is not None}
    assert len(every) > 150
    for path, field in every.items():
        above = [path.rsplit(".", count)[0] for count in range(1, path.count("."))]
        by_itself, by_block = path in marked, any(other in marked for other in above)
        if path.startswith("params.runs"):
            continue  # the same as below "run"
        if blocks_of(field) and not by_itself and not by_block:
            continue  # its fields are looked at
        assert by_itself != by_block, f"{path}: mark it, or the block that it stands in, with what depends on it"


def test_weights_and_predictions_depend_on_all_settings_of_a_run_between_them():
    """And what decides the cost or the model decides the weights too, so that nothing is measured of other settings."""
    for path, field in fields(Run, "run"):
        found = marker(field)
        if found is not None:
            assert bool(found & Decides.WEIGHTS) != bool(found & Decides.RESULTS), path
            assert not found & (Decides.PREPARATION | Decides.REPORT), path


@pytest.mark.parametrize("file", ["params.yaml", "demo/params.yaml"])
def test_the_parts_of_a_run(file):
    params = settings.load(ROOT / file)
    student, distilled = params.run("centerpoint-det"), params.run("centerpoint-det-vexkd")
    assert set(distilled.training()) - set(distilled.values(Decides.DEPLOYED)) == {
        "name", "kind", "task", "student", "teacher", "bev_augment", "train", "distill"
    }  # fmt: skip
    assert student.values(Decides.DEPLOYED)["data"] == {"sweeps": student.data.sweeps}
    assert seal.model_digest(params, student) == seal.model_digest(params, distilled)
    assert "val_split" not in student.training()["data"]
    assert student.after_training()["val_split"] == student.data.val_split
    assert not {"name", "kind", "student", "teacher", "distill"} & set(distilled.besides_teaching())
    assert settings.DECIDES_NOTHING == ("path", "root", "raw")


def test_settings_recorded_by_version_0_1_are_compared_as_those_of_now():
    """There the split to score on stood among the training settings."""
    run = settings.load(ROOT / "demo/params.yaml").run("centerpoint-det")
    training = run.training()
    before = {**training, "data": {**training["data"], "val_split": "mini_val"}}
    inference = {key: value for key, value in run.after_training().items() if key != "val_split"}
    assert settings.from_values(before, inference, "header") == run
    assert settings.training_part(before) == training
    assert seal.settings_digests(run) == {provenance.digest(training), provenance.digest(before)}
