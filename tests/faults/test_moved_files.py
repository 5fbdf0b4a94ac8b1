"""The buffer's files deleted, renamed or replaced while it runs: SQLite would go on writing into files nobody finds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from collector.buffer import Buffer, Unknown
from tests.collector.buffers import parcel, record
from tests.faults.test_damage import held, log


def folder_deleted(path: Path) -> None:
    shutil.rmtree(path.parent)


def folder_renamed(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def database_renamed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def database_replaced(path: Path) -> None:
    """A backup is put back under a running collector."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def log_deleted(path: Path) -> None:
    log(path).unlink()


@pytest.mark.parametrize(
    "takes_away", [folder_deleted, folder_renamed, database_renamed, database_replaced, log_deleted]
)
async def test_nothing_is_acknowledged_that_no_start_would_find(
    tmp_path: Path, takes_away: Callable[[Path], None]
) -> None:
    buffer = await Buffer.open(tmp_path / "data" / "t.db")
    try:
        await buffer.append([parcel([record("before")])])
        takes_away(buffer.path)
        with pytest.raises(Unknown):
            await buffer.append([parcel([record("meanwhile")])])
        await buffer.quiet()
        assert buffer.moved
        with pytest.raises(Unknown):
            await buffer.append([parcel([record("after")])])
    finally:
        await buffer.close()


@pytest.mark.parametrize("takes_away", [folder_renamed, database_renamed])
async def test_what_comes_back_is_taken_up_again(tmp_path: Path, takes_away: Callable[[Path], None]) -> None:
    buffer = await Buffer.open(tmp_path / "data" / "t.db")
    try:
        await buffer.append([parcel([record("before")])])
        takes_away(buffer.path)
        with pytest.raises(Unknown):
            await buffer.append([parcel([record("meanwhile")])])
        await buffer.quiet()
        assert not await buffer.revive(), "there is nothing to take up yet"
        away = next(tmp_path.rglob("elsewhere"))
        away.rename(away.with_name("data" if away.is_dir() else "t.db"))
        assert await buffer.revive()
        await buffer.append([parcel([record("after")])])
        # a commit that failed may be there all the same
        assert await held(buffer) in [[record(salt) for salt in found.split()]
                                      for found in ("before after", "before meanwhile after")]  # fmt: skip
        assert buffer.ledger()["lost_at_most"] == 0
    finally:
        await buffer.close()
