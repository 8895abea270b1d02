"""Splits of scenes: the devkit's own and those of `splits.json` beside the tables, held to the scenes that are there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vexkd.data import file_kinds
from vexkd.errors import InputError

# The splits of the devkit that it scores in versions with an ending.
OFFICIAL = {
    "mini": ("mini_train", "mini_val"),
    "trainval": ("train", "val", "train_detect", "train_track"),
    "test": ("test",),
}


def read(root: Path, version: str, scenes: Iterable[str]) -> dict[str, list[str]]:
    """Split name -> names of its scenes among `scenes`, the version's own.

    The mini splits belong to versions that end in "mini", test to "test", train and val (and their halves) to
    "trainval", as in the devkit; a version with another ending knows them all. Raises InputError if `splits.json` is no
    list of scenes a split, names a scene that is not there or one twice, holds an empty split, or gives other scenes to a
    split that nuScenes defines.
    """
    from nuscenes.utils.splits import create_splits_scenes  # slow to import: it loads the whole devkit

    scenes = list(scenes)
    present = set(scenes)
    official = {name: list(members) for name, members in create_splits_scenes().items()}
    names = next((names for ending, names in OFFICIAL.items() if version.endswith(ending)), tuple(official))
    known = {name: [s for s in members if s in present] for name, members in official.items() if name in names}
    path = Path(root) / version / "splits.json"
    if path.is_file():
        for name, members in _custom(path).items():
            _check(path, name, members, scenes, official)
            known.setdefault(name, members)
    return known


def require(splits: dict[str, list[str]], name: str, version: str) -> None:
    """Raises InputError that names the splits with scenes if `name` is none of them."""
    known = [split for split, scenes in splits.items() if scenes]
    if name not in known:
        raise InputError(f"split {name!r} has no samples in {version}: choose one of {', '.join(known) or 'none'}.")


def _custom(path: Path) -> dict[str, list[str]]:
    """The content of splits.json, once it is known to be lists of names by name."""
    form = 'a splits.json holds {"split": ["scene-0001", ...]}: correct or remove it'
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend its permissions or its disk.") from None
    except json.JSONDecodeError as error:
        seen = file_kinds.seen(path, "{") or f"no JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        raise InputError(f"{path} is {seen}; {form}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is {file_kinds.seen(path, '{') or 'no JSON in UTF-8'}; {form}.") from None
    if twice:
        raise InputError(f"{path} defines split {twice[0]!r} twice: give each split one name.")
    if not isinstance(content, dict):
        raise InputError(f"{path} is not of the form {{...}}; {form}.")
    for name, members in content.items():
        if not name or not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise InputError(f"{path}: split {name!r} is no list of scene names; {form}.")
    return content


def _check(path: Path, name: str, members: list[str], scenes: list[str], official: dict[str, list[str]]) -> None:
    """Raises InputError for a split that cannot be what its author means."""
    if name in official:
        if set(members) == set(official[name]):
            return
        raise InputError(
            f"{path}: split {name!r} is nuScenes' own and scored as such; give yours, with other scenes, another name."
        )
    if not members:
        raise InputError(f"{path}: split {name!r} has no scenes; list some or remove it.")
    repeated = next((scene for scene in members if members.count(scene) > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: split {name!r} names {repeated} twice; list each scene once.")
    lost = next((scene for scene in members if scene not in scenes), None)
    if lost is not None:
        near = difflib.get_close_matches(lost, scenes, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"scene.json of {path.parent.name} has none like it."
        raise InputError(f"{path}: split {name!r} names scene {lost!r}, which is not there; {hint}")
