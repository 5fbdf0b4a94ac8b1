"""The buffer's tables: numbered SQL files, applied in order, each with its number in one transaction."""

import sqlite3
from importlib import resources

from collector.crashpoints import reach

APPLICATION_ID = 0x54505354
"""``TPST``: tells our files from another application's."""


def versions() -> list[tuple[int, str]]:
    """Every migration as (number, SQL), oldest first."""
    files = (file for file in resources.files(__name__).iterdir() if file.name.endswith(".sql"))
    return sorted((int(file.name.removesuffix(".sql")), file.read_text("utf-8")) for file in files)


def newest() -> int:
    """The schema version this release writes."""
    return versions()[-1][0]


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the file to the newest version; a kill in the middle leaves the version it had."""
    for number, script in versions():
        if number <= conn.execute("PRAGMA user_version").fetchone()[0]:
            continue
        conn.execute("BEGIN IMMEDIATE")
        try:
            # executescript would commit first and so split the change from its note
            for statement in _statements(script):
                conn.execute(statement)
            conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            conn.execute(f"PRAGMA user_version = {number}")
            reach("migrating")
            conn.execute("COMMIT")
        except BaseException:
            conn.execute("ROLLBACK")
            raise


def _statements(script: str) -> list[str]:
    statements, lines = [], []
    for line in script.splitlines():
        lines.append(line)
        text = "\n".join(lines)
        if sqlite3.complete_statement(text):
            statements.append(text)
            lines.clear()
    return statements
