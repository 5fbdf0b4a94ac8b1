"""``/metrics`` in the Prometheus text format, read from the status at scrape time.

No label ever holds a person, a record or a secret: lanes are named by kind, identifier *type* and priority.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_TOTALS: Final = {
    "accepted": "Records made durable and acknowledged.",
    "delivered": "Records the upstream confirmed.",
    "discarded": "Records given up by a stated policy or by an operator.",
    "lost": "Records a damaged buffer file has lost; exact or the lower bound.",
}
_LEVELS: Final = {
    "pending": "Records on disk that are not settled; those aside and in flight included.",
    "dead": "Dead letters that wait for a decision.",
    "superseded": "Dead letters whose order key was accepted again.",
    "lost_at_most": "Upper bound of what a damaged buffer file has lost.",
}
_LANES: Final = {
    "pending": ("tillpost_lane_pending_records", "Records of a lane that are not settled."),
    "aside": ("tillpost_lane_aside_records", "Records of a lane that wait without holding it up."),
    "oldest_age_s": ("tillpost_lane_oldest_age_seconds", "Time since the oldest record of a lane was accepted."),
    "attempts": ("tillpost_lane_attempts", "Failed attempts of a lane since its last success."),
}
_BUFFER: Final = {
    "bytes": ("tillpost_buffer_bytes", "Bytes of the buffer in use."),
    "disk_bytes": ("tillpost_buffer_disk_bytes", "Bytes of all files of the buffer."),
    "max_bytes": ("tillpost_buffer_max_bytes", "What all files of the buffer may take at most."),
}
COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "ingest_requests": ("Requests to the ingest, by status of the answer.", ("status",)),
    "ingest_refused_records": ("Records refused to their sender.", ()),
    "delivery_requests": ("Requests to the upstream, by what came of them.", ("kind", "outcome")),
    "delivery_retries": ("Requests to the upstream that repeat an earlier one.", ("kind",)),
    "delivery_bytes": ("Bytes of request bodies sent to the upstream.", ("kind",)),
    "logins": ("Logins at the upstream.", ("outcome",)),
    "clock_corrected_records": ("Records delivered with a time that was stamped under a wrong clock and repaired.", ()),
    "commits": ("Group commits of the buffer.", ()),
}
"""What is counted since the start besides the ledger: name, meaning and labels."""
_LANE_LABELS: Final = ("kind", "identifier", "priority")
_LANE_STATES: Final = ("idle", "sending", "backing-off", "paused")


class Counters:
    """Counts since the start; may be raised from any thread."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in COUNTERS}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Raises KeyError for a counter or a label that `COUNTERS` does not name."""
        key = tuple(labels[label] for label in COUNTERS[name][1])
        with self._lock:
            self._counts[name][key] += amount  # type: ignore[assignment]  # Counter is typed for int

    def read(self, name: str) -> dict[tuple[str, ...], float]:
        """The counts of one name by the values of its labels."""
        with self._lock:
            return dict(self._counts[name])


def render(status: Mapping[str, Any], counters: Counters | None = None) -> bytes:
    """The body of ``/metrics`` for a ``status.json``; keys it does not have are left out."""
    registry = CollectorRegistry()
    registry.register(_Scrape(status, counters))
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, status: Mapping[str, Any], counters: Counters | None) -> None:
        self._status = status
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        status = self._status
        yield InfoMetricFamily("tillpost", "This collector.", {"version": str(status.get("version", ""))})
        yield _gauge("tillpost_running", "1 when the collector takes records and delivers them.",
                     status.get("state") == "running")  # fmt: skip
        ledger = status.get("ledger") or {}
        for name, meaning in _TOTALS.items():
            if name in ledger:
                yield CounterMetricFamily(f"tillpost_records_{name}", meaning, value=ledger[name])
        for name, meaning in _LEVELS.items():
            if name in ledger:
                yield _gauge(f"tillpost_records_{name}", meaning, ledger[name])
        yield from _of_lanes(status.get("lanes") or [])
        for name, (metric, meaning) in _BUFFER.items():
            if name in (status.get("buffer") or {}):
                yield _gauge(metric, meaning, status["buffer"][name])
        clock = status.get("clock") or {}
        yield _gauge("tillpost_clock_synchronised", "1 when the upstream's clock is known.", clock.get("synchronised"))
        if clock.get("offset_ms") is not None:
            yield _gauge("tillpost_clock_offset_seconds", "Upstream's clock minus ours.", clock["offset_ms"] / 1000)
        meaning = "Boots of this machine that ended before the true time was known: it was estimated."
        yield CounterMetricFamily("tillpost_clock_estimated_boots", meaning, value=clock.get("estimated", 0))
        for name, (meaning, labels) in COUNTERS.items() if self._counters else ():
            family = CounterMetricFamily(f"tillpost_{name}", meaning, labels=labels)
            assert self._counters is not None
            for values, count in sorted(self._counters.read(name).items()):
                family.add_metric(values, count)
            if not labels and not family.samples:
                family.add_metric((), 0)  # a counter that is not there yet cannot be alerted on
            yield family


def _of_lanes(lanes: list[Mapping[str, Any]]) -> Iterable[Metric]:
    for key, (metric, meaning) in _LANES.items():
        family = GaugeMetricFamily(metric, meaning, labels=_LANE_LABELS)
        for lane in lanes:
            if lane.get(key) is not None:
                family.add_metric(_labels(lane), lane[key])
        yield family
    states = GaugeMetricFamily("tillpost_lane_state", "1 for the state a lane is in.", labels=(*_LANE_LABELS, "state"))
    for lane in lanes:
        for state in _LANE_STATES:
            states.add_metric([*_labels(lane), state], float(lane.get("state") == state))
    yield states


def _labels(lane: Mapping[str, Any]) -> list[str]:
    return [str(lane[name]) for name in _LANE_LABELS]


def _gauge(name: str, meaning: str, value: Any) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value or 0))
