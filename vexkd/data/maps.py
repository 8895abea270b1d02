"""BEV map labels (the task of BEVFusion's map segmentation): six classes, read from rasters that
`map_drawing` made once a sample from the map expansion.

A raster lies flat in the sample's LiDAR frame: a square of +-reach metres around the LiDAR, turned by the yaw of its x
axis, rows y and columns x, cell (0, 0) at the minimum. Labels under an augmentation are read from it. Two files:
`rasters.npy`, packed bits, memory-mapped; `index.parquet`, one row a sample. Letters: S samples, C classes, Y X cells.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from vexkd import geometry
from vexkd.data.expansions import Edges
from vexkd.data.indexed import open_indexed
from vexkd.errors import InputError
from vexkd.settings import MAP_CLASSES as CLASSES

SCHEMA = 1


def map_bytes(reach: float, cell: float) -> int:
    """Bytes of a sample's raster of +-reach metres, packed."""
    side = 2 * math.ceil(reach / cell - 1e-9)
    return len(CLASSES) * side * -(-side // 8)


class Maps:
    """Opened rasters, from which the labels of a sample are read under its augmentation.

    cell, reach: of the rasters, in metres; sha256: of their file. Raises InputError if the two files are missing, damaged,
    of another schema, or not of one build.
    """

    def __init__(self, directory: Path) -> None:
        directory = Path(directory)
        cure = "run vexkd maps again"
        self._rasters, index, recipe = open_indexed(
            directory, "rasters.npy", schema=SCHEMA, key="vexkd.maps", name="map rasters", cure=cure, plural=True
        )
        self.directory = directory
        self.cell, self.reach, self.edges = float(recipe["cell"]), float(recipe["reach"]), recipe["edges"]
        self.side, self.sha256 = round(2 * self.reach / self.cell), recipe["sha256"]
        shape = (index.num_rows, len(CLASSES), self.side, -(-self.side // 8))
        if self._rasters.shape != shape or self._rasters.dtype != np.uint8 or recipe["classes"] != list(CLASSES):
            raise InputError(f"{directory / 'rasters.npy'} does not belong to the index.parquet beside it: {cure}.")
        self._rows = dict(zip(index["token"].to_pylist(), index["row"].to_pylist(), strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, token: str) -> bool:
        return token in self._rows

    def __reduce__(self) -> tuple[type[Maps], tuple[Path]]:
        return Maps, (self.directory,)  # a spawned worker opens the files again instead of being sent the rasters

    def require(self, *, cell: float, edges: Edges) -> Maps:
        """These maps, or InputError where they were drawn otherwise than a run asks for."""
        if not math.isclose(self.cell, cell) or self.edges != edges:
            raise InputError(
                f"map rasters {self.directory} have cells of {self.cell:g} m and {self.edges} edges, but the run asks for "
                f"{cell:g} m and {edges}: run vexkd maps again."
            )
        return self

    def raster(self, token: str) -> np.ndarray:
        """The whole raster of a sample as it lies on disk, unpacked, (C, side, side) uint8."""
        return np.unpackbits(self._packed(token), axis=-1, count=self.side)

    def labels(self, token: str, lidar_augment: Any, grid: geometry.BevGrid) -> np.ndarray:
        """Labels (C, Y, X) uint8 of a sample in the grid of a model, under lidar_augment (4, 4), augmented from LiDAR.

        Each cell takes the class of the raster's cell that its centre comes from. Raises InputError where the grid
        reaches over the raster, for then a label would be made up.
        """
        rows, columns = self._sources(token, np.asarray(lidar_augment, dtype=np.float64), grid)
        packed = self._packed(token)[:, rows, columns >> 3]  # C Y X
        return (packed >> (7 - (columns & 7)).astype(np.uint8)) & 1

    def _packed(self, token: str) -> np.ndarray:
        """(C, side, side / 8) uint8, still on disk."""
        if token not in self._rows:
            raise InputError(f"sample {token} has no raster in {self.directory}: run vexkd maps again with its infos.")
        return self._rasters[self._rows[token]]

    def _sources(self, token: str, augment: np.ndarray, grid: geometry.BevGrid) -> tuple[np.ndarray, np.ndarray]:
        """Row and column (Y, X) of the raster's cell under the centre of each cell of the grid."""
        if np.abs(augment[:2, 2]).max() > 1e-6 or np.abs(augment[2, :2]).max() > 1e-6:
            raise InputError(f"the augmentation of sample {token} tilts the ground: a flat map cannot follow it.")
        height, width = grid.shape
        centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)  # Y X 2
        lidar_from_augmented = np.linalg.inv(augment[np.ix_([0, 1, 3], [0, 1, 3])])
        xy = grid.to_metres(centres) @ lidar_from_augmented[:2, :2].T + lidar_from_augmented[:2, 2]  # Y X 2
        cells = np.floor((xy + self.reach) / self.cell).astype(np.int64)
        if cells.min() < 0 or cells.max() >= self.side:
            raise InputError(
                f"labels of sample {token} come from {np.abs(xy).max():.1f} m around the LiDAR, but the rasters in "
                f"{self.directory} reach {self.reach:g} m: run vexkd maps again with a wider --reach."
            )
        return cells[..., 1], cells[..., 0]
