"""``tillpost demo``: the whole promise on this machine, against the strict stand-in for the API.

A shop's day through a collector and a fake upstream, each a process of its own: no network for
a while, an expired token, one bad record among a thousand, the collector killed with SIGKILL in
the middle of a delivery. The shop writes a digest of every record to a journal *before* it
tracks it; the account at the end compares the journal with what the upstream stored, record by
record, so it is right only if content is.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from collector.demo.day import Account, play
from collector.demo.processes import DemoError
from collector.demo.shop import BASKETS

__all__ = ["main"]


def main(sabotage: str | None = None, *, as_json: bool = False) -> int:
    """Play the day and show the account. Exit 0 only if the promise was kept."""
    console = Console(stderr=as_json, highlight=False)
    logging.getLogger("tracker").addHandler(logging.NullHandler())  # the outage is meant, and told by the account
    folder = Path(tempfile.mkdtemp(prefix="tillpost-demo-"))
    chosen: Any = sabotage
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} baskets, {task.fields[records]} records"),
    )
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            day = progress.add_task("", total=BASKETS, records=0)
            account = play(
                folder,
                chosen,
                console.print,
                lambda done, records: progress.update(day, completed=done, records=records),
            )
    except DemoError as error:
        raise click.ClickException(f"{error}. Its files are in {folder}.") from None
    if as_json:
        click.echo(json.dumps({**account.__dict__, "adds_up": account.adds_up, "holds": account.holds}, default=str))
    else:
        _show(console, account)
    if not account.holds:
        console.print(f"The promise was [bold red]not[/] kept. Its files are in {folder}.")
        return 1
    console.print(f"The promise was kept, in {account.seconds:.0f} s.")
    _remove(folder)
    return 0


def _show(console: Console, account: Account) -> None:
    ledger = account.ledger
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    rows = [
        (account.journal, "records in the shop's journal"),
        (ledger["accepted"], "accepted by the collector (a till may send one twice after a kill)"),
        (ledger["delivered"], "delivered"),
        (ledger["dead"], "dead: the bad one, kept with the upstream's answer"),
        (account.stored, "stored at the upstream"),
        (account.missing, "missing"),
        (account.duplicates, "duplicates"),
        (account.altered, "altered"),
        (account.overwritten, "sent again and overwritten, not counted twice"),
        (account.requests, "requests to the upstream"),
        (account.kills, "kill in the middle of a delivery"),
        *((count, meaning) for meaning, count in account.fill.items()),
    ]
    for count, meaning in rows:
        table.add_row(str(count), meaning)
    console.print()
    console.print(table)
    states = " + ".join(
        f"{name} {ledger[name]}" for name in ("delivered", "pending", "dead", "discarded", "superseded", "lost")
    )
    console.print(
        f"ledger: accepted {ledger['accepted']} {'=' if account.adds_up else 'IS NOT'} {states}", soft_wrap=True
    )
    for line in (*account.violations, *account.failures):
        console.print(f"[red]{line}[/]")


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
