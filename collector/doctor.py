"""``tillpost doctor``: everything that can be found wrong before it costs records, one finding a check.

Nothing is changed: no file is made, no record sent. Here is what this machine alone can tell;
``doctor_upstream.py`` asks the upstream.
"""

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from collector.config import Config, ConfigError
from collector.database import OLDEST
from collector.examine import examine
from collector.files import BufferInUse, FileLock, beside
from collector.place import concern, file_system, folder_of, free_bytes
from collector.quarantine import Quarantine
from collector.secret import Secret, SecretUnavailable
from collector.settings import Settings

Status = Literal["ok", "warning", "failed", "skipped"]

WAL_RESET_FIXED: Final = (3, 51, 3)
WAL_RESET_BACKPORTED: Final = ((3, 44, 6), (3, 50, 7))
"""Earlier releases that got the fix too."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found."""

    name: str
    status: Status
    text: str
    advice: str = ""
    """What to do about it; empty where there is nothing to do."""
    code: int = 1
    """How the command ends when this failed."""


def machine(settings: Settings, uid: int | None = None) -> Iterator[Finding]:
    """What this machine alone can tell. `uid`: whom the files should belong to, by default ourselves."""
    config = settings.config
    path = Path(config.buffer.path).absolute()
    yield _configuration(settings)
    yield _secrets(settings)
    yield _files(path, os.getuid() if uid is None and hasattr(os, "getuid") else uid)
    yield _disk(config, path)
    yield sqlite_finding(sqlite3.sqlite_version_info)
    yield _buffer(path)


def _configuration(settings: Settings) -> Finding:
    try:
        settings.check()
    except ConfigError as error:
        return Finding("configuration", "failed", str(error), "`tillpost config` shows each value and its source", 2)
    files = sorted({found.source for found in settings.values.values() if found.rank == 1})
    return Finding(
        "configuration", "ok", f"read from {', '.join(files)}" if files else "no file; defaults, environment and flags"
    )


def _named(settings: Settings) -> list[Secret]:
    found = (getattr(settings.secrets, name) for name in type(settings.secrets).__struct_fields__)
    return [secret for secret in found if secret is not None]


def _secrets(settings: Settings) -> Finding:
    named = _named(settings)
    if not named:
        return Finding("secrets", "skipped", "none is named")
    for secret in named:
        try:
            secret()
        except SecretUnavailable as error:
            return Finding("secrets", "failed", str(error), "a collector starts all the same and keeps what it takes; "
                           "put the file right and send SIGHUP")  # fmt: skip
    files = [Path(secret.file) for secret in named if secret.file]
    if open_ones := [str(file) for file in files if os.name == "posix" and file.stat().st_mode & 0o077]:
        return Finding("secrets", "warning", f"others may read {', '.join(open_ones)}",
                       f"chmod 600 {' '.join(open_ones)}")  # fmt: skip
    return Finding("secrets", "ok", ", ".join(f"{secret.name} ({secret.source})" for secret in named))


def _files(path: Path, uid: int | None) -> Finding:
    """Who may write where the collector writes, and read what only it should read."""
    folder = folder_of(path)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("files", "failed", f"{folder} cannot be written to",
                       "give the folder to the collector's user, or name another file with --buffer", 4)  # fmt: skip
    ours = [file for file in (path, *(beside(path, suffix) for suffix in ("-wal", ".lock", ".mark", ".ballast")))
            if file.exists()]  # fmt: skip
    if denied := [str(file) for file in ours if not os.access(file, os.R_OK | os.W_OK)]:
        return Finding("files", "failed", f"no permission for {', '.join(denied)}",
                       "run this as the collector's user, or chown them to it", 4)  # fmt: skip
    if os.name == "posix":
        if foreign := [str(file) for file in ours if uid is not None and file.stat().st_uid != uid]:
            return Finding("files", "warning", f"belong to another user: {', '.join(foreign)}",
                           "run this as the collector's user, or chown them to it")  # fmt: skip
        if seen := [str(file) for file in ours if file.stat().st_mode & 0o077]:
            return Finding("files", "warning", f"others may read {', '.join(seen)}", f"chmod 600 {' '.join(seen)}")
        if ours and stat.S_IMODE(folder.stat().st_mode) & 0o022 and not folder.stat().st_mode & stat.S_ISVTX:
            return Finding("files", "warning", f"others may write to {folder}", f"chmod 700 {folder}")
    there = f"{len(ours)} files of the buffer, private" if ours else "nothing there yet"
    return Finding("files", "ok", f"{folder} is writable; {there}")


def _disk(config: Config, path: Path) -> Finding:
    free, cap, kind = free_bytes(path), config.buffer.max_size, file_system(path)
    if (feared := concern(kind)) is not None:
        return Finding("disk", "warning", *feared)
    if free < cap:
        return Finding("disk", "warning", f"{_gib(free)} are free, buffer.max_size is {_gib(cap)}: "
                       "the disk is full before the buffer is", "free space, or lower buffer.max_size")  # fmt: skip
    return Finding("disk", "ok", f"{_gib(free)} free for at most {_gib(cap)}{f' on {kind}' if kind else ''}")


def sqlite_finding(version: tuple[int, ...]) -> Finding:
    """Whether this SQLite will do, and which of its known bugs matter here."""
    said = ".".join(map(str, version))
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding("sqlite", "failed", f"{said} is too old", f"use a Python with SQLite {oldest} or later", 4)
    fixed = version >= WAL_RESET_FIXED or any(
        version[:2] == backport[:2] and version >= backport for backport in WAL_RESET_BACKPORTED
    )
    if fixed:
        return Finding("sqlite", "ok", said)
    return Finding("sqlite", "ok", f"{said} can lose commits when two programs write to one file (fixed in 3.51.3): "
                   "Tillpost keeps the file to itself", "let nothing else open the buffer")  # fmt: skip


def _buffer(path: Path) -> Finding:
    found = examine(path)
    holder = ""
    try:
        FileLock.probe(path)
    except BufferInUse as error:
        holder = f"; process {error.pid} runs on it" if error.pid else "; another process runs on it"
    status: Status = "ok" if found.verdict in ("sound", "absent") else "failed"
    if found.verdict == "unexamined":
        status = "warning"
    text, advice = found.text + holder, found.advice
    if status == "ok" and (kept := Quarantine(path).files()):
        advice = (
            f"{kept[0].parent} holds an earlier damaged file, and people's records: delete it when it is not needed"
        )
    return Finding("buffer", status, text, advice, 4 if found.verdict == "unusable" else 1)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def exit_code(findings: list[Finding]) -> int:
    """0 when nothing failed; else 2 for the configuration, 4 for an unusable buffer, 1 for the rest."""
    failed = {finding.code for finding in findings if finding.status == "failed"}
    return next((code for code in (2, 4, 1) if code in failed), 0)
