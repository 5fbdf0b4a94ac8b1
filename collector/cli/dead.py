"""``dead list|show|retry|discard|export``: what the upstream refused, until someone decides."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import IO

import click
import msgspec
import orjson

from collector.admin import Page, every_dead_letter
from collector.cli.common import F, buffer_options, echo_json, json_option, reached, table


def _ids_or_all(command: F) -> F:
    command = click.option("--all", "every", is_flag=True, help="All of them.")(command)
    return click.argument("ids", metavar="[ID]...", type=click.IntRange(min=1), nargs=-1)(command)


@click.group()
def dead() -> None:
    """Look after what the upstream refused."""


@dead.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, metavar="N",
              help="How many at most.")  # fmt: skip
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="ID", help="Go on after this one.")
@json_option
@buffer_options
def list_(limit: int, after: int, as_json: bool, config_file: str | None, buffer: str | None) -> int:
    """The dead letters, oldest first, without their records."""
    body = reached(config_file, buffer).dead_letters(limit, after)
    if as_json:
        echo_json(body)
        return 0
    page = msgspec.json.decode(body, type=Page)
    if not page.dead_letters:
        click.echo("no dead letters")
        return 0
    rows: list[tuple[object, ...]] = [("ID", "DIED", "KIND", "IDENTIFIER", "STATUS", "REASON")]
    rows += (
        (letter.id, letter.died_at or "", letter.kind, letter.identifier, letter.status or "",
         letter.reason + (" (superseded)" if letter.superseded else ""))
        for letter in page.dead_letters
    )  # fmt: skip
    click.echo(table(rows, right=frozenset({0})))
    if page.next is not None:
        click.echo(f"more: tillpost dead list --after {page.next}", err=True)
    return 0


@dead.command()
@click.argument("ids", metavar="ID...", type=click.IntRange(min=1), nargs=-1, required=True)
@buffer_options
def show(ids: tuple[int, ...], config_file: str | None, buffer: str | None) -> int:
    """All that is known about dead letters, their records included, as JSON."""
    admin = reached(config_file, buffer)
    missing = 0
    for wanted in ids:
        answer = orjson.loads(admin.dead_letters(1, wanted - 1))
        letters = [letter for letter in answer["dead_letters"] if letter["id"] == wanted]
        missing += not letters
        for letter in letters:
            click.echo(orjson.dumps(letter, option=orjson.OPT_INDENT_2).decode())
        if not letters:
            click.echo(f"tillpost: there is no dead letter {wanted}", err=True)
    return 1 if missing else 0


@dead.command()
@_ids_or_all
@click.option("--force", is_flag=True, help="Also superseded ones, which overwrite what was accepted since.")
@json_option
@buffer_options
def retry(
    ids: tuple[int, ...], every: bool, force: bool, as_json: bool, config_file: str | None, buffer: str | None
) -> int:
    """Put dead letters back into their lanes."""
    wanted = _wanted(ids, every)
    body = reached(config_file, buffer).retry(wanted, force)
    return _counted(body, "retrying", ids, as_json, "" if force else "; a superseded one needs --force")


@dead.command()
@_ids_or_all
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@buffer_options
def discard(
    ids: tuple[int, ...], every: bool, yes: bool, as_json: bool, config_file: str | None, buffer: str | None
) -> int:
    """Give dead letters up for good; they count as discarded.

    On a terminal --all asks first; `tillpost dead export` keeps a copy.
    """
    wanted = _wanted(ids, every)
    admin = reached(config_file, buffer)
    if every and not yes and sys.stdin.isatty():
        count = orjson.loads(admin.status())["ledger"]
        count = count["dead"] + count["superseded"]
        click.confirm(f"Give {count} dead letter{'' if count == 1 else 's'} up for good?", abort=True, err=True)
    body = admin.discard(wanted)
    return _counted(body, "discarded", ids, as_json, "")


@dead.command()
@click.argument("file", default="-")
@click.option("--superseded", is_flag=True, help="Also those whose order key was accepted again.")
@buffer_options
def export(file: str, superseded: bool, config_file: str | None, buffer: str | None) -> int:
    """Write the records as JSON Lines, which `tillpost send` takes; they stay dead letters."""
    admin = reached(config_file, buffer)
    written = left_out = 0
    with _private(file) as out:
        for letter in every_dead_letter(admin):
            if letter.superseded and not superseded:
                left_out += 1
                continue
            out.write(bytes(letter.record) + b"\n")
            written += 1
        out.flush()
    note = f"; {left_out} superseded left out (--superseded takes them too)" if left_out else ""
    click.echo(f"exported {written} dead letter{'' if written == 1 else 's'}{note}", err=True)
    return 0


def _private(file: str) -> AbstractContextManager[IO[bytes]]:
    """A file for its owner alone, or standard output, which stays open."""
    if file == "-":
        return nullcontext(sys.stdout.buffer)
    return open(file, "wb", opener=lambda path, flags: os.open(path, flags, 0o600))


def _wanted(ids: tuple[int, ...], every: bool) -> tuple[int, ...] | None:
    if bool(ids) == every:
        raise click.UsageError("give the IDs that `tillpost dead list` shows, or --all", click.get_current_context())
    return None if every else ids


def _counted(body: bytes, verb: str, ids: tuple[int, ...], as_json: bool, hint: str) -> int:
    count: int = orjson.loads(body)["count"]
    if as_json:
        echo_json(body)
    else:
        click.echo(f"{verb} {count} dead letter{'' if count == 1 else 's'}")
    if count < len(set(ids)):
        click.echo(f"tillpost: {len(set(ids)) - count} of them are not there{hint}", err=True)
        return 1
    return 0
