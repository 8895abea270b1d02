"""What is wrong with the content of one file: a LiDAR sweep, an image, a mask, a radar file, a map expansion.

Each check takes the bytes and returns the problem in words, or "" where there is none.
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

from vexkd import boxes as box_tools
from vexkd.data.images import kind_problem
from vexkd.data.points import POINT_BYTES

MAX_GAP = np.deg2rad(3.0)  # widest sector that a whole sweep may leave empty


def lidar_problem(data: bytes, boxes: np.ndarray | None = None, counts: np.ndarray | None = None) -> str:
    """What is wrong with the content of a LiDAR file, or "".

    boxes (M, 9) and counts (M,) are a keyframe's annotations in the LiDAR frame with the point counts of the table.

    Checked: a whole number of points; finite values; whole ring numbers; whole columns, if the rings go round and round
    (nuScenes stores 32 rings a firing, so only 1 in 32 cuts at a point leaves whole columns); a full turn, since a
    sweep is stored in firing order and a cut one lacks its last sector; the points that the table counts in the boxes.
    Not seen without a manifest: a cut by whole columns narrower than about 4 degrees (1.3 % of the points of a real
    keyframe; the ego motion makes the end of a sweep overlap its beginning a little), and, in a set that stores ring
    after ring, the loss of some top rings from a sweep that is no keyframe.
    """
    if not data:
        return "the file is empty"
    if len(data) % POINT_BYTES:
        return f"{len(data)} bytes are not a whole number of {POINT_BYTES}-byte points"
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 5)
    if not np.isfinite(points).all():
        return f"{int((~np.isfinite(points)).any(axis=1).sum())} points are not finite"
    ring = points[:, 4]
    if (ring < 0).any() or (ring > 255).any() or (ring != np.floor(ring)).any():
        return "the ring column does not hold ring numbers"
    rings = _rings_of_columns(ring)
    if rings and len(points) % rings:
        return f"the file is cut: {len(points)} points are not whole columns of {rings} rings"
    problem = _turn_problem(points) or (_seam_problem(points.reshape(-1, rings, 5)) if rings else "")
    if not problem and boxes is not None and counts is not None:
        problem = _count_problem(points, boxes, counts)
    return problem


def _rings_of_columns(ring: np.ndarray) -> int:
    """R, if the rings go 0..R-1 again and again (nuScenes: a firing of all lasers is a column), otherwise 0."""
    rings = int(ring.max()) + 1
    cyclic = rings > 1 and len(ring) > 16 * rings and np.array_equal(ring, np.arange(len(ring)) % rings)
    return rings if cyclic else 0


def _turn_problem(points: np.ndarray) -> str:
    """Echoes from beyond a metre must leave no wide sector empty."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    azimuth = np.sort(np.arctan2(y, x)[x * x + y * y > 1])
    if len(azimuth) < 2:
        return "the file is cut: hardly any point lies beyond 1 m"
    gap = np.diff(np.append(azimuth, azimuth[0] + 2 * np.pi)).max()
    if gap > MAX_GAP:
        return f"the file is cut: a sector of {np.rad2deg(gap):.0f} degrees holds no point of its {len(points)}"
    return ""


def _seam_problem(columns: np.ndarray) -> str:
    """Columns (columns, rings, 5) in firing order: the last ones must look where the first ones began to look.

    Only echoes beyond 10 m are used, as the ego motion shifts the bearing of near ones. Finer than `_turn_problem`,
    which the overlap of near echoes can hide a gap from.
    """
    x, y = columns[..., 0].astype(np.float64), columns[..., 1].astype(np.float64)
    bearing = np.where(np.hypot(x, y) > 10, np.exp(1j * np.arctan2(y, x)), 0)  # columns rings
    head, before, tail = (part.sum() for part in (bearing[:4], bearing[-8:-4], bearing[-4:]))
    if min(abs(head), abs(before), abs(tail)) < 4:
        return ""
    turn = np.sign(np.angle(tail / before))
    gap = turn * np.angle(head / tail)
    if gap > MAX_GAP + np.deg2rad(1.5):  # the middles of four columns are compared
        return f"the file is cut: its last columns stop {np.rad2deg(gap):.0f} degrees before the first ones"
    return ""


def _count_problem(
    points: np.ndarray, boxes: np.ndarray, counts: np.ndarray, least: int = 10, margin: float = 0.3
) -> str:
    """A box for which the table counts `least` points or more must hold at least half of them."""
    for row in np.flatnonzero(counts >= least):
        inside = int(box_tools.points_inside(points, boxes[row], margin).sum())
        if 2 * inside < counts[row]:
            return (
                f"a box holds {inside} points where the table counts {counts[row]}: the file is cut, or boxes, poses or "
                "calibration in the tables are wrong"
            )
    return ""


def image_problem(data: bytes, size: tuple[int, int]) -> str:
    """What is wrong with a JPEG that the tables say has `size` (width, height), or ""."""
    if not data:
        return "the file is empty"
    try:
        with Image.open(io.BytesIO(data)) as image:
            found, kind = image.size, kind_problem(image)
            image.draft("RGB", (found[0] // 8, found[1] // 8))  # reads the whole stream, but computes few pixels
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        return f"the image cannot be decoded ({error})"
    if not data.rstrip(b"\0").endswith(b"\xff\xd9") and data.startswith(b"\xff\xd8"):
        return "the image is cut: its end marker is missing"
    if kind:
        return f"the image {kind}"
    if found != tuple(size):
        return f"the image is {found[0]}x{found[1]} instead of {size[0]}x{size[1]}"
    complaint = _decoder_complaint(data)
    return f"the image is damaged inside ({complaint})" if complaint else ""


def _decoder_complaint(data: bytes) -> str:
    """What libjpeg says of a JPEG that it decodes all the same, filling what it cannot read; "" if nothing.

    An eighth of the size is decoded: all of the stream is read. A hole of a few bytes may decode without a complaint.
    """
    if not data.startswith(b"\xff\xd8"):
        return ""
    import simplejpeg  # Pillow and OpenCV tell nobody

    try:
        simplejpeg.decode_jpeg(data, min_height=1, min_width=1, min_factor=1, strict=True)
    except ValueError as error:
        return str(error).strip()
    return ""


def png_problem(data: bytes) -> str:
    """What is wrong with a PNG, or "": every chunk's checksum, without decoding (nuScenes' map masks are huge)."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "the file is not a PNG image"
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = memoryview(data)[position + 4 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if zlib.crc32(body).to_bytes(4, "big") != checksum:
            return "the image is cut or damaged"
        position += 12 + length
        if body[:4] == b"IEND":
            return ""
    return "the image is cut"


def radar_problem(data: bytes) -> str:
    """What is wrong with a binary PCD file, or "": its header must promise no more than the file holds."""
    head, mark, body = data.partition(b"DATA binary\n")
    if not mark:
        return "the file is not a binary PCD file" if data else "the file is empty"
    try:
        header = {line.split()[0]: line.split()[1:] for line in head.decode("ascii").splitlines() if line.strip()}
        fields = zip(header["SIZE"], header.get("COUNT", ["1"] * len(header["SIZE"])), strict=True)
        needed = int(header["POINTS"][0]) * sum(int(size) * int(count) for size, count in fields)
    except (KeyError, ValueError, IndexError):
        return "the PCD header is damaged"
    return "" if len(body) >= needed else f"the file is cut: {len(body)} bytes of points instead of {needed}"
