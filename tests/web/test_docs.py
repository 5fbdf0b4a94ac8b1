"""The pages about web backends say what is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from collector.pytest_plugin import RunningCollector

from .servers import ROOT

PAGES = ROOT / "docs" / "integrations"
PROGRAMS = {
    "custom-events.md": 1, "outbox.md": 1,
    "privacy.md": 0, "django.md": 0, "flask.md": 0, "fastapi.md": 0, "celery.md": 0,
}  # fmt: skip
"""Pages that begin with a program, and how many records it tracks."""


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def test_every_test_that_the_table_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "web.md").read_text())
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "docs" / "web.md", *PAGES.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_first_program_of_a_page_runs_as_written(
    page: str, tmp_path: Path, tillpost_collector: RunningCollector
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", programs(page)[0]], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, env={"PYTHONPATH": str(ROOT), "TILLPOST_URL": tillpost_collector.url},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(tillpost_collector.delivered(at_least=PROGRAMS[page])) == PROGRAMS[page]
