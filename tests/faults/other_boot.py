"""``python -m tests.faults.other_boot BOOT STARTED_MS run ...``: a program on a machine that was started at STARTED_MS.

A reboot is another boot id, and a time since boot that begins anew; both come from the kernel, which
a test cannot restart. What the wall clock shows is libfaketime's business. Programs: ``run`` (the
command, with its arguments) and ``sell URL COUNT`` (a tracker; prints the salts).
"""

import sys

from tracker import Client, Tracker
from tracker.time import SystemClock


def main() -> None:
    boot, started_ms, program, *arguments = sys.argv[1:]
    since_boot = SystemClock.boot_ms
    SystemClock.boot_id = lambda self: boot  # type: ignore[method-assign]
    SystemClock.boot_ms = lambda self: since_boot(self) - int(started_ms)  # type: ignore[method-assign]
    if program == "sell":
        sell(*arguments)
        return
    from collector.cli import main as command

    command([program, *arguments], prog_name="tillpost")


def sell(url: str, count: str) -> None:
    with Tracker(url) as tracker:
        receipts = [tracker.custom(Client(email="anna@example.com"), action="a.b") for _ in range(int(count))]
        assert tracker.flush(20.0)
    print(*(receipt.salt for receipt in receipts))


if __name__ == "__main__":
    main()
