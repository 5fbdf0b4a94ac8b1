"""A day with everything that goes wrong, and the account of it."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collector.demo.processes import Sidecar, Upstream, wait_for
from collector.demo.shop import BAD_SKU, BASKETS, Journal, Sabotage, Shop, content_of
from tracker import Tracker
from tracker.receipt import Failure


@dataclass
class Account:
    """What the journal says against what the upstream stored."""

    journal: int
    ledger: dict[str, int]
    stored: int
    missing: int
    duplicates: int
    altered: int
    dead_expected: bool
    requests: int
    overwritten: int
    violations: list[str]
    fill: dict[str, int]
    """How full the batches were."""
    failures: list[str]
    kills: int
    seconds: float

    @property
    def adds_up(self) -> bool:
        names = ("delivered", "pending", "dead", "discarded", "superseded", "lost")
        return self.ledger["accepted"] == sum(self.ledger[name] for name in names)

    @property
    def holds(self) -> bool:
        """Whether the promise was kept: everything stored exactly once and unaltered, and the books balance."""
        return (
            self.adds_up
            and self.dead_expected
            and not (self.missing or self.duplicates or self.altered or self.violations or self.failures)
            and all(self.ledger[name] == 0 for name in ("pending", "discarded", "superseded", "lost"))
        )


def play(
    folder: Path,
    sabotage: Sabotage | None,
    say: Callable[[str], None],
    sold: Callable[[int, int], None] = lambda _baskets, _records: None,
    baskets: int = BASKETS,
) -> Account:
    """The day itself. `say` gets a line for everything that happens, `sold` the count of baskets and records so far."""
    started = time.monotonic()
    failures: list[str] = []

    def note_failure(failure: Failure) -> None:
        failures.append(f"{failure.reason}: {failure.message}")

    with contextlib.ExitStack() as closing:
        say("The upstream opens: strict, and it wants a token.")
        upstream = Upstream(folder)
        closing.callback(upstream.close)
        upstream.fault("reject", contains=BAD_SKU, times=None)
        say("The collector starts beside the till.")
        sidecar = Sidecar(folder, upstream.url)
        closing.callback(sidecar.close)
        tracker = Tracker(f"http://{sidecar.address}", on_error=note_failure)
        closing.callback(tracker.close)
        journal = Journal(folder / "journal.txt")
        shop = Shop(tracker, journal, sabotage, baskets)

        def trade(share: float) -> None:
            while sales and sales[0] < baskets * share:
                shop.basket(sales.pop(0))
                sold(baskets - len(sales), len(journal.entries))

        sales = list(range(baskets))
        say("Morning: customers come.")
        trade(0.25)
        wait_for("the first delivery", lambda: upstream.report()["stored"])
        say("The network goes down. The shop does not notice.")
        upstream.fault("reset", path="*", times=None)
        trade(0.5)
        wait_for("the tracker to hand over", lambda: tracker.flush(0.5))
        say(f"  {sidecar.status()['ledger']['pending']} records wait on the disk.")
        say("The network is back, and the token has expired meanwhile.")
        _clear_faults(upstream)
        upstream.fault("expire_tokens")
        trade(0.75)
        say("One record in a thousand is bad; its batch is refused, and only it is put aside.")
        wait_for("the bad record to be found", lambda: sidecar.status()["ledger"]["dead"])
        upstream.fault("delay", seconds=1.5, times=1)
        trade(0.8)
        wait_for("a delivery to be under way", lambda: upstream.report()["in_progress"])
        say("SIGKILL: the collector dies in the middle of a delivery.")
        sidecar.kill()
        trade(0.9)
        say("  The till goes on. The collector starts again.")
        sidecar.start()
        trade(1)
        say("Evening: the last customer pays.")
        wait_for("everything to reach the disk", lambda: tracker.flush(1.0))
        wait_for("everything to be delivered", lambda: sidecar.status()["ledger"]["pending"] == 0)
        return _account(journal, upstream, sidecar, failures, time.monotonic() - started)


def _clear_faults(upstream: Upstream) -> None:
    upstream.ask("DELETE", "/fake/faults")
    upstream.fault("reject", contains=BAD_SKU, times=None)


def _account(journal: Journal, upstream: Upstream, sidecar: Sidecar, failures: list[str], seconds: float) -> Account:
    seen: Counter[str] = Counter()
    altered = 0
    for record in upstream.stored():
        number, said = content_of(record)
        seen[number] += 1
        altered += journal.entries.get(number) != said
    dead = sidecar.dead_letters()
    expected = len(dead) == 1 and dead[0]["params"]["sku"] == BAD_SKU
    for record in dead:
        number, said = content_of(record)
        seen[number] += 1
        altered += journal.entries.get(number) != said
    report = upstream.report()
    return Account(
        journal=len(journal.entries),
        ledger={name: int(n) for name, n in sidecar.status()["ledger"].items()},
        stored=int(report["stored"]),
        missing=sum(1 for number in journal.entries if not seen[number]),
        duplicates=sum(n - 1 for n in seen.values()),
        altered=altered,
        dead_expected=expected,
        requests=int(report["requests"]),
        overwritten=int(report["overwritten"]),
        violations=[str(v) for v in report["violations"]],
        fill=_fill(report),
        failures=failures,
        kills=sidecar.starts - 1,
        seconds=seconds,
    )


def _fill(report: Mapping[str, Any]) -> dict[str, int]:
    """Accepted batches by how many records they held."""
    sizes = [int(batch["records"]) for batch in report["batches"] if batch["status"] == 202]
    return {
        "batches accepted": len(sizes),
        "records in the largest": max(sizes, default=0),
        "records in a batch on average": round(sum(sizes) / max(len(sizes), 1)),
    }
