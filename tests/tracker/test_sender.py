"""Trackers against a real server over real sockets: what is durable, kept, refused, in which order."""

import asyncio
import gc
import json
import logging
import random
import re
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest

from tracker import Client, InvalidRecord, Money, Product, Tracker, wire
from tracker.testing import FrozenClock

from .conftest import Answer, accepted, error_400, lost

TEA = Product(sku="A-1", name="Tea", quantity=2, final_unit_price=Money("12.50", "PLN"))
SALE = {"order_id": "1", "payment_method": "CASH", "source": "POS", "products": [TEA]}
AWAY = "http://127.0.0.1:9"  # discard: nobody listens


def status(code, headers=None):
    return lambda _: Answer(code, headers or {})


def numbers(requests):
    return [record["params"]["n"] for request in requests for record in request.records]


def test_a_record_is_durable_once_the_collector_said_so(anywhere, make_tracker, anna):
    tracker = make_tracker(anywhere.url)
    receipt = tracker.custom(anna, action="receipt.printed", params={"terminal": "T-07"})
    assert receipt.wait(10)
    assert receipt.durable
    assert receipt.error is None
    [request] = anywhere.requests
    assert request.path == "/v4/events/batch"
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers
    [record] = request.records
    assert record["eventSalt"] == receipt.salt
    assert record["time"] == receipt.time
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", receipt.time)
    assert repr(receipt) == "<Receipt durable>"


def test_a_request_leaves_in_one_piece(anywhere, make_tracker, anna, monkeypatch):
    """Between two pieces a busy application would have the interpreter for 5 ms."""
    pieces, send = [], HTTPConnection.send
    monkeypatch.setattr(HTTPConnection, "send", lambda self, data: (pieces.append(data), send(self, data)))
    tracker = make_tracker(anywhere.url)
    for _ in range(3):
        assert tracker.searched(anna).wait(10)
    assert len(pieces) == len(anywhere.requests)
    assert all(piece.startswith(b"POST /v4/events/batch") and piece.endswith(b"}]") for piece in pieces)


def test_a_signal_handler_that_tracks_while_the_thread_is_made_starts_no_second_one(
    fake, make_tracker, anna, monkeypatch
):
    tracker, made = make_tracker(fake.url), []

    class Interrupted(threading.Thread):
        def __init__(self, *args, name=None, **kwargs):
            super().__init__(*args, name=name, **kwargs)
            if name == "tillpost-tracker":
                made.append(self)
                if len(made) == 1:
                    tracker.searched(anna)

    monkeypatch.setattr(threading, "Thread", Interrupted)
    tracker.searched(anna)
    assert tracker.flush()
    assert len([thread for thread in made if thread.ident is not None]) == 1


@pytest.mark.parametrize("script", [accepted, error_400(("[0].params", "no"))])
def test_the_garbage_collector_need_not_look_at_receipts(fake, anna, script):
    """They are not tracked by it, so once settled they must not hold on to what may hold them."""

    class Shop:
        def __init__(self):
            self.tracker = Tracker(fake.url, on_error=self.failed)
            self.receipt = self.tracker.searched(anna)

        def failed(self, failure):
            pass

    fake.default = script
    shop, gone = Shop(), threading.Event()
    assert not gc.is_tracked(shop.receipt)
    shop.tracker.flush()
    assert shop.receipt.durable or shop.receipt.error
    shop.tracker.close()
    weakref.finalize(shop, gone.set)
    del shop
    gc.collect()
    assert gone.wait(10)


def test_each_kind_goes_to_its_own_path(fake, make_tracker, anna):
    tracker = make_tracker(fake.url)
    tracker.searched(anna)
    tracker.transaction(anna, **SALE)
    assert tracker.flush()
    assert {request.path for request in fake.requests} == {"/v4/events/batch", "/v4/transactions/batch"}
    [sale] = [request for request in fake.requests if request.path == "/v4/transactions/batch"]
    assert sale.records[0]["orderId"] == "1"


def test_the_token_is_sent_from_the_argument_or_the_environment(fake, make_tracker, anna, monkeypatch, tmp_path):
    monkeypatch.setenv("TILLPOST_INGEST_TOKEN", "from-environment")
    make_tracker(fake.url, token="given").searched(anna).wait()
    make_tracker(fake.url).searched(anna).wait()
    monkeypatch.delenv("TILLPOST_INGEST_TOKEN")
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("TILLPOST_INGEST_TOKEN_FILE", str(tmp_path / "token"))
    make_tracker(fake.url).searched(anna).wait()
    sent = [request.headers["authorization"] for request in fake.requests]
    assert sent == ["Bearer given", "Bearer from-environment", "Bearer from-file"]


def test_the_target_comes_from_the_environment(fake, make_tracker, anna, monkeypatch):
    monkeypatch.setenv("TILLPOST_URL", fake.url)
    assert make_tracker().searched(anna).wait()


def test_what_waits_while_a_request_is_out_shares_the_next_one_in_order(fake, make_tracker, anna):
    go = threading.Event()

    def slowly(request):
        assert go.wait(10)
        return accepted(request)

    fake.script.append(slowly)
    tracker = make_tracker(fake.url)
    for n in range(2500):
        tracker.custom(anna, action="a", params={"n": n})
    go.set()
    assert tracker.flush(10)
    assert numbers(fake.requests) == list(range(2500))
    sizes = [len(request.records) for request in fake.requests]
    assert max(sizes) == 1000
    assert len(sizes) <= 5


def test_no_request_is_larger_than_a_million_bytes(fake, make_tracker, anna):
    fake.script.append(status(503))
    tracker = make_tracker(fake.url)
    for n in range(12):
        tracker.custom(anna, action="a", params={"n": n, "text": "x" * 199_000})
    assert tracker.flush(10)
    assert all(len(request.body) <= 1_000_000 for request in fake.requests)
    assert max(len(request.records) for request in fake.requests) == 5
    assert sorted(set(numbers(fake.requests))) == list(range(12))


def test_a_collector_that_is_away_loses_nothing_and_gets_everything_in_order(anywhere, make_tracker, anna, caplog):
    anywhere.stop()
    failures = []
    tracker = make_tracker(anywhere.url, on_error=failures.append)
    receipts = [tracker.custom(anna, action="a", params={"n": n}) for n in range(1500)]
    assert not receipts[0].wait(0.05)
    assert tracker.counters().waiting == 1500
    anywhere.start()
    assert tracker.flush(10)
    assert numbers(anywhere.requests) == list(range(1500))
    assert all(receipt.durable for receipt in receipts)
    assert failures == []
    warnings = [record.message for record in caplog.records if "cannot be reached" in record.message]
    assert len(warnings) == 1, "an outage must not fill a console"


@pytest.mark.parametrize("code", [401, 403, 404, 415, 421, 408, 429, 500, 503, 507, 302, 200])
def test_trouble_that_is_not_the_records_keeps_them(fake, make_tracker, anna, code):
    failures = []
    fake.script.extend([status(code), status(code)])
    tracker = make_tracker(fake.url, on_error=failures.append)
    receipt = tracker.searched(anna)
    assert receipt.wait(10)
    assert len(fake.requests) == 3
    assert len({request.body for request in fake.requests}) == 1
    assert failures == []


@pytest.mark.parametrize("headers", [{}, {"Tillpost-Accepted": "2"}])
def test_a_202_that_does_not_confirm_the_count_is_no_receipt(fake, make_tracker, anna, headers, caplog):
    fake.script.append(status(202, headers))
    tracker = make_tracker(fake.url)
    assert tracker.searched(anna).wait(10)
    assert len(fake.requests) == 2
    assert any("is no collector" in record.message for record in caplog.records)


def test_retry_after_is_honoured(fake, make_tracker, anna):
    fake.script.append(status(503, {"Retry-After": "1"}))
    tracker = make_tracker(fake.url)
    receipt = tracker.searched(anna)
    fake.wait_for(lambda: fake.requests)
    started = time.monotonic()
    assert receipt.wait(10)
    assert time.monotonic() - started > 0.8


def test_a_lost_answer_is_followed_by_the_same_bytes(anywhere, make_tracker, anna):
    anywhere.script.extend([lost, lost, lost])
    tracker = make_tracker(anywhere.url)
    assert tracker.searched(anna).wait(10)
    assert len(anywhere.requests) == 4
    assert len({request.body for request in anywhere.requests}) == 1


def test_a_400_that_names_records_costs_only_those(fake, make_tracker, anna):
    failures = []
    fake.script.append(status(503))
    fake.script.append(error_400(("[3].params.sku", "must not be null"), ("[7]", "is no object")))
    tracker = make_tracker(fake.url, on_error=failures.append)
    receipts = [tracker.custom(anna, action="a", params={"n": n}) for n in range(10)]
    fake.wait_for(lambda: len(fake.requests) >= 3)
    tracker.flush(10)
    tracker.close()
    refused = [n for n, receipt in enumerate(receipts) if receipt.error]
    batch = fake.requests[1].records
    assert sorted(failure.record["params"]["n"] for failure in failures) == sorted(
        batch[at]["params"]["n"] for at in (3, 7)
    )
    assert len(refused) == 2
    assert [receipt.durable for receipt in receipts] == [n not in refused for n in range(10)]
    assert failures[0].reason == "refused"
    assert failures[0].message == "params.sku: must not be null"
    assert receipts[refused[0]].error.reason == "refused"
    counted = tracker.counters()
    assert (counted.tracked, counted.durable, counted.refused, counted.waiting) == (10, 8, 2, 0)


def test_a_400_that_names_nobody_makes_them_go_one_by_one(fake, make_tracker, anna):
    failures = []

    def judge(request):
        if any(record["params"]["n"] == 4 for record in request.records):
            return error_400()(request)
        return accepted(request)

    fake.script.append(status(503))
    fake.default = judge
    tracker = make_tracker(fake.url, on_error=failures.append)
    for n in range(9):
        tracker.custom(anna, action="a", params={"n": n})
    tracker.flush(10)
    tracker.close()
    assert [failure.record["params"]["n"] for failure in failures] == [4]
    counted = tracker.counters()
    assert (counted.durable, counted.refused) == (8, 1)


def test_a_400_that_is_not_the_apis_buries_nothing(fake, make_tracker, anna):
    """A proxy, a captive portal."""
    fake.script.append(lambda _: Answer(400, {}, b"<html>Bad Request</html>"))
    fake.script.append(lambda _: Answer(400, {}, b'["no"]'))
    assert make_tracker(fake.url).searched(anna).wait(10)


def test_flush_is_false_when_a_record_is_refused_meanwhile(fake, make_tracker, anna):
    go = threading.Event()
    fake.default = lambda request: error_400(("[0]", "bad"))(request) if go.wait(20) else None
    tracker = make_tracker(fake.url)
    tracker.searched(anna)
    threading.Timer(0.05, go.set).start()
    assert tracker.flush(10) is False


def test_flush_is_bounded(make_tracker, anna):
    tracker = make_tracker(AWAY, close_timeout=0.05)
    assert tracker.flush()
    tracker.searched(anna)
    assert tracker.flush(0.05) is False
    assert tracker.flush() is False


def test_a_413_splits_and_only_a_record_too_large_alone_is_refused(fake, make_tracker, anna):
    failures = []

    def small_only(request):
        return accepted(request) if len(request.body) <= 5_000 else Answer(413)

    fake.script.append(status(503))
    fake.default = small_only
    tracker = make_tracker(fake.url, on_error=failures.append)
    for n in range(40):
        tracker.custom(anna, action="a", params={"n": n, "text": "x" * (6_000 if n == 17 else 500)})
    tracker.flush(10)
    tracker.close()
    assert [failure.record["params"]["n"] for failure in failures] == [17]
    assert tracker.counters().durable == 39


def test_refused_when_full_is_counted_called_back_and_seen_on_the_receipt(make_tracker, anna):
    failures = []
    tracker = make_tracker(AWAY, max_records=3, on_error=failures.append, close_timeout=0)
    receipts = [tracker.custom(anna, action="a", params={"n": n}) for n in range(5)]
    assert [receipt.error and receipt.error.reason for receipt in receipts] == [None, None, None, "full", "full"]
    assert tracker.counters().refused == 2
    assert tracker.counters().waiting == 3
    tracker.close()
    assert [failure.record["params"]["n"] for failure in failures] == [3, 4, 0, 1, 2]
    assert [failure.reason for failure in failures] == ["full", "full", "closed", "closed", "closed"]
    assert tracker.counters().dropped == 3


def test_bytes_bound_what_waits_too(make_tracker, anna):
    tracker = make_tracker(AWAY, max_bytes="10KiB", close_timeout=0)
    receipts = [tracker.custom(anna, action="a", params={"text": "x" * 3000}) for _ in range(5)]
    assert [receipt.error is None for receipt in receipts] == [True, True, True, False, False]


def test_oldest_records_are_discarded_for_newer_ones(make_tracker, anna, fake, eventually):
    fake.stop()
    failures = []
    tracker = make_tracker(fake.url, max_records=3, when_full="discard-oldest", on_error=failures.append)
    tracker.custom(anna, action="a", params={"n": 0})
    lines = tracker._account.sender._lines.values()
    eventually(lambda: any(line.unreachable for line in lines))  # what is in flight may be discarded and arrive
    for n in range(1, 10):
        tracker.custom(anna, action="a", params={"n": n})
    assert tracker.counters().waiting == 3
    fake.start()
    assert tracker.flush(10)
    kept = list(dict.fromkeys(numbers(fake.requests)))  # sent twice where an answer did not get through
    assert kept[-1] == 9
    eventually(lambda: len(failures) == 7)
    assert all(failure.reason == "full" and "newer" in failure.message for failure in failures)
    assert sorted(kept + [failure.record["params"]["n"] for failure in failures]) == list(range(10))
    counted = tracker.counters()
    assert (counted.tracked, counted.durable, counted.dropped, counted.refused) == (10, 3, 7, 0)


def test_blocking_waits_for_room(fake, make_tracker, anna):
    go = threading.Event()

    def slowly(request):
        assert go.wait(10)
        return accepted(request)

    fake.script.append(slowly)
    tracker = make_tracker(fake.url, max_records=1, when_full="block", block_for=10)
    tracker.searched(anna)
    fake_is_busy = threading.Timer(0.05, go.set)
    fake_is_busy.start()
    assert tracker.searched(anna).wait(10)
    fake_is_busy.join()


def test_blocking_is_bounded(make_tracker, anna):
    tracker = make_tracker(AWAY, max_records=1, when_full="block", block_for=0.05, close_timeout=0)
    tracker.searched(anna)
    started = time.monotonic()
    assert tracker.searched(anna).error.reason == "full"
    assert 0.04 < time.monotonic() - started < 2


def test_track_does_not_block_while_the_collector_hangs(fake, make_tracker, anna):
    go = threading.Event()
    fake.default = lambda request: go.wait(20) and accepted(request)
    tracker = make_tracker(fake.url, close_timeout=0)
    tracker.searched(anna)
    fake_has_it = time.monotonic()
    for _ in range(500):
        tracker.searched(anna)
    assert time.monotonic() - fake_has_it < 2
    go.set()


def test_failures_reach_on_error_while_the_collector_hangs_and_never_on_the_callers_thread(
    fake, make_tracker, anna, eventually
):
    go, threads = threading.Event(), []
    fake.default = lambda request: go.wait(20) and accepted(request)
    tracker = make_tracker(
        fake.url, max_records=1, close_timeout=0, on_error=lambda _: threads.append(threading.current_thread())
    )
    tracker.searched(anna)
    tracker.searched(anna)
    eventually(lambda: threads)
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon
    go.set()


def test_an_on_error_that_fails_is_logged_once_and_harms_nobody(make_tracker, anna, caplog):
    def broken(failure):
        raise RuntimeError("secret")

    tracker = make_tracker(AWAY, max_records=1, on_error=broken, close_timeout=0)
    for _ in range(5):
        tracker.searched(anna)
    tracker.close()
    said = [record for record in caplog.records if "on_error itself failed with RuntimeError" in record.message]
    assert len(said) <= 1
    assert "secret" not in caplog.text
    assert tracker.counters().refused == 4


def test_on_error_may_track_and_close(make_tracker, anna, eventually):
    done = threading.Event()

    def on_error(failure):
        tracker.searched(anna)
        tracker.close()
        done.set()

    tracker = make_tracker(AWAY, max_records=1, on_error=on_error, close_timeout=0.2)
    tracker.searched(anna)
    tracker.searched(anna)
    assert done.wait(10)


def test_failures_say_nothing_of_the_record(make_tracker, anna):
    failures = []
    tracker = make_tracker(AWAY, on_error=failures.append, close_timeout=0)
    tracker.custom(anna, action="a", params={"name": "secret"}, salt="secret")
    tracker.close()
    [failure] = failures
    assert failure.record["client"] == {"email": "anna@example.com"}
    shown = repr(failure) + str(failure) + repr(failure.__rich_repr__())
    assert "secret" not in shown
    assert "anna" not in shown


def test_close_is_bounded_and_says_what_was_left(make_tracker, anna):
    failures = []
    tracker = make_tracker(AWAY, on_error=failures.append, close_timeout=0.1)
    receipt = tracker.searched(anna)
    started = time.monotonic()
    tracker.close()
    tracker.close()
    assert time.monotonic() - started < 2
    assert [failure.reason for failure in failures] == ["closed"]
    assert receipt.error.reason == "closed"
    assert not receipt.wait(5)


def test_a_record_tracked_after_close_fails_and_does_not_raise(fake, make_tracker, anna, eventually):
    failures = []
    tracker = make_tracker(fake.url, on_error=failures.append)
    tracker.close()
    assert tracker.searched(anna).error.reason == "closed"
    eventually(lambda: failures)
    counted = tracker.counters()
    assert (counted.tracked, counted.refused) == (1, 1)


def test_leaving_the_block_flushes(fake, anna):
    with Tracker(fake.url) as tracker:
        receipts = [tracker.searched(anna) for _ in range(100)]
    assert all(receipt.durable for receipt in receipts)


async def test_leaving_the_async_block_flushes_and_receipts_can_be_awaited(fake, anna):
    async with Tracker(fake.url) as tracker:
        receipts = [tracker.searched(anna) for _ in range(10)]
        assert all(await asyncio.gather(*(receipt.durably(10) for receipt in receipts)))
        assert await receipts[0].durably(0)
        assert await tracker.aflush()
    assert await tracker.searched(anna).durably(5) is False


async def test_awaiting_a_receipt_is_bounded(make_tracker, anna):
    tracker = make_tracker(AWAY, close_timeout=0)
    receipt = tracker.searched(anna)
    assert await receipt.durably(0.05) is False
    waiting = asyncio.create_task(receipt.durably(10))
    await asyncio.sleep(0)
    await tracker.aclose()
    assert await waiting is False


def test_a_disabled_tracker_checks_counts_and_drops(fake, make_tracker, anna, monkeypatch, eventually):
    monkeypatch.setenv("TILLPOST_DISABLED", "1")
    failures = []
    tracker = make_tracker(fake.url, on_error=failures.append)
    receipt = tracker.searched(anna)
    assert receipt.error.reason == "disabled"
    assert not receipt.wait(5)
    with pytest.raises(InvalidRecord):
        tracker.searched(anna, label="")
    counted = tracker.counters()
    assert (counted.tracked, counted.dropped) == (1, 1)
    eventually(lambda: [failure.reason for failure in failures] == ["disabled"])
    assert tracker.flush()
    assert fake.requests == []


def senders():
    """The threads of trackers, perhaps of other tests too."""
    return {thread for thread in threading.enumerate() if thread.name == "tillpost-tracker"}


def test_a_thousand_trackers_share_one_thread(fake, anna):
    before = senders()
    trackers = [Tracker(fake.url) for _ in range(1000)]
    assert senders() <= before, "no thread before the first record"
    receipts = [tracker.searched(anna) for tracker in trackers]
    assert len(senders() - before) == 1
    assert all(receipt.wait(10) for receipt in receipts)
    assert len(fake.requests) < 200
    for tracker in trackers:
        tracker.close()
    assert senders() <= before, "the last one out ends the thread"


def test_a_tracker_nobody_holds_any_more_still_sends(fake, anna, eventually):
    before = senders()

    def handle_one_request():
        Tracker(fake.url).searched(anna)

    for _ in range(5):
        handle_one_request()
    fake.wait_for(lambda: len(fake.records) == 5)
    eventually(lambda: senders() <= before)


def test_one_trackers_bounds_are_not_anothers(make_tracker, anna):
    small, large = (make_tracker(AWAY, max_records=size, close_timeout=0) for size in (1, 100))
    receipts = [small.searched(anna), small.searched(anna), large.searched(anna)]
    assert [receipt.error is None for receipt in receipts] == [True, False, True]


def clocks(fake):
    return [(wire.ClockHeader.decode(r.headers["tillpost-clock"]), numbers([r])) for r in fake.requests]


def test_a_request_says_how_the_clock_stood_and_which_times_were_given(fake, make_tracker, anna):
    clock = FrozenClock()
    fake.script.append(status(503))
    tracker = make_tracker(fake.url, clock=clock)
    for n, given in enumerate([0, 1, 1, 0, 1, 0]):
        moment = datetime(2026, 1, 1, tzinfo=UTC) if given else None
        tracker.custom(anna, action="a", params={"n": n}, time=moment)
    assert tracker.flush(10)
    for header, sent in clocks(fake):
        assert (header.boot, header.now_ms) == ("frozen", 60_000)
        assert header.offset_ms == clock.wall_ms() - 60_000
        assert [sent[at] for run in header.given for at in run] == [n for n in sent if n in (1, 2, 4)]


def test_a_clock_that_is_set_opens_a_new_request_and_one_that_drifts_does_not(fake, make_tracker, anna):
    clock = FrozenClock()
    fake.script.append(status(503))
    tracker = make_tracker(fake.url, clock=clock)
    start = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    for n, seconds in enumerate([0, 0.4, 3600, 3600.4, -5]):
        clock.set(start + timedelta(seconds=seconds))
        tracker.custom(anna, action="a", params={"n": n})
    assert tracker.flush(10)
    offsets = {n: header.offset_ms for header, sent in clocks(fake) for n in sent}
    assert offsets[0] == offsets[1]
    assert offsets[2] == offsets[3] == offsets[0] + 3_600_000
    assert offsets[4] == offsets[0] - 5_000
    for header, sent in clocks(fake):
        assert {offsets[n] for n in sent} == {header.offset_ms}


def test_time_is_stamped_at_the_call(fake, make_tracker, anna):
    clock = FrozenClock(datetime(2026, 5, 4, 12, 0, 0, 123_000, UTC))
    fake.script.append(status(503))
    tracker = make_tracker(fake.url, clock=clock)
    receipt = tracker.searched(anna)
    clock.advance(timedelta(hours=1))
    assert receipt.wait(10)
    assert {record["time"] for record in fake.records} == {receipt.time} == {"2026-05-04T12:00:00.123Z"}


def test_ten_thousand_records_survive_a_collector_that_goes_and_comes_twice(fake, make_tracker, anna):
    """In order per client, each one at least once, and copies byte for byte."""
    tracker = make_tracker(fake.url, max_records=20_000)
    clients = [Client(id=n) for n in range(4)]
    chance = random.Random(7)
    for n in range(10_000):
        if n in (2_000, 6_000):
            fake.stop()
        if n in (4_000, 8_000):
            fake.start()
        tracker.custom(chance.choice(clients), action="a", params={"n": n})
    assert tracker.flush(30)
    copies = {}
    for request in fake.requests:
        for record in request.records:
            copies.setdefault(record["params"]["n"], []).append(json.dumps(record))
    assert sorted(copies) == list(range(10_000))
    assert all(len(set(same)) == 1 for same in copies.values())
    first_seen = list(copies)
    assert first_seen == sorted(first_seen)


def test_threads_may_share_a_tracker(fake, make_tracker):
    tracker = make_tracker(fake.url)

    def work(client):
        for n in range(300):
            tracker.custom(client, action="a", params={"n": n})

    workers = [threading.Thread(target=work, args=(Client(id=n),)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert tracker.flush(10)
    for n in range(8):
        assert [r["params"]["n"] for r in fake.records if r["client"] == {"id": n}] == list(range(300))
    assert len({record["eventSalt"] for record in fake.records}) == 2400


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"target": "ftp://x"}, "target"),
        ({"target": "127.0.0.1:8787"}, "target"),
        ({"target": "http://"}, "target"),
        ({"target": "http://x:port"}, "target"),
        ({"target": "http://u:p@x"}, "target"),
        ({"target": "http://x/?a=1"}, "target"),
        ({"target": "unix://relative.sock"}, "target"),
        ({"target": 8787}, "target"),
        ({"target": object()}, "target"),
        ({"token": "a\nb"}, "token"),
        ({"token": "ż"}, "token"),
        ({"token": 7}, "token"),
        ({"on_error": "log"}, "on_error"),
        ({"max_records": 0}, "max_records"),
        ({"max_records": True}, "max_records"),
        ({"max_records": 1.5}, "max_records"),
        ({"max_bytes": "16 miles"}, "max_bytes"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": True}, "max_bytes"),
        ({"when_full": "drop"}, "when_full"),
        ({"block_for": -1}, "block_for"),
        ({"block_for": "1s"}, "block_for"),
        ({"close_timeout": float("inf")}, "close_timeout"),
        ({"close_timeout": float("nan")}, "close_timeout"),
    ],
)
def test_wrong_options_are_refused_when_the_tracker_is_made(arguments, field):
    with pytest.raises(InvalidRecord, match=rf"^{field}: ") as refused:
        Tracker(**arguments)
    assert refused.value.field == field


class Embedded:
    """A collector in this process."""

    def __init__(self):
        self.started, self.requests, self.error = 0, [], None

    def start(self):
        self.started += 1
        if self.error:
            raise self.error

    def receive(self, path, body, headers, timeout):
        assert timeout > 0
        self.requests.append((path, json.loads(body), dict(headers)))
        return 202, {"Tillpost-Accepted": str(len(self.requests[-1][1]))}, b""


def test_an_embedded_collector_is_started_by_the_first_record_and_called(make_tracker, anna):
    collector = Embedded()
    tracker = make_tracker(collector)
    assert collector.started == 0
    assert tracker.searched(anna).wait(10)
    assert tracker.searched(anna).wait(10)
    assert collector.started == 1
    assert [path for path, _, _ in collector.requests] == ["/v4/events/batch"] * 2
    assert wire.CLOCK_HEADER in collector.requests[0][2]


def test_an_embedded_collector_that_cannot_start_is_reported_once_and_the_records_wait(make_tracker, anna, eventually):
    class BufferInUse(Exception):
        pass

    collector, failures = Embedded(), []
    collector.error = BufferInUse("the buffer is held by process 7: use the sidecar")
    tracker = make_tracker(collector, on_error=failures.append)
    receipt = tracker.searched(anna)
    eventually(lambda: collector.started >= 3)
    [failure] = failures
    assert failure.reason == "refused"
    assert "BufferInUse" in failure.message
    assert "use the sidecar" in failure.message
    assert failure.kept
    assert failure.record["eventSalt"] == receipt.salt
    assert tracker.counters().waiting == 1
    collector.error = None
    assert receipt.wait(10)


def test_an_embedded_collector_that_breaks_keeps_the_records(make_tracker, anna):
    collector = Embedded()
    healthy, broken = collector.receive, iter([True, True])

    def receive(*arguments):
        if next(broken, False):
            raise RuntimeError("secret")
        return healthy(*arguments)

    collector.receive = receive
    assert make_tracker(collector).searched(anna).wait(10)


def test_trackers_tell_the_log_no_secrets(fake, make_tracker, anna, caplog):
    with caplog.at_level(logging.DEBUG):
        fake.script.extend([status(401), lost, error_400(("[0].client.email", "is bad"))])
        tracker = make_tracker(fake.url, token="s3cret")
        tracker.searched(anna).wait(10)
        tracker.close()
    assert "s3cret" not in caplog.text
    assert "anna" not in caplog.text
