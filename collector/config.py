"""Configuration: one Struct per section, every default in exactly one place.

Durations are seconds, sizes are bytes; the file and the environment write them as
``"10s"`` and ``"8MiB"``. ``settings.py`` fills these from flags, environment and file, and
is where a value's source is known; here stand only what a value may be and what it means. The text below a
key is its entry in ``docs/reference/configuration.md``, which ``python docs/generate.py`` writes.
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
    """The base URL of the API, or of the next collector in a chain."""
    auth: Literal["api-key", "basic", "token"] = "api-key"
    """How we prove who we are: `api-key` logs in for a token, `basic` sends workspace and key with every request,
    `token` a fixed bearer token, for a chain."""
    api_key_file: str = ""
    """The file that holds the API key; read again after a 401 and on SIGHUP. `TILLPOST_API_KEY` holds the key
    itself."""
    workspace_guid: str = ""
    """The workspace the key belongs to; only `basic` needs it."""
    token_file: str = ""
    """The file that holds the token for `auth = "token"`. `TILLPOST_UPSTREAM_TOKEN` holds the token itself."""
    timeout: Positive = 10.0
    """How long one request may take, connecting included."""
    ca_file: str = ""
    """Certificates (PEM) of the authorities to trust for the upstream, instead of the system's."""
    allow_http: bool = False
    """Whether the upstream may be reached without TLS beyond this machine; the key then travels in the clear."""
    identifiers: Literal["all", "first"] = "all"
    """Which keys of `client` are sent: `all`, or only the `first` of id, uuid, customId, email that is given.
    Applied when a record is accepted."""
    types: dict[str, str] = {}
    """Event types to send as another type, or as a custom event's action. Applied when a record is accepted."""


class IngestConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[ingest]``: the listener applications talk to."""

    listen: tuple[str, ...] = ("127.0.0.1:8787",)
    """Where applications may connect: `127.0.0.1:8787`, `[::1]:8787` or `unix:/run/tillpost.sock`. What other machines
    can reach needs an ingest token."""
    max_body: Size = 8 * MIB
    """The largest request accepted, unpacked. Never more than one commit can hold, see `buffer.max_size`."""
    token_file: str = ""
    """The file that holds the token applications must send. `TILLPOST_INGEST_TOKEN` holds the token itself."""
    allowed_hosts: tuple[str, ...] = ()
    """Further `Host` names served on loopback, such as a reverse proxy's; others are refused there."""
    socket_mode: str = "0600"
    """The permissions of Unix sockets in `listen`, octal."""
    nulls: Literal["refuse", "drop"] = "refuse"
    """What happens to a null where the API takes none: `refuse` the request and say where, or `drop` the key."""

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
    """The file that holds the token for `/v1` over TCP. `TILLPOST_ADMIN_TOKEN` holds the token itself. Without one,
    operations go through the admin socket beside the buffer only."""


class BufferConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[buffer]``: the file that holds what is accepted and not yet settled."""

    path: str = "tillpost.db"
    """The buffer's file; its companions lie beside it. On a disk that survives a restart."""
    max_size: Size = 512 * MIB
    """The most all files together may take on the disk; at least 4MiB. One quarantined file may lie beside them."""
    when_full: Literal["refuse", "discard-oldest"] = "refuse"
    """What happens to new records without room: `refuse` them with 507, or `discard-oldest`, counted in the ledger."""


class KindBatchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[batch.<kind>]``: limits of one kind where they differ."""

    max_records: Count | None = None
    """As `batch.max_records`, for this kind; not given: that."""
    max_bytes: BodySize | None = None
    """As `batch.max_bytes`, for this kind; not given: that."""


class BatchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[batch]``: how large a request may grow and how long a small one waits."""

    max_records: Count = 1000
    """Records in one request at most; the API takes 1000."""
    max_bytes: BodySize = 1_000_000
    """Bytes in the body of one request at most."""
    linger: Duration = 1.0
    """How long a batch that is not full waits for more records."""
    events: KindBatchConfig = KindBatchConfig()
    transactions: KindBatchConfig = KindBatchConfig(max_records=100)


class DeliveryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[delivery]``: retries, pauses, pace."""

    backoff_base: Positive = 1.0
    """The first pause after a failed attempt; it doubles, with jitter."""
    backoff_max: Positive = 300.0
    """The longest pause between attempts."""
    retry_after_max: Duration = 3600.0
    """The longest `Retry-After` of the upstream that is heeded."""
    pause_probe: Positive = 60.0
    """How often a paused lane tries a small batch."""
    startup_jitter: Duration = 0.0
    """A start waits up to this long, by chance, before it talks to the upstream: for many tills that get their
    power back at once."""
    max_rate: Annotated[float, Meta(ge=0)] = 0.0
    """Records a second over all lanes; 0 is no limit."""


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[clock]``: how far behind the upstream's clock a record must be to leave."""

    margin: Duration = 2.0
    """How far behind the upstream's clock a record's time must be before it leaves."""
    tolerance: Duration = 2.0
    """How wrong a time we stamped may be before it is repaired."""
    hold_max: Duration = 86_400.0
    """A record further ahead than this is refused or, accepted before, becomes a dead letter; one less far ahead waits
    aside."""


class DeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[dead]``: what the upstream refused for what it is."""

    max_size: Size = 64 * MIB
    """The most dead letters may take; then the lane that would bury pauses."""
    wave: str = "20/400"
    """How many records refused alone, out of how many last settled, make a lane pause and bury no more."""
    keep: str = ""
    """How long dead letters are kept before they are discarded, for example `90d`; empty: until somebody decides."""

    @property
    def wave_limit(self) -> tuple[int, int]:
        """``wave``, parsed: refused alone, out of the last settled."""
        return parse_wave(self.wave)

    @property
    def keep_s(self) -> float | None:
        """Age in seconds at which a dead letter is discarded; None: never."""
        return parse_duration(self.keep) if self.keep else None


class ShutdownConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[shutdown]``: what a stop does."""

    grace: Duration = 15.0
    """How long a stop may take."""
    drain: bool = False
    """Whether a stop uses the grace to deliver what is pending. What is left waits on the disk either way."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines that are written."""
    format: Literal["auto", "text", "json"] = "auto"
    """`text`, `json` (an object a line), or `auto`: text on a terminal, JSON elsewhere."""


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
