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
from pathlib import Path

import pytest
import yaml
from conftest import tiny_settings

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
    """Settings of all runs at test size, their files, and weights that nothing was learnt in."""

    def __init__(self, path: Path, town: Path) -> None:
        from vexkd.models import bev_model
        from vexkd.train import checkpoint

        self.path, self.town = path, town
        self.params, self.results, self.models = path / "params.yaml", path / "results", path / "models"
        self.params.write_text(yaml.safe_dump(tiny_settings()))
        loaded = settings.load(self.params)
        settings.write_configs(loaded, self.results)
        for name in ("centerpoint-det", "fusion-det"):
            run = loaded.run(name)
            checkpoint.save_weights(self.weights(name), bev_model.build(run), run=run, inputs={}, record={})

    def config(self, name: str = "centerpoint-det") -> Path:
        return self.results / "runs" / name / "config.yaml"

    def weights(self, name: str = "centerpoint-det") -> Path:
        return self.models / name / "seed0/weights.safetensors"

    def changed(self, folder: Path, **blocks) -> Path:
        """A config.yaml like the CenterPoint's but for some settings, with its inference.yaml beside it."""
        values = yaml.safe_load(self.config().read_text())
        for block, params in blocks.items():
            values[block] = {**values.get(block, {}), **params}
        (folder / "config.yaml").write_text(settings.dump(values))
        shutil.copy(self.config().with_name("inference.yaml"), folder)
        return folder / "config.yaml"

    def train(self, out: Path, config: Path | None = None, **options) -> list:
        """Arguments of a training; an option of None is left out."""
        given = {"config": config or self.config(), "root": self.town / "data", "infos": self.town / "infos"}
        given |= {"paste": self.town / "paste", "out": out / "model", "scratch": out / "scratch", "device": "cpu"}
        return ["train", *flags({**given, **options})]

    def predict(self, out: Path, name: str = "centerpoint-det", **options) -> list:
        given = {"weights": self.weights(name), "root": self.town / "data", "infos": self.town / "infos"}
        return ["predict", *flags({**given, "out": out / "predictions.json", "device": "cpu", **options})]


def flags(options: dict) -> list:
    return [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]


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
        ("figure bird", "no such command 'bird'; the nearest known one is 'birdseye'", "vexkd figure"),
        ("figure", "missing command", "vexkd figure"),
        ("--bogus", "no such option: --bogus", "vexkd"),
        ("train", "missing option '--config'", "vexkd train"),
        ("train --bogus", "no such option: --bogus", "vexkd train"),
        ("table", "missing argument 'name'", "vexkd table"),
        ("table main more", "unexpected extra argument (more)", "vexkd table"),
        ("synthesize x --scenes two", "'--scenes': it should be a valid integer", "vexkd synthesize"),
        ("predict --batch 0", "'--batch': it should be greater than or equal to 1", "vexkd predict"),
        ("predict --drop radar", "'--drop': 'radar' is not one of 'lidar', 'camera'", "vexkd predict"),
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
    command = [sys.executable, "-m", "vexkd.cli", "configure", "--params", str(tmp_path / "params.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert str(tmp_path / "params.yaml") in one_sentence(line)


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
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    sentence = refused("configure", "--params", path, "--results", tmp_path / "results")
    assert all(part in sentence for part in [str(path), *expected]), sentence
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [1,\nb: }\n", b"\xff\xfe\x00", b"a: \x00"])
def test_settings_that_are_no_mapping(refused, desk, tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    shutil.copy(desk.config().with_name("inference.yaml"), tmp_path)
    assert str(path) in refused("configure", "--params", path, "--results", tmp_path / "results")
    assert str(path) in refused(*desk.train(tmp_path, path))
    assert str(path) in refused(*desk.predict(tmp_path, inference=path))


def test_settings_that_are_not_there(refused, desk, tmp_path):
    gone = tmp_path / "gone.yaml"
    for arguments in (["configure", "--params", gone], ["check", "--all", "--params", gone]):
        assert str(gone) in refused(*arguments)
    assert str(gone) in refused(*desk.train(tmp_path, gone))
    assert str(gone) in refused(*desk.predict(tmp_path, config=gone))
    assert str(gone) in refused(*desk.predict(tmp_path, inference=gone))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bev": {"voxel": [0.3, 0.3, 0.4], "cell": 1.2}}, "no whole number of cells of 1.2 m"),
        ({"bev": {"cell": 0.8}}, "bev.cell is 0.8 m"),
        ({"bev": {"voxel": [0.4, 0.4, 4.0]}}, "voxel layers along z are too few"),
        ({"data": {"train_split": "mini_trian"}}, "choose one of mini_train, mini_val"),
        ({"train": {"batch": 64}}, "lower train.batch"),
    ],
)
def test_settings_that_do_not_fit_together(refused, desk, tmp_path, changes, expected):
    assert expected in refused(*desk.train(tmp_path, desk.changed(tmp_path, **changes)))
    assert not (tmp_path / "model").exists()


# ---- the data set


def test_missing_root_version_and_table(refused, desk, data, tmp_path):
    gone, out = tmp_path / "gone", tmp_path / "infos"
    doctor, infos = ["doctor"], ["infos", "--out", out]
    for verb in (doctor, infos):
        assert f"data root {gone} does not exist" in refused(*verb, "--root", gone, "--version", "v1.0-mini")
        assert "it holds v1.0-mini" in refused(*verb, "--root", data, "--version", "v1.0-trainval")
    for arguments in (desk.train(tmp_path, root=gone), desk.predict(tmp_path, root=gone)):
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
    path = files(data, "LIDAR_TOP")[-1]
    whole = path.read_bytes()
    for cut in CUTS:
        length = cut(len(whole))
        replace(path, whole[:length])
        sentence = refused(*desk.predict(tmp_path, root=data))
        assert f"{path} has {length} bytes instead of {len(whole)}" in sentence
    assert not (tmp_path / "predictions.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_pasting_stop_at_a_cut_lidar_file(refused, desk, data, tmp_path, workers):
    """With a loader process too, whose error arrives wrapped in its traceback."""
    for path in files(data, "LIDAR_TOP"):
        replace(path, path.read_bytes()[:-20])
    assert re.search(
        r"LIDAR_TOP\S+ has \d+ bytes instead of", refused(*desk.train(tmp_path, root=data, workers=workers))
    )
    assert not (tmp_path / "model").exists()
    if workers == 0:
        given = {
            "root": data,
            "infos": desk.town / "infos",
            "out": tmp_path / "paste",
            "split": "mini_train",
            "workers": 1,
        }
        assert re.search(r"LIDAR_TOP\S+ has \d+ bytes instead of", refused("paste", *flags(given)))
        assert not any((tmp_path / "paste").glob("*"))


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_an_image_that_cannot_be_decoded_is_named(refused, desk, data, tmp_path, content):
    for path in files(data, "CAM_BACK"):
        replace(path, path.read_bytes()[:1500] if content == "half" else content)
    assert re.search(
        r"image \S+/CAM_BACK/\S+\.jpg cannot be decoded", refused(*desk.predict(tmp_path, "fusion-det", root=data))
    )
    assert not (tmp_path / "predictions.json").exists()


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
    broken = Path(shutil.copytree(desk.town / "infos", tmp_path / "infos"))
    (broken / "boxes.parquet").write_bytes((broken / "boxes.parquet").read_bytes()[:-10])
    for folder in (tmp_path / "gone", broken):
        assert str(folder) in refused(*desk.train(tmp_path, infos=folder))
        assert str(folder) in refused(*desk.predict(tmp_path, infos=folder))


@pytest.mark.parametrize("split", ["mini", "val", ""])
def test_unknown_split(refused, desk, tmp_path, split):
    given = {"root": desk.town / "data", "infos": desk.town / "infos", "out": tmp_path / "paste", "split": split}
    assert "choose one of mini_train, mini_val" in refused("paste", *flags(given))


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
        ["configure", "--params", desk.params, "--results", file],
        desk.predict(tmp_path, weights=tmp_path),
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
    out = tmp_path / "out"
    infos = ["infos", *flags({"root": desk.town / "data", "version": "v1.0-mini", "out": out})]
    paste = ["paste", *flags({"root": desk.town / "data", "infos": desk.town / "infos", "out": out})]
    for arguments, file in ((infos, "sweeps.parquet"), ([*paste, "--split", "mini_train"], "points.npy")):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 2, run.stderr
        line = run.stderr.splitlines()[-1]
        assert "Traceback" not in run.stderr
        assert f"{out / file}: " in one_sentence(line)
        assert not list(out.iterdir())


def test_numbers_out_of_bounds_are_refused(refused, desk, tmp_path):
    """Above all lengths in other units than metres, and more sweeps than infos list."""
    data = {"root": desk.town / "data", "infos": desk.town / "infos", "out": tmp_path / "out"}
    assert "give reach and cell in metres" in refused("maps", *flags({**data, "reach": 5000}))
    assert "above 0 metres" in refused("maps", *flags({**data, "reach": 24, "cell": 0}))
    for option, value in (("sweeps", 11), ("sweeps", -1), ("min-points", 0)):
        assert f"--{option}" in refused("paste", *flags({**data, "split": "mini_train", option: value}))
    for option in ("seed", "checkpoint-minutes", "max-seconds"):
        assert f"--{option}" in refused(*desk.train(tmp_path, **{option: -1}))
    assert not (tmp_path / "out").exists()


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
    other = refused(*desk.predict(tmp_path, config=desk.config("lidar-pretrain")))
    assert "weights are those of run centerpoint-det, not of lidar-pretrain" in other
    changed = desk.changed(tmp_path, train={"lr": 0.5})
    assert "train.lr" in refused(*desk.predict(tmp_path, config=changed))
    inference = desk.config("fusion-det").with_name("inference.yaml")
    assert "inference.centerpoint" in refused(*desk.predict(tmp_path, inference=inference))
    for option, run in (("start", "fusion-det"), ("teacher", "centerpoint-det-vexkd")):
        given = {"paste": None, option: desk.weights("centerpoint-det")}
        assert "weights of centerpoint-det" in refused(*desk.train(tmp_path, desk.config(run), **given))
        assert "no weights were given" in refused(*desk.train(tmp_path, desk.config(run), paste=None))
    pasting = desk.changed(tmp_path, paste={"counts": {"car": 2}, "min_points": 5, "until_epoch": 1})
    assert "--paste" in refused(*desk.train(tmp_path, pasting, paste=None))


@pytest.mark.parametrize("length", [None, 0, 5, 300, -10])
def test_weights_that_are_missing_or_cut(refused, desk, tmp_path, length):
    path = tmp_path / "weights.safetensors"
    if length is not None:
        path.write_bytes(desk.weights().read_bytes()[:length])
    assert str(path) in refused(*desk.predict(tmp_path, weights=path))
    teacher = refused(*desk.train(tmp_path, desk.config("centerpoint-det-vexkd"), paste=None, teacher=path))
    assert str(path) in teacher


# ---- results


def test_unknown_runs_and_tables(refused, desk):
    shared = {"models": desk.models, "results": desk.results, "root": desk.town / "data"}
    assert "centerpoint/config.yaml" in refused("evaluate", "centerpoint", *flags(shared))
    check = ["--params", desk.params, "--models", desk.models]
    assert "no run named 'centerpoint-de'; the nearest known one is 'centerpoint-det'" in refused(
        "check", "centerpoint-de", *check
    )
    assert "no run was named" in refused("check", *check)
    table = ["--params", desk.params, "--results", desk.results]
    assert "no table named 'mian'; the nearest known one is 'main'" in refused("table", "mian", *table)


def test_check_names_each_run_that_differs(vexkd, desk, tmp_path):
    status, _, err = vexkd("check", "--all", "--params", desk.params, "--models", tmp_path)
    assert status == 2
    *lines, last = err
    runs = settings.load(desk.params).runs
    assert [line.split(":")[0] for line in lines] == list(runs)
    assert f"{len(runs)} of the trained models differ" in one_sentence(last)


def test_predictions_that_are_missing_or_broken(refused, desk, tmp_path):
    run = tmp_path / "centerpoint-det/seed0"
    given = flags({"models": tmp_path, "results": desk.results, "root": desk.town / "data"})
    path = run / "predictions.json"
    assert str(path) in refused("evaluate", "centerpoint-det", *given)
    run.mkdir(parents=True)
    (run / "curve.csv").write_text("step,loss\n1,2.0\n")
    (run / "provenance.json").write_text("{}")
    for content in ("", "{", "[]", '{"meta": {}, "results": {}}'):
        path.write_text(content)
        assert str(path) in refused("evaluate", "centerpoint-det", *given)
    assert not (desk.config().parent / "metrics.json").exists()


def test_results_that_are_not_there(refused, desk, tmp_path):
    given = ["--params", desk.params, "--results", desk.results]
    assert "run lidar-pretrain has no results yet; make them" in refused("table", "main", *given)
    assert "metrics.json" in refused("figure", "distillation", *given)
    assert "curve.csv" in refused("figure", "curves", *given)
    scene = flags({"root": desk.town / "data", "infos": desk.town / "infos", "models": tmp_path, "results": tmp_path})
    assert "predictions.json" in refused("figure", "birdseye", "centerpoint-det", *scene)
    assert not any(desk.results.glob("tables/*"))
    assert not any(desk.results.glob("figures/*"))
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
    """A results folder in which every run has sound scores, records and a curve."""
    errors = {"translation": 0.5, "scale": 0.2, "orientation": 1.0, "velocity": 1.0, "attribute": 0.3}
    classes = dict.fromkeys(CLASSES, 0.3)
    detected = {"mAP": 0.4, "NDS": 0.4, "AP": classes, "errors": dict.fromkeys(CLASSES, errors)}
    segmented = {"mIoU": 0.3, "IoU": dict.fromkeys(settings.MAP_CLASSES, 0.3)}
    record = {"device": "CPU", "devices": 1, "threads": 1, "training_seconds": 9.0, "parameters": 10}
    for run in settings.load(desk.params).runs.values():
        folder = tmp_path / "runs" / run.name
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
    path = finished / "runs/centerpoint-det-vexkd" / name
    whole = path.read_bytes()
    for reader in READERS[name]:
        given = [*reader, "--params", desk.params, "--results", finished]
        assert vexkd(*given)[0] == 0
        for damage in DAMAGED.values():
            path.write_bytes(damage)
            sentence = refused(*given)
            assert sentence.startswith(f"{path}: this is not ")
            assert sentence.endswith("delete it and evaluate the run again.")
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_trainings_curve_that_is_damaged_is_named(refused, desk, tmp_path, damage):
    run = tmp_path / "centerpoint-det/seed0"
    run.mkdir(parents=True)
    for name in ("predictions.json", "provenance.json"):
        (run / name).write_text('{"meta": {}, "results": {}}')
    (run / "curve.csv").write_bytes(damage)
    given = flags({"models": tmp_path, "results": desk.results, "root": desk.town / "data"})
    assert f"{run / 'curve.csv'}: this is not the curve of a training" in refused("evaluate", "centerpoint-det", *given)
