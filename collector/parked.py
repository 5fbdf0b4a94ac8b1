"""When records that are parked or denied may be tried again.

In memory only: after a restart they may be tried at once. As runs of rows, so that a million of them
take no more room than a few, and are passed over in one step.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple


class Run(NamedTuple):
    """Rows of one lane's ``aside``, one behind the other, that wait for the same time by the boot clock."""

    first: int
    last: int
    earliest_ms: int
    """When the first of them might have been tried, had it been alone."""
    due_ms: int


class Parked:
    """Per lane its waiting runs, in the order of their rows."""

    def __init__(self) -> None:
        self._lanes: dict[int, list[Run]] = {}

    def note(self, parked: Iterable[tuple[int, int, int]], boot_ms: int) -> None:
        """Lane, row and due time of records that were just parked; `boot_ms`: the boot clock now."""
        looked_through: set[int] = set()
        for lane, row, due_ms in parked:
            if lane not in looked_through:  # whatever is over is forgotten
                looked_through.add(lane)
                self._lanes[lane] = [run for run in self._lanes.get(lane, ()) if run.due_ms > boot_ms]
            runs = self._lanes[lane]
            at, run = bisect_right(runs, row, key=_first), Run(row, row, due_ms, due_ms)
            if at and runs[at - 1].last == row - 1 and (joined := _joined(runs[at - 1], run, boot_ms)) is not None:
                runs[at - 1] = joined
            else:
                runs.insert(at, run)

    def run_at(self, lane: int, row: int, boot_ms: int) -> Run | None:
        """The run a row is in; None when it may be tried now."""
        runs = self._lanes.get(lane, [])
        at = bisect_right(runs, row, key=_first) - 1
        return runs[at] if at >= 0 and row <= runs[at].last and runs[at].due_ms > boot_ms else None

    def join(self, lane: int, one: Run, other: Run, boot_ms: int) -> Run:
        """Make one of two runs between which nothing else waits, if their times are alike; the later one, else."""
        joined = _joined(one, other, boot_ms)
        if joined is None:
            return other
        runs = self._lanes[lane]
        runs[bisect_right(runs, one.first, key=_first) - 1 : bisect_right(runs, other.first, key=_first)] = [joined]
        return joined


def _joined(one: Run, other: Run, boot_ms: int) -> Run | None:
    """Both as one, if that makes nobody wait longer by more than a quarter."""
    earliest, due = min(one.earliest_ms, other.earliest_ms), max(one.due_ms, other.due_ms)
    return Run(one.first, other.last, earliest, due) if due - earliest <= (earliest - boot_ms) / 4 else None


def _first(run: Run) -> int:
    return run.first
