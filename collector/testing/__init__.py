"""A strict stand-in for the API, for tests and development; see `FakeUpstream`."""

from collector.testing.call import Request
from collector.testing.faults import FAULTS, Fault
from collector.testing.rules import EVENT_TYPES, Problem
from collector.testing.server import FakeUpstream, run_fake_upstream
from collector.testing.store import Buy, Entry, Profile
from collector.testing.switches import Switches

__all__ = [
    "EVENT_TYPES",
    "FAULTS",
    "Buy",
    "Entry",
    "FakeUpstream",
    "Fault",
    "Problem",
    "Profile",
    "Request",
    "Switches",
    "run_fake_upstream",
]
