"""Infos: nuScenes' tables boiled down to four flat Parquet files that training and evaluation read.

`samples`, `sweeps`, `cameras` and `boxes` are tidy tables (readable by pandas); matrices are row-major lists of 16
numbers named target_from_source. Letters: S samples, M boxes, K sweeps of a sample, N cameras.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vexkd import boxes as box_tools
from vexkd import geometry, provenance
from vexkd.data import tables
from vexkd.errors import InputError

SCHEMA = 1
FILES = ("sweeps", "cameras", "boxes", "samples")  # samples last: it seals the others
_BOX = ("x", "y", "z", "l", "w", "h", "yaw", "vx", "vy")
_COMPRESSION: dict[str, Any] = {"compression": "zstd", "row_group_size": 1 << 16, "write_page_checksum": True}


class Counts(NamedTuple):
    """What a build wrote."""

    samples: int
    sweeps: int
    cameras: int
    boxes: int


@dataclass(frozen=True)
class Keyframe:
    """One sample as the infos know it. Paths are relative to the data root; boxes are in the LiDAR frame.

    sweep_paths (K), sweep_bytes (K,), sweep_lags (K,) seconds, lidar_from_sweep (K, 4, 4): nearest first.
    camera_paths (N), camera_sizes (N, 2) width and height, intrinsics (N, 3, 3), camera_from_lidar (N, 4, 4).
    boxes (M, 9), labels (M,), valid (M,) LiDAR or radar has seen it, lidar_points (M,), annotations (M) tokens.
    lidar_bytes, sweep_bytes: file sizes when the infos were made, 0 if the file was absent then.
    """

    index: int
    token: str
    scene: str
    location: str
    timestamp: int
    lidar_path: str
    lidar_bytes: int
    ego_from_lidar: np.ndarray
    global_from_ego: np.ndarray
    sweep_paths: list[str]
    sweep_bytes: np.ndarray
    sweep_lags: np.ndarray
    lidar_from_sweep: np.ndarray
    camera_paths: list[str]
    camera_sizes: np.ndarray
    intrinsics: np.ndarray
    camera_from_lidar: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    lidar_points: np.ndarray
    annotations: list[str]

    @property
    def global_from_lidar(self) -> np.ndarray:
        """(4, 4) float64."""
        return self.global_from_ego @ self.ego_from_lidar


@dataclass(frozen=True)
class Infos:
    """Loaded infos, or a split of them: `rows` (S,) are the samples it covers, `splits` maps a split to its scenes."""

    version: str
    splits: dict[str, list[str]]
    samples: pa.Table
    sweeps: pa.Table
    cameras: pa.Table
    boxes: pa.Table
    arrays: dict[str, np.ndarray]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Keyframe]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, position: int) -> Keyframe:
        """The keyframe at a position of this split."""
        return self._keyframe(int(self.rows[position]))

    def history(self, position: int, count: int) -> list[Keyframe]:
        """The `count` keyframes before the one at a position, nearest first, of the same scene.

        As in the published recipe (BEVDet4D) the keyframe itself stands for those before its scene.
        """
        row = int(self.rows[position])
        scenes = self.samples["scene"]
        earlier = [row - back if back <= row else row for back in range(1, count + 1)]
        return [self._keyframe(e if scenes[e] == scenes[row] else row) for e in earlier]

    def _keyframe(self, row: int) -> Keyframe:
        """The keyframe in a row of `samples`."""
        a = self.arrays
        sweep = _window(a["sweep_offset"], a["sweep_count"], row)
        box = _window(a["box_offset"], a["box_count"], row)
        camera = slice(row * len(tables.CAMERAS), (row + 1) * len(tables.CAMERAS))
        return Keyframe(
            index=row,
            **{
                name: self.samples[name][row].as_py()
                for name in ("token", "scene", "location", "timestamp", "lidar_path")
            },
            lidar_bytes=int(a["lidar_bytes"][row]),
            ego_from_lidar=a["ego_from_lidar"][row],
            global_from_ego=a["global_from_ego"][row],
            sweep_paths=_strings(self.sweeps["path"], sweep),
            sweep_bytes=a["sweep_bytes"][sweep],
            sweep_lags=a["sweep_lags"][sweep],
            lidar_from_sweep=a["lidar_from_sweep"][sweep],
            camera_paths=_strings(self.cameras["path"], camera),
            camera_sizes=a["camera_sizes"][camera],
            intrinsics=a["intrinsics"][camera],
            camera_from_lidar=a["camera_from_lidar"][camera],
            boxes=a["boxes"][box],
            labels=a["labels"][box],
            valid=a["valid"][box],
            lidar_points=a["lidar_points"][box],
            annotations=_strings(self.boxes["token"], box),
        )

    def tokens(self) -> list[str]:
        """Sample tokens of this split, in order."""
        return self.samples["token"].take(pa.array(self.rows)).to_pylist()

    def subset(self, split: str) -> Infos:
        """The samples of one split; raises InputError that names the known splits."""
        known = [name for name, scenes in self.splits.items() if scenes]
        if split not in known:
            raise InputError(
                f"split {split!r} has no samples in {self.version}: choose one of {', '.join(known) or 'none'}."
            )
        scenes = pa.array(self.splits[split], pa.string())
        inside = pa.compute.is_in(self.samples["scene"], value_set=scenes).to_numpy(zero_copy_only=False)
        return replace(self, rows=np.intersect1d(self.rows, np.flatnonzero(inside)))

    def holds_class(self) -> np.ndarray:
        """Mask (S, 10): does the sample hold a valid box of the class."""
        a = self.arrays
        found = np.zeros((len(a["box_count"]), len(box_tools.CLASSES)), dtype=bool)
        owner = np.repeat(np.arange(len(found)), a["box_count"])
        found[owner[a["valid"]], a["labels"][a["valid"]]] = True
        return found[self.rows]


def build(root: Path, version: str, out: Path, *, max_sweeps: int = 10, progress: bool = True) -> Counts:
    """Write `out/{samples,sweeps,cameras,boxes}.parquet` from the tables of `root/version`.

    max_sweeps: how many earlier LiDAR sweeps are listed for each sample. Splits keep nuScenes' names (mini_train, ...).
    Raises InputError that names the missing table, or the token whose rows do not fit together.
    """
    root, out = Path(root), Path(out)
    tables.folder(root, version)
    with tqdm(total=5, desc="infos", disable=None if progress else True) as bar:
        samples = _Samples.read(root, version)
        bar.update()
        lidar, cameras = _sensor_data(root, version, samples)
        bar.update()
        written = {"sweeps": _sweeps(root, lidar, max_sweeps), "cameras": _cameras(lidar, cameras)}
        bar.update()
        written["boxes"] = _boxes(root, version, samples, lidar)
        bar.update()
        written["samples"] = _samples(root, samples, lidar, written)
        digests = {}
        for name in FILES:
            metadata = {"vexkd.schema": str(SCHEMA), "vexkd.version": version, "vexkd.max_sweeps": str(max_sweeps)}
            if name == "samples":
                metadata |= {"vexkd.splits": json.dumps(samples.splits), "vexkd.digests": json.dumps(digests)}
            digests[name] = _write(written[name], out / f"{name}.parquet", metadata)
        bar.update()
    return Counts(**{name: table.num_rows for name, table in written.items()})


def load(directory: Path) -> Infos:
    """Read infos. Raises InputError if they are missing, damaged, of another schema, or mixed from two builds."""
    directory = Path(directory)
    cure = "run vexkd infos again"
    found, metadata = {}, {}
    for name in FILES:
        path = directory / f"{name}.parquet"
        if not path.is_file():
            raise InputError(f"infos file {path} does not exist: {cure}.")
        try:
            metadata = pq.read_schema(path).metadata or {}
            schema = metadata.get(b"vexkd.schema", b"unknown").decode()
            if schema != str(SCHEMA):
                raise InputError(f"infos file {path} has schema {schema} instead of {SCHEMA}: {cure}.")
            found[name] = pq.read_table(path, page_checksum_verification=True).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
            raise InputError(f"infos file {path} is damaged or may not be read ({reason}): {cure}.") from None
    for name, expected in json.loads(metadata[b"vexkd.digests"]).items():
        if provenance.file_digest(directory / f"{name}.parquet") != expected:
            raise InputError(
                f"infos file {directory / name}.parquet was not made together with samples.parquet: {cure}."
            )
    return Infos(
        version=metadata[b"vexkd.version"].decode(),
        splits=json.loads(metadata[b"vexkd.splits"]),
        **found,
        arrays=_arrays(**found),
        rows=np.arange(found["samples"].num_rows),
    )


def annotated(root: Path, version: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """LiDAR keyframe path -> boxes (M, 9) in its frame and the LiDAR points (M,) that the table counts in them."""
    samples = _Samples.read(root, version)
    lidar, _ = _sensor_data(root, version, samples)
    table = _boxes(root, version, samples, lidar)
    boxes = np.stack([table[name].to_numpy() for name in _BOX], axis=1)
    counts = table["num_lidar_pts"].to_numpy()
    edges = np.searchsorted(table["sample"].to_numpy(), np.arange(len(samples.tokens) + 1))
    paths = [lidar.paths[i] for i in lidar.key]
    return {path: (boxes[a:b], counts[a:b]) for path, a, b in zip(paths, edges, edges[1:], strict=False)}


# ---- reading tables


@dataclass
class _Samples:
    """Samples in the order of their scenes, then of time."""

    tokens: list[str]
    position: dict[str, int]
    scenes: list[str]
    locations: list[str]
    timestamps: np.ndarray
    splits: dict[str, list[str]]

    @classmethod
    def read(cls, root: Path, version: str) -> _Samples:
        logs = tables.index(root, version, "log")
        scenes = tables.index(root, version, "scene")
        order = {token: i for i, token in enumerate(scenes)}
        found = tables.index(root, version, "sample")
        for row in found.values():
            if row["scene_token"] not in scenes or scenes[row["scene_token"]]["log_token"] not in logs:
                raise InputError(
                    f"sample {row['token']} names a scene or log that {version} lacks: extract the metadata again."
                )
        ordered = sorted(found.values(), key=lambda row: (order[row["scene_token"]], row["timestamp"]))
        owners = [scenes[row["scene_token"]] for row in ordered]
        present = {scene["name"] for scene in scenes.values()}
        splits = {name: [s for s in members if s in present] for name, members in tables.splits(root, version).items()}
        return cls(
            tokens=[row["token"] for row in ordered],
            position={row["token"]: i for i, row in enumerate(ordered)},
            scenes=[scene["name"] for scene in owners],
            locations=[logs[scene["log_token"]]["location"] for scene in owners],
            timestamps=np.array([row["timestamp"] for row in ordered], dtype=np.int64),
            splits=splits,
        )


@dataclass
class _Frames:
    """Rows of sample_data of one sensor kind, with their poses. `key` (S or S*N,): the row of each keyframe."""

    paths: list[str]
    timestamps: np.ndarray
    previous: np.ndarray  # row of the previous frame, -1 for none
    ego_from_sensor: np.ndarray  # rows 4 4
    global_from_ego: np.ndarray  # rows 4 4
    sizes: np.ndarray  # rows 2
    intrinsics: np.ndarray  # rows 3 3
    key: np.ndarray


def _sensor_data(root: Path, version: str, samples: _Samples) -> tuple[_Frames, _Frames]:
    """All LiDAR frames, and the cameras' keyframes, of the known samples."""
    calibrations = tables.index(root, version, "calibrated_sensor")
    channel = {token: sensor["channel"] for token, sensor in tables.sensors(root, version).items()}
    lidar: list[dict[str, Any]] = []
    cameras: list[dict[str, Any]] = []
    for row in tables.rows(root, version, "sample_data"):
        name = channel.get(row["calibrated_sensor_token"])
        if name == tables.LIDAR:
            lidar.append(_slim(row, name))
        elif row["is_key_frame"] and name in tables.CAMERAS:
            cameras.append(_slim(row, name))
    poses = _ego_poses(root, version, {row["ego"] for row in lidar} | {row["ego"] for row in cameras})
    return (
        _frames(lidar, calibrations, poses, samples, (tables.LIDAR,)),
        _frames(cameras, calibrations, poses, samples, tables.CAMERAS),
    )


def _slim(row: dict[str, Any], channel: str) -> dict[str, Any]:
    """The columns of a sample_data row that are needed (key sharing keeps millions of them small)."""
    return {
        "token": row["token"],
        "sample": row["sample_token"] if row["is_key_frame"] else "",
        "channel": channel,
        "calibration": row["calibrated_sensor_token"],
        "ego": row["ego_pose_token"],
        "path": row["filename"],
        "timestamp": row["timestamp"],
        "prev": row["prev"],
        "size": (row.get("width") or 0, row.get("height") or 0),
    }


def _ego_poses(root: Path, version: str, wanted: set[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Token -> (rotation, translation) of the wanted ego poses."""
    return {
        row["token"]: (row["rotation"], row["translation"])
        for row in tables.rows(root, version, "ego_pose")
        if row["token"] in wanted
    }


def _frames(
    rows: list[dict[str, Any]],
    calibrations: dict[str, dict[str, Any]],
    poses: dict[str, tuple[list[float], list[float]]],
    samples: _Samples,
    channels: tuple[str, ...],
) -> _Frames:
    """Columns of the rows, and which row is the keyframe of each sample (and channel)."""
    missing = next((row for row in rows if row["ego"] not in poses), None)
    if missing:
        raise InputError(
            f"sample_data {missing['token']} names an ego pose that ego_pose.json lacks: extract the metadata again."
        )
    where = {row["token"]: i for i, row in enumerate(rows)}
    used = [calibrations[row["calibration"]] for row in rows]
    with np.errstate(invalid="ignore"):  # refused below
        ego_from_sensor = geometry.rigids([c["rotation"] for c in used], [c["translation"] for c in used])
        global_from_ego = geometry.rigids([poses[r["ego"]][0] for r in rows], [poses[r["ego"]][1] for r in rows])
    _refuse_nan("calibrated_sensor", [row["calibration"] for row in rows], ego_from_sensor)
    _refuse_nan("ego_pose", [row["ego"] for row in rows], global_from_ego)
    key = np.full((len(samples.tokens), len(channels)), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        owner = samples.position.get(row["sample"])
        if owner is not None:
            key[owner, channels.index(row["channel"])] = i
    if (key < 0).any():
        sample, channel = np.argwhere(key < 0)[0]
        raise InputError(
            f"sample {samples.tokens[sample]} has no keyframe of {channels[channel]}: extract the metadata again."
        )
    return _Frames(
        paths=[row["path"] for row in rows],
        timestamps=np.array([row["timestamp"] for row in rows], dtype=np.int64),
        previous=np.array([where.get(row["prev"], -1) for row in rows], dtype=np.int64),
        ego_from_sensor=ego_from_sensor,
        global_from_ego=global_from_ego,
        sizes=np.array([row["size"] for row in rows], dtype=np.int32).reshape(-1, 2),
        intrinsics=_intrinsics(used),
        key=key.reshape(-1),
    )


def _intrinsics(used: list[dict[str, Any]]) -> np.ndarray:
    """The camera matrices (rows, 3, 3) of calibrations, zero where the sensor has none."""
    matrices = np.zeros((len(used), 3, 3))
    for i, calibration in enumerate(used):
        if calibration["camera_intrinsic"]:
            try:
                matrices[i] = np.array(calibration["camera_intrinsic"], dtype=np.float64).reshape(3, 3)
            except (TypeError, ValueError):
                raise InputError(
                    f"calibrated_sensor {calibration['token']}: camera_intrinsic is not 3 x 3 numbers: "
                    "extract the metadata again."
                ) from None
    return matrices


def _refuse_nan(table: str, tokens: list[str], values: np.ndarray) -> None:
    """Raises InputError that names the first row (of `tokens`) whose numbers are not finite."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        raise InputError(
            f"{table} {tokens[int(finite.argmin())]} holds a number that is not finite or a rotation of length 0: "
            "extract the metadata again."
        )


# ---- making columns


def _sweeps(root: Path, lidar: _Frames, max_sweeps: int) -> pa.Table:
    """For each sample the earlier sweeps, nearest first; file sizes are those on disk now, 0 if absent."""
    global_from_lidar = lidar.global_from_ego @ lidar.ego_from_sensor
    lidar_from_global = geometry.inverse(global_from_lidar[lidar.key])  # S 4 4
    current = lidar.key
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # samples, orders, rows
    for order in range(max_sweeps):
        current = np.where(current >= 0, lidar.previous[current], -1)
        samples = np.flatnonzero(current >= 0)
        found.append((samples, np.full(len(samples), order), current[samples]))
    sample, order, row = (np.concatenate(c) for c in zip(*found, strict=True)) if found else (np.zeros(0, int),) * 3
    rank = np.lexsort((order, sample))
    sample, order, row = sample[rank], order[rank], row[rank]
    sizes = {i: _bytes(root / lidar.paths[i]) for i in np.unique(row)}
    return pa.table(
        {
            "sample": pa.array(sample, pa.int32()),
            "order": pa.array(order, pa.int8()),
            "path": pa.array([lidar.paths[i] for i in row], pa.string()),
            "bytes": pa.array([sizes[i] for i in row], pa.int64()),
            "lag": (lidar.timestamps[lidar.key[sample]] - lidar.timestamps[row]) * 1e-6,
            "lidar_from_sweep": _lists(lidar_from_global[sample] @ global_from_lidar[row]),
        }
    )


def _cameras(lidar: _Frames, cameras: _Frames) -> pa.Table:
    """Six rows a sample, ordered as `tables.CAMERAS`; the transform goes through the ego poses of both exposures."""
    count = len(tables.CAMERAS)
    samples = np.repeat(np.arange(len(lidar.key)), count)
    global_from_lidar = (lidar.global_from_ego @ lidar.ego_from_sensor)[lidar.key[samples]]
    global_from_camera = (cameras.global_from_ego @ cameras.ego_from_sensor)[cameras.key]
    return pa.table(
        {
            "sample": pa.array(samples, pa.int32()),
            "channel": pa.array(list(tables.CAMERAS) * len(lidar.key), pa.string()),
            "path": pa.array([cameras.paths[i] for i in cameras.key], pa.string()),
            "width": pa.array(cameras.sizes[cameras.key, 0]),
            "height": pa.array(cameras.sizes[cameras.key, 1]),
            "intrinsics": _lists(cameras.intrinsics[cameras.key]),
            "camera_from_lidar": _lists(geometry.inverse(global_from_camera) @ global_from_lidar),
        }
    )


def _boxes(root: Path, version: str, samples: _Samples, lidar: _Frames) -> pa.Table:
    """Annotations of the ten classes in the LiDAR frames, ordered by sample, then as in the table."""
    rows = _Annotations.read(root, version, samples)
    boxes_global = box_tools.from_nuscenes(rows.translation, rows.size, rows.rotation)
    boxes_global[:, 7:9] = rows.velocities(samples.timestamps)
    detected = np.flatnonzero(rows.label >= 0)
    kept = detected[np.argsort(rows.sample[detected], kind="stable")]
    owner = rows.sample[kept]
    lidar_from_global = geometry.inverse((lidar.global_from_ego @ lidar.ego_from_sensor)[lidar.key])
    boxes_lidar = boxes_global[kept]
    edges = np.searchsorted(owner, np.arange(len(samples.tokens) + 1))
    for sample in np.unique(owner):
        window = slice(edges[sample], edges[sample + 1])
        boxes_lidar[window] = box_tools.move(boxes_lidar[window], lidar_from_global[sample])
    names = np.array(box_tools.CLASSES)
    columns: dict[str, Any] = {
        "sample": pa.array(owner, pa.int32()),
        "token": pa.array([rows.tokens[i] for i in kept], pa.string()),
        "instance": pa.array([rows.instances[i] for i in kept], pa.string()),
        "class": pa.array(names[rows.label[kept]].tolist(), pa.string()),
        "label": pa.array(rows.label[kept], pa.int8()),
    }
    columns |= {name: boxes_lidar[:, i] for i, name in enumerate(_BOX)}
    columns |= {
        "num_lidar_pts": pa.array(rows.lidar_points[kept], pa.int32()),
        "num_radar_pts": pa.array(rows.radar_points[kept], pa.int32()),
        "valid": rows.lidar_points[kept] + rows.radar_points[kept] > 0,
        "visibility": pa.array([rows.visibility[i] for i in kept], pa.string()),
        "attribute": pa.array([rows.attributes[i] for i in kept], pa.string()),
    }
    return pa.table(columns)


@dataclass
class _Annotations:
    """Columns of sample_annotation; label -1 where the category is not among the ten classes."""

    tokens: list[str]
    instances: list[str]
    attributes: list[str]
    visibility: list[str]
    sample: np.ndarray
    label: np.ndarray
    translation: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    lidar_points: np.ndarray
    radar_points: np.ndarray
    previous: np.ndarray
    next: np.ndarray

    @classmethod
    def read(cls, root: Path, version: str, samples: _Samples) -> _Annotations:
        category = {token: row["name"] for token, row in tables.index(root, version, "category").items()}
        instances = tables.index(root, version, "instance")
        lost = next((token for token, row in instances.items() if row["category_token"] not in category), None)
        if lost:
            raise InputError(f"instance {lost} names a category that {version} lacks: extract the metadata again.")
        instance = {token: category[row["category_token"]] for token, row in instances.items()}
        label_of = {t: _label(name) for t, name in instance.items()}
        attribute = {token: row["name"] for token, row in tables.index(root, version, "attribute").items()}
        same = {token: token for token in instance}  # one string object an instance, not one an annotation
        tokens: list[str] = []
        columns: dict[str, list[Any]] = {name: [] for name in _ANNOTATION_COLUMNS}
        for row in tables.rows(root, version, "sample_annotation"):
            if row["sample_token"] not in samples.position or row["instance_token"] not in instance:
                raise InputError(
                    f"annotation {row['token']} names a sample or instance that {version} lacks: "
                    "extract the metadata again."
                )
            named = row["attribute_tokens"][:1]
            if any(str(token) not in attribute for token in named):
                raise InputError(
                    f"annotation {row['token']} names an attribute that {version} lacks: extract the metadata again."
                )
            tokens.append(row["token"])
            values = (
                same[row["instance_token"]],
                attribute[named[0]] if named else "",
                row.get("visibility_token", ""),
                samples.position[row["sample_token"]],
                label_of[row["instance_token"]],
                np.array(row["translation"] + row["size"] + row["rotation"]),
                (row["num_lidar_pts"], row["num_radar_pts"]),
                (row["prev"], row["next"]),
            )
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        return cls._assemble(tokens, columns)

    @classmethod
    def _assemble(cls, tokens: list[str], columns: dict[str, list[Any]]) -> _Annotations:
        where = {token: i for i, token in enumerate(tokens)}
        numbers = np.array(columns["numbers"], dtype=np.float64).reshape(-1, 10)
        turned = np.where((numbers[:, 6:] == 0).all(axis=1), np.nan, 0.0)
        _refuse_nan("sample_annotation", tokens, numbers + turned[:, None])
        points = np.array(columns["points"], dtype=np.int32).reshape(-1, 2)
        links = np.array([[where.get(p, -1), where.get(n, -1)] for p, n in columns["links"]], dtype=np.int64).reshape(
            -1, 2
        )
        return cls(
            tokens=tokens,
            **{name: columns[name] for name in ("instances", "attributes", "visibility")},
            sample=np.array(columns["sample"], dtype=np.int64),
            label=np.array(columns["label"], dtype=np.int64),
            translation=numbers[:, 0:3],
            size=numbers[:, 3:6],
            rotation=numbers[:, 6:10],
            lidar_points=points[:, 0],
            radar_points=points[:, 1],
            previous=links[:, 0],
            next=links[:, 1],
        )

    def velocities(self, timestamps: np.ndarray, max_time_diff: float = 1.5) -> np.ndarray:
        """Global velocities (rows, 2) in m/s by centred or one-sided difference, NaN where unknown (devkit's rule)."""
        here = np.arange(len(self.tokens))
        first = np.where(self.previous >= 0, self.previous, here)
        last = np.where(self.next >= 0, self.next, here)
        elapsed = 1e-6 * timestamps[self.sample[last]] - 1e-6 * timestamps[self.sample[first]]
        limit = np.where((self.previous >= 0) & (self.next >= 0), 2 * max_time_diff, max_time_diff)
        known = (first != last) & (elapsed <= limit)
        velocity = np.full((len(here), 2), np.nan)
        moved = self.translation[last] - self.translation[first]
        velocity[known] = moved[known, :2] / elapsed[known, None]
        return velocity


_ANNOTATION_COLUMNS = ("instances", "attributes", "visibility", "sample", "label", "numbers", "points", "links")


def _label(category: str) -> int:
    """Index of the detection class of a nuScenes category, -1 for none."""
    name = box_tools.CLASS_OF_CATEGORY.get(category)
    return box_tools.CLASSES.index(name) if name else -1


def _samples(root: Path, samples: _Samples, lidar: _Frames, written: dict[str, pa.Table]) -> pa.Table:
    """One row a sample, with where its sweeps and boxes stand in the other files."""
    split_of = {scene: name for name, scenes in reversed(samples.splits.items()) for scene in scenes}
    columns: dict[str, Any] = {
        "index": pa.array(np.arange(len(samples.tokens)), pa.int32()),
        "token": pa.array(samples.tokens, pa.string()),
        "scene": pa.array(samples.scenes, pa.string()),
        "split": pa.array([split_of.get(scene, "") for scene in samples.scenes], pa.string()),
        "location": pa.array(samples.locations, pa.string()),
        "timestamp": pa.array(samples.timestamps),
        "lidar_path": pa.array([lidar.paths[i] for i in lidar.key], pa.string()),
        "lidar_bytes": pa.array([_bytes(root / lidar.paths[i]) for i in lidar.key], pa.int64()),
        "ego_from_lidar": _lists(lidar.ego_from_sensor[lidar.key]),
        "global_from_ego": _lists(lidar.global_from_ego[lidar.key]),
    }
    for kind, name in (("sweep", "sweeps"), ("box", "boxes")):
        counts = np.bincount(written[name]["sample"].to_numpy(), minlength=len(samples.tokens))
        columns[f"{kind}_offset"] = np.cumsum(counts) - counts
        columns[f"{kind}_count"] = counts
    return pa.table(columns)


# ---- files and arrays


def _arrays(samples: pa.Table, sweeps: pa.Table, cameras: pa.Table, boxes: pa.Table) -> dict[str, np.ndarray]:
    """The numeric columns as NumPy arrays, matrices in their shapes."""
    plain = ("sweep_offset", "sweep_count", "box_offset", "box_count", "lidar_bytes")
    return {
        **{name: samples[name].to_numpy() for name in plain},
        "ego_from_lidar": _matrices(samples["ego_from_lidar"], 4),
        "global_from_ego": _matrices(samples["global_from_ego"], 4),
        "sweep_bytes": sweeps["bytes"].to_numpy(),
        "sweep_lags": sweeps["lag"].to_numpy(),
        "lidar_from_sweep": _matrices(sweeps["lidar_from_sweep"], 4),
        "camera_sizes": np.stack([cameras["width"].to_numpy(), cameras["height"].to_numpy()], axis=1),
        "intrinsics": _matrices(cameras["intrinsics"], 3),
        "camera_from_lidar": _matrices(cameras["camera_from_lidar"], 4),
        "boxes": np.stack([boxes[name].to_numpy() for name in _BOX], axis=1),
        "labels": boxes["label"].to_numpy().astype(np.int64),
        "valid": boxes["valid"].to_numpy(),
        "lidar_points": boxes["num_lidar_pts"].to_numpy(),
    }


def _lists(matrices: np.ndarray) -> pa.FixedSizeListArray:
    """(rows, n, n) -> one fixed-size list a row."""
    width = matrices.shape[1] * matrices.shape[2]
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrices).reshape(-1)), width)


def _matrices(column: pa.ChunkedArray, side: int) -> np.ndarray:
    """The inverse of `_lists`."""
    return (
        pa.concat_arrays([c.flatten() for c in column.chunks] or [pa.array([], pa.float64())])
        .to_numpy()
        .reshape(-1, side, side)
    )


def _window(offsets: np.ndarray, counts: np.ndarray, row: int) -> slice:
    """Where the rows of one sample stand."""
    return slice(int(offsets[row]), int(offsets[row] + counts[row]))


def _strings(column: pa.ChunkedArray, window: slice) -> list[str]:
    """Part of a column of text."""
    return column.slice(window.start, window.stop - window.start).to_pylist()


def _bytes(path: Path) -> int:
    """Size of a file, 0 if it is absent."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(table: pa.Table, path: Path, metadata: dict[str, str]) -> str:
    """Write one Parquet file atomically with file metadata; returns its SHA-256."""
    with provenance.atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, **_COMPRESSION)
        return provenance.file_digest(temporary)
