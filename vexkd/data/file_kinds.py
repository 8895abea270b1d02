"""What a file is that should be a JSON table: told from its first bytes, for messages that say what was seen."""

from __future__ import annotations

import codecs
from pathlib import Path

_STARTS = {
    codecs.BOM_UTF8: "UTF-8 text with a byte order mark, which JSON does not allow",
    codecs.BOM_UTF32_LE: "UTF-32 text instead of UTF-8",
    codecs.BOM_UTF32_BE: "UTF-32 text instead of UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16 text instead of UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text instead of UTF-8",
    b"\x1f\x8b": "a gzip archive, not unpacked",
    b"PK\x03\x04": "a zip archive, not unpacked",
    b"BZh": "a bzip2 archive, not unpacked",
    b"\xfd7zXZ": "an xz archive, not unpacked",
    b"\x28\xb5\x2f\xfd": "a zstd archive, not unpacked",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself (git lfs pull fetches it)",
    b"outs:": "a pointer of DVC, not the file itself (dvc pull fetches it)",
}


def seen(path: Path, wanted: str = "[") -> str:
    """What a file is by its first bytes, if it is nothing that begins with `wanted`; empty where nothing is known."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return ""
    if words := foreign(head):
        return words
    if not head:
        return "cut or damaged (it is empty)"
    if not head.strip(b"\0"):
        return "cut or damaged (it begins with zeros)"
    if head[1:4:2] == b"\0\0" or head[0:3:2] == b"\0\0":
        return "UTF-16 text instead of UTF-8"
    if head.lstrip().startswith(b"{") and wanted != "{":
        return "a JSON object, or one a line, where nuScenes has one list of rows"
    return ""


def foreign(head: bytes) -> str:
    """What a file is that begins so, where it is none of nuScenes' files; empty where nothing is known."""
    for start, words in _STARTS.items():
        if head.startswith(start):
            return words
    if head[:4096].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return "an HTML or XML page, as a failed download leaves it"
    return ""
