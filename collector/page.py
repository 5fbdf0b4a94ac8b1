"""The status page: what a shop's support reads when somebody asks whether sales are arriving.

Plain HTML without scripts or styles of its own, so that the strictest content policy fits.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}
_LANE: Final = ("kind", "identifier", "priority", "state", "pending", "aside", "oldest_age_s", "attempts", "last_error")


def render(status: Mapping[str, Any]) -> bytes:
    """The page for a ``status.json``."""
    ledger, lanes = status.get("ledger", {}), status.get("lanes", [])
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>",
        "<meta name=viewport content='width=device-width'><title>Tillpost</title>",
        f"<h1>Tillpost {escape(str(status.get('version', '')))}: {escape(str(status.get('state', '')))}</h1>",
        f"<p>{ledger.get('pending', 0)} records wait to be sent, {ledger.get('delivered', 0)} have been delivered, ",
        f"{ledger.get('dead', 0)} were refused.</p>",
        "<h2>Ledger</h2>",
        _table(ledger.keys(), [ledger.values()]),
        "<h2>Lanes</h2>",
        _table(_LANE, [[lane.get(name) for name in _LANE] for lane in lanes]) if lanes else "<p>None yet.</p>",
    ]
    for title in ("buffer", "clock", "upstream"):
        facts = status.get(title, {})
        parts += [f"<h2>{title.capitalize()}</h2>", _table(facts.keys(), [facts.values()])]
    parts.append('<p><a href="/status.json">status.json</a> <a href="/metrics">metrics</a></p></html>')
    return "".join(parts).encode()


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{_cell(cell)}</th>" for cell in head) + f"</tr>{body}</table>"


def _cell(value: Any) -> str:
    return "" if value is None else escape(str(value))
