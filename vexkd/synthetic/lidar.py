"""Ray casting against the town, and the spinning LiDAR that uses it.

Rays meet upright boxes (slab test in each box's frame) and the ground plane z = 0. Only pairs of a box and a ray that
can meet are tried: the sensors hand in, for each box, the rectangle of their ray grid that its outline covers.
Dimension letters: R rays (beams times azimuths, row by row), N solids, P pairs of a solid and a ray.
"""

from dataclasses import dataclass

import numpy as np

from vexkd.synthetic.town import GROUND_CELL, HALF_SIZE, Ground, Solids, Texture

MAX_RANGE = 80.0  # metres
RANGE_NOISE = 0.015  # metres, one standard deviation
ELEVATIONS = (-30.67, 10.67)  # degrees, lowest and highest beam
GROUND_REFLECTANCE = {
    Ground.GRASS: 0.38,
    Ground.ASPHALT: 0.07,
    Ground.WALKWAY: 0.24,
    Ground.STRIPE: 0.60,
    Ground.DIVIDER: 0.60,
    Ground.CARPARK: 0.14,
    Ground.DIRT: 0.30,
    Ground.PLAZA: 0.20,
}


@dataclass(frozen=True)
class Hits:
    """What each of R rays meets first among the solids; distance is infinite and solid -1 where it meets none."""

    distance: np.ndarray  # R metres
    solid: np.ndarray  # R
    face: np.ndarray  # R, 0..5 for -x +x -y +y -z +z of the solid's own frame
    touched: np.ndarray  # P' 2: every (ray, solid) that meet, hidden ones included


def rectangles_to_pairs(
    first_row: np.ndarray, rows: np.ndarray, first_column: np.ndarray, columns: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (solid, ray) of one grid rectangle a solid; columns wrap round at width, rays count row by row."""
    counts = np.maximum(rows, 0) * np.maximum(columns, 0)
    solid = np.repeat(np.arange(len(counts)), counts)  # P
    start = np.cumsum(counts) - counts
    inside = (np.arange(len(solid)) - start[solid]).astype(np.int32)
    row, column = np.divmod(inside, np.maximum(columns, 1).astype(np.int32)[solid])
    column = (first_column.astype(np.int32)[solid] + column) % width
    return solid, (first_row.astype(np.int32)[solid] + row) * width + column


def cast(solids: Solids, origin: np.ndarray, directions: np.ndarray, solid_of: np.ndarray, ray_of: np.ndarray) -> Hits:
    """Nearest solid along each ray.

    origin is the sensor in the town frame (3), directions R 3 are unit vectors there; solid_of and ray_of (P) name the
    pairs to try.
    """
    cos, sin = (f(solids.yaw).astype(np.float32) for f in (np.cos, np.sin))
    offset = (origin - solids.centre).astype(np.float32)  # N 3
    half = solids.half.astype(np.float32)
    start = np.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]])
    low, high = -half.T - start, half.T - start  # 3 N
    ray = directions.astype(np.float32).T[:, ray_of]  # 3 P
    c, s = cos[solid_of], sin[solid_of]
    local = (c * ray[0] + s * ray[1], c * ray[1] - s * ray[0], ray[2])
    enter = np.full(len(ray_of), -np.inf, np.float32)
    leave = np.full(len(ray_of), np.inf, np.float32)
    face = np.zeros(len(ray_of), np.uint8)
    for axis, direction in enumerate(local):
        inverse = 1.0 / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
        a, b = low[axis][solid_of] * inverse, high[axis][solid_of] * inverse
        near = np.minimum(a, b)
        later = near > enter
        enter = np.where(later, near, enter)
        face = np.where(later, 2 * axis + (direction < 0), face)
        leave = np.minimum(leave, np.maximum(a, b))
    met = np.flatnonzero((enter < leave) & (enter > 0.05))
    return _nearest(len(directions), solid_of[met], ray_of[met], enter[met], face[met])


def _nearest(count: int, solid: np.ndarray, ray: np.ndarray, distance: np.ndarray, face: np.ndarray) -> Hits:
    """Keep the closest of the meetings of each ray."""
    nearest = np.full(count, np.inf, np.float32)
    np.minimum.at(nearest, ray, distance)
    first = np.flatnonzero(distance == nearest[ray])[::-1]  # on a tie the lowest solid is written last and stays
    owner, side = np.full(count, -1, np.int32), np.zeros(count, np.uint8)
    owner[ray[first]], side[ray[first]] = solid[first], face[first]
    return Hits(nearest, owner, side, np.stack([ray, solid], axis=1))


def ground_at(ground: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Ground values at town coordinates; grass outside the district."""
    column = np.floor((x + HALF_SIZE) / GROUND_CELL).astype(np.int32)
    row = np.floor((y + HALF_SIZE) / GROUND_CELL).astype(np.int32)
    side = ground.shape[0]
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return np.where(inside, ground[np.where(inside, row, 0), np.where(inside, column, 0)], np.uint8(Ground.GRASS))


def footprint_distance(solids: Solids, origin: np.ndarray) -> np.ndarray:
    """Horizontal distance from a point to each solid's outline, N; 0 above or inside it."""
    offset = origin[:2] - solids.centre[:, :2]
    cos, sin = np.cos(solids.yaw), np.sin(solids.yaw)
    x, y = cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]
    gap = np.maximum(np.abs(np.stack([x, y], axis=1)) - solids.half[:, :2], 0.0)
    return np.linalg.norm(gap, axis=1)


def corners(solids: Solids) -> np.ndarray:
    """The eight corners of each solid in the town frame, N 8 3; corner bits are x, y, z."""
    signs = np.array([[i & 1, (i >> 1) & 1, i >> 2] for i in range(8)]) * 2.0 - 1.0
    local = solids.half[:, None] * signs  # N 8 3
    cos, sin = np.cos(solids.yaw)[:, None], np.sin(solids.yaw)[:, None]
    x = cos * local[..., 0] - sin * local[..., 1]
    y = sin * local[..., 0] + cos * local[..., 1]
    return np.stack([x, y, local[..., 2]], axis=-1) + solids.centre[:, None]


def _covered_rays(
    solids: Solids, origin: np.ndarray, heading: float, elevations: np.ndarray, azimuths: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the solids and the LiDAR's rays within their outlines. Column 0 looks along heading."""
    near = np.maximum(footprint_distance(solids, origin), 0.3)
    vertices = corners(solids) - origin
    far = np.hypot(vertices[..., 0], vertices[..., 1]).max(axis=1)
    top = solids.centre[:, 2] + solids.half[:, 2] - origin[2]
    bottom = solids.centre[:, 2] - solids.half[:, 2] - origin[2]
    highest = np.arctan2(top, np.where(top > 0, near, far))
    lowest = np.arctan2(bottom, np.where(bottom > 0, far, near))
    first_row = np.searchsorted(elevations, lowest - 1e-4)
    rows = np.searchsorted(elevations, highest + 1e-4) - first_row
    middle = np.arctan2(solids.centre[:, 1] - origin[1], solids.centre[:, 0] - origin[0])
    angle = np.arctan2(vertices[..., 1], vertices[..., 0]) - middle[:, None]
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    step = 2 * np.pi / azimuths
    begin = np.floor((middle + angle.min(axis=1) - heading) / step).astype(int)
    end = np.ceil((middle + angle.max(axis=1) - heading) / step).astype(int) + 1
    around = near < 0.5
    begin, columns = np.where(around, 0, begin), np.where(around, azimuths, np.minimum(end - begin, azimuths))
    return rectangles_to_pairs(first_row, rows, begin % azimuths, columns, azimuths)


def sweep(
    solids: Solids,
    ground: np.ndarray,
    lidar_pose: tuple[np.ndarray, float],
    rng: np.random.Generator,
    beams: int,
    azimuths: int,
) -> np.ndarray:
    """One revolution, taken as a snapshot: float32 rows x, y, z (LiDAR frame, metres), intensity 0..255, ring,
    in firing order.

    lidar_pose is the sensor's position in the town frame (3) and the town yaw of its +y axis (forward). The beams
    rise from ring 0 evenly over ELEVATIONS, the azimuths begin at a random phase.
    """
    origin, forward = lidar_pose
    real = (solids.texture != Texture.SHADOW) & (footprint_distance(solids, origin) < MAX_RANGE)
    solids = solids.select(real)
    elevations = np.radians(np.linspace(*ELEVATIONS, beams))
    heading = forward + rng.uniform(0, 2 * np.pi / azimuths)
    azimuth = heading + np.arange(azimuths) * 2 * np.pi / azimuths
    flat = np.cos(elevations)[:, None]
    rise = np.broadcast_to(np.sin(elevations)[:, None], (beams, azimuths))
    directions = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), rise], axis=-1).reshape(-1, 3)
    hits = cast(solids, origin, directions, *_covered_rays(solids, origin, heading, elevations, azimuths))
    down = directions[:, 2]
    to_ground = np.where(down < -1e-3, -origin[2] / np.minimum(down, -1e-3), np.inf)
    on_solid = hits.distance < to_ground
    distance = np.where(on_solid, hits.distance, to_ground)
    seen = np.flatnonzero(distance < MAX_RANGE)
    on_solid, distance, directions = on_solid[seen], distance[seen], directions[seen]
    reflectance, facing = _echo(solids, hits, ground, origin, directions, distance, on_solid, seen)
    strength = reflectance * (0.3 + 0.7 * facing)
    kept = rng.random(len(seen)) < _detection_chance(strength, distance)
    distance = distance + rng.normal(0.0, RANGE_NOISE, len(seen))
    intensity = np.clip(strength * 255 * rng.uniform(0.85, 1.15, len(seen)), 0, 255)
    town = directions * distance[:, None]
    cos, sin = np.cos(forward), np.sin(forward)
    x, y = sin * town[:, 0] - cos * town[:, 1], cos * town[:, 0] + sin * town[:, 1]
    points = np.stack([x, y, town[:, 2], np.floor(intensity), seen // azimuths], axis=1)
    fired = np.argsort(
        seen[kept] % azimuths, kind="stable"
    )  # a real sensor writes column after column, all rings of each
    return points[kept][fired].astype(np.float32)


def _echo(
    solids: Solids,
    hits: Hits,
    ground: np.ndarray,
    origin: np.ndarray,
    directions: np.ndarray,
    distance: np.ndarray,
    on_solid: np.ndarray,
    seen: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance of the material that each seen ray meets and the cosine of its angle to the surface."""
    position = origin + directions * distance[:, None]
    table = np.array([GROUND_REFLECTANCE[kind] for kind in Ground])
    reflectance = table[ground_at(ground, position[:, 0], position[:, 1])]
    facing = np.sqrt(np.abs(directions[:, 2]))  # rough ground returns more at grazing angles than a mirror would
    solid = hits.solid[seen[on_solid]]
    reflectance[on_solid] = solids.reflectance[solid]
    axis = hits.face[seen[on_solid]] // 2
    angle = solids.yaw[solid] + np.where(axis == 1, np.pi / 2, 0.0)
    ray = directions[on_solid]
    across = np.abs(ray[:, 0] * np.cos(angle) + ray[:, 1] * np.sin(angle))
    facing[on_solid] = np.where(axis == 2, np.abs(ray[:, 2]), across)
    return reflectance, facing


def _detection_chance(strength: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Share of rays that return: dark and far surfaces are lost more often."""
    signal = strength * (60.0 / np.maximum(distance, 1.0)) ** 2
    return 0.98 * (1.0 - np.exp(-12.0 * signal))
