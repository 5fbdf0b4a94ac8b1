"""``send``: every line once at the collector, or in the rejects, whatever happens in between."""

import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from collector.connection import UnixConnection
from collector.lines import Lines, Rejected
from collector.post import NotACollector, Post
from collector.send import Pace, Progress, Sender, SendFailed, Totals

Answer = tuple[int, dict[str, str], Any]
Script = Callable[["Double", str, list[Any]], Answer | None]


class Double:
    """A collector on a real socket: stores what it accepts, as often as it comes; scripted answers go first.

    A script may return an answer, None to go on as usual, or raise ConnectionError: the
    connection is then cut, after storing when the message says ``stored``.
    """

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.script: list[Script] = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    status, headers, content = double._answer(self.path, dict(self.headers), body)
                except ConnectionError:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                payload = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(payload))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((path, headers, body))
        records = json.loads(body)
        if self.script:
            try:
                answer = self.script.pop(0)(self, path, records)
            except ConnectionError as error:
                if "stored" in str(error):
                    self._store(path, body)
                raise
            if answer is not None:
                return answer
        bad = [i for i, record in enumerate(records) if record.get("bad")]
        if bad:
            return refusal(400, *((f"[{i}].bad", "must not be there") for i in bad[:100]))
        self._store(path, body)
        return 202, {"Tillpost-Accepted": str(len(records))}, None

    def _store(self, path: str, body: bytes) -> None:
        lines = body[1:-1].replace(b"},{", b"}\n{").split(b"\n")
        self.records += ((path, line) for line in lines)

    @property
    def salts(self) -> Counter[str]:
        return Counter(json.loads(record)["eventSalt"] for _, record in self.records)


def refusal(status: int, *errors: tuple[str, str], **headers: str) -> Answer:
    named = [{"code": 1, "field": f, "message": m, "rejectedValue": "anna@example.com"} for f, m in errors]
    body = {"status": status, "message": "Some fields did not pass validation", "errors": named}
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


@pytest.fixture
def double() -> Iterator[Double]:
    double = Double()
    yield double
    double.close()


class Quiet:
    """Collects what a person would have seen."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def start(self, name: str, total: int | None, done: int, count: int, unit: str = "lines") -> None:
        self.steps.append(count)

    def advance(self, done: int, count: int) -> None:
        self.steps.append(count)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Run:
    """One run of ``send``, with what it said and how long it would have slept."""

    def __init__(self, url: str, *, default_time: str | None = None, token: str | None = None) -> None:
        self.display = Quiet()
        self.slept: list[float] = []
        post = Post(url, token=token, note=self.display.note, sleep=self.slept.append, timeout_s=5.0)
        self.sender = Sender(post, self.display, Pace(None), default_time)
        self._post = post

    def file(self, path: Path) -> Totals:
        try:
            self.sender.send_file(path)
        finally:
            self._post.close()
        return self.sender.totals


def event(i: int, **more: Any) -> dict[str, Any]:
    return {"type": "custom", "action": "a.b", "label": "x", "client": {"uuid": f"u{i}"}, "params": {"i": i},
            "time": "2026-05-04T09:53:56.999Z", "eventSalt": f"salt-{i}", **more}  # fmt: skip


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def write(path: Path, *records: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records))
    return path


def rejects(path: Path) -> tuple[list[bytes], list[str]]:
    lines = path.with_name(path.name + ".rejects.jsonl").read_bytes().splitlines()
    return lines, path.with_name(path.name + ".rejects.txt").read_text().splitlines()


# What is sent


def test_lines_go_out_as_they_are_in_bulk_and_by_kind(double: Double, tmp_path: Path) -> None:
    odd = b'  {"type" : "custom", "action":"a.b","time":"2026-05-04T09:53:56+02:00","eventSalt":"s", "n": 12.50}  '
    order = {"orderId": "T-07/1", "recordedAt": "2026-05-04T09:53:56Z", "eventSalt": "o-1"}
    path = write(tmp_path / "f.jsonl", odd, order, event(1))
    assert Run(double.url).file(path).sent == 3
    assert [p for p, _, _ in double.requests] == ["/v4/events/batch", "/v4/transactions/batch"]
    assert double.records[0][1] == odd.strip()
    assert {headers["Tillpost-Priority"] for _, headers, _ in double.requests} == {"bulk"}
    assert "Authorization" not in double.requests[0][1]


def test_requests_hold_at_most_500_lines_and_a_megabyte(double: Double, tmp_path: Path) -> None:
    large = [event(i, label="x" * 300_000) for i in range(1000, 1007)]
    path = write(tmp_path / "f.jsonl", *(event(i) for i in range(1200)), *large)
    assert Run(double.url).file(path).sent == 1207
    assert all(len(json.loads(body)) <= 500 and len(body) <= 1_000_000 for _, _, body in double.requests)
    assert [len(json.loads(body)) for _, _, body in double.requests[:2]] == [500, 500]


def test_the_ingest_token_goes_along(double: Double, tmp_path: Path) -> None:
    Run(double.url, token="the-token").file(write(tmp_path / "f.jsonl", event(1)))
    assert double.requests[0][1]["Authorization"] == "Bearer the-token"


def test_a_byte_order_mark_blank_lines_and_a_missing_last_newline_do_no_harm(double: Double, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(event(1)).encode() + b"\r\n\r\n  \n" + json.dumps(event(2)).encode())
    totals = Run(double.url).file(path)
    assert (totals.sent, totals.rejected) == (2, 0)
    assert Run(double.url).file(path).already == 2


# Salt and time


def test_a_line_without_salt_gets_one_from_its_bytes_and_how_often_it_came(double: Double, tmp_path: Path) -> None:
    line = json.dumps(without(event(1), "eventSalt")).encode()
    path = write(tmp_path / "f.jsonl", line, event(2), line, line)
    Run(double.url).file(path)
    made = [salt for salt in double.salts if salt.startswith("line-")]
    assert len(made) == 3
    assert all(line[1:] in record for _, record in double.records if b"line-" in record)
    (tmp_path / "f.jsonl.tillpost").unlink()
    Run(double.url).file(path)
    assert set(double.salts.values()) == {2}
    assert len(double.salts) == 4


def test_a_line_keeps_its_salt_when_the_run_before_it_was_interrupted(double: Double, tmp_path: Path) -> None:
    same = [without(event(1), "eventSalt")] * 1300
    path = write(tmp_path / "f.jsonl", *same)
    assert not Run(double.url).file(path).rejected
    whole = double.salts
    double.records.clear()
    (tmp_path / "f.jsonl.tillpost").unlink()
    double.script = [lambda *_: None, lambda *_: refusal(403)]
    with pytest.raises(NotACollector):
        Run(double.url).file(path)
    totals = Run(double.url).file(path)
    assert (totals.already, totals.sent) == (500, 800)
    assert double.salts == whole
    assert len(whole) == 1300


def test_a_line_without_time_is_refused_unless_a_time_is_given(double: Double, tmp_path: Path) -> None:
    order = {"orderId": "T-07/1", "eventSalt": "o-1", "recordedAt": None}
    path = write(tmp_path / "f.jsonl", without(event(1), "time"), order, event(2))
    totals = Run(double.url).file(path)
    assert (totals.sent, totals.rejected) == (1, 2)
    assert rejects(path)[1][0].startswith("line 1: has no time; give one in the line, or --default-time")
    assert "recordedAt" in rejects(path)[1][1]
    again = write(tmp_path / "g.jsonl", without(event(1), "time"), order)
    assert Run(double.url, default_time="2026-01-01T00:00:00Z").file(again).sent == 2
    first, second = (json.loads(record) for _, record in double.records[-2:])
    assert (first["time"], second["recordedAt"]) == ("2026-01-01T00:00:00Z",) * 2


def test_now_is_the_time_of_the_first_run(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", *(without(event(i), "time") for i in range(700)))
    double.script = [lambda *_: None, lambda *_: refusal(401)]
    with pytest.raises(NotACollector):
        Run(double.url, default_time="now").file(path)
    Run(double.url, default_time="now").file(path)
    assert len(double.records) == 700
    assert len({json.loads(record)["time"] for _, record in double.records}) == 1
    with pytest.raises(SendFailed, match="begun with --default-time now"):
        Run(double.url, default_time="2026-01-01T00:00:00Z").file(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"type":', "not JSON"), (b"[1]", "not a JSON object"), (b"{}", "neither an event"),
        (b'{"type":null,"orderId":null}', "neither an event"), (b'{"type":"a"} x', "not JSON"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused_here(line: bytes, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        Lines().read(line)


def test_nothing_but_what_is_missing_is_added_to_a_line() -> None:
    line = b' {"type":"a", "n":1.50, "time": null, "eventSalt" :null,"\xc3\xa9":"\\u00e9"}'
    body = Lines("2026-01-01T00:00:00Z").read(line).body
    assert json.loads(body)["time"] == "2026-01-01T00:00:00Z"
    assert b"null" not in body
    assert b'"n":1.50' in body
    assert b'"\\u00e9"' in body


# What is refused


def test_lines_the_collector_names_are_rejected_and_the_rest_is_sent(double: Double, tmp_path: Path) -> None:
    records = [event(i, **({"bad": True} if i in (3, 7, 650) else {})) for i in range(800)]
    path = write(tmp_path / "f.jsonl", *records)
    totals = Run(double.url).file(path)
    assert (totals.sent, totals.rejected) == (797, 3)
    lines, reasons = rejects(path)
    assert [json.loads(line)["params"]["i"] for line in lines] == [3, 7, 650]
    assert reasons[2] == "line 651: bad: must not be there"
    assert "anna" not in "".join(reasons)
    assert set(double.salts.values()) == {1}


def test_rejects_are_for_their_owner_alone(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", event(1, bad=True))
    Run(double.url).file(path)
    for end in (".rejects.jsonl", ".rejects.txt"):
        assert path.with_name(path.name + end).stat().st_mode & 0o777 == 0o600


def test_a_refusal_that_names_nobody_is_narrowed_down(double: Double, tmp_path: Path) -> None:
    def unnamed(_: Double, __: str, records: list[Any]) -> Answer | None:
        return refusal(400) if any(record["params"]["i"] == 5 for record in records) else None

    double.script = [unnamed] * 50
    path = write(tmp_path / "f.jsonl", *(event(i) for i in range(20)))
    totals = Run(double.url).file(path)
    assert (totals.sent, totals.rejected) == (19, 1)
    assert [json.loads(line)["params"]["i"] for line in rejects(path)[0]] == [5]


def test_a_body_that_is_too_large_is_halved(double: Double, tmp_path: Path) -> None:
    def small(_: Double, __: str, records: list[Any]) -> Answer | None:
        return refusal(413) if len(records) > 30 else None

    double.script = [small] * 50
    path = write(tmp_path / "f.jsonl", *(event(i) for i in range(100)))
    assert Run(double.url).file(path).sent == 100
    assert [json.loads(r)["params"]["i"] for _, r in double.records] == list(range(100))


# Trouble on the way


def test_a_lost_answer_repeats_the_same_bytes(double: Double, tmp_path: Path) -> None:
    def lost(*_: Any) -> None:
        raise ConnectionError("stored, and the answer is lost")

    double.script = [lost]
    path = write(tmp_path / "f.jsonl", *(without(event(i), "eventSalt") for i in range(10)))
    assert Run(double.url).file(path).sent == 10
    assert set(double.salts.values()) == {2}
    assert double.requests[0][2] == double.requests[1][2]


def test_a_collector_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    run = Run(url)
    doubles: list[Double] = []

    def wait(seconds: float) -> None:
        run.slept.append(seconds)
        if len(run.slept) == 4:
            double = Double()
            doubles.append(double)
            run._post._connection.port = int(double.url.rpartition(":")[2])

    run._post._sleep = wait
    totals = run.file(write(tmp_path / "f.jsonl", event(1)))
    doubles[0].close()
    assert totals.sent == 1
    assert run.slept == [0.25, 0.5, 1.0, 2.0]
    assert "waiting for the collector" in run.display.notes[0]


@pytest.mark.parametrize("status", [507, 503, 429])
def test_a_full_or_busy_collector_is_waited_for_as_long_as_it_says(double: Double, tmp_path: Path, status: int) -> None:
    double.script = [lambda *_: refusal(status, Retry_After="7"), lambda *_: refusal(status)]
    run = Run(double.url)
    assert run.file(write(tmp_path / "f.jsonl", event(1))).sent == 1
    assert run.slept == [7.0, 0.5]
    assert str(status) in run.display.notes[0]


def test_a_connection_closed_between_two_requests_is_no_outage(double: Double, tmp_path: Path) -> None:
    def cut(*_: Any) -> None:
        raise ConnectionError("not stored")

    double.script = [lambda *_: None, cut]
    run = Run(double.url)
    assert run.file(write(tmp_path / "f.jsonl", *(event(i) for i in range(600)))).sent == 600
    assert run.slept == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((401, {}, {"message": "No token"}), "TILLPOST_INGEST_TOKEN"),
        ((404, {}, None), "is it a Tillpost collector"),
        ((202, {}, None), "without Tillpost-Accepted"),
        ((202, {"Tillpost-Accepted": "1"}, None), "accepted 1 of 2"),
    ],
)
def test_what_is_no_collector_of_ours_ends_it_with_the_reason(
    double: Double, tmp_path: Path, answer: Answer, why: str
) -> None:
    double.script = [lambda *_: answer]
    path = write(tmp_path / "f.jsonl", event(1), event(2))
    with pytest.raises(NotACollector, match=why):
        Run(double.url).file(path)
    assert not (tmp_path / "f.jsonl.tillpost").exists()


@pytest.mark.parametrize("url", ["127.0.0.1:8787", "ftp://h", "http://", "http://h:port", "unix:", "http://me:pw@h"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://127|unix:///run"):
        Post(url, note=print)


# Taking up again


def test_running_it_twice_sends_nothing_and_says_how_much_was_confirmed(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", *(event(i, **({"bad": True} if i == 2 else {})) for i in range(5)))
    Run(double.url).file(path)
    seen = len(double.requests)
    totals = Run(double.url).file(path)
    assert (totals.sent, totals.already, totals.rejected) == (0, 4, 1)
    assert len(double.requests) == seen
    assert len(rejects(path)[0]) == 1


def test_what_was_appended_is_sent_and_nothing_else(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", event(1), event(2))
    Run(double.url).file(path)
    with path.open("ab") as file:
        file.write(json.dumps(event(3)).encode() + b"\n")
    totals = Run(double.url).file(path)
    assert (totals.sent, totals.already) == (1, 2)
    assert double.salts == Counter({"salt-1": 1, "salt-2": 1, "salt-3": 1})


@pytest.mark.parametrize("content", [[event(1), event(9)], [event(1)], []])
def test_a_changed_file_is_noticed(double: Double, tmp_path: Path, content: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "f.jsonl", event(1), event(2))
    Run(double.url).file(path)
    write(path, *content)
    with pytest.raises(SendFailed, match="changed since its first 2 lines were confirmed"):
        Run(double.url).file(path)


def test_a_progress_file_that_cannot_be_read_says_what_to_do(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", event(1))
    (tmp_path / "f.jsonl.tillpost").write_text("{")
    with pytest.raises(SendFailed, match="remove it to send the whole file again"):
        Run(double.url).file(path)


def test_rejects_of_a_window_that_was_not_confirmed_are_written_once(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", event(1, bad=True), event(2))
    Run(double.url).file(path)
    # As a crash leaves it between the rejects and the progress of the next window:
    with path.open("ab") as file:
        file.write(b'{"type":\n')
    with (tmp_path / "f.jsonl.rejects.jsonl").open("ab") as file:
        file.write(b'{"type":\n{"ty')
    Run(double.url).file(path)
    assert rejects(path)[0] == [json.dumps(event(1, bad=True)).encode(), b'{"type":']


def test_another_collector_is_told_from_the_one_that_confirmed(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", event(1))
    Run(double.url).file(path)
    other = Run(double.url.replace("127.0.0.1", "localhost"))
    assert other.file(path).already == 1
    assert f"confirmed by {double.url}" in other.display.notes[0]


def test_progress_is_a_file_a_person_can_read(double: Double, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", event(1), event(2))
    Run(double.url).file(path)
    progress = json.loads((tmp_path / "f.jsonl.tillpost").read_text())
    assert (progress["offset"], progress["lines"], progress["sent"]) == (path.stat().st_size, 2, 2)
    assert set(progress) == set(Progress.__struct_fields__)
    assert not (tmp_path / "f.jsonl.tillpost.new").exists()


# Pace and sockets


def test_a_rate_spreads_requests_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    slept: list[float] = []
    monkeypatch.setattr("collector.send.time.monotonic", lambda: now)
    pace = Pace(50.0, slept.append)
    assert pace.window == 50
    for _ in range(3):
        pace.wait(50)
    assert slept == [1.0, 2.0]
    assert Pace(None).window == 500
    assert Pace(0.1).window == 1


def test_a_socket_whose_path_is_too_long_is_reached_through_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("f" * 120)
    folder.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    (tmp_path / "short").symlink_to(folder)
    listener.bind(str(tmp_path / "short" / "s"))
    listener.listen()

    def answer() -> None:
        connected, _ = listener.accept()
        with connected:
            connected.recv(1000)
            connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    thread = threading.Thread(target=answer)
    thread.start()
    connection = UnixConnection(folder / "s", 5.0)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"ok"
    connection.close()
    thread.join()
    listener.close()


def test_a_missing_socket_is_an_absent_collector(tmp_path: Path) -> None:
    connection = UnixConnection(tmp_path / "none.sock", 1.0)
    with pytest.raises(FileNotFoundError):
        connection.request("GET", "/")
    assert isinstance(connection, http.client.HTTPConnection)
