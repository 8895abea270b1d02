"""A procedural town district: streets, crossings, walkways, car parks, building plots, and the solids that stand there.

Everything is in the town frame: metres, x east, y north, z up, ground at z = 0, the district centred on the origin.
Dimension letters: N solids, Y X cells of the ground raster.
"""

from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np
from PIL import Image, ImageDraw
from shapely.geometry import LineString, Polygon, box
from shapely.ops import unary_union

HALF_SIZE = 130.0  # the district covers [-130, 130] m in x and y
GROUND_CELL = 0.2  # metres
LANE_WIDTH = 3.5
STRIP_WIDTH = 2.6
PLOT = (32.0, 22.0)  # metres, the usual sides of a plot


class Ground(IntEnum):
    """What the ground is made of, one value a cell."""

    GRASS = 0
    ASPHALT = 1
    WALKWAY = 2
    STRIPE = 3
    DIVIDER = 4
    CARPARK = 5
    DIRT = 6
    PLAZA = 7


class Texture(IntEnum):
    """How a solid is painted by the camera renderer."""

    PLAIN = 0
    FACADE = 1
    FOLIAGE = 2
    BODY = 3
    GLASS = 4
    COACH = 5
    CARGO = 6
    RIBBED = 7
    STRIPED = 8
    SHADOW = 9


@dataclass(frozen=True)
class Solids:
    """Upright boxes, the only shape that the sensors see. All arrays have N rows.

    centre and half are in metres, yaw in radians (counter-clockwise from +x), colour is RGB in 0..1, reflectance in
    0..1 at the LiDAR's wavelength. owner is the index of the actor that a box belongs to, -1 for the town itself.
    """

    centre: np.ndarray  # N 3
    half: np.ndarray  # N 3
    yaw: np.ndarray  # N
    colour: np.ndarray  # N 3
    texture: np.ndarray  # N
    reflectance: np.ndarray  # N
    owner: np.ndarray  # N

    def __len__(self) -> int:
        return len(self.yaw)

    def select(self, index: np.ndarray) -> "Solids":
        """The boxes of a boolean mask or an index array."""
        return Solids(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def join(parts: list["Solids"]) -> "Solids":
        """One set of boxes from several."""
        return Solids(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Solids)})


@dataclass
class SolidList:
    """Boxes while they are being collected, before they become arrays."""

    rows: list[tuple] = field(default_factory=list)

    def add(
        self,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        colour: tuple[float, float, float],
        texture: Texture = Texture.PLAIN,
        reflectance: float = 0.3,
    ) -> None:
        """Add the axis-aligned box between two opposite corners."""
        centre = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
        self.rows.append((centre, half, tuple(colour), int(texture), float(reflectance)))

    def build(self, owner: int = -1) -> Solids:
        """The collected boxes as arrays, with yaw 0."""
        count = len(self.rows)
        columns = list(zip(*self.rows, strict=True)) if count else [[], [], [], [], []]
        return Solids(
            centre=np.array(columns[0], np.float64).reshape(-1, 3),
            half=np.array(columns[1], np.float64).reshape(-1, 3),
            yaw=np.zeros(count),
            colour=np.array(columns[2], np.float32).reshape(-1, 3),
            texture=np.array(columns[3], np.uint8),
            reflectance=np.array(columns[4], np.float32),
            owner=np.full(count, owner, np.int32),
        )


@dataclass(frozen=True)
class Street:
    """A straight street through the whole district.

    axis 0 runs along x at y = offset, axis 1 along y at x = offset. lanes counts the lanes of one direction.
    """

    axis: int
    offset: float
    lanes: int
    strip: bool
    walkway: float

    @property
    def half_lanes(self) -> float:
        """Half the width of the lanes, metres."""
        return self.lanes * LANE_WIDTH

    @property
    def half_road(self) -> float:
        """Half the width from kerb to kerb, metres."""
        return self.half_lanes + (STRIP_WIDTH if self.strip else 0.0)

    def point(self, along: float, across: float) -> tuple[float, float]:
        """Town point from the distance along the street and the distance to the left of its axis direction."""
        return (along, self.offset + across) if self.axis == 0 else (self.offset - across, along)

    def rectangle(self, start: float, end: float, right: float, left: float) -> Polygon:
        """Rectangle between two distances along and two distances to the left."""
        (x0, y0), (x1, y1) = self.point(start, right), self.point(end, left)
        return box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))

    @property
    def heading(self) -> float:
        """Yaw of the axis direction, radians."""
        return 0.0 if self.axis == 0 else np.pi / 2


@dataclass(frozen=True)
class Lane:
    """A driving lane's centre line over the whole district: right-hand traffic."""

    street: Street
    direction: int  # +1 along the axis, -1 against it
    across: float  # metres to the left of the axis
    kerb: bool  # the outermost lane of its direction

    @property
    def heading(self) -> float:
        """Driving direction, radians."""
        return self.street.heading + (0.0 if self.direction > 0 else np.pi)


@dataclass
class Town:
    """A district: its map layers, the standing solids, and the places where traffic can be put.

    layers maps a nuScenes map layer to shapely geometries. Spots are rows (x, y, yaw): `bay` for cars, `dock` for
    long vehicles, `site` for building machines. walks are segments (x0, y0, x1, y1) that pedestrians follow.
    """

    streets: list[Street]
    lanes: list[Lane] = field(default_factory=list)
    layers: dict[str, list] = field(default_factory=dict)
    surfaces: list[tuple[Ground, Polygon]] = field(default_factory=list)
    solids: SolidList = field(default_factory=SolidList)
    spots: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    walks: list[tuple[float, float, float, float]] = field(default_factory=list)
    crossings: list[tuple[float, float, float, float]] = field(default_factory=list)
    edges: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, yaw along a kerb or a site's front

    def ground(self) -> np.ndarray:
        """Rasterise the surfaces: uint8 Ground values, Y X, cell (0, 0) at the minimum of x and y."""
        side = round(2 * HALF_SIZE / GROUND_CELL)
        image = Image.new("L", (side, side), int(Ground.GRASS))
        draw = ImageDraw.Draw(image)
        for ground, polygon in self.surfaces:
            x0, y0, x1, y1 = (np.array(polygon.bounds) + HALF_SIZE) / GROUND_CELL
            draw.rectangle([round(x0), round(y0), max(round(x1) - 1, round(x0)), max(round(y1) - 1, round(y0))], ground)
        return np.asarray(image)  # Y X

    def add_layer(self, name: str, geometry: Polygon | LineString) -> None:
        """Append one geometry to a map layer."""
        self.layers.setdefault(name, []).append(geometry)


def build_town(rng: np.random.Generator) -> Town:
    """Draw a district: three streets each way, their furniture, and the plots between them."""
    streets = [
        Street(
            axis=axis,
            offset=float(base + rng.uniform(-6, 6)),
            lanes=int(rng.integers(1, 3)) if base else 2,
            strip=bool(rng.random() < 0.6),
            walkway=float(rng.uniform(2.8, 4.0)),
        )
        for axis in (0, 1)
        for base in (-84.0, 0.0, 84.0)
    ]
    town = Town(streets=streets)
    _pave_blocks(town, rng)
    for street in streets:
        _pave_street(town, street)
    roads = [s.rectangle(-HALF_SIZE, HALF_SIZE, -s.half_road, s.half_road) for s in streets]
    town.layers["drivable_area"] = [unary_union(roads)]
    for street in streets:
        _mark_street(town, street, rng)
    return town


def _crossing_spans(town: Town, street: Street) -> list[tuple[float, float]]:
    """Where the streets of the other axis cut this one: (start, end) along it, in order."""
    others = [s for s in town.streets if s.axis != street.axis]
    return sorted((s.offset - s.half_road, s.offset + s.half_road) for s in others)


def _pieces(town: Town, street: Street) -> list[tuple[float, float]]:
    """The stretches of a street between its crossings."""
    spans = _crossing_spans(town, street)
    starts = [-HALF_SIZE] + [end for _, end in spans]
    ends = [start for start, _ in spans] + [HALF_SIZE]
    return list(zip(starts, ends, strict=True))


def _pave_street(town: Town, street: Street) -> None:
    """Asphalt, lanes, blocks and segments of one street."""
    town.surfaces.append((Ground.ASPHALT, street.rectangle(-HALF_SIZE, HALF_SIZE, -street.half_road, street.half_road)))
    for direction in (1, -1):
        for number in range(street.lanes):
            across = -direction * (number + 0.5) * LANE_WIDTH
            town.lanes.append(Lane(street, direction, across, kerb=number == street.lanes - 1))
    for start, end in _crossing_spans(town, street):
        if street.axis == 0:
            town.add_layer("road_segment", street.rectangle(start, end, -street.half_road, street.half_road))
        for lane in (lane for lane in town.lanes if lane.street is street):
            half = LANE_WIDTH / 2
            town.add_layer("lane_connector", street.rectangle(start, end, lane.across - half, lane.across + half))
    for start, end in _pieces(town, street):
        town.add_layer("road_segment", street.rectangle(start, end, -street.half_road, street.half_road))
        town.add_layer("road_block", street.rectangle(start, end, -street.half_lanes, 0.0))
        town.add_layer("road_block", street.rectangle(start, end, 0.0, street.half_lanes))
        for lane in (lane for lane in town.lanes if lane.street is street):
            half = LANE_WIDTH / 2
            town.add_layer("lane", street.rectangle(start, end, lane.across - half, lane.across + half))


def _mark_street(town: Town, street: Street, rng: np.random.Generator) -> None:
    """Dividers, parking strips, crossings and stop lines of one street."""
    for start, end in _pieces(town, street):
        first, last = start > -HALF_SIZE + 1, end < HALF_SIZE - 1
        begin, finish = start + (7.0 if first else 0.0), end - (7.0 if last else 0.0)
        _mark_dividers(town, street, begin, finish)
        if street.strip:
            _mark_strips(town, street, begin + 2.0, finish - 2.0)
        if first:
            _mark_crossing(town, street, start + 1.0, toward=-1, rng=rng)
        if last:
            _mark_crossing(town, street, end - 1.0, toward=1, rng=rng)
        for side in (-1, 1):
            for along in np.arange(begin + 3.0, finish - 3.0, 14.0):
                x, y = street.point(float(along), side * (street.half_road + 0.5))
                town.solids.add((x - 0.08, y - 0.08, 0.0), (x + 0.08, y + 0.08, 6.0), (0.35, 0.36, 0.38))
            kerb = side * (street.half_road - 0.7)
            for along in np.arange(begin, finish, 2.8):
                town.edges.append((*street.point(float(along), kerb), street.heading))


def _mark_dividers(town: Town, street: Street, begin: float, finish: float) -> None:
    """The solid line between the directions and the dashed lines between lanes of one direction."""
    town.add_layer("road_divider", LineString([street.point(begin, 0.0), street.point(finish, 0.0)]))
    town.surfaces.append((Ground.DIVIDER, street.rectangle(begin, finish, -0.2, 0.2)))
    for number in range(1, street.lanes):
        for side in (-1, 1):
            across = side * number * LANE_WIDTH
            town.add_layer("lane_divider", LineString([street.point(begin, across), street.point(finish, across)]))
            for along in np.arange(begin, finish - 2.0, 5.0):
                dash = street.rectangle(float(along), float(along) + 3.0, across - 0.1, across + 0.1)
                town.surfaces.append((Ground.STRIPE, dash))


def _mark_strips(town: Town, street: Street, begin: float, finish: float) -> None:
    """Kerbside parking strips with their bays."""
    for side in (-1, 1):
        near, far = side * street.half_lanes, side * street.half_road
        strip = street.rectangle(begin, finish, min(near, far), max(near, far))
        town.add_layer("carpark_area", strip)
        town.surfaces.append((Ground.CARPARK, strip))
        heading = street.heading + (0.0 if side < 0 else np.pi)
        for along in np.arange(begin + 3.0, finish - 3.0, 6.0):
            town.spots.setdefault("bay", []).append((*street.point(float(along), (near + far) / 2), heading))


def _mark_crossing(town: Town, street: Street, along: float, toward: int, rng: np.random.Generator) -> None:
    """A pedestrian crossing before (toward = 1) or after a junction, and the stop line of the lanes that drive in."""
    depth = float(rng.uniform(3.0, 3.8))
    start, end = sorted((along, along - toward * depth))
    half = street.half_road
    town.add_layer("ped_crossing", street.rectangle(start, end, -half, half))
    for across in np.arange(-half + 0.3, half - 0.3, 1.0):
        town.surfaces.append((Ground.STRIPE, street.rectangle(start, end, float(across), float(across) + 0.5)))
    middle = (start + end) / 2
    town.crossings.append((*street.point(middle, -half - 1.5), *street.point(middle, half + 1.5)))
    line = along - toward * (depth + 1.0)
    right, left = (-street.half_lanes, 0.0) if toward > 0 else (0.0, street.half_lanes)
    stop = street.rectangle(min(line, line - toward * 0.6), max(line, line - toward * 0.6), right, left)
    town.add_layer("stop_line", stop)
    town.surfaces.append((Ground.STRIPE, stop))


def _pave_blocks(town: Town, rng: np.random.Generator) -> None:
    """Walkways around every block of plots, and the plots."""
    vertical = [s for s in town.streets if s.axis == 1]
    horizontal = [s for s in town.streets if s.axis == 0]
    for x0, x1, west, east in _gaps(vertical):
        for y0, y1, south, north in _gaps(horizontal):
            inner = [x0 + west, y0 + south, x1 - east, y1 - north]
            sides = [
                (west, (x0, y0, x0 + west, y1), (x0 + west / 2, y0, x0 + west / 2, y1)),
                (east, (x1 - east, y0, x1, y1), (x1 - east / 2, y0, x1 - east / 2, y1)),
                (south, (x0, y0, x1, y0 + south), (x0, y0 + south / 2, x1, y0 + south / 2)),
                (north, (x0, y1 - north, x1, y1), (x0, y1 - north / 2, x1, y1 - north / 2)),
            ]
            for width, bounds, walk in sides:
                if width:
                    town.add_layer("walkway", box(*bounds))
                    town.surfaces.append((Ground.WALKWAY, box(*bounds)))
                    town.walks.append(walk)
            _plant_block(town, rng, *inner)


def _gaps(streets: list[Street]) -> list[tuple[float, float, float, float]]:
    """The intervals between parallel streets: (start, end, walkway width at start, at end)."""
    # A street of axis 0 lies at y = offset, one of axis 1 at x = offset: either way the gap is along that coordinate.
    ordered = sorted(streets, key=lambda s: s.offset)
    starts = [(-HALF_SIZE, 0.0)] + [(s.offset + s.half_road, s.walkway) for s in ordered]
    ends = [(s.offset - s.half_road, s.walkway) for s in ordered] + [(HALF_SIZE, 0.0)]
    return [(a, b, wa, wb) for (a, wa), (b, wb) in zip(starts, ends, strict=True)]


def _plant_block(town: Town, rng: np.random.Generator, x0: float, y0: float, x1: float, y1: float) -> None:
    """Cut a block into plots and give each one its use."""
    sides = PLOT if rng.random() < 0.5 else PLOT[::-1]
    columns, rows = max(1, round((x1 - x0) / sides[0])), max(1, round((y1 - y0) / sides[1]))
    width, height = (x1 - x0) / columns, (y1 - y0) / rows
    corners = [(x0 + i * width, y0 + j * height) for i in range(columns) for j in range(rows)]
    # Open plots tend to lie by the middle streets, where the ego vehicle drives and can look into them.
    depth = [min(abs(x + width / 2), abs(y + height / 2)) + rng.uniform(0, 16) for x, y in corners]
    uses = list(rng.permutation(["dock", "site", "lot"])) + ["dock", "building", "building"]
    plant = {"building": _plant_building, "lot": _plant_lot, "dock": _plant_dock, "site": _plant_site}
    for number, index in enumerate(np.argsort(depth)):
        x, y = corners[index]
        use = plant[uses[number % len(uses)]] if rng.random() < 0.9 else _plant_park
        use(town, rng, (x, y, x + width, y + height))


def _plant_building(town: Town, rng: np.random.Generator, plot: tuple[float, float, float, float]) -> None:
    """One or two houses on a paved plot."""
    x0, y0, x1, y1 = plot
    town.surfaces.append((Ground.PLAZA, box(*plot)))
    margin = rng.uniform(2.0, 6.0, 4)
    x0, y0, x1, y1 = x0 + margin[0], y0 + margin[1], x1 - margin[2], y1 - margin[3]
    split = (x0 + x1) / 2 + rng.uniform(-3, 3) if rng.random() < 0.5 else x1
    palette = np.array([[62, 38, 30], [72, 68, 58], [52, 55, 60], [80, 74, 62], [45, 36, 33]]) / 100
    for left, right in ((x0, split), (split, x1)):
        if right - left > 3.0:
            colour = palette[rng.integers(len(palette))] * rng.uniform(0.85, 1.1)
            roof, shine = float(rng.uniform(5, 17)), float(rng.uniform(0.2, 0.5))
            town.solids.add((left, y0, 0.0), (right, y1, roof), tuple(colour), Texture.FACADE, shine)


def _plant_lot(town: Town, rng: np.random.Generator, plot: tuple[float, float, float, float]) -> None:
    """A car park: rows of bays along x or y."""
    x0, y0, x1, y1 = _inset(plot, 0.6)
    _lay_carpark(town, (x0, y0, x1, y1))
    rows = [0.13, 0.87] if (y1 - y0) < 22 else [0.11, 0.5, 0.89]
    for number, share in enumerate(rows):
        y = y0 + share * (y1 - y0)
        for x in np.arange(x0 + 1.8, x1 - 1.6, 3.0):
            yaw = np.pi / 2 if number % 2 else -np.pi / 2
            town.spots.setdefault("bay", []).append((float(x), float(y), yaw))
            line = box(x - 1.5, y - 2.4, x - 1.4, y + 2.4)
            town.surfaces.append((Ground.STRIPE, line))


def _plant_dock(town: Town, rng: np.random.Generator, plot: tuple[float, float, float, float]) -> None:
    """A yard for long vehicles, its bays along x or y."""
    x0, y0, x1, y1 = _inset(plot, 0.6)
    _lay_carpark(town, (x0, y0, x1, y1))
    spots = town.spots.setdefault("dock", [])
    along_y = x1 - x0 > y1 - y0  # the bays stand across the longer side
    start, end, low, high = (x0, x1, y0, y1) if along_y else (y0, y1, x0, x1)
    for side, middle in enumerate((low + 7.0, high - 7.0)):
        if side and high - low < 27:
            break
        for position in np.arange(start + 2.6, end - 2.2, 5.2):
            yaw = (np.pi / 2 if side else -np.pi / 2) if along_y else (0.0 if side else np.pi)
            spots.append((float(position), middle, yaw) if along_y else (middle, float(position), yaw))


def _plant_site(town: Town, rng: np.random.Generator, plot: tuple[float, float, float, float]) -> None:
    """A building site: bare earth, machines in any direction, edges along which barriers and cones stand."""
    x0, y0, x1, y1 = _inset(plot, 0.4)
    town.surfaces.append((Ground.DIRT, box(x0, y0, x1, y1)))
    for x in np.arange(x0 + 5.0, x1 - 4.0, 8.0):
        for y in np.arange(y0 + 5.0, y1 - 4.0, 8.0):
            spot = (float(x + rng.uniform(-1, 1)), float(y + rng.uniform(-1, 1)), float(rng.uniform(-np.pi, np.pi)))
            town.spots.setdefault("site", []).append(spot)
    for x in np.arange(x0 + 1.5, x1 - 1.0, 2.7):
        town.edges.extend([(float(x), y0 + 0.5, 0.0), (float(x), y1 - 0.5, 0.0)])
    for y in np.arange(y0 + 1.5, y1 - 1.0, 2.7):
        town.edges.extend([(x0 + 0.5, float(y), np.pi / 2), (x1 - 0.5, float(y), np.pi / 2)])


def _plant_park(town: Town, rng: np.random.Generator, plot: tuple[float, float, float, float]) -> None:
    """A lawn with trees: a trunk and a crown of two boxes each."""
    x0, y0, x1, y1 = _inset(plot, 2.5)
    for _ in range(int(rng.integers(5, 9))):
        x, y = float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1))
        height, crown = float(rng.uniform(4.5, 8.0)), float(rng.uniform(1.0, 1.9))
        green = tuple(np.array([0.20, 0.42, 0.16]) * rng.uniform(0.8, 1.3))
        town.solids.add((x - 0.15, y - 0.15, 0.0), (x + 0.15, y + 0.15, 2.4), (0.33, 0.24, 0.17), reflectance=0.2)
        town.solids.add((x - crown, y - crown, 2.2), (x + crown, y + crown, height - 0.8), green, Texture.FOLIAGE, 0.35)
        small, top = crown * 0.6, height - 0.8
        town.solids.add((x - small, y - small, top), (x + small, y + small, height), green, Texture.FOLIAGE, 0.35)


def _lay_carpark(town: Town, bounds: tuple[float, float, float, float]) -> None:
    """Pave a car park and enter it into the map."""
    town.surfaces.append((Ground.CARPARK, box(*bounds)))
    town.add_layer("carpark_area", box(*bounds))


def _inset(plot: tuple[float, float, float, float], margin: float) -> tuple[float, float, float, float]:
    """A rectangle made smaller by a margin on each side."""
    return plot[0] + margin, plot[1] + margin, plot[2] - margin, plot[3] - margin
