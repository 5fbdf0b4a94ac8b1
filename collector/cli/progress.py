"""How far something long has got: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from collector.cli.common import age, size

_EVERY_S: Final = 5.0
"""How often a line is written where there is no terminal."""


def progress() -> "Bar | Plain":
    """What suits where standard error goes to."""
    return Bar() if sys.stderr.isatty() else Plain()


class Bar:
    """A bar with rate and remaining time; colours unless NO_COLOR is set."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._rich = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[count]:,} {task.fields[unit]}"), TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._begun = 0.0
        self._before = 0
        self._rich.start()

    def start(self, name: str, total: int | None, done: int, count: int, unit: str = "lines") -> None:
        self._begun, self._before = time.monotonic(), count
        self._task = self._rich.add_task(Path(name).name, total=total, completed=done, count=count, unit=unit, rate=0.0)

    def advance(self, done: int, count: int) -> None:
        assert self._task is not None
        rate = (count - self._before) / max(time.monotonic() - self._begun, 1e-3)
        self._rich.update(self._task, completed=done, count=count, rate=rate)

    def note(self, text: str) -> None:
        self._rich.console.print(text, style="yellow", markup=False, highlight=False)

    def close(self) -> None:
        self._rich.stop()


class Plain:
    """The same in words."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._name = self._unit = ""
        self._total: int | None = None
        self._begun = self._next = 0.0
        self._before = (0, 0)

    def start(self, name: str, total: int | None, done: int, count: int, unit: str = "lines") -> None:
        self._name, self._total, self._unit, self._before = name, total, unit, (done, count)
        self._begun = self._now_s()
        self._next = self._begun + _EVERY_S
        if count:
            click.echo(f"{name}: {count} {unit} ({self._amount(done)}) were confirmed earlier", err=True)

    def advance(self, done: int, count: int) -> None:
        now = self._now_s()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        seconds = max(now - self._begun, 1e-3)
        parts = [f"{self._name}: {count} {self._unit}"]
        if self._unit == "lines":
            parts.append(self._amount(done))
        if self._total:
            parts[-1] += f" of {self._amount(self._total)} ({100 * done / self._total:.0f} %)"
        parts.append(f"{(count - self._before[1]) / seconds:,.0f}/s")
        if self._total and done > self._before[0]:
            left_s = (self._total - done) * seconds / (done - self._before[0])
            parts.append(f"{age(left_s)} left")
        click.echo(", ".join(parts), err=True)

    def _amount(self, done: int) -> str:
        return size(done) if self._unit == "lines" else str(done)

    def note(self, text: str) -> None:
        click.echo(text, err=True)

    def close(self) -> None:
        """Nothing is left to put away."""
