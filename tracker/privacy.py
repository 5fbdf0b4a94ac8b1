"""What a tracker does to a record before anybody sees it: leave parts out, and show what is left to those who asked."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from tracker import events
from tracker.errors import InvalidRecord
from tracker.receipt import Receipt
from tracker.record import Record, plans
from tracker.transactions import Product

BeforeRecord = Callable[[Record], Record | None]
"""Gets each record before it is stamped; returns it, another one, or None to drop it."""

shown: logging.Logger = logging.getLogger("tracker.debug")
"""Where `Tracker(debug=True)` shows records, at level DEBUG; silent otherwise."""

_LINE: Final = frozenset(plans[Product].arguments)


class Redaction:
    """Leaves keys out of everything free-form: events' `params`, transactions' `metadata`, products' `extra`.

    A name is the key as it is sent, at any depth; the event's own optional keys go too. What the API requires of
    an event cannot be left out, and such a name raises `InvalidRecord`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        if isinstance(names, str):
            raise InvalidRecord("redact", "must be a list of names of params, not one string", names)
        self._names: frozenset[str] = frozenset(names)
        for name in self._names:
            if not isinstance(name, str):
                raise InvalidRecord("redact", "must hold strings: names of params as they are sent", name)
        for event in events.ALL:
            if needed := self._names & _required(event):
                raise InvalidRecord(
                    "redact", f"must not hold {min(needed)}: the API requires it of {event.type}; use before_record"
                )

    def __call__(self, body: dict[str, object]) -> dict[str, object]:
        """The record in the API's words without what is redacted."""
        for place in ("params", "metadata"):
            if place in body:
                body[place] = self._without(body[place])
        if "products" in body:
            body["products"] = self._lines(body["products"])
        return body

    def _without(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: self._lines(item) if key == "products" else self._without(item)
                for key, item in value.items()
                if key not in self._names
            }
        if isinstance(value, (list, tuple)):
            return [self._without(item) for item in value]
        return value

    def _lines(self, products: Any) -> Any:
        """Products keep the keys the API knows, such as ``name``; of any others none of the names."""
        if not isinstance(products, (list, tuple)):
            return self._without(products)
        return [
            {key: self._without(item) for key, item in line.items() if key in _LINE or key not in self._names}
            if isinstance(line, Mapping)
            else line
            for line in products
        ]


def _required(event: type[events.Event]) -> set[str]:
    plan = plans[event]
    return {key for key, argument in plan.arguments.items() if argument in plan.required}


def show(receipt: Receipt) -> None:
    """Logs a record as it would be sent."""
    if shown.isEnabledFor(logging.DEBUG):
        shown.debug("POST %s %s", receipt._path, receipt._body.decode())
