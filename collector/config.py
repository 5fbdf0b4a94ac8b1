"""Configuration: one Struct per section, every default in exactly one place.

Durations are seconds, sizes are bytes; the file and the environment write them as
``"10s"`` and ``"8MiB"``. ``settings.py`` fills these from flags, environment and file, and
is where a value's source is known; here stand only what a value may be and what it means.
"""

import ipaddress
import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from collector.units import parse_duration

Duration = Annotated[float, Meta(ge=0, extra={"unit": "seconds"})]
Size = Annotated[int, Meta(ge=0, extra={"unit": "bytes"})]
Positive = Annotated[float, Meta(gt=0, extra={"unit": "seconds"})]
BodySize = Annotated[int, Meta(ge=2, le=2**20, extra={"unit": "bytes"})]
"""Of a request upstream: the API says 1 MB and leaves open whether that is 10^6 or 2^20 (API reference, 11)."""
Count = Annotated[int, Meta(ge=1, le=1000)]
"""Records in a request upstream: the API takes at most 1000."""

KIB = 1024
MIB = 1024 * KIB
MIN_BUFFER: Final = 4 * MIB
"""Below this the reserve, which is up to half of it, could not hold one request."""


class ConfigError(Exception):
    """The configuration cannot be used; the message names the source, the fault and what is allowed, in one line."""

    def __init__(self, message: str) -> None:
        # a key or value may hold anything, a terminal's control characters too
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class Address(msgspec.Struct, frozen=True):
    """Where to listen: TCP when ``path`` is empty, else a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """``127.0.0.1:8787``, ``[::1]:8787``, ``localhost:0``, ``unix:/run/tillpost.sock``. Raises ValueError."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            path = path.removeprefix("//") if path.startswith("///") else path
            if not path:
                raise ValueError("unix: needs a path, for example unix:/run/tillpost.sock")
            return cls(path=path)
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\s/\[\]]+)):(\d{1,5})", text, re.ASCII)
        if found is None or int(found[3]) > 65_535:
            raise ValueError("must look like 127.0.0.1:8787, [::1]:8787 or unix:/run/tillpost.sock")
        return cls(host=found[1] or found[2], port=int(found[3]))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return bool(self.path) or is_loopback(self.host)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine, without asking a name server."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def parse_wave(text: str) -> tuple[int, int]:
    """``20/400``: refused alone, out of the last settled. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError('must look like "20/400": how many refused alone, out of how many settled')
    return int(found[1]), int(found[2])


class UpstreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[upstream]``: where batches go and how we prove who we are."""

    url: str = "https://api.synerise.com"
    auth: Literal["api-key", "basic", "token"] = "api-key"
    api_key_file: str = ""
    workspace_guid: str = ""
    token_file: str = ""
    timeout: Positive = 10.0
    ca_file: str = ""
    allow_http: bool = False
    identifiers: Literal["all", "first"] = "all"
    types: dict[str, str] = {}


class IngestConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[ingest]``: the listener applications talk to."""

    listen: tuple[str, ...] = ("127.0.0.1:8787",)
    max_body: Size = 8 * MIB
    token_file: str = ""
    allowed_hosts: tuple[str, ...] = ()
    socket_mode: str = "0600"
    nulls: Literal["refuse", "drop"] = "refuse"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """``listen``, parsed."""
        return tuple(map(Address.parse, self.listen))

    @property
    def socket_mode_bits(self) -> int:
        """``socket_mode`` as a number."""
        return int(self.socket_mode, 8)


class AdminConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[admin]``: who may operate the collector over TCP."""

    token_file: str = ""


class BufferConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[buffer]``: the file that holds what is accepted and not yet settled."""

    path: str = "tillpost.db"
    max_size: Size = 512 * MIB
    when_full: Literal["refuse", "discard-oldest"] = "refuse"


class KindBatchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[batch.<kind>]``: limits of one kind where they differ."""

    max_records: Count | None = None
    max_bytes: BodySize | None = None


class BatchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[batch]``: how large a request may grow and how long a small one waits."""

    max_records: Count = 1000
    max_bytes: BodySize = 1_000_000
    linger: Duration = 1.0
    events: KindBatchConfig = KindBatchConfig()
    transactions: KindBatchConfig = KindBatchConfig(max_records=100)


class DeliveryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[delivery]``: patience."""

    backoff_base: Positive = 1.0
    backoff_max: Positive = 300.0
    retry_after_max: Duration = 3600.0
    pause_probe: Positive = 60.0
    startup_jitter: Duration = 0.0
    max_rate: Annotated[float, Meta(ge=0)] = 0.0


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[clock]``: how far behind the upstream's clock a record must be to leave."""

    margin: Duration = 2.0
    tolerance: Duration = 2.0
    hold_max: Duration = 86_400.0


class DeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[dead]``: what the upstream refused for what it is."""

    max_size: Size = 64 * MIB
    wave: str = "20/400"
    keep: str = ""

    @property
    def wave_limit(self) -> tuple[int, int]:
        """``wave``, parsed: refused alone, out of the last settled."""
        return parse_wave(self.wave)

    @property
    def keep_s(self) -> float | None:
        """Age in seconds at which a dead letter is discarded; None: never."""
        return parse_duration(self.keep) if self.keep else None


class ShutdownConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[shutdown]``: how long a stop may take."""

    grace: Duration = 15.0
    drain: bool = False


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration of one collector."""

    upstream: UpstreamConfig = UpstreamConfig()
    ingest: IngestConfig = IngestConfig()
    admin: AdminConfig = AdminConfig()
    buffer: BufferConfig = BufferConfig()
    batch: BatchConfig = BatchConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    clock: ClockConfig = ClockConfig()
    dead: DeadConfig = DeadConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()
