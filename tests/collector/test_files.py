"""What a forked child must not do to its parent's files."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from collector.demo.processes import wait_for
from collector.files import BufferInUse, FileLock

# The connection stands alone here, in the main thread: under aiosqlite the interpreter of today
# happens to leak the reference that would otherwise let the child finalise it.
FORKING = """
import gc, os, sqlite3, sys
from collector.files import inherit_nothing

class Connection(sqlite3.Connection):  # as the buffer's: a plain one takes no weak reference
    pass

path, ending = sys.argv[1:]
connection = sqlite3.connect(path, factory=Connection, isolation_level=None)
inherit_nothing(connection)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("CREATE TABLE t (x)")
for i in range(50):
    connection.execute("INSERT INTO t VALUES (?)", (i,))
if os.fork() == 0:
    if ending == "exit":
        sys.exit(0)
    if ending == "_exit":
        os._exit(0)
    if ending == "exception":
        raise RuntimeError("the child's own trouble")
    if ending == "collected":
        del connection
        gc.collect()
        sys.exit(0)
os.wait()
for i in range(100):
    connection.execute("INSERT INTO t VALUES (?)", (i,))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ending", ["exit", "_exit", "exception", "collected"])
def test_a_child_never_finalises_the_connection_it_inherits(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "t.db"
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(path), ending], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (150,)
    connection.close()


LOCKING = """
import os, sys
from pathlib import Path
from collector.files import FileLock

lock = FileLock.acquire(Path(sys.argv[1]))
read, write = os.pipe()
if os.fork() == 0:
    os.close(write)
    os.read(read, 1)  # until the parent is gone
    os._exit(0)
os.close(read)
print("locked", flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), 9)
"""


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with subprocess.Popen(
        [sys.executable, "-c", LOCKING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"locked\n"
        with pytest.raises(BufferInUse, match=f"process {parent.pid}"):
            FileLock.acquire(path)
        parent.stdin.write(b"x")
        parent.stdin.close()
        parent.wait(20)

    def free() -> bool:
        # the child may not have run yet when its parent was killed
        try:
            FileLock.acquire(path).release()
        except BufferInUse:
            return False
        return True

    wait_for("the child to let go of the lock", free, 20)
