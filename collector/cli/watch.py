"""``status --watch``: the status again every second, and how fast it changes."""

import contextlib
import sys
import time
from typing import Any, Final

import click
import orjson

from collector.admin import AdminError, Running
from collector.cli.common import age, echo_json

_EVERY_S: Final = 1.0


def watch(admin: Running, as_json: bool) -> None:
    """Show it until interrupted; a collector that is away is waited for."""
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            _lines(admin, as_json)
        else:
            _screen(admin)


def _lines(admin: Running, as_json: bool) -> None:
    rates = Rates()
    away = False
    while True:
        try:
            body = admin.status()
        except AdminError as error:
            if not away:
                click.echo(f"tillpost: {error}; waiting for it", err=True)
            away = True
        else:
            away = False
            if as_json:
                echo_json(body)
            else:
                click.echo(_text(body, rates) + "\n")
            sys.stdout.flush()
        time.sleep(_EVERY_S)


def _screen(admin: Running) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    rates = Rates()
    last = ""
    try:
        with Live(console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                try:
                    last = shown = _text(admin.status(), rates)
                except AdminError as error:
                    shown = f"{last}\n\n{error}; waiting for it"
                live.update(Text(shown, no_wrap=True, overflow="ellipsis"), refresh=True)
                time.sleep(_EVERY_S)
    finally:
        click.echo(last)  # the screen before comes back: leave what was seen


def _text(body: bytes, rates: "Rates") -> str:
    from collector.cli.operate import render

    facts = orjson.loads(body)
    return f"{render(facts)}\n\n{rates.seen(facts['ledger'], time.monotonic())}".rstrip()


class Rates:
    """How fast the ledger changes, from one look to the next."""

    def __init__(self) -> None:
        self._last: tuple[float, dict[str, int]] | None = None

    def seen(self, ledger: dict[str, Any], now_s: float) -> str:
        """``accepted 12/s  delivered 30/s  empty in 4.2m``; empty on the first look."""
        before, self._last = self._last, (now_s, ledger)
        if before is None:
            return ""
        seconds = max(now_s - before[0], 1e-3)
        rate = {name: (ledger[name] - before[1][name]) / seconds for name in ("accepted", "delivered", "pending")}
        text = f"accepted {max(rate['accepted'], 0):,.0f}/s  delivered {max(rate['delivered'], 0):,.0f}/s"
        if ledger["pending"] and rate["pending"] < 0:
            text += f"  empty in {age(ledger['pending'] / -rate['pending'])}"
        return text
