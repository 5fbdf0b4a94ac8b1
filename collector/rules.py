"""What configuration values may be beyond their types: key by key, and together."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from collector.config import MIN_BUFFER, Address, Config, ConfigError, is_loopback, parse_wave
from collector.units import parse_duration
from tracker.wire import EVENT_ACTIONS

_ACTION: Final = re.compile(r"custom:[a-zA-Z0-9.\-_]{1,32}")
_TYPE: Final = re.compile(r"[a-z0-9]+(?:[-/.][a-z0-9]+)*")


def check_value(key: str, value: Any) -> None:
    """Raises ValueError, saying what is allowed, when a value of the right type cannot be meant."""
    check = _CHECKS.get(key)
    if check is not None:
        check(value)


def check_together(
    config: Config, source: Callable[[str], str], *, api_key: bool, upstream_token: bool, ingest_token: bool
) -> None:
    """Raises ConfigError for the first rule across keys that is broken.

    ``source(key)`` names where a value came from; the flags say which secrets have a source.
    """
    upstream = config.upstream
    if not upstream.allow_http and upstream.url.startswith("http:") and not is_loopback(_host(upstream.url)):
        raise ConfigError(
            f"{source('upstream.url')}: upstream.url: http would send the key in the clear; "
            "use https, or set upstream.allow_http = true if the network is your own"
        )
    auth = f'upstream.auth = "{upstream.auth}" ({source("upstream.auth")})'
    if upstream.auth == "token" and not upstream_token:
        raise ConfigError(f"{auth} needs a token: {_ways('TILLPOST_UPSTREAM_TOKEN', 'upstream.token_file')}")
    if upstream.auth != "token" and not api_key:
        raise ConfigError(f"{auth} needs an API key: {_ways('TILLPOST_API_KEY', 'upstream.api_key_file')}")
    if upstream.auth == "basic" and not upstream.workspace_guid:
        raise ConfigError(f"{auth} needs upstream.workspace_guid, the workspace the key belongs to")
    if upstream.ca_file and not Path(upstream.ca_file).is_file():
        raise ConfigError(f"{source('upstream.ca_file')}: upstream.ca_file = {upstream.ca_file!r}: no such file")
    for address in config.ingest.addresses:
        if not address.is_local and not ingest_token:
            raise ConfigError(
                f"{source('ingest.listen')}: ingest.listen = {str(address)!r} can be reached from other machines and "
                f"needs an ingest token: {_ways('TILLPOST_INGEST_TOKEN', 'ingest.token_file')}, or listen on 127.0.0.1"
            )
    if config.delivery.backoff_base > config.delivery.backoff_max:
        raise ConfigError(
            f"{source('delivery.backoff_base')}: delivery.backoff_base must not be above delivery.backoff_max "
            f"({config.delivery.backoff_base:g} s > {config.delivery.backoff_max:g} s)"
        )


def _ways(variable: str, key: str) -> str:
    return f"set {variable}, {variable}_FILE or {key}"


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _url(value: str) -> None:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  raises ValueError for a port that is none
    except ValueError:
        raise ValueError("must be a URL such as https://api.synerise.com") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", value):
        raise ValueError("must be a URL such as https://api.synerise.com")
    if "@" in parts.netloc:
        raise ValueError("must not hold a name or password; credentials have settings of their own")
    if parts.query or parts.fragment:
        raise ValueError("must be a base URL, without ? or #")


def _listen(value: tuple[str, ...]) -> None:
    for text in value:
        try:
            Address.parse(text)
        except ValueError as error:
            raise ValueError(f"{text!r} {error}") from None
    if len(set(value)) < len(value):
        raise ValueError("names an address twice")


def _socket_mode(value: str) -> None:
    if not re.fullmatch(r"0?[0-7]{3}", value, re.ASCII):
        raise ValueError('must be file permissions in octal such as "0600" or "0660"')


def _buffer_path(value: str) -> None:
    if not value or "\0" in value or value.endswith("/"):
        raise ValueError("must be the path of a file such as /var/lib/tillpost/tillpost.db")


def _buffer_size(value: int) -> None:
    if value < MIN_BUFFER:
        raise ValueError("must be at least 4MiB")


def _keep(value: str) -> None:
    if value and not parse_duration(value) > 0:
        raise ValueError('must be "" (for ever) or a duration such as "90d"')


def _types(value: Mapping[str, str]) -> None:
    for name, target in value.items():
        if name not in EVENT_ACTIONS and not _TYPE.fullmatch(name):
            raise ValueError(f"{name!r} is no event type; they look like push/viewed or product-view")
        if not (_ACTION.fullmatch(target) or _TYPE.fullmatch(target)):
            raise ValueError(f"{target!r} must be an event type such as push/viewed or custom:<action>")


_CHECKS: Final[dict[str, Callable[[Any], object]]] = {
    "upstream.url": _url,
    "upstream.types": _types,
    "ingest.listen": _listen,
    "ingest.socket_mode": _socket_mode,
    "buffer.path": _buffer_path,
    "buffer.max_size": _buffer_size,
    "dead.wave": parse_wave,
    "dead.keep": _keep,
}
