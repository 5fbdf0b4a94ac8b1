"""The status page: what a shop's support reads when somebody asks whether sales are arriving.

Python writes all of it from a ``status.json``, so it can be read without scripts too. ``page.js`` fetches it again
and again and puts in what changed, draws the charts from ``history.json``, and asks ``/v1`` for what needs the admin
token. Everything comes from the collector itself and nothing is inline, so that the strictest content policy fits and
no network is needed. No record is shown, nor what the upstream said of one, but to who has the token (G12).
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from collector.page import letters, sections
from collector.page.html import h, join

HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}
ASSETS: Final = {
    "/page/page.css": "text/css; charset=utf-8",
    "/page/page.js": "text/javascript; charset=utf-8",
    "/page/uplot.css": "text/css; charset=utf-8",
    "/page/uplot.js": "text/javascript; charset=utf-8",
    "/page/icon.svg": "image/svg+xml",
}
"""What the page is made of besides itself, and the type of each. uPlot is a third party's, see ``uplot.LICENSE``."""


@cache
def asset(path: str) -> tuple[str, bytes]:
    """The content type and the bytes of one of `ASSETS`."""
    name = path.rpartition("/")[2]
    return ASSETS[path], resources.files("collector.page").joinpath("assets", name).read_bytes()


def render(status: Mapping[str, Any]) -> bytes:
    """The page for a ``status.json``; what it does not have is left out."""
    title = f"{sections.LEVELS[sections.level(status)]} · Tillpost"
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("noscript", h("meta", http_equiv="refresh", content=5)),
        h("title", title),
        h("link", rel="icon", href="/page/icon.svg", type="image/svg+xml"),
        h("link", rel="stylesheet", href="/page/uplot.css"),
        h("link", rel="stylesheet", href="/page/page.css"),
        h("script", src="/page/uplot.js", defer=True),
        h("script", src="/page/page.js", defer=True),
    )
    body = h(
        "body",
        h("header", h("h1", "Tillpost"), h("p", "read once", id="connection", role="status")),
        h(
            "main",
            sections.summary(status),
            sections.troubles(status),
            sections.tiles(status),
            sections.charts(),
            sections.lanes(status),
            letters.dead_letters(status),
            h("div", sections.errors(status), sections.ledger(status), class_="columns"),
            sections.facts(status),
        ),
        h(
            "footer",
            f"Tillpost {status.get('version', '')} · ",
            *(h("a", text, href=to) for to, text in sections.LINKS),
        ),
    )
    return join(sections.DOCTYPE, h("html", head, body, lang="en")).encode()
