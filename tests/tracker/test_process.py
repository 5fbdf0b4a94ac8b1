"""Forks and the end of the process, in processes of their own."""

import os
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PREAMBLE = """
import os, sys, time
from tracker import Client, Tracker
anna = Client(email="anna@example.com")
url = sys.argv[1]
def send(tracker, n):
    return tracker.custom(anna, action="a", params={"n": n})
"""


def run(program: str, url: str, timeout: float = 30) -> tuple[str, float]:
    """What a program wrote, and how many seconds it took from its last line to its end."""
    source = PREAMBLE + textwrap.dedent(program)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-c", source, url],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        out = process.stdout.readline()
        started = time.monotonic()
        out += process.stdout.read()
        process.wait(timeout)
        took = time.monotonic() - started
        errors.seek(0)
        said = errors.read()
    assert "Traceback" not in said, said
    assert process.returncode == 0, said
    return out, took


def numbers(fake):
    return [record["params"]["n"] for record in fake.records]


def test_an_exit_without_close_loses_nothing(fake):
    run("t = Tracker(url)\nfor n in range(500): send(t, n)\nprint('done', flush=True)", fake.url)
    assert numbers(fake) == list(range(500))


def test_an_exit_by_exception_or_sys_exit_loses_nothing_either(fake):
    run("t = Tracker(url)\nfor n in range(50): send(t, n)\nprint('done', flush=True)\nsys.exit()", fake.url)
    assert numbers(fake) == list(range(50))


def test_an_exit_with_the_collector_away_is_bounded_and_reported():
    out, took = run(
        """
        t = Tracker(url, close_timeout=0.3, on_error=lambda failure: print(failure.reason, flush=True))
        for n in range(3): send(t, n)
        print('done', flush=True)
        """,
        "http://127.0.0.1:9",
    )
    assert out.split() == ["done", "closed", "closed", "closed"]
    assert took < 4


def test_many_trackers_do_not_make_the_exit_longer():
    _, took = run(
        """
        trackers = [Tracker(url, close_timeout=0.3) for _ in range(50)]
        for t in trackers: send(t, 1)
        other = Tracker("http://127.0.0.1:10", close_timeout=0.3)
        send(other, 1)
        print('done', flush=True)
        """,
        "http://127.0.0.1:9",
    )
    assert took < 4


def test_a_record_tracked_while_the_process_ends_neither_raises_nor_hangs(fake):
    out, _ = run(
        """
        import atexit
        def late():
            receipt = send(t, 2)
            print(receipt.error.reason, flush=True)
        atexit.register(late)
        t = Tracker(url)
        send(t, 1).wait()
        print('done', flush=True)
        """,
        fake.url,
    )
    assert out.split() == ["done", "closed"]


def test_a_forked_child_sends_its_own_records_and_never_its_parents(fake):
    run(
        """
        t = Tracker(url)
        assert send(t, 0).wait(10)
        for n in range(100, 200): send(t, n)
        for child in range(3):
            if os.fork() == 0:
                assert t.counters().waiting == 0
                for n in range(10): send(t, 1000 * (child + 1) + n)
                ok = t.flush(10)
                t.close()
                os._exit(0 if ok else 1)
        for _ in range(3):
            assert os.wait()[1] == 0
        assert t.flush(10)
        assert t.counters().durable == 101
        print('done', flush=True)
        """,
        fake.url,
    )
    expected = [0, *range(100, 200), *(1000 * child + n for child in (1, 2, 3) for n in range(10))]
    assert sorted(numbers(fake)) == sorted(expected)
    salts = [record["eventSalt"] for record in fake.records]
    assert len(set(salts)) == len(salts)


def test_a_tracker_made_before_the_fork_works_in_a_child_while_the_collector_is_away_in_the_parent(fake):
    """The parent's queue is full and its thread in the middle of a request when it forks, again and again."""
    run(
        """
        t = Tracker(url, max_records=50, close_timeout=0.1)
        for n in range(60): send(t, n)
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                receipt = send(t, -1)
                assert receipt.error is None
                assert t.flush(0.01) is False
                t.close()
                sys.exit(0)
            for n in range(100): send(t, n)
            assert os.waitpid(pid, 0)[1] == 0
        print('done', flush=True)
        """,
        "http://127.0.0.1:9",
    )


def test_a_child_that_just_exits_flushes_what_it_tracked(fake):
    run(
        """
        t = Tracker(url)
        send(t, 1).wait(10)
        if os.fork() == 0:
            send(t, 2)
            sys.exit(0)
        os.wait()
        print('done', flush=True)
        """,
        fake.url,
    )
    assert sorted(numbers(fake)) == [1, 2]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_flush_what_they_tracked(fake, method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        PREAMBLE
        + textwrap.dedent(
            f"""
            import multiprocessing
            def work(n):
                send(Tracker(url), n)
            if __name__ == "__main__":
                t = Tracker(url)
                send(t, 0).wait(10)
                context = multiprocessing.get_context("{method}")
                children = [context.Process(target=work, args=(n,)) for n in (1, 2)]
                for child in children: child.start()
                for child in children: child.join()
            """
        )
    )
    done = subprocess.run([sys.executable, str(program), fake.url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(numbers(fake)) == [0, 1, 2]


def test_a_signal_handler_may_track_and_close_at_any_moment(fake):
    run(
        """
        import signal, threading
        t = Tracker(url, max_records=100_000)
        def on_signal(*_):
            for n in range(3): send(t, -1)
            signal.setitimer(signal.ITIMER_REAL, again)  # one at a time, however busy the machine
        signal.signal(signal.SIGALRM, on_signal)
        again = 0.001
        signal.setitimer(signal.ITIMER_REAL, again)
        for n in range(5000): send(t, n)
        again = 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, lambda *_: t.close())
        os.kill(os.getpid(), signal.SIGTERM)
        c = t.counters()
        assert c.waiting == 0 and c.durable == c.tracked, c
        print('done', flush=True)
        """,
        fake.url,
    )
    assert [n for n in numbers(fake) if n >= 0] == list(range(5000))


def test_an_embedded_collector_is_flushed_before_it_closes_itself_at_exit():
    out, _ = run(
        """
        import atexit, json
        class Embedded:
            closed = False
            def start(self):
                atexit.register(self.close)
            def receive(self, path, body, headers, timeout):
                assert not self.closed
                count = len(json.loads(body))
                print("stored", count, flush=True)
                return 202, {"Tillpost-Accepted": str(count)}, b""
            def close(self):
                self.closed = True
                print("closed", flush=True)
        t = Tracker(Embedded())
        send(t, 1).wait(10)
        send(t, 2)
        """,
        "unused",
    )
    assert out.split("\n")[:3] == ["stored 1", "stored 1", "closed"]
