"""What a person at a terminal gets: bars, a watch, questions, completion; and plain words elsewhere."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import BashComplete

from collector.cli import main
from collector.cli.progress import Plain
from collector.cli.watch import Rates
from tests.collector.test_cli import AdminSocket, admin, buffer, holding, lane, tillpost
from tests.collector.test_metrics import STATUS

__all__ = ["admin", "buffer"]


class Terminal:
    """A command on a terminal of 120 columns, and what it showed."""

    def __init__(self, *args: str | Path, environ: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TILLPOST_", "NO_COLOR"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collector", *map(str, args)],
            stdin=theirs, stdout=theirs, stderr=theirs, env={**clean, "TERM": "xterm", **(environ or {})},
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self._ours, 65536).decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
            while piece := os.read(self._ours, 65536):
                self.seen += piece.decode()
        os.close(self._ours)
        return self.process.wait(30)


# Progress


def test_drain_shows_a_bar_with_records_rate_and_time_on_a_terminal(admin: AdminSocket, buffer: Path) -> None:
    admin.statuses = [holding(lane(n)) for n in (90, 60, 60, 20, 0)]
    terminal = Terminal("drain", "--buffer", buffer)
    assert terminal.end() == 0
    assert "100%" in terminal.seen
    assert "90 records" in terminal.seen
    assert "/s" in terminal.seen
    assert "\x1b[3" in terminal.seen  # colours
    admin.statuses = [holding(lane(n)) for n in (90, 0)]
    plain = Terminal("drain", "--buffer", buffer, environ={"NO_COLOR": "1"})
    assert plain.end() == 0
    assert "\x1b[3" not in plain.seen


def test_elsewhere_there_is_a_line_now_and_then_with_rate_and_remaining_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    plain = Plain(lambda: now[0])
    plain.start("drain", 1000, 0, 0, "records")
    for second in range(11):
        now[0] = float(second)
        plain.advance(second * 50, second * 50)
    plain.start("f.jsonl", 4096, 1024, 10)
    now[0] = 20.0
    plain.advance(2048, 30)
    assert capsys.readouterr().err.splitlines() == [
        "drain: 250 records of 1000 (25 %), 50/s, 15.0s left",
        "drain: 500 records of 1000 (50 %), 50/s, 10.0s left",
        "f.jsonl: 10 lines (1 KiB) were confirmed earlier",
        "f.jsonl: 30 lines, 2 KiB of 4 KiB (50 %), 2/s, 20.0s left",
    ]


# status --watch


def test_the_watch_tells_how_fast_the_ledger_changes() -> None:
    rates = Rates()
    ledger: dict[str, Any] = {"accepted": 100, "delivered": 40, "pending": 60}
    assert rates.seen(ledger, 10.0) == ""
    assert rates.seen({"accepted": 110, "delivered": 80, "pending": 30}, 12.0) == (
        "accepted 5/s  delivered 20/s  empty in 2.0s"
    )
    assert rates.seen({"accepted": 120, "delivered": 80, "pending": 40}, 13.0) == "accepted 10/s  delivered 0/s"


def test_the_watch_on_a_terminal_waits_for_a_collector_that_restarts_and_leaves_what_was_seen(
    admin: AdminSocket, buffer: Path
) -> None:
    terminal = Terminal("status", "--watch", "--buffer", buffer)
    terminal.until("accepted 1200 = ")
    admin.refusal = (503, "stopping")
    terminal.until("waiting for it")
    admin.refusal = None
    admin.statuses = [{**STATUS, "version": "9.9.9"}]
    terminal.until("9.9.9")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "9.9.9" in terminal.seen.rpartition("\x1b[?1049l")[2]  # after the screen before came back


# Questions


def test_discarding_everything_asks_a_person_first_and_a_script_never(admin: AdminSocket, buffer: Path) -> None:
    terminal = Terminal("dead", "discard", "--all", "--buffer", buffer)
    terminal.until("Give 2 dead letters up for good?")
    terminal.type("n\n")
    assert terminal.end() == 130
    assert ("/v1/dead-letters/discard", {"all": True}) not in admin.calls
    told = Terminal("dead", "discard", "--all", "--yes", "--buffer", buffer)
    assert told.end() == 0
    assert tillpost("dead", "discard", "--all", "--buffer", buffer).exit_code == 0
    assert admin.calls.count(("/v1/dead-letters/discard", {"all": True})) == 2


def test_a_command_that_does_not_exist_is_answered_with_the_nearest() -> None:
    result = tillpost("statsu")
    assert result.exit_code == 2
    assert "No such command 'statsu'; did you mean status?" in result.stderr


# Completion


def completed(*words: str | Path) -> list[str]:
    """What a shell would offer for the last of these words."""
    *before, last = map(str, words)
    made = BashComplete(main, {}, "tillpost", "_TILLPOST_COMPLETE")
    return [item.value for item in made.get_completions(before, last)]


def test_the_shell_completes_commands_keys_lanes_and_people(admin: AdminSocket, buffer: Path) -> None:
    assert completed("sta") == ["status"]
    assert completed("run", "--set", "clock.m") == ["clock.margin="]
    assert completed("resume", "--buffer", buffer, "ev") == ["events/email/live", "events/uuid/bulk"]
    assert completed("resume", "--buffer", "/nowhere/t.db", "ev") == []
    assert completed("forget", "--client", "em") == ["email="]


def test_the_command_answers_a_shell_that_asks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'tillpost'; from collector.cli import main; main()"],
        env={**os.environ, "_TILLPOST_COMPLETE": "bash_complete", "COMP_WORDS": "tillpost dr", "COMP_CWORD": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("plain,drain\n", "")


def test_the_completion_script_is_for_the_command_as_it_is_called() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_TILLPOST_COMPLETE" in tillpost("completion", shell).stdout
    assert tillpost("completion", "csh").exit_code == 2
