"""Events of your own, declared as a class: checked, documented and completed by editors as the built-in ones.

    class ReceiptPrinted(CustomEvent, action="receipt.printed"):
        \"\"\"A receipt left the printer.\"\"\"

        terminal: str
        copies: Annotated[int, Meta(ge=1)] = 1

    tracker.track(ReceiptPrinted(anna, terminal="T-07"))

Fields are the event's params: `str`, `int`, `float`, `Decimal`, `bool`, `Money`, `datetime`, `date`, `UUID`,
`Product`, `Literal`, enums, ``list[...]``, ``dict[str, ...]``; with ``| None = None`` one may be left out.
Names are sent in camel case, as the API's own; ``field(name="...")`` of msgspec or ``rename=None`` change that.
"""

import inspect
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Final, dataclass_transform

import msgspec

from tracker import checks, params
from tracker.errors import InvalidRecord
from tracker.events import Event, under_action
from tracker.money import Money
from tracker.record import plans
from tracker.time import datetime_ms, format_ms
from tracker.transactions import Product


class _Declaration(msgspec.StructMeta):
    """Takes ``action=`` in the class statement, and looks at the declaration when it is made."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        action: str = "",
        **config: Any,
    ) -> "_Declaration":
        if bases == (Event,):  # CustomEvent itself
            return super().__new__(mcls, name, bases, namespace, **config)
        if action:
            try:
                namespace["action"] = checks.action(action, "action")
            except InvalidRecord as error:
                raise TypeError(f"{name}: {error}") from None
        else:
            namespace["action"] = ""  # what others share: to be inherited, not tracked
        config = {"frozen": True, "kw_only": True} | config
        cls = super().__new__(mcls, name, bases, namespace, **config)
        _look_at(cls)
        return cls


def _look_at(cls: Any) -> None:
    """Raises TypeError for a param that cannot be one."""
    declared = [name for name in cls.__struct_fields__ if name not in _TAKEN]
    for name in sorted(_TAKEN.intersection(inspect.get_annotations(cls))):
        raise TypeError(f"{cls.__name__}.{name}: every event has {name} already; give the param another name")
    names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    for name in declared:
        if names[name] in params.RESERVED:
            raise TypeError(f"{cls.__name__}.{name}: the API would ignore or overwrite {names[name]}; use another name")
    try:
        plans[cls]
    except NameError:
        return  # an annotation names what is not defined yet: the first event made looks again
    except TypeError as error:
        raise TypeError(f"{cls.__name__}: {error}") from None


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class CustomEvent(Event, metaclass=_Declaration, frozen=True, kw_only=True):
    """The base of events that an application declares: ``class ReceiptPrinted(CustomEvent, action="receipt.printed")``.

    The action is 1 to 32 of a-z A-Z 0-9 . - _, in the style ``context.action``. One that the workspace does not
    know yet creates a definition there. A class without one only holds what others share. A wrong declaration
    raises TypeError at once.
    """

    type: ClassVar[str] = "custom"
    action: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.action:
            raise TypeError(f"{type(self).__name__} has no action: declare it with action=..., or a class below it")
        Event.__post_init__(self)
        argument = plans[type(self)].arguments.get("email")
        if argument and self.client.email not in (None, email := getattr(self, argument)) and email is not None:
            raise InvalidRecord(argument, "must equal the client's email, or be left out", email)

    def known(self) -> dict[str, object]:
        said = Event.known(self)
        for key, value in said.items():
            if type(value) not in _AS_IT_STANDS:
                said[key] = as_sent(value)
        return said

    def wire(self, time: str, salt: str) -> dict[str, object]:
        """This event in the API's words, an element of a batch."""
        return under_action(self, self.action, time, salt)


_TAKEN: Final = frozenset(dir(CustomEvent)) | {"extra", "metadata"}
"""Names that mean something on every event."""


_AS_IT_STANDS: Final = frozenset({str, int, float, Decimal, bool, Money})
"""What msgspec encodes as we promise; most params are one of these."""


def as_sent(value: object) -> object:
    """What msgspec would encode otherwise than we promise."""
    if isinstance(value, datetime):
        return format_ms(datetime_ms(value))
    if isinstance(value, Product):
        return value.wire()
    if isinstance(value, tuple):
        return [as_sent(item) for item in value]
    if isinstance(value, Mapping):
        return {key: as_sent(item) for key, item in value.items()}
    return value
