"""The example till, as it is: a real process with the collector inside, killed while the network is away."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collector.testing import FakeUpstream

from .servers import EXAMPLES, ROOT, eventually


@contextmanager
def till(folder: Path, upstream: str) -> Iterator["subprocess.Popen[str]"]:
    environment = {"TILLPOST_API_KEY": "test-key", "TILLPOST_CLOCK__MARGIN": "0s", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "till" / "till.py", "--folder", folder, "--upstream", upstream],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def say(process: "subprocess.Popen[str]", line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().rstrip("\n")


def printed(upstream: FakeUpstream) -> list[int]:
    """The receipts whose event has arrived."""
    return [record["params"]["number"] for record in upstream.stored if record.get("action") == "receipt.printed"]


def test_the_till_sells_without_a_network_through_a_kill_and_every_sale_arrives_once(
    tmp_path: Path, fake_upstream: FakeUpstream
) -> None:
    with till(tmp_path, "http://127.0.0.1:9") as offline:
        for number in range(1, 6):
            assert say(offline, "scan A-1 2") == "2 x Tea 12.50"
            assert say(offline, f"card C-{number}") == f"card C-{number}"
            assert say(offline, "pay CASH") == f"receipt T-01/{number:06} 25.00 PLN kept"
        assert say(offline, "status").endswith(" 0 refused")
        os.kill(offline.pid, signal.SIGKILL)
    with till(tmp_path, fake_upstream.url) as online:
        assert say(online, "scan B-2") == "1 x Coffee 24.90"
        assert say(online, "pay CARD") == "receipt T-01/000006 24.90 PLN kept"
        assert say(online, "sell").startswith("scan A-1|B-2|C-3")
        eventually(lambda: 6 in printed(fake_upstream), what="delivery of the last event")
        eventually(lambda: say(online, "status").split(", ")[1] == "0 waiting", what="delivery of the rest")
        started = time.monotonic()
        assert say(online, "quit") == ""
        assert online.wait(20) == 0
        assert time.monotonic() - started < 15
    stored = fake_upstream.stored
    sales = [record for record in stored if "orderId" in record]
    assert sorted(sale["orderId"] for sale in sales) == [f"T-01/{number:06}" for number in range(1, 7)]
    assert [sale["client"]["customId"] for sale in sales if sale["orderId"] == "T-01/000003"] == ["C-3"]
    numbers = printed(fake_upstream)
    # the event of the last receipt before the kill was tracked, not awaited
    assert {1, 2, 3, 4, 6} <= set(numbers)
    assert len(numbers) == len(set(numbers))
