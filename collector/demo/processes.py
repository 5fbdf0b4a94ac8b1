"""The upstream and the collector of the demonstration, each a process of its own."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

from collector.admin import every_dead_letter, reach
from collector.settings import load

T = TypeVar("T")

API_KEY: Final = "demo-0000-key"
SETTINGS: Final = {"delivery.backoff_base": "200ms", "delivery.backoff_max": "1s", "delivery.pause_probe": "1s"}
"""Less patient than the defaults: a demonstration is short."""
_PATIENCE_S: Final = 60.0


class DemoError(Exception):
    """A part of the demonstration did not start or did not answer."""


class Upstream:
    """The fake upstream, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.errors = (folder / "upstream.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collector", "fake-upstream", "--listen", "127.0.0.1:0", "--api-key", API_KEY],
            stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url.startswith("http"):
            raise DemoError(f"the fake upstream did not start; see {self.errors.name}")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return _call(self.url.removeprefix("http://"), method, path, body)

    def fault(self, name: str, **detail: Any) -> None:
        self.ask("POST", "/fake/faults", {"name": name, **detail})

    def report(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/fake/report"))

    def stored(self) -> Iterator[dict[str, Any]]:
        """Everything it stored, page by page; numbers as they were written."""
        after: Any = None
        while True:
            page = self.ask("GET", "/fake/stored?limit=1000" + (f"&after={after}" if after is not None else ""))
            yield from page["stored"]
            after = page.get("next")
            if after is None:
                return

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()


class Sidecar:
    """The collector, in a process of its own, that can be killed and started again."""

    def __init__(self, folder: Path, upstream: str, settings: Mapping[str, str] = SETTINGS, key: str = API_KEY) -> None:
        self.folder = folder
        self.buffer = folder / "tillpost.db"
        self.key = key
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.arguments = ["--buffer", str(self.buffer), "--listen", self.address, "--upstream", upstream]
        for name, value in settings.items():
            self.arguments += ["--set", f"{name}={value}"]
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it, again after a kill; returns when it takes records."""
        self.starts += 1
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TILLPOST_")}
        with (self.folder / f"collector-{self.starts}.log").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "collector", "run", *self.arguments],
                env={**environment, "TILLPOST_API_KEY": self.key}, stderr=errors,
            )  # fmt: skip
        wait_for("the collector to start", self._ready)

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise DemoError(f"the collector ended with {self.process.returncode}; see {self.folder}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            return bool(self.status()["state"] == "running")
        return False

    def status(self) -> dict[str, Any]:
        return dict(_call(self.address, "GET", "/status.json"))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        self.process.wait(20)

    def dead_letters(self) -> list[dict[str, Any]]:
        admin = reach(load(flags=[("buffer.path", "--buffer", str(self.buffer))], default_file=None, environ={}))
        return [_parse(bytes(letter.record)) for letter in every_dead_letter(admin)]

    def close(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def _call(address: str, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise DemoError(f"{method} {path}: {answer.status} {text[:200]!r}")
        return _parse(text) if text else None
    finally:
        connection.close()


def _parse(text: bytes) -> Any:
    return json.loads(text, parse_float=Decimal)


def wait_for(what: str, condition: Callable[[], T], timeout: float = _PATIENCE_S) -> T:
    """Wait until the condition is true; raises DemoError, naming what never happened."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise DemoError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.05)
    return found
