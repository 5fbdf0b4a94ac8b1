"""Log lines: an event name that stays stable, and facts as keys. Never payloads, identifiers or secrets.

A library configures nothing for its host: `logger` speaks to the standard ``logging`` under the name
``tillpost``, which says nothing below a warning until somebody asks. Only ``tillpost run`` calls `configure`.
Every event is listed in docs/operations/logs.md.
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Hashable, MutableMapping
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

ROOT: Final = "tillpost"
REPEAT_S: Final = 60.0
"""The same is said once in so many seconds, with how often it was left out since."""
_KEYS_MAX: Final = 1000


class Repeats:
    """Tells what was said lately."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._said: dict[Hashable, tuple[float, int]] = {}

    def due(self, key: Hashable) -> int | None:
        """How often it was left out since it was last said, if it is time to say it; None: it is not."""
        now = self._now_s()
        said_s, left_out = self._said.get(key, (-REPEAT_S, 0))
        if now - said_s < REPEAT_S:
            self._said[key] = said_s, left_out + 1
            return None
        self._said.pop(key, None)
        if len(self._said) >= _KEYS_MAX:
            del self._said[next(iter(self._said))]
        self._said[key] = now, 0
        return left_out


def logger(name: str) -> FilteringBoundLogger:
    """A logger for one part, ``logger("lanes").info("paused", lane=str(lane))``; independent of structlog's globals."""
    wrapped: FilteringBoundLogger = structlog.wrap_logger(
        logging.getLogger(f"{ROOT}.{name}"),
        processors=[structlog.stdlib.filter_by_level, _where, _as_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return wrapped


def configure(level: str, form: Literal["auto", "text", "json"], stream: TextIO | None = None) -> None:
    """Log to standard error: text on a terminal, else a JSON object a line. For the process's owner alone."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    if level != "debug":  # who looks that closely wants every line
        handler.addFilter(_Once())
    handler.setFormatter(_Formatter(as_text=form == "text" or (form == "auto" and stream.isatty())))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # of libraries: aiohttp's access lines would name clients
    logging.getLogger(ROOT).setLevel(level.upper())
    logging.captureWarnings(True)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, _where, _as_record],
        logger_factory=lambda *_: logging.getLogger(ROOT),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _where(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn the exception at hand, if the line is about one, into words."""
    given = event.pop("exc_info", None)
    if given:
        event["exception"] = _told(given if isinstance(given, BaseException) else sys.exception())
    return event


def _told(error: BaseException | None) -> str:
    """An exception's type and the way it took, not what it says: a library's message may quote a record."""
    told = []
    while error is not None:
        way = reversed(traceback.extract_tb(error.__traceback__))
        told.append(
            " < ".join([type(error).__name__, *(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in way)])
        )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ", after ".join(told)


def _as_record(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Readable in any host's log, ``paused lane=events/email/live``, with the facts kept for our own formatter."""
    facts = {key: value for key, value in event.items() if key != "event"}
    text = " ".join([str(event["event"]), *(f"{key}={value}" for key, value in facts.items())])
    return (text,), {"extra": {"tillpost_event": str(event["event"]), "tillpost_facts": facts}}


class _Once(logging.Filter):
    """Leaves out what was said lately: the same event with the same words, whatever its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        facts: dict[str, Any] = getattr(record, "tillpost_facts", {})
        event = getattr(record, "tillpost_event", None) or record.getMessage()
        words = tuple((name, value) for name, value in sorted(facts.items()) if isinstance(value, str))
        left_out = self._repeats.due((record.name, record.levelno, event, words))
        if left_out:
            record.tillpost_facts = {**facts, "repeated": left_out}
        return left_out is not None or record.levelno >= logging.CRITICAL


class _Formatter(logging.Formatter):
    """One line for each record, ours or a library's."""

    def __init__(self, *, as_text: bool) -> None:
        super().__init__()
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._render: Any = (
            structlog.dev.ConsoleRenderer(colors=False) if as_text else structlog.processors.JSONRenderer(default=str)
        )

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "event": getattr(record, "tillpost_event", None) or record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **getattr(record, "tillpost_facts", {}),
        }
        if record.exc_info:
            event["exception"] = _told(record.exc_info[1])
        return str(self._render(None, "", self._stamp(None, "", event)))
