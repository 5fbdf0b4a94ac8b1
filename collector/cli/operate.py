"""``status``, ``find``, ``drain``, ``resume`` and ``forget``."""

import sys
import time
from typing import Any, Final

import click
import orjson

from collector.admin import AdminError, Running
from collector.cli.common import age, buffer_options, echo_json, json_option, reached, settings_for, size, table
from collector.cli.completion import clients_by, lanes_here
from collector.cli.progress import Bar, Plain, progress
from tracker.wire import CLIENT_KEYS

_LEDGER: Final = ("delivered", "pending", "dead", "discarded", "superseded", "lost")
"""What every accepted record is, one of."""
_STUCK_S: Final = 3.0
"""A drain without time limit gives up when nothing has moved for so long and nothing can move by itself."""


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every second, until interrupted.")
@json_option
@buffer_options
def status(watch: bool, as_json: bool, config_file: str | None, buffer: str | None) -> int:
    """Show what a collector holds and does."""
    admin = reached(config_file, buffer)
    if not watch:
        _show_status(admin.status(), as_json)
        return 0
    if not isinstance(admin, Running):  # opening the file each second would keep a collector from starting
        raise AdminError("no collector runs on this buffer, so nothing changes: start one, or leave out --watch")
    from collector.cli.watch import watch as watched

    watched(admin, as_json)
    return 0


def _show_status(body: bytes, as_json: bool) -> None:
    if as_json:
        echo_json(body)
    else:
        click.echo(render(orjson.loads(body)))


def render(facts: dict[str, Any]) -> str:
    """``status.json`` for people."""
    ledger, upstream, clock, held = (facts.get(name) or {} for name in ("ledger", "upstream", "clock", "buffer"))
    parts = [f"{name} {ledger[name]}" for name in _LEDGER if name in ledger]
    offset = clock.get("offset_ms")
    head = [
        ("tillpost", "  ".join([facts.get("version", ""), facts.get("state", ""), *(facts.get("listening") or ())])),
        ("ledger", f"accepted {ledger.get('accepted', 0)} = " + " + ".join(parts)),
        ("buffer", f"{held.get('path', '')}  {size(held.get('bytes', 0))} of {size(held.get('max_bytes', 0))}"
                   f", {size(held.get('disk_bytes', 0))} on disk"),
    ]  # fmt: skip
    if upstream.get("url"):  # a buffer nobody delivers from has neither upstream nor clock
        head.insert(1, ("upstream", f"{upstream['url']}  ({upstream.get('auth', '')})"))
        unknown = "the upstream's is not known yet"
        head.append(("clock", unknown if offset is None else f"the upstream's is {offset:+d} ms to ours"))
    if damage := facts.get("damage"):
        head.append(("damage", damage["text"]))
    lanes = facts.get("lanes") or []
    if not lanes:
        return table(head) + "\n\nno lanes yet"
    rows: list[tuple[object, ...]] = [("LANE", "PENDING", "ASIDE", "OLDEST", "STATE", "LAST ERROR")]
    rows += (
        (_lane(lane), lane["pending"], lane["aside"], age(lane.get("oldest_age_s")),
         lane["state"], lane.get("last_error") or "")
        for lane in lanes
    )  # fmt: skip
    return table(head) + "\n\n" + table(rows, right=frozenset({1, 2, 3}))


@click.command()
@click.option("--order-id", metavar="ID", help="A transaction's orderId.")
@click.option("--salt", metavar="SALT", help="An eventSalt.")
@click.option(
    "--client",
    metavar="K=V",
    shell_complete=clients_by,
    help="One of id, uuid, customId, email, as email=...; - reads it from standard input.",
)
@json_option
@buffer_options
def find(
    order_id: str | None, salt: str | None, client: str | None, as_json: bool, config_file: str | None,
    buffer: str | None,
) -> int:  # fmt: skip
    """Find a record: pending, aside, dead.

    Exit 1: not here (delivered, or never accepted).
    """
    given = {"order_id": order_id, "salt": salt, "client": client}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise click.UsageError("give exactly one of --order-id, --salt and --client", click.get_current_context())
    if client is not None:
        chosen = {"client": _clients(client)[0]}
    body = reached(config_file, buffer).find(chosen)
    answer = orjson.loads(body)
    found: list[dict[str, Any]] = answer.get("found", []) if isinstance(answer, dict) else answer
    if as_json:
        echo_json(body)
    elif not found:
        click.echo("not here: delivered, or never accepted")
    else:
        rows: list[tuple[object, ...]] = [("STATE", "LANE", "ACCEPTED", "SALT", "ORDER ID", "")]
        rows += (
            (entry["state"], _lane(entry), entry.get("accepted_at") or "", entry.get("salt") or "",
             entry.get("order_id") or "", f"dead letter {entry['id']}: {entry.get('reason')}" if "id" in entry else "")
            for entry in found
        )  # fmt: skip
        click.echo(table(rows))
    return 0 if found else 1


@click.command()
@click.option(
    "--client",
    metavar="K=V",
    required=True,
    shell_complete=clients_by,
    help="Whom, as email=...; - reads one a line from standard input.",
)
@json_option
@buffer_options
def forget(client: str, as_json: bool, config_file: str | None, buffer: str | None) -> int:
    """Erase a person from the buffer.

    Removes pending and dead records; they count as discarded. What was delivered is the upstream's to erase.
    """
    clients = _clients(client)
    admin = reached(config_file, buffer)
    count = 0
    kept: list[str] = []
    for one in clients:
        body = admin.forget({"client": one})
        if as_json:
            echo_json(body)
        answer = orjson.loads(body)
        count += answer["count"]
        kept = answer.get("quarantined") or []
    if not as_json:
        click.echo(f"forgot {_records(count)}")
    for path in kept:
        click.echo(
            f"tillpost: {path} is a quarantined file and may still hold them: delete it when it is not needed", err=True
        )
    return 0


@click.command()
@click.argument("lane", required=False, shell_complete=lanes_here)
@buffer_options
def resume(lane: str | None, config_file: str | None, buffer: str | None) -> int:
    """Let a paused LANE go on, or all.

    A lane is written as `tillpost status` shows it: events/email/live.
    """
    admin = reached(config_file, buffer)
    if not isinstance(admin, Running):
        raise AdminError("no collector runs on this buffer; its lanes start anew when one does")
    admin.resume(lane)
    click.echo(f"resumed {lane or 'all lanes'}")
    return 0


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds to wait; default: while anything moves.",
)
@buffer_options
def drain(timeout_s: float | None, config_file: str | None, buffer: str | None) -> int:
    """Send what waits, now.

    Exit 0: all is settled; 1: something stays, which is then named.
    """
    admin = reached(config_file, buffer)
    if isinstance(admin, Running):
        return _drained(admin, timeout_s)
    if not _waiting(orjson.loads(admin.status())):
        click.echo("drained: nothing is pending")
        return 0
    # Nobody holds the buffer: for as long as it takes, we are its collector; it listens to nobody.
    from collector.cli.run import started

    settings = settings_for(config_file, buffer, ("ingest.listen", "drain", [])).check()
    with started(settings):
        again = reached(config_file, buffer)
        if not isinstance(again, Running):
            raise AdminError("the collector started for draining cannot be reached")
        return _drained(again, timeout_s)


def _drained(admin: Running, timeout_s: float | None) -> int:
    admin.drain()
    display = progress()
    try:
        return _followed(admin, timeout_s, display)
    finally:
        display.close()


def _followed(admin: Running, timeout_s: float | None, display: Bar | Plain) -> int:
    begun = moved_at = time.monotonic()
    last: int | None = None
    first = total = 0
    while True:
        facts = orjson.loads(admin.status())
        waiting = _waiting(facts)
        now = time.monotonic()
        if not waiting:
            if last is not None:
                display.advance(total, facts["ledger"]["accepted"] - first)
            display.close()
            click.echo("drained: nothing is pending")
            return 0
        settled = facts["ledger"]["accepted"] - facts["ledger"]["pending"]
        if last is None:
            first, total = settled, facts["ledger"]["pending"]
            display.start("drain", total, 0, 0, "records")
        if settled != last:
            last, moved_at = settled, now
        display.advance(min(settled - first, total), settled - first)
        is_over = timeout_s is not None and now - begun >= timeout_s
        is_stuck = timeout_s is None and now - moved_at >= _STUCK_S and all(map(_is_held, waiting))
        if is_over or is_stuck:
            display.close()
            for lane in waiting:
                click.echo(f"tillpost: {_held_back(lane)}", err=True)
            return 1
        time.sleep(0.1)


def _waiting(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [lane for lane in facts.get("lanes") or [] if lane["pending"]]


def _is_held(lane: dict[str, Any]) -> bool:
    return bool(lane["state"] == "paused" or lane["pending"] == lane["aside"])


def _held_back(lane: dict[str, Any]) -> str:
    pending, aside = lane["pending"], lane["aside"]
    text = f"{_lane(lane)} still holds {_records(pending)}"
    if aside:
        text += f", {aside} of them aside (parked, or their time has not come)"
    if aside < pending:
        text += f"; it is {lane['state']}" + (f": {lane['last_error']}" if lane.get("last_error") else "")
    return text


def _lane(entry: dict[str, Any]) -> str:
    return f"{entry['kind']}/{entry['identifier']}/{entry['priority']}"


def _records(count: int) -> str:
    return f"{count} record" if count == 1 else f"{count} records"


def _clients(text: str) -> list[dict[str, str | int]]:
    """``email=anna@example.com``; ``-``: such lines from standard input, which ``ps`` does not show."""
    texts = [line for raw in sys.stdin if (line := raw.strip())] if text == "-" else [text]
    clients: list[dict[str, str | int]] = []
    for one in texts:
        key, equals, value = one.partition("=")
        if not equals or key not in CLIENT_KEYS or not value or (key == "id" and not value.isdecimal()):
            raise click.UsageError(
                f"a client is given as one of {', '.join(CLIENT_KEYS)}, for example email=anna@example.com",
                click.get_current_context(),
            )
        clients.append({key: int(value) if key == "id" else value})
    if not clients:
        raise click.UsageError("standard input names no client", click.get_current_context())
    return clients
