"""A full disk (catalogue 16 to 18): ingest refuses, delivery goes on, and both recover by themselves.

`full_disk` says what each scenario shows. ``TILLPOST_LONG=1`` makes a hundred cycles, and runs all of it on ext4 too,
for which it needs root and a loop device.
"""

import os
from pathlib import Path

import pytest

from tests.faults import full_disk, needs
from tests.faults.small_disk import run_on_disk

SCRIPT = Path(full_disk.__file__)
FILE_SYSTEMS = ["tmpfs", "ext4"] if os.environ.get("TILLPOST_LONG") == "1" else ["tmpfs"]


@pytest.fixture(params=FILE_SYSTEMS)
def file_system(request: pytest.FixtureRequest) -> str:
    needs.namespaces()
    return str(request.param)


def test_a_disk_filled_while_records_are_in_the_log_alone_is_drained(file_system: str, tmp_path: Path) -> None:
    run_on_disk(file_system, SCRIPT, "while_running", tmp_path)


def test_a_start_on_a_full_disk_after_a_clean_stop_drains_although_others_take_every_byte(
    file_system: str, tmp_path: Path
) -> None:
    run_on_disk(file_system, SCRIPT, "after_a_clean_stop", tmp_path)


def test_a_start_on_a_full_disk_after_a_kill_drains(file_system: str, tmp_path: Path) -> None:
    run_on_disk(file_system, SCRIPT, "after_a_kill", tmp_path)


def test_a_full_disk_is_drained_although_others_take_every_byte_we_free(file_system: str, tmp_path: Path) -> None:
    run_on_disk(file_system, SCRIPT, "with_a_thief", tmp_path)


def test_a_disk_that_fills_and_empties_time_and_again_costs_no_record(file_system: str, tmp_path: Path) -> None:
    print(run_on_disk(file_system, SCRIPT, "cycles", tmp_path))


def test_a_disk_without_inodes_stops_nothing_and_no_start(file_system: str, tmp_path: Path) -> None:
    run_on_disk(file_system, SCRIPT, "no_inodes", tmp_path, "few inodes")
