"""What `tracker` promises by name, and what importing it must not bring along."""

import subprocess
import sys
from pathlib import Path

import tracker
from tracker import testing

NAMES = [
    "BoundTracker",
    "Client",
    "Counters",
    "CustomEvent",
    "Failure",
    "InvalidRecord",
    "MissingArgument",
    "Money",
    "Product",
    "Receipt",
    "Source",
    "Tracker",
    "Transaction",
    "bound_client",
    "derive_salt",
    "events",
]


def test_the_public_names_are_exactly_these():
    assert tracker.__all__ == NAMES
    assert all(getattr(tracker, name).__doc__ for name in NAMES)
    assert testing.__all__ == [
        "Captured",
        "FrozenClock",
        "Guard",
        "assert_not_tracked",
        "assert_tracked",
        "capture_events",
        "flush_trackers",
        "numbered_salts",
    ]


def test_importing_tracker_brings_no_collector_no_server_and_no_event_loop():
    program = "import sys, tracker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"collector", "aiohttp", "aiosqlite", "orjson", "asyncio", "requests"}


def test_importing_tracker_starts_no_thread_and_touches_no_network():
    program = """
import sys, threading
events = []
sys.addaudithook(lambda name, _: events.append(name) if name.startswith("socket.") else None)
import tracker
tracker.Tracker()
print(threading.active_count(), *events)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1"]


def test_tracker_is_typed():
    assert (Path(tracker.__file__).parent / "py.typed").exists()
