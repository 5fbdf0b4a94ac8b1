"""What a supervisor is told: systemd's protocol, ``sd_notify(3)``. Without ``NOTIFY_SOCKET`` nothing is said."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Supervisor:
    """Who started us and wants to know how we are."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s: float | None = None
        """It ends us when it hears nothing for so many seconds; None: it does not."""
        wanted, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if self._address and wanted.isdecimal() and int(wanted) and pid in ("", str(os.getpid())):
            self.watchdog_s = int(wanted) / 1_000_000

    def ready(self, status: str = "") -> None:
        """We take records, from now on or again after `reloading`."""
        self._tell("READY=1", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """Credentials are being read again."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """A stop was asked for, or something failed for good."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Everything moves."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        # it is the supervisor's loss: what we do for applications goes on
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as to,
        ):
            to.sendto("\n".join(lines).encode(), self._address)
