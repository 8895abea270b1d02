"""The one rule by which settings are laid one upon another, and where it is used.

A run is made of the blocks of defaults, its student's row if it is distilled, and its own row. A file that `extends` others
is laid upon them in the same way.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from vexkd.errors import InputError
from vexkd.settings.heads import HEADS
from vexkd.settings.messages import nearest, refuse_unknown, validated
from vexkd.settings.run import KINDS, Kind, Run
from vexkd.settings.yaml_text import read_yaml

ROW_KEYS = ("task", "sensors", "head", "fusion", "start", "student", "teacher")  # what only a row says
BLOCKS = tuple(name for name in Run.model_fields if name not in {*ROW_KEYS, "name", "kind"})
_ENTRIES = {*KINDS, "tables", "figures"}  # sections of which each entry is replaced as a whole, by its name
_WHOLE = {"reported", "floors"}  # sections that are replaced as a whole
_ALTERNATIVES = {"backbone", "neck", "view", "bev_encoder"}  # parts with a `kind`, each with settings of its own
_REFERENCES = (("student", "students"), ("teacher", "teachers"), ("start", "pretrained"))  # keys that name another run


def overlay(lower: dict[str, Any], upper: dict[str, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    """`upper` laid upon `lower`, sharing no containers with either: mappings merge key by key, all else is replaced.

    Replaced as a whole are also a row, table or figure by its name, what is published of rows, the numbers of pasted objects,
    and a part of another `kind`. at: the keys above, from the top of a file or a row.
    """
    merged = copy.deepcopy(lower)
    for key, value in upper.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        if both and not _replaces((*at, str(key)), below, value):
            merged[key] = overlay(below, value, (*at, str(key)))
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _replaces(at: tuple[str, ...], lower: dict[str, Any], upper: dict[str, Any]) -> bool:
    """Whether a mapping replaces another rather than being merged with it."""
    if len(at) == 1 and at[0] in _WHOLE or len(at) == 2 and at[0] in _ENTRIES or at[-1] == "counts":
        return True
    return at[-1] in _ALTERNATIVES and upper.get("kind") not in (None, lower.get("kind"))


def read(path: Path | str, above: tuple[Path, ...] = ()) -> Any:
    """The content of a settings file, laid upon the files that it extends; not checked further.

    `extends` is a file, or a list of them of which the first lies lowest. In place of its name, a file may be a mapping of
    `file` and `without`: sections, or entries of them as `students.NAME`, that are not taken over from it. Names are relative
    to the folder of the file that they stand in. above: the files that this one is read for.
    """
    path = Path(path)
    if path.resolve() in above:
        raise InputError(
            f"{path}: extends: the file extends itself, directly or through others; remove one of these keys."
        )
    content = read_yaml(path)
    if not isinstance(content, dict) or "extends" not in content:
        return content
    extended = content.pop("extends")
    merged: dict[str, Any] = {}
    for entry in extended if isinstance(extended, list) else [extended]:
        merged = overlay(merged, _read_extended(path, entry, (*above, path.resolve())))
    return overlay(merged, content)


def extends_others(path: Path | str) -> bool:
    """Whether a settings file extends others."""
    content = read_yaml(path)
    return isinstance(content, dict) and bool(content.get("extends"))


def _read_extended(path: Path, entry: Any, above: tuple[Path, ...]) -> dict[str, Any]:
    """What a settings file takes over from one that it extends."""
    named = entry if isinstance(entry, dict) else {"file": entry}
    without = named.get("without", [])
    if set(named) - {"file", "without"} or not isinstance(named.get("file"), str) or not isinstance(without, list):
        raise InputError(
            f"{path}: extends: it must name settings files, each as `FILE` or as `{{file: FILE, without: [SECTION, ...]}}`; "
            "write it so."
        )
    file = path.parent / named["file"]
    if not file.is_file():
        raise InputError(f"{path}: extends: there is no file {file}; name one that is there.")
    content = read(file, above)
    if not isinstance(content, dict):
        raise InputError(f"{file}: the settings must be a mapping of keys to values; correct the file.")
    for name in without:
        section, _, key = str(name).partition(".")
        holder, key = (content.get(section), key) if key else (content, section)
        if not isinstance(holder, dict) or key not in holder:
            raise InputError(f"{path}: extends.without: {file} has no {name}{nearest(str(name), content)}.")
        del holder[key]
    return content


def merged_run(
    name: str, kind: Kind, rows: dict[str, tuple[Kind, dict[str, Any]]], raw: dict[str, Any], path: str
) -> Run:
    """The run of one row: the blocks of defaults in `raw`, then its student's row, then its own.

    rows: all rows by name, each with its kind. Blocks that the run cannot use are left out. Raises InputError.
    """
    where, row = f"{kind}.{name}", rows[name][1]
    for key, group in _REFERENCES:
        target = row.get(key)
        if target is not None and (not isinstance(target, str) or rows.get(target, ("",))[0] != group):
            known = [other for other, (kind_of_other, _) in rows.items() if kind_of_other == group]
            raise InputError(
                f"{path}: {where}.{key}: there is no run '{target}' in {group}{nearest(str(target), known)}."
            )
    if kind == "distilled" and not (row.get("student") and row.get("teacher")):
        raise InputError(f"{path}: {where}: a distilled run names its student and its teacher; add both.")
    merged = {block: raw[block] for block in BLOCKS if block in raw}
    for layer in [rows[row["student"]][1], row] if kind == "distilled" else [row]:
        refuse_unknown(layer, {*ROW_KEYS, *BLOCKS}, path, where)
        merged = overlay(merged, layer)
    teacher = rows[row["teacher"]][1] if row.get("teacher") else {}
    values = _used(merged, kind, teacher_maps=teacher.get("head") == "map")
    return validated(Run, {"name": name, "kind": kind, **values}, path, where)


def _used(merged: dict[str, Any], kind: Kind, *, teacher_maps: bool) -> dict[str, Any]:
    """Without the blocks that cannot change this run, so that changing one of them does not retrain it.

    teacher_maps: its teacher segments maps, so that its batches hold their labels too.
    """
    sensors, head, fusion = merged.get("sensors") or [], merged.get("head"), merged.get("fusion")
    unused = set()
    unused |= set() if "lidar" in sensors else {"lidar"}
    unused |= set() if "camera" in sensors else {"camera", "image_augment"}
    unused |= {"paste"} if "camera" in sensors or kind == "distilled" else set()  # images do not hold pasted objects
    unused |= {"paste"} if merged.get("task") == "segmentation" else set()  # as published: they would hide the ground
    pasted = merged.get("paste")
    unused |= {"paste"} if isinstance(pasted, dict) and pasted.get("counts") == {} else set()
    unused |= {"mgfm", "conv_fuser"} - {"mgfm" if fusion == "mgfm" else "conv_fuser" if fusion == "conv" else ""}
    other_heads = {name for name in HEADS if name != head}
    unused |= other_heads - ({"map"} if teacher_maps else set())
    unused |= set() if kind == "distilled" else {"distill"}
    kept = {key: value for key, value in merged.items() if key not in unused}
    if isinstance(kept.get("inference"), dict):
        kept["inference"] = {k: v for k, v in kept["inference"].items() if k not in other_heads}
    return kept
