"""docs/guarantees.md says what is: every entry of the catalogue is there, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = {
    int(number): (what, tests)
    for number, what, tests in re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", DOCUMENT, re.MULTILINE)
}
MUST_BE_PROMISED = {*range(1, 5), *range(7, 10), *range(15, 18), *range(19, 22), *range(26, 31), *range(37, 40), 43, 46,
                    *range(49, 53), 54, *range(56, 60)}  # fmt: skip


@cache
def named_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_all_sixty_faults_are_there_and_at_most_five_are_not_promised() -> None:
    assert sorted(ROWS) == list(range(1, 61))
    not_promised = {number for number, (what, _) in ROWS.items() if "*Not promised*" in what}
    assert len(not_promised) <= 5
    assert not not_promised & MUST_BE_PROMISED


def test_every_promised_row_names_its_tests_and_they_exist() -> None:
    for number, (what, tests) in ROWS.items():
        named = re.findall(r"`([a-z_/]+\.py)`: ((?:`test_\w+(?:\[\w+\])?`(?:, )?)+)", tests)
        assert named or "*Not promised*" in what, f"row {number} names no test"
        for path, names in named:
            for name in re.findall(r"`(\w+)", names):
                assert name in named_in(ROOT / "tests" / path), f"row {number}: {path} has no {name}"


def test_every_file_that_the_guarantees_name_exists() -> None:
    for path in re.findall(r"`(tests/[\w/]+(?:\.py|/))`", DOCUMENT):
        assert (ROOT / path).exists(), path
