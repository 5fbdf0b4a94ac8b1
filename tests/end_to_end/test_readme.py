"""What the README says is what happens."""

import re
import subprocess
import sys
from pathlib import Path

from collector.demo.processes import Sidecar, wait_for
from collector.testing import FakeUpstream

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_program_runs_as_written(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README, re.S)
    with FakeUpstream(api_key="k") as fake:
        sidecar = Sidecar(tmp_path, fake.url, {}, "k")
        try:
            program = program.replace("http://127.0.0.1:8787", f"http://{sidecar.address}")
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
            )
            assert done.stdout == "on the collector's disk: True\n"
            assert done.stderr == ""
            wait_for("three records at the upstream", lambda: fake.stored_count == 3)
        finally:
            assert sidecar.close() == 0
        assert fake.violations == []


def test_every_command_it_names_exists() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "collector", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    commands = set(re.findall(r"^(?:TILLPOST_API_KEY=\S+ )?tillpost (\w[\w-]*)", README, re.M))
    assert {"run", "status", "find", "dead", "drain"} <= commands
    for command in commands:
        assert re.search(rf"^  {command}\b", listed, re.M), command


def test_the_two_commands_do_all_the_set_up() -> None:
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith(".venv/bin/tillpost demo")
    assert lines[1].endswith(".venv/bin/pytest")
