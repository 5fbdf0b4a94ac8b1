"""A disk that fails or dawdles (catalogue 19 to 22), files that are taken away (23).

`failing_disk` says what each scenario shows. ``TILLPOST_CALLS=200`` lets more calls fail, one after the other.
"""

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from collector.demo.processes import Sidecar
from collector.testing import FakeUpstream
from tests.end_to_end.clients import event, post
from tests.faults import failing_disk, needs
from tests.faults.small_disk import until

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("fail_disk.c")


def run(scenario: str, tmp_path: Path) -> None:
    library, switch, disk = needs.preload(SOURCE, tmp_path), tmp_path / "switch", tmp_path / "disk"
    switch.write_bytes(bytes(32))
    disk.mkdir()
    done = subprocess.run(
        [sys.executable, failing_disk.__file__, scenario, str(disk)],
        capture_output=True, text=True, timeout=110, check=False, cwd=ROOT,
        env={
            **os.environ, "PYTHONPATH": str(ROOT),
            "LD_PRELOAD": str(library), "FAIL_ROOT": str(disk), "FAIL_SWITCH": str(switch),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
@pytest.mark.parametrize("scenario", list(failing_disk.SCENARIOS))
def test_what_was_acknowledged_survives_a_disk_where(scenario: str, tmp_path: Path) -> None:
    run(scenario, tmp_path)


def deleted(data: Path) -> None:
    shutil.rmtree(data)


def renamed(data: Path) -> None:
    data.rename(data.with_name("elsewhere"))


def replaced(data: Path) -> None:
    (data / "tillpost.db").unlink()
    (data / "tillpost.db").touch(0o600)


@pytest.mark.skipif(sys.platform != "linux", reason="an open file cannot be taken away")
def test_files_that_are_taken_away_are_noticed_before_the_next_acknowledgement(tmp_path: Path) -> None:
    """SQLite would go on writing to a file that is gone."""
    with FakeUpstream(api_key="k") as fake, contextlib.ExitStack() as stack:
        fake.fault(503, times=None)
        running = []
        for taken_away in (deleted, renamed, replaced):
            folder = tmp_path / taken_away.__name__
            folder.mkdir()
            sidecar = Sidecar(folder, fake.url, key="k")
            stack.callback(sidecar.kill)
            assert post(sidecar.address, "/v4/events/batch", [event("a")])[0] == 202
            taken_away(folder)
            with contextlib.suppress(OSError, http.client.HTTPException):  # it may have ended by now
                status, _, answer = post(sidecar.address, "/v4/events/batch", [event("b")])
                assert status == 503, answer
            running.append(sidecar.process)
        for process in running:
            until("the sidecar to end", lambda process=process: process.poll() is not None)  # type: ignore[misc]
        assert [process.returncode for process in running] == [4, 4, 4]
