"""Tokens that run out, keys taken back or half written, a login that fails: the data waits, nothing is buried."""

import os
from pathlib import Path

import pytest

from collector.testing import FakeUpstream
from tests.collector.logged import capture_logs
from tests.collector.scripted import answer
from tests.faults.road import End
from tests.faults.scene import Scene, moment, scene, until


def logins(now: Scene) -> int:
    return sum("login" in each.path for each in now.road.seen)


def change_key(fake: FakeUpstream, key: str) -> None:
    """The workspace gets another key; what the old one was good for is over."""
    fake._api.gate._api_key = key
    fake.expire_tokens()


def test_tokens_that_run_out_again_and_again_are_renewed_once_for_all(tmp_path: Path) -> None:
    with scene(tmp_path) as now:
        for times in range(1, 6):
            now.accept()
            now.arrived()
            assert logins(now) == times
            now.fake.expire_tokens()


@pytest.mark.parametrize("offset_s", [-600, 600])
def test_a_clock_that_is_ten_minutes_off_makes_no_storm_of_logins(tmp_path: Path, offset_s: int) -> None:
    """By our own clock such a token would be over before it came, or live three times as long."""
    switches = {"jwt": True, "token_life_s": 300, "clock_offset_s": offset_s}
    with capture_logs() as lines, scene(tmp_path, switches=switches) as now:
        for _ in range(5):
            now.accept()
            now.arrived()
        assert logins(now) == 1
    assert [line["life_s"] for line in lines if line["event"] == "login.done"] == [pytest.approx(300, abs=5)]


TROUBLE: dict[str, tuple[bytes | End, str]] = {
    "an error": (answer(500), "backing-off"),
    "busy": (answer(503, b"", "Retry-After: 0.05"), "backing-off"),
    "too many": (answer(429), "backing-off"),
    "a captive portal": (answer(200, b"<html>hotel</html>", "Content-Type: text/html"), "backing-off"),
    "no token": (answer(200, b"{}", "Content-Type: application/json"), "backing-off"),
    "a token that would be another header": (
        answer(200, b'{"token":"a\\r\\nX: y"}', "Content-Type: application/json"), "backing-off",
    ),
    "reset": ("reset", "backing-off"),
    "hang": ("hang", "backing-off"),
    "invalid key": (answer(401, b'{"status":401}', "Content-Type: application/json"), "paused"),
    "forbidden": (answer(403), "paused"),
    "not found": (answer(404), "paused"),
    "redirect": (answer(302, b"", "Location: http://127.0.0.1:1/"), "paused"),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLE)
def test_a_login_in_trouble_costs_nothing_but_time(tmp_path: Path, name: str) -> None:
    end, state = TROUBLE[name]
    with scene(tmp_path, upstream={"timeout": "200ms"}) as now:
        now.accept()
        now.arrived()
        hole = now.road.hole("request", end, times=None, path="login")
        now.fake.expire_tokens()
        now.accept()
        now.all_are(state)
        until("it to be tried again", lambda: hole.hits >= 3)
        now.kept(25)
        now.road.mend()
        now.arrived()


def test_a_key_that_was_taken_back_pauses_and_its_successor_is_found_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k\n")
    with scene(tmp_path, upstream={"api_key_file": str(file)}) as now:
        now.accept()
        now.arrived()
        change_key(now.fake, "new-key-0123456789")
        now.accept()
        now.all_are("paused")
        for half_written in ("", "new-key-", "new-key-0123456789\nand another"):
            file.write_text(half_written)
            before = now.fake.stored_count
            moment(0.15)  # several probes long
            assert now.fake.stored_count == before
            now.kept(25)
        file.unlink()
        moment(0.1)
        now.kept(25)
        fresh = tmp_path / "key.new"
        fresh.write_text("new-key-0123456789\n")
        os.replace(fresh, file)
        now.arrived()


def test_a_storm_of_403_ends_by_itself_when_the_permission_comes_back(tmp_path: Path) -> None:
    with scene(tmp_path) as now:
        now.fake.fault("403", times=None)
        now.accept()
        now.all_are("paused")
        moment(0.15)
        assert logins(now) <= 2, "a new token would have the same permissions"
        now.kept()
        now.fake.clear_faults()
        now.arrived()
