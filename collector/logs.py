"""Log lines: an event name that stays stable, and facts as keys. Never payloads, identifiers or secrets.

A library configures nothing for its host: `logger` speaks to the standard ``logging`` under the name
``tillpost``, which says nothing below a warning until somebody asks. Only ``tillpost run`` calls `configure`.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

ROOT: Final = "tillpost"


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
