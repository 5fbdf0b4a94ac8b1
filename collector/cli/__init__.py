"""The command ``tillpost``, also ``python -m collector``.

Exit: 0 well, 1 failed, 2 usage or configuration, 3 buffer in use by another process, 4 buffer
unusable. A mistake is answered by one line on standard error that says what to do.
"""

import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

import click

from collector.admin import AdminError
from collector.config import ConfigError
from collector.files import BufferInUse, BufferUnusable
from collector.listeners import ListenError
from collector.post import NotACollector
from collector.secret import SecretUnavailable
from collector.send import SendFailed

_EXIT: Final[dict[type[Exception], int]] = {
    ConfigError: 2,
    BufferInUse: 3,
    BufferUnusable: 4,
    AdminError: 1,
    ListenError: 1,
    NotACollector: 1,
    SecretUnavailable: 1,
    SendFailed: 1,
}


_COMMANDS: Final = {
    "run": "run:run",
    "demo": "develop:demo",
    "send": "send:send",
    "status": "operate:status",
    "find": "operate:find",
    "drain": "operate:drain",
    "resume": "operate:resume",
    "dead": "dead:dead",
    "forget": "operate:forget",
    "doctor": "doctor:doctor",
    "config": "show:config",
    "events": "events:events",
    "fake-upstream": "develop:fake_upstream",
    "completion": "completion:completion",
}


class _Tillpost(click.Group):
    """Loads a command when it is asked for; turns what users can cause into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"collector.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"No such command '{args[0]}'" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        def call() -> Any:
            return super(_Tillpost, self).main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]

        if not standalone_mode:
            return call()
        code = _guarded(call)
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has seen enough; the interpreter must not flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 1
        try:
            sys.stderr.flush()
        except OSError:  # a log nobody reads any more must not turn a good end into the interpreter's 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.exit(code)


def _guarded(call: Callable[[], Any]) -> int:
    try:
        result = call()
    except click.UsageError as error:
        help_for = f". Try '{error.ctx.command_path} --help'." if error.ctx else ""
        return _say(" ".join(error.format_message().split()).rstrip(".") + help_for, 2)
    except click.ClickException as error:
        return _say(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", 130)
    except tuple(_EXIT) as error:
        return _say(str(error), next(code for kind, code in _EXIT.items() if isinstance(error, kind)))
    except OSError as error:
        return _say(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    return result if isinstance(result, int) else 0


def _say(message: str, code: int) -> int:
    click.echo(f"tillpost: {message}", err=True)
    return code


@click.group(
    "tillpost", cls=_Tillpost, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="tillpost", prog_name="tillpost")
def main() -> None:
    """Event tracking that loses nothing: a durable, batching collector beside your application."""
