"""nuScenes' map expansion: the six classes of one location, read from its JSON file.

What is wrong with a file ends in one sentence that names the file, the layer and the token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely

from vexkd import provenance
from vexkd.data import file_kinds
from vexkd.errors import InputError
from vexkd.settings import MAP_CLASSES as CLASSES

LINES = ("road_divider", "lane_divider")
# Class -> the layers of the map expansion that it unites.
LAYERS = {name: LINES if name == "divider" else (name,) for name in CLASSES}
LINE_WIDTH = 1.0  # metres: the two pixels of BEVFusion's rasters at 0.5 m
OLDEST = (1, 3)  # the first map expansion with all the layers
Edges = Literal["published", "centre"]
_FARTHEST = 1e7  # metres from the origin of a map


@dataclass(frozen=True)
class Expansion:
    """The six classes of one location, in the global frame.

    shapes: class -> shapes; a shape is a list of rings (P, 2): the outline and its holes, or one open line.
    extents: class -> (M, 4) x0, y0, x1, y1 of each shape. open_lines: are dividers lines (else outlines of their width).
    """

    shapes: dict[str, list[list[np.ndarray]]]
    extents: dict[str, np.ndarray]
    open_lines: bool


class _Rows:
    """The rows of one layer by token; a row or a column that is not there is named."""

    def __init__(self, path: Path, layer: str, rows: list[Any]) -> None:
        self.path, self.layer = path, layer
        self._rows: dict[str, dict[str, Any]] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not isinstance(row.get("token"), str):
                raise self.damaged(f"row {number} of {layer} has no token")
            if row["token"] in self._rows:
                raise self.damaged(f"{layer} holds {row['token']} twice")
            self._rows[row["token"]] = row

    def __iter__(self) -> Iterable[dict[str, Any]]:
        return iter(self._rows.values())

    def damaged(self, what: str) -> InputError:
        """The one form of sentence about a row."""
        return InputError(f"{self.path} is damaged ({what}): {_cure(self.path)}.")

    def named(self, token: Any, by: str) -> dict[str, Any]:
        """The row of a token that another row names."""
        row = self._rows.get(token) if isinstance(token, str) else None
        if row is None:
            raise self.damaged(f"{by} names the {self.layer} {token!r:.60}, which is not there")
        return row

    def column(self, row: dict[str, Any], name: str, kind: type) -> Any:
        """A value of a row, if it is there and of its kind."""
        if not isinstance(row.get(name), kind):
            raise self.damaged(f"{self.layer} {row['token']} lacks {name}")
        return row[name]


def read_expansion(path: Path, *, edges: Edges = "published") -> Expansion:
    """The classes of one location's map expansion.

    Raises InputError that says what to do if the file is missing, older than 1.3, or damaged.
    """
    path = Path(path)
    content = _checked(path)
    nodes = _nodes(_Rows(path, "node", content["node"]))
    polygons, lines = (_Rows(path, name, content[name]) for name in ("polygon", "line"))
    shapes: dict[str, list[list[np.ndarray]]] = {}
    for name, layers in LAYERS.items():
        shapes[name] = []
        for layer in layers:
            rows = _Rows(path, layer, content[layer])
            for record in rows:
                by = f"{layer} {record['token']}"
                if layer in LINES:
                    line = lines.named(record.get("line_token"), by)
                    shapes[name] += _line(_ring(lines, line, "node_tokens", nodes), edges)
                    continue
                for token in _polygon_tokens(rows, record):
                    shapes[name] += _polygon(polygons, polygons.named(token, by), nodes, edges)
    extents = {
        name: np.array([[*shape[0].min(axis=0), *shape[0].max(axis=0)] for shape in found]).reshape(-1, 4)
        for name, found in shapes.items()
    }
    return Expansion(shapes, extents, open_lines=edges == "published")


def problem(path: Path) -> str:
    """What is wrong with a map expansion, in words; empty if all is well."""
    try:
        read_expansion(path)
    except InputError as error:
        words = str(error).removeprefix(f"{path} ").removesuffix(f": {_cure(path)}.")
        return "the map expansion " + words.replace("is map expansion ", "has version ")
    return ""


def checked_digest(path: Path) -> str:
    """SHA-256 of a usable map expansion file: all are looked at before the work begins."""
    read_expansion(path)
    return provenance.file_digest(path)


def _checked(path: Path) -> dict[str, Any]:
    """The file's content, once it is known to be a map expansion of 1.3 or later."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {_cure(path)}.") from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} is {file_kinds.seen(path, '{') or 'cut or damaged'}: {_cure(path)}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a map expansion: {_cure(path)}.")
    version = str(content.get("version", "1.0"))
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))
    if numbers < OLDEST:
        raise InputError(f"{path} is map expansion {version}, older than 1.3: {_cure(path)}.")
    tables = ("polygon", "line", "node", *(layer for layers in LAYERS.values() for layer in layers))
    missing = [name for name in tables if not isinstance(content.get(name), list)]
    if missing:
        raise InputError(f"{path} is damaged (it lacks {', '.join(missing)}): {_cure(path)}.")
    return content


def _cure(path: Path) -> str:
    """What mends a map expansion."""
    return f"download nuScenes' map expansion 1.3 or later and unpack it so that its files lie in {path.parent}"


def _nodes(rows: _Rows) -> dict[str, tuple[float, float]]:
    """Place of each node, in metres."""
    nodes = {}
    for row in rows:
        position = row.get("x"), row.get("y")
        if not all(type(v) in (int, float) and abs(v) < _FARTHEST for v in position):
            raise rows.damaged(f"node {row['token']} has no coordinates x and y")
        nodes[row["token"]] = position
    return nodes


def _ring(rows: _Rows, row: dict[str, Any], column: str, nodes: dict[str, tuple[float, float]]) -> np.ndarray:
    """Points (P, 2) of the nodes that a row lists in a column."""
    tokens = rows.column(row, column, list)
    for token in tokens:
        if not isinstance(token, str) or token not in nodes:
            raise rows.damaged(f"{rows.layer} {row['token']} names the node {token!r:.60}, which is not there")
    return np.array([nodes[token] for token in tokens], dtype=np.float64).reshape(-1, 2)


def _polygon_tokens(rows: _Rows, record: dict[str, Any]) -> list[Any]:
    """The polygons of a record: drivable areas have several."""
    if isinstance(record.get("polygon_tokens"), list):
        return record["polygon_tokens"]
    return [rows.column(record, "polygon_token", str)]


def _polygon(
    rows: _Rows, record: dict[str, Any], nodes: dict[str, tuple[float, float]], edges: Edges
) -> list[list[np.ndarray]]:
    """A polygon as outline and holes; none where it has no area, or crosses itself and the devkit leaves it out too."""
    outline = _ring(rows, record, "exterior_node_tokens", nodes)
    holes = []
    for hole in rows.column(record, "holes", list):
        if not isinstance(hole, dict) or not isinstance(hole.get("node_tokens"), list):
            raise rows.damaged(f"polygon {record['token']} has a hole without node_tokens")
        holes.append(_ring(rows, {**hole, "token": record["token"]}, "node_tokens", nodes))
    if len(outline) < 3:
        return []
    rings = [outline, *(hole for hole in holes if len(hole) >= 3)]
    if edges == "published" and not shapely.Polygon(rings[0], rings[1:]).is_valid:
        return []
    return [rings]


def _line(points: np.ndarray, edges: Edges) -> list[list[np.ndarray]]:
    """A line as it is, or as the outline of a band of its width."""
    if len(points) < 2:
        return []
    if edges == "published":
        return [[points]]
    band = shapely.buffer(shapely.LineString(points), LINE_WIDTH / 2, cap_style="flat")
    rings = [(part.exterior, *part.interiors) for part in shapely.get_parts(band) if not part.is_empty]
    return [[np.asarray(ring.coords)[:-1] for ring in part] for part in rings]
