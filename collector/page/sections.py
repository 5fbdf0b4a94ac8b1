"""The parts of the page, from top to bottom."""

from collections.abc import Mapping
from typing import Any, Final

from collector.page.html import Html, h, join
from collector.page.pieces import figure, lane_name, lane_names, live, moment, section, text
from collector.page.words import LANE_STATES, STATES, duration, size
from collector.troubles import Level, adds_up

DOCTYPE: Final = Html("<!doctype html>")
LEVELS: Final[dict[Level, str]] = {"well": "All well", "watch": "Look here", "trouble": "Trouble"}
LINKS: Final = (("/status.json", "status.json"), ("/metrics", "metrics"), ("/readyz?verbose", "health"))
_ICONS: Final[dict[Level, str]] = {"well": "✓", "watch": "!", "trouble": "✕"}
_COLUMNS: Final = ("Minute", "Came in", "Delivered", "Waiting")
_SUM: Final = (
    ("accepted", "accepted"),
    ("delivered", "= delivered"),
    ("pending", "+ waiting"),
    ("dead", "+ refused"),
    ("discarded", "+ given up"),
    ("superseded", "+ refused, then replaced by a newer one"),
    ("lost", "+ lost with a damaged file"),
)


def level(status: Mapping[str, Any]) -> Level:
    found: Level = (status.get("condition") or {}).get("level", "watch")
    return found


def summary(status: Mapping[str, Any]) -> Html:
    """Is it well? In one sentence, one more with the numbers, and what to do first."""
    how = level(status)
    about = status.get("condition") or {}
    waiting, oldest = _pending(status), _oldest(status)
    detail = [figure("ledger.pending", waiting), " waiting"] if waiting else ["Nothing is left to send"]
    if oldest is not None:
        detail += [", the oldest for ", figure("oldest_age_s", oldest, duration(oldest))]
    return live(
        "summary",
        h(
            "div",
            h("span", _ICONS[how], class_="icon", aria_hidden="true"),
            h(
                "div",
                h(
                    "p",
                    about.get("summary", "This collector says nothing of itself."),
                    class_="headline",
                    role="status",
                ),
                h("p", *detail, "."),
                *(_to_do(trouble) for trouble in about.get("troubles", ())[:1]),
            ),
            class_=f"summary {how}",
        ),
    )


def troubles(status: Mapping[str, Any]) -> Html:
    """What else is wrong, and what to do."""
    others = (status.get("condition") or {}).get("troubles", ())[1:]
    items = [h("li", h("h3", other["what"]), _to_do(other), class_=other["level"]) for other in others]
    return live("troubles", *([h("h2", "Also"), h("ul", *items, class_="troubles")] if items else []))


def _to_do(trouble: Mapping[str, Any]) -> Html:
    concerns = f"Concerns {lane_names(trouble['lanes'])}." if trouble["lanes"] else None
    return join(h("p", trouble["do"]), h("p", concerns, class_="small") if concerns else None)


def tiles(status: Mapping[str, Any]) -> Html:
    """The four numbers people ask for."""
    oldest, today = _oldest(status), status.get("today") or {}
    buffer, records = status.get("buffer") or {}, status.get("ledger") or {}
    used, usable = buffer.get("bytes", 0), buffer.get("usable_bytes", 0)
    share = min(100, used * 100 // usable) if usable else 0
    return live(
        "tiles",
        h(
            "ul",
            _tile(
                "Waiting",
                figure("ledger.pending", _pending(status)),
                join("oldest for ", figure("oldest_age_s", oldest, duration(oldest)))
                if oldest is not None
                else "nothing is left to send",
            ),
            _tile(
                "Delivered today",
                figure("today.delivered", today.get("delivered", 0)),
                join(figure("today.accepted", today.get("accepted", 0)), " came in today"),
            ),
            _tile(
                "Refused",
                figure("ledger.dead", records.get("dead", 0)),
                "wait for a decision" if records.get("dead") else "nothing to decide",
                "watch" if records.get("dead") else None,
            ),
            _tile(
                "Buffer",
                f"{share} %",
                join(
                    h(
                        "meter",
                        f"{share} %",
                        min=0,
                        max=100,
                        low=70,
                        high=95,
                        optimum=0,
                        value=share,
                        aria_label="Buffer used",
                    ),
                    figure("buffer.bytes", used, size(used)),
                    " of ",
                    figure("buffer.usable_bytes", usable, size(usable)),
                ),
                "trouble" if buffer.get("full") else None,
            ),
            class_="tiles",
        ),
    )


def charts() -> Html:
    """Where ``page.js`` draws."""
    spans = [
        h("button", text, type="button", data_minutes=minutes, aria_pressed="true" if minutes == 60 else "false")
        for minutes, text in ((60, "1 hour"), (360, "6 hours"), (1440, "24 hours"))
    ]
    keys = [h("li", text, class_=name) for name, text in (("accepted", "came in"), ("delivered", "delivered"))]
    return h(
        "section",
        h(
            "div",
            h("h2", "Lately", id="lately"),
            h("div", *spans, role="group", aria_label="How far back"),
            class_="titled",
        ),
        h(
            "div",
            h(
                "figure",
                h("figcaption", "Records per minute", h("ul", *keys, class_="keys")),
                h("div", id="rates", class_="chart", role="img", aria_label="Records per minute"),
            ),
            h(
                "figure",
                h("figcaption", "Records waiting"),
                h("div", id="backlog", class_="chart", role="img", aria_label="Records waiting"),
            ),
            class_="columns",
        ),
        h(
            "details",
            h("summary", "The last minutes as a table"),
            h(
                "table",
                h("thead", h("tr", *(h("th", name, scope="col") for name in _COLUMNS))),
                h("tbody", id="minutes"),
            ),
        ),
        h("noscript", h("p", "The charts need scripts; everything else on this page does not.", class_="small")),
        aria_labelledby="lately",
    )


def lanes(status: Mapping[str, Any]) -> Html:
    """Each lane with its state, those with trouble first."""
    rank = {"paused": 0, "backing-off": 1}
    known = list(enumerate(status.get("lanes") or []))
    known.sort(key=lambda one: (rank.get(one[1]["state"], 2), -one[1]["pending"]))
    items = [_lane(index, lane) for index, lane in known]
    return section("Lanes", "lanes", h("ul", *items, class_="lanes") if items else h("p", "No record has come yet."))


def _lane(index: int, lane: Mapping[str, Any]) -> Html:
    def number(name: str, shown: str | None = None) -> Html:
        return figure(f"lanes.{index}.{name}", lane[name], shown)

    waits = [number("pending"), " waiting"]
    if lane["oldest_age_s"] is not None:
        waits += [", the oldest for ", number("oldest_age_s", duration(lane["oldest_age_s"]))]
    if lane["aside"]:
        waits += [" (", number("aside"), " aside until their turn)"]
    state = "done" if lane["state"] == "idle" and not lane["pending"] else lane["state"]
    tries = [number("attempts"), " failed attempts"] if lane["attempts"] else []
    return h(
        "li",
        h("h3", lane_name(f"{lane['kind']}/{lane['identifier']}/{lane['priority']}")),
        h("span", LANE_STATES.get(state, state), class_=f"chip {state}"),
        h("p", *waits),
        h("p", *tries, ": " if tries else None, lane["last_error"], class_="small") if lane["last_error"] else None,
    )


def errors(status: Mapping[str, Any]) -> Html:
    """What went wrong lately, the newest first."""
    items = [
        h(
            "li",
            h("h3", error["what"]),
            h("p", error["do"]) if error["until"] is None else None,
            h(
                "p",
                moment(error["since"]),
                *([" to ", moment(error["until"])] if error["until"] else [" until now"]),
                f" · {lane_names(error['lanes'])} · “{error['error']}”",
                class_="small",
            ),
            class_="over" if error["until"] else "lasting",
        )
        for error in status.get("errors") or []
    ]
    inner = h("ul", *items, class_="errors") if items else h("p", "None since the collector started.")
    return section("Last errors", "errors", inner)


def ledger(status: Mapping[str, Any]) -> Html:
    """The sum that must always hold (G2)."""
    records = status.get("ledger") or {}
    rows = [
        h("tr", h("th", text, scope="row"), h("td", figure(f"ledger.{name}", records.get(name, 0))))
        for name, text in _SUM
    ]
    verdict = ("✓ It adds up.", "well") if adds_up(records) else ("✕ It does not add up!", "trouble")
    most = records.get("lost_at_most", 0)
    return section(
        "The sum",
        "sum",
        h("table", h("tbody", *rows), class_="sum"),
        h("p", verdict[0], class_=verdict[1]),
        h("p", "At most ", figure("ledger.lost_at_most", most), " may be lost.", class_="small") if most else None,
    )


def facts(status: Mapping[str, Any]) -> Html:
    """What the person on call wants to know next."""
    state, damage = str(status.get("state", "")), status.get("damage")
    upstream = status.get("upstream") or {}
    return section(
        "Details",
        "facts",
        h(
            "dl",
            *_fact("Collector", h("span", STATES.get(state, state), data_text="state")),
            *_fact("Upstream", text("upstream.url", upstream.get("url")), f", by {upstream.get('auth', '')}"),
            *_fact("Clock", *_clock(status.get("clock") or {})),
            *_fact("Buffer", *_buffer(status.get("buffer") or {})),
            *(_fact("Damage", str(damage["text"])) if damage else ()),
            *_fact("Listening", ", ".join(status.get("listening") or ["nowhere: embedded"])),
        ),
    )


def _clock(clock: Mapping[str, Any]) -> tuple[str, ...]:
    offset_ms = clock.get("offset_ms")
    if offset_ms is None:
        return ("not compared with the upstream's yet",)
    off = duration(abs(offset_ms) / 1000) if abs(offset_ms) >= 1000 else f"{abs(offset_ms)} ms"
    behind = f"{off} {'behind' if offset_ms > 0 else 'ahead of'}"
    return ("this machine's is ", figure("clock.offset_ms", offset_ms, behind), " the upstream's")


def _buffer(buffer: Mapping[str, Any]) -> tuple[str, ...]:
    def number(name: str) -> Html:
        return figure(f"buffer.{name}", buffer.get(name, 0), size(buffer.get(name, 0)))

    files = (": all its files take ", number("disk_bytes"), " of ", number("max_bytes"))
    return (text("buffer.path", buffer.get("path")), *files, ", refused records ", number("dead_bytes"), " of it")


def _tile(title: str, figure: str, below: str, how: str | None = None) -> Html:
    return h("li", h("h2", title), h("p", figure, class_="number"), h("p", below, class_="small"), class_=how)


def _fact(name: str, *value: str) -> tuple[Html, Html]:
    return h("dt", name), h("dd", *value)


def _pending(status: Mapping[str, Any]) -> int:
    return int((status.get("ledger") or {}).get("pending", 0))


def _oldest(status: Mapping[str, Any]) -> float | None:
    ages = [lane["oldest_age_s"] for lane in status.get("lanes") or [] if lane["oldest_age_s"] is not None]
    return max(ages, default=None)
