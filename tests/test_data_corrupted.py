"""Every corruption of a table ends in one sentence that names file and token: the same from doctor and from infos."""

from __future__ import annotations

import codecs
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyquaternion import Quaternion
from test_data_tiny import KEY, START, VERSION, write

from vexkd import boxes as box_tools
from vexkd.data import doctor, infos_build, tables
from vexkd.data import infos as info_tools
from vexkd.errors import InputError

Rows = list[dict[str, Any]]
CAR = "a-scene-0061-car-1"
SWEEP = f"d-LIDAR_TOP-scene-0061-{START + 50_000}"
KEYFRAME = f"d-LIDAR_TOP-scene-0061-{START + KEY}"
IMAGE = f"d-CAM_BACK-scene-0061-{START - 7_000}"
POSE = f"e-{SWEEP}"
HUGE = 10**400


def put(owner: str, /, **values: Any) -> Callable[[Rows], Rows]:
    """Change columns of one row; the value `...` takes a column out, a function makes it from the old one."""

    def change(rows: Rows) -> Rows:
        row = next(row for row in rows if row["token"] == owner)
        for name, value in values.items():
            if value is ...:
                del row[name]
            else:
                row[name] = value(row[name]) if callable(value) else value
        return rows

    return change


def everywhere(**values: Any) -> Callable[[Rows], Rows]:
    """Change columns of all rows."""

    def change(rows: Rows) -> Rows:
        for row in rows:
            put(row["token"], **values)([row])
        return rows

    return change


def without(token: str) -> Callable[[Rows], Rows]:
    return lambda rows: [row for row in rows if row["token"] != token]


def again(owner: str, /, **values: Any) -> Callable[[Rows], Rows]:
    """A copy of a row with other values at the end."""
    return lambda rows: [*rows, {**next(row for row in rows if row["token"] == owner), **values}]


# Table, what is done to its rows, and the token and words of the sentence.
CORRUPTIONS: dict[str, tuple[str, Callable[[Rows], Rows], str, str]] = {
    "no token": ("log", put("log", token=...), "number 0", "it lacks token"),
    "empty token": ("category", put("c-cat", token=""), "number 2", "its token is empty"),
    "number as token": ("visibility", put("1", token=1), "1", "token is 1, not text"),
    "half a character": ("scene", put("scene-0061", name="scene\ud800"), "scene-0061", "name holds half a character"),
    # log, map, scene
    "no location": ("log", put("log", location=None), "log", "location is null, not text"),
    "log without map": ("map", put("map", log_tokens=[]), "log", "no row of map.json names it"),
    "no map at all": ("map", lambda rows: [], "log", "no row of map.json names it"),
    "map without logs": ("map", put("map", log_tokens=...), "map", "it lacks log_tokens"),
    "map outside": ("map", put("map", filename="../mask.png"), "map", "is no path below the root"),
    "scene of no log": ("scene", put("scene-0103", log_token="x"), "scene-0103", "names a log that log.json lacks"),
    "scene without name": ("scene", put("scene-0103", name=""), "scene-0103", "its name is empty"),
    "two scenes of a name": (
        "scene",
        put("scene-0103", name="scene-0061"),
        "scene-0103",
        "is that of row scene-0061 too",
    ),
    "a scene twice": ("scene", again("scene-0061"), "scene-0061", "its token stands twice"),
    # sample
    "sample of no scene": (
        "sample",
        put("scene-0061-1", scene_token="x"),
        "scene-0061-1",
        "a scene that scene.json lacks",
    ),
    "sample twice": ("sample", again("scene-0061-1"), "scene-0061-1", "its token stands twice"),
    "samples at one time": (
        "sample",
        put("scene-0061-1", timestamp=START),
        "scene-0061-1",
        "it has the time of scene-0061-0",
    ),
    "true as time": (
        "sample",
        put("scene-0061-1", timestamp=True),
        "scene-0061-1",
        "timestamp is true, not a whole number",
    ),
    "time with a point": ("sample", put("scene-0061-1", timestamp=1.5e15), "scene-0061-1", "not a whole number"),
    "seconds": ("sample", everywhere(timestamp=lambda t: t // 10**6), "scene-0061-0", "it looks like seconds"),
    "milliseconds": (
        "sample",
        everywhere(timestamp=lambda t: t // 10**3),
        "scene-0061-0",
        "it looks like milliseconds",
    ),
    "nanoseconds": ("sample", everywhere(timestamp=lambda t: t * 1000), "scene-0061-0", "it looks like nanoseconds"),
    "endless time": ("sample", put("scene-0061-1", timestamp=HUGE), "scene-0061-1", "not microseconds since 1970"),
    "negative time": ("sample", put("scene-0061-1", timestamp=-START), "scene-0061-1", "not microseconds since 1970"),
    # sensor, calibrated_sensor
    "LiDAR is a camera": ("sensor", put("LIDAR_TOP", modality="camera"), "LIDAR_TOP", "instead of 'lidar'"),
    "camera is a LiDAR": ("sensor", put("CAM_BACK", modality="lidar"), "CAM_BACK", "instead of 'camera'"),
    "calibration of no sensor": (
        "calibrated_sensor",
        put("k-LIDAR_TOP", sensor_token="x"),
        "k-LIDAR_TOP",
        "names a sensor",
    ),
    "LiDAR in millimetres": (
        *("calibrated_sensor", put("k-LIDAR_TOP", translation=[900, 0, 1800]), "k-LIDAR_TOP"),
        "translation is 2012 m long",
    ),
    "LiDAR nowhere": (
        *("calibrated_sensor", put("k-LIDAR_TOP", translation=[math.nan, 0, 1]), "k-LIDAR_TOP"),
        "translation holds a number that is not finite",
    ),
    "LiDAR turned by nothing": (
        *("calibrated_sensor", put("k-LIDAR_TOP", rotation=[0, 0, 0, 0]), "k-LIDAR_TOP"),
        "a rotation of length 0",
    ),
    "quaternion of three": (
        *("calibrated_sensor", put("k-LIDAR_TOP", rotation=[1, 0, 0]), "k-LIDAR_TOP"),
        "not a list of 4 numbers",
    ),
    "LiDAR on its side": (
        *("calibrated_sensor", put("k-LIDAR_TOP", rotation=lambda q: [q[3], q[1], q[0], q[2]]), "k-LIDAR_TOP"),
        "lays the LiDAR on its side",
    ),
    "camera of order x y z w": (
        *("calibrated_sensor", put("k-CAM_BACK", rotation=lambda q: [*q[1:], q[0]]), "k-CAM_BACK"),
        "lays the camera on its side",
    ),
    "camera without matrix": (
        *("calibrated_sensor", put("k-CAM_BACK", camera_intrinsic=[]), "k-CAM_BACK"),
        "camera_intrinsic is no camera matrix",
    ),
    "matrix of zeros": (
        *("calibrated_sensor", put("k-CAM_BACK", camera_intrinsic=[[0] * 3] * 3), "k-CAM_BACK"),
        "camera_intrinsic is no camera matrix",
    ),
    "matrix transposed": (
        *("calibrated_sensor", put("k-CAM_BACK", camera_intrinsic=[[50, 0, 0], [0, 50, 0], [31, 17, 1]]), "k-CAM_BACK"),
        "camera_intrinsic is no camera matrix",
    ),
    "matrix of two rows": (
        *("calibrated_sensor", put("k-CAM_BACK", camera_intrinsic=[[50, 0, 31], [0, 50, 17]]), "k-CAM_BACK"),
        "is not 3 x 3 numbers",
    ),
    "matrix of words": (
        *("calibrated_sensor", put("k-CAM_BACK", camera_intrinsic=[["a"] * 3] * 3), "k-CAM_BACK"),
        "is not 3 x 3 numbers",
    ),
    "matrix of another image": (
        *(
            "calibrated_sensor",
            put("k-CAM_BACK", camera_intrinsic=[[900, 0, 800], [0, 900, 450], [0, 0, 1]]),
            "k-CAM_BACK",
        ),
        "looks past the image of 64x36 pixels",
    ),
    # ego_pose
    "pose not a number": ("ego_pose", put(POSE, translation=[0, math.inf, 0]), POSE, "translation holds a number"),
    "pose beyond all numbers": ("ego_pose", put(POSE, translation=[0, HUGE, 0]), POSE, "translation holds a number"),
    "rotation not a number": ("ego_pose", put(POSE, rotation=[1, 0, 0, math.nan]), POSE, "rotation holds a number"),
    "rotation of zeros": ("ego_pose", put(POSE, rotation=[0, 0, 0, 0]), POSE, "a rotation of length 0"),
    "car on its roof": ("ego_pose", put(POSE, rotation=[0, 1, 0, 0]), POSE, "lays the car on its side"),
    "a jump": (
        "ego_pose",
        put(POSE, translation=[900, 0, 0]),
        POSE,
        "m in the 0.05 s before it; nuScenes counts in metres",
    ),
    "degrees on the globe": ("ego_pose", put(POSE, translation=[1e9, 0, 0]), POSE, "nuScenes counts in metres"),
    "frame of a lost pose": (
        *("sample_data", put(SWEEP, ego_pose_token="x"), SWEEP),
        "names an ego pose that ego_pose.json lacks",
    ),
    "pose dated otherwise": (
        "ego_pose",
        put(POSE, timestamp=START + 9_000_000),
        SWEEP,
        "is of a time 8.95 s from its own",
    ),
    "pose lost": ("ego_pose", without(POSE), SWEEP, "names an ego pose that ego_pose.json lacks"),
    "pose twice": ("ego_pose", again(POSE), POSE, "its token stands twice"),
    # sample_data
    "frame of no sensor": ("sample_data", put(SWEEP, calibrated_sensor_token="x"), SWEEP, "a calibrated sensor that"),
    "frame of no sample": ("sample_data", put(SWEEP, sample_token="x"), SWEEP, "names a sample that sample.json lacks"),
    "frame twice": ("sample_data", again(SWEEP), SWEEP, "its token stands twice"),
    "frame of a radar twice": (
        *("sample_data", lambda rows: [*rows, *2 * [{**rows[0], "token": "x", "is_key_frame": False}]]),
        *("x", "its token stands twice"),
    ),
    "two frames of a file": ("sample_data", again(SWEEP, token="x"), "x", f"is that of row {SWEEP} too"),
    "file of another sensor": (
        *("sample_data", put(IMAGE, filename=lambda f: f.replace("CAM_BACK", "CAM_FRONT") + "x"), IMAGE),
        "is of CAM_FRONT, but the row is of CAM_BACK",
    ),
    "absolute file": ("sample_data", put(SWEEP, filename="/etc/passwd"), SWEEP, "is no path below the root"),
    "no file": ("sample_data", put(SWEEP, filename=""), SWEEP, "is no path below the root"),
    "file with a zero": ("sample_data", put(SWEEP, filename="a\0b"), SWEEP, "is no path below the root"),
    "a keyframe too many": (
        *("sample_data", put(SWEEP, is_key_frame=True), KEYFRAME),
        "are both keyframes of LIDAR_TOP of sample scene-0061-1",
    ),
    "number for a keyframe": ("sample_data", put(SWEEP, is_key_frame=0), SWEEP, "is_key_frame is 0, not true or false"),
    "keyframe of another time": (
        *("sample_data", put(IMAGE, timestamp=START + 3_000_000), IMAGE),
        "it is a keyframe 3 s from the time of its sample scene-0061-0",
    ),
    "sweep in nanoseconds": (
        "sample_data",
        put(SWEEP, timestamp=lambda t: t * 1000),
        SWEEP,
        "it looks like nanoseconds",
    ),
    "sweep after its keyframe": (
        *("sample_data", put(SWEEP, timestamp=START + 110_000), f"d-LIDAR_TOP-scene-0061-{START + 100_000}"),
        f"prev names {SWEEP}, which is not earlier",
    ),
    "before itself": ("sample_data", put(SWEEP, prev=SWEEP), SWEEP, "prev names the row itself"),
    "a circle": ("sample_data", put(SWEEP, prev=KEYFRAME), SWEEP, f"prev names {KEYFRAME}, which is not earlier"),
    "before in another scene": (
        *("sample_data", put(SWEEP, prev=f"d-LIDAR_TOP-scene-0103-{START}"), SWEEP),
        f"prev names d-LIDAR_TOP-scene-0103-{START} of scene-0103, but the row is of scene-0061",
    ),
    "before is unknown": ("sample_data", put(SWEEP, prev="x"), SWEEP, "prev names no frame of LIDAR_TOP ('x')"),
    "before is an image": ("sample_data", put(SWEEP, prev=IMAGE), SWEEP, "prev names no frame of LIDAR_TOP"),
    "image without size": ("sample_data", put(IMAGE, width=0), IMAGE, "width or height of its image is not above 0"),
    "image of no size": ("sample_data", put(IMAGE, height=None), IMAGE, "width or height of its image is not above 0"),
    "negative size": ("sample_data", put(IMAGE, height=-36), IMAGE, "width or height of its image is not above 0"),
    "endless size": ("sample_data", put(IMAGE, height=HUGE), IMAGE, "is out of all reason"),
    "size swapped": ("sample_data", put(IMAGE, width=36, height=64), IMAGE, "width 36 and height 64 are swapped"),
    # category, instance, attribute
    "last word": ("category", put("c-car", name="car"), "c-car", "did you mean vehicle.car?"),
    "last word of a person": (
        "category",
        put("c-walker", name="adult"),
        "c-walker",
        "did you mean human.pedestrian.adult?",
    ),
    "name of a class": (
        "category",
        put("c-car", name="construction_vehicle"),
        "c-car",
        "did you mean vehicle.construction?",
    ),
    "capital letters": ("category", put("c-car", name="Vehicle.Car"), "c-car", "did you mean vehicle.car?"),
    "misspelt": (
        "category",
        put("c-walker", name="human.pedestrain.adult"),
        "c-walker",
        "did you mean human.pedestrian.adult?",
    ),
    "instance of nothing": ("category", without("c-cat"), "i-a-scene-0061-cat", "a category that category.json lacks"),
    "attribute twice": ("attribute", again("moving"), "moving", "its token stands twice"),
    "attribute unknown to scoring": (
        "attribute",
        put("moving", name="flying"),
        "a-scene-0061-car-0",
        "is none of nuScenes'",
    ),
    # sample_annotation
    "box of no sample": ("sample_annotation", put(CAR, sample_token="x"), CAR, "names a sample that sample.json lacks"),
    "box of nothing": ("sample_annotation", put(CAR, instance_token="x"), CAR, "an instance that instance.json lacks"),
    "box of no visibility": (
        "sample_annotation",
        put(CAR, visibility_token="9"),
        CAR,
        "a visibility that visibility.json",
    ),
    "attribute lost": (
        "sample_annotation",
        put(CAR, attribute_tokens=["x"]),
        CAR,
        "an attribute that attribute.json lacks",
    ),
    "two attributes": ("sample_annotation", put(CAR, attribute_tokens=["moving"] * 2), CAR, "it has 2 attributes"),
    "attribute in a list": ("sample_annotation", put(CAR, attribute_tokens=[["moving"]]), CAR, "an attribute that"),
    "attributes as text": ("sample_annotation", put(CAR, attribute_tokens="moving"), CAR, "not a list"),
    "flat box": ("sample_annotation", put(CAR, size=[2, 4, 0]), CAR, "size is 2, 4, 0; a box is wider"),
    "inside out": ("sample_annotation", put(CAR, size=[-2, 4, 1]), CAR, "size is -2, 4, 1"),
    "car in millimetres": ("sample_annotation", put(CAR, size=[2000, 4000, 1600]), CAR, "smaller than 200 m"),
    "size not a number": ("sample_annotation", put(CAR, size=[2, math.nan, 1]), CAR, "size holds a number"),
    "size of four": ("sample_annotation", put(CAR, size=[2, 4, 1, 1]), CAR, "not a list of 3 numbers"),
    "size of words": ("sample_annotation", put(CAR, size=["2", 4, 1]), CAR, "not a list of 3 numbers"),
    "place not a number": (
        "sample_annotation",
        put(CAR, translation=[1, -math.inf, 0]),
        CAR,
        "translation holds a number",
    ),
    "box turned by nothing": ("sample_annotation", put(CAR, rotation=[0, 0, 0, 0]), CAR, "a rotation of length 0"),
    "turn not a number": ("sample_annotation", put(CAR, rotation=[1, 0, 0, math.nan]), CAR, "rotation holds a number"),
    "boxes on their side": (
        *("sample_annotation", everywhere(rotation=[0.7, 0.7, 0, 0]), "a-scene-0061-car-0"),
        "rotation lays the box on its side; nuScenes' quaternions are w, x, y, z (and so do 15 rows more)",
    ),
    "a point less than none": ("sample_annotation", put(CAR, num_lidar_pts=-1), CAR, "num_lidar_pts is -1"),
    "unknown points everywhere": (
        *("sample_annotation", everywhere(num_lidar_pts=-1), "a-scene-0061-car-0"),
        "num_lidar_pts is -1, and no count is below 0 (and so do 15 rows more)",
    ),
    "radar points below none": ("sample_annotation", put(CAR, num_radar_pts=-2), CAR, "num_radar_pts is -2"),
    "endless points": ("sample_annotation", put(CAR, num_lidar_pts=HUGE), CAR, "out of all reason"),
    "no points": ("sample_annotation", put(CAR, num_lidar_pts=...), CAR, "it lacks num_lidar_pts"),
    "points not a number": ("sample_annotation", put(CAR, num_lidar_pts=math.nan), CAR, "num_lidar_pts is NaN"),
    "next of another thing": (
        *("sample_annotation", put(CAR, next="a-scene-0061-walker-2"), CAR),
        "next names a-scene-0061-walker-2 of another instance",
    ),
    "next is unknown": ("sample_annotation", put(CAR, next="x"), CAR, "next names an annotation that is not there"),
    "next is earlier": ("sample_annotation", put(CAR, next="a-scene-0061-car-0"), CAR, "which is not later"),
    "previous is itself": ("sample_annotation", put(CAR, prev=CAR), CAR, "which is not earlier"),
    "two boxes of one thing": (
        "sample_annotation",
        again(CAR, token="x"),
        "x",
        f"it and {CAR} are two boxes of one instance",
    ),
    "annotation twice": (
        "sample_annotation",
        again("a-scene-0103-cat-0"),
        "a-scene-0103-cat-0",
        "its token stands twice",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "set")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """The tiny set with tables of its own; the sensor files are those of `whole`."""
    root = tmp_path / "set"
    (root / VERSION).mkdir(parents=True)
    for name in ("samples", "sweeps", "maps"):
        (root / name).symlink_to(whole / name)
    for path in (whole / VERSION).iterdir():
        (root / VERSION / path.name).write_bytes(path.read_bytes())
    return root


def one_sentence(root: Path, tmp_path: Path) -> str:
    """What infos says, which must be all that doctor says."""
    with pytest.raises(InputError) as caught:
        infos_build.build(root, VERSION, tmp_path / "infos", progress=False)
    assert not (tmp_path / "infos").exists()
    assert doctor.examine(root, VERSION, progress=False) == [str(caught.value)]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_doctor_and_infos_name_file_and_token(copy, tmp_path, name):
    table, change, token, words = CORRUPTIONS[name]
    path = copy / VERSION / f"{table}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    found = one_sentence(copy, tmp_path)
    assert words in found
    assert f".json: row {token}: " in found


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "byte order mark": (lambda b: codecs.BOM_UTF8 + b, "is UTF-8 text with a byte order mark"),
    "UTF-16": (lambda b: b.decode().encode("utf-16"), "is UTF-16 text instead of UTF-8"),
    "UTF-16 without mark": (lambda b: b.decode().encode("utf-16-le"), "is UTF-16 text instead of UTF-8"),
    "Latin-1": (lambda b: b.replace(b'"token"', b'"tok\xe9n"', 1), "is not UTF-8 text"),
    "gzip": (gzip.compress, "is a gzip archive, not unpacked"),
    "git-lfs": (
        lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a pointer of git-lfs",
    ),
    "page": (lambda b: b"<!DOCTYPE html>\n<html>403</html>", "is an HTML or XML page"),
    "empty": (lambda b: b"", "is cut or damaged (it is empty)"),
    "spaces": (lambda b: b"  \n", "is cut or damaged (it ends there)"),
    "zeros": (lambda b: bytes(len(b)), "is cut or damaged (it begins with zeros)"),
    "object": (lambda b: b'{"rows": ' + b + b"}", "is a JSON object, or one a line"),
    "one a line": (
        lambda b: b"\n".join(json.dumps(r).encode() for r in json.loads(b)),
        "is a JSON object, or one a line",
    ),
    "cut": (lambda b: b[:-30], "is cut or damaged after row "),
    "end mark lost": (lambda b: b[: b.rindex(b"]")], "(it ends there)"),
    "comma lost": (lambda b: b.replace(b"}, {", b"} {").replace(b"},\n{", b"}\n{"), "stands there)"),
    "comma too many": (lambda b: b[: b.rindex(b"]")] + b",]", "(']' cannot be read)"),
    "garbage at the end": (lambda b: b + b"\nx", "('x' follows its end)"),
    "two lists": (lambda b: b + b, "follows its end)"),
    "list of lists": (lambda b: b"[" + b + b"]", "(what follows is no row)"),
    "single quotes": (lambda b: b.replace(b'"', b"'"), "cannot be read)"),
    "endless number": (lambda b: b'[{"token": ' + b"1" * 5000 + b"}]", "cannot be read)"),
    "deep": (lambda b: b"[" * 100_000, "cannot be read)"),
}


@pytest.mark.parametrize("table", ["category", "sample_data", "visibility"])
@pytest.mark.parametrize("name", BYTES)
def test_what_a_file_holds_instead_is_said(copy, tmp_path, table, name):
    change, words = BYTES[name]
    path = copy / VERSION / f"{table}.json"
    path.write_bytes(change(path.read_bytes()))
    found = one_sentence(copy, tmp_path)
    assert found.startswith(str(path))
    assert words in found


@pytest.mark.parametrize("change", [lambda b: b.replace(b"\n", b"\r\n"), lambda b: b"\n\t" + b + b"\r\n "])
def test_other_white_space_is_no_fault(copy, change):
    for path in (copy / VERSION).iterdir():
        path.write_bytes(change(path.read_bytes()))
    assert doctor.examine(copy, VERSION, progress=False) == []


@pytest.mark.parametrize("name", ["lidarseg", "panoptic"])
def test_point_labels_that_the_devkit_would_miss(copy, tmp_path, name):
    """It refuses the whole set when it scores, after all training."""
    (copy / VERSION / f"{name}.json").write_text('[{"token": "a"}]')
    assert "category.json: row c-car: it lacks index, which nuscenes-devkit needs" in one_sentence(copy, tmp_path)
    path = copy / VERSION / "category.json"
    path.write_text(json.dumps([row | {"index": i} for i, row in enumerate(json.loads(path.read_text()))]))
    assert f"{name}.json has 1 rows, but {copy / name / VERSION} holds 0 label files" in one_sentence(copy, tmp_path)
    (copy / VERSION / f"{name}.json").write_text("[")
    assert f"{name}.json is cut or damaged" in one_sentence(copy, tmp_path)


def test_several_damaged_tables_are_named_in_one_go(copy):
    for table in ("log", "visibility", "sample_data"):
        (copy / VERSION / f"{table}.json").write_text("[")
    found = doctor.examine(copy, VERSION, progress=False)
    assert [Path(problem.split(" is ")[0]).stem for problem in found] == ["log", "sample_data", "visibility"]


def test_no_sample_and_no_lidar(copy, tmp_path):
    path = copy / VERSION / "sample.json"
    rows = path.read_text()
    path.write_text("[]")
    assert "sample.json holds no sample" in one_sentence(copy, tmp_path)
    path.write_text(rows)
    sensor = copy / VERSION / "sensor.json"
    sensor.write_text(sensor.read_text().replace('"channel": "LIDAR_TOP"', '"channel": "LIDAR"'))
    assert "sensor.json names no channel LIDAR_TOP" in one_sentence(copy, tmp_path)


def test_a_damaged_row_is_found_at_once_in_a_long_table(copy, monkeypatch):
    """The reader does not gather a whole table in the hope of a row's end."""
    path = copy / VERSION / "ego_pose.json"
    path.write_text('[{"token": "a", "b": }' + " " * 3_000_000)
    monkeypatch.setattr(tables, "_BLOCK", 1 << 16)
    monkeypatch.setattr(tables, "_LONGEST", 1 << 17)
    with pytest.raises(InputError, match=r"ego_pose\.json is cut or damaged"):
        list(tables.rows(copy, VERSION, "ego_pose"))


def test_every_column_that_is_read_is_missed(copy, tmp_path):
    for table, columns in tables.COLUMNS.items():
        path = copy / VERSION / f"{table}.json"
        text = path.read_text()
        for column in columns:
            rows = json.loads(text)
            rows[-1].pop(column, None)
            path.write_text(json.dumps(rows))
            if column in ("width", "height", "visibility_token"):
                continue  # absent for other sensors
            found = one_sentence(copy, tmp_path)
            assert f"{path}: row {rows[-1]['token']}: it lacks {column}: " in found
        path.write_text(text)


def test_rotations_of_any_length_are_the_devkits(copy, tmp_path):
    """pyquaternion brings them to length 1, so scoring sees the same boxes, sweeps and cameras."""
    infos_build.build(copy, VERSION, tmp_path / "unit", progress=False)
    turns = {"sample_annotation": [0.8, 0, 0, 0.6], "ego_pose": None, "calibrated_sensor": None}
    for length, folder in ((1.0, "unit"), (2.5, "other")):
        for table, turn in turns.items():
            path = copy / VERSION / f"{table}.json"
            rows = json.loads(path.read_text())
            for row in rows:
                row["rotation"] = [length * v for v in turn or row["rotation"]]
            path.write_text(json.dumps(rows))
        infos_build.build(copy, VERSION, tmp_path / folder, progress=False)
    unit, other = (info_tools.load(tmp_path / folder) for folder in ("unit", "other"))
    for name in ("boxes", "global_from_ego", "ego_from_lidar", "camera_from_lidar", "lidar_from_sweep"):
        np.testing.assert_allclose(other.arrays[name], unit.arrays[name], atol=1e-9)
    [expected] = {round(Quaternion([2, 0, 0, 1.5]).yaw_pitch_roll[0], 9)}
    boxes = box_tools.from_nuscenes(np.zeros((1, 3)), np.ones((1, 3)), np.array([[2, 0, 0, 1.5]]))
    assert boxes[0, 6] == pytest.approx(expected)
    assert doctor.examine(copy, VERSION, progress=False) == []


def test_sizes_in_another_order(tmp_path):
    """Length before width, as other data sets have it, turns every car by a quarter."""
    from vexkd.synthetic.tables import synthesize

    root = tmp_path / "town"
    synthesize(root, scenes=1, samples=4, seed=1, sensors=False, progress=False)
    path = root / VERSION / "sample_annotation.json"
    rows = json.loads(path.read_text())
    infos_build.build(root, VERSION, tmp_path / "infos", progress=False)
    for row in rows:
        row["size"] = [row["size"][1], row["size"][0], row["size"][2]]
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"sample_annotation\.json: size of \d+ cars is not width, length, height"):
        infos_build.build(root, VERSION, tmp_path / "infos", progress=False)


def test_lengths_next_to_one_stay_as_they_are():
    """So that infos of nuScenes, whose quaternions have 16 digits, are those of before, bit for bit."""
    turn = np.array([[0.6, 0.0, 0.0, 0.8]]) * (1 + 2e-15)
    w, _, _, z = turn[0]
    assert box_tools.from_nuscenes(np.zeros((1, 3)), np.ones((1, 3)), turn)[0, 6] == np.arctan2(
        2 * w * z, 1 - 2 * z * z
    )


def test_lidar_without_cameras(copy, tmp_path):
    for table, is_camera in {
        "sample_data": lambda row: "CAM_" in row["token"],
        "calibrated_sensor": lambda row: "CAM_" in row["token"],
        "sensor": lambda row: "CAM_" in row["token"],
    }.items():
        path = copy / VERSION / f"{table}.json"
        path.write_text(json.dumps([row for row in json.loads(path.read_text()) if not is_camera(row)]))
    assert infos_build.build(copy, VERSION, tmp_path / "infos", progress=False).cameras == 0
    [first, *_] = info_tools.load(tmp_path / "infos")
    assert first.camera_paths == []
    assert first.camera_from_lidar.shape == (0, 4, 4)
    assert len(first.boxes) == 3
    assert doctor.examine(copy, VERSION, progress=False) == []


def test_a_car_that_never_drives_where_it_looks(tmp_path):
    """Quaternions in the order x, y, z, w turn a car that drives north by 180 degrees."""
    from vexkd.synthetic.tables import synthesize

    root = tmp_path / "town"
    synthesize(root, scenes=1, samples=12, seed=1, sensors=False, sweeps_per_sample=4, progress=False)
    path = root / VERSION / "ego_pose.json"
    rows = json.loads(path.read_text())
    infos_build.build(root, VERSION, tmp_path / "infos", progress=False)
    for row in rows:
        row["rotation"] = (Quaternion(row["rotation"]) * Quaternion(axis=[0, 0, 1], degrees=120)).elements.tolist()
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"all along scene-\d+ the car does not drive where it looks"):
        infos_build.build(root, VERSION, tmp_path / "infos", progress=False)
