"""What the parts of the page are made of.

What lies in a `live` part is kept up to date by ``page.js``. An element with ``data-figure`` or ``data-text`` shows
what ``status.json`` has under that name.
"""

from collections.abc import Iterable
from typing import Any

from collector.page.html import Html, h
from collector.page.words import count


def live(name: str, *children: str | None) -> Html:
    return h("div", *children, id=f"live-{name}", data_live=True)


def section(title: str, name: str, *children: str | None) -> Html:
    return h("section", h("h2", title, id=name), live(name, *children), aria_labelledby=name)


def figure(name: str, value: float, shown: str | None = None) -> Html:
    """A number of ``status.json``, and where in it."""
    return h("data", count(int(value)) if shown is None else shown, value=value, data_figure=name)


def text(name: str, value: Any) -> Html:
    """A text of ``status.json``, and where in it."""
    return h("span", str(value or ""), data_text=name)


def moment(at: str) -> Html:
    """A moment; ``page.js`` writes it as the reader's own clock shows it."""
    return h("time", f"{at[:10]} {at[11:19]} UTC", datetime=at)


def lane_names(lanes: Iterable[str]) -> str:
    return ", ".join(lane_name(lane) for lane in lanes)


def lane_name(lane: str) -> str:
    """``events/email+uuid/bulk`` as ``events by email and uuid, backfill``."""
    kind, identifier, priority = lane.split("/")
    return f"{kind} by {identifier.replace('+', ' and ')}{', backfill' if priority == 'bulk' else ''}"
