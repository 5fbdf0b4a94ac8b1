"""Telling records apart in a body, also a broken one: so that an answer can name the bad ones by position."""

import json
import re
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

from collector.refusals import Refused
from collector.shapes import Fault

split = msgspec.json.Decoder(list[Raw]).decode
"""The bytes of each element of a JSON array, as they came."""
_lenient = json.JSONDecoder(strict=False, parse_int=str, parse_float=str).raw_decode
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
LONE_SURROGATE: Final = re.compile(rb"%s(?!%s)|(?<!%s)%s" % (_HIGH, _LOW, _HIGH, _LOW))
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def elements(body: bytes) -> Iterator[bytes | Fault]:
    """The bytes of each element of an array, however broken, then the fault where the array itself ends early.

    Raises Refused where the body is no array at all.
    """
    try:
        yield from map(bytes, split(body))
        return
    except msgspec.ValidationError:
        raise Refused(
            400, "the body must be a JSON array of records; a single one goes to /v4/events/<type> or /v4/transactions"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = str(error)
    # A lone surrogate or a NaN stops the fast parser for the whole body. This one finds where records begin and end.
    text = body.decode("utf-8", "surrogateescape")
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise Refused(400, f"JSON parse error: {why}")
    at = _skip(text, at + 1)
    while True:
        start = at
        try:
            _, at = _lenient(text, at)
        except RecursionError:
            yield Fault("", "nested too deeply")
            return
        except ValueError as error:
            yield Fault("", f"JSON parse error: {error}")
            return
        yield text[start:at].encode("utf-8", "surrogateescape")
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    if text[at:].strip(" \t\r\n") != "]":
        yield Fault("", f"JSON parse error after this record: expected , or ] at character {at}")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
