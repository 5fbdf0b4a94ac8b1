"""The power fails: what was acknowledged is on the disk, and the ledger is exact (G1, G2).

Here some cuts; ``python -m tests.faults.power_cuts 1000`` is part of the checks, with 10000 it is the long form.
"""

import random
from pathlib import Path

import pytest

from tests.faults.disk import Disk, Entry, Mercy
from tests.faults.oracle import Journal
from tests.faults.power_cuts import cut, record

CUTS = 150


@pytest.mark.parametrize("seed", [1, 2])
def test_no_power_cut_takes_an_acknowledged_record_and_the_ledger_is_exact(tmp_path: Path, seed: int) -> None:
    recording = record(tmp_path, seed)
    report = cut(recording, CUTS, seed)
    assert report.faults == []
    assert report.cuts == CUTS
    # all of that says nothing unless the cuts hit where it hurts
    assert report.at_risk > CUTS / 2, "there was little to take"
    assert report.acknowledged / CUTS > 300, "little was acknowledged before the cuts"
    kinds = {entry.kind for entry in recording.entries}
    assert kinds == set("cwtasdumk"), "the run did less than it should, or something is new"

    disk, journal = Disk(), Journal()
    for entry in recording.entries:
        journal.apply(entry.payload) if entry.kind == "k" else disk.apply(entry)
    disk.write(tmp_path / "replayed", Mercy(random.Random(), spares=1.0, tears=0.0))
    left = {file.relative_to(recording.folder): file.read_bytes() for file in files_in(recording.folder)}
    assert left == {
        file.relative_to(tmp_path / "replayed"): file.read_bytes() for file in files_in(tmp_path / "replayed")
    }, "something was done to the files that was not written down"
    assert set(journal.states.values()) == {"pending", "delivered", "dead", "superseded", "discarded"}


def test_without_a_sync_for_every_commit_most_power_cuts_take_acknowledged_records(tmp_path: Path) -> None:
    """The control: what finds nothing wrong above finds it here."""
    report = cut(record(tmp_path, 3, synchronous="NORMAL"), 40, 3)
    assert report.lossy >= report.cuts / 2


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


# -- the disk itself ----------------------------------------------------------------------------

NOTHING = Mercy(random.Random(1), spares=0.0, tears=0.0)
EVERYTHING = Mercy(random.Random(1), spares=1.0, tears=0.0)


def replayed(*entries: Entry) -> Disk:
    disk = Disk()
    for entry in entries:
        disk.apply(entry)
    return disk


def test_what_was_not_synced_may_be_gone_and_what_was_stays(tmp_path: Path) -> None:
    disk = replayed(
        Entry("c", 1, 0, b"a"),
        Entry("d", 9, 0, b""),
        Entry("w", 1, 0, b"kept"),
        Entry("s", 1, 0, b""),
        Entry("w", 1, 4, b" and lost"),
    )
    disk.write(tmp_path / "poor", NOTHING)
    disk.write(tmp_path / "rich", EVERYTHING)
    assert (tmp_path / "poor" / "a").read_bytes() == b"kept"
    assert (tmp_path / "rich" / "a").read_bytes() == b"kept and lost"


def test_a_name_whose_folder_was_not_synced_may_be_gone_though_the_file_was(tmp_path: Path) -> None:
    disk = replayed(Entry("c", 1, 0, b"a"), Entry("w", 1, 0, b"x"), Entry("s", 1, 0, b""))
    disk.write(tmp_path / "poor", NOTHING)
    assert list((tmp_path / "poor").iterdir()) == []


def test_a_file_that_was_removed_or_renamed_may_be_back(tmp_path: Path) -> None:
    disk = replayed(
        Entry("c", 1, 0, b"a"),
        Entry("c", 2, 0, b"b"),
        Entry("d", 9, 0, b""),
        Entry("u", 0, 0, b"a"),
        Entry("r", 0, 0, b"b\0c"),
    )
    disk.write(tmp_path / "poor", NOTHING)
    disk.write(tmp_path / "rich", EVERYTHING)
    assert sorted(file.name for file in (tmp_path / "poor").iterdir()) == ["a", "b"]
    assert sorted(file.name for file in (tmp_path / "rich").iterdir()) == ["c"]


def test_a_torn_write_leaves_whole_sectors_of_either_state(tmp_path: Path) -> None:
    disk = replayed(
        Entry("c", 1, 0, b"a"),
        Entry("d", 9, 0, b""),
        Entry("w", 1, 0, b"o" * 4096),
        Entry("s", 1, 0, b""),
        Entry("w", 1, 0, b"n" * 4096),
    )
    disk.write(tmp_path / "torn", Mercy(random.Random(1), spares=1.0, tears=1.0))
    data = (tmp_path / "torn" / "a").read_bytes()
    sectors = {data[at : at + 512] for at in range(0, 4096, 512)}
    assert sectors == {b"o" * 512, b"n" * 512}
