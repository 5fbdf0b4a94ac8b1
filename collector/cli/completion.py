"""``completion``, and what the shell is told of words that only a collector or the configuration knows."""

from contextlib import suppress
from typing import Any

import click
import orjson

from collector.admin import AdminError
from collector.cli.common import reached
from collector.config import ConfigError
from collector.files import BufferInUse, BufferUnusable
from collector.values import TYPES
from tracker.wire import CLIENT_KEYS

_WHERE = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/completions/tillpost.fish"}


@click.command()
@click.argument("shell", type=click.Choice(list(_WHERE)))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, keys and lanes.

    For bash: tillpost completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    from collector.cli import main

    made = get_completion_class(shell)
    assert made is not None, shell
    click.echo(made(main, {}, "tillpost", "_TILLPOST_COMPLETE").source())


def lanes_here(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Lanes of the collector a command is about; none where it cannot be asked."""
    with suppress(AdminError, ConfigError, BufferInUse, BufferUnusable, OSError):
        admin = reached(ctx.params.get("config_file"), ctx.params.get("buffer"))
        if admin.is_running:  # opening the file for a TAB could keep a collector from starting
            lanes: list[dict[str, Any]] = orjson.loads(admin.status())["lanes"]
            names = (f"{lane['kind']}/{lane['identifier']}/{lane['priority']}" for lane in lanes)
            return [name for name in names if name.startswith(incomplete)]
    return []


def clients_by(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The keys a client can be named by."""
    return [f"{key}=" for key in CLIENT_KEYS if f"{key}=".startswith(incomplete)]


def keys_known(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The keys of the configuration."""
    return [f"{key}=" for key in TYPES if f"{key}=".startswith(incomplete)]
