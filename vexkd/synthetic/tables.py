"""Writes a town, its traffic and what the sensors see of it as a nuScenes data set: 13 tables, maps, sensor files.

Each scene is made on its own from (seed, scene), so that the bytes do not depend on the number of workers. Frames: the
town frame of `town.py` lies in nuScenes' global frame by `Placement`; the ego frame has x forward, y left, z up.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from shapely.geometry import LineString, Polygon
from tqdm import tqdm

from vexkd import provenance
from vexkd.errors import InputError
from vexkd.pool import in_order
from vexkd.synthetic.camera import Light, Picture, draw_light, render
from vexkd.synthetic.lidar import sweep
from vexkd.synthetic.town import Solids, Town, build_town
from vexkd.synthetic.traffic import Traffic, populate

TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
CATEGORIES = (
    *(f"human.pedestrian.{name}" for name in ("adult", "child", "wheelchair", "stroller", "personal_mobility")),
    *("human.pedestrian.police_officer", "human.pedestrian.construction_worker", "animal"),
    *(f"vehicle.{name}" for name in ("car", "motorcycle", "bicycle", "bus.bendy", "bus.rigid", "truck")),
    *(f"vehicle.{name}" for name in ("construction", "emergency.ambulance", "emergency.police", "trailer")),
    *(f"movable_object.{name}" for name in ("barrier", "trafficcone", "pushable_pullable", "debris")),
    "static_object.bicycle_rack",
)
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
)
MAP_LAYERS = (
    *("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway"),
    *("stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector"),
)
VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
# Location: the file name of its map mask in nuScenes, and its size in metres.
LOCATIONS = {
    "singapore-onenorth": ("53992ee3023e5494b90c316c183be829", (1585.6, 2025.0)),
    "singapore-hollandvillage": ("37819e65e09e5547b8a3ceaefba56bb2", (2808.3, 2922.9)),
    "singapore-queenstown": ("93406b464a165eaba6d9de76ca09f5da", (3228.6, 3687.1)),
    "boston-seaport": ("36092f0b03a857c6a3403e25b4b7aab3", (2979.5, 2118.1)),
}
LIDAR = "LIDAR_TOP"
LIDAR_PLACE = (0.94, 0.0, 1.84)  # metres in the ego frame; the sensor's y axis points forward
# Camera: place in the ego frame (metres), direction (degrees to the left), focal length / image width, delay (us).
CAMERAS = {
    "CAM_FRONT": ((1.70, 0.0, 1.51), 0.0, 0.79, -35_000),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0, 0.79, -28_000),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -110.0, 0.79, -20_000),
    "CAM_BACK": ((0.03, 0.0, 1.58), 180.0, 0.505, -10_000),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 110.0, 0.79, -1_000),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 0.79, -43_000),
}
KEYFRAME_STEP, SWEEP_STEP = 500_000, 50_000  # microseconds: 2 Hz and 20 Hz
EPOCH = 1_530_000_000_000_000  # microseconds, the first scene's first keyframe
ANNOTATED_RANGE = 60.0  # metres around the ego vehicle
PITCH = 370.0  # metres between districts of one location
MASK_SCALE = 10  # map mask pixels a metre
TEST_VERSION = "v1.0-test"
TRAINVAL_SCENES, TRAINVAL_SAMPLES = 850, 34_149


@dataclass(frozen=True)
class Recipe:
    """What is asked for, the same for every scene."""

    seed: int
    image_size: tuple[int, int]  # width, height
    beams: int
    azimuths: int
    sweeps: int  # LiDAR sweeps of a sample, its keyframe's own the last, at 20 Hz
    sensors: bool
    crowd: float


@dataclass(frozen=True)
class Placement:
    """Where a district lies in the global frame: rotation (radians), then translation (metres)."""

    x: float
    y: float
    turn: float

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Global coordinates of town points, ... 2."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x, y = xy[..., 0], xy[..., 1]
        return np.stack([self.x + cos * x - sin * y, self.y + sin * x + cos * y], axis=-1)


@dataclass(frozen=True)
class ScenePlan:
    """One scene before it is made."""

    index: int
    name: str
    location: str
    slot: int  # which district of the location
    samples: int
    labelled: bool = True  # nuScenes keeps the annotations of its test scenes to itself


def token(*key: object) -> str:
    """32 hex digits from a key."""
    return hashlib.md5("/".join(map(str, key)).encode(), usedforsecurity=False).hexdigest()


def yaw_quaternion(yaw: float) -> list[float]:
    """w, x, y, z of a rotation about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def camera_rotation(direction: float) -> np.ndarray:
    """ego_from_camera rotation of a level camera that looks `direction` radians to the left, 3 3."""
    cos, sin = np.cos(direction), np.sin(direction)
    return np.array([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])


def camera_quaternion(direction: float) -> list[float]:
    """The same as w, x, y, z: a yaw after the turn of the camera's axes into the ego vehicle's."""
    w, _, _, z = yaw_quaternion(direction)
    base = np.array([0.5, -0.5, 0.5, -0.5])  # x right, y down, z forward, seen from x forward, y left, z up
    return [float(v) for v in w * base + z * np.array([-base[3], -base[2], base[1], base[0]])]


def camera_intrinsic(channel: str, size: tuple[int, int]) -> np.ndarray:
    """Pinhole matrix for an image size (width, height), 3 3."""
    focal = CAMERAS[channel][2] * size[0]
    return np.array([[focal, 0.0, 0.5 * size[0]], [0.0, focal, 0.54 * size[1]], [0.0, 0.0, 1.0]])


def slots_of(location: str) -> tuple[int, int]:
    """Districts that fit into a location: columns, rows."""
    width, height = LOCATIONS[location][1]
    return int(width // PITCH), int(height // PITCH)


def district(seed: int, location: str, slot: int) -> tuple[Town, Placement]:
    """The town in a slot of a location and where it lies."""
    rng = np.random.default_rng([seed, 1, list(LOCATIONS).index(location), slot])
    columns, _ = slots_of(location)
    row, column = divmod(slot, columns)
    turn = float(rng.uniform(-np.pi, np.pi))
    return build_town(rng), Placement((column + 0.5) * PITCH, (row + 0.5) * PITCH, turn)


def plan_scenes(scenes: int, samples: int | None) -> tuple[str, list[ScenePlan]]:
    """Version and scenes: nuScenes' own scene names, both splits in about their real shares.

    samples None is 10 in a mini set, else nuScenes' own mean length (34,149 samples in 850 scenes).
    """
    from nuscenes.utils import splits  # imports the whole devkit: only the parent process needs it

    if not 1 <= scenes <= TRAINVAL_SCENES:
        raise InputError(f"scenes must be 1 to {TRAINVAL_SCENES}, not {scenes}.")
    mini = scenes <= len(splits.mini_train) + len(splits.mini_val)
    train, val = (splits.mini_train, splits.mini_val) if mini else (splits.train, splits.val)
    number = 0 if scenes == 1 else max(1, round(scenes * len(val) / (len(train) + len(val))))
    number = max(number, scenes - len(train))
    names = sorted(train)[: scenes - number] + sorted(val)[:number]
    plans = []
    for index, name in enumerate(names):
        location = list(LOCATIONS)[index % len(LOCATIONS)]
        columns, rows = slots_of(location)
        start, end = (i * TRAINVAL_SAMPLES // TRAINVAL_SCENES for i in (index, index + 1))
        slot = index // len(LOCATIONS) % (columns * rows)
        length = (10 if mini else end - start) if samples is None else samples
        plans.append(ScenePlan(index, name, location, slot, length))
    return "v1.0-mini" if mini else "v1.0-trainval", plans


def plan_test(scenes: int, plans: list[ScenePlan]) -> list[ScenePlan]:
    """Scenes of nuScenes' test split in the districts of those that are planned, so that the maps cover them."""
    from nuscenes.utils import splits

    if scenes > len(splits.test):
        raise InputError(f"test_scenes must be 0 to {len(splits.test)}, not {scenes}.")
    like = itertools.cycle(plans)
    return [
        replace(next(like), index=len(plans) + number, name=name, labelled=False)
        for number, name in enumerate(sorted(splits.test)[:scenes])
    ]


class SceneWriter:
    """Makes one scene: its rows by table, and its sensor files under the root."""

    def __init__(self, root: Path, recipe: Recipe, plan: ScenePlan) -> None:
        self.root, self.recipe, self.plan = root, recipe, plan
        self.town, self.placement = district(recipe.seed, plan.location, plan.slot)
        self.rng = np.random.default_rng([recipe.seed, 2, plan.index])
        duration = (plan.samples - 1) * KEYFRAME_STEP * 1e-6
        self.traffic: Traffic = populate(self.town, self.rng, max(duration, 0.5), recipe.crowd)
        self.light: Light = draw_light(self.rng)
        times = np.arange(plan.samples) * KEYFRAME_STEP * 1e-6  # T keyframes
        self.poses = np.stack([a.path.at(times) for a in self.traffic.actors])  # A T 3: x, y, yaw
        self.centres = np.stack(
            [a.box_centre(p) for a, p in zip(self.traffic.actors, self.poses, strict=True)]
        )  # A T 3
        self.begin = EPOCH + plan.index * 1_000_000_000
        self.logfile = f"n000-2018-07-01-{plan.index:04d}"
        self.rows: dict[str, list[dict]] = {name: [] for name in TABLES}
        self.static = self.town.solids.build()
        self.ground = self.town.ground() if recipe.sensors else np.zeros((1, 1), np.uint8)

    def key(self, *parts: object) -> str:
        """A token that belongs to this scene."""
        return token(self.recipe.seed, self.plan.name, *parts)

    def write(self) -> dict[str, str]:
        """Make everything; returns each table's rows as JSON text without the brackets."""
        sample_tokens = [self.key("sample", i) for i in range(self.plan.samples)]
        seen: dict[int, list[dict]] = {}
        for number, sample_token in enumerate(sample_tokens):
            time = self.begin + number * KEYFRAME_STEP
            links = {
                "prev": sample_tokens[number - 1] if number else "",
                "next": sample_tokens[number + 1] if number + 1 < len(sample_tokens) else "",
            }
            self.rows["sample"].append(
                {"token": sample_token, "timestamp": time, **links, "scene_token": self.key("scene")}
            )
            shown = self._cameras(sample_token, time) if self.recipe.sensors else self._no_cameras(sample_token, time)
            points = self._lidar(sample_token, time)
            self._annotate(sample_token, number, points, shown, seen)
        self._close(sample_tokens, seen)
        if not self.plan.labelled:
            self.rows |= {"instance": [], "sample_annotation": []}
        return {name: ",\n".join(map(json.dumps, rows)) for name, rows in self.rows.items() if rows}

    def seconds(self, time: int) -> float:
        """Scene time of a timestamp."""
        return (time - self.begin) * 1e-6

    def ego(self, time: int) -> np.ndarray:
        """Ego pose (x, y, yaw) in the town frame at a timestamp."""
        return self.traffic.ego.at(np.array([self.seconds(time)]))[0]

    def solids(self, time: int) -> Solids:
        """Everything that stands or moves in the town at a timestamp."""
        return Solids.join([self.static, self.traffic.solids_at(self.seconds(time))])

    def _record(self, channel: str, sample_token: str, time: int, keyframe: bool) -> Path:
        """Add a sample_data row with its ego pose; returns the path of its file."""
        suffix, width, height = ("pcd.bin", 0, 0) if channel == LIDAR else ("jpg", *self.recipe.image_size)
        folder = "samples" if keyframe else "sweeps"
        name = f"{folder}/{channel}/{self.logfile}__{channel}__{time}.{suffix}"
        mine = self.key(channel, time)
        x, y, yaw = self.ego(time)
        position = self.placement.points(np.array([x, y]))
        self.rows["ego_pose"].append(
            {
                "token": mine,
                "timestamp": time,
                "rotation": yaw_quaternion(yaw + self.placement.turn),
                "translation": [round(float(position[0]), 6), round(float(position[1]), 6), 0.0],
            }
        )
        self.rows["sample_data"].append(
            {
                "token": mine,
                "sample_token": sample_token,
                "ego_pose_token": mine,
                "calibrated_sensor_token": token("calibrated_sensor", channel),
                "timestamp": time,
                "fileformat": suffix.split(".")[0],
                "is_key_frame": keyframe,
                "height": height,
                "width": width,
                "filename": name,
                "prev": "",
                "next": "",
            }
        )
        return self.root / name

    def _lidar(self, sample_token: str, time: int) -> np.ndarray:
        """The sweeps before a keyframe and its own; returns the keyframe's points, P 5."""
        points = np.zeros((0, 5), np.float32)
        for back in range(self.recipe.sweeps - 1, -1, -1):
            at = time - back * SWEEP_STEP
            path = self._record(LIDAR, sample_token, at, keyframe=back == 0)
            if self.recipe.sensors:
                x, y, yaw = self.ego(at)
                forward, height = LIDAR_PLACE[0], LIDAR_PLACE[2]
                origin = np.array([x + forward * np.cos(yaw), y + forward * np.sin(yaw), height])
                points = sweep(
                    self.solids(at), self.ground, (origin, yaw), self.rng, self.recipe.beams, self.recipe.azimuths
                )
                points.tofile(path)
        return points

    def picture(self, channel: str, time: int) -> tuple[Picture, np.ndarray, np.ndarray]:
        """What a camera sees at a timestamp, with its town_from_camera (4 4) and intrinsic (3 3)."""
        place, degrees, *_ = CAMERAS[channel]
        x, y, yaw = self.ego(time)
        town_from_ego, ego_from_camera = np.eye(4), np.eye(4)
        town_from_ego[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        town_from_ego[:2, 3] = x, y
        ego_from_camera[:3, :3], ego_from_camera[:3, 3] = camera_rotation(np.radians(degrees)), place
        town_from_camera = town_from_ego @ ego_from_camera
        size, actors = self.recipe.image_size, len(self.traffic.actors)
        intrinsic = camera_intrinsic(channel, size)
        solids = self.solids(time)
        shot = render(solids, self.ground, town_from_camera, intrinsic, size, self.light, actors, self.rng)
        return shot, town_from_camera, intrinsic

    def _cameras(self, sample_token: str, time: int) -> np.ndarray:
        """Draw the six images; returns each actor's visible share over all of them, NaN where it is out of sight."""
        count = len(self.traffic.actors)
        visible, whole = np.zeros(count), np.zeros(count)
        for channel, (*_, delay) in CAMERAS.items():
            path = self._record(channel, sample_token, time + delay, keyframe=True)
            shot, _, _ = self.picture(channel, time + delay)
            Image.fromarray(shot.rgb).save(path, quality=88)
            visible += np.bincount(shot.owner[shot.owner >= 0], minlength=count)
            whole += shot.whole
        return np.where(whole > 0, visible / np.maximum(whole, 1), np.nan)

    def _no_cameras(self, sample_token: str, time: int) -> np.ndarray:
        """The rows of the images without the images; visible shares are drawn."""
        for channel, (*_, delay) in CAMERAS.items():
            self._record(channel, sample_token, time + delay, keyframe=True)
        return self.rng.beta(1.6, 0.7, len(self.traffic.actors))

    def _annotate(
        self, sample_token: str, number: int, points: np.ndarray, shown: np.ndarray, seen: dict[int, list[dict]]
    ) -> None:
        """Add the annotations of one keyframe; seen collects them by actor."""
        ego = self.ego(self.begin + number * KEYFRAME_STEP)
        pose = self.rows["ego_pose"][-1]  # of the keyframe's own sweep
        frame = LidarFrame(pose["translation"], ego[2] + self.placement.turn, points)
        centres = self.centres[:, number]  # A 3
        distances = np.linalg.norm(centres[:, :2] - ego[:2], axis=1)
        places = self.placement.points(centres[:, :2])
        for index in np.flatnonzero(distances < ANNOTATED_RANGE).tolist():
            actor, distance = self.traffic.actors[index], float(distances[index])
            translation = [round(float(v), 6) for v in (*places[index], centres[index, 2])]
            size = [round(v, 4) for v in actor.size]
            yaw = float(self.poses[index, number, 2]) + self.placement.turn
            share = 0.0 if np.isnan(shown[index]) else float(shown[index])
            count = frame.count(translation, size, yaw) if self.recipe.sensors else self._guess(size, distance, share)
            attribute = [token("attribute", actor.attribute)] if actor.attribute else []
            row = {
                "token": self.key("annotation", sample_token, index),
                "sample_token": sample_token,
                "instance_token": self.key("instance", index),
                "visibility_token": str(1 + sum(share >= limit for limit in (0.4, 0.6, 0.8))),
                "attribute_tokens": attribute,
                "translation": translation,
                "size": size,
                "rotation": yaw_quaternion(yaw),
                "prev": "",
                "next": "",
                "num_lidar_pts": count,
                "num_radar_pts": 0,
            }
            self.rows["sample_annotation"].append(row)
            seen.setdefault(index, []).append(row)

    def _guess(self, size: list[float], distance: float, share: float) -> int:
        """LiDAR points on an object where no sweep was cast: its solid angle over that of one ray."""
        width, length, height = size
        rays = self.recipe.azimuths / (2 * np.pi) * self.recipe.beams / np.radians(41.3)
        return int(self.rng.poisson(0.6 * share * rays * (width + length) / 2 * height / max(distance, 2.0) ** 2))

    def _close(self, sample_tokens: list[str], seen: dict[int, list[dict]]) -> None:
        """Chain the rows in time; add instances, the scene and its log."""
        for index, rows in seen.items():
            _chain(rows)
            self.rows["instance"].append(
                {
                    "token": self.key("instance", index),
                    "category_token": token("category", self.traffic.actors[index].category),
                    "nbr_annotations": len(rows),
                    "first_annotation_token": rows[0]["token"],
                    "last_annotation_token": rows[-1]["token"],
                }
            )
        for channel in (LIDAR, *CAMERAS):
            mine = token("calibrated_sensor", channel)
            _chain([row for row in self.rows["sample_data"] if row["calibrated_sensor_token"] == mine])
        self.rows["scene"].append(
            {
                "token": self.key("scene"),
                "log_token": self.key("log"),
                "nbr_samples": len(sample_tokens),
                "first_sample_token": sample_tokens[0],
                "last_sample_token": sample_tokens[-1],
                "name": self.plan.name,
                "description": f"Synthetic town, {len(self.traffic.actors)} actors",
            }
        )
        log = {"logfile": self.logfile, "vehicle": "n000", "date_captured": "2018-07-01"}
        self.rows["log"].append({"token": self.key("log"), **log, "location": self.plan.location})


@dataclass(frozen=True)
class LidarFrame:
    """A keyframe's points and the pose of its sensor, to count points in boxes as the devkit does."""

    ego_translation: list[float]
    ego_yaw: float
    points: np.ndarray  # P 5, LiDAR frame

    def count(self, translation: list[float], size: list[float], yaw: float) -> int:
        """Points within a global box (w, l, h), faces included: equals nuscenes.utils points_in_box."""
        if not len(self.points):
            return 0
        width, length, height = size
        cos, sin = np.cos(self.ego_yaw), np.sin(self.ego_yaw)
        dx, dy = (translation[i] - self.ego_translation[i] for i in (0, 1))
        forward, left = cos * dx + sin * dy - LIDAR_PLACE[0], cos * dy - sin * dx - LIDAR_PLACE[1]
        x, y, z = -left, forward, translation[2] - LIDAR_PLACE[2]
        reach = np.hypot(width, length) / 2 + 0.01
        near = self.points[(np.abs(self.points[:, 0] - x) < reach) & (np.abs(self.points[:, 1] - y) < reach)]
        near = near[:, :3].astype(np.float64) - (x, y, z)
        angle = yaw - self.ego_yaw + np.pi / 2  # in the LiDAR frame x is right, y forward
        along = near[:, 0] * np.cos(angle) + near[:, 1] * np.sin(angle)
        across = near[:, 1] * np.cos(angle) - near[:, 0] * np.sin(angle)
        inside = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2) & (np.abs(near[:, 2]) <= height / 2)
        return int(inside.sum())


def _chain(rows: list[dict]) -> None:
    """Link rows that follow each other in time."""
    rows = sorted(rows, key=lambda row: row["timestamp"]) if "timestamp" in rows[0] else rows
    for before, after in zip(rows, rows[1:], strict=False):
        before["next"], after["prev"] = after["token"], before["token"]


def write_scene(job: tuple[Path, Recipe, ScenePlan]) -> dict[str, str]:
    """Make one scene (a worker's job)."""
    return SceneWriter(*job).write()


class MapFile:
    """A location's map expansion while it is being filled, in the global frame."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.content: dict = {"version": "1.3", "canvas_edge": list(LOCATIONS[location][1])}
        self.content |= {layer: [] for layer in MAP_LAYERS} | {"arcline_path_3": {}, "connectivity": {}}

    def _token(self, layer: str) -> str:
        return token("map", self.location, layer, len(self.content[layer]))

    def _nodes(self, xy: np.ndarray) -> list[str]:
        """Add nodes for points P 2."""
        tokens = []
        for x, y in xy:
            tokens.append(self._token("node"))
            self.content["node"].append({"token": tokens[-1], "x": round(float(x), 4), "y": round(float(y), 4)})
        return tokens

    def add_polygon(self, polygon: Polygon, place: Placement) -> str:
        """Add a polygon with its holes; returns its token."""
        exterior, *holes = (
            self._nodes(place.points(np.array(ring.coords[:-1]))) for ring in (polygon.exterior, *polygon.interiors)
        )
        mine = self._token("polygon")
        record = {"exterior_node_tokens": exterior, "holes": [{"node_tokens": hole} for hole in holes]}
        self.content["polygon"].append({"token": mine, **record})
        return mine

    def add_line(self, line: LineString, place: Placement) -> str:
        """Add a line; returns its token."""
        mine = self._token("line")
        self.content["line"].append({"token": mine, "node_tokens": self._nodes(place.points(np.array(line.coords)))})
        return mine

    def add_town(self, town: Town, place: Placement) -> None:
        """Add all layers of a district."""
        extra = {
            "lane": {"lane_type": "CAR", "left_lane_divider_segments": [], "right_lane_divider_segments": []},
            "stop_line": {"stop_line_type": "PED_CROSSING", "ped_crossing_tokens": [], "traffic_light_tokens": []},
        }
        for layer, geometries in town.layers.items():
            for geometry in geometries:
                record: dict = {"token": self._token(layer)}
                if layer == "drivable_area":
                    record["polygon_tokens"] = [self.add_polygon(geometry, place)]
                elif isinstance(geometry, LineString):
                    record["line_token"] = self.add_line(geometry, place)
                else:
                    record["polygon_token"] = self.add_polygon(geometry, place)
                self.content[layer].append(record | extra.get(layer, {}))


def write_map(job: tuple[Path, int, str, list[int]]) -> None:
    """A location's map expansion JSON and its mask of drivable area and walkways (a worker's job).

    The mask covers the location from its origin to the last district, at 10 pixels a metre, y up.
    """
    root, seed, location, slots = job
    towns = [district(seed, location, slot) for slot in slots]
    expansion = MapFile(location)
    for town, origin in towns:
        expansion.add_town(town, origin)
    path = root / "maps" / "expansion" / f"{location}.json"
    path.write_text(json.dumps(expansion.content), encoding="utf-8")
    width, height = (
        round((max(v) + PITCH / 2) * MASK_SCALE) for v in zip(*((p.x, p.y) for _, p in towns), strict=True)
    )
    image = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(image)
    for town, origin in towns:
        for layer in ("drivable_area", "walkway"):
            for polygon in town.layers[layer]:
                for number, ring in enumerate((polygon.exterior, *polygon.interiors)):
                    xy = origin.points(np.array(ring.coords)) * MASK_SCALE
                    draw.polygon([(x, height - y) for x, y in xy.tolist()], fill=0 if number else 255)
    image.save(root / "maps" / f"{LOCATIONS[location][0]}.png", compress_level=1)


def _fixed_tables(recipe: Recipe, plans: list[ScenePlan]) -> dict[str, list[dict]]:
    """The tables that do not grow with the scenes."""
    sensors, mounts = [], []
    for channel in (LIDAR, *CAMERAS):
        lidar = channel == LIDAR
        sensor = {"token": token("sensor", channel), "channel": channel, "modality": "lidar" if lidar else "camera"}
        sensors.append(sensor)
        turn = yaw_quaternion(-np.pi / 2) if lidar else camera_quaternion(np.radians(CAMERAS[channel][1]))
        mounts.append(
            {
                "token": token("calibrated_sensor", channel),
                "sensor_token": sensor["token"],
                "translation": list(LIDAR_PLACE if lidar else CAMERAS[channel][0]),
                "rotation": turn,
                "camera_intrinsic": [] if lidar else camera_intrinsic(channel, recipe.image_size).tolist(),
            }
        )
    logs = {name: [token(recipe.seed, p.name, "log") for p in plans if p.location == name] for name in LOCATIONS}
    return {
        "category": [{"token": token("category", name), "name": name, "description": ""} for name in CATEGORIES],
        "attribute": [{"token": token("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": key, "level": level, "description": f"visibility of whole object: {level[1:]} %"}
            for key, level in VISIBILITIES.items()
        ],
        "sensor": sensors,
        "calibrated_sensor": mounts,
        "map": [
            {
                "token": token("map", name),
                "log_tokens": logs[name],
                "category": "semantic_prior",
                "filename": f"maps/{mask}.png",
            }
            for name, (mask, _) in LOCATIONS.items()
        ],
    }


def _write_tables(folder: Path, fixed: dict[str, list[dict]], scenes: Iterable[dict[str, str]]) -> None:
    """Stream the scenes' rows into the tables."""
    files = {name: (folder / f"{name}.json").open("w", encoding="utf-8") for name in TABLES}
    try:
        empty = dict.fromkeys(TABLES, True)
        first = {name: ",\n".join(map(json.dumps, rows)) for name, rows in fixed.items()}
        for rows in itertools.chain([first], scenes):
            for name, text in rows.items():
                files[name].write(("[\n" if empty[name] else ",\n") + text)
                empty[name] = False
        for name, file in files.items():
            file.write("[]" if empty[name] else "\n]")
    finally:
        for file in files.values():
            file.close()


def synthesize(
    out: Path,
    *,
    scenes: int = 10,
    samples: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] = (400, 225),
    beams: int = 32,
    azimuths: int = 900,
    sweeps_per_sample: int = 3,
    crowd: float | None = None,
    workers: int | None = None,
    sensors: bool = True,
    progress: bool = True,
    test_scenes: int = 0,
) -> None:
    """Write a nuScenes data set of a procedural town to `out`.

    Up to 10 scenes are v1.0-mini, more (up to 850) v1.0-trainval, with nuScenes' scene names and at least one scene of
    the validation split from two scenes on. samples is the number of keyframes a scene, at 2 Hz (None: 10, or
    nuScenes' own mean length in a trainval set); image_size is (width, height); sweeps_per_sample counts the LiDAR
    sweeps up to each keyframe's own, which is included, at 20 Hz (1 to 10); crowd scales the number of actors (None:
    1, or 0.17 in a trainval set, nuScenes' own density); sensors=False writes tables and maps only. test_scenes is
    the number of scenes of a v1.0-test set beside it, without annotations. The result
    depends on these settings and the seed, not on workers (None: one a core). Raises InputError for settings out of
    range and where `out` is not a new or empty folder; nothing is left at `out` when writing fails.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder: name a new one or remove it first.")
    version, plans = plan_scenes(scenes, samples)
    if crowd is None:
        crowd = 1.0 if version == "v1.0-mini" else 0.17
    recipe = Recipe(seed, tuple(image_size), beams, azimuths, sweeps_per_sample, sensors, crowd)
    _check(recipe, plans[0].samples)
    tested = plan_test(test_scenes, plans)
    root = out.parent / f".{out.name}.partial-{os.getpid()}"
    folders = [f"samples/{channel}" for channel in (LIDAR, *CAMERAS)] + [f"sweeps/{LIDAR}", "maps/expansion", version]
    try:
        with provenance.naming(out, parts=root):
            for folder in folders:
                (root / folder).mkdir(parents=True)
            _write_all(root, version, recipe, plans, workers or os.cpu_count() or 1, progress)
            if tested:
                (root / TEST_VERSION).mkdir()
                _write_all(root, TEST_VERSION, recipe, tested, workers or os.cpu_count() or 1, progress)
            if out.exists():
                out.rmdir()
            root.rename(out)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _check(recipe: Recipe, samples: int) -> None:
    """Refuse settings that make no data set."""
    for name, value, low, high in (
        ("seed", recipe.seed, 0, 2**63),
        ("samples", samples, 1, 2000),
        ("image width", recipe.image_size[0], 16, 4096),
        ("image height", recipe.image_size[1], 16, 4096),
        ("beams", recipe.beams, 2, 256),
        ("azimuths", recipe.azimuths, 16, 8192),
        ("sweeps_per_sample", recipe.sweeps, 1, KEYFRAME_STEP // SWEEP_STEP),
        ("crowd", recipe.crowd, 0.05, 4.0),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} must be {low} to {high}, not {value}.")


def _write_all(root: Path, version: str, recipe: Recipe, plans: list[ScenePlan], workers: int, progress: bool) -> None:
    """Maps and scenes, on several processes where asked."""
    used = {name: sorted({p.slot for p in plans if p.location == name}) or [0] for name in LOCATIONS}
    maps = [(root, recipe.seed, name, slots) for name, slots in used.items() if version != TEST_VERSION]
    scenes = [(root, recipe, plan) for plan in plans]
    jobs = [*(partial(write_map, job) for job in maps), *(partial(write_scene, job) for job in scenes)]
    results = in_order(_run, jobs, min(workers, len(scenes)))
    for _ in maps:
        next(results)
    bar = tqdm(results, "synthesize", len(scenes), unit="scene", disable=not progress)
    _write_tables(root / version, _fixed_tables(recipe, plans), bar)


def _run(job: Callable[[], Any]) -> Any:
    """Call a job that holds its arguments (in a worker process)."""
    return job()
