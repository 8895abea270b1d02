"""Map rasters: held to the devkit's masks, to hand-made maps, and to drawing under the augmentation itself."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vexkd.data import expansions, map_drawing, maps
from vexkd.data import infos as info_tools
from vexkd.data.augment import BevAugmentation
from vexkd.errors import InputError
from vexkd.geometry import BevGrid, needed_reach

GRID = BevGrid((-50.0, -50.0, -5.0, 50.0, 50.0, 3.0), 0.5)
AUGMENT = BevAugmentation(rotation=np.pi / 4, scale=(0.9, 1.1), translation=0.5, flip_x=0.5, flip_y=0.5)
REACH = needed_reach(GRID.bounds, rotation=np.pi / 4, scale=(0.9, 1.1), translation=0.5)
PLACE = "singapore-onenorth"
INDEX = {name: number for number, name in enumerate(maps.CLASSES)}
NORTH = np.eye(4)  # a LiDAR at (100, 200) of the map whose y axis looks along the map's y
NORTH[:2, 3] = 100.0, 200.0


@pytest.fixture(scope="module")
def infos(town):
    return info_tools.load(town / "infos")


@pytest.fixture(scope="module")
def folder(town, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("maps")
    map_drawing.build(town / "data", town / "infos", out, reach=REACH, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def rasters(folder) -> maps.Maps:
    return maps.Maps(folder)


def write_map(path: Path, *, version: str | None = "1.3", **layers: list) -> Path:
    """A map expansion: polygons as lists of rings, lines as lists of points, by layer."""
    content: dict = {"canvas_edge": [1585.6, 2025.0], "polygon": [], "line": [], "node": []}
    content |= {"version": version} if version else {}
    names = ("drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line")
    names += ("carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector")
    content |= {name: [] for name in names} | {"arcline_path_3": {}, "connectivity": {}}

    def add(table: str, **record: object) -> str:
        token = f"{table}-{len(content[table])}"
        content[table].append({"token": token} | record)
        return token

    for layer, shapes in layers.items():
        for shape in shapes:
            if layer in expansions.LINES:
                nodes = [add("node", x=x, y=y) for x, y in shape]
                add(layer, line_token=add("line", node_tokens=nodes))
                continue
            outline, *holes = [[add("node", x=x, y=y) for x, y in ring] for ring in shape]
            rings = {"exterior_node_tokens": outline, "holes": [{"node_tokens": hole} for hole in holes]}
            token = add("polygon", **rings)
            add(layer, **({"polygon_tokens": [token]} if layer == "drivable_area" else {"polygon_token": token}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def devkit_map(root: Path, location: str):
    import matplotlib

    with matplotlib.rc_context():  # importing it restyles every later figure
        from nuscenes.map_expansion.map_api import NuScenesMap
    return NuScenesMap(str(root), location)


def devkit_mask(known, global_from_lidar: np.ndarray, layers: tuple[str, ...]) -> np.ndarray:
    """(layers, Y, X) as BEVFusion asks for it: the patch turned by the yaw of the LiDAR's x axis."""
    x, y = global_from_lidar[:2, 3]
    axis = global_from_lidar[:3, :3] @ [1.0, 0.0, 0.0]
    return known.get_map_mask((x, y, 100.0, 100.0), np.degrees(np.arctan2(axis[1], axis[0])), list(layers), (200, 200))


def edge_cells(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Cells with both values within `width` cells around, (..., Y, X)."""
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(width, width)] * 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1,) * 2, axis=(-2, -1))
    return windows.max(axis=(-2, -1)) != windows.min(axis=(-2, -1))


def test_labels_are_the_devkits(town, infos, rasters):
    layers = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", *expansions.LINES)
    known = {name: devkit_map(town / "data", name) for name in set(infos.samples["location"].to_pylist())}
    filled = np.zeros(6, dtype=int)
    for keyframe in infos:
        mask = devkit_mask(known[keyframe.location], keyframe.global_from_lidar, layers)
        expected = np.concatenate([mask[:5], mask[5:].max(axis=0, keepdims=True)])
        found = rasters.labels(keyframe.token, np.eye(4), GRID)
        assert found.shape == (6, 200, 200)
        assert found.dtype == np.uint8
        differs = found != expected
        assert differs.mean() < 0.005
        assert differs.reshape(6, -1).mean(axis=1).max() < 0.01
        assert not (differs & ~(edge_cells(expected) | edge_cells(found))).any(), "only along edges"
        filled += np.count_nonzero(found, axis=(1, 2))
    assert (filled > 0).all(), "each class is somewhere in the town"


def test_away_from_the_patch_border_the_labels_are_the_devkits_to_the_cell(town, infos, rasters):
    """The devkit rounds the points where it cuts at the patch, which bends the edges that lead there."""
    keyframe = infos[0]
    layers = ("ped_crossing", "stop_line", "carpark_area")
    mask = devkit_mask(devkit_map(town / "data", keyframe.location), keyframe.global_from_lidar, layers)
    found = rasters.labels(keyframe.token, np.eye(4), GRID)[[INDEX[name] for name in layers]]
    inner = (slice(None), slice(60, 140), slice(60, 140))
    assert mask[inner].any()
    assert (found[inner] == mask[inner]).mean() > 0.9995


def test_a_line_that_crosses_the_patch_twice(tmp_path):
    """The devkit stops on it; both legs are drawn here."""
    fork = [(110.0, 190.0), (110.0, 300.0), (120.0, 300.0), (120.0, 190.0)]  # beyond the patch in between
    path = write_map(tmp_path / "maps" / "expansion" / f"{PLACE}.json", road_divider=[fork])
    with pytest.raises(TypeError, match="MultiLineString"):
        devkit_mask(devkit_map(tmp_path, PLACE), NORTH, ("road_divider",))
    for edges in ("published", "centre"):
        drawn = map_drawing.rasterise(expansions.read_expansion(path, edges=edges), NORTH, reach=50.0, cell=0.5)[
            INDEX["divider"]
        ]
        columns = np.flatnonzero(drawn.any(axis=0))
        assert {120, 140} <= set(columns), "x = 10 and 20 m from the LiDAR"
        assert np.abs(columns[:, None] - [120, 140]).min(axis=1).max() <= 2, "and nothing else"
        assert drawn[82:, 120].all()
        assert not drawn[:76].any()


@pytest.mark.parametrize("layer", expansions.LINES)
def test_either_kind_of_divider_counts(tmp_path, layer):
    path = write_map(tmp_path / "a.json", **{layer: [[(90.0, 200.0), (110.0, 200.0)]]})
    drawn = map_drawing.rasterise(expansions.read_expansion(path), NORTH, reach=50.0, cell=0.5)
    assert drawn[INDEX["divider"], 100, 85:115].all()
    assert drawn.sum(axis=(1, 2)).astype(bool).tolist() == [False] * 5 + [True]


def test_ahead_lands_ahead_and_right_lands_right(tmp_path):
    """A LiDAR whose y axis looks west: the crossing to its west is ahead, the walkway to its north on its right."""
    path = write_map(
        tmp_path / "a.json", ped_crossing=[[rectangle(78, 197, 82, 203)]], walkway=[[rectangle(98, 208, 102, 212)]]
    )
    west = NORTH.copy()
    west[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]  # x of the LiDAR (right) is the map's +y, y (ahead) the map's -x
    drawn = map_drawing.rasterise(expansions.read_expansion(path), west, reach=50.0, cell=0.5)
    rows, columns = np.nonzero(drawn[INDEX["ped_crossing"]])
    assert np.abs([rows.mean() - 140, columns.mean() - 100]).max() <= 0.5, "20 m ahead: rows grow ahead"
    rows, columns = np.nonzero(drawn[INDEX["walkway"]])
    assert np.abs([rows.mean() - 100, columns.mean() - 120]).max() <= 0.5, (
        "10 m to the right: columns grow to the right"
    )


def test_cells_by_hand(tmp_path):
    """A square of 2 m with a hole of 1 m: outlines count in the published way, centres in the exact one."""
    shape = [rectangle(100.0, 200.0, 104.0, 204.0), rectangle(101.0, 201.0, 103.0, 203.0)]
    path = write_map(tmp_path / "a.json", drivable_area=[shape])
    exact = map_drawing.rasterise(expansions.read_expansion(path, edges="centre"), NORTH, reach=5.0, cell=0.5)[0]
    assert exact.sum() == 8 * 8 - 4 * 4
    assert exact[10:18, 10:18].sum() == exact.sum()
    assert not exact[12:16, 12:16].any()
    published = map_drawing.rasterise(expansions.read_expansion(path), NORTH, reach=5.0, cell=0.5)[0]
    assert published.sum() == 9 * 9 - 3 * 3, "half a cell more on either side, in the hole too"


def test_a_hole_takes_nothing_from_another_polygon(tmp_path):
    island, ring = [rectangle(101, 201, 103, 203)], [rectangle(96, 196, 108, 208), rectangle(98, 198, 106, 206)]
    path = write_map(tmp_path / "a.json", drivable_area=[island, ring])
    for edges in ("published", "centre"):
        drawn = map_drawing.rasterise(expansions.read_expansion(path, edges=edges), NORTH, reach=10.0, cell=0.5)[0]
        assert drawn[24, 24] == 1, "the island in the hole stays"
        assert drawn[18, 24] == 0


def test_exact_area(tmp_path):
    """By centres, a turned polygon keeps its area; the published way makes it larger."""
    corners = np.array([(-8.02, -3.01), (9.03, -4.04), (2.07, 7.06)])
    path = write_map(tmp_path / "a.json", walkway=[[(corners + (100, 200)).tolist()]])
    area = {}
    for edges in ("published", "centre"):
        drawn = map_drawing.rasterise(expansions.read_expansion(path, edges=edges), NORTH, reach=20.0, cell=0.1)
        area[edges] = drawn[INDEX["walkway"]].sum() * 0.1**2
    first, second = corners[1] - corners[0], corners[2] - corners[0]
    true = abs(first[0] * second[1] - first[1] * second[0]) / 2
    assert abs(area["centre"] - true) < 0.005 * true
    assert true < area["published"] < 1.05 * true


def test_labels_follow_the_augmentation(town, infos, rasters):
    """Reading the raster under an augmentation equals drawing the map under it, but along edges."""
    rng = np.random.default_rng(4)
    for keyframe in [infos[i] for i in (0, 2, 4)]:
        path = town / "data" / "maps" / "expansion" / f"{keyframe.location}.json"
        augment = AUGMENT.draw(rng)
        read = rasters.labels(keyframe.token, augment, GRID)
        drawn = map_drawing.rasterise(
            expansions.read_expansion(path), keyframe.global_from_lidar, reach=50.0, cell=0.5, lidar_augment=augment
        )
        differs = read != drawn
        assert differs[:5].mean() < 0.025
        assert not (differs & ~(edge_cells(read) | edge_cells(drawn))).any()
        assert read.any(axis=(1, 2)).sum() >= 4


@pytest.mark.parametrize("turns", range(4))
def test_flips_and_quarter_turns_are_exact(rasters, infos, turns):
    token = infos[1].token
    plain = rasters.labels(token, np.eye(4), GRID)
    augment = np.eye(4)
    augment[:2, :2] = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), turns)
    # counter-clockwise with rows growing along y is clockwise on a printed array
    assert (rasters.labels(token, augment, GRID) == np.rot90(plain, -turns, axes=(1, 2))).all()
    assert (
        rasters.labels(token, np.diag([-1.0, 1, 1, 1]) @ augment, GRID) == np.rot90(plain, -turns, (1, 2))[..., ::-1]
    ).all()


def test_labels_in_another_grid(rasters, infos):
    """A shift by whole cells shifts the labels; a coarser grid takes every other cell."""
    token = infos[0].token
    plain = rasters.labels(token, np.eye(4), GRID)
    shift = np.eye(4)
    shift[:3, 3] = 2.5, -1.0, 0.4
    moved = rasters.labels(token, shift, GRID)
    assert (moved[:, : 200 - 2, 5:] == plain[:, 2:, : 200 - 5]).all()
    coarse = BevGrid((-49.5, -49.5, -5.0, 49.5, 49.5, 3.0), 1.5)  # centres at -48.75, ...: centres of cells of GRID too
    assert (rasters.labels(token, np.eye(4), coarse) == plain[:, 2:198:3, 2:198:3]).all()


@given(
    angle=st.floats(-np.pi / 4, np.pi / 4),
    scale=st.floats(0.9, 1.1),
    shift=st.tuples(*[st.floats(-3.0, 3.0)] * 2),
    flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 2),
    half=st.tuples(st.floats(1.0, 60.0), st.floats(1.0, 60.0)),
)
@settings(max_examples=100, deadline=None)
def test_needed_reach_suffices(angle, scale, shift, flips, half):
    c, s = np.cos(angle), np.sin(angle)
    lidar_from_augmented = np.linalg.inv(np.diag(flips) @ (scale * np.array([[c, -s], [s, c]])))
    shift = np.diag(flips) @ shift
    corners = np.array([[x * half[0], y * half[1]] for x in (-1, 1) for y in (-1, 1)])
    bounds = (-half[0], -half[1], -5.0, half[0], half[1], 3.0)
    reach = needed_reach(bounds, rotation=np.pi / 4, scale=(0.9, 1.1), translation=0.5, sigmas=6.0)
    assert np.abs((corners - shift) @ lidar_from_augmented.T).max() <= reach + 1e-9


def test_needed_reach_by_hand():
    assert needed_reach(GRID.bounds) == pytest.approx(50.0)
    assert needed_reach(GRID.bounds, rotation=np.pi / 4) == pytest.approx(50 * np.sqrt(2))
    assert needed_reach(GRID.bounds, rotation=np.pi) == pytest.approx(50 * np.sqrt(2))
    assert needed_reach(GRID.bounds, scale=(0.5, 2.0), translation=1.0, sigmas=5.0) == pytest.approx(110.0)
    wide = (-40.0, -30.0, -5.0, 40.0, 30.0, 3.0)
    assert needed_reach(wide, rotation=np.pi / 6) == pytest.approx(40 * np.cos(np.pi / 6) + 30 * np.sin(np.pi / 6))
    assert needed_reach(wide, rotation=np.pi / 4) == pytest.approx(50.0), "the far corner passes the x axis"


# ---- files


def test_files(folder, infos, rasters):
    assert sorted(path.name for path in folder.iterdir()) == ["index.parquet", "rasters.npy"]
    index = pd.read_parquet(folder / "index.parquet")
    assert index["token"].tolist() == infos.tokens()
    assert sorted(index["row"]) == list(range(6))
    side = 2 * int(np.ceil(REACH / 0.5))
    assert (rasters.side, rasters.cell, rasters.reach, len(rasters)) == (side, 0.5, side / 4, 6)
    assert np.load(folder / "rasters.npy", mmap_mode="r").shape == (6, 6, side, -(-side // 8))
    assert np.array_equal(pickle.loads(pickle.dumps(rasters)).raster(infos[0].token), rasters.raster(infos[0].token))


def test_same_bytes_whatever_the_workers_and_interruptions(town, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(map_drawing, "_CHUNK", 2)
    with monkeypatch.context() as broken:
        make, made = map_drawing._make_part, []

        def stop(job):
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(job)
            return make(job)

        broken.setattr(map_drawing, "_make_part", stop)
        with pytest.raises(KeyboardInterrupt):
            map_drawing.build(town / "data", town / "infos", tmp_path, reach=REACH, workers=1, progress=False)
    parts = list((tmp_path / ".parts").rglob("*.npy"))
    assert len(parts) == 2
    assert not (tmp_path / "rasters.npy").exists()
    times = {path: path.stat().st_mtime_ns for path in parts}
    join = map_drawing._join
    monkeypatch.setattr(
        map_drawing,
        "_join",
        lambda *a: (times.update({p: p.stat().st_mtime_ns - t for p, t in times.items()}), join(*a)),
    )
    map_drawing.build(town / "data", town / "infos", tmp_path, reach=REACH, workers=2, progress=False)
    assert set(times.values()) == {0}, "finished parts are not made again"
    for name in ("rasters.npy", "index.parquet"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_parts_of_other_settings_are_not_used(town, tmp_path):
    (tmp_path / ".parts" / "old").mkdir(parents=True)
    (tmp_path / ".parts" / "old" / "00000.npy").write_bytes(b"")
    assert map_drawing.build(town / "data", town / "infos", tmp_path, reach=5.0, progress=False) == 6
    assert not (tmp_path / ".parts").exists()
    assert maps.Maps(tmp_path).side == 20


def test_a_grid_beyond_the_raster_is_refused(rasters, infos):
    augment = np.diag([0.5, 0.5, 0.5, 1.0])
    with pytest.raises(InputError, match=r"come from 99\.5 m .* reach 8\d(\.5)? m: run vexkd maps again with a wider"):
        rasters.labels(infos[0].token, augment, GRID)
    with pytest.raises(InputError, match="sample nobody has no raster"):
        rasters.labels("nobody", np.eye(4), GRID)
    tilted = np.eye(4)
    tilted[1, 2] = 0.1
    with pytest.raises(InputError, match="tilts"):
        rasters.labels(infos[0].token, tilted, GRID)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"onenorth\.json does not exist: download nuScenes' map expansion 1\.3 or later"),
        (lambda path: write_map(path, version="1.2"), r"is map expansion 1\.2, older than 1\.3: download"),
        (lambda path: write_map(path, version=None), r"is map expansion 1\.0, older than 1\.3: download"),
        (lambda path: path.write_text('{"version": "1.3", '), "is cut or damaged: download"),
        (
            lambda path: path.write_text('{"version": "1.3"}'),
            r"is damaged \(it lacks polygon, line, node, .*lane_divider\): download",
        ),
    ],
)
def test_a_bad_map_expansion_is_refused(town, tmp_path, spoil, message):
    shutil.copytree(town / "data" / "maps" / "expansion", tmp_path / "maps" / "expansion")
    spoil(tmp_path / "maps" / "expansion" / f"{PLACE}.json")
    with pytest.raises(InputError, match=message) as caught:
        map_drawing.build(tmp_path, town / "infos", tmp_path / "out", reach=10.0, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists(), "all maps are looked at before any is drawn"


def change(layer: str, number: int, **values: object):
    """Change a row of a layer; `...` takes a column out."""

    def spoil(content: dict) -> None:
        row = content[layer][number]
        for name, value in values.items():
            row.pop(name) if value is ... else row.update({name: value})

    return spoil


SPOILT = {
    "node without coordinates": (change("node", 2, x=...), "node node-2 has no coordinates x and y"),
    "node of words": (change("node", 2, y="200"), "node node-2 has no coordinates"),
    "node not a number": (change("node", 2, y=float("nan")), "node node-2 has no coordinates"),
    "node beyond all numbers": (change("node", 2, y=10**400), "node node-2 has no coordinates"),
    "polygon of no node": (change("polygon", 0, exterior_node_tokens=[None]), "polygon polygon-0 names the node None"),
    "node twice": (change("node", 2, token="node-1"), "node holds node-1 twice"),
    "node without token": (change("node", 2, token=...), "row 2 of node has no token"),
    "polygon of a lost node": (
        change("polygon", 0, exterior_node_tokens=["x"]),
        "polygon polygon-0 names the node 'x'",
    ),
    "polygon without outline": (change("polygon", 0, exterior_node_tokens=...), "polygon-0 lacks exterior_node_tokens"),
    "polygon without holes": (change("polygon", 0, holes=None), "polygon polygon-0 lacks holes"),
    "hole of nothing": (change("polygon", 0, holes=[None]), "polygon polygon-0 has a hole without node_tokens"),
    "hole of a lost node": (change("polygon", 0, holes=[{"node_tokens": ["x"]}]), "polygon-0 names the node 'x'"),
    "area of a lost polygon": (
        change("drivable_area", 0, polygon_tokens=["x"]),
        "names the polygon 'x', which is not there",
    ),
    "area without polygon": (change("drivable_area", 0, polygon_tokens=None), "lacks polygon_token"),
    "divider of a lost line": (change("lane_divider", 0, line_token="x"), "lane_divider-0 names the line 'x'"),
    "divider without line": (change("lane_divider", 0, line_token=...), "lane_divider-0 names the line None"),
    "line without nodes": (change("line", 0, node_tokens=...), "line line-0 lacks node_tokens"),
    "line of a number": (change("line", 0, node_tokens=[3]), "line line-0 names the node 3"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_row_of_a_map_is_named(tmp_path, name):
    """In one sentence, the same for maps and doctor."""
    spoil, words = SPOILT[name]
    path = write_map(
        tmp_path / "a.json", drivable_area=[[rectangle(0, 0, 9, 9)]], lane_divider=[[(0.0, 0.0), (9.0, 9.0)]]
    )
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    for edges in ("published", "centre"):
        with pytest.raises(InputError) as caught:
            expansions.read_expansion(path, edges=edges)
        assert words in str(caught.value)
    assert expansions.problem(path).startswith("the map expansion is damaged (")
    assert words in expansions.problem(path)
    assert expansions.problem(path)[len("the map expansion ") :] in str(caught.value)


def test_an_empty_polygon_draws_nothing(tmp_path):
    path = write_map(tmp_path / "a.json", drivable_area=[[rectangle(0, 0, 9, 9)], [[]]])
    assert len(expansions.read_expansion(path).shapes["drivable_area"]) == 1


def test_a_scene_off_its_map_is_refused(town, tmp_path, infos):
    """Empty labels would be learned without a word."""
    for source in (town / "data/maps/expansion").iterdir():
        path = tmp_path / "maps/expansion" / source.name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads(source.read_text())
        for node in content["node"]:
            node["x"] += 100_000.0
        path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"none of its 3 samples .the first is \w+. sees any class of the map of \w+"
    ) as caught:
        map_drawing.build(tmp_path, town / "infos", tmp_path / "out", reach=10.0, progress=False)
    assert str(caught.value).split(":")[0] in infos.samples["scene"].to_pylist()
    assert not (tmp_path / "out" / "rasters.npy").exists()


def test_version_10_is_newer_than_13(tmp_path):
    expansions.read_expansion(write_map(tmp_path / "a.json", version="1.10"))


def test_infos_without_location_are_refused(town, infos, tmp_path, monkeypatch):
    names = pa.array([PLACE] * 3 + [""] + [PLACE] * 2)
    column = infos.samples.schema.get_field_index("location")
    lost = replace(infos, samples=infos.samples.set_column(column, "location", names))
    monkeypatch.setattr(map_drawing.info_tools, "load", lambda _: lost)
    with pytest.raises(InputError, match=f"sample {infos[3].token} has no location in the infos"):
        map_drawing.build(town / "data", town / "infos", tmp_path, reach=10.0, progress=False)


def test_damaged_rasters_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="missing or damaged .* run vexkd maps again"):
        maps.Maps(tmp_path)
    shutil.copytree(folder, tmp_path / "cut")
    np.save(tmp_path / "cut" / "rasters.npy", np.zeros((5, 6, 8, 1), dtype=np.uint8))
    with pytest.raises(InputError, match="does not belong to the index.parquet"):
        maps.Maps(tmp_path / "cut")
