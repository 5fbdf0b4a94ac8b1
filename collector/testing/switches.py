"""The open points of the API, each a switch with its positions.

Nobody outside knows how the API decides these (API.md 11); the stand-in can be set either
way, so that a client can be tried against both. The defaults are the strict or likelier
position. `Switches` is the one table: Python keyword arguments, ``--set switch=value`` on
the command line and the list in the help text all come from it.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta


def _says(text: str) -> Meta:
    return Meta(description=text)


class Switches(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one `FakeUpstream` behaves where the API's documents leave it open."""

    # Tokens and keys (API.md 2)
    token_life_s: Annotated[float, _says("seconds until a token expires (2.1)"), Meta(gt=0)] = 3600.0
    jwt: Annotated[bool, _says("tokens are JWTs with an exp claim, else random strings (2.1)")] = False
    wrong_key_status: Annotated[Literal[400, 401, 403], _says("answer to a login with a wrong key (2.1)")] = 401
    basic: Annotated[bool, _says("Basic authorization is switched on for the key (2.2)")] = True
    workspace_guid: Annotated[str, _says("user part that Basic needs; empty: any (2.2)")] = ""
    permissions: Annotated[frozenset[str] | None, _says("permissions of the key; not set: all (2.4)")] = None
    denied: Annotated[frozenset[str], _says("actions or types on the key's denylist (2.4)")] = frozenset()
    denied_events: Annotated[
        Literal["403", "drop"], _says("denied events: 403 for the request, or 202 and they vanish (2.4, 11)")
    ] = "403"

    # Limits (API.md 3)
    one_mb: Annotated[int, _says("what 1 MB means: 1000000 or 1048576 bytes of body (11)"), Meta(ge=2)] = 1_000_000
    events_max_records: Annotated[int, _says("items of events/batch and clients/batch (3)"), Meta(ge=1)] = 1000
    transactions_max_records: Annotated[int, _says("items of transactions/batch: 1000 or 100 (11)"), Meta(ge=1)] = 1000
    transactions_max_bytes: Annotated[int | None, _says("bytes of transactions/batch; not set: as one_mb (11)")] = None
    over_size_status: Annotated[Literal[400, 413], _says("answer to a body that is too large (9.3, 11)")] = 413
    over_count_status: Annotated[Literal[400, 413], _says("answer to too many items (9.3, 11)")] = 400
    max_rate: Annotated[float, _says("records a second before 429; 0: no throttle (11)"), Meta(ge=0)] = 0.0

    # Records (API.md 4, 6)
    push_type: Annotated[
        Literal["custom", "segment"],
        _says("push events in a batch: only as custom with the official action, or also as type push/viewed (4.3, 11)"),
    ] = "custom"
    recommendation_view_type: Annotated[
        Literal["segment", "custom"], _says("is type recommendation-view known in a batch, or only custom (4.4, 11)")
    ] = "segment"
    identifiers: Annotated[
        Literal["same-keys", "first-key"],
        _says("several identifiers in a client: all count and must agree in a batch, or the first counts (4.2, 11)"),
    ] = "same-keys"
    nulls: Annotated[Literal["refuse", "ignore"], _says("null in events and transactions (4.1, 11)")] = "refuse"
    params_email: Annotated[Literal["refuse", "accept"], _says("params.email other than client.email (4.1, 11)")] = (
        "refuse"
    )
    cart_url: Annotated[
        Literal["ItemUrlAddress", "url"], _says("which key carries a cart item's address; the other is noted (4.5, 11)")
    ] = "ItemUrlAddress"

    # Answers (API.md 7)
    error_shape: Annotated[
        Literal["index", "bare", "2022"],
        _says("entries of 207 and 400: index in field, no index, or the 2022 form (7, 11)"),
    ] = "index"
    bad_transactions: Annotated[
        Literal[400, 207], _says("bad items in transactions/batch: 400 for all, or 207 and the good are kept (7, 11)")
    ] = 400

    # Clock (API.md 5)
    clock_offset_s: Annotated[float, _says("this server's clock minus the machine's, seconds (9.9)")] = 0.0
    server_time: Annotated[Literal["seconds", "milliseconds"], _says("resolution of /v4/server/time (3)")] = "seconds"
    date_header: Annotated[bool, _says("answers carry a usable Date header")] = True

    # The stand-in itself
    keep_bodies: Annotated[bool, _says("keep every request's body in .requests; costs memory")] = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Switches":
        """Switches from Python values. Raises ValueError naming the switch, and the nearest for an unknown one."""
        return cls._convert(values, strict=True)

    @classmethod
    def from_strings(cls, values: Mapping[str, str]) -> "Switches":
        """Switches from text, as ``--set switch=value`` gives it; sets are comma-separated.

        Raises ValueError as `of` does.
        """
        typed: dict[str, Any] = {
            name: [part.strip() for part in text.split(",") if part.strip()] if name in _SETS else text
            for name, text in values.items()
        }
        return cls._convert(typed, strict=False)

    @classmethod
    def _convert(cls, values: Mapping[str, Any], *, strict: bool) -> "Switches":
        for name, value in values.items():
            if name not in cls.__struct_fields__:
                raise ValueError(unknown("switch", name, cls.__struct_fields__))
            try:
                msgspec.convert({name: value}, cls, strict=strict)
            except msgspec.ValidationError as error:
                reason = str(error).split(" - at ")[0]
                raise ValueError(f"switch {name}: {reason}; {_positions(name)}") from None
        return msgspec.convert(dict(values), cls, strict=strict)

    @classmethod
    def table(cls) -> list[tuple[str, str, str, str]]:
        """One row per switch: name, default, positions, meaning (with the paragraph of API.md)."""
        defaults = cls()
        rows = []
        for name, hint in _HINTS.items():
            meaning = next(meta.description for meta in get_args(hint)[1:] if meta.description)
            rows.append((name, _text(getattr(defaults, name)), _positions(name), meaning))
        return rows


_HINTS: dict[str, Any] = get_type_hints(Switches, include_extras=True)
_SETS = frozenset({"permissions", "denied"})


def _positions(name: str) -> str:
    allowed = get_args(_HINTS[name])[0]
    literals = get_args(allowed)
    if allowed is bool:
        return "true or false"
    if name in _SETS:
        return "names separated by commas"
    if literals and all(isinstance(value, str | int) for value in literals):
        return " or ".join(str(value) for value in literals)
    return "a whole number" if allowed is int or int in literals else "text" if allowed is str else "a number"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or value == frozenset() else str(value)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name nobody knows, with the nearest known one."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "known: " + ", ".join(names)
    return f"unknown {what} {name!r}; {hint}"
