"""A process forks with a collector inside (catalogue 9): the child takes nothing of its parent's with it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from collector import Collector
from collector.testing import FakeUpstream
from tests.collector.test_cli_run import environment

PARENT = """
import gc, os, signal, sys
from collector import Collector
from tracker import Client, Tracker

path, url, through, *endings = sys.argv[1:]
collector = Collector(path, upstream=url, api_key="k", config={"batch": {"linger": "1h"}})
tracker = Tracker(collector) if through == "tracker" else None
acknowledged = []

def keep(name):
    "One record, and proof that it is on the disk."
    if tracker is not None:
        receipt = tracker.custom(Client(email="anna@example.com"), action="a.b", salt=name)
        assert receipt.wait(30), receipt.error
    else:
        body = (b'[{"type":"custom","action":"a.b","label":"x","client":{"email":"anna@example.com"},'
                b'"time":"2026-05-04T09:53:56.999Z","eventSalt":"%s"}]' % name.encode())
        assert collector.receive("/v4/events/batch", body, {}, 30)[0] == 202
    acknowledged.append(name)

def child(ending):
    global collector, tracker
    signal.alarm(60)
    if ending == "os._exit":
        os._exit(0)
    if ending == "exception":
        raise RuntimeError("the child's own trouble")
    if ending == "collected":
        del collector, tracker
        gc.collect()
    if ending == "close":
        collector.close()
    if ending == "start":
        try:
            collector.start()
        except Exception as error:
            print("child:", error, file=sys.stderr)
    if ending == "fork again":
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
    sys.exit(0)

keep("before")
for ending in endings:
    pid = os.fork()
    if pid == 0:
        child(ending)
    for i in range(5):
        keep(f"beside {ending} {i}".replace(" ", "-"))
    os.waitpid(pid, 0)
    for i in range(5):
        keep(f"after {ending} {i}".replace(" ", "-"))
print("\\n".join(acknowledged), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


ENDINGS = ["sys.exit", "os._exit", "exception", "collected", "close", "start", "fork again"]


@pytest.mark.parametrize("through", ["collector", "tracker"])
def test_whatever_a_child_does_its_parent_keeps_what_it_acknowledged(tmp_path: Path, through: str) -> None:
    path = tmp_path / "t.db"
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PARENT, str(path), "http://127.0.0.1:9", through,
         *ENDINGS],
        capture_output=True, timeout=110, check=False, env=environment(), text=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    acknowledged = done.stdout.split()
    assert len(acknowledged) == 1 + 10 * len(ENDINGS)
    assert done.stderr.count("use the sidecar") == 1
    with FakeUpstream(api_key="k") as fake:
        assert delivered(path, fake, len(acknowledged)) == sorted(acknowledged)


def delivered(path: Path, fake: FakeUpstream, pending: int) -> list[str]:
    """What a new collector on that file delivers."""
    with contextlib.closing(Collector(path, upstream=fake.url, api_key="k")) as collector:
        ledger = collector.status()["ledger"]
        assert (ledger["pending"], ledger["lost"]) == (pending, 0), json.dumps(ledger)
        assert collector.drain(30)
    assert fake.violations == []
    return sorted(record["eventSalt"] for record in fake.stored)
