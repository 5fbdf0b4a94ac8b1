"""Who is compared, with which settings, and what each promises."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.lab import Collector
from benchmarks.peers import libraries, syslog_ng, tillpost
from benchmarks.peers.libraries import Session
from benchmarks.peers.syslog_ng import SyslogNg

Setting = dict[str, Any]
Keeps = Literal["memory", "disk", "disk, synced"]


@dataclass(frozen=True)
class Peer:
    """A library in one way of using it."""

    name: str
    open: Callable[..., Session]
    """Target, a folder for its files, then a setting."""
    keeps: Keeps
    promise: str
    """What a returned call means, and what is known later."""
    distribution: str = ""
    settings: Sequence[Setting] = field(default=({},))
    """The default, then what the sweep tries."""
    beside: Callable[[Path, str], Collector | SyslogNg] | None = None
    """The program that stands between the application and the sink: folder, the sink's URL."""
    scale: float = 1.0
    """The share of a measurement's events that a slow library is given."""

    @cached_property
    def missing(self) -> str:
        """Why it cannot take part; empty when it can."""
        if self.open is syslog_ng.Lines:
            return syslog_ng.missing()
        if not self.distribution or any(importlib.metadata.distributions(name=self.distribution)):
            return ""
        return f"not installed: pip install {self.distribution}, or the extra bench"

    @property
    def label(self) -> str:
        """Its name and version."""
        if self.open is syslog_ng.Lines:
            return f"{self.name} {syslog_ng.version()}"
        return f"{self.name} {importlib.metadata.version(self.distribution)}" if self.distribution else self.name

    @property
    def until(self) -> str:
        """When its share of the work is done."""
        if self.beside is None:
            return "delivered"
        return "durable beside it" if self.ours else "handed over"

    @property
    def ours(self) -> bool:
        return self.name.startswith("Tillpost")


def described(setting: Setting) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items()) or "default"


_QUEUED: Final = "in a queue in memory; flush() waits"
_BATCHES: Final = (500, 1000, 2000, 5000)

SIDECAR: Final = Peer(
    "Tillpost, sidecar",
    tillpost.Sidecar,
    "disk, synced",
    "in memory; receipt and flush() tell when it is synced to the sidecar's disk",
    beside=Collector,
)
EMBEDDED: Final = Peer(
    "Tillpost, embedded",
    tillpost.Embedded,
    "disk, synced",
    "in memory; receipt and flush() tell when it is synced to this process's disk",
)
SNOWPLOW: Final = Peer(
    "snowplow-tracker",
    libraries.Snowplow,
    "memory",
    _QUEUED,
    "snowplow-tracker",
    ({}, *({"batch_size": n, "encode_base64": False, "quiet": True, "keep_alive": True} for n in _BATCHES)),
)
MIXPANEL: Final = Peer(
    "mixpanel, BufferedConsumer",
    libraries.Mixpanel,
    "memory",
    "in memory; every 50th call waits for the answer",
    "mixpanel",
)
LOGSTASH: Final = Peer(
    "python-logstash-async",
    libraries.Logstash,
    "disk, synced",
    "in a queue in memory; a thread syncs each event to SQLite later, nobody is told",
    "python-logstash-async",
    ({}, {"batch": 200}, {"batch": 1000}, {"http": True}, {"http": True, "batch": 200}),
    scale=0.1,
)
SYSLOG_NG: Final = Peer(
    "syslog-ng, reliable disk buffer",
    syslog_ng.Lines,
    "disk",
    "in a socket's buffer; never synced, nobody is told",
    beside=SyslogNg,
)

LIBRARIES: Final = (
    Peer(
        "segment-analytics-python",
        libraries.Segment,
        "memory",
        _QUEUED,
        "segment-analytics-python",
        ({}, *({"upload_size": n} for n in (300, 1000))),
        scale=0.5,
    ),
    Peer(
        "rudder-sdk-python",
        libraries.Rudder,
        "memory",
        _QUEUED,
        "rudder-sdk-python",
        ({}, *({"upload_size": n, "gzip": False} for n in (100, 1000, 5000))),
        scale=0.5,
    ),
    Peer(
        "posthog",
        libraries.Posthog,
        "memory",
        "in a queue in memory; flush() waits up to a limit",
        "posthog",
        ({}, *({"flush_at": n} for n in (500, 1000, 5000))),
        scale=0.5,
    ),
    SNOWPLOW,
    MIXPANEL,
    Peer(
        "amplitude-analytics",
        libraries.Amplitude,
        "memory",
        "in memory; a callback tells of each event",
        "amplitude-analytics",
        ({}, *({"flush_queue_size": n, "quiet": True} for n in (200, 1000, 5000))),
        scale=0.5,
    ),
    LOGSTASH,
)

_OTHERS: Final = tuple(peer for peer in LIBRARIES if peer not in (SNOWPLOW, LOGSTASH))
PEERS: Final = {peer.name: peer for peer in (SNOWPLOW, SIDECAR, EMBEDDED, LOGSTASH, *_OTHERS, SYSLOG_NG)}
"""By name, which is how a process of its own is told whom to measure; who is compared by a goal stands side by side."""
