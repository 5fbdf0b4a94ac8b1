"""Captures what the collector logs, line by line as event and facts."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from collector.logs import ROOT


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts = dict(getattr(record, "tillpost_facts", {}))
        event = getattr(record, "tillpost_event", record.getMessage())
        self.lines.append({"event": event, "log_level": record.levelname.lower(), **facts})


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    handler, root = _Lines(), logging.getLogger(ROOT)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
