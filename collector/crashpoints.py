"""Points at which a test has the process die, to see that nothing is lost there.

``CRASH_AT=committed:3`` ends the process like SIGKILL when it reaches ``committed`` for the
third time. Without the variable `reach` does nothing. The sweep takes the names from `Point`,
so a new one is tried as soon as it is written down (tests/faults/test_crash_points.py).
"""

import os
import sys
from collections.abc import Callable
from typing import Final, Literal

Point = Literal[
    "migrating",  # the tables are made, their version is not committed
    "correcting",  # a correction of the clock is written, not committed
    "corrected",  # it is on the disk, nothing it governs was sent
    "inserted",  # records are in the transaction, not committed
    "committed",  # records are on the disk, nobody was told
    "taken",  # a batch is in hand, not sent
    "delivered",  # the upstream has it, the disk does not know
    "removing",  # records have left their chunk, uncounted
    "setting-aside",  # a record left its chunk and stands aside, uncommitted
    "erasing",  # what was forgotten is committed, and still in the log
    "burying",  # a record left its chunk and is a dead letter, uncommitted
    "superseding",  # a dead letter is superseded, the record that did it not committed
    "reviving",  # a dead letter stands in its lane again, and among the dead
    "stopping",  # deliveries have ended, the buffer is open
    "quarantine-begun",  # a damaged buffer is about to be moved
    "quarantine-moving",  # the database is moved, its log is not
    "quarantine-moved",  # all is moved, there is no new buffer
    "quarantine-opened",  # there is one, the move is not ticked off
    "salvaging",  # some of what can be saved is in the new buffer
]

_NAME, _, _COUNT = os.environ.get("CRASH_AT", "").partition(":")
_EXIT_CODE: Final = 137  # what a shell shows for SIGKILL


def _nothing(_: Point) -> None:
    """Production: go on."""


def _counting(name: str, left: int) -> Callable[[Point], None]:
    def reach(point: Point) -> None:
        nonlocal left
        left -= point == name
        if left == 0:
            print(f"crash point {name} reached", file=sys.stderr, flush=True)  # noqa: T201 - nothing else will say it
            os._exit(_EXIT_CODE)

    return reach


reach: Callable[[Point], None] = _counting(_NAME, int(_COUNT or 1)) if _NAME else _nothing
