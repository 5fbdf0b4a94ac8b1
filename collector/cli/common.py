"""What the commands share: how they find the buffer, and how they print."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from collector.admin import Running, Stopped, reach
from collector.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])


def buffer_options(command: F) -> F:
    """``--config`` and ``--buffer``: which collector a command is about."""
    command = click.option("--buffer", metavar="PATH", help="The buffer file; default: the configuration's.")(command)
    return click.option("--config", "config_file", metavar="FILE", help="The TOML file of the collector.")(command)


def json_option(command: F) -> F:
    """``--json``: the HTTP body instead of text for people."""
    return click.option("--json", "as_json", is_flag=True, help="Print the JSON of the HTTP interface.")(command)


def settings_for(config_file: str | None, buffer: str | None, *flags: tuple[str, str, Any]) -> Settings:
    """The configuration as far as a command needs it, with further ``flags``. Raises ConfigError."""
    named = [("buffer.path", "--buffer", buffer)] if buffer is not None else []
    return load(flags=[*named, *flags], file=config_file)


def reached(config_file: str | None, buffer: str | None) -> Running | Stopped:
    """The way to the buffer a command is about."""
    return reach(settings_for(config_file, buffer))


def colours() -> bool | None:
    """For `click.echo`: no colours where NO_COLOR is set, else where there is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def echo_json(body: bytes) -> None:
    """Prints a body as it came, on one line."""
    click.echo(body.decode("utf-8", "replace").rstrip("\n"))


def table(rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned columns; those in ``right`` end at the same place. The last column is as wide as it is."""
    texts = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    )


def age(seconds: float | None) -> str:
    """``4.2s``, ``12m``, ``3.5h``, ``8.1d``; empty for None."""
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.1f}s"


def size(count: int) -> str:
    """``100 KiB``, ``8.2 MiB``."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} B"
