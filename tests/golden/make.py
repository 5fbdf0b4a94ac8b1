"""Makes the golden buffer file of the present schema: ``python -m tests.golden.make``, once per release.

Golden files are never made again: what a release wrote must open for ever.
"""

import asyncio
import gzip
import json
import tempfile
from pathlib import Path

from collector import schema
from collector.batcher import Aside, Batch, Dead, Delivered, Limits
from collector.buffer import Buffer
from collector.work import Work
from tests.collector.buffers import ANYTIME, BULK, EMAIL, SALES, parcel, record

FOLDER = Path(__file__).parent
SALE = (
    b'{"orderId":"T-07/000123","recordedAt":"2026-01-01T00:00:00.000Z","eventSalt":"sale-1",'
    b'"client":{"customId":"c"},"paymentInfo":{"method":"CASH"}}'
)


async def fill(path: Path) -> dict[str, object]:
    """Something of everything a buffer can hold; what must be found in it later."""
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record(f"first-{i}") for i in range(10)])])
    await buffer.append([parcel([record(f"later-{i}") for i in range(3)], boot="a-boot", offset_ms=7)])
    await buffer.append([parcel([SALE], SALES), parcel([record("bulk-1", pad=5000)], BULK)])
    batch = await buffer.take(EMAIL, Limits(6, 100_000), ANYTIME)
    assert isinstance(batch, Batch)
    fates = [(batch.part(0, 3), Delivered()), (batch.part(3, 4), Dead("refused", 400, "because"))]
    await buffer.settle([*fates, (batch.part(4, 5), Aside("parked"))])

    def clocks(work: Work) -> None:
        columns = len(work.conn.execute("PRAGMA table_info(clock)").fetchall())
        work.conn.execute(f"INSERT INTO clock VALUES ('a-boot'{', 0' * (columns - 1)})")

    await buffer.run(clocks)
    ledger = buffer.ledger()
    await buffer.close()
    return {
        "ledger": ledger,
        "dead": [record("first-3").decode()],
        "events/email/live": [record("first-4").decode()]
        + [record(f"first-{i}").decode() for i in range(5, 10)]
        + [record(f"later-{i}").decode() for i in range(3)],
        "events/email/bulk": [record("bulk-1", pad=5000).decode()],
        "transactions/customId/live": [SALE.decode()],
    }


def main() -> None:
    target = FOLDER / f"{schema.newest():04}.db.gz"
    if target.exists():
        raise SystemExit(f"{target.name} is there: what was released stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tillpost.db")
        holds = asyncio.run(fill(path))
        target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    target.with_name(f"{schema.newest():04}.json").write_text(json.dumps(holds, indent=1) + "\n")


if __name__ == "__main__":
    main()
