"""A table as the page's template shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HtmlTable:
    """Headings and rows, in whose cells the names of runs lead to their sections.

    label: what it is, for who cannot see it. words: headings of columns that hold text. anchor: what the rows' anchors begin
    with, a run's name being their end.
    """

    head: list[str]
    rows: list[list[str]]
    label: str
    words: set[str]
    caption: str = ""
    caption_hidden: bool = False
    anchor: str | None = None

    def __post_init__(self) -> None:
        if not self.caption:
            object.__setattr__(self, "caption", self.label)

    @property
    def anchors(self) -> dict[int, str]:
        """The anchor of a row by its number; a run may stand in a table twice, then its first row has it."""
        anchors: dict[str, int] = {}
        for number, row in enumerate(self.rows if self.anchor else []):
            anchors.setdefault(f"{self.anchor}-{row[0].partition(' ')[0]}", number)
        return {number: anchor for anchor, number in anchors.items()}
