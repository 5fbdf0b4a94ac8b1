"""Synchronous HTTP over TCP or a Unix socket, for the command line."""

import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_SUN_PATH: Final = 107
"""Longest path of a Unix socket on Linux, in bytes; 103 on macOS, where the error then speaks for itself."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = Path(path)

    def connect(self) -> None:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(self.timeout)
        try:
            with short_path(self._path) as path:
                connected.connect(path)
        except BaseException:
            connected.close()
            raise
        self.sock = connected


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """The path, or a way to it that fits a Unix socket's address, usable inside the block."""
    if len(os.fsencode(path)) <= _SUN_PATH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def connect(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection, not open yet, and the path under which the service's own paths begin.

    ``http://127.0.0.1:8787``, ``https://host/prefix``, ``unix:///run/tillpost.sock``. Raises ValueError for others.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.strip("/"):
            raise ValueError(f"{url!r} names no socket; write unix:///run/tillpost.sock")
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"{url!r}: this system has no Unix sockets; use http://127.0.0.1:8787")
        return UnixConnection(path, timeout_s), ""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or "@" in parts.netloc:
        raise ValueError("not a collector's address: write http://127.0.0.1:8787 or unix:///run/tillpost.sock")
    prefix = parts.path.rstrip("/")
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.hostname, port, timeout=timeout_s, context=context), prefix
    return http.client.HTTPConnection(parts.hostname, port, timeout=timeout_s), prefix
