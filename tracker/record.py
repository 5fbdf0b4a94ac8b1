"""What events and transactions share: checked where they are made, stamped and encoded once.

`Checked` finds the rule of each field in its annotation (see `checks`). A `Record` says who and
when; `stamp` gives it its time and salt and turns it into the bytes that every attempt sends.
"""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, ClassVar, Final, NoReturn, Self

import msgspec
from msgspec.structs import force_setattr

from tracker.checks import Check, Moment, Salt
from tracker.clients import AnyClient
from tracker.errors import InvalidRecord
from tracker.masks import fields_masked, masked
from tracker.params import RESERVED
from tracker.rules import rule_of

_encode_into: Final = msgspec.json.Encoder(decimal_format="number").encode_into
_buffers: Final[list[bytearray]] = []
_KEPT: Final = 1 << 16  # a large record's buffer is not held until the next one
_OPEN, _COMMA, _CLOSE = b"{,}"
_ENVELOPE: Final = frozenset({"client", "time", "salt", "label", "params", "action", "extra", "metadata"})


def encode(body: object, free: Mapping[str, object] | None = None) -> bytes:
    """The bytes that are sent; `free` joins the object that `body` ends with."""
    try:  # one used before: a new one would be enlarged again and again until a record fits
        buffer = _buffers.pop()
    except IndexError:
        buffer = bytearray(1024)
    _encode_into(body, buffer)
    if free:
        end = len(buffer) - 2  # of the object within, which its first brace may be next to
        if buffer[end - 1] == _OPEN:
            _encode_into(free, buffer, end - 1)
        else:
            _encode_into(free, buffer, end)
            buffer[end] = _COMMA
        buffer.append(_CLOSE)
    encoded = bytes(buffer)
    if len(encoded) <= _KEPT:
        _buffers.append(buffer)
    return encoded


class _Plan(msgspec.Struct, frozen=True):
    """How a class is checked and written, worked out once."""

    checks: dict[str, Check]
    """Of all fields, by name."""
    required: frozenset[str]
    arguments: dict[str, str]
    """The API's names of the own fields, all but the envelope's, and ours."""
    spoken_for: frozenset[str]
    """Names among `params` that need a look: reserved ones, those of `arguments`, and the client's e-mail."""
    check: Callable[[Any], None]
    """Checks the fields of a new record, in order."""
    known: Callable[[Any], dict[str, object]]
    """The own fields that are set, in the API's words."""
    own: Callable[[Any], msgspec.Struct] | None
    """The same as a struct, which costs less to make and to encode; None where a class adds to what is known."""


class _Plans(dict[type, _Plan]):
    def __missing__(self, cls: type[msgspec.Struct]) -> _Plan:
        fields = msgspec.structs.fields(cls)
        checks = {field.name: rule_of(field.type).check for field in fields}
        required = frozenset(field.name for field in fields if field.required)
        arguments = {field.encode_name: field.name for field in fields if field.name not in _ENVELOPE}
        spoken_for = RESERVED.union(arguments, ["email"])
        check, known, own = _written_out(checks, required, arguments)
        if getattr(cls, "known", None) is not Checked.known:
            own = None
        self[cls] = plan = _Plan(checks, required, arguments, spoken_for, check, known, own)
        if issubclass(cls, Record):
            kinds.add(cls)
        return plan


plans: Final = _Plans()
kinds: Final[set[type]] = set()
"""Classes of records made so far; `isinstance` would ask the metaclass, at six times the price."""


def _written_out(checks: dict[str, Check], required: frozenset[str], arguments: dict[str, str]) -> tuple[Any, Any, Any]:
    """`check`, `known` and `own` of a plan, a line per field, as one would write them by hand for each class.

    As loops over the fields they were a third of what tracking costs.
    """
    source = ["def check(record):"]
    names: dict[str, object] = {"keep": force_setattr, "missing": _missing}
    for name, check in checks.items():
        names |= {f"check_{name}": check, f"kind_{name}": getattr(check, "passes", None)}
        passes = [] if name in required else ["value is None"]
        if hasattr(check, "passes"):
            good = getattr(check, "good", None)
            passes.append(f"type(value) is kind_{name}" + (f" and {good}" if good else ""))
        source += [
            f" value = record.{name}",
            f" if not ({' or '.join(passes)}):",
            f"  if value is None: missing({name!r})",
            f"  kept = check_{name}(value, {name!r})",
            f"  if kept is not value: keep(record, {name!r}, kept)",
        ]
    first = dict(takewhile(lambda item: item[1] in required, arguments.items()))
    always = ", ".join(f"{key!r}: record.{name}" for key, name in first.items())
    source += ["def known(record):", f" said = {{{always}}}"]
    for key, name in arguments.items():
        if key not in first:
            source.append(f" if (value := record.{name}) is not None: said[{key!r}] = value")
    source.append(" return said")
    names["Own"] = msgspec.defstruct(
        "Own",
        [(name, Any, None) for name in arguments.values()],
        rename={name: key for key, name in arguments.items()},
        omit_defaults=True,
        gc=False,
    )
    source.append(f"def own(record): return Own({', '.join(f'record.{name}' for name in arguments.values())})")
    exec("\n".join(source), names)  # noqa: S102  nothing in it but names of fields
    return names["check"], names["known"], names["own"]


def _missing(name: str) -> NoReturn:
    raise InvalidRecord(name, "is required")


def no_known_keys(free: Mapping[str, object], field: str, arguments: Mapping[str, str]) -> None:
    """Raises `InvalidRecord` when a free-form key would hide one that has an argument of its own."""
    if not arguments.keys().isdisjoint(free):
        key = min(arguments.keys() & free.keys())
        raise InvalidRecord(f"{field}.{key}", f"has an argument of its own: give {arguments[key]}=", free[key])


class Checked(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Checks its fields when it is made, and shows no values in its `repr`."""

    def __post_init__(self) -> None:
        plans[type(self)].check(self)

    def known(self) -> dict[str, object]:
        """The own fields that are set, in the API's words."""
        return plans[type(self)].known(self)

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

    def _encoded(self, time: str, salt: str) -> bytes:
        """`wire` as JSON."""
        return encode(self.wire(time, salt))

    def replace(self, **changes: Any) -> Self:
        """The same record with some fields changed, checked anew; None takes an optional one out."""
        return msgspec.structs.replace(self, **changes)
