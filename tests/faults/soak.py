"""Traffic, faults and kills for a while, and an oracle that says whether anything was lost, doubled or altered.

    python -m tests.faults.soak --seconds 60 [--seed N] [--keep FOLDER]

Trackers and plain HTTP clients send to a real sidecar, which delivers to the strict fake while that misbehaves
and while the sidecar is killed, stopped and restarted. In the end every acknowledged record must be at the fake
once and unaltered, or be a dead letter that was bad indeed; and what was meant to happen must have happened.
Prints its figures as JSON and ends with 1 when anything is wrong.
"""

import argparse
import contextlib
import http.client
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collector.demo.processes import DemoError, Sidecar, wait_for
from collector.testing import FakeUpstream
from collector.testing.faults import Fault
from tests.end_to_end.clients import adds_up, event, post, sale
from tracker import Client, Tracker

KEY = "soak-key"
SETTINGS = {
    "delivery.backoff_base": "50ms", "delivery.backoff_max": "500ms", "delivery.pause_probe": "200ms",
    "delivery.retry_after_max": "1s", "upstream.timeout": "2s", "batch.linger": "100ms", "batch.max_records": "200",
    "buffer.max_size": "64MiB", "shutdown.grace": "3s", "clock.margin": "200ms",
}  # fmt: skip
FAULTS: list[tuple[str | int, dict[str, Any]]] = [
    (500, {}), (502, {}), (503, {"retry_after": 1}), (429, {"retry_after": 1}), (408, {}), (401, {}), (403, {}),
    (404, {}),
    ("reset", {}), ("reset_after_store", {}), ("drop_answer", {}), ("truncated", {}), ("garbage", {}), ("html", {}),
    ("redirect", {}), ("odd_body", {"body": "ok", "content_type": "text/plain"}), ("delay", {"seconds": 0.5}),
    ("hang", {"seconds": 3}), ("expire_tokens", {}), ("drip", {"seconds": 0.2}), (413, {"max_bytes": 20_000}),
    (500, {"kind": "login"}), ("reset", {"kind": "login"}),
]  # fmt: skip
BAD_EVERY = 400
"""One record in so many is refused by the upstream for ever."""
RAW_CLIENTS, TRACKERS = 3, 2


@dataclass
class Oracle:
    """What was issued, what was acknowledged, and how it must arrive."""

    issued: dict[str, bytes | None] = field(default_factory=dict)
    """By salt; the bytes where they are known."""
    acknowledged: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def issue(self, salt: str, raw: bytes | None) -> None:
        with self.lock:
            assert salt not in self.issued
            self.issued[salt] = raw

    def acknowledge(self, salts: list[str]) -> None:
        with self.lock:
            self.acknowledged.update(salts)

    def judge(self, stored: list[tuple[str, bytes]], dead: list[str]) -> list[str]:
        """Everything that is wrong with what arrived: (salt, bytes), and with the dead letters: salts."""
        wrong = [f"refused a good record: {text}" for text in self.refused[:5]]
        times = Counter(salt for salt, _ in stored)
        if twice := [salt for salt, n in times.items() if n > 1]:
            wrong.append(f"{len(twice)} stored twice, for example {twice[0]}")
        if lost := self.acknowledged - times.keys() - set(dead):
            wrong.append(f"{len(lost)} acknowledged and gone, for example {min(lost)}")
        if strangers := times.keys() - self.issued.keys():
            wrong.append(f"{len(strangers)} stored that nobody sent, for example {min(strangers)}")
        altered = [salt for salt, raw in stored if self.issued.get(salt) not in (None, raw)]
        if altered:
            wrong.append(f"{len(altered)} altered, for example {altered[0]}")
        if innocent := set(dead) - self.bad:
            wrong.append(f"{len(innocent)} buried without a fault of their own, for example {min(innocent)}")
        if spared := self.bad & times.keys():
            wrong.append(f"{len(spared)} bad records stored, for example {min(spared)}")
        return wrong


class Run:
    """One soak: the fake, the sidecar, and everything that works on them."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.folder, self.seconds, self.seed = folder, seconds, seed
        self.chance = random.Random(seed)
        self.oracle = Oracle()
        self.stop = threading.Event()
        self.faults: list[tuple[str, Fault]] = []
        self.blows: Counter[str] = Counter()
        self.failures: list[str] = []
        self.peak_rss = self.peak_disk = 0
        self.longest_stall_s = 0.0
        self.recovery_s: list[float] = []

    # -- traffic

    def raw_client(self, number: int) -> None:
        chance = random.Random(f"{self.seed}-raw-{number}")
        serial = 0
        while not self.stop.is_set():
            path, bulk = (
                ("/v4/transactions/batch", False)
                if chance.random() < 0.2
                else ("/v4/events/batch", chance.random() < 0.3)
            )
            raws, salts = [], []
            for _ in range(chance.randrange(1, 40)):
                serial += 1
                salt = f"raw{number}-{serial}"
                if "transactions" in path:
                    record = {**sale(salt), "eventSalt": salt, "metadata": {"noise": chance.random()}}
                else:
                    record = event(salt, chance.randrange(4), noise=chance.random(), pad="x" * chance.randrange(300))
                raw = json.dumps(record, separators=(",", ":")).encode()
                self.register(salt, raw, bad=serial % BAD_EVERY == 0)
                raws.append(raw)
                salts.append(salt)
            if self.deliver(path, b"[" + b",".join(raws) + b"]", {"Tillpost-Priority": "bulk"} if bulk else {}):
                self.oracle.acknowledge(salts)
            self.stop.wait(chance.uniform(0.02, 0.15))

    def deliver(self, path: str, body: bytes, headers: dict[str, str]) -> bool:
        """Send the same bytes until they are acknowledged, or it is all over."""
        while True:
            try:
                status, _, answer = post(self.sidecar.address, path, body, headers, timeout=5)
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 202:
                return True
            if status and status not in (503, 507, 408):
                self.oracle.refused.append(f"{status} {answer[:200]!r}")
                return False
            if self.stop.wait(0.05):
                return False

    def register(self, salt: str, raw: bytes | None, *, bad: bool) -> None:
        self.oracle.issue(salt, raw)
        if bad:
            self.oracle.bad.add(salt)
            self.fake.fault("reject", salt=salt, hint=self.chance.random() < 0.5)

    def tracker(self, number: int) -> None:
        chance = random.Random(f"{self.seed}-tracker-{number}")
        receipts = []
        with Tracker(
            f"http://{self.sidecar.address}",
            on_error=lambda failure: self.oracle.refused.append(failure.message),
            close_timeout=30,
        ) as tracker:
            serial = 0
            while not self.stop.is_set():
                serial += 1
                salt = f"tracker{number}-{serial}"
                self.register(salt, None, bad=serial % BAD_EVERY == 0)
                person = Client(email=f"person{chance.randrange(50)}@example.com")
                receipts.append(tracker.custom(person, action="soak.tick", params={"n": serial}, salt=salt))
                self.stop.wait(chance.uniform(0, 0.02))
            if not tracker.flush(60):
                self.failures.append("a tracker could not hand over within a minute")
        self.oracle.acknowledge([receipt.salt for receipt in receipts if receipt.durable])

    # -- trouble

    def trouble(self) -> None:
        chance = random.Random(f"{self.seed}-faults")
        for n in range(1 << 30):
            name, detail = FAULTS[n % len(FAULTS)] if n < len(FAULTS) else chance.choice(FAULTS)
            self.faults.append(
                (f"{name} {detail.get('kind', '')}".strip(), self.fake.fault(name, chance.randrange(1, 4), **detail))
            )
            if self.stop.wait(chance.uniform(0.2, 1.5)):
                return

    def blow(self, kind: str) -> None:
        process = self.sidecar.process
        begun = time.monotonic()
        if kind == "pause":
            process.send_signal(signal.SIGSTOP)
            self.stop.wait(self.chance.uniform(0.5, 3))
            process.send_signal(signal.SIGCONT)
        else:
            process.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            code = process.wait(30)
            if code != (-signal.SIGKILL if kind == "kill" else 0):
                self.failures.append(f"{kind}: ended with {code}")
            begun = time.monotonic()
            self.sidecar.start()
            self.recovery_s.append(time.monotonic() - begun)
        self.blows[kind] += 1

    def watch(self) -> None:
        """Sample sizes, and notice when nothing arrives for long."""
        stored, since = 0, time.monotonic()
        while not self.stop.wait(0.5):
            if self.fake.stored_count > stored:
                stored, since = self.fake.stored_count, time.monotonic()
            self.longest_stall_s = max(self.longest_stall_s, time.monotonic() - since)
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{self.sidecar.process.pid}/status").read_text().splitlines()
                self.peak_rss = max(
                    self.peak_rss, next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmRSS"))
                )
            sizes = []
            for file in self.folder.glob("tillpost.db*"):
                with contextlib.suppress(OSError):
                    sizes.append(file.stat().st_size if file.is_file() else 0)
            self.peak_disk = max(self.peak_disk, sum(sizes))

    # -- the whole

    def __call__(self) -> dict[str, Any]:
        with FakeUpstream(api_key=KEY) as self.fake:
            self.fake.fault("reject", salt="nobody")
            self.sidecar = Sidecar(self.folder, self.fake.url, SETTINGS, KEY)
            try:
                return self.soak()
            finally:
                self.stop.set()
                with contextlib.suppress(ProcessLookupError):
                    self.sidecar.process.send_signal(signal.SIGCONT)
                    self.sidecar.process.kill()
                self.sidecar.process.wait(20)

    def soak(self) -> dict[str, Any]:
        works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(self.trouble, ()), (self.watch, ())]
        works += [(self.raw_client, (n,)) for n in range(RAW_CLIENTS)] + [(self.tracker, (n,)) for n in range(TRACKERS)]
        threads = [threading.Thread(target=self.guarded, args=work, daemon=True) for work in works]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for kind in self.kinds():
            if self.stop.wait(min(self.chance.uniform(0.5, 4), max(0.0, begun + self.seconds - time.monotonic()))):
                break
            if time.monotonic() - begun >= self.seconds:
                break
            self.blow(kind)
        self.stop.set()
        for thread in threads:
            thread.join(120)
        self.fake._script.clear(keep="reject")  # a bad record stays bad: what waits still drains meanwhile
        return self.verdict(time.monotonic() - begun)

    def kinds(self) -> Iterator[str]:
        """Every kind of blow at once, then at random."""
        yield from ("kill", "pause", "stop")
        while True:
            yield self.chance.choices(("kill", "stop", "pause"), (6, 2, 2))[0]

    def guarded(self, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            work(*args)
        except Exception as error:
            self.failures.append(f"{work.__name__}: {type(error).__name__}: {error}")
            raise

    def verdict(self, took_s: float) -> dict[str, Any]:
        begun = time.monotonic()
        wrong = list(self.failures)
        try:
            wait_for("everything to be settled", lambda: self.sidecar.status()["ledger"]["pending"] == 0, 90)
        except DemoError as error:
            wrong.append(f"{error}: {json.dumps(self.sidecar.status()['lanes'])}")
        drained_s = time.monotonic() - begun
        ledger = self.sidecar.status()["ledger"]
        dead = [letter["eventSalt"] for letter in self.sidecar.dead_letters()]
        if code := self.sidecar.close():
            wrong.append(f"the last stop ended with {code}")
        stored = [(json.loads(entry.raw)["eventSalt"], bytes(entry.raw)) for entry in self.fake.entries]
        wrong += self.oracle.judge(stored, dead)
        wrong += [f"illegal: {text}" for text in self.fake.violations[:5]]
        wrong += [f"log: {line[:200]}" for line in self.log() if '"critical"' in line or "Traceback" in line][:5]
        if not adds_up(ledger) or ledger["lost"] or ledger["discarded"]:
            wrong.append(f"ledger: {ledger}")
        if self.fake.altered:
            wrong.append(f"{self.fake.altered} sent again with other bytes")
        if self.peak_disk > 64 * 1024 * 1024:
            wrong.append(f"the buffer's files took {self.peak_disk} bytes")
        hits = Counter[str]()
        for name, fault in self.faults:
            hits[name] += fault.hits or (name == "expire_tokens")
        wrong += self.vacuous(hits, len(stored), dead)
        return {
            "seed": self.seed, "seconds": round(took_s, 1), "issued": len(self.oracle.issued),
            "acknowledged": len(self.oracle.acknowledged), "stored": len(stored), "dead": len(dead),
            "overwritten": self.fake.overwritten, "requests": len(self.fake.requests), "blows": dict(self.blows),
            "faults_struck": dict(sorted(hits.items())), "slowest_start_s": round(max(self.recovery_s, default=0), 2),
            "longest_stall_s": round(self.longest_stall_s, 1), "drained_in_s": round(drained_s, 1),
            "peak_rss_mb": self.peak_rss // 1_000_000, "peak_disk_mb": self.peak_disk // 1_000_000,
            "ledger": ledger, "wrong": wrong,
        }  # fmt: skip

    def vacuous(self, hits: Counter[str], stored: int, dead: list[str]) -> list[str]:
        """What did not happen although it was meant to: then all the rest proves little."""
        minutes = self.seconds / 60
        wanted = {
            "kills": (self.blows["kill"], max(1, int(2 * minutes))),
            "stops": (self.blows["stop"], 1),
            "pauses": (self.blows["pause"], 1),
            "kinds of faults that struck": (sum(n > 0 for n in hits.values()), min(len(FAULTS) - 4, int(18 * minutes))),
            "records stored": (stored, int(3000 * minutes)),
            "dead letters": (len(dead), max(1, int(5 * minutes))),
            "answers lost after the upstream stored": (self.fake.overwritten, max(1, int(20 * minutes))),
        }
        return [f"only {n} {what}, at least {least} wanted" for what, (n, least) in wanted.items() if n < least]

    def log(self) -> Iterator[str]:
        for file in sorted(self.folder.glob("collector-*.log")):
            yield from file.read_text().splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--keep", type=Path, help="a folder for the buffer and the logs, which stays")
    wanted = parser.parse_args()
    if wanted.keep is not None:
        wanted.keep.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext(wanted.keep) if wanted.keep else tempfile.TemporaryDirectory() as folder:
        found = Run(Path(folder), wanted.seconds, wanted.seed)()
    print(json.dumps(found, indent=2))
    for text in found["wrong"]:
        print(f"WRONG: {text}", file=sys.stderr)
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
