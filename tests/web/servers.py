"""What the web tests share: a sidecar and other servers as real processes, and a client that talks to them."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from collector.testing import FakeUpstream

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KEY = "web-test-key"
FAST = ("batch.linger=10ms", "delivery.backoff_base=20ms", "delivery.backoff_max=100ms", "clock.margin=0s")
UUID = "57a1b2c3-0000-4000-8000-00000000abcd"


def eventually(condition: Callable[[], Any], timeout: float = 45.0, what: str = "it") -> Any:
    """What `condition` says once it is true."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.005)
    return found


class Process:
    """A program of its own whose output is kept in a file."""

    def __init__(self, log: Path, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TILLPOST_", "DJANGO_"))}
        clean["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(cwd), (env or {}).get("PYTHONPATH", "")])
        self._log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)], env={**(env or {}), **clean}, cwd=cwd, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, ready: Callable[[], Any]) -> Self:
        def look() -> Any:
            assert self.process.poll() is None, self.said
            return ready()

        try:
            eventually(look)
        except AssertionError:
            self.kill()
            raise AssertionError(self.said) from None
        return self

    def end(self, number: int = signal.SIGTERM, within: float = 30) -> float:
        """Ends it; the seconds it took."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {within} s: {self.said}") from None
        return time.monotonic() - started

    def is_waiting(self, seconds: float = 0.5) -> bool:
        """Whether it does not end for so long."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """Kills it and its workers, which may outlive it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class Sidecar:
    """``tillpost run`` on a buffer file and a Unix socket; may go away and come back."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self._folder = folder
        self._upstream = upstream
        self.path = folder / "c.sock"
        self.url = f"unix://{self.path}"
        self._process: Process | None = None

    def start(self) -> Self:
        settings = [part for setting in FAST for part in ("--set", setting)]
        command = ("-m", "collector", "run", "--buffer", self._folder / "tillpost.db", "--listen", f"unix:{self.path}")
        env = {"TILLPOST_API_KEY": KEY}
        self._process = Process(
            self._folder / "sidecar.log", *command, "--upstream", self._upstream, *settings, env=env
        )
        self._process.until(lambda: listens(self.path))
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.end(number)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and requests, as the system does for it, and answers nothing."""
        assert self._process is not None
        self._process.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.process.send_signal(signal.SIGCONT)


class Reply(NamedTuple):
    status: int
    text: str
    cookies: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.text)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Browser:
    """Talks to a server on a Unix socket, and keeps cookies."""

    def __init__(self, path: Path, **cookies: str) -> None:
        self._path = path
        self.cookies = cookies

    def get(self, url: str) -> Reply:
        return self._ask("GET", url, None, {})

    def post(self, url: str, **form: str) -> Reply:
        return self._ask("POST", url, urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"})

    def post_json(self, url: str, **fields: object) -> Reply:
        return self._ask("POST", url, json.dumps(fields), {"Content-Type": "application/json"})

    def _ask(self, method: str, url: str, body: str | None, headers: dict[str, str]) -> Reply:
        connection = _Connection(self._path)
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection.request(method, url, body, {**headers, "Cookie": cookie} if cookie else headers)
        answer = connection.getresponse()
        for name, value in answer.getheaders():
            if name.lower() == "set-cookie" and (found := re.match(r"([^=]+)=([^;]*)", value)):
                self.cookies[found[1]] = found[2]
        reply = Reply(answer.status, answer.read().decode(), self.cookies)
        connection.close()
        return reply


def of(fake: FakeUpstream, *marks: str) -> list[Any]:
    """The entries in which one of the marks occurs, a visitor's identifiers, in the order of the API's time."""
    found = [entry for entry in fake.entries if any(mark.encode() in entry.raw for mark in marks)]
    return sorted(found, key=lambda entry: entry.instant_ms)


def stored(fake: FakeUpstream, action: str) -> list[dict[str, Any]]:
    """The custom events of an action."""
    return [record for record in fake.stored if record.get("action") == action]


def numbers(fake: FakeUpstream, action: str) -> list[int]:
    return [record["params"]["n"] for record in stored(fake, action)]
