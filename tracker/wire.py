"""What tracker and collector must agree on: paths, headers, names of event types.

Everything else about the bytes is the Synerise API's own contract; these are the few
things beside it. The collector imports this module and ``tracker.time``, nothing more.
"""

import re
from typing import Final

import msgspec

EVENTS_BATCH: Final = "/v4/events/batch"
TRANSACTIONS_BATCH: Final = "/v4/transactions/batch"

ACCEPTED_HEADER: Final = "Tillpost-Accepted"
"""On every 202: how many records are now on disk."""
COLLECTOR_HEADER: Final = "Tillpost-Version"
"""On every refusal: it comes from a collector, whose ``Date`` is its own clock and not the API's."""
PRIORITY_HEADER: Final = "Tillpost-Priority"
"""``bulk`` for backfills; absent means live."""
CLOCK_HEADER: Final = "Tillpost-Clock"
"""How the sender's clock stood when it stamped the records; see `ClockHeader`."""

CLIENT_KEYS: Final = ("customId", "email", "id", "uuid")
"""The keys of ``client`` that identify, in the order an identifier type names them (API reference, Events)."""

EVENT_ACTIONS: Final[dict[str, str]] = {
    "application-started": "client.applicationStarted",
    "registered": "client.register",
    "logged-in": "client.login",
    "logged-out": "client.logout",
    "added-to-cart": "product.addToCart",
    "removed-from-cart": "product.removeFromCart",
    "added-to-favorites": "product.addToFavorite",
    "product-view": "product.view",
    "assigned-to-company": "client.assignToCompany",
    "appeared-in-location": "client.location",
    "push/received": "push.receiveInBackground",
    "push/viewed": "push.view",
    "push/clicked": "push.click",
    "push/cancelled": "push.cancel",
    "cancelled-transaction": "transaction.cancel",
    "hit-timer": "client.hitTimer",
    "searched": "client.search",
    "shared": "client.shared",
    "visited-screen": "screen.view",
    "recommendation-view": "recommendation.view",
    "item-search-click": "item.search.click",
    "recommendation-seen": "recommendation.seen",
    "recommendation-click": "recommendation.click",
}
"""Event type (the path under ``/v4/events/``) to the action the backend sets for it. ``custom`` has the caller's."""

_RANGES = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", re.ASCII)
_MILLISECONDS = re.compile(r"-?\d{1,15}", re.ASCII)
"""Up to the year 33 658; what is longer would not fit where it is kept."""


class ClockHeader(msgspec.Struct, frozen=True):
    """The sender's clock at the time it stamped the records of one request.

    A stamp belongs to a boot: while the machine runs, wall time minus time since boot is
    constant unless somebody sets the clock. With it the collector can repair a stamp
    made under a wrong clock, and leave alone the times the application gave.
    """

    boot: str
    """Identifies the boot of the sender's machine."""
    offset_ms: int
    """Wall clock minus time since boot while these records were stamped, milliseconds."""
    now_ms: int
    """Time since boot when the request left, milliseconds."""
    given: tuple[range, ...] = ()
    """Positions, in the request, of the records whose time the application gave."""

    def encode(self) -> str:
        """``boot=<id>; offset=<ms>; now=<ms>; given=0-3,7``; ``given`` is left out when empty."""
        text = f"boot={self.boot}; offset={self.offset_ms}; now={self.now_ms}"
        if self.given:
            spans = (f"{r.start}-{r.stop - 1}" if len(r) > 1 else str(r.start) for r in self.given)
            text += "; given=" + ",".join(spans)
        return text

    @classmethod
    def decode(cls, text: str) -> "ClockHeader":
        """Raises ValueError, saying what is wrong, for anything `encode` could not have made."""
        fields = dict(part.strip().partition("=")[::2] for part in text.split(";"))
        boot, offset, now = fields.get("boot", ""), fields.get("offset", ""), fields.get("now", "")
        if not (_MILLISECONDS.fullmatch(offset) and _MILLISECONDS.fullmatch(now)):
            raise ValueError(f"{CLOCK_HEADER} needs boot, offset and now (whole milliseconds)")
        if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", boot, re.ASCII):
            raise ValueError(f"{CLOCK_HEADER}: boot must be 1 to 64 letters, digits or hyphens")
        given = fields.get("given", "")
        if given and not _RANGES.fullmatch(given):
            raise ValueError(f"{CLOCK_HEADER}: given must look like 0-3,7")
        spans = (span.partition("-") for span in given.split(",")) if given else ()
        ranges = tuple(range(int(first), int(last or first) + 1) for first, _, last in spans)
        if not all(ranges):
            raise ValueError(f"{CLOCK_HEADER}: given names a range that ends before it begins")
        return cls(boot, int(offset), int(now), ranges)
