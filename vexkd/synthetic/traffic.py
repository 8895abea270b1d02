"""Who moves through a town: actors of the ten detection classes, the ego vehicle, and where each is at a time.

Everything is in the town frame (metres, seconds, radians). Dimension letters: A actors, T times, K path points.
An actor's own frame has x forward, y left, z up, its origin on the ground below the centre of its box.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vexkd.synthetic.town import Lane, SolidList, Solids, Texture, Town

BOX_MARGIN = 0.04  # metres between the geometry and the annotated box, so that range noise stays inside
LOWEST = 0.08  # metres above ground where every actor begins, so that no ground return lies in a box
TIME_STEP = 0.25  # seconds between collision checks
REACH = 400.0  # metres by which paths go on beyond the district
CATEGORY = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}
# How many of each class stand within reach of a 25 m route at crowd = 1.
CROWD = {
    "truck": 8,
    "bus": 7,
    "trailer": 7,
    "construction_vehicle": 7,
    "car": 20,
    "motorcycle": 9,
    "bicycle": 9,
    "pedestrian": 20,
    "barrier": 14,
    "traffic_cone": 14,
}
TURNS = 8
RADIUS = {"pedestrian": 27.0, "motorcycle": 27.0, "bicycle": 27.0, "barrier": 22.0, "traffic_cone": 18.0}
DEFAULT_RADIUS = 40.0


@dataclass(frozen=True)
class Route:
    """A polyline followed at constant speed, beginning at time 0 at distance `start`."""

    points: np.ndarray  # K 2
    yaw: np.ndarray  # K, unwrapped
    start: float
    speed: float

    @cached_property
    def along(self) -> np.ndarray:
        """Distance of each point from the first, K."""
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(steps)])

    def at(self, times: np.ndarray) -> np.ndarray:
        """Poses (x, y, yaw) at times, T 3."""
        at = self.start + self.speed * np.asarray(times, np.float64)
        return np.stack([np.interp(at, self.along, v) for v in (*self.points.T, self.yaw)], axis=-1)  # T 3

    def starting(self, start: float, speed: float) -> "Route":
        """The same line with another start and speed."""
        return Route(self.points, self.yaw, start, speed)


@dataclass(frozen=True)
class Actor:
    """One road user or object: its class, its box, its solids in its own frame, and its path."""

    name: str  # detection class
    category: str
    attribute: str  # '' where the class has none
    size: tuple[float, float, float]  # width, length, height
    height: float  # of the box centre above ground
    shift: tuple[float, float]  # box centre in the actor's frame, x and y
    solids: Solids
    path: Route

    def box_centre(self, poses: np.ndarray) -> np.ndarray:
        """Centre of the annotated box for poses (x, y, yaw): T 3."""
        cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
        x = poses[:, 0] + cos * self.shift[0] - sin * self.shift[1]
        y = poses[:, 1] + sin * self.shift[0] + cos * self.shift[1]
        return np.stack([x, y, np.full(len(poses), self.height)], axis=1)


@dataclass(frozen=True)
class Traffic:
    """All actors of a scene and the ego vehicle's path."""

    ego: Route
    actors: list[Actor]

    def solids_at(self, time: float) -> Solids:
        """The actors' boxes at a time, owners set to the actors' indices."""
        poses = np.concatenate([a.path.at(np.array([time])) for a in self.actors])  # A 3
        parts = Solids.join([a.solids for a in self.actors])
        x, y, yaw = poses[parts.owner].T
        cos, sin = np.cos(yaw), np.sin(yaw)
        centre = parts.centre.copy()
        centre[:, 0] = x + cos * parts.centre[:, 0] - sin * parts.centre[:, 1]
        centre[:, 1] = y + sin * parts.centre[:, 0] + cos * parts.centre[:, 1]
        return Solids(centre, parts.half, parts.yaw + yaw, parts.colour, parts.texture, parts.reflectance, parts.owner)


def straight(x: float, y: float, yaw: float, speed: float) -> Route:
    """A straight line through (x, y), reached at time 0."""
    direction = np.array([np.cos(yaw), np.sin(yaw)])
    middle = np.array([x, y])
    points = np.stack([middle - REACH * direction, middle + REACH * direction])
    return Route(points, np.array([yaw, yaw]), REACH, speed)


def standing(x: float, y: float, yaw: float) -> Route:
    """No movement at all."""
    return Route(np.array([[x, y], [x, y]]), np.array([yaw, yaw]), 0.0, 0.0)


def lane_path(lane: Lane) -> Route:
    """The centre line of a lane, distance REACH at the middle of the district."""
    x, y = lane.street.point(0.0, lane.across)
    return straight(x, y, lane.heading, 0.0)


def turn_path(entry: Lane, leave: Lane, radius: float) -> Route:
    """From one lane into a lane of a crossing street, over an arc; distance REACH at the arc's beginning."""
    before, after = (np.array([np.cos(lane.heading), np.sin(lane.heading)]) for lane in (entry, leave))
    first, second = (np.array(lane.street.point(0.0, lane.across)) for lane in (entry, leave))
    corner = first + before * np.dot(before, second - first)
    change = float(np.arctan2(before[0] * after[1] - before[1] * after[0], before @ after))
    share = np.linspace(0.0, 1.0, 33)
    normal = np.sign(change) * np.array([-before[1], before[0]])
    angle = share[:, None] * abs(change)
    arc = corner - radius * before + radius * (np.sin(angle) * before + (1 - np.cos(angle)) * normal)
    points = np.concatenate([[arc[0] - REACH * before], arc, [arc[-1] + REACH * after]])
    yaw = entry.heading + change * np.concatenate([[0.0], share, [1.0]])
    return Route(points, yaw, REACH, 0.0)


def ego_route(town: Town, rng: np.random.Generator, duration: float) -> Route:
    """The ego vehicle's drive: along a middle street, often turning at the central junction."""
    middle = [lane for lane in town.lanes if abs(lane.street.offset) < 20]
    entry = middle[rng.integers(len(middle))]
    speed = float(rng.uniform(3.5, 6.5))
    length = speed * duration
    draw = rng.random()
    if draw < 0.5:
        return lane_path(entry).starting(REACH - length / 2 + rng.uniform(-30, 30), speed)
    crossing = [lane for lane in middle if lane.street.axis != entry.street.axis]
    side = -1 if draw < 0.75 else 1  # right, left
    wanted = entry.heading + side * np.pi / 2
    leave = [lane for lane in crossing if np.cos(lane.heading - wanted) > 0.9]
    path = turn_path(entry, leave[rng.integers(len(leave))], radius=6.5 if side < 0 else 9.0)
    return path.starting(REACH - length * rng.uniform(0.3, 0.7), speed)


def _finish(name: str, parts: SolidList, path: Route, attribute: str, category: str | None = None) -> Actor:
    """Close an actor: its box is the bounds of its solids plus the margin."""
    solids = parts.build()
    real = solids.texture != Texture.SHADOW
    low = (solids.centre - solids.half)[real].min(axis=0) - BOX_MARGIN
    high = (solids.centre + solids.half)[real].max(axis=0) + BOX_MARGIN
    length, width, height = (float(v) for v in high - low)
    centre = (low + high) / 2
    return Actor(
        name=name,
        category=category or CATEGORY[name],
        attribute=attribute,
        size=(width, length, height),
        height=float(centre[2]),
        shift=(float(centre[0]), float(centre[1])),
        solids=solids,
        path=path,
    )


def _shadow(parts: SolidList, length: float, width: float) -> None:
    """A dark patch on the ground, drawn by the cameras only."""
    x, y = length / 2 + 0.1, width / 2 + 0.1
    parts.add((-x, -y, 0.0), (x, y, 0.015), (0.05, 0.05, 0.06), Texture.SHADOW, 0.0)


def _wheels(parts: SolidList, places: list[float], width: float, radius: float = 0.35) -> None:
    """Pairs of wheels at distances along the vehicle."""
    black = (0.06, 0.06, 0.07)
    for x in places:
        for side in (-1, 1):
            y0, y1 = sorted((side * width / 2, side * (width / 2 - 0.25)))
            parts.add((x - radius, y0, LOWEST), (x + radius, y1, 2 * radius), black, reflectance=0.05)


def car(rng: np.random.Generator) -> SolidList:
    """Body, glazed cabin with a roof, four wheels."""
    parts, length, width, height = SolidList(), rng.uniform(4.1, 5.0), rng.uniform(1.75, 2.0), rng.uniform(1.45, 1.9)
    paint = np.array([[75, 76, 78], [12, 12, 14], [55, 10, 10], [13, 22, 50], [42, 44, 46], [85, 85, 82]]) / 100
    colour = tuple(np.clip(paint[rng.integers(len(paint))] * rng.uniform(0.8, 1.15), 0, 1))
    shine = float(rng.uniform(0.2, 0.6))
    long_roof = rng.random() < 0.4
    back, front = (-0.48, 0.22) if long_roof else (-0.33, 0.17)
    x, y, waist = length / 2, width / 2, 0.55 * height
    _shadow(parts, length, width)
    parts.add((-x, -y, 0.28), (x, y, waist), colour, Texture.BODY, shine)
    cabin = (back * length, -y * 0.86, waist), (front * length, y * 0.86, height - 0.12)
    parts.add(*cabin, (0.10, 0.13, 0.16), Texture.GLASS, 0.08)
    parts.add((back * length, -y * 0.86, height - 0.12), (front * length, y * 0.86, height), colour, reflectance=shine)
    _wheels(parts, [-0.31 * length, 0.31 * length], width, 0.33)
    return parts


def truck(rng: np.random.Generator) -> SolidList:
    """A cab, a gap, a cargo box that is higher than the cab, and its chassis."""
    parts, length, width, height = SolidList(), rng.uniform(6.5, 8.8), rng.uniform(2.3, 2.6), rng.uniform(3.0, 3.6)
    cab = [(0.15, 0.30, 0.60), (0.70, 0.15, 0.12), (0.85, 0.85, 0.85), (0.15, 0.45, 0.25)][rng.integers(4)]
    x, y = length / 2, width / 2
    _shadow(parts, length, width)
    parts.add((x - 1.9, -y * 0.95, 0.45), (x, y * 0.95, 2.35), cab, Texture.BODY, 0.45)
    parts.add((x - 1.6, -y * 0.9, 1.6), (x + 0.02, y * 0.9, 2.2), (0.10, 0.13, 0.16), Texture.GLASS, 0.08)
    parts.add((-x, -y, 1.05), (x - 2.3, y, height), (0.88, 0.88, 0.86), Texture.CARGO, 0.5)
    parts.add((-x + 0.2, -0.5, 0.6), (x - 1.9, 0.5, 1.05), (0.15, 0.15, 0.15), reflectance=0.1)
    _wheels(parts, [-0.33 * length, -0.33 * length + 1.1, 0.36 * length], width, 0.48)
    return parts


def bus(rng: np.random.Generator) -> SolidList:
    """One long low-floored body with a band of windows."""
    parts, length, width, height = SolidList(), rng.uniform(10.2, 12.0), rng.uniform(2.6, 2.9), rng.uniform(3.0, 3.5)
    colour = [(0.80, 0.15, 0.12), (0.15, 0.50, 0.25), (0.90, 0.65, 0.10)][rng.integers(3)]
    x, y = length / 2, width / 2
    _shadow(parts, length, width)
    parts.add((-x, -y, 0.32), (x, y, height), colour, Texture.COACH, 0.55)
    _wheels(parts, [-0.30 * length, 0.32 * length], width, 0.45)
    return parts


def trailer(rng: np.random.Generator) -> SolidList:
    """A high box on rear axles and landing legs, open below."""
    parts, length, width, height = SolidList(), rng.uniform(9.0, 12.5), rng.uniform(2.5, 2.8), rng.uniform(3.6, 4.0)
    colour = [(0.45, 0.48, 0.52), (0.25, 0.35, 0.50), (0.55, 0.45, 0.30)][rng.integers(3)]
    x, y = length / 2, width / 2
    _shadow(parts, length, width)
    parts.add((-x, -y, 1.35), (x, y, height), colour, Texture.RIBBED, 0.35)
    _wheels(parts, [-0.42 * length, -0.42 * length + 1.15, -0.42 * length + 2.3], width, 0.5)
    leg = 0.28 * length
    for y in (-0.7, 0.7):
        parts.add((leg, y - 0.1, LOWEST), (leg + 0.2, y + 0.1, 1.35), (0.2, 0.2, 0.2))
    return parts


def construction_vehicle(rng: np.random.Generator) -> SolidList:
    """An excavator: tracks, a turret with a cab, a stepped boom and a bucket."""
    parts, length, width, height = SolidList(), rng.uniform(6.2, 7.6), rng.uniform(2.6, 3.0), rng.uniform(2.9, 3.4)
    yellow, dark = (0.93, 0.68, 0.08), (0.12, 0.12, 0.12)
    x, y = length / 2, width / 2
    _shadow(parts, 0.6 * length, width)
    for side in (-1, 1):
        y0, y1 = sorted((side * y, side * (y - 0.65)))
        parts.add((-x, y0, LOWEST), (0.12 * length, y1, 0.85), dark, reflectance=0.08)
    parts.add((-x + 0.1, -y * 0.9, 0.95), (0.08 * length, y * 0.9, 1.9), yellow, Texture.PLAIN, 0.6)
    parts.add((-0.2 * length, 0.1, 1.9), (0.08 * length, y * 0.85, height), (0.10, 0.13, 0.16), Texture.GLASS, 0.15)
    boom = [(0.08, 0.18, 1.5, 2.3), (0.18, 0.28, 2.0, 2.9), (0.28, 0.38, 2.1, 2.9), (0.38, 0.45, 1.3, 2.5)]
    for start, end, bottom, top in (*boom, (0.40, 0.46, 0.8, 1.3)):
        parts.add((start * length, -0.45, bottom), (end * length, 0.0, min(top, height)), yellow, reflectance=0.6)
    parts.add((0.36 * length, -0.85, LOWEST), (x, 0.45, 0.85), (0.30, 0.28, 0.25), reflectance=0.3)
    return parts


def _rider(parts: SolidList, rng: np.random.Generator, seat: float, top: float, width: float) -> None:
    """A person on two wheels: torso, head, legs."""
    shirt = tuple(rng.uniform(0.1, 0.9, 3))
    parts.add((-0.32, -width / 2, seat), (0.08, width / 2, top - 0.28), shirt, reflectance=0.35)
    parts.add((-0.16, -0.12, top - 0.28), (0.10, 0.12, top), (0.55, 0.40, 0.32), reflectance=0.3)
    parts.add((-0.12, -width / 2 + 0.03, 0.4), (0.20, width / 2 - 0.03, seat), (0.12, 0.14, 0.25), reflectance=0.2)


def motorcycle(rng: np.random.Generator, rider: bool) -> SolidList:
    """Thick wheels, a tank and engine block, a windscreen and handlebars."""
    parts, length = SolidList(), rng.uniform(1.95, 2.25)
    colour = [(0.75, 0.10, 0.10), (0.10, 0.15, 0.55), (0.10, 0.10, 0.10)][rng.integers(3)]
    x = length / 2
    _shadow(parts, length, 0.5)
    for start in (-x, x - 0.62):
        parts.add((start, -0.1, LOWEST), (start + 0.62, 0.1, 0.64), (0.06, 0.06, 0.07), reflectance=0.08)
    parts.add((-0.8, -0.2, 0.35), (0.55, 0.2, 0.88), colour, Texture.BODY, 0.5)
    parts.add((0.40, -0.38, 0.95), (0.58, 0.38, 1.12), (0.2, 0.2, 0.2), reflectance=0.4)
    if rider:
        _rider(parts, rng, 0.85, rng.uniform(1.5, 1.62), 0.5)
    return parts


def bicycle(rng: np.random.Generator, rider: bool) -> SolidList:
    """Thin wheels, a thin frame, handlebars."""
    parts, length = SolidList(), rng.uniform(1.6, 1.8)
    colour = tuple(rng.uniform(0.3, 0.9, 3))
    x = length / 2
    _shadow(parts, length, 0.3)
    for start in (-x, x - 0.66):
        parts.add((start, -0.035, LOWEST), (start + 0.66, 0.035, 0.68), (0.10, 0.10, 0.10), reflectance=0.2)
    parts.add((-0.45, -0.04, 0.5), (0.45, 0.04, 0.78), colour, reflectance=0.4)
    parts.add((0.36, -0.3, 0.95), (0.44, 0.3, 1.05), (0.2, 0.2, 0.2), reflectance=0.3)
    parts.add((0.36, -0.03, 0.7), (0.44, 0.03, 1.0), (0.2, 0.2, 0.2), reflectance=0.3)
    parts.add((-0.34, -0.08, 0.78), (-0.14, 0.08, 0.95), (0.1, 0.1, 0.1), reflectance=0.2)
    if rider:
        _rider(parts, rng, 0.92, rng.uniform(1.62, 1.75), 0.42)
    return parts


def pedestrian(rng: np.random.Generator, worker: bool) -> SolidList:
    """Legs, torso with arms, head; workers wear a vest and a helmet."""
    parts, height = SolidList(), rng.uniform(1.58, 1.88)
    shirt = (0.95, 0.55, 0.05) if worker else tuple(rng.uniform(0.05, 0.9, 3))
    trousers = tuple(rng.uniform(0.08, 0.35, 3))
    shine = 0.9 if worker else 0.3
    stride = rng.uniform(0.0, 0.2)
    _shadow(parts, 0.4, 0.4)
    for side in (-1, 1):
        x = side * stride
        y0, y1 = sorted((side * 0.04, side * 0.2))
        parts.add((x - 0.1, y0, LOWEST), (x + 0.1, y1, 0.48 * height), trousers, reflectance=0.2)
        y0, y1 = sorted((side * 0.22, side * 0.31))
        parts.add((-x - 0.08, y0, 0.45 * height), (-x + 0.08, y1, 0.82 * height), shirt, reflectance=shine)
    parts.add((-0.15, -0.22, 0.48 * height), (0.15, 0.22, 0.85 * height), shirt, reflectance=shine)
    head = (0.95, 0.85, 0.1) if worker else (0.60, 0.45, 0.36)
    parts.add((-0.11, -0.1, 0.86 * height), (0.12, 0.1, height), head, reflectance=0.3)
    return parts


def traffic_cone(rng: np.random.Generator) -> SolidList:
    """A base plate and a tapering stack, orange and white."""
    parts, height = SolidList(), rng.uniform(0.8, 1.05)
    parts.add((-0.21, -0.21, LOWEST), (0.21, 0.21, 0.15), (0.15, 0.12, 0.10), reflectance=0.1)
    orange, white = (0.95, 0.35, 0.05), (0.95, 0.95, 0.95)
    for number, (start, half) in enumerate(((0.0, 0.16), (0.3, 0.13), (0.55, 0.10), (0.8, 0.06))):
        stop = (0.3, 0.55, 0.8, 1.0)[number]
        bottom, top = (0.15 + share * (height - 0.15) for share in (start, stop))
        parts.add((-half, -half, bottom), (half, half, top), white if number % 2 else orange, reflectance=0.95)
    return parts


def barrier(rng: np.random.Generator) -> SolidList:
    """A board on a foot, red and white, its long side across its heading."""
    parts, width, height = SolidList(), rng.uniform(2.2, 2.5), rng.uniform(0.95, 1.1)
    _shadow(parts, 0.4, width)
    parts.add((-0.24, -width / 2, LOWEST), (0.24, width / 2, 0.3), (0.55, 0.55, 0.55), Texture.PLAIN, 0.5)
    parts.add((-0.12, -width / 2, 0.3), (0.12, width / 2, height), (0.85, 0.12, 0.10), Texture.STRIPED, 0.75)
    return parts


class Crowd:
    """Actors being placed: candidates that would ever touch the ego vehicle or an accepted actor are refused."""

    def __init__(self, town: Town, ego: Route, duration: float, rng: np.random.Generator) -> None:
        self.town, self.ego, self.rng = town, ego, rng
        self.duration = duration
        self.times = np.arange(-1.0, duration + 1.0, TIME_STEP)
        self.actors: list[Actor] = []
        self.centres = np.empty((1024, len(self.times), 2))  # discs over time
        self.radii = np.empty(1024)
        self.count = 0
        self._store(*self._discs(ego, 4.8, 2.2))

    def _discs(self, path: Route, length: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Discs that cover a footprint: centres, discs T 2, and radii."""
        long, short = max(length, width), min(length, width)
        number = int(np.ceil(long / short))
        offsets = ((np.arange(number) + 0.5) / number - 0.5) * long
        poses = path.at(self.times if path.speed else self.times[:1])
        angle = poses[:, 2] + (0.0 if length >= width else np.pi / 2)
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # T 2
        centres = poses[None, :, :2] + offsets[:, None, None] * direction[None]
        return np.broadcast_to(centres, (number, len(self.times), 2)), np.full(number, 0.62 * short)

    def _store(self, centres: np.ndarray, radii: np.ndarray) -> None:
        """Remember discs, growing the arrays where needed."""
        end = self.count + len(radii)
        if end > len(self.radii):
            self.centres = np.concatenate([self.centres, np.empty_like(self.centres)])
            self.radii = np.concatenate([self.radii, np.empty_like(self.radii)])
        self.centres[self.count : end], self.radii[self.count : end] = centres, radii
        self.count = end

    def near_ego(self, path: Route, radius: float) -> bool:
        """Whether a path comes within a radius of the ego vehicle at some time of the scene."""
        inside = (self.times >= 0) & (self.times <= self.duration)
        gap = np.linalg.norm(path.at(self.times)[:, :2] - self.ego.at(self.times)[:, :2], axis=1)
        return bool((gap[inside] < radius).any())

    def offer(self, actor: Actor) -> bool:
        """Accept an actor unless it would touch another one at any time."""
        centres, radii = self._discs(actor.path, actor.size[1], actor.size[0])
        fixed = not actor.path.speed
        mine = centres[:, :1] if fixed else centres
        for disc, radius in zip(mine, radii, strict=True):
            delta = self.centres[: self.count] - disc[None]
            limit = (self.radii[: self.count] + radius + 0.15) ** 2
            if (np.einsum("dtk,dtk->dt", delta, delta) < limit[:, None]).any():
                return False
        self._store(centres, radii)
        self.actors.append(actor)
        return True

    def pick(self, spots: list[tuple], radius: float) -> tuple | None:
        """A random spot within a radius of the ego vehicle's route, or None."""
        moment = self.rng.uniform(0.0, self.duration)
        x, y, _ = self.ego.at(np.array([moment]))[0]
        table = np.asarray(spots)
        near = np.flatnonzero(np.hypot(table[:, 0] - x, table[:, 1] - y) < radius)
        return tuple(float(v) for v in table[self.rng.choice(near)]) if len(near) else None


VEHICLES = {"car": car, "truck": truck, "bus": bus, "trailer": trailer, "construction_vehicle": construction_vehicle}
PLACES = {
    "car": [("lane", 0.5), ("bay", 0.5)],
    "truck": [("lane", 0.35), ("dock", 0.5), ("site", 0.15)],
    "bus": [("lane", 0.5), ("dock", 0.5)],
    "trailer": [("lane", 0.25), ("dock", 0.65), ("site", 0.1)],
    "construction_vehicle": [("site", 0.6), ("dock", 0.2), ("lane", 0.2)],
    "motorcycle": [("lane", 0.5), ("bay", 0.5)],
    "bicycle": [("lane", 0.4), ("walk", 0.3), ("edge", 0.3)],
}


def _lane_spot(crowd: Crowd, radius: float, offset: float) -> tuple[Route, bool] | None:
    """A path along a lane near the ego vehicle, and whether it moves (else it waits in a queue)."""
    rng = crowd.rng
    moment = rng.uniform(0.0, crowd.duration)
    ego = crowd.ego.at(np.array([moment]))[0]
    fixed = {0: ego[1], 1: ego[0]}  # the coordinate that a street of each axis keeps
    near = [lane for lane in crowd.town.lanes if abs(lane.street.offset - fixed[lane.street.axis]) < 0.6 * radius]
    if not near:
        return None
    lane = near[rng.integers(len(near))]
    along = float(ego[lane.street.axis] + rng.uniform(-0.9, 0.9) * radius)
    x, y = lane.street.point(along, lane.across + rng.uniform(-0.25, 0.25) + offset)
    yaw = lane.heading
    if rng.random() < 0.35:
        return standing(x, y, yaw + rng.normal(0, 0.02)), False
    speed = float(rng.uniform(3.0, 9.0))
    back = speed * moment
    return straight(x - back * np.cos(yaw), y - back * np.sin(yaw), yaw, speed), True


def _vehicle(crowd: Crowd, name: str) -> bool:
    """Try to place one vehicle with an engine or two wheels."""
    rng = crowd.rng
    kinds, shares = zip(*PLACES[name], strict=True)
    kind = kinds[rng.choice(len(kinds), p=np.array(shares))]
    radius = RADIUS.get(name, DEFAULT_RADIUS)
    wheeled = name in ("motorcycle", "bicycle")
    path, moving = None, False
    if kind == "lane":
        found = _lane_spot(crowd, radius, rng.uniform(-1.0, 1.0) if wheeled else 0.0)
        path, moving = found or (None, False)
    elif kind == "walk":
        path, moving = _walk_path(crowd, float(rng.uniform(2.5, 5.0))), True
    else:
        spot = crowd.pick(crowd.town.edges if kind == "edge" else crowd.town.spots[kind], radius)
        path = _park(rng, spot, kind, wheeled) if spot else None
    if path is None or not crowd.near_ego(path, radius):
        return False
    if wheeled:
        rider = moving or kind == "lane"
        parts = (motorcycle if name == "motorcycle" else bicycle)(rng, rider)
        return crowd.offer(_finish(name, parts, path, "cycle.with_rider" if rider else "cycle.without_rider"))
    state = "moving" if moving else "stopped" if kind == "lane" else "parked"
    return crowd.offer(_finish(name, VEHICLES[name](rng), path, f"vehicle.{state}"))


def _park(rng: np.random.Generator, spot: tuple, kind: str, wheeled: bool) -> Route:
    """Stand in a spot, a little askew, sometimes the other way round; two-wheelers anywhere in it."""
    x, y, yaw = spot
    yaw = yaw + (np.pi if rng.random() < 0.35 else 0.0) + rng.normal(0, 0.05)
    shift = rng.normal(0, 0.15, 2)
    if wheeled:
        shift = rng.uniform(-0.9, 0.9, 2) if kind == "bay" else rng.uniform(-0.3, 0.3, 2)
        yaw += rng.uniform(-0.6, 0.6)
    return standing(x + shift[0], y + shift[1], yaw)


def _walk_path(crowd: Crowd, speed: float) -> Route | None:
    """Along a walkway near the ego vehicle, or over a crossing."""
    rng = crowd.rng
    moment = rng.uniform(0.0, crowd.duration)
    ego = crowd.ego.at(np.array([moment]))[0, :2]
    crossing = rng.random() < 0.25
    walks = np.asarray(crowd.town.crossings if crossing else crowd.town.walks)
    start, end = walks[:, :2], walks[:, 2:]
    length = np.linalg.norm(end - start, axis=1)
    direction = (end - start) / length[:, None]
    along = np.clip(((ego - start) * direction).sum(axis=1) + rng.uniform(-25, 25), 0, length)
    points = start + along[:, None] * direction
    near = np.flatnonzero(np.linalg.norm(points - ego, axis=1) < RADIUS["pedestrian"])
    if not len(near):
        return None
    index = rng.choice(near)
    yaw = float(np.arctan2(direction[index, 1], direction[index, 0])) + (np.pi if rng.random() < 0.5 else 0.0)
    side = rng.uniform(-0.8, 0.8) * np.array([-np.sin(yaw), np.cos(yaw)])
    x, y = points[index] + side - moment * speed * np.array([np.cos(yaw), np.sin(yaw)])
    return straight(float(x), float(y), yaw, speed)


def _person(crowd: Crowd) -> bool:
    """Try to place one pedestrian: walking, standing about, or working on a site."""
    rng = crowd.rng
    draw = rng.random()
    if draw < 0.55:
        path = _walk_path(crowd, float(rng.uniform(0.8, 1.8)))
        if path is None:
            return False
        return crowd.offer(_finish("pedestrian", pedestrian(rng, False), path, "pedestrian.moving"))
    worker = draw < 0.78
    spot = crowd.pick(crowd.town.spots["site" if worker else "bay"], RADIUS["pedestrian"])
    if spot is None:
        return False
    shift = rng.uniform(-3.5, 3.5, 2)
    path = standing(spot[0] + shift[0], spot[1] + shift[1], rng.uniform(-np.pi, np.pi))
    category = "human.pedestrian.construction_worker" if worker else None
    return crowd.offer(_finish("pedestrian", pedestrian(rng, worker), path, "pedestrian.standing", category))


def _row(crowd: Crowd, name: str) -> int:
    """Place a row of barriers or cones along a kerb or a site's edge; returns how many found room."""
    rng = crowd.rng
    spot = crowd.pick(crowd.town.edges, RADIUS[name])
    if spot is None:
        return 0
    x, y, yaw = spot
    gap = 2.7 if name == "barrier" else rng.uniform(1.5, 3.5)
    placed = 0
    for number in range(int(rng.integers(1, 5))):
        at_x, at_y = x + number * gap * np.cos(yaw), y + number * gap * np.sin(yaw)
        turn = yaw + np.pi / 2 + rng.normal(0, 0.06) if name == "barrier" else rng.uniform(-np.pi, np.pi)
        path = standing(at_x + rng.normal(0, 0.08), at_y + rng.normal(0, 0.08), turn)
        parts = barrier(rng) if name == "barrier" else traffic_cone(rng)
        placed += crowd.offer(_finish(name, parts, path, ""))
    return placed


def _place(crowd: Crowd, name: str) -> int:
    """Try to place an actor, or a row of them, of a detection class; returns how many were placed."""
    if name in PLACES:
        return int(_vehicle(crowd, name))
    return int(_person(crowd)) if name == "pedestrian" else _row(crowd, name)


def populate(town: Town, rng: np.random.Generator, duration: float, crowd: float = 1.0) -> Traffic:
    """Fill the surroundings of a drive with actors.

    crowd scales their number, which also grows with the length of the drive. Fewer are placed where there is no room.
    """
    ego = ego_route(town, rng, duration)
    place = Crowd(town, ego, duration, rng)
    stretch = 0.6 + 0.4 * ego.speed * duration / 25.0
    wanted = {name: max(1, round(number * crowd * stretch)) for name, number in CROWD.items()}
    placed = dict.fromkeys(CROWD, 0)
    for turn in range(TURNS):  # by turns, so that no class takes all the room
        for name, number in wanted.items():
            for _ in range(12):
                if placed[name] >= number * (turn + 1) / TURNS:
                    break
                placed[name] += _place(place, name)
    actors = [_owned(actor, index) for index, actor in enumerate(place.actors)]
    return Traffic(ego, actors)


def _owned(actor: Actor, index: int) -> Actor:
    """The actor with its index written into its solids."""
    owner = np.full(len(actor.solids), index, np.int32)
    s = actor.solids
    solids = Solids(s.centre, s.half, s.yaw, s.colour, s.texture, s.reflectance, owner)
    return Actor(actor.name, actor.category, actor.attribute, actor.size, actor.height, actor.shift, solids, actor.path)
