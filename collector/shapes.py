"""What an accepted record must look like: the checks of the API reference, 9.3 and 9.7, as types.

A Struct names only what is checked; msgspec skips the rest of a record without building
objects. What the server "must not demand" (marked ``+`` in the reference) is not here:
a sidecar that is stricter than the API would turn away records the API takes.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain, starmap
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from tracker.wire import CLIENT_KEYS, EVENT_ACTIONS

SALT_MAX_CHARS: Final = 1024
"""The reference states no limit; this one only keeps nonsense out."""

Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Salt: TypeAlias = Annotated[str, Meta(min_length=1, max_length=SALT_MAX_CHARS)]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Amount: TypeAlias = Annotated[float, Meta(ge=0)]
Currency: TypeAlias = Annotated[str, Meta(min_length=3, max_length=3)]
Source: TypeAlias = Literal["WEB_DESKTOP", "WEB_MOBILE", "MOBILE_APP", "POS", "MOBILE", "DESKTOP"]


class Client(Struct, frozen=True, gc=False):
    """The identifying keys; others (``phone``) may be there and do not identify."""

    customId: str | UnsetType = UNSET  # noqa: N815 - the API's name
    email: str | UnsetType = UNSET
    id: Int64 | UnsetType = UNSET
    uuid: str | UnsetType = UNSET


class Params(Struct, frozen=True, gc=False):
    """Free-form, except that ``email`` must be the client's."""

    email: object = UNSET


class _Money(Struct, frozen=True, gc=False):
    amount: Amount
    currency: Currency


class _Application(Params, frozen=True, gc=False, kw_only=True):
    applicationName: str  # noqa: N815
    version: str


class _Cart(Params, frozen=True, gc=False, kw_only=True):
    sku: str
    quantity: float
    finalUnitPrice: _Money  # noqa: N815


class _Location(Params, frozen=True, gc=False, kw_only=True):
    lat: float
    lon: float


class Event(Struct, frozen=True, gc=False, kw_only=True, tag_field="type"):
    """Any event; the subclass for each type says what its ``params`` need."""

    event_type: ClassVar[str]

    client: Client
    label: Text
    time: str | UnsetType = UNSET
    salt: Salt | UnsetType = msgspec.field(name="eventSalt", default=UNSET)
    action: str | UnsetType = UNSET
    params: Params = Params()


class _Discount(Struct, frozen=True, gc=False):
    amount: Annotated[float, Meta(gt=0)]
    currency: Currency


class _Payment(Struct, frozen=True, gc=False):
    method: str


class _Object(Struct, frozen=True, gc=False):
    pass


class _Product(Struct, frozen=True, gc=False, rename="camel"):
    sku: str
    name: str
    quantity: float
    final_unit_price: _Money
    regular_price: _Money | UnsetType = UNSET
    net_unit_price: _Money | UnsetType = UNSET
    discount_price: _Money | UnsetType = UNSET
    discount_percent: float | UnsetType = UNSET
    tax: float | UnsetType = UNSET
    url: str | UnsetType = UNSET
    image: str | UnsetType = UNSET
    categories: list[str] | UnsetType = UNSET


class Transaction(Struct, frozen=True, gc=False, kw_only=True, rename="camel"):
    """A transaction (API reference, section 6)."""

    client: Client
    order_id: str
    payment_info: _Payment
    products: Annotated[list[_Product], Meta(min_length=1)]
    revenue: _Money
    value: _Money
    source: Source
    time: str | UnsetType = msgspec.field(name="recordedAt", default=UNSET)
    salt: Salt | UnsetType = msgspec.field(name="eventSalt", default=UNSET)
    discount_amount: _Discount | UnsetType = UNSET
    metadata: _Object = _Object()


Record: TypeAlias = Event | Transaction

_PARAMS: Final[dict[str, type[Params]]] = {
    "application-started": _Application,
    "added-to-cart": _Cart,
    "removed-from-cart": _Cart,
    "appeared-in-location": _Location,
}
_PARAMS_REQUIRED: Final = {
    "application-started",
    "added-to-cart",
    "removed-from-cart",
    "assigned-to-company",
    "recommendation-view",
    "item-search-click",
}


def _event(event_type: str) -> type[Event]:
    """The Struct of one event type, told apart by ``type``."""
    params = _PARAMS.get(event_type, Params)
    # Where params may be left out, so may the keys that are required inside it.
    field = ("params", params) if event_type in _PARAMS_REQUIRED else ("params", params, Params())
    shape = msgspec.defstruct(
        "Event_" + re.sub(r"\W", "_", event_type),
        [field],
        bases=(Event,),
        namespace={"event_type": event_type},
        tag_field="type",
        tag=event_type,
        kw_only=True,
        frozen=True,
        gc=False,
    )
    return cast(type[Event], shape)


EVENT_SHAPES: Final[dict[str, type[Event]]] = {name: _event(name) for name in ("custom", *EVENT_ACTIONS)}
"""Every event type the API knows, to the Struct that checks it."""
CUSTOM: Final = EVENT_SHAPES["custom"]
_CARTS: Final = {EVENT_SHAPES[name] for name, params in _PARAMS.items() if params is _Cart}

_any_event: Any = CUSTOM
for _shape in EVENT_SHAPES.values():
    _any_event = _any_event | _shape

decode_events: Final[Callable[[bytes], Sequence[Record]]] = msgspec.json.Decoder(list[_any_event]).decode
decode_event: Final[Callable[[bytes], Record]] = msgspec.json.Decoder(_any_event).decode
decode_transactions: Final[Callable[[bytes], Sequence[Record]]] = msgspec.json.Decoder(list[Transaction]).decode
decode_transaction: Final[Callable[[bytes], Record]] = msgspec.json.Decoder(Transaction).decode


class Fault(Struct, frozen=True):
    """Why one record was refused; ``field`` is relative to the record."""

    field: str
    message: str
    value: Any = None


_ACTION: Final = re.compile(r"[a-zA-Z0-9.\-_]{1,32}", re.ASCII)
_CURRENCY: Final = re.compile(r"[A-Za-z]{3}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_UUID_FORM: Final = "00000000-0000-0000-0000-000000000000"
_HEX: Final = bytes.maketrans(b"123456789abcdef", b"0" * 15)
# The reference's pattern (API.md 4.2), and the plain addresses it surely accepts, which cost a third.
_EMAIL: Final = re.compile(
    r"(([^<>()[\]\\.,;:\s@\"]+(\.[^<>()[\]\\.,;:\s@\"]+)*)|(\".+\"))"
    r"@((\[[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\])|(([a-zA-Z\-0-9]+\.)+[a-zA-Z]{2,}))"
)
_PLAIN_EMAIL: Final = re.compile(r"[\w+-]++(?:\.[\w+-]++)*+@(?:[a-zA-Z0-9-]++\.)++[a-zA-Z]{2,}+", re.ASCII)
_CURRENCY_RULE: Final = "a currency is three letters (ISO 4217), for example PLN"
_FORBIDDEN_RULE: Final = "must not hold line breaks, NUL, soft hyphens, variation selectors or characters beyond U+FFFF"
_FORBIDDEN: Final = re.compile("[\r\n\u2028\u2029\u00ad\ufe00-\ufe0f\0\U00010000-\U0010ffff]")


_NOBODY: Final = Client()


def all_like(texts: Sequence[str], form: str, table: bytes) -> bool:
    """Whether all texts look like `form` once `table` has mapped their bytes: one pass for a whole column."""
    whole = "".join(texts).encode().translate(table)
    return whole == form.encode() * len(texts) and set(map(len, texts)) <= {len(form)}


class Columns:
    """What decoded records hold, each field side by side: rules on whole columns cost a fraction of rules on records.

    `UNSET` stands where a record has none.
    """

    __slots__ = ("_lanes", "actions", "customId", "email", "id", "params", "salts", "shapes", "times", "uuid")

    def __init__(self, records: Sequence[Record]) -> None:
        self.times = [record.time for record in records]
        self.salts = [record.salt for record in records]
        self.identify([record.client for record in records])
        self.shapes = set(map(type, records))
        self.actions: list[str | UnsetType] = []
        self.params: list[Params] = []
        if Transaction not in self.shapes:
            events = cast(Sequence[Event], records)
            self.actions = [event.action for event in events]
            self.params = [event.params for event in events]

    def identify(self, clients: Sequence[Client]) -> None:
        """Whose records they are: a column for each identifying key."""
        self._lanes: dict[str, list[int]] | None = None
        self.customId = [client.customId for client in clients]
        self.email = [client.email for client in clients]
        self.id = [client.id for client in clients]
        self.uuid = [client.uuid for client in clients]

    def lanes(self) -> dict[str, list[int]]:
        """Which records have which identifying keys, such as ``email+uuid``; nobody's is ``""``."""
        if self._lanes is None:
            self._lanes = self._find_lanes()
        return self._lanes

    def _find_lanes(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        alike = len(self.times)
        for key in CLIENT_KEYS:
            column = getattr(self, key)
            absent = column.count(UNSET)
            if absent < alike:
                found[key] = [i for i, value in enumerate(column) if value is not UNSET] if absent else [*range(alike)]
        members = list(chain.from_iterable(found.values()))
        if len(members) == alike == len(set(members)):
            return found
        found = {}
        for i, values in enumerate(zip(*(getattr(self, key) for key in CLIENT_KEYS), strict=True)):
            lane = "+".join([key for key, value in zip(CLIENT_KEYS, values, strict=True) if value is not UNSET])
            found.setdefault(lane, []).append(i)
        return found


def sound(records: Sequence[Record], columns: Columns) -> bool:
    """Whether `fault` has nothing to say about any of them: its rules on whole columns, many times cheaper."""
    emails = [email for email in columns.email if email is not UNSET]
    uuids = [uuid for uuid in columns.uuid if uuid is not UNSET]
    custom_ids = [custom_id for custom_id in columns.customId if custom_id is not UNSET]
    plain = _PLAIN_EMAIL.fullmatch
    if not (
        (not emails or all(map(plain, emails)) or all(map(_is_email, emails)))
        and (not uuids or all_like(uuids, _UUID_FORM, _HEX))
        and (not custom_ids or (all(map(str.strip, custom_ids)) and not _has_forbidden("".join(custom_ids))))
    ):
        return False
    if Transaction in columns.shapes:
        return not any(map(_currency_fault, cast(Sequence[Transaction], records)))
    if not columns.shapes.isdisjoint(_CARTS):
        currencies = {params.finalUnitPrice.currency for params in columns.params if type(params) is _Cart}
        if not all(map(_CURRENCY.fullmatch, currencies)):
            return False
    of_params = [params.email for params in columns.params]
    if of_params.count(UNSET) < len(records) and any(map(_email_fault, cast(Sequence[Event], records))):
        return False
    if CUSTOM not in columns.shapes and columns.actions.count(UNSET) == len(records):
        return True
    return not any(starmap(_action_fault, set(zip(map(type, records), columns.actions, strict=True))))


def fault(record: Record) -> Fault | None:
    """The first rule a decoded record breaks that its type cannot express, or None."""
    found = _client_fault(record.client)
    if found is None:
        found = _event_fault(record) if isinstance(record, Event) else _currency_fault(record)
    return found


def _is_email(text: str) -> bool:
    """The API's pattern. ECMA's white space holds U+FEFF, Python's does not."""
    return _EMAIL.fullmatch(text) is not None and "\ufeff" not in text and not _has_forbidden(text)


def _has_forbidden(text: str) -> bool:
    return not (text.isascii() and text.isprintable()) and _FORBIDDEN.search(text) is not None


def _client_fault(client: Client) -> Fault | None:
    if client == _NOBODY:
        return Fault("client", "at least one of id, uuid, customId and email must say whose record it is")
    if client.email is not UNSET and not _is_email(client.email):
        return Fault("client.email", "not an e-mail address", client.email)
    if client.uuid is not UNSET and not _UUID.fullmatch(client.uuid):
        return Fault("client.uuid", "a uuid is 8-4-4-4-12 lower-case hexadecimal digits", client.uuid)
    custom_id = client.customId
    if custom_id is not UNSET and not custom_id.strip():
        return Fault("client.customId", "must not be blank: leave it out instead", custom_id)
    if custom_id is not UNSET and _has_forbidden(custom_id):
        return Fault("client.customId", _FORBIDDEN_RULE, custom_id)
    return None


def _action_fault(shape: type[Event], action: str | UnsetType) -> Fault | None:
    event_type = shape.event_type
    own = EVENT_ACTIONS.get(event_type)
    if own is None:
        if action is UNSET:
            return Fault("action", "a custom event needs an action, for example receipt.printed")
        if not _ACTION.fullmatch(action):
            return Fault("action", "an action is 1 to 32 letters, digits, dots, hyphens or underscores", action)
    elif action is not UNSET and action != own:
        return Fault("action", f"{event_type} always has the action {own}: leave action out", action)
    return None


def _event_fault(event: Event) -> Fault | None:
    found = _action_fault(type(event), event.action)
    if found is not None:
        return found
    params = event.params
    if isinstance(params, _Cart) and not _CURRENCY.fullmatch(params.finalUnitPrice.currency):
        return Fault("params.finalUnitPrice.currency", _CURRENCY_RULE, params.finalUnitPrice.currency)
    return _email_fault(event)


def _email_fault(event: Event) -> Fault | None:
    email = event.params.email
    if email is not UNSET and event.client.email is not UNSET and email != event.client.email:
        return Fault("params.email", "must be the client's email, or be left out", email)
    return None


def _currency_fault(transaction: Transaction) -> Fault | None:
    currency = transaction.revenue.currency
    if not _CURRENCY.fullmatch(currency):
        return Fault("revenue.currency", _CURRENCY_RULE, currency)
    money: list[tuple[str, _Money | _Discount | UnsetType]] = [
        ("value", transaction.value),
        ("discountAmount", transaction.discount_amount),
    ]
    for i, product in enumerate(transaction.products):
        at = f"products[{i}]."
        money += [
            (at + "finalUnitPrice", product.final_unit_price),
            (at + "regularPrice", product.regular_price),
            (at + "netUnitPrice", product.net_unit_price),
            (at + "discountPrice", product.discount_price),
        ]
    for field, price in money:
        if price is not UNSET and price.currency != currency:
            return Fault(f"{field}.currency", f"all amounts must be in one currency, here {currency}", price.currency)
    return None
