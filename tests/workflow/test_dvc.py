"""What DVC's users do: seal a plain run, go back to an older commit, clone a clone, compare, experiment; and cannot do."""

import json
import os
import shutil

import pytest

from vexkd import seal, settings
from workflow.test_rerun import RATE, assert_settled, touched_by_the_student

STUDENT = "models/centerpoint-det/seed0/weights.safetensors"
METRICS = "results/runs/centerpoint-det/metrics.json"
EPOCHS = "students.centerpoint-det.train.epochs"


def make_seal(place, fails: bool = False) -> str:
    return place.run("make", "-o", ".venv/.made", "seal", fails=fails)


def learning_rate(place) -> float:
    """The one that the student's weights were made with."""
    return json.loads(seal.header(place.folder / STUDENT)["settings"])["train"]["lr"]


def text(place, name: str) -> str:
    return (place.folder / name).read_text()


def clone(place, folder):
    place.run("git", "clone", "-q", str(place.folder), str(folder))
    return place.at(folder)


def test_a_plain_run_is_sealed(small):
    place = small()
    place.commit()
    place.snakemake()
    assert place.calls()
    make_seal(place)
    assert_settled(place)
    assert "up to date" in place.run("dvc", "repro")
    stages = json.loads(place.run("dvc", "metrics", "show", "--json"))[""]["data"]
    runs = settings.load(place.folder / "params.yaml").runs
    assert set(stages) == {f"results/runs/{run}/metrics.json" for run in runs}


def test_a_run_that_is_not_whole_is_not_sealed(sealed):
    """A published value changes a table alone."""
    lock = text(sealed, "dvc.lock")
    sealed.set("reported", {"centerpoint-det": {"mAP": 50.0, "source": "here"}})
    assert "results/tables/main.csv was made with other settings" in make_seal(sealed, fails=True)
    assert text(sealed, "dvc.lock") == lock
    sealed.snakemake()
    assert sealed.calls() == ["page", "table main"]
    make_seal(sealed)
    assert_settled(sealed)


def test_an_older_commit_gives_its_results_back(sealed):
    """And the three diffs say what lies between; without `dvc checkout` the newer weights are not taken for the older."""
    old_rate, old = learning_rate(sealed), text(sealed, METRICS)
    sealed.set(RATE, 0.5)
    sealed.run("dvc", "repro", "-q")
    sealed.commit()
    new = text(sealed, METRICS)
    assert (learning_rate(sealed), new != old) == (0.5, True)
    assert_differences(sealed, old_rate, old, new)
    newer = sealed.run("git", "rev-parse", "HEAD").strip()
    sealed.calls()

    sealed.run("git", "checkout", "-q", "HEAD~1")
    assert "was made with other settings" in make_seal(sealed, fails=True)
    sealed.run("dvc", "checkout", "-q")
    assert (learning_rate(sealed), text(sealed, METRICS)) == (old_rate, old)
    assert_settled(sealed)
    sealed.run("git", "checkout", "-q", newer)
    sealed.run("dvc", "checkout", "-q")
    assert (learning_rate(sealed), text(sealed, METRICS)) == (0.5, new)
    assert_settled(sealed)


def assert_differences(place, old_rate: float, old: str, new: str) -> None:
    """`dvc params diff`, `metrics diff` and `plots diff` against the commit before."""
    changed = json.loads(place.run("dvc", "params", "diff", "--json", "HEAD~1"))["params.yaml"]
    assert {name: value["new"] for name, value in changed.items()} == {RATE: 0.5}
    metrics = json.loads(place.run("dvc", "metrics", "diff", "--json", "HEAD~1"))
    assert set(metrics) == {METRICS, METRICS.replace("-det/", "-det-vexkd/")}
    pair = metrics[METRICS]["NDS"]
    assert (pair["old"], pair["new"]) == (json.loads(old)["NDS"], json.loads(new)["NDS"])
    curve = METRICS.replace("metrics.json", "curve.csv")
    drawn = json.loads(place.run("dvc", "plots", "diff", "--show-vega", "HEAD~1", "--targets", curve))
    points = (drawn[0] if isinstance(drawn, list) else drawn)["data"]["values"]
    assert {point["rev"] for point in points} == {"HEAD~1", "workspace"}
    assert learning_rate(place) != old_rate


def test_a_clone_of_a_clone_has_what_was_pushed_from_the_first(finished, tmp_path):
    first = clone(finished, tmp_path / "first")
    first.run("dvc", "pull", "-q")
    first.set(RATE, 0.25)
    first.run("dvc", "repro", "-q")
    first.commit()
    first.run("dvc", "push", "-q")
    second = clone(first, tmp_path / "second")
    second.run("dvc", "pull", "-q")
    assert_settled(second)
    assert "Nothing to be done" in second.run("snakemake", "--cores", "1")  # without a profile too
    assert "up to date" in second.run("dvc", "repro")
    assert not second.calls()
    assert learning_rate(second) == 0.25
    assert not second.run("git", "status", "--short")
    measured = second.folder / STUDENT.replace("weights.safetensors", "benchmark.tsv")
    assert measured.read_text().startswith("s\th:m:s\tmax_rss")  # what a training cost travels with its weights


def test_an_experiment_in_the_workspace(sealed):
    """Run, undone, and applied again: the same weights each time, and nothing to do for either tool."""
    before = text(sealed, METRICS)
    sealed.run("dvc", "exp", "run", "-q", "-n", "longer", "-S", f"{EPOCHS}=7")
    assert sealed.calls() == touched_by_the_student(sealed)
    made = text(sealed, METRICS)
    weights = (sealed.folder / STUDENT).read_bytes()
    assert made != before
    shown = json.loads(sealed.run("dvc", "exp", "show", "--json"))
    named = [line for commit in shown for line in commit["experiments"] or []]
    assert [line["name"] for line in named] == ["longer"]
    data = named[0]["revs"][0]["data"]
    assert data["metrics"][METRICS]["data"] == json.loads(made)

    sealed.run("git", "reset", "-q", "--hard")
    sealed.run("dvc", "checkout", "-q")
    assert text(sealed, METRICS) == before
    assert_settled(sealed)
    sealed.run("dvc", "exp", "apply", "-q", "longer")
    assert (text(sealed, METRICS), (sealed.folder / STUDENT).read_bytes()) == (made, weights)
    assert_settled(sealed)
    assert "up to date" in sealed.run("dvc", "repro")


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--temp"], ["--queue"]])
def test_an_experiment_in_a_copy(sealed, how):
    """In a copy of the commit that DVC makes below .dvc/tmp: raw data under a relative `root` is made there anew."""
    before = text(sealed, METRICS)
    sealed.run("dvc", "exp", "run", "-q", *how, "-n", "longer", "-S", f"{EPOCHS}=7")
    if how == ["--queue"]:
        sealed.run("dvc", "exp", "run", "-q", "--run-all")
    assert text(sealed, METRICS) == before
    assert_settled_after(sealed, ["synthesize"])
    sealed.run("dvc", "exp", "apply", "-q", "longer")
    assert text(sealed, METRICS) != before
    assert_settled(sealed)


def assert_settled_after(place, more: list[str]) -> None:
    """As `assert_settled`, once the calls for the changed student and these are taken off."""
    calls = place.calls()
    assert set(more) < set(calls)
    assert "train centerpoint-det seed0" in calls
    assert "train fusion-det seed0" not in calls
    assert_settled(place)


def test_weights_of_other_settings_are_sealed_by_no_way(sealed):
    """Put in their place by hand: what only records them fails and leaves dvc.lock as it is; `dvc repro` makes them again."""
    lock, rate = text(sealed, "dvc.lock"), learning_rate(sealed)
    file = sealed.folder / STUDENT
    length = int.from_bytes(file.read_bytes()[:8], "little")
    head = json.loads(file.read_bytes()[8 : 8 + length])
    settings = json.loads(head["__metadata__"]["settings"])
    settings["train"]["lr"] = 0.5
    head["__metadata__"]["settings"] = json.dumps(settings)
    content, times = json.dumps(head).encode(), file.stat()
    file.write_bytes(len(content).to_bytes(8, "little") + content + file.read_bytes()[8 + length :])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    ways = [
        ["make", "-o", ".venv/.made", "seal"],
        ["dvc", "repro", "-q", "--force", "--single-item", "students@centerpoint-det"],
    ]
    for way in ways:
        kept = sealed.at(sealed.folder.with_name("copy"))
        shutil.copytree(sealed.folder, kept.folder, symlinks=True)
        message = kept.run(*way, fails=True)
        assert "was made with other settings" in message, way
        assert text(kept, "dvc.lock") == lock, way
        shutil.rmtree(kept.folder)
    kept = sealed.at(sealed.folder.with_name("copy"))
    shutil.copytree(sealed.folder, kept.folder, symlinks=True)
    kept.run("dvc", "repro", "-q")
    assert [call for call in kept.calls() if call.startswith("train")] == ["train centerpoint-det seed0"]
    assert learning_rate(kept) == rate
    assert_settled(kept)
    sealed.run("dvc", "exp", "run", "-q")  # brings back what was recorded before it runs anything
    assert not sealed.run("vexkd", "check", "--all")
    assert text(sealed, "dvc.lock") == lock


def test_make_seal_says_why_dvc_records_nothing(sealed):
    (sealed.folder / "dvc.lock").write_text("schema: '2.0'\nstages: [", encoding="utf-8")
    assert "DVC could not record what was made: " in sealed.run(
        "python", "workflow/scripts/dvc_stage.py", "record", fails=True
    )


def test_make_seal_without_git_says_so(sealed):
    shutil.rmtree(sealed.folder / ".git")
    assert "no git checkout" in make_seal(sealed, fails=True)
