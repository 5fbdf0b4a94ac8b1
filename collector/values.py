"""One configuration value: its key, what text means for it, what it may be, and how it is shown.

Everything is read from the Structs of ``config.py``, so a new key needs nothing here.
"""

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from collector.config import Config, ConfigError
from collector.rules import check_value
from collector.units import DURATION_FORM, SIZE_FORM, format_duration, format_size, parse_duration, parse_size

PREFIX: Final = "TILLPOST_"
"""Of every environment variable we read."""


def _leaves(struct: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if isinstance(value, msgspec.Struct):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type, value


TYPES: Final[dict[str, Any]] = {key: type_ for key, type_, _ in _leaves(Config())}
DEFAULTS: Final[dict[str, Any]] = {key: default for key, _, default in _leaves(Config())}
TABLES: Final = tuple(key for key, type_ in TYPES.items() if get_origin(type_) is dict)


def show(key: str, value: Any) -> str:
    """A value as the file would write it."""
    unit = _unit(TYPES[key])
    if isinstance(value, bool):
        return str(value).lower()
    if unit and value is not None:
        return format_duration(value) if unit == "seconds" else format_size(value)
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {target}" for name, target in value.items())
    return str(value)


def checked(key: str, value: Any, where: str, shown: Any = None) -> Any:
    """The value in its own type. Raises ConfigError naming where it came from and what is allowed."""
    type_ = TYPES[key]
    shown = value if shown is None else shown
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        if isinstance(value, str) and (parse := _parser(type_)):
            value = parse(value)
        try:
            value = msgspec.convert(value, type_)
        except msgspec.ValidationError:
            raise ValueError(f"must be {allowed(type_)}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be {allowed(type_)}")
        check_value(key, value)
    except ValueError as error:
        text = re.sub(r"//[^/@]*@", "//***@", repr(shown))  # a password in a URL
        text = text if len(text) <= 80 else text[:76] + "...'"
        name = where if where.startswith((PREFIX, "--")) and not where.startswith("--set") else f"{where}: {key}"
        raise ConfigError(f"{name} = {text}: {error}") from None
    return value


def from_text(key: str, text: str, where: str) -> Any:
    """What text in the environment or behind a flag means for a key of this type."""
    type_ = TYPES[key]
    origin = get_origin(type_)
    plain = _plain(type_)
    if not text.strip() and (plain is not str or origin is Literal):
        if origin is tuple:
            return ()
        raise ConfigError(f"{where} is empty: unset it, or give {allowed(type_)}")
    if origin is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if origin in (tuple, dict):
        return _inline(text)
    if plain is bool:
        return {"true": True, "1": True, "yes": True, "on": True,
                "false": False, "0": False, "no": False, "off": False}.get(text.strip().lower(), text)  # fmt: skip
    if plain in (int, float) and not _unit(type_):
        try:
            return plain(text)
        except ValueError:
            return text
    return text


def _inline(text: str) -> Any:
    """A list or table written inline, as JSON or as TOML."""
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _plain(type_: Any) -> Any:
    """The type under Annotated, and under ``| None``."""
    if get_origin(type_) is Annotated:
        return _plain(get_args(type_)[0])
    if options := [a for a in get_args(type_) if a is not type(None)] if type(None) in get_args(type_) else []:
        return _plain(options[0])
    return str if get_origin(type_) is Literal else get_origin(type_) or type_


def _metas(type_: Any) -> Iterator[msgspec.Meta]:
    for arg in get_args(type_):
        if isinstance(arg, msgspec.Meta):
            yield arg
        elif get_origin(arg) is Annotated:
            yield from _metas(arg)


def _unit(type_: Any) -> str | None:
    return next((meta.extra["unit"] for meta in _metas(type_) if meta.extra), None)


def _parser(type_: Any) -> Callable[[str], Any] | None:
    return {"seconds": parse_duration, "bytes": parse_size}.get(_unit(type_) or "")


def allowed(type_: Any) -> str:
    """What a value of this type may be, in words."""
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(get_args(type_))
    unit = _unit(type_)
    plain = _plain(type_)
    words: str = {"seconds": DURATION_FORM, "bytes": SIZE_FORM}.get(unit or "") or {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        tuple: 'a list of texts such as ["127.0.0.1:8787"]',
        dict: 'a table of texts such as {"push/viewed" = "custom:push.view"}',
    }[plain]
    for meta in _metas(type_):
        for bound, sign in ((meta.ge, "at least"), (meta.gt, "more than"), (meta.le, "at most")):
            if bound:
                words += f", {sign} {bound}"
            elif bound == 0 and sign == "more than":
                words += ", more than 0"
    return words
