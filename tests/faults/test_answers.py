"""Whatever answers, and whatever it says: nothing is buried but by a fault of its own, and nothing is lost."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from collector.admin import Running, reach
from collector.settings import load
from collector.testing import FakeUpstream
from tests.collector.logged import capture_logs
from tests.collector.scripted import answer
from tests.end_to_end.clients import salts
from tests.faults.road import Road
from tests.faults.scene import Scene, carried, moment, scene, until

JSON, HTML = "Content-Type: application/json", "Content-Type: text/html"
PORTAL = b"<!doctype html><title>Welcome to the hotel</title>"

WAITS: dict[str, bytes] = {
    "captive portal": answer(200, PORTAL, HTML),
    "captive portal without content type": answer(202, PORTAL),
    "captive portal that refuses": answer(400, PORTAL, HTML),
    "network authentication required": answer(511, PORTAL, HTML),
    "success cut short": answer(202, b'{"a"', JSON, length=4),
    "success that is text": answer(200, b"OK", "Content-Type: text/plain"),
    "success of another count": answer(202, b"", "Tillpost-Accepted: 1"),
    "a status nobody knows": answer(299),
    "timeout of a proxy": answer(408),
    "conflict": answer(409),
    "locked": answer(423),
    "too early": answer(425),
    "too many": answer(429),
    "500": answer(500, b'{"status":500,"message":"Internal Server Error"}', JSON),
    "501": answer(501),
    "502 of nginx": answer(502, PORTAL, HTML),
    "503": answer(503),
    "504": answer(504),
    "520 of a CDN": answer(520, PORTAL, HTML),
    "527 of a CDN": answer(527),
    "not HTTP": b"220 mail.example.com ESMTP\r\n\r\n",
}
REQUEST = b'{"status":400,"message":"Version header content is invalid"}'
PAUSES: dict[str, bytes] = {
    "moved": answer(301, b"", "Location: {elsewhere}/v4/events/batch"),
    "portal redirects": answer(302, PORTAL, HTML, "Location: {elsewhere}/login"),
    "redirect that keeps the method": answer(307, b"", "Location: {elsewhere}/v4/events/batch"),
    "permanent redirect": answer(308, b"", "Location: {elsewhere}/v4/events/batch"),
    "unauthorized": answer(401, b'{"error":"Token expired."}', JSON),
    "forbidden": answer(403),
    "forbidden by a portal": answer(403, PORTAL, HTML),
    "not found": answer(404, b"no such route"),
    "method not allowed": answer(405),
    "not acceptable": answer(406),
    "gone": answer(410),
    "wrong content type": answer(415),
    "a 400 about the version header": answer(400, REQUEST, JSON),
    "a 400 about the content type": answer(400, b'{"message":"Content-Type is not supported"}', JSON),
    "a 400 about JSON that names nothing": answer(400, b'{"message":"JSON parse error: Unexpected end"}', JSON),
    "a 422 about the request": answer(422, b'{"error":"api-version missing"}', JSON),
}


@pytest.mark.parametrize("name", WAITS)
def test_an_answer_that_is_nobodys_fault_is_waited_out(tmp_path: Path, name: str) -> None:
    with scene(tmp_path) as now:
        hole = now.road.hole("request", WAITS[name], times=None)
        now.accept()
        now.all_have_been("backing-off")
        until("it to be tried again and again", lambda: hole.hits >= 15)
        now.kept()
        now.road.mend()
        now.arrived()


@pytest.mark.parametrize("name", PAUSES)
def test_what_no_retry_mends_pauses_with_the_data_kept_and_resumes_by_itself(tmp_path: Path, name: str) -> None:
    with Road("127.0.0.1:1") as elsewhere, scene(tmp_path) as now, capture_logs() as lines:
        said = PAUSES[name].replace(b"{elsewhere}", elsewhere.url.encode())
        hole = now.road.hole("request", said, times=None)
        now.accept()
        now.all_are("paused")
        until("it to be probed", lambda: hole.hits >= 9)
        now.kept()
        assert sum(line["log_level"] == "error" and "paused" in line["event"] for line in lines) == 3, (
            "one alarm a lane"
        )
        now.road.mend()
        now.arrived()
        assert elsewhere.connections == 0, "the credentials go nowhere else"


# -- Retry-After --------------------------------------------------------------------------------


def date(seconds: float) -> str:
    return format_datetime(datetime(2026, 5, 4, 12, tzinfo=UTC) + timedelta(seconds=seconds), usegmt=True)


ASKED: dict[str, tuple[tuple[str, ...], float]] = {
    "seconds": (("Retry-After: 0.2",), 0.2),
    "more than is believed": (("Retry-After: 1000000000",), 0.3),
    "a date": (("Retry-After: " + date(60), "Date: " + date(0)), 0.3),
    "a date and no other to compare": (("Retry-After: " + date(60),), 0),
    "a date that is over": (("Retry-After: " + date(-60), "Date: " + date(0)), 0),
    "zero": (("Retry-After: 0",), 0),
    "less than nothing": (("Retry-After: -5",), 0),
    "nonsense": (("Retry-After: soon",), 0),
    "not a number": (("Retry-After: nan",), 0),
    "infinity": (("Retry-After: inf",), 0),
    "empty": (("Retry-After:",), 0),
}


@pytest.mark.parametrize(("name", "status"), [*zip(ASKED, itertools.cycle((429, 503)), strict=False)])
def test_what_the_upstream_asks_for_is_given_and_never_less(tmp_path: Path, name: str, status: int) -> None:
    headers, floor_s = ASKED[name]
    with scene(tmp_path) as now:
        hole = now.road.hole("request", answer(status, b"", *headers), times=2)
        now.accept(20, 0, lanes=1)
        now.arrived()
        assert hole.hits == 2
        first, second, third = now.road.batches
        assert second.at - first.answered_at >= floor_s
        assert third.at - second.answered_at >= floor_s
        assert third.at - first.at < 2 * 1.2 * floor_s + 2


@pytest.mark.parametrize("path", ["login", "server/time"])
def test_what_the_login_and_the_clock_are_asked_for_holds_too(tmp_path: Path, path: str) -> None:
    with FakeUpstream(api_key="k") as fake, Road(fake.url) as road:
        hole = road.hole("request", answer(503, b"", "Retry-After: 0.15"), times=3, path=path)
        with carried(tmp_path, fake, road, road.url) as now:
            now.accept()
            now.arrived()
        assert hole.hits == 3
        asked = [each for each in road.seen if path in each.path][:4]
        for earlier, later in itertools.pairwise(asked):
            assert later.at - earlier.answered_at >= 0.15, "whoever of us asks"


# -- one record that spoils its batch ------------------------------------------------------------


def test_a_record_the_server_chokes_on_is_parked_and_never_buried(tmp_path: Path) -> None:
    with scene(tmp_path) as now:
        now.fake.fault("poison", salt="e4")
        now.accept(200, 20)
        until("all others to arrive", lambda: now.ledger["pending"] == 1)
        assert now.ledger["dead"] == 0
        assert len(now.fake.stored) == 219
        now.fake.clear_faults()
        now.arrived()


@pytest.mark.parametrize("bad", [1, 2, 7, 15])
@pytest.mark.parametrize("hint", [True, False])
def test_bad_records_cost_only_themselves(tmp_path: Path, bad: int, hint: bool) -> None:
    with scene(tmp_path) as now:
        spoiled = [f"e{17 + 29 * i}" for i in range(bad)]
        now.fake.fault("reject", salt=spoiled, hint=hint)
        now.accept(500, 0, lanes=1)
        now.arrived(dead=bad)
        assert set(now.accepted) - set(salts(now.fake.stored)) == set(spoiled)
        assert len(now.road.batches) <= bad * 19, "each at most as much as one alone"


def test_a_wave_of_refusals_pauses_raises_an_alarm_and_resume_starts_the_count_anew(tmp_path: Path) -> None:
    with scene(tmp_path, dead={"wave": "20/400"}) as now, capture_logs() as lines:
        now.fake.fault("reject", contains="added-to-cart")
        now.accept(100, 5, lanes=1)
        until("the alarm", lambda: any("paused" in line["event"] for line in lines))
        moment(0.2)  # several probes long
        assert (now.ledger["dead"], now.ledger["delivered"]) == (20, 5)
        until(  # for a moment a probe's own refusal stands there
            "the status to name the wave",
            lambda: any("20 of the last 400" in (lane["last_error"] or "") for lane in now.lanes),
        )
        resume(now)
        until("twenty more", lambda: now.ledger["dead"] == 40)
        moment(0.2)
        assert now.ledger["dead"] == 40
        now.fake.clear_faults()
        now.arrived(dead=40)


def resume(now: Scene) -> None:
    """As ``tillpost resume`` does."""
    path = str(now.running.path)
    admin = reach(load(flags=[("buffer.path", "--buffer", path)], default_file=None, environ={}))
    assert isinstance(admin, Running)
    assert json.loads(admin.resume(None)) == {"count": 2}


# -- too large ----------------------------------------------------------------------------------

SIZES: dict[str, tuple[Any, ...]] = {
    "413 of the API": ("413", {"max_bytes": 20_000}),
    "413 of nginx": ("html", {"status": 413, "max_bytes": 20_000}),
    "reset": ("reset", {"max_bytes": 20_000}),
}


@pytest.mark.parametrize("name", SIZES)
def test_bodies_that_are_too_large_are_split_and_the_limit_remembered(tmp_path: Path, name: str) -> None:
    fault, detail = SIZES[name]
    with scene(tmp_path) as now:
        now.fake.fault(fault, times=None, **detail)
        now.accept(300, 20)
        now.arrived()
        before = len(now.road.batches)
        now.accept(300, 20)
        now.arrived()
        assert all(len(each.body) <= 20_000 for each in now.road.batches[before:]), "it knows by now"
        assert now.ledger["dead"] == 0


def test_a_413_with_a_reset_while_the_body_is_still_on_its_way_splits_too(tmp_path: Path) -> None:
    with scene(tmp_path) as now:
        too_large = answer(413, PORTAL, HTML)
        now.road.hole("body", "reset", times=None, over=50_000, keep=8_000, say=too_large)
        now.accept(400, 20, pad=500)
        now.arrived()


def test_a_record_too_large_alone_is_buried_and_the_others_are_not(tmp_path: Path) -> None:
    with scene(tmp_path) as now:
        now.fake.fault("413", times=None, max_bytes=9_000)
        now.accept(20, 0, lanes=1)
        now.accept(1, 0, pad=10_000)
        now.accept(20, 0, lanes=1)
        now.arrived(dead=1)


# -- some of it ---------------------------------------------------------------------------------


def errors(*entries: Any) -> bytes:
    return answer(207, json.dumps(entries).encode(), JSON)


def named(index: int) -> dict[str, Any]:
    return {"code": 1, "field": f"[{index}].params.sku", "message": "must not be null"}


SOME: dict[str, tuple[bytes, int]] = {
    "two by position": (errors(named(3), named(7)), 2),
    "the same twice": (errors(named(3), named(3)), 1),
    "one by its value": (errors({"field": "eventSalt", "message": "no", "rejectedValue": "e5"}), 1),
    "a value that all have": (errors({"field": "label", "message": "no", "rejectedValue": "cart"}), 0),
    "a position that is none": (errors(named(500)), 0),
    "nobody by name": (errors({"message": "something was wrong"}), 0),
    "more entries than records": (errors(*({"message": f"e {i}"} for i in range(40))), 0),
    "one by name and one without": (errors(named(3), {"message": "and another"}), 1),
    "entries that are no objects": (answer(207, b'["no", 5, null]', JSON), 0),
    "a word": (answer(207, b'"partly"', JSON), 0),
    "nothing": (answer(207), 0),
    "an object without errors": (answer(207, b'{"status":"partial"}', JSON), 0),
    "an object with errors": (answer(207, json.dumps({"errors": [named(2)]}).encode(), JSON), 1),
    "not JSON": (answer(207, b"[{", JSON), 0),
    "a web page": (answer(207, PORTAL, HTML), 0),
    "a success that lists errors": (answer(202, json.dumps({"errors": [named(2)]}).encode(), JSON), 1),
}


CERTAIN = {
    "two by position", "the same twice", "one by its value", "an object with errors", "a success that lists errors",
}  # fmt: skip
"""Every entry names one record, so that nothing need be sent again."""


@pytest.mark.parametrize("name", SOME)
def test_of_a_partial_success_only_what_is_certain_is_believed(tmp_path: Path, name: str) -> None:
    """The fake stores what it is sent and the answer is replaced: whatever is not confirmed is sent again."""
    said, dead = SOME[name]
    with scene(tmp_path) as now:
        now.road.hole("answer", "close", say=said)
        now.accept(20, 0, lanes=1)
        until("all to be settled", lambda: now.ledger["pending"] == 0)
        ledger = now.ledger
        assert (ledger["delivered"], ledger["dead"]) == (20 - dead, dead)
        assert len(now.fake.stored) == 20
        assert (now.fake.overwritten > 0) == (name not in CERTAIN)
        assert now.fake.altered == 0
        assert now.fake.violations == []


def test_207_storms_from_the_real_api_lose_nobody(tmp_path: Path) -> None:
    for shape in ("index", "bare", "2022"):
        folder = tmp_path / shape
        folder.mkdir()
        with scene(folder, switches={"error_shape": shape}) as now:
            now.fake.fault("207", salt=["e3", "e11"], times=None)
            now.accept(40, 5)
            now.arrived(dead=2)
