"""``/metrics`` in the Prometheus text format, read from the status at scrape time.

No label ever holds a person, a record or a secret: lanes are named by kind, identifier *type* and priority.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from collector.kinds import KINDS

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
    "usable_bytes": (
        "tillpost_buffer_usable_bytes",
        "What records may take of it: the rest is reserve. Bounds are shares of this.",
    ),
    "dead_bytes": ("tillpost_buffer_dead_bytes", "Bytes of the dead letters' records."),
}
COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "ingest_requests": ("Requests with records to the ingest, by status of the answer.", ("status",)),
    "delivery_requests": ("Requests to the upstream, by what came of them.", ("kind", "outcome")),
    "delivery_retries": ("Requests to the upstream that are to be repeated, by reason: a status, offline, no-answer, "
                         "tls or credentials.", ("kind", "reason")),
    "delivery_bytes": ("Bytes of request bodies sent to the upstream.", ("kind",)),
    "buried_records": ("Records that became dead letters.", ("kind",)),
    "logins": ("Logins at the upstream.", ("outcome",)),
    "clock_corrected_records": ("Records delivered with a time that was stamped under a wrong clock and repaired.", ()),
    "commits": ("Group commits of the buffer.", ()),
}  # fmt: skip
"""What is counted since the start besides the ledger: name, meaning and labels."""
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
HISTOGRAMS: Final[dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]]] = {
    "delivery_request_duration_seconds": (
        "From the beginning of a delivery to its outcome, a new login included.", ("kind",), _SECONDS),
    "batch_fill_ratio": (
        "How full a request to the upstream is: of its records or bytes, whichever is nearer to its limit.", ("kind",),
        (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)),
    "commit_sync_duration_seconds": (
        "What COMMIT takes: the write to the log and its fsync.", (), _SECONDS),
}  # fmt: skip
"""What is measured since the start: name, meaning, labels and upper bounds of its buckets."""
_LANE_LABELS: Final = ("kind", "identifier", "priority")
_LANE_STATES: Final = ("idle", "sending", "backing-off", "paused")


class Counters:
    """Counts and measurements since the start; may be raised from any thread."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in COUNTERS}
        self._measured: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in HISTOGRAMS}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Raises KeyError for a counter or a label that `COUNTERS` does not name."""
        key = tuple(labels[label] for label in COUNTERS[name][1])
        with self._lock:
            self._counts[name][key] += amount  # type: ignore[assignment]  # Counter is typed for int

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Raises KeyError for a histogram or a label that `HISTOGRAMS` does not name."""
        _, names, bounds = HISTOGRAMS[name]
        key = tuple(labels[label] for label in names)
        with self._lock:
            held = self._measured[name].setdefault(key, [0.0] * (len(bounds) + 2))
            held[bisect_left(bounds, value)] += 1
            held[-1] += value

    def read(self, name: str) -> dict[tuple[str, ...], float]:
        """The counts of one name by the values of its labels."""
        with self._lock:
            return dict(self._counts[name])

    def read_measured(self, name: str) -> dict[tuple[str, ...], list[float]]:
        """How many fell into each bucket, how many above the last, and their sum, by the values of the labels."""
        with self._lock:
            return {key: list(held) for key, held in self._measured[name].items()}


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
        token_age_s = (status.get("upstream") or {}).get("token_age_s")
        if token_age_s is not None:
            yield _gauge("tillpost_token_age_seconds", "Time since the login whose token is used.", token_age_s)
        if self._counters is not None:
            yield from _counted(self._counters)


def _counted(counters: Counters) -> Iterable[Metric]:
    for name, (meaning, labels) in COUNTERS.items():
        family = CounterMetricFamily(f"tillpost_{name}", meaning, labels=labels)
        counts = {**dict.fromkeys(_known(labels), 0.0), **counters.read(name)}
        for values, count in sorted(counts.items()):
            family.add_metric(values, count)
        yield family
    for name, (meaning, labels, bounds) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"tillpost_{name}", meaning, labels=labels)
        nothing = dict.fromkeys(_known(labels), [0.0] * (len(bounds) + 2))
        for values, held in sorted({**nothing, **counters.read_measured(name)}.items()):
            upto = accumulate(held[:-1])
            names = (*map(str, bounds), "+Inf")
            histogram.add_metric(values, list(zip(names, upto, strict=True)), held[-1])
        yield histogram


def _known(labels: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """The labels' values that are known before anything was counted: what is not there yet cannot be alerted on."""
    if labels == ("kind",):
        return [(kind,) for kind in KINDS]
    return [] if labels else [()]


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
