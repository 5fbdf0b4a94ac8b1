"""/metrics: the ledger and the lanes as a scraper sees them."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from collector.metrics import Counters, render

STATUS = {
    "version": "0.1.0",
    "state": "running",
    "ledger": {
        "accepted": 1200, "delivered": 1100, "pending": 98, "dead": 2,
        "discarded": 0, "superseded": 0, "lost": 0, "lost_at_most": 0, "something_new": 7,
    },
    "lanes": [
        {"kind": "events", "identifier": "email", "priority": "live", "pending": 98, "aside": 3, "oldest_age_s": 4.2,
         "state": "backing-off", "attempts": 2, "last_error": "anna@example.com was here"},
        {"kind": "events", "identifier": "uuid", "priority": "bulk", "pending": 0, "aside": 0, "oldest_age_s": None,
         "state": "idle", "attempts": 0, "last_error": None},
    ],
    "buffer": {"path": "/srv/anna.db", "bytes": 102400, "disk_bytes": 20000000, "max_bytes": 536870912},
    "clock": {"offset_ms": -12, "synchronised": True},
    "upstream": {"url": "https://api.synerise.com", "auth": "api-key"},
}  # fmt: skip

LANE = {"kind": "events", "identifier": "email", "priority": "live"}


def samples(body: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(body.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(body: bytes, name: str, **labels: str) -> float:
    return samples(body)[name, frozenset(labels.items())]


def test_every_part_of_the_ledger_is_a_metric() -> None:
    body = render(STATUS)
    assert value(body, "tillpost_records_accepted_total") == 1200
    assert value(body, "tillpost_records_delivered_total") == 1100
    assert value(body, "tillpost_records_discarded_total") == 0
    assert value(body, "tillpost_records_lost_total") == 0
    assert value(body, "tillpost_records_pending") == 98
    assert value(body, "tillpost_records_dead") == 2
    assert value(body, "tillpost_records_superseded") == 0


def test_lanes_are_told_apart_by_kind_identifier_type_and_priority() -> None:
    body = render(STATUS)
    assert value(body, "tillpost_lane_pending_records", **LANE) == 98
    assert value(body, "tillpost_lane_aside_records", **LANE) == 3
    assert value(body, "tillpost_lane_oldest_age_seconds", **LANE) == 4.2
    assert value(body, "tillpost_lane_attempts", **LANE) == 2
    assert value(body, "tillpost_lane_state", state="backing-off", **LANE) == 1
    assert value(body, "tillpost_lane_state", state="paused", **LANE) == 0


def test_an_empty_lane_has_no_age() -> None:
    aged = [labels for name, labels in samples(render(STATUS)) if name == "tillpost_lane_oldest_age_seconds"]
    assert aged == [frozenset(LANE.items())]


def test_units_are_base_units() -> None:
    body = render(STATUS)
    assert value(body, "tillpost_clock_offset_seconds") == -0.012
    assert value(body, "tillpost_clock_synchronised") == 1
    assert value(body, "tillpost_buffer_bytes") == 102400
    assert value(body, "tillpost_buffer_max_bytes") == 536870912


def test_an_unknown_clock_offset_is_left_out() -> None:
    body = render({**STATUS, "clock": {"offset_ms": None, "synchronised": False}})
    assert b"tillpost_clock_offset_seconds" not in body
    assert value(body, "tillpost_clock_synchronised") == 0


def test_no_text_of_a_record_a_path_or_an_error_gets_out() -> None:
    body = render(STATUS)
    assert b"anna" not in body
    assert b"synerise.com" not in body


def test_a_collector_that_only_starts_has_metrics_too() -> None:
    assert value(render({"version": "0.1.0", "state": "starting"}), "tillpost_running") == 0
    assert value(render(STATUS), "tillpost_running") == 1


def test_counters_are_added_up_by_their_labels() -> None:
    counters = Counters()
    counters.add("delivery_requests", kind="events", outcome="delivered")
    counters.add("delivery_requests", kind="events", outcome="delivered")
    counters.add("delivery_requests", kind="transactions", outcome="later")
    body = render(STATUS, counters)
    assert value(body, "tillpost_delivery_requests_total", kind="events", outcome="delivered") == 2
    assert value(body, "tillpost_delivery_requests_total", kind="transactions", outcome="later") == 1
    assert value(body, "tillpost_commits_total") == 0


def test_a_counter_nobody_described_is_refused() -> None:
    with pytest.raises(KeyError):
        Counters().add("surprises")
    with pytest.raises(KeyError):
        Counters().add("delivery_requests", kind="events")
