"""Logs: quiet in a host application, one line a fact in the sidecar."""

import io
import json
import logging
from collections.abc import Iterator

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
