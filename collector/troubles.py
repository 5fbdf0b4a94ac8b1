"""What is wrong, in plain words, and what to do: for a shop's support and whoever is called at night. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from collector.kinds import Lane

Level = Literal["well", "watch", "trouble"]
"""watch: it may pass by itself, but somebody should know; trouble: somebody has to act."""

FILLING: Final = 0.7
"""Of the buffer's room: worth a warning."""
OLD_S: Final = 3600.0
"""A record that waited for so long is worth a warning."""
CLOCK_OFF_MS: Final = 60_000
"""A clock further off than this should be set."""
_KEPT: Final = "Nothing is lost: records are kept on this machine's disk and sent when it works again."

_NETWORK: Final = f"Check this machine's network: cable or Wi-Fi, router, internet connection. {_KEPT}"
_PATIENCE: Final = f"Wait: it is tried again and again. If it lasts for hours, ask those who run the upstream. {_KEPT}"
_DISK: Final = "Look after the disk: is it full, worn out or gone? Make room or repair it; the log names the cause."
_ADDRESS: Final = "Compare upstream.url with the address you were given (`tillpost config` shows it)."


class Advice(NamedTuple):
    """What a reason means to people."""

    pattern: re.Pattern[str]
    """Finds the reason."""
    what: str
    do: str


def _on(pattern: str, what: str, do: str) -> Advice:
    return Advice(re.compile(pattern), what, do)


REASONS: Final = (
    _on(
        "name of the upstream cannot be looked up",
        "The upstream's name is not found: the network may be down.",
        _NETWORK,
    ),
    _on("the upstream cannot be reached", "The upstream cannot be reached.", _NETWORK),
    _on(
        "^407",
        "The proxy wants a user and password.",
        f"Put them into HTTPS_PROXY in the collector's environment and start it again. {_KEPT}",
    ),
    _on("proxy", "The proxy does not let us through.", f"Ask whoever runs the proxy. {_KEPT}"),
    _on(
        "web page|captive portal",
        "Something on the way answers with a web page, as the sign-in page of a guest network does.",
        f"Open a browser on this machine's network and sign in, or use another network. {_KEPT}",
    ),
    _on(
        "not valid yet|certificate has expired",
        "The upstream's certificate or this machine's clock is out of date.",
        f"Set this machine's clock. If it is right, the upstream's certificate has to be renewed. {_KEPT}",
    ),
    _on(
        "^TLS",
        "No secure connection to the upstream can be made.",
        f"{_ADDRESS} If a company's proxy reads along, name its certificate in upstream.ca_file. {_KEPT}",
    ),
    _on(
        "set the clock",
        "This machine's clock is wrong, and the upstream does not tell the time.",
        f"Set this machine's clock, best by switching on network time. {_KEPT}",
    ),
    _on(
        "^no credentials",
        "The key cannot be read.",
        f"Check that its file is there and the collector may read it (`tillpost config` names it). {_KEPT}",
    ),
    _on(
        "does not accept the API key|does not accept our credentials",
        "The upstream does not accept our key.",
        f"Put the right one where `tillpost config` says it comes from; it is tried again by itself. {_KEPT}",
    ),
    _on(
        "lacks a permission",
        "The key lacks a permission, or this machine's address is blocked.",
        f"Give the key the permissions for events and transactions, or allow this machine's address. {_KEPT}",
    ),
    _on(
        "redirects elsewhere|no login at this address|does not take such requests|refuses the request itself",
        "What answers is not the API we expect.",
        f"{_ADDRESS} {_KEPT}",
    ),
    _on(
        "^429",
        "The upstream asks us to go slower.",
        f"Nothing: it is obeyed. If it lasts, set delivery.max_rate, or ask for a higher limit. {_KEPT}",
    ),
    _on(r"^\d{3} from the|instead of the upstream's time", "The upstream has troubles of its own.", _PATIENCE),
    _on("did not answer in time", "The upstream does not answer in time.", _PATIENCE),
    _on(
        "broke off|not HTTP|no answer of the API|not JSON|names nothing|records sent|sends otherwise|without a token",
        "The upstream's answers make no sense, or the connection breaks off.",
        _PATIENCE,
    ),
    _on(
        "records were refused|a wave of refusals",
        "Many records in a row were refused, so the lane has stopped before more are.",
        "See below which: something changed in what is sent, or at the upstream. When it is mended: `tillpost resume`.",
    ),
    _on(
        "dead letters fill",
        "There is no room for more refused records.",
        f"Retry or discard those there are, or raise dead.max_size; until then the lane stands still. {_KEPT}",
    ),
    _on("the buffer cannot be", "The disk does not take what has to be noted.", _DISK),
    _on("a fault of ours", "The collector has a fault of its own.", f"Look into its log and report it. {_KEPT}"),
)
"""Every reason a lane may give for not delivering. The first that fits counts."""
_REFUSAL: Final = re.compile(r"^\d{3}: (a record is refused|some records are refused|too large)$")


class Trouble(msgspec.Struct):
    """One thing that is wrong."""

    level: Level
    what: str
    do: str
    lanes: list[str] = []
    """Which lanes it holds up; empty when it is about the whole collector."""


def is_refusal(reason: str) -> bool:
    """Whether it speaks of a record: then there is a dead letter, and the lane goes on."""
    return _REFUSAL.match(reason) is not None


def advice(reason: str) -> tuple[str, str]:
    """What a lane's reason means, and what to do."""
    for one in REASONS:
        if one.pattern.search(reason):
            return one.what, one.do
    return f"{reason}.", f"Look into the log of the collector. {_KEPT}"


def troubles(status: Mapping[str, Any]) -> list[Trouble]:
    """What is wrong with a collector by its ``status.json``, the worst first."""
    found = [*_of_collector(status), *_of_lanes(status.get("lanes") or ()), *_of_records(status)]
    return sorted(found, key=lambda trouble: trouble.level != "trouble")


def condition(status: Mapping[str, Any]) -> dict[str, Any]:
    """The ``condition`` of ``status.json``: level, summary, and the troubles as dicts."""
    found, ledger = troubles(status), status.get("ledger") or {}
    if found:
        summary = found[0].what
    elif ledger.get("pending"):
        summary = "All is well: records are on their way."
    elif ledger.get("accepted"):
        summary = "All is well: everything has been delivered."
    else:
        summary = "All is well: no record has come yet."
    level: Level = found[0].level if found else "well"
    return {"level": level, "summary": summary, "troubles": [msgspec.structs.asdict(trouble) for trouble in found]}


def _of_collector(status: Mapping[str, Any]) -> Iterable[Trouble]:
    buffer, state = status.get("buffer") or {}, status.get("state")
    if state == "failed":
        yield Trouble("trouble", "The collector has failed: it takes no records now.", f"{_DISK} Then start it again.")
    elif state in ("stopping", "stopped"):
        yield Trouble("watch", "The collector is stopping.", "What waits is sent after the next start.")
    if buffer.get("disk_full"):
        yield Trouble("trouble", "The disk is full: new records are refused.", "Make room on the disk. " + _KEPT)
    elif buffer.get("full"):
        yield Trouble(
            "trouble", "The buffer is full: new records are refused.",
            "See why nothing leaves, or raise buffer.max_size. What was accepted stays safe.",
        )  # fmt: skip
    elif buffer.get("bytes", 0) > FILLING * buffer.get("usable_bytes", float("inf")):
        yield Trouble(
            "watch", "The buffer is filling up.", "See why records do not leave; when it is full, new ones are refused."
        )
    if (damage := status.get("damage")) is not None:
        yield Trouble(
            "watch", f"The buffer's file was damaged: {damage.get('lost', 0)} records are lost for certain.",
            "Check the disk. What could be read was carried over; the file put aside may be deleted or examined.",
        )  # fmt: skip
    offset_ms = (status.get("clock") or {}).get("offset_ms")
    if offset_ms is not None and abs(offset_ms) > CLOCK_OFF_MS:
        yield Trouble(
            "watch", f"This machine's clock is {'slow' if offset_ms > 0 else 'fast'}.",
            "Switch on network time. Times that Tillpost stamps are put right before they are sent.",
        )  # fmt: skip


def _of_lanes(lanes: Iterable[Mapping[str, Any]]) -> Iterable[Trouble]:
    by_reason: dict[tuple[Level, str, str], list[str]] = {}
    for lane in lanes:
        name = str(Lane(lane["kind"], lane["identifier"], lane["priority"]))
        if not lane["pending"]:
            continue
        reason = lane["last_error"]
        level: Level = "trouble" if lane["state"] == "paused" else "watch"
        if reason is not None and not is_refusal(reason):
            what, do = advice(reason)
        elif (lane["oldest_age_s"] or 0) > OLD_S and lane["pending"] > lane["aside"]:
            what = "Records have waited for more than an hour."
            do = "Nothing, if there was an outage and the number falls. Else look into the log."
        else:
            continue
        by_reason.setdefault((level, what, do), []).append(name)
    for (level, what, do), names in by_reason.items():
        yield Trouble(level, what, do, names)


def _of_records(status: Mapping[str, Any]) -> Iterable[Trouble]:
    ledger = status.get("ledger") or {}
    if not adds_up(ledger):
        do = "This is a fault of Tillpost: keep the buffer's files and report it."
        yield Trouble("trouble", "The ledger does not add up.", do)
    if dead := ledger.get("dead", 0):
        many = (
            "1 record was refused for what it holds" if dead == 1 else f"{dead} records were refused for what they hold"
        )
        do = "See below. Where the cause is mended at the upstream, retry; else discard. Others are not held up."
        yield Trouble("watch", f"{many}.", do)


def adds_up(ledger: Mapping[str, int]) -> bool:
    """Whether every record accepted is accounted for (G2); so it is where nothing is known."""
    states = ("delivered", "pending", "dead", "discarded", "superseded", "lost")
    return "pending" not in ledger or ledger["accepted"] == sum(ledger.get(state, 0) for state in states)
