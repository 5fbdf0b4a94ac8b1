"""Tillpost as an application uses it: typed events, beside a sidecar or with the collector in its own process."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.lab import KEY
from benchmarks.peers import events
from tracker import Failure, InvalidRecord, Tracker

ROOM: Final = 100_000


class Sidecar:
    """The target is a collector's address."""

    def __init__(self, target: Any, _folder: Path) -> None:
        self.signals: Counter[str] = Counter()
        self.tracker = Tracker(target, max_records=ROOM, max_bytes="256MiB", on_error=self.on_error)

    def track(self, number: int) -> object:
        return self.tracker.track(events.typed(number))

    def bad(self, number: int) -> object:
        try:
            return self.tracker.track(events.typed(number, discountShare=math.nan))
        except InvalidRecord:
            self.signals["InvalidRecord at the call"] += 1
            return None

    def basket(self, basket: dict[str, Any]) -> object:
        return self.tracker.track(events.typed_basket(basket))

    def flush(self) -> object:
        return self.tracker.flush(60)

    def confirmed(self) -> int:
        return self.tracker.counters().durable

    def on_error(self, failure: Failure) -> None:
        self.signals[f"on_error: {failure.reason}"] += 1


class Embedded(Sidecar):
    """The target is the upstream: buffer and delivery are in this process."""

    def __init__(self, target: str, folder: Path) -> None:
        from collector import Collector

        self.collector = Collector(folder / "tillpost.db", upstream=target, api_key=KEY)
        super().__init__(self.collector, folder)

    def flush(self) -> object:
        return super().flush() and self.collector.drain(60)
