"""How requests reach a collector: HTTP (`tracker.http`), or a call in this process.

The contract is the same everywhere: the ingest paths, bodies, headers and statuses of the
collector (``POST /v4/events/batch`` and so on). A transport is used by one thread.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from tracker import process
from tracker.errors import InvalidRecord


class Answer(NamedTuple):
    """What came back for a request."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class TransportError(Exception):
    """No answer: the request may or may not have arrived."""


class CannotStart(TransportError):
    """The embedded collector refused to start; the message is its own."""


class Transport(Protocol):
    def send(self, path: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        """Posts `body`. Raises `TransportError` when there is no answer within `timeout` seconds."""
        ...

    def close(self) -> None:
        """Lets go of the connection; the next `send` makes a new one."""
        ...

    def forget_parent(self) -> None:
        """In a forked child: lets go of the parent's connection without a word on it, and without waiting."""
        ...


@runtime_checkable
class EmbeddedCollector(Protocol):
    """A collector in this process, such as ``collector.Collector``."""

    def start(self) -> object:
        """Opens the buffer; nothing when it is open. Called before the first request, on the tracker's thread."""
        ...

    def receive(
        self, path: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Answers as the HTTP listener would: status, headers, body."""
        ...


class Embedded:
    """A call into a collector of this process, which keeps belonging to whoever made it."""

    def __init__(self, collector: EmbeddedCollector) -> None:
        self._collector = collector
        self._started = False

    def send(self, path: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        if not self._started:
            try:
                self._collector.start()
            except Exception as error:  # whatever it is, the application must not pay for it
                raise CannotStart(said(error)) from error
            self._started = True
            process.exit_last()  # the collector closes itself at exit: flush before that
        try:
            status, answered, content = self._collector.receive(path, body, headers, timeout)
        except Exception as error:
            self._started = False
            raise TransportError(said(error)) from error
        return Answer(status, {name.lower(): value for name, value in answered.items()}, content)

    def close(self) -> None:
        self._started = False

    def forget_parent(self) -> None:
        self._started = False


def connect(target: "str | EmbeddedCollector", token: str | None) -> Transport:
    """The transport to a URL or an embedded collector. Raises `InvalidRecord` for anything else."""
    if isinstance(target, str):
        from tracker.http import Http  # costs as much to import as all the rest, which an embedded collector may spare

        return Http(target, token)
    if isinstance(target, EmbeddedCollector):
        return Embedded(target)
    raise InvalidRecord("target", "must be an http, https or unix URL, or a Collector", target)


def said(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {error}"
