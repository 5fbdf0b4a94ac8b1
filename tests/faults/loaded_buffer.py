"""Works on a buffer as a busy collector would, and says on standard output what happens to every record.

A line before the deed (`A` append, `D` settle for good) and one after it (`a`), so that whoever kills
this process knows what was acknowledged, what an upstream has, and what was under way.
"""

import asyncio
import random
import re
import sys
from pathlib import Path

from collector import deadletters
from collector.batcher import Aside, Batch, Dead, Delivered, Limits
from collector.buffer import Buffer
from collector.kinds import Lane
from collector.search import Query, forget
from tests.collector.buffers import ANYTIME, BULK, EMAIL, LIMITS, SALES, UUID, parcel

MAX_SIZE = 8 * 1024 * 1024
FATES = (Delivered(), Dead("bad"), Aside("parked"), Aside("parked", 1 << 60), None)
MOODS = ((90, 2, 2, 1, 3), (50, 20, 4, 20, 4))
"""How likely each fate is. In a bad mood so much stands aside or dies that the mark has no room to name it all."""


def made(lane: Lane, salt: str, chance: random.Random) -> bytes:
    """A record of a lane; its length and its salt are its own."""
    label = "x" * chance.choice((1, 1, 20, 200, 3000))
    key = '"email":"a@example.com"' if lane.identifier == "email" else '"uuid":"07243772-008a-42e1-ba37-c3807cebde8f"'
    if lane == SALES:
        return (
            f'{{"orderId":"{salt}","recordedAt":"2026-01-01T00:00:00.000Z","eventSalt":"{salt}","label":"{label}",'
            '"client":{"customId":"c"},"paymentInfo":{"method":"CASH"}}'
        ).encode()
    return (
        f'{{"type":"custom","action":"a.b","label":"{label}","time":"2026-01-01T00:00:00.000Z",'
        f'"eventSalt":"{salt}","client":{{{key}}}}}'
    ).encode()


async def work(path: Path, seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    mood = MOODS[seed % 4 == 2]
    buffer = await Buffer.open(path, max_size=MAX_SIZE)
    serial = 0
    for turn in range(rounds):
        lane = chance.choice((EMAIL, EMAIL, UUID, BULK, SALES))
        if chance.random() < 0.6 or turn < 5:
            salts = [f"{seed}-{serial + i}" for i in range(chance.randint(1, 30))]
            serial += len(salts)
            records = [made(lane, salt, chance) for salt in salts]
            print("A", *(record.decode() for record in records), sep="\t", flush=True)
            await buffer.append([parcel(records, lane)])
            print("a", flush=True)
        elif chance.random() < 0.05:
            batch = await buffer.take(lane, LIMITS, ANYTIME)
            if isinstance(batch, Batch):
                buffer.release(batch)
                one = batch.record(chance.randrange(batch.count))
                print("D", one.decode(), sep="\t", flush=True)
                await forget(buffer, Query(salt=re.findall('"eventSalt":"([^"]+)', one.decode())[0]))
                print("d", flush=True)
        elif chance.random() < 0.1:
            letters = (await deadletters.page(buffer))["dead_letters"]
            chosen = [letter for letter in letters if chance.random() < 0.3]
            if chance.random() < 0.5:
                await deadletters.retry(buffer, [letter["id"] for letter in chosen])
            else:
                print("D", *(bytes(letter["record"]).decode() for letter in chosen), sep="\t", flush=True)
                await deadletters.discard(buffer, [letter["id"] for letter in chosen])
                print("d", flush=True)
        else:
            batch = await buffer.take(lane, Limits(chance.randint(1, 60), 100_000), ANYTIME)
            if isinstance(batch, Batch):
                fates = chance.choices(FATES, mood, k=batch.count)
                gone = [batch.record(i) for i, fate in enumerate(fates) if isinstance(fate, Delivered)]
                print("D", *(record.decode() for record in gone), sep="\t", flush=True)
                await buffer.settle([(batch.pick([i]), fate) for i, fate in enumerate(fates) if fate is not None])
                print("d", flush=True)
                buffer.release(batch)
    await buffer.close()
    print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
