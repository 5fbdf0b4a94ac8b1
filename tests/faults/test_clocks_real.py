"""The real process, a real tracker beside it, SIGKILL, and a wall clock that libfaketime makes lie."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from collector.demo.processes import Sidecar, wait_for
from collector.testing import FakeUpstream
from tests.end_to_end.clients import adds_up, event, post
from tests.faults import needs
from tracker.time import SystemClock

YEAR_S = 365 * 86_400
QUICK = {
    "delivery.backoff_base": "20ms",
    "delivery.backoff_max": "200ms",
    "batch.linger": "0s",
    "clock.margin": "500ms",
}


class Till(Sidecar):
    """A sidecar on a machine whose wall clock is wrong by so many seconds."""

    def __init__(self, folder: Path, upstream: str, error_s: float) -> None:
        self.faketime = needs.faketime()
        self.shown = folder / "faketime"
        self.boot, self.started_ms = "boot-1", SystemClock().boot_ms() - 10_000
        self.set(error_s)
        super().__init__(folder, upstream, QUICK, "k")

    def set(self, error_s: float) -> None:
        """Somebody sets the clock."""
        self.shown.with_suffix(".new").write_text(f"{error_s:+.0f}\n")
        self.shown.with_suffix(".new").replace(self.shown)

    def reboot(self, boot: str) -> None:
        """After a kill: the next start is on the machine started anew."""
        self.boot, self.started_ms = boot, SystemClock().boot_ms() - 10_000

    def start(self) -> None:
        self.starts += 1
        with (self.folder / f"collector-{self.starts}.log").open("w") as errors:
            self.process = subprocess.Popen(
                self._command("run", *self.arguments), env=self._environment(), stderr=errors, stdin=subprocess.DEVNULL
            )
        wait_for("the collector to start", self._ready)

    def sell(self, count: int) -> list[str]:
        """What a tracker beside it made: salts of records that are durable."""
        done = subprocess.run(
            self._command("sell", f"http://{self.address}", str(count)),
            env=self._environment(), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout.split()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.faults.other_boot", self.boot, str(self.started_ms), *arguments]

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TILLPOST_")}
        return clean | {
            "TILLPOST_API_KEY": self.key,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "LD_PRELOAD": self.faketime,
            "FAKETIME_TIMESTAMP_FILE": str(self.shown),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # time since boot is what nobody can set
            "NO_FAKE_STAT": "1",
        }


@contextmanager
def shop(folder: Path, error_s: float) -> Iterator[tuple[FakeUpstream, Till]]:
    needs.faketime()
    with FakeUpstream(api_key="k") as fake:
        fake.fault("reset", times=None, path="*")  # the network is not there yet
        till = Till(folder, fake.url, error_s)
        try:
            yield fake, till
        finally:
            till.kill()
    assert fake.violations == []
    assert fake.altered == 0


def delivered(till: Till, fake: FakeUpstream, count: int) -> dict[str, Any]:
    """Wait until all is settled; then everything must be there once."""
    wait_for("everything to be delivered", lambda: till.status()["ledger"]["pending"] == 0)
    status = till.status()
    assert adds_up(status["ledger"])
    assert status["ledger"]["dead"] == 0
    assert len({entry.salt for entry in fake.entries}) == len(fake.entries) == count
    return status


def repaired(till: Till) -> float:
    """Records whose times were repaired, as `/metrics` counts them."""
    with urlopen(f"http://{till.address}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tillpost_clock_corrected_records_total"))


def times(fake: FakeUpstream) -> dict[str, int]:
    return {str(entry.salt): entry.instant_ms for entry in fake.entries}


def test_a_real_till_in_1970_until_the_network_comes(tmp_path: Path) -> None:
    with shop(tmp_path, -time.time() + 5) as (fake, till):
        begun = time.time()
        salts = till.sell(5)
        given = event("given")
        assert post(till.address, "/v4/events/batch", [given])[0] == 202
        sold = time.time()
        assert not till.status()["clock"]["synchronised"]
        till.set(0)  # NTP is the first to know
        wait_for("the collector to see it", lambda: till.status()["lanes"][0]["oldest_age_s"] > YEAR_S)
        fake.clear_faults()
        status = delivered(till, fake, 6)
        assert abs(status["clock"]["offset_ms"]) < 3_100
        assert repaired(till) == 5
        stored = times(fake)
        assert all(begun - 3.1 <= stored[salt] / 1000 <= sold + 3.1 for salt in salts)
        assert next(entry.original_time for entry in fake.entries if entry.salt == "given") == given["time"]


def test_a_real_till_a_year_slow_and_killed_between_answer_and_note(tmp_path: Path) -> None:
    with shop(tmp_path, -YEAR_S) as (fake, till):
        begun = time.time()
        salts = till.sell(20)
        fake.clear_faults()
        lost = fake.fault("drop_answer", times=None)
        wait_for("records that are stored and not noted", lambda: lost.hits >= 2 and fake.stored_count == 20)
        till.kill()
        till.set(10 * YEAR_S)  # and now it is ten years fast
        till.arguments += ["--set", "clock.tolerance=0s"]
        fake.clear_faults()
        till.start()
        salts += till.sell(5)
        status = delivered(till, fake, 25)
        assert abs(status["clock"]["offset_ms"] + 10 * YEAR_S * 1000) < 60_000
        assert fake.overwritten >= 20
        assert till.close() == 0
        stored = times(fake)
        assert all(begun - 3.1 <= stored[salt] / 1000 <= time.time() for salt in salts)


def test_a_real_till_rebooted_before_it_ever_knew_the_time(tmp_path: Path) -> None:
    with shop(tmp_path, -YEAR_S) as (fake, till):
        first = till.sell(3)
        till.kill()
        till.reboot("boot-2")
        till.set(-time.time() + 5)  # its battery is empty now
        till.start()
        second = till.sell(3)
        fake.clear_faults()
        status = delivered(till, fake, 6)
        assert status["clock"]["estimated"] == 1
        stored = times(fake)
        assert max(stored[salt] for salt in first) <= min(stored[salt] for salt in second) <= time.time() * 1000
        assert all(abs(stored[salt] / 1000 - time.time()) < 60 for salt in second)
