"""What the API accepts as a record: the checks of API.md 4, 5 and 6, as 9.3 and 9.7 demand them.

Pure functions: a decoded record in, a list of `Problem` out, empty when the record is good.
Nothing is shared with the library or the collector, so that a wrong rule there shows here.
"""

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

from collector.testing.switches import Switches

Record = dict[str, Any]


class Problem(NamedTuple):
    """Why a record is refused: an entry of ``errors`` in the API's error body (API.md 7)."""

    field: str
    message: str
    value: Any = None


class EventType(NamedTuple):
    """One row of the table in API.md 4.4."""

    action: str
    params: bool = False
    """The ``params`` object is required."""
    required: tuple[str, ...] = ()
    """Keys marked ``*``."""
    recommended: tuple[str, ...] = ()
    """Keys marked ``+``: only noted."""


_CART: Final = ("sku", "quantity", "finalUnitPrice")
_SEEN: Final = ("productId", "name", "source", "campaignHash", "campaignId")
EVENT_TYPES: Final[dict[str, EventType]] = {
    "application-started": EventType("client.applicationStarted", True, ("applicationName", "version")),
    "registered": EventType("client.register"),
    "logged-in": EventType("client.login"),
    "logged-out": EventType("client.logout"),
    "added-to-cart": EventType("product.addToCart", True, _CART, ("source", "name")),
    "removed-from-cart": EventType("product.removeFromCart", True, _CART, ("source", "name")),
    "added-to-favorites": EventType("product.addToFavorite"),
    "product-view": EventType("product.view", False, (), ("productId", "name", "source")),
    "assigned-to-company": EventType("client.assignToCompany", True, (), ("companyId",)),
    "appeared-in-location": EventType("client.location", False, ("lat", "lon")),
    "push/received": EventType("push.receiveInBackground", False, (), ("messageId",)),
    "push/viewed": EventType("push.view"),
    "push/clicked": EventType("push.click"),
    "push/cancelled": EventType("push.cancel"),
    "cancelled-transaction": EventType("transaction.cancel", False, (), ("orderId",)),
    "hit-timer": EventType("client.hitTimer"),
    "searched": EventType("client.search"),
    "shared": EventType("client.shared"),
    "visited-screen": EventType("screen.view"),
    "recommendation-view": EventType("recommendation.view", True),
    "item-search-click": EventType("item.search.click", True, (), ("correlationId", "item", "position", "searchType")),
    "recommendation-seen": EventType("recommendation.seen", False, (), _SEEN),
    "recommendation-click": EventType("recommendation.click", False, (), _SEEN),
}
RESERVED_PARAMS: Final = frozenset({"modifiedBy", "apiKey", "eventUUID", "ip", "time", "businessProfileId"})
CLIENT_KEYS: Final = ("id", "uuid", "customId", "email")
"""In the order in which the first counts (API.md 4.2)."""
SOURCES: Final = frozenset({"WEB_DESKTOP", "WEB_MOBILE", "MOBILE_APP", "POS", "MOBILE", "DESKTOP"})
CHARGE: Final = "transaction.charge"

_ACTION = re.compile(r"[a-zA-Z0-9.\-_]{1,32}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_EMAIL = re.compile(
    r"""(([^<>()[\]\\.,;:\s@"]+(\.[^<>()[\]\\.,;:\s@"]+)*)|(".+"))"""
    r"""@((\[[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\])|(([a-zA-Z\-0-9]+\.)+[a-zA-Z]{2,}))"""
)
# Surrogate pairs, CR, LF, U+2028, U+2029, U+00AD, U+FE00-U+FE0F, U+0000 (API.md 4.2).
_FORBIDDEN = re.compile("[\U00010000-\U0010ffff\ud800-\udfff\r\n\u2028\u2029\u00ad\ufe00-\ufe0f\x00]")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?([+-]\d{2}:\d{2}|Z)", re.ASCII | re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURRENCY = re.compile(r"[A-Za-z]{3}", re.ASCII)


@lru_cache(4096)  # checked once and stored once
def parse_time(text: str) -> int:
    """Milliseconds since 1970 of a time as API.md 5 wants it; finer fractions are cut off.

    Raises ValueError for everything else, a time without offset included.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("must be ISO 8601 with Z or +hh:mm")
    # Exact in integers; timestamp() would round through a float.
    since = datetime.fromisoformat(text.upper()) - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def check_event(record: Any, path_type: str | None, switches: Switches, notes: Counter[str]) -> list[Problem]:
    """Problems of one event (API.md 9.3). `path_type` is the type of a single-event path, None in a batch."""
    if type(record) is not dict:
        return [Problem("", "must be an object", record)]
    problems: list[Problem] = []
    check_client(record.get("client"), problems)
    label = record.get("label")
    if type(label) is not str or not label:
        problems.append(Problem("label", "must not be empty" if label == "" else "must be a string", label))
    _check_stamp(record, "time", problems)
    params = record.get("params")
    if params is not None and type(params) is not dict:
        problems.append(Problem("params", "must be an object", params))
        params = None
    type_ = record.get("type") if path_type is None else path_type
    if type_ == "custom":
        action = record.get("action")
        if type(action) is not str or not _ACTION.fullmatch(action):
            problems.append(Problem("action", "must match ^[a-zA-Z0-9\\.\\-_]+$, 1 to 32 characters", action))
    else:
        known = known_type(type_, path_type, switches)
        if known is None or type(type_) is not str:
            problems.append(Problem("type", "unknown event type", type_))
        else:
            if "action" in record:
                problems.append(Problem("action", "is set by the server for this type", record["action"]))
            _check_params(type_, known, params, switches, problems, notes)
    if params and "email" in params and switches.params_email == "refuse" and differing_email(record):
        problems.append(Problem("params.email", "must equal the profile's email", params["email"]))
    return problems


def known_type(type_: Any, path_type: str | None, switches: Switches) -> EventType | None:
    """The row of API.md 4.4, None for a type that a batch does not know under these switches."""
    if type(type_) is not str:
        return None
    if path_type is None:
        if type_.startswith("push/") and switches.push_type == "custom":
            return None
        if type_ == "recommendation-view" and switches.recommendation_view_type == "custom":
            return None
    return EVENT_TYPES.get(type_)


def differing_email(record: Record) -> bool:
    """Whether ``params.email`` is there, and another than ``client.email`` (API.md 4.1)."""
    params, client = record.get("params"), record.get("client")
    if type(params) is not dict or type(client) is not dict or params.get("email") is None:
        return False
    return client.get("email") is not None and client["email"] != params["email"]


def _check_params(
    type_: str,
    known: EventType,
    params: Record | None,
    switches: Switches,
    problems: list[Problem],
    notes: Counter[str],
) -> None:
    if params is None:
        if known.params:
            problems.append(Problem("params", "must not be null"))
        return  # keys are required inside params, and params itself may be left out
    for key in known.required:
        _PARAM_CHECKS[key](params.get(key), f"params.{key}", problems)
    for key in known.recommended:
        if key not in params:
            notes[f"{type_} without {key}"] += 1
    if known.required is _CART:
        other = "url" if switches.cart_url == "ItemUrlAddress" else "ItemUrlAddress"
        if other in params:
            notes[f"{type_} with {other}, known here is {switches.cart_url}"] += 1


def check_client(client: Any, problems: list[Problem]) -> None:
    """Appends what is wrong with ``client`` (API.md 4.2)."""
    if type(client) is not dict:
        problems.append(Problem("client", "must not be null" if client is None else "must be an object", client))
        return
    found = False
    for key in CLIENT_KEYS:
        value = client.get(key)
        if value is None:
            continue
        found = True
        if key == "id":
            if type(value) is not int or not -(2**63) <= value < 2**63:
                problems.append(Problem("client.id", "must be an int64", value))
        elif type(value) is not str or not value.strip() or _FORBIDDEN.search(value):
            problems.append(Problem(f"client.{key}", "must be a string without forbidden characters", value))
        elif key == "uuid" and not _UUID.fullmatch(value):
            problems.append(Problem("client.uuid", "must be a UUID, lower case", value))
        elif key == "email" and not is_email(value):
            problems.append(Problem("client.email", "must be a well-formed email address", value))
    if not found:
        problems.append(Problem("client", "needs one of id, uuid, customId, email", None))


def is_email(value: str) -> bool:
    """The API's pattern; U+FEFF by hand, because ECMA's ``\\s`` holds it and Python's does not (API.md 4.2)."""
    return _EMAIL.fullmatch(value) is not None and "\ufeff" not in value


def is_uuid(value: str) -> bool:
    """Lower-case 8-4-4-4-12 hexadecimal digits (API.md 4.2)."""
    return _UUID.fullmatch(value) is not None


def has_forbidden_characters(value: str) -> bool:
    """Whether an identifier holds characters that API.md 4.2 forbids."""
    return _FORBIDDEN.search(value) is not None


def check_transaction(record: Any) -> list[Problem]:
    """Problems of one transaction (API.md 6 and 9.7)."""
    if type(record) is not dict:
        return [Problem("", "must be an object", record)]
    problems: list[Problem] = []
    check_client(record.get("client"), problems)
    _text(record.get("orderId"), "orderId", problems)
    _check_stamp(record, "recordedAt", problems)
    payment = record.get("paymentInfo")
    if type(payment) is not dict:
        problems.append(Problem("paymentInfo", "must be an object", payment))
    else:
        _text(payment.get("method"), "paymentInfo.method", problems)
    if type(record.get("source")) is not str or record["source"] not in SOURCES:
        problems.append(Problem("source", "must be one of " + ", ".join(sorted(SOURCES)), record.get("source")))
    currencies: set[str] = set()
    _money(record.get("revenue"), "revenue", problems, currencies)
    _money(record.get("value"), "value", problems, currencies)
    discount = record.get("discountAmount")
    if discount is not None:
        _money(discount, "discountAmount", problems, currencies)
        if type(discount) is dict and discount.get("amount") == 0:
            problems.append(Problem("discountAmount.amount", "must be greater than 0", 0))
    if "metadata" in record and type(record["metadata"]) is not dict:
        problems.append(Problem("metadata", "must be an object", record["metadata"]))
    products = record.get("products")
    if type(products) is not list or not products:
        problems.append(Problem("products", "must not be empty", products))
    else:
        for index, product in enumerate(products):
            _check_product(product, f"products[{index}]", problems, currencies)
    if len(currencies) > 1:
        problems.append(Problem("revenue.currency", "all amounts must share one currency", sorted(currencies)))
    return problems


def _check_product(product: Any, field: str, problems: list[Problem], currencies: set[str]) -> None:
    if type(product) is not dict:
        problems.append(Problem(field, "must be an object", product))
        return
    _text(product.get("sku"), field + ".sku", problems)
    _text(product.get("name"), field + ".name", problems)
    _number(product.get("quantity"), field + ".quantity", problems)
    _money(product.get("finalUnitPrice"), field + ".finalUnitPrice", problems, currencies)
    for key, check in _OPTIONAL_OF_PRODUCT.items():
        if product.get(key) is not None:
            check(product[key], f"{field}.{key}", problems)
    for key in ("regularPrice", "netUnitPrice", "discountPrice"):
        if product.get(key) is not None:
            _money(product[key], f"{field}.{key}", problems, currencies)


def _check_stamp(record: Record, time_key: str, problems: list[Problem]) -> None:
    time = record.get(time_key)
    if time is not None:
        if type(time) is not str:
            problems.append(Problem(time_key, "must be a string", time))
        else:
            try:
                parse_time(time)
            except ValueError as error:
                problems.append(Problem(time_key, str(error), time))
    salt = record.get("eventSalt")
    if salt is not None and type(salt) is not str:
        problems.append(Problem("eventSalt", "must be a string", salt))


def _text(value: Any, field: str, problems: list[Problem]) -> None:
    if type(value) is not str:
        problems.append(Problem(field, "must not be null" if value is None else "must be a string", value))


def _texts(value: Any, field: str, problems: list[Problem]) -> None:
    if type(value) is not list or not all(type(item) is str for item in value):
        problems.append(Problem(field, "must be an array of strings", value))


def _number(value: Any, field: str, problems: list[Problem]) -> None:
    if type(value) is not int and type(value) is not float:
        problems.append(Problem(field, "must not be null" if value is None else "must be a number", value))


def _money(value: Any, field: str, problems: list[Problem], currencies: set[str] | None = None) -> None:
    if type(value) is not dict:
        problems.append(Problem(field, "must not be null" if value is None else "must be an object", value))
        return
    amount, currency = value.get("amount"), value.get("currency")
    if (type(amount) is not int and type(amount) is not float) or amount < 0:
        problems.append(Problem(field + ".amount", "must be a number, greater than or equal to 0", amount))
    if currency is None:
        problems.append(Problem(field + ".currency", "Missing property: 'currency'"))
    elif type(currency) is not str or not _CURRENCY.fullmatch(currency):
        problems.append(Problem(field + ".currency", "must be an ISO 4217 code", currency))
    elif currencies is not None:
        currencies.add(currency)


_Check = Callable[[Any, str, list[Problem]], None]
_PARAM_CHECKS: Final[dict[str, _Check]] = {
    "applicationName": _text,
    "version": _text,
    "sku": _text,
    "quantity": _number,
    "finalUnitPrice": _money,
    "lat": _number,
    "lon": _number,
}
_OPTIONAL_OF_PRODUCT: Final[dict[str, _Check]] = {
    "discountPercent": _number,
    "tax": _number,
    "url": _text,
    "image": _text,
    "categories": _texts,
}


def null_in(value: Any, allowed: str = "", at: str = "") -> str | None:
    """Where a null hides in a decoded record, for example ``params.colour``; None for nowhere.

    `allowed` is a top-level key whose null is legal: ``discountAmount`` in transactions (API.md 9.7).
    """
    if value is None:
        return at
    if type(value) is dict:
        for key, item in value.items():
            if key != allowed and (found := null_in(item, "", f"{at}.{key}" if at else key)) is not None:
                return found
    elif type(value) is list:
        for index, item in enumerate(value):
            if (found := null_in(item, "", f"{at}[{index}]")) is not None:
                return found
    return None


def without_nulls(value: Any) -> Any:
    """The value without the keys whose value is null, as a server that ignores nulls reads it."""
    if type(value) is dict:
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if type(value) is list:
        return [without_nulls(item) for item in value if item is not None]
    return value
