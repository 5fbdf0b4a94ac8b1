"""``send``: JSON Lines into a collector."""

import os
import sys
import time
from pathlib import Path

import click

from collector.cli.progress import progress
from collector.post import Post
from collector.send import Display, Pace, Sender, Totals
from collector.settings import load
from tracker.time import parse_ms

_DEFAULT_TO = "http://127.0.0.1:8787"


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--to", metavar="URL", help=f"The collector; default: TILLPOST_URL, else {_DEFAULT_TO}. Or unix:///path.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N records a second.")
@click.option("--default-time", metavar="TIME", help="For lines without a time: ISO 8601 with offset, or now.")
@click.option("--buffer", metavar="OLD.db", type=click.Path(exists=True, dir_okay=False),
              help="Instead of files: the buffer of a dead till, settled there as it is confirmed.")  # fmt: skip
@click.option("--config", "config_file", metavar="FILE", help="The collector's TOML file, for its ingest token.")
def send(
    files: tuple[str, ...], to: str | None, rate: float | None, default_time: str | None, buffer: str | None,
    config_file: str | None,
) -> int:  # fmt: skip
    """Send JSON Lines, once, resumable.

    A line with `type` is an event, one with `orderId` a transaction; - is standard input.

    Progress is kept in FILE.tillpost, so that it can be interrupted and started again; lines that are
    refused go to FILE.rejects.jsonl, their reasons to FILE.rejects.txt. With an ingest token, set
    TILLPOST_INGEST_TOKEN. Exit 1: something was refused.
    """
    context = click.get_current_context()
    if bool(files) == (buffer is not None):
        raise click.UsageError("name a file, - for standard input, or a till's old buffer with --buffer", context)
    if default_time not in (None, "now"):
        try:
            parse_ms(default_time)
        except ValueError as error:
            raise click.UsageError(f"--default-time: {error}; or now", context) from None
    token = load(file=config_file).secrets.ingest_token
    display = progress()
    try:
        post = Post(to or os.environ.get("TILLPOST_URL") or _DEFAULT_TO, token=token() if token else None,
                    note=display.note)  # fmt: skip
    except ValueError as error:
        raise click.UsageError(f"--to: {error}" if to else f"TILLPOST_URL: {error}", context) from None
    begun = time.monotonic()
    try:
        totals = _sent(files, buffer, post, display, Pace(rate), default_time)
    finally:
        display.close()
        post.close()
    return _account(totals, time.monotonic() - begun, buffer)


def _sent(
    files: tuple[str, ...], buffer: str | None, post: Post, display: Display, pace: Pace, default_time: str | None
) -> Totals:
    if buffer is not None:
        from collector.carry import carry  # needs aiosqlite, which sending files does not

        return carry(Path(buffer), post, display, pace)
    sender = Sender(post, display, pace, default_time)
    for file in files:
        if file == "-":
            sender.send_stream(sys.stdin.buffer)
        else:
            sender.send_file(Path(file))
    return sender.totals


def _account(totals: Totals, seconds: float, buffer: str | None) -> int:
    rate = f", {totals.sent / seconds:,.0f}/s" if seconds > 0.1 and totals.sent else ""
    counts = f"sent {totals.sent}, already confirmed {totals.already}, rejected {totals.rejected}"
    click.echo(f"{counts}, {seconds:.1f} s{rate}")
    if totals.rejected:
        where = (
            f"what was refused is a dead letter there: tillpost dead list --buffer {buffer}"
            if buffer
            else "rejected lines are in FILE.rejects.jsonl, the reasons in FILE.rejects.txt: correct and send that file"
        )
        click.echo(f"tillpost: {where}", err=True)
    return 1 if totals.rejected else 0
