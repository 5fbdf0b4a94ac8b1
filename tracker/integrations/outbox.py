"""A transactional outbox: for those who need the sale and its event to be one.

A record goes into a table of the application's own database, in the transaction of the sale: both are there or
neither. Afterwards `drain` hands what is in the table to the collector, and deletes a row only once the collector
has it on its disk. Time and salt were fixed with the sale, so what is handed over twice, after a crash between
the two, is counted once.

Works with any DB-API connection, Django's and SQLAlchemy's included; see docs/integrations/outbox.md.
"""

import logging
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, Protocol

from tracker import salt, wire
from tracker.errors import InvalidRecord
from tracker.receipt import Receipt
from tracker.record import Record
from tracker.tracker import Tracker

__all__ = ["Connection", "Drained", "Outbox"]

log: logging.Logger = logging.getLogger(__name__)

ParamStyle = Literal["qmark", "format", "pyformat", "numeric"]

_MARKS: Final[dict[str, Callable[[int], str]]] = {
    "qmark": lambda _: "?",
    "format": lambda _: "%s",
    "pyformat": lambda _: "%s",
    "numeric": lambda at: f":{at}",
}
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?", re.ASCII)
_PATHS: Final = {"events": wire.EVENTS_BATCH, "transactions": wire.TRANSACTIONS_BATCH}
_KINDS: Final = {path: kind for kind, path in _PATHS.items()}
_ROWS: Final = 500
_PATIENCE_S: Final = 1.0  # of `run`, so that it stops soon; what is on its way then is waited for the next time


class Connection(Protocol):
    """What is used of a DB-API connection (PEP 249)."""

    def cursor(self) -> Any:
        """A cursor with `execute`, `executemany`, `fetchall` and `close`."""
        ...

    def commit(self) -> object:
        """Ends the transaction."""
        ...


class Drained(NamedTuple):
    """What one `drain` did."""

    handed_over: int
    """Rows deleted: the collector has these records on its disk."""
    refused: int
    """Rows marked: the collector refused these records, and the column ``error`` says why."""
    complete: bool
    """False when rows are left for next time: the collector is away or full."""


class Outbox:
    """A table of records waiting to be handed to the collector.

    Args:
        tracker: hands them over; its `before_record` and `redact` apply when they are added.
        table: its name.
        paramstyle: that of the database driver: ``sqlite3.paramstyle``, ``psycopg.paramstyle``; Django: ``format``.
    """

    def __init__(self, tracker: Tracker, *, table: str = "tillpost_outbox", paramstyle: ParamStyle = "qmark") -> None:
        if not isinstance(table, str) or not _TABLE.fullmatch(table):
            raise InvalidRecord("table", "must be the plain name of a table, or schema.table", table)
        if paramstyle not in _MARKS:
            raise InvalidRecord("paramstyle", f"must be one of {', '.join(_MARKS)}", paramstyle)
        mark = _MARKS[paramstyle]
        self._tracker = tracker
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._handed: dict[str, Receipt] = {}
        self.create_table: str = (
            f"CREATE TABLE IF NOT EXISTS {table} "
            "(id VARCHAR(36) PRIMARY KEY, kind VARCHAR(16) NOT NULL, body TEXT NOT NULL, error TEXT)"
        )
        """The statement that makes the table, for a migration. MySQL: make ``body`` MEDIUMTEXT."""
        # the table's name is checked above; everything else is a parameter
        self._insert = f"INSERT INTO {table} (id, kind, body) VALUES ({mark(1)}, {mark(2)}, {mark(3)})"  # noqa: S608
        self._select = (
            f"SELECT id, kind, body FROM {table} WHERE error IS NULL AND id > {mark(1)} ORDER BY id LIMIT {_ROWS}"  # noqa: S608
        )
        self._delete = f"DELETE FROM {table} WHERE id = {mark(1)}"  # noqa: S608
        self._mark = f"UPDATE {table} SET error = {mark(1)} WHERE id = {mark(2)}"  # noqa: S608

    def add(self, connection: Connection, record: Record) -> str | None:
        """Stores a record in the transaction that is open on `connection`, stamped; returns its salt.

        None when the tracker's `before_record` dropped it. Raises `InvalidRecord` when no transaction is open, as
        far as the connection tells (sqlite3, Django), and whatever the database raises.
        """
        if _commits_alone(connection):
            raise InvalidRecord(
                "connection", "commits every statement by itself: begin a transaction, so that sale and event are one"
            )
        receipt = self._tracker._stamped(record)
        if receipt.error is not None:
            return None
        key = salt.fresh(self._tracker._sender.stamper.clock.wall_ms())
        _run(connection, self._insert, (key, _KINDS[receipt._path], receipt._body.decode()))
        return receipt.salt

    def drain(self, connection: Connection, *, timeout: float = 10.0) -> Drained:
        """Hands over what is in the table, oldest first, and deletes what became durable within `timeout` seconds.

        No transaction is open while the collector is waited for. A crash at any point, and several processes that
        drain at the same time, do no harm: a record that is handed over twice is counted once.
        """
        deadline = monotonic() + timeout
        handed_over = refused = 0
        after, complete = "", False
        with self._lock:
            if self._pid != os.getpid():  # what the parent handed over is the parent's to wait for
                self._pid, self._handed = os.getpid(), {}
            while not complete:
                rows = _run(connection, self._select, (after,))
                connection.commit()
                receipts = self._hand_over(rows)
                for receipt in receipts.values():
                    receipt.wait(deadline - monotonic())
                durable = [key for key, receipt in receipts.items() if receipt.durable]
                wrong = {
                    key: receipt.error.message
                    for key, receipt in receipts.items()
                    if receipt.error is not None and receipt.error.reason == "refused"
                }
                if durable or wrong:
                    _run_many(connection, self._delete, [(key,) for key in durable])
                    _run_many(connection, self._mark, [(why, key) for key, why in wrong.items()])
                    connection.commit()
                self._handed = {
                    key: receipt
                    for key, receipt in receipts.items()
                    if not receipt.durable and receipt.error is None  # still on its way: not handed over again
                }
                handed_over += len(durable)
                refused += len(wrong)
                if len(durable) + len(wrong) < len(rows):
                    break
                complete = len(rows) < _ROWS
                after = rows[-1][0] if rows else after
        return Drained(handed_over, refused, complete)

    def run(self, connect: Callable[[], Any], stop: threading.Event, *, every: float = 1.0) -> None:
        """Drains every so many seconds until `stop` is set: for a thread, or a process of its own.

        `connect` makes the connection; again when the database was away.
        """
        connection: Any = None
        troubled = False
        while not stop.is_set():
            try:
                connection = connection or connect()
                self.drain(connection, timeout=_PATIENCE_S)
                troubled = False
            except Exception as error:  # the rows are safe where they are: try again
                if not troubled:
                    log.warning("the outbox cannot be drained: %s", type(error).__name__)
                troubled = True
                _close(connection)
                connection = None
            stop.wait(every)
        _close(connection)

    def _hand_over(self, rows: list[Any]) -> dict[str, Receipt]:
        """Receipts of as many rows as fit into the tracker's memory, by key."""
        receipts: dict[str, Receipt] = {}
        account = self._tracker._account
        for key, kind, body in rows:
            receipt = self._handed.get(key)
            if receipt is None:
                stamped = body.encode() if isinstance(body, str) else bytes(body)
                if receipts and not account.has_room(len(stamped)):
                    break
                receipt = self._tracker._resend(_PATHS[kind], stamped)
            receipts[key] = receipt
        return receipts


def _commits_alone(connection: Any) -> bool:
    if getattr(connection, "in_atomic_block", None) is False:  # Django
        return True
    return getattr(connection, "isolation_level", "") is None and getattr(connection, "in_transaction", None) is False


def _run(connection: Connection, statement: str, values: tuple[Any, ...]) -> list[Any]:
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values)
        return list(cursor.fetchall()) if cursor.description else []
    finally:
        cursor.close()


def _run_many(connection: Connection, statement: str, values: list[tuple[Any, ...]]) -> None:
    if values:
        cursor = connection.cursor()
        try:
            cursor.executemany(statement, values)
        finally:
            cursor.close()


def _close(connection: Any) -> None:
    if connection is not None:
        with suppress(Exception):
            connection.close()
