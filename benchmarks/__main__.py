"""Every question, one after the other; writes ``benchmarks/RESULTS.md`` and the plots beside it.

    python -m benchmarks [question ...] [--quick]

Needs the extra ``bench``: pip install -e '.[bench]'. Under twenty minutes on two cores; leave the machine alone.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import sqlite3
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, report
from benchmarks.lab import memory_mib
from benchmarks.report import Result

QUESTIONS = (
    "latency", "track", "client", "faults", "ceilings", "ingest", "drain", "end_to_end", "durability", "backlog",
    "start", "idle", "isolating",
)  # fmt: skip
"""Latency first: what the machine's host does with its processors spoils it most, and a run begins when it is quiet."""
HERE = Path(__file__).parent
PACKAGES = ("aiohttp", "msgspec", "orjson", "aiosqlite")


def surroundings() -> list[str]:
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [
        f"- Machine: {os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}; load before: {load}",
        f"- Versions: Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {versions}",
        f"- Date: {datetime.now(UTC):%Y-%m-%d}",
    ]


def document(results: list[Result], about: list[str], command: str, seconds: float) -> str:
    goals = [goal for result in results for goal in result.goals]
    high = [each for result in results for each in result.denominators if not each.valid]
    lines = [
        "# Results", "",
        f"Written by `{command}` in {seconds / 60:.0f} minutes. Medians, with the lowest and highest run in brackets.",
        "CPU is user and system time; ratios are taken within this run, so that a slow or busy machine spoils the",
        "figures but not the ratios.", "", *about, "",
    ]  # fmt: skip
    lines += ["## Goals", "", *report.goals_table(goals)] if goals else []
    if high:
        lines += ["**Not valid**: denominators more than 30 % above what a machine of this speed should show.", ""]
        lines += [f"- {each}" for each in high] + [""]
    return "\n".join(lines) + "\n" + "\n".join(report.markdown(result) for result in results)


def answer(name: str, quick: bool) -> Result:
    """One question's answer; one that cannot be had spoils no other."""
    try:
        result: Result = importlib.import_module(f"benchmarks.{name}").run(quick)
        return result
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Result(f"{name}: no answer", notes=[f"{type(error).__name__}: {error}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="question", help="one of " + ", ".join(QUESTIONS))
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, printed and not written")
    arguments = parser.parse_args()
    if unknown := set(arguments.questions) - set(QUESTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(QUESTIONS)}")
    about, begun, stolen, results = surroundings(), time.monotonic(), machine.Stolen(), []
    for name in arguments.questions or QUESTIONS:
        since = time.monotonic()
        result = answer(name, arguments.quick)
        result.seconds = time.monotonic() - since
        results.append(result)
        print(f"{name}: {result.seconds:.0f} s, {memory_mib(os.getpid()):.0f} MiB", file=sys.stderr)
    about += [machine.about(), f"- {stolen}"]
    text = document(results, about, "python -m " + " ".join(["benchmarks", *sys.argv[1:]]), time.monotonic() - begun)
    if arguments.quick or arguments.questions:
        print(text)
        return
    (HERE / "RESULTS.md").write_text(text)
    for result in results:
        for plot in result.plots:
            report.draw(plot, HERE)


if __name__ == "__main__":
    main()
