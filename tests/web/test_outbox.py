"""The transactional outbox: real SQLite files, real processes killed with SIGKILL, the strict API at the end."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from collector.pytest_plugin import RunningCollector
from tracker import Client, InvalidRecord, Money, Product, Tracker, Transaction
from tracker.events import Registered
from tracker.integrations.outbox import Drained, Outbox

from .conftest import needs
from .servers import ROOT, eventually

ANNA = Client(email="anna@example.com")
NOBODY_LISTENS = "http://127.0.0.1:9"

SHOP = """
import os, signal, sqlite3, sys
from tracker import Client, Money, Product, Tracker, Transaction
from tracker.integrations.outbox import Outbox

path, url, die_at = sys.argv[1:]
client = Client(email="anna@example.com")

class Mortal:
    '''A connection whose process dies when it is about to execute a certain statement.'''
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        return getattr(self.real, name)
    def commit(self):
        if die_at == "COMMIT":
            os.kill(os.getpid(), signal.SIGKILL)
        self.real.commit()
    def cursor(self):
        cursor = self.real.cursor()
        class Watched:
            description = property(lambda _: cursor.description)
            def __getattr__(self, name):
                return getattr(cursor, name)
            def executemany(self, statement, values):
                if statement.startswith(die_at):
                    os.kill(os.getpid(), signal.SIGKILL)
                return cursor.executemany(statement, values)
        return Watched()

connection = Mortal(sqlite3.connect(path))
outbox = Outbox(Tracker(url))
def sell(number):
    connection.execute("INSERT INTO sales VALUES (?)", (number,))
    outbox.add(connection, Transaction(
        client, order_id=str(number), payment_method="CASH", source="POS",
        products=[Product(sku="A", name="Tea", quantity=1, final_unit_price=Money("12.50", "PLN"))]))
"""


def sale(order: int) -> Transaction:
    tea = Product(sku="A", name="Tea", quantity=1, final_unit_price=Money("12.50", "PLN"))
    return Transaction(ANNA, order_id=str(order), payment_method="CASH", source="POS", products=[tea])


def shop(path: Path, url: str, die_at: str, work: str) -> int:
    """Runs the shop in a process of its own; how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", SHOP + work, path, url, die_at], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("CREATE TABLE sales (number INTEGER)")
    connection.execute(Outbox(Tracker(NOBODY_LISTENS)).create_table)
    connection.commit()
    yield connection
    connection.close()


def rows(database: sqlite3.Connection) -> int:
    return database.execute("SELECT count(*) FROM tillpost_outbox").fetchone()[0]


def orders(records: list[dict[str, object]]) -> list[str]:
    return sorted(str(record["orderId"]) for record in records)


def test_a_sale_and_its_event_are_there_together_or_not_at_all(
    database: sqlite3.Connection, tillpost_collector: RunningCollector
) -> None:
    with tillpost_collector.tracker() as tracker:
        outbox = Outbox(tracker)
        with database:
            database.execute("INSERT INTO sales VALUES (1)")
            outbox.add(database, sale(1))
        with pytest.raises(ZeroDivisionError), database:
            database.execute("INSERT INTO sales VALUES (2)")
            outbox.add(database, sale(2))
            1 / 0  # noqa: B018  the sale fails and is rolled back
        assert (database.execute("SELECT count(*) FROM sales").fetchone()[0], rows(database)) == (1, 1)
        assert outbox.drain(database) == Drained(1, 0, complete=True)
    assert orders(tillpost_collector.delivered(at_least=1)) == ["1"]
    assert rows(database) == 0


def test_a_crash_between_handing_over_and_deleting_counts_nothing_twice(
    database: sqlite3.Connection, tmp_path: Path, tillpost_collector: RunningCollector
) -> None:
    work = "\nfor number in range(20):\n    sell(number)\nconnection.real.commit()\nprint(outbox.drain(connection))"
    assert shop(tmp_path / "shop.db", tillpost_collector.url, "DELETE", work) == -signal.SIGKILL
    first = tillpost_collector.delivered(at_least=20)
    assert rows(database) == 20, "the process died before it deleted a row"
    with tillpost_collector.tracker() as tracker:
        assert Outbox(tracker).drain(database) == Drained(20, 0, complete=True)
    assert tillpost_collector.delivered(at_least=20) == first
    assert orders(first) == sorted(str(number) for number in range(20))
    upstream = tillpost_collector.upstream
    assert (upstream.overwritten, upstream.altered, rows(database)) == (20, 0, 0)


def test_a_crash_before_the_commit_leaves_neither_sale_nor_event(
    database: sqlite3.Connection, tmp_path: Path, tillpost_collector: RunningCollector
) -> None:
    assert shop(tmp_path / "shop.db", NOBODY_LISTENS, "COMMIT", "\nsell(1)\nconnection.commit()") == -signal.SIGKILL
    assert (database.execute("SELECT count(*) FROM sales").fetchone()[0], rows(database)) == (0, 0)


def test_a_crash_after_the_commit_leaves_the_event_to_the_next_process(
    database: sqlite3.Connection, tmp_path: Path, tillpost_collector: RunningCollector
) -> None:
    work = "\nsell(1)\nconnection.real.commit()\nos.kill(os.getpid(), signal.SIGKILL)"
    assert shop(tmp_path / "shop.db", NOBODY_LISTENS, "-", work) == -signal.SIGKILL
    with tillpost_collector.tracker() as tracker:
        assert Outbox(tracker).drain(database).handed_over == 1
    assert orders(tillpost_collector.delivered(at_least=1)) == ["1"]


def test_while_the_collector_is_away_rows_stay_and_are_not_handed_over_again_and_again(
    database: sqlite3.Connection, tillpost_collector: RunningCollector
) -> None:
    with Tracker(NOBODY_LISTENS, close_timeout=0) as tracker:
        away = Outbox(tracker)
        with database:
            for number in range(10):
                away.add(database, sale(number))
        for _ in range(3):
            assert away.drain(database, timeout=0.01) == Drained(0, 0, complete=False)
        assert tracker.counters().tracked == 10, "once each, however often it was tried"
        assert rows(database) == 10
    with tillpost_collector.tracker() as tracker:
        assert Outbox(tracker).drain(database) == Drained(10, 0, complete=True)
    assert len(tillpost_collector.delivered(at_least=10)) == 10


def test_more_rows_than_the_tracker_has_room_for_are_handed_over_in_portions(
    database: sqlite3.Connection, tillpost_collector: RunningCollector
) -> None:
    failures: list[object] = []
    with tillpost_collector.tracker(max_records=50, on_error=failures.append) as tracker:
        outbox = Outbox(tracker)
        with database:
            for number in range(130):
                outbox.add(database, sale(number))
        while not outbox.drain(database).complete:
            assert not failures
    assert len(tillpost_collector.delivered(at_least=130)) == 130


def test_what_the_collector_refuses_stays_in_the_table_with_the_reason(
    database: sqlite3.Connection, tillpost_collector: RunningCollector
) -> None:
    eventually(lambda: tillpost_collector.collector.status()["clock"]["synchronised"])
    with tillpost_collector.tracker() as tracker:
        outbox = Outbox(tracker)
        with database:
            outbox.add(database, Registered(ANNA, time=datetime.now(UTC) + timedelta(days=30)))
            outbox.add(database, sale(2))
        assert outbox.drain(database) == Drained(1, 1, complete=True)
        assert outbox.drain(database) == Drained(0, 0, complete=True)
    [(error,)] = database.execute("SELECT error FROM tillpost_outbox").fetchall()
    assert "time" in error


def test_time_and_salt_are_those_of_the_sale_and_not_of_the_handing_over(
    database: sqlite3.Connection, tillpost_collector: RunningCollector
) -> None:
    with tillpost_collector.tracker() as tracker:
        outbox = Outbox(tracker)
        before = datetime.now(UTC)
        with database:
            salt = outbox.add(database, sale(1))
        after = datetime.now(UTC)
        outbox.drain(database)
    [record] = tillpost_collector.delivered(at_least=1)
    assert record["eventSalt"] == salt
    millisecond = timedelta(milliseconds=1)
    assert before - millisecond <= datetime.fromisoformat(record["recordedAt"]) <= after


def test_a_connection_that_commits_every_statement_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "auto.db", isolation_level=None)
    outbox = Outbox(Tracker(NOBODY_LISTENS))
    connection.execute(outbox.create_table)
    with pytest.raises(InvalidRecord, match="begin a transaction"):
        outbox.add(connection, sale(1))
    connection.execute("BEGIN")
    assert outbox.add(connection, sale(1))
    connection.execute("ROLLBACK")
    connection.close()


def test_the_hook_and_the_redaction_of_the_tracker_apply_when_a_record_is_added(database: sqlite3.Connection) -> None:
    tracker = Tracker(
        NOBODY_LISTENS, before_record=lambda record: None if record.label == "no" else record, redact=["phone"]
    )
    outbox = Outbox(tracker)
    with database:
        assert outbox.add(database, Registered(ANNA, label="no")) is None
        assert outbox.add(database, Registered(ANNA, params={"phone": "1", "shop": "7"}))
    [(body,)] = database.execute("SELECT body FROM tillpost_outbox").fetchall()
    assert '"shop"' in body
    assert "phone" not in body


def test_a_loop_drains_until_it_is_told_to_stop_also_when_the_database_was_away(
    database: sqlite3.Connection, tmp_path: Path, tillpost_collector: RunningCollector
) -> None:
    attempts: list[None] = []

    def connect() -> sqlite3.Connection:
        attempts.append(None)
        if len(attempts) == 1:
            raise sqlite3.OperationalError("away")
        return sqlite3.connect(tmp_path / "shop.db")

    with tillpost_collector.tracker() as tracker:
        outbox, stop = Outbox(tracker), threading.Event()
        loop = threading.Thread(target=outbox.run, args=(connect, stop), kwargs={"every": 0.01})
        loop.start()
        for number in range(3):
            with database:
                outbox.add(database, sale(number))
        eventually(lambda: rows(database) == 0)
        stop.set()
        loop.join(10)
        assert not loop.is_alive()
    assert orders(tillpost_collector.delivered(at_least=3)) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "field"), [({"table": "a; DROP"}, "table"), ({"paramstyle": "qm"}, "paramstyle")]
)
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRecord, match=field):
        Outbox(Tracker(NOBODY_LISTENS), **arguments)  # type: ignore[arg-type]


DJANGO = """
import sys, django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}})
django.setup()
from django.db import connection, transaction
from tracker import Client, InvalidRecord, Tracker
from tracker.events import Registered
from tracker.integrations.outbox import Outbox

with Tracker(sys.argv[2]) as tracker:
    outbox = Outbox(tracker, paramstyle="format")
    anna = Client(email="anna@example.com")
    try:
        outbox.add(connection, Registered(anna))
    except InvalidRecord as error:
        assert "begin a transaction" in str(error)
    with transaction.atomic():
        outbox.add(connection, Registered(anna, params={"n": 1}))
    try:
        with transaction.atomic():
            outbox.add(connection, Registered(anna, params={"n": 2}))
            raise LookupError
    except LookupError:
        pass
    print(*outbox.drain(connection))
"""


def test_djangos_connection_serves_as_it_is(
    database: sqlite3.Connection, tmp_path: Path, tillpost_collector: RunningCollector
) -> None:
    needs("django")
    program = [sys.executable, "-c", DJANGO, str(tmp_path / "shop.db"), tillpost_collector.url]
    done = subprocess.run(program, cwd=ROOT, timeout=60, capture_output=True, text=True, env=os.environ)
    assert done.stdout.split() == ["1", "0", "True"], done.stderr
    assert [record["params"]["n"] for record in tillpost_collector.delivered(at_least=1)] == [1]
