"""The real command line: help at once and without torch; bad input ends in status 2 and one sentence, never a traceback."""

from __future__ import annotations

import copy
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import experiment, tiny_settings

from vexkd import cli, settings
from vexkd.boxes import CLASSES
from vexkd.errors import InputError

HEAVY = ("torch", "spconv", "nuscenes", "transformers", "accelerate", "matplotlib", "pandas")


@pytest.fixture
def vexkd(monkeypatch, capsys):
    """Runs the command line in this process: arguments -> exit status, lines of stdout, lines of stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vexkd", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        else:
            status = 0
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


@pytest.fixture
def refused(vexkd):
    """Runs a command that must be refused; returns its sentence."""

    def run(*arguments):
        status, _, err = vexkd(*arguments)
        assert status == 2, err
        assert len(err) == 1, err
        return one_sentence(err[0])

    return run


def one_sentence(line: str) -> str:
    assert line.startswith("vexkd: ")
    assert line.endswith(".")
    assert not re.search(r"[a-z]{2}\. [A-Z]", re.sub(r"\(.*?\)", "", line)), "two sentences"
    return line.removeprefix("vexkd: ")


class Desk:
    """An experiment of all runs at test size, with prepared data and weights in which nothing was learnt.

    Tests work in copies of it, whose settings and files they change.
    """

    def __init__(self, folder: Path, town: Path) -> None:
        from vexkd.models import bev_model
        from vexkd.train import checkpoint

        self.folder, self.town = folder, town
        raw = {**tiny_settings(), "root": str(town / "data")}
        experiment(folder, raw, infos=town / "infos", paste=town / "paste")
        for name in ("centerpoint-det", "fusion-det"):
            run = settings.parse(raw).run(name)
            checkpoint.save_weights(self.weights(name), bev_model.build(run), run=run, inputs={}, record={})

    def weights(self, name: str = "centerpoint-det") -> Path:
        return self.folder / f"models/{name}/seed0/weights.safetensors"

    def copy(self, folder: Path, edit: Callable[[dict], object] | None = None, **top: object) -> Path:
        """A copy of the experiment in `folder`; `edit` changes the settings, `top` their top-level values."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        raw = {**yaml.safe_load((folder / "params.yaml").read_text()), **top}
        if edit is not None:
            edit(raw)
        (folder / "params.yaml").write_text(yaml.safe_dump(raw))
        return folder


def flags(options: dict) -> list:
    return [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]


def train(folder: Path, run: str = "centerpoint-det", **options) -> list:
    """Arguments of a training in an experiment."""
    return ["train", run, "-C", folder, *flags({"device": "cpu", **options})]


def predict(folder: Path, run: str = "centerpoint-det", **options) -> list:
    return ["predict", run, "-C", folder, *flags({"device": "cpu", **options})]


def nothing_new(folder: Path, run: str = "centerpoint-det") -> bool:
    """Whether no predictions of a run were left, and no curve of a training."""
    seed = folder / f"models/{run}/seed0"
    return not seed.exists() or {file.name for file in seed.iterdir()} <= {"weights.safetensors"}


@pytest.fixture(scope="module")
def desk(town, tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"), town)


@pytest.fixture
def data(town, tmp_path) -> Path:
    """A copy of the town's data set to damage; write to its files with `replace` only, they are links."""
    return Path(shutil.copytree(town / "data", tmp_path / "data", copy_function=os.link))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def files(root: Path, channel: str) -> list[Path]:
    return sorted((root / "samples" / channel).iterdir())


# ---- help


def test_help_of_every_verb_loads_nothing_heavy():
    program = f"""
import sys, typer
from vexkd import cli

def helps(command, path):
    sys.argv = ["vexkd", *path, "--help"]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, path
    for name, child in getattr(command, "commands", {{}}).items():
        helps(child, [*path, name])

helps(typer.main.get_command(cli.app), [])
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    found = set(re.findall(r"Usage: vexkd ([a-z]+)", run.stdout))
    assert found >= {"synthesize", "doctor", "infos", "paste", "configure", "train", "predict", "evaluate", "check"}
    assert found >= {"table", "figure", "readme"}


def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-m", "vexkd.cli", "--help"], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0
    assert "synthesize" in run.stdout
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, "CPU seconds: the wall clock would also count what else the machine does"


@pytest.mark.parametrize(
    ("call", "named", "help_of"),
    [
        ("trian", "no such command 'trian'; the nearest known one is 'train'", "vexkd"),
        ("--bogus", "no such option: --bogus", "vexkd"),
        ("train", "missing argument 'RUN'", "vexkd train"),
        ("train --bogus", "no such option: --bogus", "vexkd train"),
        ("table", "missing argument 'name'", "vexkd table"),
        ("table main more", "unexpected extra argument (more)", "vexkd table"),
        ("synthesize x --scenes two", "'--scenes': it should be a valid integer", "vexkd synthesize"),
        ("predict x --batch 0", "'--batch': it should be greater than or equal to 1", "vexkd predict"),
        ("predict x --drop radar", "'--drop': 'radar' is not one of 'lidar', 'camera'", "vexkd predict"),
    ],
)
def test_a_wrong_call_is_one_sentence_that_says_how_to_get_help(refused, call, named, help_of):
    sentence = refused(*call.split())
    assert named in sentence.replace("argument(s)", "argument")
    assert f"`{help_of} --help`" in sentence


def test_no_verb_at_all_is_a_question_for_help(vexkd):
    status, out, err = vexkd()
    assert (status, err) == (0, [])
    assert "synthesize" in " ".join(out)


def test_it_is_the_same_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "vexkd.cli", "configure", "-C", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "params.yaml: there are no settings" in one_sentence(line)


# ---- settings


def change(**values):
    """An edit of the settings: dotted paths with __ for the dots; REMOVE takes a key away."""

    def edit(raw):
        for path, value in values.items():
            *parents, last = path.split("__")
            block = raw
            for name in parents:
                block = block[name.replace("_det", "-det")]
            if value is REMOVE:
                del block[last]
            else:
                block[last] = value

    return edit


REMOVE = object()
BAD_SETTINGS = {
    "unknown key": (change(train__epoch=3), ["train.epoch", "no such setting", "'epochs'"]),
    "unknown block": (change(trian={}), ["trian", "'train'"]),
    "unknown key of a row": (change(students__centerpoint_det__haed="x"), ["students.centerpoint-det.haed", "'head'"]),
    "unknown class": (change(paste__counts={"lorry": 2}), ["paste.counts.lorry"]),
    "number that is text": (change(train__lr="1e-4"), ["train.lr", "'1e-4' is text to YAML", "write 1.0e-4"]),
    "missing setting": (change(train__clip=REMOVE), ["train.clip", "missing"]),
    "missing block": (
        change(centerpoint=REMOVE),
        ["students.centerpoint-det", "centerpoint: the run needs this block"],
    ),
    "no seed": (change(seeds=[]), ["seeds"]),
    "sensors without fusion": (change(teachers__fusion_det__fusion=None), ["teachers.fusion-det", "fusion"]),
    "unknown teacher": (
        change(teachers={}, distilled={"d": {"student": "centerpoint-det", "teacher": "fusion-det"}}),
        ["distilled.d.teacher", "no run 'fusion-det' in teachers"],
    ),
    "runs in a list": (change(students=["centerpoint-det"]), ["students", "mapping"]),
    "run that is text": (change(students={"a": "b"}), ["students.a", "mapping"]),
    "head in a list": (change(students__centerpoint_det__head=["centerpoint"]), ["students.centerpoint-det.head"]),
    "student in a list": (
        change(distilled={"d": {"student": ["x"], "teacher": "fusion-det"}}),
        ["distilled.d.student"],
    ),
    "table of unknown runs": (change(tables={"main": ["centerpoint-de"]}), ["tables.main", "'centerpoint-det'"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(refused, tmp_path, case):
    edit, expected = BAD_SETTINGS[case]
    raw = copy.deepcopy(tiny_settings())
    edit(raw)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    sentence = refused("configure", "-C", tmp_path)
    assert all(part in sentence for part in ["params.yaml", *expected]), sentence
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [1,\nb: }\n", b"\xff\xfe\x00", b"a: \x00"])
def test_settings_that_are_no_mapping(refused, tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    for call in (["configure", "-C", tmp_path], train(tmp_path), predict(tmp_path)):
        assert "params.yaml" in refused(*call)


def test_settings_that_are_not_there(refused, tmp_path):
    for call in (["configure", "-C", tmp_path], ["check", "--all", "-C", tmp_path], train(tmp_path), predict(tmp_path)):
        assert "this folder is no experiment" in refused(*call)
    assert "-C gone: No such file or directory" in refused("configure", "-C", "gone")


def test_a_call_leaves_the_working_directory(vexkd, desk, tmp_path):
    before = Path.cwd()
    assert vexkd("configure", "-C", desk.copy(tmp_path))[0] == 0
    assert Path.cwd() == before
    assert (tmp_path / "results/runs/centerpoint-det/config.yaml").is_file()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bev": {"voxel": [0.3, 0.3, 0.4], "cell": 1.2}}, "not a whole number of cells of 1.2 m"),
        ({"bev": {"cell": 0.8}}, "bev.cell is 0.8 m"),
        ({"bev": {"voxel": [0.4, 0.4, 4.0]}}, "voxel layers along z are too few"),
        ({"data": {"train_split": "mini_trian"}}, "choose one of mini_train, mini_val"),
        ({"train": {"batch": 64}}, "lower train.batch"),
    ],
)
def test_settings_that_do_not_fit_together(refused, desk, tmp_path, changes, expected):
    def edit(raw):
        for block, values in changes.items():
            raw[block] = {**raw[block], **values}
        raw["students"]["centerpoint-det"].pop("bev", None)

    assert expected in refused(*train(desk.copy(tmp_path, edit)))
    assert nothing_new(tmp_path)


# ---- the data set


def test_missing_root_version_and_table(refused, desk, data, tmp_path):
    gone, out = tmp_path / "gone", tmp_path / "infos"
    doctor, infos = ["doctor"], ["infos", "--out", out]
    for verb in (doctor, infos):
        assert f"data root {gone} does not exist" in refused(*verb, "--root", gone, "--version", "v1.0-mini")
        assert "it holds v1.0-mini" in refused(*verb, "--root", data, "--version", "v1.0-trainval")
    folder = desk.copy(tmp_path / "experiment", root=str(gone))
    for arguments in (train(folder), predict(folder)):
        assert str(gone) in refused(*arguments)
    (data / "v1.0-mini/ego_pose.json").unlink()
    for verb in (doctor, infos):
        assert "lacks ego_pose.json" in refused(*verb, "--root", data, "--version", "v1.0-mini")
    assert not out.exists()


@pytest.mark.parametrize("table", ["scene", "sample_data", "sample_annotation"])
def test_a_table_cut_short(vexkd, refused, data, tmp_path, table):
    path = data / f"v1.0-mini/{table}.json"
    replace(path, path.read_bytes()[: path.stat().st_size // 2])
    expected = f"{path} is cut or damaged"
    assert expected in refused("infos", "--root", data, "--version", "v1.0-mini", "--out", tmp_path / "infos")
    status, _, err = vexkd("doctor", "--root", data, "--version", "v1.0-mini")
    assert status == 2
    assert len(err) == 2, err
    assert expected in err[0]


BAD_COLUMNS = {
    "ego_pose.rotation": (REMOVE, "it lacks rotation"),
    "sample.timestamp": (REMOVE, "it lacks timestamp"),
    "sample_data.filename": (REMOVE, "it lacks filename"),
    "sample_data.is_key_frame": (None, "is_key_frame is null, not true or false"),
    "sample_data.width": ("400", 'width is "400", not a whole number'),
    "sample_annotation.size": ([1.0, 2.0], "size is [1.0, 2.0], not a list of 3 numbers"),
    "sample_annotation.translation": ([0.0, float("nan"), 0.0], "a number that is not finite"),
    "sample_annotation.token": (REMOVE, "it lacks token"),
    "calibrated_sensor.camera_intrinsic": ([1.0], "camera_intrinsic is not 3 x 3 numbers"),
    "calibrated_sensor.rotation": ([0, 0, 0, 0], "a rotation of length 0"),
}


@pytest.mark.parametrize("column", BAD_COLUMNS)
def test_a_table_with_a_bad_column_names_row_and_column(vexkd, refused, data, tmp_path, column):
    """In one row only, the middle one; nothing is written."""
    (table, name), (value, expected) = column.split("."), BAD_COLUMNS[column]
    path = data / f"v1.0-mini/{table}.json"
    rows = json.loads(path.read_text())
    row = rows[len(rows) // 2]
    known = f"number {len(rows) // 2}" if name == "token" else row["token"]
    del row[name]
    if value is not REMOVE:
        row[name] = value
    replace(path, json.dumps(rows).encode())
    sentence = refused("infos", "--root", data, "--version", "v1.0-mini", "--out", tmp_path / "infos")
    assert all(part in sentence for part in (table, known, expected)), sentence
    assert not (tmp_path / "infos").exists()
    status, _, err = vexkd("doctor", "--root", data, "--version", "v1.0-mini")
    assert status == 2
    assert len(err) == 2, err
    assert all(part in err[0] for part in (table, known, expected)), err


def test_a_category_or_attribute_that_is_gone_drops_no_box_silently(refused, data, tmp_path):
    for table, what in (("attribute", "names an attribute"), ("category", "names a category")):
        replace(data / f"v1.0-mini/{table}.json", b"[]")
        assert what in refused("infos", "--root", data, "--version", "v1.0-mini", "--out", tmp_path / "infos")
    assert not (tmp_path / "infos").exists()


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"\xff\xfe\x00"])
def test_a_table_that_the_devkit_cannot_read(data, content):
    from vexkd.evaluate import referee

    replace(data / "v1.0-mini/sample.json", content)
    with pytest.raises(InputError, match=r"v1\.0-mini: nuscenes-devkit cannot read this data set .*'vexkd doctor'\.$"):
        referee.open_set(data, "v1.0-mini")


# Lengths that a cut LiDAR file may have, multiples of 20 bytes (whole points) among them.
CUTS = [
    lambda n: 0,
    lambda n: 7,
    lambda n: 20,
    lambda n: 4000,
    lambda n: n // 40 * 20,
    lambda n: n - 20,
    lambda n: n - 1,
]


def test_a_lidar_file_cut_short_is_named_whatever_its_length(refused, desk, data, tmp_path):
    """The infos know every file's size; a model is never given the rest of a sweep."""
    folder, path = desk.copy(tmp_path / "experiment", root=str(data)), files(data, "LIDAR_TOP")[-1]
    whole = path.read_bytes()
    for cut in CUTS:
        length = cut(len(whole))
        replace(path, whole[:length])
        sentence = refused(*predict(folder))
        assert f"{path} has {length} bytes instead of {len(whole)}" in sentence
    assert nothing_new(folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_pasting_stop_at_a_cut_lidar_file(refused, desk, data, tmp_path, workers):
    """With a loader process too, whose error arrives wrapped in its traceback."""
    for path in files(data, "LIDAR_TOP"):
        replace(path, path.read_bytes()[:-20])
    folder = desk.copy(tmp_path / "experiment", root=str(data))
    assert re.search(r"LIDAR_TOP\S+ has \d+ bytes instead of", refused(*train(folder, workers=workers)))
    assert nothing_new(folder)
    if workers == 0:
        (folder / "artifacts/paste").unlink()
        said = refused("paste", "-C", folder, "--workers", 1)
        assert re.search(r"LIDAR_TOP\S+ has \d+ bytes instead of", said)
        assert not any((folder / "artifacts/paste").glob("*"))


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_an_image_that_cannot_be_decoded_is_named(refused, desk, data, tmp_path, content):
    for path in files(data, "CAM_BACK"):
        replace(path, path.read_bytes()[:1500] if content == "half" else content)
    folder = desk.copy(tmp_path / "experiment", root=str(data))
    said = refused(*predict(folder, "fusion-det"))
    assert re.search(r"image \S+/CAM_BACK/\S+\.jpg cannot be decoded", said)
    assert nothing_new(folder, "fusion-det")


def doctor(root: Path, manifest: Path | None = None) -> list:
    return ["doctor", *flags({"root": root, "version": "v1.0-mini", "manifest": manifest, "workers": 1})]


def test_doctor_names_every_bad_file_in_one_go(vexkd, data, tmp_path):
    lidar, image, gone = files(data, "LIDAR_TOP")[0], files(data, "CAM_FRONT")[0], files(data, "CAM_BACK")[0]
    replace(lidar, lidar.read_bytes()[: lidar.stat().st_size // 40 * 20])
    replace(image, b"not an image")
    gone.unlink()
    status, _, err = vexkd(*doctor(data, tmp_path / "manifest.parquet"))
    assert status == 2
    *lines, last = err
    assert "3 problems" in one_sentence(last)
    assert len(lines) == 3, lines
    for path, said in ((lidar, "the file is cut"), (image, "cannot be decoded"), (gone, "missing")):
        (line,) = (line for line in lines if line.startswith(f"{path.relative_to(data)}: "))
        assert said in line
    assert not (tmp_path / "manifest.parquet").exists(), "a manifest records whole states only"


def test_doctor_with_a_manifest_sees_every_cut(vexkd, data, tmp_path):
    manifest = tmp_path / "manifest.parquet"
    status, out, err = vexkd(*doctor(data, manifest))
    assert (status, err) == (0, [])
    assert "every file" in out[0]
    recorded = manifest.read_bytes()
    for path, cut in zip(files(data, "LIDAR_TOP") + files(data, "LIDAR_TOP")[:1], CUTS, strict=True):
        whole = path.read_bytes()
        replace(path, whole[: cut(len(whole))])
        status, _, err = vexkd(*doctor(data, manifest))
        assert status == 2
        assert len(err) == 2, err
        assert err[0].startswith(f"{path.relative_to(data)}: ")
        assert "1 problem, listed above" in one_sentence(err[1])
        replace(path, whole)
    assert manifest.read_bytes() == recorded
    assert vexkd(*doctor(data, manifest))[0] == 0


def test_infos_that_are_missing_or_damaged(refused, desk, tmp_path):
    folder = desk.copy(tmp_path)
    link = folder / "artifacts/infos"
    link.unlink()
    for damaged in (False, True):
        if damaged:
            shutil.copytree(desk.town / "infos", link)
            (link / "boxes.parquet").write_bytes((link / "boxes.parquet").read_bytes()[:-10])
        assert "artifacts/infos" in refused(*train(folder))
        assert "artifacts/infos" in refused(*predict(folder))


@pytest.mark.parametrize("split", ["mini", "val"])
def test_unknown_split(refused, desk, tmp_path, split):
    def edit(raw):
        raw["data"]["train_split"] = split

    assert "choose one of mini_train, mini_val" in refused("paste", "-C", desk.copy(tmp_path, edit))


def test_synthesize_keeps_what_is_there(refused, tmp_path):
    keep = tmp_path / "keep.txt"
    keep.write_text("mine")
    for out in (tmp_path, keep, keep / "below"):
        assert str(keep if out != tmp_path else out) in refused("synthesize", out, "--scenes", 2, "--samples", 2)
    assert keep.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [keep]
    assert "scenes must be" in refused("synthesize", tmp_path / "new", "--scenes", 0)


def test_a_file_in_place_of_a_folder(refused, desk, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for arguments in (
        ["infos", *flags({"root": desk.town / "data", "version": "v1.0-mini", "out": file})],
        predict(desk.folder, weights=tmp_path, out=tmp_path / "predictions.json"),
    ):
        assert str(tmp_path) in refused(*arguments)
    assert file.read_text() == "mine"


def test_a_full_disk_names_the_file_and_leaves_nothing(desk, tmp_path):
    """Stood in for by a limit on the size of files, which fails as a full disk does: without a file's name."""
    program = "import resource, signal, sys; from vexkd import cli\n"
    program += (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    )
    program += "sys.argv = ['vexkd', *sys.argv[1:]]; cli.main()"
    out, folder = tmp_path / "out", desk.copy(tmp_path / "experiment")
    (folder / "artifacts/paste").unlink()
    infos = ["infos", *flags({"root": desk.town / "data", "version": "v1.0-mini", "out": out})]
    for arguments, file in (
        (infos, out / "sweeps.parquet"),
        (["paste", "-C", folder], Path("artifacts/paste/points.npy")),
    ):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 2, run.stderr
        line = run.stderr.splitlines()[-1]
        assert "Traceback" not in run.stderr
        assert f"{file}: " in one_sentence(line)
        assert not list((folder / file).parent.iterdir())


def test_numbers_out_of_bounds_are_refused(refused, desk, tmp_path):
    for option in ("seed", "checkpoint-minutes", "max-seconds"):
        assert f"--{option}" in refused(*train(desk.folder, **{option: -1}))
    for number, (block, key, value) in enumerate(
        [("data", "sweeps", 11), ("data", "sweeps", -1), ("map", "cell", 0.0)]
    ):

        def edit(raw, block=block, key=key, value=value):
            raw[block][key] = value

        assert f"{block}.{key}" in refused("configure", "-C", desk.copy(tmp_path / str(number), edit))


def test_a_manifest_that_is_none(refused, data, tmp_path):
    assert "--manifest" in refused(*doctor(data), "--quick")
    gone = tmp_path / "gone.parquet"
    assert f"the manifest {gone}" in refused(*doctor(data, gone), "--quick")
    assert f"{tmp_path} is a folder" in refused(*doctor(data, tmp_path))
    other = tmp_path / "params.yaml"
    other.write_text("seeds: [0]\n")
    assert f"{other} is damaged, or the file is none: name another" in refused(*doctor(data, other))


# ---- weights


def test_weights_of_another_run_or_other_settings(refused, desk, tmp_path):
    weights = desk.weights()
    other = refused(*predict(desk.folder, "lidar-pretrain", weights=weights, out=tmp_path / "predictions.json"))
    assert "weights are those of run centerpoint-det, not of lidar-pretrain" in other

    def edit(raw):
        raw["students"]["centerpoint-det"]["train"]["lr"] = 0.5

    assert "train.lr" in refused(*predict(desk.copy(tmp_path / "changed", edit)))
    for option, run in (("start", "fusion-det"), ("teacher", "centerpoint-det-vexkd")):
        assert "weights of centerpoint-det" in refused(*train(desk.folder, run, **{option: weights}))
    missing = refused(*train(desk.folder, "fusion-det"))
    assert "lidar-pretrain/seed0/weights.safetensors" in missing


@pytest.mark.parametrize("length", [None, 0, 5, 300, -10])
def test_weights_that_are_missing_or_cut(refused, desk, tmp_path, length):
    path = tmp_path / "weights.safetensors"
    if length is not None:
        path.write_bytes(desk.weights().read_bytes()[:length])
    assert str(path) in refused(*predict(desk.folder, weights=path, out=tmp_path / "predictions.json"))
    assert str(path) in refused(*train(desk.folder, "centerpoint-det-vexkd", teacher=path))


# ---- results


def test_unknown_runs_tables_and_figures(refused, desk):
    here = ["-C", desk.folder]
    near = "the nearest known one is 'centerpoint-det'"
    for verb in ("evaluate", "train", "predict", "check", "summary"):
        sentence = refused(verb, "centerpoint-de", *here)
        assert f"no run named 'centerpoint-de'; {near}" in sentence
    assert "no run was named" in refused("check", *here)
    assert "no table named 'mian'; the nearest known one is 'main'" in refused("table", "mian", *here)
    assert "there is no figure birdseye-x; there are curves, " in refused("figure", "birdseye-x", *here)


def test_check_names_each_run_that_differs(vexkd, desk, tmp_path):
    folder = desk.copy(tmp_path)
    shutil.rmtree(folder / "models")
    status, _, err = vexkd("check", "--all", "-C", folder)
    assert status == 2
    *lines, last = err
    runs = settings.load(folder / "params.yaml").runs
    assert [line.split(":")[0] for line in lines] == list(runs)
    assert f"{len(runs)} of the trained models differ" in one_sentence(last)


def test_predictions_that_are_missing_or_broken(refused, desk, tmp_path):
    folder = desk.copy(tmp_path)
    path = Path("models/centerpoint-det/seed0/predictions.json")
    call = ["evaluate", "centerpoint-det", "-C", folder]
    assert str(path) in refused(*call)
    (folder / path.with_name("curve.csv")).write_text("step,loss\n1,2.0\n")
    (folder / path.with_name("provenance.json")).write_text("{}")
    for content in ("", "{", "[]", '{"meta": {}, "results": {}}'):
        (folder / path).write_text(content)
        assert str(path) in refused(*call)
    assert not (folder / "results/runs/centerpoint-det/metrics.json").exists()


def test_results_that_are_not_there(refused, desk, tmp_path):
    folder = desk.copy(tmp_path / "experiment")
    here = ["-C", folder]
    assert "run lidar-pretrain has no results yet; make them" in refused("table", "main", *here)
    assert "metrics.json" in refused("figure", "distillation", *here)
    assert "curve.csv" in refused("figure", "curves", *here)
    assert "predictions.json" in refused("figure", "birdseye-centerpoint-det", *here)
    assert not any(folder.glob("results/*/*"))
    page = tmp_path / "page.md"
    assert str(page) in refused("readme", page, "--results", tmp_path)
    page.write_text("<!-- table:main:begin -->\n<!-- table:main:end -->\n")
    assert "main.md: there is no such table" in refused("readme", page, "--results", tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/main.md").write_text("| a |\n")
    assert "its tables differ" in refused("readme", page, "--results", tmp_path, "--check")
    assert "| a |" not in page.read_text()


DAMAGED = {
    "empty": b"",
    "another": b"{}",
    "a list": b"[]",
    "null": b"null",
    "no text": b"\xff\xfe\x00",
    "half": b'{"mAP": 0.',
}
READERS = {
    "metrics.json": [["table", "main"], ["figure", "distillation"]],
    "provenance.json": [["table", "main"]],
    "curve.csv": [["figure", "curves"]],
}


@pytest.fixture
def finished(desk, tmp_path) -> Path:
    """An experiment in which every run has sound scores, records and a curve."""
    desk.copy(tmp_path)
    errors = {"translation": 0.5, "scale": 0.2, "orientation": 1.0, "velocity": 1.0, "attribute": 0.3}
    classes = dict.fromkeys(CLASSES, 0.3)
    detected = {"mAP": 0.4, "NDS": 0.4, "AP": classes, "errors": dict.fromkeys(CLASSES, errors)}
    segmented = {"mIoU": 0.3, "IoU": dict.fromkeys(settings.MAP_CLASSES, 0.3)}
    record = {"device": "CPU", "devices": 1, "threads": 1, "training_seconds": 9.0, "parameters": 10}
    for run in settings.load(tmp_path / "params.yaml").runs.values():
        folder = tmp_path / "results/runs" / run.name
        folder.mkdir(parents=True)
        scores = segmented if run.task == "segmentation" else detected
        spread = json.loads(json.dumps(scores), parse_float=lambda _: None)
        metrics = {**scores, "n": 1, "spread": spread, "seeds": {"0": scores}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "provenance.json").write_text(json.dumps({"seeds": {"0": record}, "evaluation": {}}))
        (folder / "curve.csv").write_text("seed,step,epoch,lr,loss\n0,0,0,0.001,2.0\n0,10,0,0.001,1.0\n")
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_results_that_are_damaged_are_named(vexkd, refused, desk, finished, name):
    shown = Path("results/runs/centerpoint-det-vexkd") / name
    path = finished / shown
    whole = path.read_bytes()
    for reader in READERS[name]:
        given = [*reader, "-C", finished]
        assert vexkd(*given)[0] == 0
        for damage in DAMAGED.values():
            path.write_bytes(damage)
            sentence = refused(*given)
            assert sentence.startswith(f"{shown}: this is not ")
            assert sentence.endswith("delete it and evaluate the run again.")
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_trainings_curve_that_is_damaged_is_named(refused, desk, tmp_path, damage):
    run = desk.copy(tmp_path) / "models/centerpoint-det/seed0"
    for name in ("predictions.json", "provenance.json"):
        (run / name).write_text('{"meta": {}, "results": {}}')
    (run / "curve.csv").write_bytes(damage)
    said = refused("evaluate", "centerpoint-det", "-C", tmp_path)
    assert "models/centerpoint-det/seed0/curve.csv: this is not the curve of a training" in said
