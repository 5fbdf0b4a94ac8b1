"""syslog-ng with its reliable disk buffer: lines over TCP in, batches over HTTP out.

It writes before it sends and never syncs: what it holds survives its end, not the machine's. A sender gets no answer.
"""

import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

from benchmarks.lab import cpu_s, free_port, until
from benchmarks.peers.libraries import Library

CONFIG = """@version: 3.35
options {{ log-fifo-size(20000); time-reopen(1); }};
source s {{ network(ip("127.0.0.1") port({port}) transport("tcp") flags(no-parse)
  log-iw-size(100000) log-fetch-limit(1000)); }};
destination d {{ http(url("{url}/batch") method("POST") headers("Content-Type: application/json")
  body-prefix("[") delimiter(",") body-suffix("]") body("${{MESSAGE}}") persist-name("sink")
  batch-lines({batch}) batch-bytes(900Kb) batch-timeout(200) retries(1000000) timeout(10)
  disk-buffer(reliable(yes) disk-buf-size(536870912) mem-buf-size(16777216) dir("{folder}"))); }};
log {{ source(s); destination(d); flags(flow-control); }};
"""


def missing() -> str:
    """Why it cannot take part; empty when it can."""
    if shutil.which("syslog-ng") is None:
        return "not installed (Debian: syslog-ng-core, syslog-ng-mod-http)"
    if subprocess.run(["syslog-ng", "--module-registry"], capture_output=True, text=True).stdout.find("http") < 0:
        return "without its module for HTTP (Debian: syslog-ng-mod-http)"
    return ""


def version() -> str:
    told = subprocess.run(["syslog-ng", "--version"], capture_output=True, text=True).stdout
    return told.partition("(")[2].partition(")")[0]


class SyslogNg:
    """The program, between an application and the sink."""

    def __init__(self, folder: Path, upstream: str, batch: int = 1000) -> None:
        self.folder, port = folder, free_port()
        self.address = f"127.0.0.1:{port}"
        (folder / "syslog-ng.conf").write_text(CONFIG.format(port=port, url=upstream, batch=batch, folder=folder))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def start(self) -> None:
        at = self.folder
        self._process = subprocess.Popen(
            ["syslog-ng", "-F", "--no-caps", "-f", at / "syslog-ng.conf", "-R", at / "persist", "-p", at / "pid",
             "-c", at / "control"], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(self._listens, "syslog-ng listens")

    def _listens(self) -> bool:
        host, _, port = self.address.partition(":")
        try:
            socket.create_connection((host, int(port)), 5).close()
        except OSError:
            return False
        return True

    @property
    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Lines(Library):
    """What an application does for it: one line of JSON to a socket for each event."""

    def __init__(self, target: str, _folder: Path) -> None:
        super().__init__()
        host, _, port = target.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)))

    def send(self, user: str, name: str, properties: dict[str, Any]) -> None:
        event = {"event": name, "userId": user, "properties": properties}
        self.socket.sendall(json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def flush(self) -> None:
        """There is nothing to wait for: no answer comes."""
