"""What is wrong, in plain words: every reason has some, and the worst comes first."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import collector
from collector import page
from collector.troubles import REASONS, advice, condition, is_refusal

PACKAGE = Path(collector.__file__).parent
GIVES_REASONS = {"Later", "Paused", "Forbidden", "Unauthorized", "DeadLettersFull", "pause", "_answered"}
LEDGER = {"accepted": 10, "delivered": 10, "pending": 0, "dead": 0, "discarded": 0, "superseded": 0, "lost": 0}
LANE = {"kind": "events", "identifier": "email", "priority": "live", "pending": 3, "aside": 0, "oldest_age_s": 4.0,
        "state": "sending", "attempts": 0, "last_error": None}  # fmt: skip


def reasons() -> Iterator[str]:
    """Every reason in the source, a number standing for what is filled in."""
    for file in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                if called in GIVES_REASONS and (text := told(node.args[0])):
                    yield text
            elif isinstance(node, ast.Constant | ast.JoinedStr) and told(node).startswith("TLS: "):
                yield told(node)  # made apart from the call


def told(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value or "")
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "503" for part in node.values)
    return ""


def test_every_reason_a_lane_may_give_has_plain_words_and_something_to_do() -> None:
    known = sorted(set(reasons()))
    assert len(known) > 35
    refusals = [reason for reason in known if is_refusal(reason)]
    assert len(refusals) == 3
    found = {reason: next((one for one in REASONS if one.pattern.search(reason)), None) for reason in known}
    assert [reason for reason, one in found.items() if one is None and reason not in refusals] == []
    assert [one for one in REASONS if one not in found.values() and one.pattern.pattern != "^429"] == []


@pytest.mark.parametrize(
    ("reason", "what"),
    [
        ("429 from the upstream", "slower"),
        ("503 from the upstream", "troubles of its own"),
        ("401: the upstream does not accept our credentials", "our key"),
        ("403 from the login: the upstream does not accept the API key", "our key"),
        ("200 with a web page instead of an answer: a captive portal?", "guest network"),
        ("407: the proxy wants a user and password", "user and password"),
        ("TLS: the upstream's certificate is not valid yet: this machine's clock (x) is probably slow", "clock"),
        ("20 of the last 400 records were refused: nothing more is buried; look", "stopped before more"),
        ("something new", "something new."),
    ],
)
def test_a_reason_becomes_words_for_people(reason: str, what: str) -> None:
    said, to_do = advice(reason)
    assert what in said and len(to_do) > 20


def status(lanes: tuple[dict[str, Any], ...] = (), ledger: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    records = LEDGER | (ledger or {})
    return {"state": "running", "ledger": records, "lanes": [LANE | lane for lane in lanes], **more}


@pytest.mark.parametrize(
    ("facts", "level", "summary"),
    [
        (status(ledger={"accepted": 0, "delivered": 0}), "well", "no record has come yet"),
        (status(), "well", "everything has been delivered"),
        (status(({},), {"delivered": 7, "pending": 3}), "well", "on their way"),
        (status(({"last_error": "503 from the upstream"},)), "watch", "troubles of its own"),
        (status(({"state": "paused", "last_error": "no credentials: x"},)), "trouble", "The key cannot be read."),
        (status(({"state": "paused", "last_error": "no credentials: x", "pending": 0},)), "well", "everything"),
        (status(({"last_error": "400: a record is refused"},)), "well", "everything"),
        (status(({"oldest_age_s": 4000.0},)), "watch", "more than an hour"),
        (status(({"oldest_age_s": 4000.0, "aside": 3},)), "well", "everything"),
        (status(ledger={"delivered": 9, "dead": 1}), "watch", "1 record was refused"),
        (status(ledger={"delivered": 8, "dead": 2}), "watch", "2 records were refused"),
        (status(ledger={"delivered": 9}), "trouble", "does not add up"),
        (status(buffer={"bytes": 71, "usable_bytes": 100}), "watch", "filling up"),
        (status(buffer={"bytes": 96, "usable_bytes": 100, "full": True}), "trouble", "buffer is full"),
        (status(buffer={"full": True, "disk_full": True}), "trouble", "disk is full"),
        (status(damage={"lost": 3, "text": "3 records lost"}), "watch", "3 records are lost"),
        (status(clock={"offset_ms": 90_000}), "watch", "clock is slow"),
        (status(clock={"offset_ms": -90_000}), "watch", "clock is fast"),
        (status() | {"state": "failed"}, "trouble", "has failed"),
        (status() | {"state": "stopping"}, "watch", "is stopping"),
    ],
)  # fmt: skip
def test_the_condition_is_the_worst_of_what_is_wrong(facts: dict[str, Any], level: str, summary: str) -> None:
    found = condition(facts)
    assert found["level"] == level and summary in found["summary"]
    assert bool(found["troubles"]) == (level != "well")
    assert summary in page.render(facts | {"condition": found}).decode().replace("&#x27;", "'")


def test_lanes_that_fail_for_one_reason_are_one_trouble_and_the_worst_comes_first() -> None:
    away = {"last_error": "the upstream cannot be reached", "state": "backing-off"}
    found = condition(
        status(({"identifier": "uuid"} | away, away, {"state": "paused", "last_error": "no credentials"}))
    )
    assert [(trouble["level"], trouble["lanes"]) for trouble in found["troubles"]] == [
        ("trouble", ["events/email/live"]),
        ("watch", ["events/uuid/live", "events/email/live"]),
    ]
