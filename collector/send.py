"""``tillpost send``: JSON Lines into a collector, once, however often it is interrupted.

A file is read in windows of up to 500 lines or 1 MB. A window is confirmed when every record of it
is on the collector's disk or stands in the rejects; only then the progress file moves past it. What
a crash repeats goes out as the same bytes (times and salts depend on the file alone), and the
upstream overwrites it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol

import msgspec

from collector.lines import Lines, RecordKind, Rejected
from collector.post import Post
from tracker.time import format_ms

WINDOW_LINES: Final = 500
WINDOW_BYTES: Final = 1_000_000


class SendFailed(Exception):
    """Sending cannot go on; the message says why and what to do. What was confirmed stays confirmed."""


class Progress(msgspec.Struct):
    """``FILE.tillpost``: how far a file is confirmed, and what must stay the same when it is taken up again."""

    offset: int = 0
    digest: str = ""
    """Of the first ``offset`` bytes, so that a changed file is noticed."""
    lines: int = 0
    sent: int = 0
    rejected: int = 0
    given_time: str | None = None
    """``--default-time`` as given, perhaps ``now``; ``default_time`` is the time it stood for."""
    default_time: str | None = None
    to: str = ""
    rejects_bytes: int = 0
    """Lengths of the rejects files; what a crash left beyond them is written again."""
    reasons_bytes: int = 0


class Totals(msgspec.Struct):
    """What came of all files together."""

    sent: int = 0
    already: int = 0
    rejected: int = 0
    seconds: float = 0.0


class Display(Protocol):
    """What a person sees of it: `total` and `done` are bytes for lines of a file, else records."""

    def start(self, name: str, total: int | None, done: int, count: int, unit: str = "lines") -> None: ...

    def advance(self, done: int, count: int) -> None: ...

    def note(self, text: str) -> None: ...


class Pace:
    """Keeps an average of records a second; None: as fast as the collector takes them."""

    def __init__(self, rate: float | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.rate = rate
        self._sleep = sleep
        self._due = 0.0

    @property
    def window(self) -> int:
        """Lines at a time: about a second's worth, so that a slow rate is not a burst a minute."""
        return WINDOW_LINES if self.rate is None else max(1, min(WINDOW_LINES, int(self.rate)))

    def wait(self, count: int) -> None:
        """Returns when the next ``count`` records are due."""
        if self.rate is None:
            return
        now = time.monotonic()
        if self._due > now:
            self._sleep(self._due - now)
        self._due = max(self._due, now) + count / self.rate


class Sender:
    """Sends files one after the other through one `Post`.

    ``default_time``: ISO 8601 or ``now``, for lines without a time; None refuses those lines.
    """

    def __init__(self, post: Post, display: Display, pace: Pace, default_time: str | None = None) -> None:
        self.totals = Totals()
        self._post = post
        self._display = display
        self._pace = pace
        self._default_time = default_time

    def send_file(self, path: Path) -> None:
        """Sends what of a file is not confirmed yet. Raises SendFailed, NotACollector, OSError."""
        if not path.is_file():  # a pipe
            with path.open("rb") as file:
                self.send_stream(file, path.name)
            return
        keeper = _Keeper(path)
        progress = keeper.load()
        self._agree(path, progress)
        self.totals.already += progress.sent
        self.totals.rejected += progress.rejected
        with path.open("rb") as file, _Rejects(path, progress) as rejects:
            run = _Run(progress, rejects, keeper)
            size = os.fstat(file.fileno()).st_size
            run.skip(file, path, is_whole=size == progress.offset)
            self._display.start(str(path), size, progress.offset, progress.lines)
            self._send(file, run)

    def send_stream(self, file: IO[bytes], name: str = "stdin") -> None:
        """Sends what comes, which cannot be taken up again. Raises SendFailed, NotACollector, OSError."""
        progress = Progress(default_time=_resolved(self._default_time))
        with _Rejects(Path(name), progress) as rejects:
            self._display.start(name, None, 0, 0)
            self._send(file, _Run(progress, rejects, None))

    def _agree(self, path: Path, progress: Progress) -> None:
        """Settles what an earlier run fixed: the time of lines without one, and who confirmed."""
        given = self._default_time
        if not progress.offset:
            progress.given_time, progress.default_time = given, _resolved(given)
        elif given not in (None, progress.given_time):
            raise SendFailed(
                f"{path}: begun with --default-time {progress.given_time or '(none)'}; give the same, "
                f"or remove {path}.tillpost to send all of it anew"
            )
        if progress.to not in ("", self._post.url):
            self._display.note(
                f"{path}: {progress.lines} lines were confirmed by {progress.to} and are not sent again; "
                f"to send all of it to {self._post.url}, remove {path}.tillpost"
            )
        progress.to = self._post.url

    def _send(self, file: IO[bytes], run: "_Run") -> None:
        for window in _windows(file, self._pace.window):
            records, refused = run.read(window)
            for kind, group in records.items():
                self._pace.wait(len(group))
                reasons = self._post.deliver(kind, [line.record for line in group])
                refused += (Refused(group[i].number, group[i].raw, reason) for i, reason in reasons.items())
                run.progress.sent += len(group) - len(reasons)
                self.totals.sent += len(group) - len(reasons)
            self.totals.rejected += len(refused)
            run.confirm(window, refused)
            self._display.advance(run.progress.offset, run.progress.lines)


class Line(NamedTuple):
    """A line that is a record: its number, its own bytes, and those that are sent."""

    number: int
    raw: bytes
    record: bytes


class Refused(NamedTuple):
    """A line that is none, or that the collector refused."""

    number: int
    raw: bytes
    reason: str


class _Run:
    """One file on its way."""

    def __init__(self, progress: Progress, rejects: "_Rejects", keeper: "_Keeper | None") -> None:
        self.progress = progress
        self._lines = Lines(progress.default_time)
        self._digest = blake2b(digest_size=16)
        self._rejects = rejects
        self._keeper = keeper

    def skip(self, file: IO[bytes], path: Path, *, is_whole: bool) -> None:
        """Reads over what is confirmed. Raises SendFailed when it is not what was confirmed."""
        left = self.progress.offset
        while left > 0 and (raw := file.read(min(left, 2**20)) if is_whole else file.readline()):
            self._digest.update(raw)
            if not is_whole and (line := _strip(raw, is_first=left == self.progress.offset)):
                with contextlib.suppress(Rejected):
                    self._lines.read(line)  # what follows may repeat it
            left -= len(raw)
        if left != 0 or (self.progress.offset and self._digest.hexdigest() != self.progress.digest):
            raise SendFailed(
                f"{path}: changed since its first {self.progress.lines} lines were confirmed; "
                f"give the new content another name, or remove {path}.tillpost to send all of it"
            )

    def read(self, window: list[bytes]) -> tuple[dict[RecordKind, list[Line]], list[Refused]]:
        """The records of a window by kind, and the lines that are none."""
        records: dict[RecordKind, list[Line]] = {}
        refused: list[Refused] = []
        for number, raw in enumerate(window, self.progress.lines + 1):
            line = _strip(raw, is_first=number == 1)
            if not line:
                continue
            try:
                record = self._lines.read(line)
            except Rejected as why:
                refused.append(Refused(number, line, str(why)))
            else:
                records.setdefault(record.kind, []).append(Line(number, line, record.body))
        return records, refused

    def confirm(self, window: list[bytes], refused: list[Refused]) -> None:
        """Moves past a window: rejects first, then progress, so that no line can be in neither."""
        progress = self.progress
        for raw in window:
            self._digest.update(raw)
            progress.offset += len(raw)
        progress.lines += len(window)
        progress.digest = self._digest.hexdigest()
        progress.rejected += len(refused)
        self._rejects.write(sorted(refused), progress)
        if self._keeper:
            self._keeper.save(progress)


class _Keeper:
    """The progress file beside a file."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".tillpost")

    def load(self) -> Progress:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except FileNotFoundError:
            return Progress()
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SendFailed(
                f"{self._path}: cannot be read; remove it to send the whole file again, which changes nothing for "
                "lines with a time (what is stored is overwritten)"
            ) from None

    def save(self, progress: Progress) -> None:
        """Replaces the file at once, so that no crash leaves half of one. A power cut may bring back an older one:
        then what it does not know is sent again, as the same bytes."""
        partial = self._path.with_name(self._path.name + ".new")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(progress), indent=1))
        partial.replace(self._path)


class _Rejects:
    """``FILE.rejects.jsonl`` and ``FILE.rejects.txt``, made when the first line is refused; they hold people's data."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._paths = tuple(path.with_name(path.name + end) for end in (".rejects.jsonl", ".rejects.txt"))
        self._lengths = (progress.rejects_bytes, progress.reasons_bytes)
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> "_Rejects":
        for path, length in zip(self._paths, self._lengths, strict=True):
            if not length:
                path.unlink(missing_ok=True)
            elif path.exists():
                os.truncate(path, min(length, path.stat().st_size))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def write(self, refused: list[Refused], progress: Progress) -> None:
        if not refused:
            return
        if not self._files:
            self._files = [open(p, "ab", opener=lambda p, flags: os.open(p, flags, 0o600)) for p in self._paths]  # noqa: SIM115
        lines, reasons = self._files
        for number, line, reason in refused:
            lines.write(line + b"\n")
            reasons.write(f"line {number}: {reason}\n".encode("utf-8", "replace"))
        for file in self._files:
            file.flush()
        progress.rejects_bytes, progress.reasons_bytes = lines.tell(), reasons.tell()


def _resolved(default_time: str | None) -> str | None:
    """``now`` is the time of a file's first run: a line must keep its time, or it would be stored twice."""
    return format_ms(time.time_ns() // 1_000_000) if default_time == "now" else default_time


def _windows(file: IO[bytes], limit: int) -> Iterator[list[bytes]]:
    """Whole lines, in order: up to ``limit`` of them or 1 MB, but at least one."""
    window: list[bytes] = []
    size = 0
    for raw in file:
        if window and (len(window) == limit or size + len(raw) > WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append(raw)
        size += len(raw)
    if window:
        yield window


def _strip(raw: bytes, *, is_first: bool) -> bytes:
    line = raw.removeprefix(b"\xef\xbb\xbf") if is_first else raw
    return line.strip(b" \t\r\n")
