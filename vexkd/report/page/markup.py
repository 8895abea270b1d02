"""HTML elements as text in which everything is escaped unless it is an element itself."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

VOID = {"img", "meta", "br", "col"}  # elements without an end


class Markup(str):
    """Text that is HTML already."""


def element(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An element: content is text, elements, None (left out) or lists of these; `class_` is the attribute class.

    An attribute that is None or False is left out, True stands alone, an underscore inside its name is a dash.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        known = key.rstrip("_").replace("_", "-")
        words.append(known if value is True else f'{known}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{join(content)}</{name}>")


def join(content: Iterable[Any]) -> Markup:
    """Parts one after another, escaped where they are no elements."""
    return Markup("".join(_text(part) for part in content))


def _text(part: Any) -> str:
    if part is None:
        return ""
    if isinstance(part, Markup):
        return part
    if isinstance(part, list | tuple):
        return join(part)
    return html.escape(str(part), quote=False)
