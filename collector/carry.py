"""``tillpost send --buffer OLD.db``: carrying what a dead till still held to a collector that lives.

Records leave the old file as they are confirmed: each is settled there as delivered once it is on
the new collector's disk, or becomes a dead letter there, with the reason, when that collector
refuses it. Interrupted, it goes on where it was; a lost answer repeats the same bytes.

Times the old till stamped under a wrong clock are repaired as the till itself would have done, so
that what it sent and did not settle stays the same record. What it stamped before it ever knew the
time travels as it is, and is counted.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from collector.batcher import OPEN_GATE, Batch, Dead, Delivered, Fate, Limits
from collector.buffer import Buffer
from collector.config import BufferConfig
from collector.corrections import Corrections, load_corrections
from collector.files import BufferUnusable
from collector.kinds import Run
from collector.lines import RecordKind
from collector.post import Post
from collector.send import WINDOW_BYTES, WINDOW_LINES, Display, Pace, SendFailed, Totals
from collector.work import DeadLettersFull

_LIMITS: Final = Limits(WINDOW_LINES, WINDOW_BYTES)


def carry(path: Path, post: Post, display: Display, pace: Pace) -> Totals:
    """Sends every pending record of a buffer nobody holds.

    Raises BufferInUse, BufferUnusable, NotACollector, and SendFailed when refused records find no room.
    """
    if not path.exists():
        raise BufferUnusable(path, "there is no such file")
    max_size = max(BufferConfig().max_size, path.stat().st_size * 4)  # the old till's own limit is not known here
    return asyncio.run(_carry(path, max_size, post, display, pace))


async def _carry(path: Path, max_size: int, post: Post, display: Display, pace: Pace) -> Totals:
    buffer = await Buffer.open(path, max_size=max_size, dead_max=max_size)
    totals = Totals()
    try:
        display.start(str(path), buffer.ledger()["pending"], 0, 0, "records")
        corrections = await buffer.run(lambda work: load_corrections(work.conn))
        gate = replace(OPEN_GATE, corrections=corrections)
        unrepaired = 0
        for state in buffer.lanes():
            while isinstance(batch := await buffer.take(state.lane, _LIMITS, gate), Batch):
                unrepaired += sum(_is_doubtful(chunk.as_stored.run(i), corrections) for chunk, i in batch.positions())
                records = [batch.record(i) for i in range(batch.count)]
                pace.wait(batch.count)
                reasons = await asyncio.to_thread(post.deliver, cast(RecordKind, state.lane.kind), records)
                await _settle(buffer, batch, reasons)
                totals.sent += batch.count - len(reasons)
                totals.rejected += len(reasons)
                display.advance(totals.sent + totals.rejected, totals.sent + totals.rejected)
        if unrepaired:
            display.note(
                f"{path}: {unrepaired} records were stamped before that till ever knew the true time; "
                "their times are as its clock showed them"
            )
    except DeadLettersFull:
        raise SendFailed(f"{path}: no room for refused records; export and discard its dead letters first") from None
    finally:
        await buffer.close()
    return totals


def _is_doubtful(run: Run, corrections: Corrections) -> bool:
    return run.boot is not None and not corrections.knows(run.boot)


async def _settle(buffer: Buffer, batch: Batch, reasons: dict[int, str]) -> None:
    fates: list[tuple[Batch, Fate]] = [(batch.pick([i]), Dead(reason, 400)) for i, reason in reasons.items()]
    taken = [i for i in range(batch.count) if i not in reasons]
    if taken:
        fates.append((batch.pick(taken), Delivered()))
    await buffer.settle(fates)
