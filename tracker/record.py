"""What events and transactions share: checked where they are made, stamped and encoded once.

`Checked` finds the rule of each field in its annotation (see `checks`). A `Record` says who and
when; `stamp` gives it its time and salt and turns it into the bytes that every attempt sends.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple, Self

import msgspec
from msgspec.structs import force_setattr

from tracker.checks import Check, Moment, Salt
from tracker.clients import AnyClient
from tracker.errors import InvalidRecord
from tracker.masks import fields_masked, masked
from tracker.rules import rule_of

_ENVELOPE: Final = frozenset({"client", "time", "salt", "label", "params", "action", "extra", "metadata"})


class _Plan(NamedTuple):
    """How a class is checked and written, worked out once."""

    values: Callable[[Any], tuple[Any, ...]]
    checks: tuple[tuple[str, type | None, Check, bool], ...]
    """Name, the type that needs no check, the check, and whether the field must be there."""
    own_values: Callable[[Any], tuple[Any, ...]]
    """Of the class's own fields: all but the envelope's."""
    arguments: dict[str, str]
    """The API's names of the own fields, and ours."""


class _Plans(dict[type, _Plan]):
    def __missing__(self, cls: type[msgspec.Struct]) -> _Plan:
        fields = msgspec.structs.fields(cls)
        own = [field for field in fields if field.name not in _ENVELOPE]
        self[cls] = plan = _Plan(
            values=_getter([field.name for field in fields]),
            checks=tuple((field.name, *_check_of(field.type), field.required) for field in fields),
            own_values=_getter([field.name for field in own]),
            arguments={field.encode_name: field.name for field in own},
        )
        return plan


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """`attrgetter` that returns a tuple also for one name or none."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _check_of(annotation: Any) -> tuple[type | None, Check]:
    """The check of a field's annotation, and the type it would let pass as it is."""
    check = rule_of(annotation).check
    return getattr(check, "passes", None), check


plans: Final = _Plans()


def no_known_keys(free: Mapping[str, object], field: str, arguments: Mapping[str, str]) -> None:
    """Raises `InvalidRecord` when a free-form key would hide one that has an argument of its own."""
    if not arguments.keys().isdisjoint(free):
        key = min(arguments.keys() & free.keys())
        raise InvalidRecord(f"{field}.{key}", f"has an argument of its own: give {arguments[key]}=", free[key])


class Checked(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Checks its fields when it is made, and shows no values in its `repr`."""

    def __post_init__(self) -> None:
        plan = plans[type(self)]
        for (name, passes, check, required), value in zip(plan.checks, plan.values(self)):  # noqa: B905  equal by construction
            if value is None:
                if required:
                    raise InvalidRecord(name, "is required")
            elif (kind := type(value)) is not passes or (kind is str and not value.isascii()):
                kept = check(value, name)
                if kept is not value:
                    force_setattr(self, name, kept)

    def known(self) -> dict[str, object]:
        """The own fields that are set, in the API's words."""
        plan = plans[type(self)]
        pairs = zip(plan.arguments, plan.own_values(self))  # noqa: B905  equal by construction
        return {key: value for key, value in pairs if value is not None}

    def __repr__(self) -> str:
        return masked(self)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return fields_masked(self)


class _Whose(Checked, frozen=True):
    client: AnyClient


class Record(_Whose, frozen=True, kw_only=True):
    """An event or a transaction of one client."""

    time: Moment | None = None
    """When it happened; without it, when it is tracked. A time you give is never changed."""
    salt: Salt | None = None
    """Your own natural key; without it, a random one."""

    path: ClassVar[str]
    """Where records of this kind go in batches."""

    def wire(self, time: str, salt: str) -> dict[str, object]:
        """This record in the API's words."""
        raise NotImplementedError

    def replace(self, **changes: Any) -> Self:
        """The same record with some fields changed, checked anew; None takes an optional one out."""
        return msgspec.structs.replace(self, **changes)
