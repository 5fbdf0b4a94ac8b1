"""The events of the API, a class each (API reference, Event kinds).

A field without default is one the API requires; the others it knows. `params` takes any further
keys. The class's `type` is the path under ``/v4/events/`` and the batch's ``type``.
"""

from functools import cache
from typing import ClassVar, Final

from msgspec import Struct, field

from tracker import wire
from tracker.checks import (
    Action,
    AnySource,
    Flag,
    Label,
    Number,
    Percent,
    Position,
    Quantity,
    SearchType,
    Text,
    Texts,
)
from tracker.clients import Client
from tracker.errors import InvalidRecord
from tracker.money import Discount, Price
from tracker.params import Extra, not_reserved
from tracker.record import Record, encode, no_known_keys, plans
from tracker.transactions import Products, one_currency


class _Body(Struct, rename="camel", gc=False):
    """An event as `Event.wire` says it, for events whose own fields are sent as they are."""

    type: str
    label: str
    time: str
    event_salt: str
    client: Client
    params: Struct


class Event(Record, frozen=True, kw_only=True):
    """What all events have: whose, when, a label for people, and free-form `params`."""

    path: ClassVar[str] = wire.EVENTS_BATCH
    type: ClassVar[str]

    label: Label | None = None
    """The API demands one and throws it away; without it, the event's name."""
    params: Extra | None = None
    """Further keys: anything JSON can say, `Decimal`, `Money`, `UUID` and aware datetimes; no None."""

    def __post_init__(self) -> None:
        plan = plans[type(self)]
        plan.check(self)
        params = self.params
        if params is not None and not plan.spoken_for.isdisjoint(params):
            not_reserved(params, "params")
            no_known_keys(params, "params", plan.arguments)
            if "email" in params and self.client.email not in (None, params["email"]):
                raise InvalidRecord("params.email", "must equal the client's email, or be left out", params["email"])

    def wire(self, time: str, salt: str) -> dict[str, object]:
        """This event in the API's words, an element of a batch."""
        params = self.known()
        if self.params is not None:
            params.update(self.params)
        return {
            "type": self.type,
            "label": self.label or _label(self.type),
            "time": time,
            "eventSalt": salt,
            "client": self.client,
            "params": params,  # also when empty: for some types the API requires the object itself
        }

    def _encoded(self, time: str, salt: str) -> bytes:
        own = plans[type(self)].own
        if own is None:
            return encode(self.wire(time, salt))
        # msgspec reads the fields out of a struct faster than we could put them into dicts.
        kind = self.type
        return encode(_Body(kind, self.label or _label(kind), time, salt, self.client, own(self)), self.params)


@cache
def _label(event_type: str) -> str:
    """``added-to-cart`` as ``Added to cart``."""
    return event_type.replace("-", " ").replace("/", " ").capitalize()


def under_action(event: Event, action: str, time: str, salt: str) -> dict[str, object]:
    """A custom event in the API's words: its action is also its label, where it has none."""
    body = Event.wire(event, time, salt)
    body["action"] = action
    if event.label is None:
        body["label"] = action
    return body


class Custom(Event, frozen=True, kw_only=True):
    """Anything else, under an action of your own in the style ``context.action``.

    An action the workspace does not know yet creates a definition there.
    """

    type: ClassVar[str] = "custom"

    action: Action

    def wire(self, time: str, salt: str) -> dict[str, object]:
        return under_action(self, self.action, time, salt)

    _encoded = Record._encoded


class ApplicationStarted(Event, frozen=True, kw_only=True):
    """The application was started."""

    type: ClassVar[str] = "application-started"

    application_name: Text
    version: Text
    """Sent as ``version`` and as ``appVersion``: the API's descriptions disagree."""
    sdk_version: Text | None = None
    sdk_version_code: Text | None = None
    app_version_code: Text | None = None
    device_id: Text | None = field(name="deviceID", default=None)
    device_model: Text | None = None
    device_manufacturer: Text | None = None
    device_resolution: Text | None = None
    device_type: Text | None = None
    os: Text | None = None
    """``android``, ``ios`` or ``windows`` where it is one of these."""
    os_version: Text | None = None
    os_language: Text | None = None

    def __post_init__(self) -> None:
        Event.__post_init__(self)
        if self.params is not None:
            no_known_keys(self.params, "params", {"appVersion": "version"})

    def known(self) -> dict[str, object]:
        return Record.known(self) | {"appVersion": self.version}


class Registered(Event, frozen=True, kw_only=True):
    """The client made an account."""

    type: ClassVar[str] = "registered"

    source: AnySource | None = None


class LoggedIn(Event, frozen=True, kw_only=True):
    """The client logged in."""

    type: ClassVar[str] = "logged-in"

    source: AnySource | None = None


class LoggedOut(Event, frozen=True, kw_only=True):
    """The client logged out."""

    type: ClassVar[str] = "logged-out"

    source: AnySource | None = None


class _Cart(Event, frozen=True, kw_only=True):
    """The keys both cart events share (API reference, Cart keys)."""

    sku: Text
    quantity: Quantity
    final_unit_price: Price
    """After tax and discount."""
    source: AnySource | None = None
    name: Text | None = None
    regular_unit_price: Price | None = None
    discounted_unit_price: Price | None = None
    category: Text | None = None
    categories: Texts | None = None
    producer: Text | None = None
    offline: Flag | None = None
    """True at a cash register."""
    url: Text | None = field(name="ItemUrlAddress", default=None)

    def __post_init__(self) -> None:
        Event.__post_init__(self)
        if self.regular_unit_price or self.discounted_unit_price:
            one_currency(
                self.final_unit_price.currency,
                regular_unit_price=self.regular_unit_price,
                discounted_unit_price=self.discounted_unit_price,
            )


class AddedToCart(_Cart, frozen=True, kw_only=True):
    """A product was put into the cart, or scanned at the till."""

    type: ClassVar[str] = "added-to-cart"


class RemovedFromCart(_Cart, frozen=True, kw_only=True):
    """A product was taken out of the cart."""

    type: ClassVar[str] = "removed-from-cart"


class AddedToFavorites(Event, frozen=True, kw_only=True):
    """A product was marked as a favourite."""

    type: ClassVar[str] = "added-to-favorites"

    sku: Text | None = None
    name: Text | None = None
    final_unit_price: Price | None = None
    source: AnySource | None = None


class ProductView(Event, frozen=True, kw_only=True):
    """A product page was seen."""

    type: ClassVar[str] = "product-view"

    product_id: Text | None = None
    name: Text | None = None
    source: AnySource | None = None
    category: Text | None = None
    url: Text | None = None
    campaign_hash: Text | None = None
    from_recommendation: Flag | None = None


class AssignedToCompany(Event, frozen=True, kw_only=True):
    """The client was assigned to a company."""

    type: ClassVar[str] = "assigned-to-company"

    company_id: Number | None = None


class AppearedInLocation(Event, frozen=True, kw_only=True):
    """The client was seen at a place."""

    type: ClassVar[str] = "appeared-in-location"

    lat: Number
    lon: Number
    application_id: Text | None = None


class _Push(Event, frozen=True, kw_only=True):
    """The keys all push events share."""

    id: Text | None = None
    campaign_name: Text | None = None
    variant_id: Text | None = None
    variant_name: Text | None = None
    title: Text | None = None
    os: Text | None = None
    journey_id: Text | None = None
    source: AnySource | None = None


class PushReceived(_Push, frozen=True, kw_only=True):
    """A push message was received in the background."""

    type: ClassVar[str] = "push/received"

    message_id: Text | None = None


class PushViewed(_Push, frozen=True, kw_only=True):
    """A push message was seen."""

    type: ClassVar[str] = "push/viewed"


class PushClicked(_Push, frozen=True, kw_only=True):
    """A push message was clicked."""

    type: ClassVar[str] = "push/clicked"


class PushCancelled(_Push, frozen=True, kw_only=True):
    """A push message was dismissed."""

    type: ClassVar[str] = "push/cancelled"


class CancelledTransaction(Event, frozen=True, kw_only=True):
    """A sale was cancelled or goods came back; amounts are positive, as in the sale."""

    type: ClassVar[str] = "cancelled-transaction"

    order_id: Text | None = None
    order_status: Text | None = None
    discount_amount: Discount | None = None
    discount_percent: Percent | None = None
    discount_code: Text | None = None
    value: Price | None = None
    revenue: Price | None = None
    products: Products | None = None
    source: AnySource | None = None
    payment_method: Text | None = field(name="paymentInfo", default=None)

    def __post_init__(self) -> None:
        Event.__post_init__(self)
        first = self.products[0].final_unit_price if self.products else self.revenue or self.value
        if first is not None:
            one_currency(first.currency, revenue=self.revenue, value=self.value, discount_amount=self.discount_amount)

    def known(self) -> dict[str, object]:
        known = Record.known(self)
        if self.products is not None:
            known["products"] = [line.wire() for line in self.products]
        if self.payment_method is not None:
            known["paymentInfo"] = {"method": self.payment_method}
        return known


class HitTimer(Event, frozen=True, kw_only=True):
    """A timer was hit."""

    type: ClassVar[str] = "hit-timer"


class Searched(Event, frozen=True, kw_only=True):
    """The client searched for something."""

    type: ClassVar[str] = "searched"

    source: AnySource | None = None


class Shared(Event, frozen=True, kw_only=True):
    """The client shared something."""

    type: ClassVar[str] = "shared"

    source: AnySource | None = None


class VisitedScreen(Event, frozen=True, kw_only=True):
    """A screen of an application was visited."""

    type: ClassVar[str] = "visited-screen"

    screen_name: Text | None = None
    source: AnySource | None = None


class RecommendationView(Event, frozen=True, kw_only=True):
    """A frame of recommendations was seen."""

    type: ClassVar[str] = "recommendation-view"

    items: Texts | None = None
    campaign_id: Text | None = None
    correlation_id: Text | None = None
    """Links the view to the request that made the recommendations."""


class ItemSearchClick(Event, frozen=True, kw_only=True):
    """An item among search results was clicked."""

    type: ClassVar[str] = "item-search-click"

    correlation_id: Text | None = None
    item: Text | None = None
    position: Position | None = None
    """From 1."""
    search_type: SearchType | None = None


class _Recommendation(Event, frozen=True, kw_only=True):
    product_id: Text | None = None
    name: Text | None = None
    source: AnySource | None = None
    campaign_hash: Text | None = None
    campaign_id: Text | None = None
    category: Text | None = None
    url: Text | None = None


class RecommendationSeen(_Recommendation, frozen=True, kw_only=True):
    """Deprecated by the API: use `RecommendationView`. Tracked with ``tracker.track(...)``."""

    type: ClassVar[str] = "recommendation-seen"


class RecommendationClick(_Recommendation, frozen=True, kw_only=True):
    """Deprecated by the API. Tracked with ``tracker.track(...)``."""

    type: ClassVar[str] = "recommendation-click"


ALL: Final[tuple[type[Event], ...]] = (
    ApplicationStarted,
    Registered,
    LoggedIn,
    LoggedOut,
    AddedToCart,
    RemovedFromCart,
    AddedToFavorites,
    ProductView,
    AssignedToCompany,
    AppearedInLocation,
    PushReceived,
    PushViewed,
    PushClicked,
    PushCancelled,
    CancelledTransaction,
    HitTimer,
    Searched,
    Shared,
    VisitedScreen,
    RecommendationView,
    ItemSearchClick,
    RecommendationSeen,
    RecommendationClick,
    Custom,
)
