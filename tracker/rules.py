"""What an annotation demands of a value: its check, its JSON Schema, and words for people.

The fields of built-in records carry their check in ``Annotated[T, check]``. Events that an application declares
have plain annotations (`str`, `int`, `Decimal`, `Literal`, ...); here each of them gets the same kind of check.
"""

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin
from uuid import UUID

import msgspec

from tracker import checks, clients, money, params
from tracker.checks import Check
from tracker.errors import InvalidRecord
from tracker.money import Money

Schema = dict[str, Any]


class Rule(NamedTuple):
    """How values of one annotation are checked and described."""

    check: Check
    schema: Schema
    """Of the value as it is sent."""
    words: str


_MONEY: Final[Schema] = {
    "type": "object",
    "properties": {
        "amount": {"type": "number", "minimum": 0},
        "currency": {"type": "string", "pattern": "^[A-Z]{3}$"},
    },
    "required": ["amount", "currency"],
}
parts: Final[set[type[msgspec.Struct]]] = set()
"""Structs of ours that a param may hold, such as `Product`."""
_ANYTHING: Final = Rule(params.json_value, {}, "anything JSON can say")


def _is(kind: type, words: str) -> Check:
    def check(value: Any, field: str) -> Any:
        if not isinstance(value, kind):
            raise InvalidRecord(field, f"must be {words}, not {checks.kind_of(value)}", value)
        return value

    return check


def _date(value: Any, field: str) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise InvalidRecord(field, f"must be a date without a time, not {checks.kind_of(value)}", value)
    return value


_PLAIN: Final[dict[Any, Rule]] = {
    str: Rule(checks.text, {"type": "string"}, "text"),
    bool: Rule(checks.flag, {"type": "boolean"}, "true or false"),
    int: Rule(checks.whole, {"type": "integer"}, "whole number"),
    float: Rule(checks.number, {"type": "number"}, "number"),
    Decimal: Rule(checks.exact, {"type": "number"}, "exact number"),
    datetime: Rule(checks.moment, {"type": "string", "format": "date-time"}, "time"),
    date: Rule(_date, {"type": "string", "format": "date"}, "date"),
    UUID: Rule(_is(UUID, "a UUID"), {"type": "string", "format": "uuid"}, "UUID"),
    Money: Rule(money.money, _MONEY, "money"),
    object: _ANYTHING,
    Any: _ANYTHING,
}
_KNOWN: Final[dict[Any, tuple[Schema, str]]] = {
    checks.text: ({"type": "string"}, "text"),
    checks.texts: ({"type": "array", "items": {"type": "string"}}, "list of text"),
    checks.label: ({"type": "string", "minLength": 1}, "text"),
    checks.action: ({"type": "string", "pattern": "^[a-zA-Z0-9.\\-_]{1,32}$"}, "action"),
    checks.flag: ({"type": "boolean"}, "true or false"),
    checks.whole: ({"type": "integer"}, "whole number"),
    checks.position: ({"type": "integer", "minimum": 1}, "whole number, from 1"),
    checks.number: ({"type": "number"}, "number"),
    checks.percent: ({"type": "number", "minimum": 0}, "percent"),
    checks.quantity: ({"type": "number", "minimum": 0}, "quantity"),
    checks.source: ({"enum": [str(source) for source in checks.Source]}, "source"),
    checks.search_type: ({"enum": ["full-text-search", "autocomplete"]}, "kind of search"),
    checks.moment: ({"type": "string", "format": "date-time"}, "time"),
    money.money: (_MONEY, "money"),
    money.discount: (_MONEY, "money, above 0"),
    params.json_object: ({"type": "object"}, "keys of your own"),
    clients.client: ({"type": "object"}, "client"),
}


def rule_of(annotation: Any) -> Rule:
    """The rule of an annotation; with ``| None``, of what is left. Raises TypeError for what no param can be."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(args[0], annotation.__metadata__)
    if origin in (Union, types.UnionType):
        kinds = [arg for arg in args if arg is not type(None)]
        return rule_of(kinds[0]) if len(kinds) == 1 else _one_of([rule_of(kind) for kind in kinds])
    if origin is Literal:
        return _choice(args, dict(zip(args, args, strict=True)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choice([member.value for member in annotation], {member.value: member for member in annotation})
    if origin in (list, Sequence) or (origin is tuple and len(args) == 2 and args[1] is ...):
        return _list_of(rule_of(args[0]))
    if annotation in (dict, Mapping) or (origin in (dict, Mapping) and args[0] is str):
        return _mapping_of(rule_of(args[1]) if args else _ANYTHING)
    if annotation in parts:
        return Rule(_is(annotation, f"a {annotation.__name__}"), _struct(annotation), annotation.__name__.lower())
    raise TypeError(
        f"{annotation} is nothing a param can be: use str, int, float, Decimal, bool, Money, datetime, date, UUID, "
        "Product, Literal, an Enum, list[...] or dict[str, ...] of these, and `| None` for what may be left out"
    )


def _annotated(kind: Any, metadata: tuple[Any, ...]) -> Rule:
    for check in metadata:
        if callable(check):
            schema, words = _KNOWN.get(check, ({}, getattr(check, "__name__", "own rule").replace("_", " ")))
            return Rule(check, schema, words)
    rule = rule_of(kind)
    for meta in metadata:
        if isinstance(meta, msgspec.Meta):
            rule = _limited(rule, meta)
    return rule


def _limited(rule: Rule, meta: msgspec.Meta) -> Rule:
    """The rule within the limits of ``Annotated[T, msgspec.Meta(ge=1, pattern="...")]``."""
    sized = {"array": "Items", "object": "Properties"}.get(rule.schema.get("type", ""), "Length")
    limits: list[tuple[Callable[[Any], bool], str, str, Any]] = []

    def limit(bound: Any, holds: Callable[[Any, Any], bool], words: str, key: str) -> None:
        if bound is not None:
            limits.append((lambda value: holds(value, bound), words.format(bound), key, bound))

    limit(meta.ge, lambda value, bound: value >= bound, "must be at least {}", "minimum")
    limit(meta.gt, lambda value, bound: value > bound, "must be more than {}", "exclusiveMinimum")
    limit(meta.le, lambda value, bound: value <= bound, "must be at most {}", "maximum")
    limit(meta.lt, lambda value, bound: value < bound, "must be less than {}", "exclusiveMaximum")
    limit(meta.multiple_of, lambda value, bound: value % bound == 0, "must be a multiple of {}", "multipleOf")
    limit(meta.min_length, lambda value, bound: len(value) >= bound, "must be at least {} long", f"min{sized}")
    limit(meta.max_length, lambda value, bound: len(value) <= bound, "must be at most {} long", f"max{sized}")
    limit(meta.pattern, lambda value, bound: re.search(bound, value) is not None, "must match {}", "pattern")

    def check(value: Any, field: str) -> Any:
        kept = rule.check(value, field)
        for holds, words, _, _ in limits:
            if not holds(kept):
                raise InvalidRecord(field, words, value)
        return kept

    schema = rule.schema | {key: bound for _, _, key, bound in limits} | (meta.extra_json_schema or {})
    texts = [words.removeprefix("must ").removeprefix("be ") for _, words, _, _ in limits]
    return Rule(check, schema, ", ".join([rule.words, *texts]))


def _choice(values: Sequence[Any], kept: Mapping[Any, Any]) -> Rule:
    for value in values:
        if type(value) not in (str, int, bool):
            raise TypeError(f"{value!r} is no choice JSON can say exactly: use str, int or bool")
    by_type = {(type(value), value): kept[value] for value in values}  # True is 1, and 1.0 too, to Python
    named = ", ".join(str(value) for value in values)

    def check(value: Any, field: str) -> Any:
        said = value.value if isinstance(value, Enum) and value in kept.values() else value
        try:
            return by_type[(type(said), said)]
        except (KeyError, TypeError):
            raise InvalidRecord(field, f"must be one of {named}", value) from None

    return Rule(check, {"enum": list(values)}, f"one of {named}")


def _one_of(rules: list[Rule]) -> Rule:
    words = " or ".join(rule.words for rule in rules)

    def check(value: Any, field: str) -> Any:
        for rule in rules:
            try:
                return rule.check(value, field)
            except InvalidRecord:
                continue
        raise InvalidRecord(field, f"must be {words}, not {checks.kind_of(value)}", value)

    return Rule(check, {"anyOf": [rule.schema for rule in rules]}, words)


def _list_of(item: Rule) -> Rule:
    def check(value: Any, field: str) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise InvalidRecord(field, f"must be a list, not {checks.kind_of(value)}", value)
        return tuple(item.check(each, f"{field}[{at}]") for at, each in enumerate(value))

    return Rule(check, {"type": "array", "items": item.schema}, f"list of {item.words}")


def _mapping_of(item: Rule) -> Rule:
    def check(value: Any, field: str) -> dict[str, Any]:
        found = params.json_object(value, field) if item is _ANYTHING else value
        if not isinstance(found, Mapping):
            raise InvalidRecord(field, f"must be a mapping, not {checks.kind_of(value)}", value)
        return {checks.text(key, f"{field} (a key)"): item.check(each, f"{field}.{key}") for key, each in found.items()}

    schema = {"type": "object", "additionalProperties": item.schema} if item.schema else {"type": "object"}
    return Rule(check, schema, f"mapping of text to {item.words}")


def _struct(kind: type[msgspec.Struct]) -> Schema:
    """A record's part, such as a `Product`, as it is sent; keys of its own may be beside."""
    fields = [field for field in msgspec.structs.fields(kind) if field.name != "extra"]
    return {
        "type": "object",
        "properties": {field.encode_name: rule_of(field.type).schema for field in fields},
        "required": [field.encode_name for field in fields if field.required],
    }
