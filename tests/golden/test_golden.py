"""A buffer file that any release wrote opens with this one, and holds what it held."""

import gzip
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from collector import schema
from collector.batcher import Batch, Delivered
from collector.buffer import Buffer
from tests.collector.buffers import ANYTIME, LIMITS, adds_up

FOLDER = Path(__file__).parent
VERSIONS = sorted(int(file.name[:4]) for file in FOLDER.glob("*.db.gz"))


def unpack(version: int, folder: Path) -> Path:
    path = folder / "tillpost.db"
    path.write_bytes(gzip.decompress((FOLDER / f"{version:04}.db.gz").read_bytes()))
    return path


def test_every_schema_has_its_golden_file() -> None:
    assert [number for number, _ in schema.versions()] == VERSIONS, "make it: python -m tests.golden.make"


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_a_release_wrote_opens_and_holds_what_it_held(version: int, tmp_path: Path) -> None:
    holds = json.loads((FOLDER / f"{version:04}.json").read_text())
    buffer = await Buffer.open(unpack(version, tmp_path))
    try:
        assert buffer.damage is None
        assert buffer.ledger() == holds["ledger"]
        for state in buffer.lanes():
            found: list[str] = []
            while isinstance(batch := await buffer.take(state.lane, LIMITS, ANYTIME), Batch):
                found += [batch.record(i).decode() for i in range(batch.count)]
                await buffer.settle([(batch, Delivered())])
            assert found == holds[str(state.lane)]
        dead = await buffer.run(lambda work: work.conn.execute("SELECT body FROM dead").fetchall())
        assert [body.decode() for (body,) in dead] == holds["dead"]
        assert adds_up(buffer.ledger())
    finally:
        await buffer.close()


def test_a_released_schema_is_never_changed(tmp_path: Path) -> None:
    """Whoever needs another table writes the next numbered file."""

    def tables(conn: sqlite3.Connection) -> dict[str, str]:
        rows = conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name: re.sub(r"\s+", " ", re.sub(r"--.*", "", sql)) for name, sql in rows}

    with (
        closing(sqlite3.connect(unpack(VERSIONS[-1], tmp_path))) as golden,
        closing(sqlite3.connect(":memory:")) as new,
    ):
        schema.migrate(new)
        assert tables(golden) == tables(new)


MIGRATING = """
import asyncio, sys
from collector import schema
known = schema.versions()
schema.versions = lambda: [*known, (known[-1][0] + 1, "CREATE TABLE more (x);\\nUPDATE lanes SET bytes = bytes;\\n")]
from collector.buffer import Buffer

async def main():
    buffer = await Buffer.open(sys.argv[1])
    await buffer.close()

asyncio.run(main())
"""


def migrate(path: Path, crash_at: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", MIGRATING, str(path)],
        env={**os.environ, "CRASH_AT": crash_at}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode


async def test_a_migration_killed_in_the_middle_leaves_the_old_version_whole(tmp_path: Path) -> None:
    path = unpack(VERSIONS[-1], tmp_path)
    holds = json.loads((FOLDER / f"{VERSIONS[-1]:04}.json").read_text())
    assert migrate(path, "migrating") == 137
    buffer = await Buffer.open(path)  # the release that wrote it can go on
    assert buffer.damage is None
    assert buffer.ledger() == holds["ledger"]
    version = await buffer.run(lambda work: work.conn.execute("PRAGMA user_version").fetchone()[0])
    assert version == schema.newest()
    await buffer.close()
    assert migrate(path) == 0
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone()[0] == schema.newest() + 1
        assert dict(conn.execute("SELECT name, n FROM ledger")) == holds["ledger"]
