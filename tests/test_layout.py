"""The shape of the house: who may import whom, and what is public."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AGREED = {"tracker.wire", "tracker.time"}
"""What both ends must agree on: the only modules of tracker that collector may import."""
APPLICATIONS = {
    ROOT / "collector" / "demo",  # a shop, which tracks as any other does
    ROOT / "collector" / "cli" / "events.py",  # describes an application's events, which are classes of tracker
    ROOT / "collector" / "pytest_plugin.py",  # for tests of applications: ties their trackers to a real collector
}
"""Parts of the collector's package that are applications."""


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_tracker_imports_neither_collector_nor_an_http_framework() -> None:
    for file in modules("tracker"):
        for name in imports(file):
            assert name.split(".")[0] not in {"collector", "aiohttp", "aiosqlite", "orjson", "click", "rich"}, file


def test_collector_imports_from_tracker_only_what_both_ends_must_agree_on() -> None:
    for file in modules("collector"):
        if any(part in APPLICATIONS for part in (file, *file.parents)):
            continue
        for name in imports(file):
            if name.split(".")[0] == "tracker":
                assert any(name == agreed or name.startswith(f"{agreed}.") for agreed in AGREED), f"{file}: {name}"


def test_the_stand_in_for_the_api_shares_no_code_with_what_it_judges() -> None:
    for file in modules("collector/testing"):
        for name in imports(file):
            top = name.split(".")[0]
            assert top != "tracker", f"{file}: {name}"
            assert top != "collector" or name.startswith("collector.testing"), f"{file}: {name}"


def test_every_public_name_is_there_and_documented() -> None:
    for package in ("tracker", "tracker.testing", "collector", "collector.testing"):
        module = importlib.import_module(package)
        assert module.__doc__
        for name in module.__all__:
            assert getattr(getattr(module, name), "__doc__", None), f"{package}.{name} has no docstring"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import tracker", ("collector", "aiohttp", "aiosqlite", "click")),
        ("import tracker", ("asyncio", "email", "hashlib", "http.client", "pathlib", "socket", "ssl")),  # slow to load
        ("import collector", ("aiohttp", "click", "rich")),
        ("import collector.cli", ("aiohttp",)),
    ],
)
def test_importing_loads_no_more_than_it_needs(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_both_packages_are_marked_as_typed() -> None:
    assert (ROOT / "tracker" / "py.typed").exists()
    assert (ROOT / "collector" / "py.typed").exists()
