"""Annotations, read from nuScenes' tables into columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexkd import boxes as box_tools
from vexkd.data import tables
from vexkd.data.frames import Samples, refuse_nan
from vexkd.errors import InputError


@dataclass
class Annotations:
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
    def read(cls, root: Path, version: str, samples: Samples) -> Annotations:
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
    def _assemble(cls, tokens: list[str], columns: dict[str, list[Any]]) -> Annotations:
        where = {token: i for i, token in enumerate(tokens)}
        numbers = np.array(columns["numbers"], dtype=np.float64).reshape(-1, 10)
        turned = np.where((numbers[:, 6:] == 0).all(axis=1), np.nan, 0.0)
        refuse_nan("sample_annotation", tokens, numbers + turned[:, None])
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
