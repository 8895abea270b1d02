"""The ground-truth database and pasting."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import box as rectangle
from test_data_tiny import VERSION, write

from vexkd import boxes as box_tools
from vexkd.data import infos as info_tools
from vexkd.data import infos_build, paste
from vexkd.errors import InputError

CAR, WALKER = box_tools.CLASSES.index("car"), box_tools.CLASSES.index("pedestrian")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paste")
    root = write(folder / "set")
    infos_build.build(root, VERSION, folder / "infos", progress=False)
    return folder


@pytest.fixture(scope="module")
def database(built):
    paste.build(built / "set", built / "infos", built / "one", split="mini_train", min_points=5, progress=False)
    return paste.PasteDatabase(built / "one")


def test_database_holds_the_objects_of_the_split(built, database):
    index = pd.read_parquet(built / "one" / "index.parquet")
    assert set(index["class"]) == {"car", "pedestrian"}, "unseen barriers are left out"
    assert set(index["annotation"].str.split("-").str[2]) == {"0061"}, "the split's own scenes only"
    assert len(database) == len(index) == 6
    for row in range(len(database)):
        points = database.points(row)
        assert len(points) == database.counts[row]
        assert box_tools.points_inside(points, database.boxes[row], 1e-4).all()
    assert database.counts[0] == 20, "the first sample has no sweeps"
    assert database.counts[3] == 5 * 7, "the pedestrian stands: four sweeps see it too"


def test_same_bytes_whatever_the_workers(built, database):
    paste.build(
        built / "set", built / "infos", built / "two", split="mini_train", min_points=5, workers=2, progress=False
    )
    for name in ("points.npy", "index.parquet"):
        assert (built / "one" / name).read_bytes() == (built / "two" / name).read_bytes()


def test_min_points(built):
    count = paste.build(
        built / "set", built / "infos", built / "few", split="mini_train", min_points=8, sweeps=0, progress=False
    )
    assert count == 3, "without sweeps only the cars have eight points"


def test_pasting_fills_up_and_clears_the_place(database):
    target = database.boxes[database.labels == WALKER][0]
    clutter = np.column_stack([np.tile(target[:3], (50, 1)), np.full((50, 1), 3.0), np.zeros(50)]).astype(np.float32)
    far = np.array([[-40, -40, 0, 1, 0]], np.float32)
    scene = np.concatenate([clutter, far])
    none = np.zeros((0, 9)), np.zeros(0, dtype=np.int64)
    points, boxes, labels = database.paste(scene, *none, np.random.default_rng(0), {"pedestrian": 1, "barrier": 4})
    assert labels.tolist() == [WALKER]
    row = int(np.flatnonzero((database.boxes == boxes[0]).all(axis=1))[0])
    kept = scene[~box_tools.points_inside(scene, boxes[0])]
    np.testing.assert_array_equal(points, np.concatenate([kept, database.points(row)]))
    assert points.dtype == np.float32


def test_pasting_counts_what_is_there_and_avoids_overlaps(database):
    scene = np.zeros((1, 5), np.float32)
    present = np.array([[30.0, 30, 0, 1, 1, 2, 0, 0, 0]])
    rng = np.random.default_rng(1)
    _, _, labels = database.paste(scene, present, np.array([WALKER]), rng, {"pedestrian": 1})
    assert labels.tolist() == [WALKER], "one was wanted, one is there"
    blocked = np.array([[0.0, 0, 0, 200, 200, 2, 0.3, 0, 0]])
    _, boxes, _ = database.paste(scene, blocked, np.array([CAR]), rng, {"car": 9, "pedestrian": 9})
    assert len(boxes) == 1, "the whole plan is taken"
    for seed in range(20):
        _, boxes, labels = database.paste(
            scene, present, np.array([CAR]), np.random.default_rng(seed), {"car": 9, "pedestrian": 9}
        )
        clash = paste.overlaps(boxes, boxes)
        np.fill_diagonal(clash, False)
        assert not clash.any()
        assert 1 < len(boxes) <= 7


def test_pasting_is_decided_by_its_generator(database):
    scene, none = np.zeros((1, 5), np.float32), (np.zeros((0, 9)), np.zeros(0, dtype=np.int64))
    counts = {"car": 2, "pedestrian": 2}
    draws = [database.paste(scene, *none, np.random.default_rng(s), counts)[1] for s in (5, 5, 6, 7, 8, 9)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert any(len(d) != len(draws[0]) or (d != draws[0]).any() for d in draws[2:])


rectangles = st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.2, 6), st.floats(0.2, 6), st.floats(-7, 7)).map(
    lambda r: np.array([r[0], r[1], 0, r[2], r[3], 1, r[4], 0, 0])
)


@settings(max_examples=150, deadline=None)
@given(first=rectangles, second=rectangles)
def test_overlaps_equal_shapely(first, second):
    def polygon(box):
        plain = rectangle(-box[3] / 2, -box[4] / 2, box[3] / 2, box[4] / 2)
        return affinity.translate(affinity.rotate(plain, box[6], (0, 0), use_radians=True), box[0], box[1])

    area = polygon(first).intersection(polygon(second)).area
    found = bool(paste.overlaps(first[None], second[None])[0, 0])
    assert found == bool(paste.overlaps(second[None], first[None])[0, 0])
    if area > 1e-6:
        assert found
    if polygon(first).distance(polygon(second)) > 1e-6:
        assert not found


def test_touching_is_not_overlapping():
    boxes = np.array([[0.0, 0, 0, 2, 2, 1, 0, 0, 0], [2, 0, 0, 2, 2, 1, 0, 0, 0], [1.9, 0, 0, 2, 2, 1, 0, 0, 0]])
    np.testing.assert_array_equal(paste.overlaps(boxes[:1], boxes)[0], [True, False, True])


def test_damaged_databases_are_refused(built, database, tmp_path):
    for name in ("points.npy", "index.parquet"):
        (tmp_path / name).write_bytes((built / "one" / name).read_bytes())
    whole = (tmp_path / "points.npy").read_bytes()
    (tmp_path / "points.npy").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="is missing or damaged .*: run vexkd paste again"):
        paste.PasteDatabase(tmp_path)
    np.save(tmp_path / "points.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match=r"points\.npy does not belong to the index\.parquet beside it"):
        paste.PasteDatabase(tmp_path)
    with pytest.raises(InputError, match="run vexkd paste again"):
        paste.PasteDatabase(tmp_path / "nothing")


def test_a_cut_sweep_stops_the_build_without_a_trace(built, tmp_path):
    root = write(tmp_path / "set")
    path = sorted(root.glob("sweeps/LIDAR_TOP/*"))[0]
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=rf"{path.name} has 228400 bytes instead of 230400"):
        paste.build(root, built / "infos", tmp_path / "out", split="mini_train", workers=2, progress=False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ({"split": "mini_val"}, r"holds objects of other scenes \(split mini_val\) than the training split mini_train"),
        ({"min_points": 9}, "min_points 9, but the run asks for 5"),
        ({"sweeps": 0}, "sweeps 0, but the run asks for 1"),
    ],
)
def test_a_database_made_otherwise_than_asked_is_refused(town, tmp_path, made, problem):
    asked = {"split": "mini_train", "min_points": 5, "sweeps": 1}
    paste.build(town / "data", town / "infos", tmp_path, **{**asked, **made}, progress=False)
    split = info_tools.load(town / "infos").subset("mini_train")
    require = {"split": split, "name": "mini_train", "min_points": 5, "sweeps": 1}
    with pytest.raises(InputError, match=problem):
        paste.PasteDatabase(tmp_path).require(**require)
    database = paste.PasteDatabase(town / "paste")
    assert database.require(**require) is database


def test_a_database_of_an_earlier_version_is_judged_by_its_samples(town, tmp_path):
    """It records neither split nor sweeps; objects of other scenes give it away."""
    for split in ("mini_train", "mini_val"):
        place = tmp_path / split
        paste.build(town / "data", town / "infos", place, split=split, min_points=5, sweeps=1, progress=False)
        table = pq.read_table(place / "index.parquet")
        metadata = dict(table.schema.metadata)
        recipe = json.loads(metadata[b"vexkd.points"])
        metadata[b"vexkd.points"] = json.dumps({key: recipe[key] for key in ("points", "sha256")}).encode()
        pq.write_table(table.replace_schema_metadata(metadata), place / "index.parquet", write_page_checksum=True)
    split = info_tools.load(town / "infos").subset("mini_train")
    require = {"split": split, "name": "mini_train", "min_points": 5, "sweeps": 1}
    assert len(paste.PasteDatabase(tmp_path / "mini_train").require(**require)) > 0
    with pytest.raises(InputError, match="holds objects of other scenes than the training split mini_train"):
        paste.PasteDatabase(tmp_path / "mini_val").require(**require)
