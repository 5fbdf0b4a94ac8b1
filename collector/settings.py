"""Where the configuration comes from: flags > environment > file > defaults, and which of them won.

    load() -> Settings: the Config, the secrets, and each value's source

Every value is checked by itself as it is read, so that an error can name the flag, the variable or
the file and key it came from; rules across keys follow at the end. Nothing here opens a socket or
a buffer, so ``tillpost config`` and the commands that only look for the buffer use it as well.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from collector.config import Config, ConfigError
from collector.rules import check_together
from collector.secret import Secret
from collector.values import DEFAULTS, PREFIX, TABLES, TYPES, checked, from_text

DEFAULT_FILE: Final = Path("/etc/tillpost/tillpost.toml")

SECRET_FILES: Final = {
    "TILLPOST_API_KEY": "upstream.api_key_file",
    "TILLPOST_UPSTREAM_TOKEN": "upstream.token_file",
    "TILLPOST_INGEST_TOKEN": "ingest.token_file",
    "TILLPOST_ADMIN_TOKEN": "admin.token_file",
}
"""Each secret's variable, and the key that names its file; the variable with ``_FILE`` sets that key too."""


class Value(msgspec.Struct, frozen=True):
    """A value of one key and the source that gave it."""

    value: Any
    source: str
    rank: int = 0
    """0 default, 1 file, 2 environment, 3 flag or argument."""


class Secrets(msgspec.Struct, frozen=True):
    """What nobody else may see; None where no source is named."""

    api_key: Secret | None = None
    upstream_token: Secret | None = None
    ingest_token: Secret | None = None
    admin_token: Secret | None = None


class Settings(msgspec.Struct, frozen=True):
    """One collector's configuration, its secrets, and where every value came from."""

    config: Config
    secrets: Secrets
    values: Mapping[str, Value]
    """By dotted key, in the order of the sections; for people, as ``tillpost config`` prints them."""

    def check(self) -> "Settings":
        """Itself, if a collector can run with it. Raises ConfigError for rules that only a running one must meet."""
        check_together(self.config, self.source, api_key=self.secrets.api_key is not None,
                       upstream_token=self.secrets.upstream_token is not None,
                       ingest_token=self.secrets.ingest_token is not None)  # fmt: skip
        return self

    @property
    def upstream_secret(self) -> Secret | None:
        """What ``upstream.auth`` asks for: a collector's token, or the API's key."""
        return self.secrets.upstream_token if self.config.upstream.auth == "token" else self.secrets.api_key

    def source(self, key: str) -> str:
        """Where a key's value came from, as an error message names it."""
        return self.values[key].source


def load(
    *,
    flags: Sequence[tuple[str, str, Any]] = (),
    environ: Mapping[str, str] | None = None,
    file: Path | str | None = None,
    default_file: Path | None = DEFAULT_FILE,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    secrets: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Reads all sources and merges them.

    ``flags``: (dotted key, name of the flag, value; text is read like an environment variable's).
    ``environ``: the process environment unless given. ``file``: must exist when given; else ``default_file`` is
    read if it exists. ``defaults`` replaces defaults of Config by dotted key. ``secrets``: values passed in code,
    by field of Secrets. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    values = {key: Value(defaults.get(key, default), "default") for key, default in DEFAULTS.items()}
    path = Path(file) if file is not None else default_file if default_file and default_file.exists() else None
    if path is not None:
        values |= _from_file(path)
    values |= _from_environment(environ)
    for key, name, value in flags:
        _put_flag(values, key, name, value)
    tree: dict[str, Any] = {}
    for key, found in values.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = found.value
    config = msgspec.convert(tree, Config)
    return Settings(config, _secrets(values, environ, secrets), MappingProxyType(values))


def embedded(
    *,
    buffer: str | os.PathLike[str] | None = None,
    upstream: str | None = None,
    api_key: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings for a collector inside an application: it listens on nothing unless told to.

    A mapping counts as arguments and wins over the environment; a TOML file does not. Raises ConfigError.
    """
    flags: list[tuple[str, str, Any]] = []
    file = None
    if isinstance(config, Mapping):
        flags += ((key, "config", value) for key, value in _flatten(config, "config"))
    elif config is not None:
        file = Path(config)
    if buffer is not None:
        flags.append(("buffer.path", "buffer=", os.fspath(buffer)))
    if upstream is not None:
        flags.append(("upstream.url", "upstream=", upstream))
    return load(
        flags=flags, environ=environ, file=file, default_file=None, defaults={"ingest.listen": ()},
        secrets={} if api_key is None else {"api_key": api_key},
    )  # fmt: skip


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.replace(".", "__").upper()


_VARIABLES: Final = {variable(key): key for key in TYPES} | {f"{n}_FILE": key for n, key in SECRET_FILES.items()}


def _unknown(where: str, name: str, known: Sequence[str], what: str = "key") -> ConfigError:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ConfigError(f"{where}: unknown {what} {name}; did you mean {nearest}?")


# The sources


def _from_file(path: Path) -> dict[str, Value]:
    try:
        with path.open("rb") as file:
            tree = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid TOML: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration file: {os.strerror(error.errno or 0)}") from None
    return {key: Value(checked(key, value, str(path)), str(path), 1) for key, value in _flatten(tree, str(path))}


def _flatten(tree: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values. Raises ConfigError for a key that does not exist."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in TYPES:
            yield key, value
        elif isinstance(value, Mapping) and value:
            yield from _flatten(value, where, f"{key}.")
        elif not any(known.startswith(f"{key}.") for known in TYPES):
            raise _unknown(where, key, list(TYPES))
        elif not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {key} is a section; write [{key}] and its keys below")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name in sorted(n for n in environ if n.startswith(PREFIX)):
        key = _VARIABLES.get(name)
        if key is not None:
            value = Value(checked(key, from_text(key, environ[name], name), name, shown=environ[name]), name, 2)
            if key in found and found[key].value != value.value:
                raise ConfigError(f"{found[key].source} and {name} are the same key and differ; keep one of them")
            found[key] = value
        elif "__" in name:
            raise _unknown("environment", name, list(_VARIABLES), "variable")
        elif near := [v for v in _VARIABLES if v.replace("__", "_") == name]:
            # Other unknown names are left alone: TILLPOST_URL is the tracker's, and Kubernetes makes
            # TILLPOST_PORT and TILLPOST_SERVICE_HOST for a service of that name.
            raise ConfigError(f"environment: unknown variable {name}; did you mean {near[0]} (two underscores)?")
    return found


def _put_flag(values: dict[str, Value], key: str, name: str, value: Any) -> None:
    for table in TABLES:  # --set upstream.types.push/viewed=custom:push.view adds one entry
        if key.startswith(f"{table}."):
            key, value = table, {**values[table].value, key.removeprefix(f"{table}."): value}
    if key not in TYPES:
        if any(known.startswith(f"{key}.") for known in TYPES):
            raise ConfigError(f"{name}: {key} is a section; name one of its keys, for example {_first_of(key)}")
        raise _unknown(name, key, list(TYPES))
    parsed = from_text(key, value, name) if isinstance(value, str) else value
    values[key] = Value(checked(key, parsed, name, shown=value), name, 3)


def _first_of(section: str) -> str:
    return next(known for known in TYPES if known.startswith(f"{section}."))


def _secrets(values: Mapping[str, Value], environ: Mapping[str, str], given: Mapping[str, str]) -> Secrets:
    found: dict[str, Secret] = {}
    for name, key in SECRET_FILES.items():
        field = name.removeprefix(PREFIX).lower()
        file = values[key]
        if field in given:
            found[field] = Secret(field, value=given[field], source=f"{field}=")
        elif file.value and (file.rank == 3 or not environ.get(name)):
            found[field] = Secret(field, file=file.value, source=file.source)
        elif environ.get(name):  # an empty variable names no source
            found[field] = Secret(field, value=environ[name], source=name)
    return Secrets(**found)
