"""HTML from Python: what goes in as text comes out as text."""

from html import escape
from typing import Final

_VOID: Final = frozenset({"link", "meta", "input"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def h(tag: str, *children: str | None, **attributes: str | int | float | bool | None) -> Html:
    """An element. Children are escaped unless `h` made them; None and an attribute of None or False are left out.

    ``class_`` is written ``class``, ``data_figure`` is written ``data-figure``.
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    head = "".join(
        f" {name}" if value is True else f' {name}="{escape(str(value))}"'
        for name, value in named.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{head}>" if tag in _VOID else f"<{tag}{head}>{join(*children)}</{tag}>")


def join(*children: str | None) -> Html:
    """Children side by side."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))
