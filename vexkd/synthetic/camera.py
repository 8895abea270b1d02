"""The camera renderer: the same town and actors through a pinhole, one ray a pixel, the nearest surface wins.

Dimension letters: H W image, N solids, M pixels of one texture. Camera frame as in nuScenes: x right, y down,
z forward; pixel (column, row) covers image coordinates [column, column + 1) x [row, row + 1).
"""

from dataclasses import dataclass

import numpy as np

from vexkd.synthetic.lidar import Hits, cast, corners, footprint_distance, ground_at, rectangles_to_pairs
from vexkd.synthetic.town import Ground, Solids, Texture

NEAR = 0.1  # metres
SIGHT = 130.0  # metres beyond which solids are not drawn
GROUND_COLOUR = {
    Ground.GRASS: (0.33, 0.47, 0.22),
    Ground.ASPHALT: (0.27, 0.27, 0.29),
    Ground.WALKWAY: (0.62, 0.60, 0.57),
    Ground.STRIPE: (0.88, 0.88, 0.87),
    Ground.DIVIDER: (0.85, 0.70, 0.20),
    Ground.CARPARK: (0.40, 0.38, 0.42),
    Ground.DIRT: (0.52, 0.40, 0.27),
    Ground.PLAZA: (0.56, 0.50, 0.46),
}


@dataclass(frozen=True)
class Light:
    """The weather of a scene."""

    sun: np.ndarray  # 3, unit vector towards the sun
    brightness: float
    haze: float  # share of a surface's colour lost at 100 m
    sky: np.ndarray  # 3, RGB 0..1 at the horizon


@dataclass(frozen=True)
class Picture:
    """A rendered image with what stands behind each pixel."""

    rgb: np.ndarray  # H W 3 uint8
    distance: np.ndarray  # H W metres along the ray, infinite in the sky
    owner: np.ndarray  # H W index of the actor, -1 for town, ground and sky
    whole: np.ndarray  # one count an actor: the pixels it would cover if nothing hid it


@dataclass(frozen=True)
class Patch:
    """The pixels of one texture: where on which face of its solid each one lies, in the solid's own frame."""

    colour: np.ndarray  # M 3, the solid's paint
    face: np.ndarray  # M, as in Hits
    across: np.ndarray  # M, horizontal metres from the face's middle
    z: np.ndarray  # M, metres from the solid's middle
    across_half: np.ndarray  # M, half the face's width
    half: np.ndarray  # M 3, half the solid's sides


def draw_light(rng: np.random.Generator) -> Light:
    """A sunny to overcast day."""
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.2)
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    blue = rng.uniform(0.0, 1.0)
    sky = (1 - blue) * np.array([0.74, 0.76, 0.78]) + blue * np.array([0.66, 0.78, 0.92])
    return Light(sun=sun, brightness=float(rng.uniform(0.75, 1.1)), haze=float(rng.uniform(0.1, 0.4)), sky=sky)


def camera_rays(intrinsic: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Unit vectors through the pixel centres in the camera frame, float32 H*W 3."""
    width, height = size
    x = ((np.arange(width) + 0.5 - intrinsic[0, 2]) / intrinsic[0, 0]).astype(np.float32)
    y = ((np.arange(height) + 0.5 - intrinsic[1, 2]) / intrinsic[1, 1]).astype(np.float32)
    rays = np.ones((height, width, 3), np.float32)
    rays[..., 0], rays[..., 1] = x, y[:, None]
    rays /= np.sqrt(1 + x * x + (y * y)[:, None])[..., None]
    return rays.reshape(-1, 3)


def _outlines(
    solids: Solids, town_from_camera: np.ndarray, intrinsic: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image rectangles that cover the solids: first row, rows, first column, columns; N each."""
    width, height = size
    vertices = (corners(solids) - town_from_camera[:3, 3]) @ town_from_camera[:3, :3]  # N 8 3 in the camera frame
    pairs = np.array([(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit])  # the 12 edges
    start, end = vertices[:, pairs[:, 0]], vertices[:, pairs[:, 1]]
    depth = end[..., 2] - start[..., 2]
    share = (NEAR - start[..., 2]) / np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    cut = start + np.clip(share, 0, 1)[..., None] * (end - start)  # where an edge passes the near plane
    points = np.concatenate([vertices, cut], axis=1)  # N 20 3
    usable = points[..., 2] > NEAR - 1e-6
    z = np.maximum(points[..., 2], NEAR)
    u = intrinsic[0, 0] * points[..., 0] / z + intrinsic[0, 2]
    v = intrinsic[1, 1] * points[..., 1] / z + intrinsic[1, 2]
    bounds = []
    for value, limit in ((v, height), (u, width)):
        low = np.where(usable, value, np.inf).min(axis=1)
        high = np.where(usable, value, -np.inf).max(axis=1)
        first = np.floor(np.clip(low, 0, limit))
        last = np.ceil(np.clip(high, 0, limit))
        bounds += [first.astype(int), np.maximum(last - first, 0).astype(int)]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def render(
    solids: Solids,
    ground: np.ndarray,
    town_from_camera: np.ndarray,
    intrinsic: np.ndarray,
    size: tuple[int, int],
    light: Light,
    actors: int,
    rng: np.random.Generator,
) -> Picture:
    """Draw one image.

    town_from_camera is 4 4, intrinsic 3 3 for an image of size (width, height), actors the number of owners, whose
    pixels are counted; rng gives the sensor noise.
    """
    width, height = size
    origin = town_from_camera[:3, 3]
    rays = camera_rays(intrinsic, size) @ town_from_camera[:3, :3].T.astype(np.float32)  # H*W 3
    solids = solids.select(footprint_distance(solids, origin) < SIGHT)
    first_row, rows, first_column, columns = _outlines(solids, town_from_camera, intrinsic, size)
    hits = cast(solids, origin, rays, *rectangles_to_pairs(first_row, rows, first_column, columns, width))
    down = rays[:, 2]
    to_ground = np.where(down < -1e-4, np.float32(-origin[2]) / np.minimum(down, np.float32(-1e-4)), np.float32(np.inf))
    on_solid = hits.distance < to_ground
    distance = np.where(on_solid, hits.distance, to_ground)
    colour = _sky(rays, light)
    earth = np.flatnonzero(~on_solid & np.isfinite(to_ground))
    colour[earth] = _paint_ground(ground, origin, rays[earth], distance[earth], light)
    body = np.flatnonzero(on_solid)
    colour[body] = _paint_solids(solids, hits, origin, rays[body], body, light)
    far = np.where(np.isfinite(distance), distance, np.float32(0))  # the sky has its own colour
    haze = 1 - np.exp(far * np.float32(-light.haze / 100.0))[:, None]
    colour += (light.sky.astype(np.float32) - colour) * haze
    colour *= np.float32(light.brightness)
    colour += rng.standard_normal((len(colour), 1), np.float32) * np.float32(0.012)
    owner = np.full(len(rays), -1, np.int32)
    visible = solids.texture[hits.solid[body]] != Texture.SHADOW
    owner[body] = np.where(visible, solids.owner[hits.solid[body]], -1)
    return Picture(
        rgb=(np.clip(colour, 0, 1) * 255).astype(np.uint8).reshape(height, width, 3),
        distance=distance.reshape(height, width),
        owner=owner.reshape(height, width),
        whole=_whole_pixels(solids, hits, actors),
    )


def _whole_pixels(solids: Solids, hits: Hits, actors: int) -> np.ndarray:
    """Pixels that each actor covers, hidden ones included."""
    ray, solid = hits.touched.T
    owner = solids.owner[solid].astype(np.int64)
    counted = (owner >= 0) & (solids.texture[solid] != Texture.SHADOW)
    keys = np.unique(owner[counted] * len(hits.distance) + ray[counted])
    return np.bincount(keys // len(hits.distance), minlength=actors)


def _sky(rays: np.ndarray, light: Light) -> np.ndarray:
    """A sky that darkens upwards, H*W 3."""
    rise = np.clip(rays[:, 2:], 0, 0.6).astype(np.float32)
    return light.sky.astype(np.float32) * (1 - rise * np.array([0.9, 0.6, 0.25], np.float32))


def _paint_ground(
    ground: np.ndarray, origin: np.ndarray, rays: np.ndarray, distance: np.ndarray, light: Light
) -> np.ndarray:
    """Colours of the ground, with a grain that fades with distance."""
    x = origin[0] + rays[:, 0] * distance
    y = origin[1] + rays[:, 1] * distance
    table = np.array([GROUND_COLOUR[kind] for kind in Ground], np.float32)
    grain = _grain(x * 4.0, y * 4.0) / (1.0 + distance / 15.0)
    lit = 0.55 + 0.45 * light.sun[2]
    shade = (lit * (1.0 + 0.16 * grain)).astype(np.float32)[:, None]
    return table[ground_at(ground, x, y)] * shade


def _grain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A fixed pseudo-random value in -0.5..0.5 for each unit cell."""
    a, b = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    return ((a * 73856093 ^ b * 19349663) % 1021) / 1021.0 - 0.5


def _paint_solids(
    solids: Solids, hits: Hits, origin: np.ndarray, rays: np.ndarray, body: np.ndarray, light: Light
) -> np.ndarray:
    """Colours of the solids at the pixels `body`: texture times light by the face's normal."""
    solid, face = hits.solid[body], hits.face[body]
    axis, side = face // 2, np.where(face % 2, 1.0, -1.0)
    yaw = solids.yaw[solid]
    cos, sin = np.cos(yaw), np.sin(yaw)
    position = origin + rays * hits.distance[body, None] - solids.centre[solid]
    x, y, z = cos * position[:, 0] + sin * position[:, 1], cos * position[:, 1] - sin * position[:, 0], position[:, 2]
    half = solids.half[solid]
    normal_x = np.where(axis == 0, cos * side, np.where(axis == 1, -sin * side, 0.0))
    normal_y = np.where(axis == 0, sin * side, np.where(axis == 1, cos * side, 0.0))
    normal_z = np.where(axis == 2, side, 0.0)
    lit = 0.55 + 0.45 * np.clip(normal_x * light.sun[0] + normal_y * light.sun[1] + normal_z * light.sun[2], 0, 1)
    across = np.where(axis == 0, y, x)
    across_half = np.where(axis == 0, half[:, 1], half[:, 0])
    colour = solids.colour[solid].copy()
    texture = solids.texture[solid]
    for kind, paint in PAINTS.items():
        chosen = np.flatnonzero(texture == kind)
        if len(chosen):
            parts = (colour, face, across, z, across_half, half)
            colour[chosen] = paint(Patch(*(part[chosen] for part in parts)))
    return colour * lit.astype(np.float32)[:, None]


def _over(mask: np.ndarray, paint: tuple[float, float, float] | np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Colours M 3 with `paint` where the mask M holds."""
    return np.where(mask[:, None], np.asarray(paint, np.float32), colour)


def _paint_facade(p: Patch) -> np.ndarray:
    """Rows of windows on the walls, a darker roof."""
    up = p.z + p.half[:, 2]
    window = (np.mod(p.across + p.across_half, 2.4) > 1.0) & (np.mod(up, 3.0) > 1.2) & (np.mod(up, 3.0) < 2.6)
    window &= (p.face < 4) & (up > 1.0) & (up < 2 * p.half[:, 2] - 0.4)
    return _over(window, (0.22, 0.28, 0.34), _over(p.face == 5, p.colour * 0.6, p.colour))


def _paint_foliage(p: Patch) -> np.ndarray:
    """Leaves: a rough grain."""
    return p.colour * (1.0 + 0.7 * _grain(p.across * 5.0, p.z * 5.0)).astype(np.float32)[:, None]


def _paint_body(p: Patch) -> np.ndarray:
    """Paint with white lamps at the front, red ones at the rear, a dark sill."""
    up = p.z / p.half[:, 2]
    lamp = (np.abs(p.across) > 0.62 * p.across_half) & (up > -0.3) & (up < 0.45)
    colour = _over(up < -0.7, p.colour * 0.45, p.colour)
    colour = _over(lamp & (p.face == 1), (1.0, 1.0, 0.9), colour)
    return _over(lamp & (p.face == 0), (0.9, 0.05, 0.05), colour)


def _paint_glass(p: Patch) -> np.ndarray:
    """Glass between pillars, lighter above."""
    pillar = np.abs(p.across) > 0.93 * p.across_half
    pillar |= (p.face >= 2) & (p.face < 4) & (np.abs(p.across) < 0.05)
    return _over(pillar, (0.05, 0.05, 0.05), _over(p.z > 0, p.colour + 0.1, p.colour))


def _paint_coach(p: Patch) -> np.ndarray:
    """A band of windows all round, a white roof and a white stripe, a lit sign at the front."""
    up = p.z / p.half[:, 2]
    window = (up > 0.0) & (up < 0.68) & (p.face < 4) & (np.mod(p.across + p.across_half, 1.5) > 0.12)
    colour = _over(((up > -0.35) & (up < -0.2)) | (up > 0.9), (0.92, 0.92, 0.92), p.colour)
    colour = _over(window, (0.12, 0.16, 0.20), colour)
    sign = (p.face == 1) & (up > 0.72) & (up < 0.88) & (np.abs(p.across) < 0.6 * p.across_half)
    return _over(sign, (1.0, 0.8, 0.1), colour)


def _paint_cargo(p: Patch) -> np.ndarray:
    """A light box with a blue emblem on its sides and a red bar at the rear."""
    up = p.z / p.half[:, 2]
    emblem = (p.face >= 2) & (p.face < 4) & (np.abs(p.across) < 0.45 * p.across_half) & (np.abs(up) < 0.4)
    colour = _over(emblem, (0.15, 0.35, 0.75), p.colour)
    return _over((p.face == 0) & (up < -0.8), (0.85, 0.15, 0.12), colour)


def _paint_ribbed(p: Patch) -> np.ndarray:
    """A container's corrugation."""
    return _over((np.mod(p.across, 0.8) < 0.4) & (p.face < 4), p.colour * 0.7, p.colour)


def _paint_striped(p: Patch) -> np.ndarray:
    """Slanting stripes in white."""
    return _over(np.mod(p.across + p.z, 0.6) < 0.3, (0.93, 0.93, 0.93), p.colour)


PAINTS = {
    Texture.FACADE: _paint_facade,
    Texture.FOLIAGE: _paint_foliage,
    Texture.BODY: _paint_body,
    Texture.GLASS: _paint_glass,
    Texture.COACH: _paint_coach,
    Texture.CARGO: _paint_cargo,
    Texture.RIBBED: _paint_ribbed,
    Texture.STRIPED: _paint_striped,
}
