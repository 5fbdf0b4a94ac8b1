"""What does a bad record among good ones cost?

    python -m benchmarks.isolating [--quick]

A batch of 1,000 goes to the strict stand-in for the API, which refuses it whole for the bad records in it, and either
names the first of them in its answer or says nothing. The collector finds and buries the bad ones and delivers the
others. CPU is for taking and delivering all 1,000.
"""

import random
import time
from typing import NamedTuple

import msgspec

from benchmarks import report
from benchmarks.lab import KEY, SETTLED_S, Collector, Feeder, event, scratch, until
from benchmarks.report import Figure, Goal, Result, Table
from collector.testing import FakeUpstream

BATCH = 1_000
BAD = (0, 1, 3, 10)
ANSWERS = {"names it": True, "says nothing": False}
MOST = 1 + 2 * 10
"""Requests for one bad record in 1,000: what guarantee G5 promises."""


class Case(NamedTuple):
    requests: int
    cpu_ms: float


def batch(rng: random.Random) -> list[bytes]:
    """Records of one identifier type: one lane, one request upstream."""
    return [event(3 * i, rng) for i in range(BATCH)]


def posts(fake: FakeUpstream) -> int:
    return sum(request.path.startswith("/v4/events") for request in fake.requests)


def once(fake: FakeUpstream, collector: Collector, bad: int, hint: bool, rng: random.Random) -> Case:
    records = batch(rng)
    culprits = [msgspec.json.decode(record)["eventSalt"] for record in rng.sample(records, bad)]
    fault = fake.fault("reject", salt=culprits, hint=hint) if culprits else None
    feeder = Feeder(collector.address, [b"[" + b",".join(records) + b"]"], 1)
    dead, stored = collector.status()["ledger"]["dead"], fake.stored_count
    sent, before = posts(fake), collector.cpu_s
    feeder.run()
    until(lambda: fake.stored_count - stored >= BATCH - bad, "the good records arrive")
    time.sleep(SETTLED_S)
    found = Case(posts(fake) - sent, (collector.cpu_s - before) * 1e3)
    ledger = collector.status()["ledger"]
    assert (ledger["dead"] - dead, ledger["pending"]) == (bad, 0), ledger
    if fault:
        fake.clear_faults()
    return found


def run(quick: bool) -> Result:
    rounds, rng = 1 if quick else 5, random.Random(3)
    found: dict[tuple[str, int], list[Case]] = {(answer, bad): [] for answer in ANSWERS for bad in BAD}
    with scratch() as folder, FakeUpstream(api_key=KEY) as fake, Collector(folder, fake.url) as collector:
        once(fake, collector, 0, True, rng)
        for _ in range(rounds):
            for answer, bad in found:
                found[answer, bad].append(once(fake, collector, bad, ANSWERS[answer], rng))
    table = Table("", ("The answer", "Bad in 1,000", "Requests", "CPU ms", "CPU ms over none bad"))
    for (answer, bad), cases in found.items():
        requests, cpu = (Figure.of(column) for column in zip(*cases, strict=True))
        over = Figure.of([case.cpu_ms - good.cpu_ms for case, good in zip(cases, found[answer, 0], strict=True)])
        table.rows.append((answer, bad, requests, cpu, over if bad else ""))
    most = max(case.requests for (_, bad), cases in found.items() if bad == 1 for case in cases)
    return Result(
        "What does a bad record among good ones cost?",
        [table],
        [Goal("requests for one bad record in 1,000, at most", most, MOST)],
        notes=["The bad records are at places by chance, others in every run. One good batch takes one request."],
    )


if __name__ == "__main__":
    report.main(run, __doc__)
