"""The command line: what it takes, what it prints, and how it ends."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from collector.cli import main
from tests.collector.test_metrics import STATUS
from tests.collector.test_send import Double, double

__all__ = ["double"]

LETTERS: list[dict[str, Any]] = [
    {"id": i, "kind": "events", "identifier": "email", "reason": "client.email: bad", "status": 400, "answer": "{}",
     "died_at": "2026-05-04T09:53:56.999Z", "superseded": i == 3,
     "record": {"type": "custom", "n": i}}
    for i in range(1, 251)
]  # fmt: skip


class AdminSocket:
    """A collector's admin socket beside a buffer, on a real Unix socket, with canned answers."""

    def __init__(self, buffer: Path) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.statuses: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.refusal: tuple[int, str] | None = None
        admin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(None)

            def do_POST(self) -> None:
                self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _reply(self, body: Any) -> None:
                admin.calls.append((self.path, body))
                status, answer = admin.refusal or (200, None)
                content = json.dumps({"message": answer} if admin.refusal else admin.answer(self.path, body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

            def address_string(self) -> str:
                return "unix"

        buffer.touch()
        self._server = socketserver.ThreadingUnixStreamServer(str(buffer) + ".sock", Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def answer(self, path: str, body: Any) -> Any:
        url = urlsplit(path)
        if url.path == "/status.json":
            return self.statuses.pop(0) if len(self.statuses) > 1 else (self.statuses or [STATUS])[0]
        if url.path == "/v1/dead-letters":
            query = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
            rest = [letter for letter in LETTERS if letter["id"] > query.get("after", 0)]
            page = rest[: query["limit"]]
            return {"dead_letters": page, "next": page[-1]["id"] if len(rest) > len(page) else None}
        if url.path in ("/v1/dead-letters/retry", "/v1/dead-letters/discard"):
            return {"count": len(LETTERS) if body.get("all") else sum(i <= 250 for i in body["ids"])}
        if url.path == "/v1/find":
            return {"found": self.found}
        if url.path == "/v1/forget":
            return {"count": 2, "quarantined": ["/srv/tillpost.db.quarantine/1.db"]}
        return {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    return tmp_path / "tillpost.db"


@pytest.fixture
def admin(buffer: Path) -> Iterator[AdminSocket]:
    served = AdminSocket(buffer)
    yield served
    served.close()


def tillpost(*args: str | Path, environ: Mapping[str, str] | None = None, stdin: str | None = None) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("TILLPOST_")}
    return CliRunner().invoke(main, [str(arg) for arg in args], env={**clean, **(environ or {})}, input=stdin)


def process(
    *args: str | Path, environ: Mapping[str, str] | None = None, **more: Any
) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TILLPOST_")}
    return subprocess.run(
        [sys.executable, "-m", "collector", *map(str, args)],
        env={**clean, **(environ or {})}, capture_output=True, text=True, timeout=60, **more,
    )  # fmt: skip


# Mistakes


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["run", "--bogus"], "Try 'tillpost run --help'"),
        (["run", "--set", "batch.lingr=1s"], "--set: unknown key batch.lingr; did you mean batch.linger?"),
        (["run", "--set", "linger"], "--set linger: write section.key=value"),
        (["run", "--upstream", "nowhere"], "--upstream = 'nowhere': must be a URL"),
        (["run"], "set TILLPOST_API_KEY, TILLPOST_API_KEY_FILE or upstream.api_key_file"),
        (["run", "--config", "/none.toml"], "/none.toml: cannot read the configuration file"),
        (["config", "--set", "x=1"], "unknown key x"),
        (["send"], "name a file, - for standard input"),
        (["send", "/none.jsonl"], "'/none.jsonl' does not exist"),
        (["dead", "retry"], "or --all"),
        (["dead", "retry", "1", "--all"], "or --all"),
        (["dead", "show", "x"], "not a valid integer"),
        (["find"], "exactly one of --order-id, --salt and --client"),
        (["find", "--client", "phone=1"], "one of customId, email, id, uuid"),
        (["find", "--client", "id=x"], "for example email=anna@example.com"),
        (["forget"], "--client"),
        (["demo", "--sabotage", "all"], "drop"),
        (["fake-upstream", "--set", "nulls"], "write switch=value"),
    ],
)
def test_a_mistake_is_answered_by_one_line_and_exit_2(args: list[str], words: str) -> None:
    result = tillpost(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("tillpost: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_a_variable_that_does_not_exist_stops_every_command() -> None:
    result = tillpost("status", environ={"TILLPOST_BUFFER__PTH": "x"})
    assert result.exit_code == 2
    assert "did you mean TILLPOST_BUFFER__PATH?" in result.stderr


def test_a_buffer_that_is_not_there_is_unusable(tmp_path: Path) -> None:
    for command in (["status"], ["dead", "list"], ["find", "--salt", "s"], ["drain"], ["resume"]):
        result = tillpost(*command, "--buffer", tmp_path / "none.db")
        assert result.exit_code == 4
        assert "there is no such file. Name it with --buffer" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_the_command_and_tells_its_version() -> None:
    result = process("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("tillpost, version ")


def test_a_mistake_in_a_real_process_has_no_traceback() -> None:
    result = process("run", "--set", "buffer.max_size=1MB", environ={"TILLPOST_API_KEY": "k"})
    assert result.returncode == 2
    assert result.stderr == "tillpost: --set: buffer.max_size = '1MB': must be at least 4MiB\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly(admin: AdminSocket, buffer: Path) -> None:
    long = {**LETTERS[0], "record": {"text": "x" * 200_000}}
    admin.answer = lambda path, body: {"dead_letters": [long] * 20, "next": None}  # type: ignore[method-assign]
    running = subprocess.Popen(
        [sys.executable, "-m", "collector", "dead", "export", "--buffer", str(buffer)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.read(10)
    running.stdout.close()
    assert b"Traceback" not in running.stderr.read()
    running.stderr.close()
    assert running.wait(30) == 1


# config


def test_config_shows_values_sources_and_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(f'[upstream]\napi_key_file = "{tmp_path}/key"\n[batch]\nlinger = "5s"\n')
    result = tillpost(
        "config", "--config", tmp_path / "t.toml", "--buffer", "b.db",
        environ={"TILLPOST_DELIVERY__BACKOFF_MAX": "10m", "TILLPOST_INGEST_TOKEN": "hush-hush"},
    )  # fmt: skip
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if not line.startswith("(")}
    assert rows["batch.linger"] == ["5s", str(tmp_path / "t.toml")]
    assert rows["delivery.backoff_max"] == ["10m", "TILLPOST_DELIVERY__BACKOFF_MAX"]
    assert rows["buffer.path"] == ["b.db", "--buffer"]
    assert rows["clock.hold_max"] == ["1d", "default"]
    assert "hush" not in result.output
    assert "********" in result.stdout
    assert f"{tmp_path}/key" in result.stdout
    assert result.exit_code == 0


def test_config_as_json_has_every_value_with_its_source() -> None:
    result = tillpost("config", "--json", environ={"TILLPOST_API_KEY": "hush-hush"})
    facts = json.loads(result.stdout)
    assert facts["values"]["batch.linger"] == {"value": 1.0, "shown": "1s", "source": "default"}
    assert facts["secrets"]["api_key"] == {"value": "********", "source": "TILLPOST_API_KEY"}
    assert facts["secrets"]["admin_token"] == {"value": None, "source": None}
    assert facts["problem"] is None


def test_config_ends_with_2_where_run_would() -> None:
    result = tillpost("config")
    assert result.exit_code == 2
    assert "upstream.url" in result.stdout
    assert "TILLPOST_API_KEY" in result.stderr


# Through the admin socket


def test_status_is_readable_and_as_json_the_http_body(admin: AdminSocket, buffer: Path) -> None:
    result = tillpost("status", "--buffer", buffer)
    assert "accepted 1200 = delivered 1100 + pending 98 + dead 2" in result.stdout
    assert "events/email/live" in result.stdout
    assert "backing-off" in result.stdout
    assert json.loads(tillpost("status", "--buffer", buffer, "--json").stdout) == STATUS


def test_status_is_watched_until_interrupted(admin: AdminSocket, buffer: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "collector", "status", "--watch", "--json", "--buffer", str(buffer)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stderr is not None
    assert [json.loads(running.stdout.readline()) for _ in range(2)] == [STATUS, STATUS]
    running.send_signal(signal.SIGINT)
    assert (running.wait(30), running.stderr.read()) == (0, b"")
    running.stdout.close()
    running.stderr.close()


def test_dead_letters_are_listed_a_page_at_a_time(admin: AdminSocket, buffer: Path) -> None:
    result = tillpost("dead", "list", "--buffer", buffer, "--limit", "2", "--after", "1")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ID", "2", "3"]
    assert "(superseded)" in result.stdout
    assert "--after 3" in result.stderr
    body = json.loads(tillpost("dead", "list", "--buffer", buffer, "--json", "--limit", "2").stdout)
    assert body == {"dead_letters": LETTERS[:2], "next": 2}


def test_a_dead_letter_is_shown_whole(admin: AdminSocket, buffer: Path) -> None:
    assert json.loads(tillpost("dead", "show", "7", "--buffer", buffer).stdout) == LETTERS[6]
    missing = tillpost("dead", "show", "999", "--buffer", buffer)
    assert (missing.exit_code, missing.stderr) == (1, "tillpost: there is no dead letter 999\n")


def test_retry_and_discard_take_ids_or_all(admin: AdminSocket, buffer: Path) -> None:
    assert tillpost("dead", "retry", "1", "2", "--buffer", buffer).stdout == "retrying 2 dead letters\n"
    assert tillpost("dead", "retry", "--all", "--force", "--buffer", buffer).exit_code == 0
    assert json.loads(tillpost("dead", "discard", "--all", "--json", "--buffer", buffer).stdout) == {"count": 250}
    partly = tillpost("dead", "discard", "5", "999", "--buffer", buffer)
    assert partly.exit_code == 1
    assert [call for call in admin.calls if call[0].endswith(("retry", "discard"))] == [
        ("/v1/dead-letters/retry", {"ids": [1, 2]}),
        ("/v1/dead-letters/retry", {"all": True, "force": True}),
        ("/v1/dead-letters/discard", {"all": True}),
        ("/v1/dead-letters/discard", {"ids": [5, 999]}),
    ]


def test_export_writes_json_lines_without_what_is_superseded(admin: AdminSocket, buffer: Path, tmp_path: Path) -> None:
    result = tillpost("dead", "export", tmp_path / "dead.jsonl", "--buffer", buffer)
    lines = (tmp_path / "dead.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [i for i in range(1, 251) if i != 3]
    assert "exported 249 dead letters; 1 superseded left out" in result.stderr
    assert (tmp_path / "dead.jsonl").stat().st_mode & 0o777 == 0o600
    assert len(tillpost("dead", "export", "--superseded", "--buffer", buffer).stdout.splitlines()) == 250


def test_find_says_where_a_record_is_and_ends_with_1_when_it_is_not_here(admin: AdminSocket, buffer: Path) -> None:
    admin.found = [{"state": "pending", "kind": "transactions", "identifier": "email", "priority": "live",
                    "order_id": "T-07/1", "salt": "s-1", "accepted_at": "2026-05-04T09:53:56.999Z"}]  # fmt: skip
    result = tillpost("find", "--order-id", "T-07/1", "--buffer", buffer)
    assert result.exit_code == 0
    assert "pending  transactions/email/live" in result.stdout
    admin.found = []
    assert tillpost("find", "--client", "id=7", "--buffer", buffer).exit_code == 1
    gone = tillpost("find", "--client", "-", "--buffer", buffer, stdin="email=anna@example.com\n")
    assert (gone.exit_code, gone.stdout) == (1, "not here: delivered, or never accepted\n")
    assert [body for path, body in admin.calls if path == "/v1/find"] == [
        {"order_id": "T-07/1"}, {"client": {"id": 7}}, {"client": {"email": "anna@example.com"}},
    ]  # fmt: skip


def test_forget_reads_people_from_standard_input_and_names_quarantined_files(admin: AdminSocket, buffer: Path) -> None:
    result = tillpost("forget", "--client", "-", "--buffer", buffer, stdin="email=a@b.pl\nuuid=u-1\n")
    assert result.stdout == "forgot 4 records\n"
    assert "/srv/tillpost.db.quarantine/1.db is a quarantined file" in result.stderr
    assert [body for path, body in admin.calls if path == "/v1/forget"] == [
        {"client": {"email": "a@b.pl"}}, {"client": {"uuid": "u-1"}},
    ]  # fmt: skip


def test_resume_takes_a_lane_or_none(admin: AdminSocket, buffer: Path) -> None:
    assert tillpost("resume", "events/email/live", "--buffer", buffer).exit_code == 0
    assert tillpost("resume", "--buffer", buffer).exit_code == 0
    assert [body for _, body in admin.calls] == [{"lane": "events/email/live"}, {}]


def test_a_refused_operation_is_told_in_the_collectors_words(admin: AdminSocket, buffer: Path) -> None:
    admin.refusal = (400, "'x' is not a lane: it looks like events/email+uuid/live")
    result = tillpost("resume", "x", "--buffer", buffer)
    assert result.exit_code == 1
    assert "it looks like events/email+uuid/live (400)" in result.stderr


def lane(pending: int, state: str = "sending", aside: int = 0) -> dict[str, Any]:
    return {"kind": "events", "identifier": "email", "priority": "live", "pending": pending, "aside": aside,
            "oldest_age_s": 1.0, "state": state, "attempts": 0, "last_error": None}  # fmt: skip


def holding(*lanes: dict[str, Any]) -> dict[str, Any]:
    pending = sum(entry["pending"] for entry in lanes)
    return {**STATUS, "lanes": list(lanes), "ledger": {"accepted": 100, "pending": pending}}


def test_drain_waits_until_all_is_settled(admin: AdminSocket, buffer: Path) -> None:
    admin.statuses = [holding(lane(90)), holding(lane(40)), holding(lane(0, "idle"))]
    result = tillpost("drain", "--buffer", buffer)
    assert (result.exit_code, result.stdout) == (0, "drained: nothing is pending\n")
    assert admin.calls[0] == ("/v1/drain", {})


def test_drain_names_what_stays_when_the_time_is_over(admin: AdminSocket, buffer: Path) -> None:
    admin.statuses = [holding(lane(5, "backing-off", aside=2))]
    result = tillpost("drain", "--timeout", "0.1", "--buffer", buffer)
    assert result.exit_code == 1
    assert "events/email/live still holds 5 records, 2 of them aside" in result.stderr
    assert "it is backing-off" in result.stderr


def test_drain_without_a_limit_ends_when_nothing_can_move(
    admin: AdminSocket, buffer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.cli.operate._STUCK_S", 0.05)
    admin.statuses = [holding(lane(5, "paused"))]
    assert tillpost("drain", "--buffer", buffer).exit_code == 1
    admin.statuses = [holding(lane(2, "idle", aside=2))]
    assert tillpost("drain", "--buffer", buffer).exit_code == 1


def test_the_configuration_file_names_the_buffer_too(admin: AdminSocket, buffer: Path, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(f'[buffer]\npath = "{buffer}"\n')
    assert tillpost("status", "--config", tmp_path / "t.toml").exit_code == 0
    assert tillpost("status", environ={"TILLPOST_BUFFER__PATH": str(buffer)}).exit_code == 0


def test_a_socket_with_a_long_path_is_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("f" * 120)
    folder.mkdir()
    (tmp_path / "short").symlink_to(folder)
    served = AdminSocket(tmp_path / "short" / "t.db")
    try:
        assert tillpost("status", "--buffer", folder / "t.db").exit_code == 0
    finally:
        served.close()


# send, as a process


def test_send_waits_for_its_collector_and_can_be_interrupted(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text('{"type":"custom","time":"2026-05-04T09:53:56Z","eventSalt":"s"}\n')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        running = subprocess.Popen(
            [sys.executable, "-m", "collector", "send", str(tmp_path / "f.jsonl"),
             "--to", f"http://127.0.0.1:{taken.getsockname()[1]}"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert running.stderr is not None
        assert "waiting for the collector at http://127.0.0.1" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
        running.stderr.close()
        assert running.wait(30) == 130
    assert rest.endswith("tillpost: interrupted\n")
    assert "Traceback" not in rest


def on_a_terminal(*args: str | Path) -> tuple[int, str]:
    """Exit code and what a person saw: standard error is a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TILLPOST_", "NO_COLOR"))}
    running = subprocess.Popen(
        [sys.executable, "-m", "collector", *map(str, args)],
        stdout=subprocess.DEVNULL, stderr=theirs, env={**clean, "TERM": "xterm", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    return running.wait(30), seen.decode()


def test_send_shows_a_progress_bar_on_a_terminal_and_no_colours_when_told_so(double: Double, tmp_path: Path) -> None:
    line = '{"type":"custom","time":"2026-05-04T09:53:56Z","eventSalt":"s-%d"}\n'
    (tmp_path / "f.jsonl").write_text("".join(line % i for i in range(3000)))
    code, seen = on_a_terminal("send", tmp_path / "f.jsonl", "--to", double.url)
    assert code == 0
    assert "f.jsonl" in seen
    assert "100%" in seen
    assert "3,000 lines" in seen
    assert "\x1b[3" not in seen


def test_send_accounts_for_every_line_and_ends_with_1_when_some_were_refused(double: Double, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"type":"a","time":"2026-05-04T09:53:56Z","eventSalt":"s"}\nnonsense\n')
    result = tillpost("send", path, "--to", double.url, environ={"TILLPOST_INGEST_TOKEN": "the-token"})
    assert result.exit_code == 1
    assert result.stdout.startswith("sent 1, already confirmed 0, rejected 1, ")
    assert "FILE.rejects.txt" in result.stderr
    assert double.requests[0][1]["Authorization"] == "Bearer the-token"
    again = tillpost("send", path, environ={"TILLPOST_URL": double.url})
    assert again.stdout.startswith("sent 0, already confirmed 1, rejected 1, ")


def test_send_reads_standard_input(double: Double, tmp_path: Path) -> None:
    line = '{"type":"a","time":"2026-05-04T09:53:56Z","eventSalt":"s"}\n'
    result = process("send", "-", "--to", double.url, input=line * 3, cwd=tmp_path)
    assert (result.returncode, len(double.records)) == (0, 3)
    assert list(tmp_path.iterdir()) == []


def test_send_checks_its_arguments_before_it_reads() -> None:
    assert (
        "--default-time: a time needs an offset"
        in tillpost("send", "-", "--default-time", "2026-05-04T09:53:56", stdin="").stderr
    )
    assert "--to: not a collector's address" in tillpost("send", "-", "--to", "nowhere", stdin="").stderr
    assert "TILLPOST_URL: " in tillpost("send", "-", stdin="", environ={"TILLPOST_URL": "nowhere"}).stderr


# fake-upstream


def test_fake_upstream_prints_its_url_and_serves_until_it_is_told_to_stop() -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "collector", "fake-upstream", "--listen", "127.0.0.1:0", "--set", "nulls=ignore"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    url = running.stdout.readline().strip()
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connected:
        connected.sendall(b"GET /fake/report HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in connected.recv(1000)
    running.send_signal(signal.SIGTERM)
    running.stdout.close()
    assert running.wait(30) == 0


def test_the_switches_of_fake_upstream_are_listed_and_checked() -> None:
    assert "one_mb" in tillpost("fake-upstream", "--switches").stdout
    result = tillpost("fake-upstream", "--set", "nuls=refuse")
    assert result.exit_code == 2
    assert "nulls" in result.stderr
