"""Logs: quiet in a host application, one line a fact in the sidecar."""

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from collector import logs


@pytest.fixture
def untouched() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    root, ours = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_lines_carry_event_level_and_facts(untouched: None) -> None:
    stream = io.StringIO()
    logs.configure("info", "auto", stream)
    logs.logger("lanes").info("paused", lane="events/email/live", attempts=3, share="100 %")
    logs.logger("lanes").debug("not asked for")
    line = json.loads(stream.getvalue())
    assert line["event"] == "paused"
    assert (line["level"], line["logger"], line["attempts"]) == ("info", "tillpost.lanes", 3)
    assert line["timestamp"].endswith("Z")


def test_on_a_terminal_lines_are_text(untouched: None) -> None:
    stream = Terminal()
    logs.configure("debug", "auto", stream)
    logs.logger("lanes").debug("paused", lane="events/email/live")
    assert "paused" in stream.getvalue()
    assert "lane=events/email/live" in stream.getvalue()


def test_an_exception_is_one_line_that_says_where_and_quotes_nothing(untouched: None) -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    try:
        try:
            json.loads("anna@example.com")
        except ValueError as error:
            raise KeyError("anna@example.com") from error
    except KeyError:
        logs.logger("lanes").exception("failed")
        logging.getLogger("library").exception("failed too")
    for line in map(json.loads, stream.getvalue().splitlines()):
        assert line["exception"].startswith("KeyError < test_logs.py:")
        assert ", after JSONDecodeError < decoder.py:" in line["exception"]
    assert stream.getvalue().count("\n") == 2
    assert "anna" not in stream.getvalue()


def test_lines_of_libraries_and_of_plain_structlog_come_the_same_way(untouched: None) -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logging.getLogger("aiohttp.access").info("GET /?email=anna@example.com")
    logging.getLogger("asyncio").warning("slow: %s", 3)
    structlog.get_logger().info("paused", lane="x")
    library, ours = map(json.loads, stream.getvalue().splitlines())
    assert (library["event"], library["logger"]) == ("slow: 3", "asyncio")
    assert (ours["event"], ours["lane"]) == ("paused", "x")


def test_a_host_that_configured_its_logging_sees_readable_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tillpost"):
        logs.logger("lanes").info("paused", lane="events/email/live", share="100 %")
    assert caplog.messages == ["paused lane=events/email/live share=100 %"]


def test_a_host_that_configured_nothing_sees_nothing_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    logs.logger("lanes").info("paused")
    assert capsys.readouterr().out == ""


def test_the_same_line_is_said_once_a_minute_with_how_often_it_was_left_out(
    untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(logs.Repeats.__init__, "__defaults__", (lambda: now[0],))
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    lanes = logs.logger("lanes")
    for second in range(130):
        now[0] = 1000.0 + second
        lanes.info("lane.backing_off", lane="events/email/live", reason="offline", failures=second)
        logging.getLogger("asyncio").warning("slow")
    lanes.info("lane.backing_off", lane="events/email/live", reason="503", failures=7)
    for _ in range(3):
        lanes.critical("buffer_failed")
    lines = list(map(json.loads, stream.getvalue().splitlines()))
    offline = [line for line in lines if line.get("reason") == "offline"]
    assert [(line["failures"], line.get("repeated")) for line in offline] == [(0, None), (60, 59), (120, 59)]
    assert sum(line["event"] == "slow" for line in lines) == 3
    assert sum(line.get("reason") == "503" for line in lines) == 1  # another reason is another line
    assert sum(line["event"] == "buffer_failed" for line in lines) == 3


def test_what_was_said_is_remembered_within_bounds() -> None:
    repeats = logs.Repeats(lambda: 5.0)
    for key in range(10_000):
        assert repeats.due(key) == 0
    assert len(repeats._said) <= 1000


def test_in_debug_every_line_is_written(untouched: None) -> None:
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    for _ in range(5):
        logs.logger("lanes").info("lane.paused", lane="x")
    assert stream.getvalue().count("lane.paused") == 5


LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def events_in(source: str) -> set[str]:
    """The names of the events that a module logs."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        func = node.func
        is_level = isinstance(func, ast.Attribute) and func.attr in LEVELS and "log" in ast.unparse(func.value)
        if is_level or (isinstance(func, ast.Name) and func.id == "say"):
            first = node.args[0]
            chosen = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
            found |= {ast.literal_eval(one) for one in chosen if isinstance(one, ast.Constant)}
    return found


def test_every_event_is_listed_for_whoever_reads_the_log() -> None:
    root = Path(__file__).parents[2]
    logged = {
        event
        for module in (root / "collector").rglob("*.py")
        if not {"testing", "demo"} & set(module.parts)
        for event in events_in(module.read_text())
    }
    page = (root / "docs/operations/logs.md").read_text()
    assert len(logged) > 30
    assert set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))) == logged
