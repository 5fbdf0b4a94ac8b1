"""What a benchmark found: medians with their spread, ratios held against goals, tables, plots; as text and Markdown."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """Several measurements of one thing."""

    samples: tuple[float, ...]
    unit: str = ""

    @classmethod
    def of(cls, samples: Sequence[float], unit: str = "") -> "Figure":
        return cls(tuple(samples), unit)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def __str__(self) -> str:
        text = f"{number(self.median)}{' ' if self.unit else ''}{self.unit}"
        if len(self.samples) > 1:
            text += f" ({number(min(self.samples))} to {number(max(self.samples))})"
        return text


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3g}"
    )


@dataclass(frozen=True)
class Goal:
    """A ratio and what it should be."""

    what: str
    value: float
    bound: float
    better: Literal["<=", ">="] = "<="
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.better == "<=" else self.value >= self.bound


@dataclass(frozen=True)
class Denominator:
    """What others are divided by. Far above what a machine like this one should show, a ratio means nothing."""

    what: str
    weighed: Figure
    """Each measurement over how slow the machine was just then."""
    like: float
    """What it was on the machine the goals were set on."""

    @property
    def valid(self) -> bool:
        return self.weighed.median <= 1.3 * self.like

    def __str__(self) -> str:
        return f"{self.what}: {self.weighed} as on the machine the goals were set on, where it was {number(self.like)}"


@dataclass
class Table:
    title: str
    head: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)


@dataclass
class Plot:
    """Bars by name, or lines through (x, y) where `x_label` is given."""

    name: str
    title: str
    y_label: str
    bars: Sequence[tuple[str, float]] = ()
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]] = ()
    x_label: str = ""
    log_x: bool = False
    log_y: bool = False


@dataclass
class Result:
    """The answer to one question."""

    question: str
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    denominators: list[Denominator] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def markdown(result: Result, *, plots_in: str = "") -> str:
    lines = [f"## {result.question}", ""]
    for table in result.tables:
        if table.title:
            lines += [f"**{table.title}**", ""]
        lines += _rows(table.head, [[_cell(value) for value in row] for row in table.rows])
    if result.goals:
        lines += goals_table(result.goals)
    for plot in result.plots:
        lines += [f"![{plot.title}]({plots_in}{plot.name}.svg)", ""]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join(lines).rstrip() + "\n"


def goals_table(goals: Sequence[Goal]) -> list[str]:
    return _rows(
        ("What", "Measured", "Goal", ""),
        [[goal.what, f"{number(goal.value)}{goal.unit}", f"{goal.better} {goal.bound:g}{goal.unit}",
          "met" if goal.met else "**not met**"] for goal in goals],
    )  # fmt: skip


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"  # noqa: E731
    return [line(head), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows), ""]


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def draw(plot: Plot, folder: Path) -> None:
    """Write ``<name>.svg``. Without matplotlib (the extra ``bench``) there is no plot."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install -e '.[bench]'", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tillpost"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(plot.bars) + 1.2 if plot.bars else 4), layout="constrained")
    if plot.bars:
        names, values = zip(*reversed(plot.bars), strict=True)
        bars = axes.barh(names, values, color=["#0b6e4f" if "Tillpost" in name else "#9aa5b1" for name in names])
        axes.bar_label(bars, labels=[number(value) for value in values], padding=3)
        axes.set_xlabel(plot.y_label)
        if plot.log_y:
            axes.set_xscale("log")
        axes.margins(x=0.12)
    else:
        for name, points in plot.lines:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker="o", label=name)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.set_xscale("log" if plot.log_x else "linear")
        axes.set_yscale("log" if plot.log_y else "linear")
        if not plot.log_y:
            axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    axes.set_title(plot.title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def main(run: Callable[[bool], Result], doc: str | None) -> None:
    """The command line of one question: measure, print. Exit 1 when a goal is not met."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: to see that it works")
    begun = time.monotonic()
    result = run(parser.parse_args().quick)
    print(markdown(result))
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit(not all(goal.met for goal in result.goals))
