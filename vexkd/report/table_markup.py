"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

_NUMBER = re.compile(r"[−+-]?[\d.,]+( [MG%]| ± [\d.]+)?|<[\d.]+")
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "±": r"$\pm$", "−": "$-$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"$^\S$", "Δ": r"$\Delta$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "×": r"$\times$", "<": "$<$",
}  # fmt: skip


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] | None = None) -> str:
    """GitHub's Markdown with aligned columns.

    words: headings of the columns that hold words, which stand left; by default those in which not every cell is a number.
    """
    if words is None:
        columns = zip(head, zip(*rows, strict=True), strict=True)
        words = [name for name, cells in columns if not all(_NUMBER.fullmatch(cell) for cell in cells if cell)]
    sides = ["left" if name in words else "right" for name in head]
    return tabulate(rows, head, tablefmt="pipe", colalign=sides, disable_numparse=True)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    r"""A booktabs `tabular`, to be `\input` inside a table environment. words: as for `markdown`."""
    columns = "".join("l" if name in words else "r" for name in head)
    lines = [" & ".join(map(tex, row)) + r" \\" for row in [head, *rows]]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


def tex(text: str) -> str:
    """Text with what LaTeX would read as commands or does not know."""
    return "".join(_TEX.get(letter, letter) for letter in text)
