"""Forks, threads, reloads and ends under real gunicorn and uvicorn: nothing lost, nothing twice, no hang."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import needs
from .servers import Browser, eventually, listens, numbers, stored

needs("gunicorn")
needs("uvicorn")
needs("gevent")

GUNICORN = ("-W", "ignore::DeprecationWarning", "-m", "gunicorn", "--no-control-socket")
WORKERS = {
    "sync": ("-k", "sync", "--preload", "-w", "2", "--max-requests", "25", "tests.web.wsgi_app:app"),
    "gthread": ("-k", "gthread", "--threads", "4", "--preload", "-w", "2", "tests.web.wsgi_app:app"),
    # One worker: of two, the one that got no request hangs in gevent's hub (gunicorn 27, any application).
    "gevent": ("-k", "gevent", "--preload", "-w", "1", "tests.web.wsgi_app:app"),
    "uvicorn": ("-k", "uvicorn.workers.UvicornWorker", "--preload", "-w", "2", "tests.web.wsgi_app:asgi"),
}
COUNT = 120
LAST = range(COUNT + 1, COUNT + 10)


def ask(path, ns):
    """The pids that answered, and the numbers that were durable by then."""

    def one(n):
        while True:
            try:
                return Browser(path).get(f"/?n={n}")
            except ConnectionResetError:  # a worker that ends closes connections whose request it has not begun to read
                continue

    with ThreadPoolExecutor(8) as pool:
        replies = [reply.text.split() for reply in pool.map(one, ns)]
    return {reply[0] for reply in replies}, [int(reply[1]) for reply in replies if reply[2] == "1"]


def runs(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", WORKERS)
def test_a_preloaded_tracker_loses_nothing_and_sends_nothing_twice(kind, run, sidecar, api, tmp_path):
    """Made before the fork and used in two workers, which end after 25 requests (sync), are reloaded in the middle and
    stopped with records in memory that the collector does not answer for yet."""
    name, path, overwritten = f"fork.{kind}", tmp_path / "w.sock", api.overwritten
    gunicorn = run(
        *GUNICORN, "--bind", f"unix:{path}", *WORKERS[kind],
        env={"TILLPOST_URL": sidecar.url, "RUN": name},
    ).until(lambda: listens(path))  # fmt: skip
    pids, durable = ask(path, range(COUNT // 2))
    gunicorn.process.send_signal(signal.SIGHUP)
    _, more_durable = ask(path, range(COUNT // 2, COUNT))
    eventually(lambda: not any(map(runs, pids)), what="the end of the workers before the reload")
    with sidecar.frozen():
        last_pids, _ = ask(path, LAST)
        gunicorn.process.send_signal(signal.SIGTERM)
        eventually(lambda: not listens(path))
    took = gunicorn.end()
    expected = [*range(-1, COUNT), *LAST]
    eventually(lambda: len(numbers(api, name)) >= len(expected), what="the arrival of all")
    assert sorted(numbers(api, name)) == expected
    assert pids.isdisjoint(last_pids), "the reload replaced nobody"
    assert {*range(0, COUNT, 10)} <= {*durable, *more_durable}
    # what a worker that ends had out and got no answer for may be sent again, and overwrites
    assert api.overwritten - overwritten <= len(LAST)
    assert took < 20


def test_a_worker_that_is_stopped_while_the_sidecar_is_away_ends_in_time(run, tmp_path):
    path = tmp_path / "w.sock"
    app = tmp_path / "away.py"
    app.write_text(
        "from tracker import Client, Tracker\n"
        "tracker = Tracker('unix:///nobody/listens.sock', close_timeout=0.5)\n"
        "def app(environ, start_response):\n"
        "    tracker.searched(Client(custom_id='C-1'))\n"
        "    start_response('200 OK', [])\n"
        "    return [b'0 0 0']\n"
    )
    gunicorn = run(
        "-m", "gunicorn", "--no-control-socket", "--bind", f"unix:{path}", "-w", "2", "away:app", cwd=tmp_path
    ).until(lambda: listens(path))
    ask(path, range(20))
    assert gunicorn.end() < 20


def test_uvicorn_alone_ends_by_its_signal_and_loses_nothing(run, sidecar, api, tmp_path):
    """It restores the signal's default and raises it again: nothing registered with atexit runs."""
    path = tmp_path / "u.sock"
    uvicorn = run(
        "-m", "uvicorn", "--uds", path, "--log-level", "warning", "tests.web.wsgi_app:asgi",
        env={"TILLPOST_URL": sidecar.url, "RUN": "uvicorn.alone"},
    ).until(lambda: listens(path))  # fmt: skip
    ask(path, range(1, 40))
    with sidecar.frozen():
        ask(path, LAST)
        uvicorn.process.send_signal(signal.SIGTERM)
        assert uvicorn.is_waiting(), "for the collector"
    uvicorn.end()
    assert uvicorn.process.returncode == -signal.SIGTERM
    eventually(lambda: len(numbers(api, "uvicorn.alone")) == 40 + len(LAST))


GEVENT_LATE = """
import sys

from tracker import Client, Tracker
tracker, anna = Tracker(sys.argv[1]), Client(custom_id="C-1")
assert tracker.custom(anna, action="gevent.late", params={"n": 0}).wait(10)
from gevent import monkey; monkey.patch_all()
import gevent
def greenlet(n):
    receipt = tracker.custom(anna, action="gevent.late", params={"n": n})
    return receipt.wait(10)
jobs = [gevent.spawn(greenlet, n) for n in range(1, 50)]
gevent.joinall(jobs, timeout=20)
assert all(job.value for job in jobs), [job.value for job in jobs]
assert tracker.flush(10)
"""
GEVENT_FIRST = "from gevent import monkey; monkey.patch_all()\n" + GEVENT_LATE.replace("gevent.late", "gevent.first")
GEVENT_TURNS = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from tracker import Client, Tracker
tracker, turns = Tracker("unix:///nobody/listens.sock", close_timeout=0.2), []
def others():
    while True:
        turns.append(1)
        gevent.sleep(0.001)
gevent.spawn(others)
receipt = tracker.searched(Client(custom_id="C-1"))
receipt.wait(0.2)
assert len(turns) > 20, len(turns)
"""


@pytest.mark.parametrize(("program", "name"), [(GEVENT_LATE, "gevent.late"), (GEVENT_FIRST, "gevent.first")])
def test_gevent_may_patch_before_and_after_a_tracker_is_used(program, name, run, sidecar, api):
    process = run("-W", "ignore", "-c", program, sidecar.url)
    process.process.wait(30)
    assert process.process.returncode == 0, process.said
    eventually(lambda: len(numbers(api, name)) == 50)
    assert sorted(numbers(api, name)) == list(range(50))


GEVENT_FORK = """
from gevent import monkey; monkey.patch_all()
import gevent, os, sys
from tracker import Client, Tracker
tracker, anna = Tracker(sys.argv[1]), Client(custom_id="C-1")
def track(*ns):
    for n in ns:
        tracker.custom(anna, action="gevent.fork", params={"n": n})
        gevent.sleep(0.001)
track(0, 1, 2)
child = os.fork()
track(*((3, 4) if child else (5, 6)))
print("tracked", flush=True)
assert tracker.flush(20)
assert tracker.counters().tracked == tracker.counters().durable == (5 if child else 2), tracker.counters()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forks_child_does_not_go_on_with_its_parents_greenlets(run, sidecar, api):
    """A fork copies greenlets, and with them the one that was sending: it must not send here what is the parent's."""
    with sidecar.frozen():
        process = run("-W", "ignore", "-c", GEVENT_FORK, sidecar.url)
        process.until(lambda: process.said.count("tracked") == 2 or "rror" in process.said)
    process.process.wait(30)
    assert process.process.returncode == 0, process.said
    assert process.said == "tracked\n" * 2
    eventually(lambda: len(numbers(api, "gevent.fork")) == 7)
    assert sorted(numbers(api, "gevent.fork")) == list(range(7))


def test_waiting_for_a_receipt_lets_other_greenlets_run(run):
    process = run("-c", GEVENT_TURNS)
    process.process.wait(30)
    assert process.process.returncode == 0, process.said


OS_EXIT = """
import os, sys
from tracker import Client, Tracker
anna = Client(custom_id="C-1")
trackers = [Tracker(sys.argv[1]) for _ in range(2000)]
receipts = [one.custom(anna, action="os.exit", params={"n": n}) for n, one in enumerate(trackers)]
durable = [n for n, receipt in enumerate(receipts) if n % 2 and receipt.wait(10)]
import threading
print(threading.active_count(), *durable, flush=True)
os._exit(0)
"""


def test_what_was_reported_durable_outlives_os_exit_and_thousands_of_trackers_are_one_thread(run, sidecar, api):
    process = run("-c", OS_EXIT, sidecar.url)
    process.process.wait(30)
    threads, *durable = map(int, process.said.split())
    assert threads == 2
    assert durable == list(range(1, 2000, 2))
    eventually(lambda: {*durable} <= {*numbers(api, "os.exit")})
    assert len(stored(api, "os.exit")) == len({*numbers(api, "os.exit")})


HALF_AN_ANSWER = """
import os, socket, sys, threading
from tracker import Client, Tracker
server = socket.create_server(("127.0.0.1", 0))
half = threading.Event()
def answer():
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 503 Busy\\r\\nContent-Length: 100000\\r\\n\\r\\nhalf")
    half.set()
    threading.Event().wait()
threading.Thread(target=answer, daemon=True).start()
tracker = Tracker(f"http://127.0.0.1:{server.getsockname()[1]}", close_timeout=0.1)
tracker.searched(Client(custom_id="C-1"))
half.wait()
for _ in range(20):
    threading.Event().wait(0.005)  # the tracker's thread is inside the read of the body
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
print("done", flush=True)
os._exit(0)
"""


def test_a_fork_in_the_middle_of_an_answer_does_not_hang_the_child(run):
    """The parent's thread holds the lock of what it reads; in the child nobody would ever release it."""
    process = run("-c", HALF_AN_ANSWER)
    process.process.wait(30)
    assert process.said == "done\n"
