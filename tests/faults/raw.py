"""Bytes over a socket, exactly as given: what no HTTP client would send."""

import asyncio
import re
from typing import NamedTuple

EVENT = (
    b'{"type":"custom","action":"a.b","label":"x","client":{"customId":"C-1"},'
    b'"time":"2026-05-04T09:53:56.999Z","eventSalt":"s","params":{"n":%s}}'
)
GOOD = EVENT % b"1"
HEAD = b"POST /v4/events/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_HEAD = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n")


class Answered(NamedTuple):
    """What came back until the server hung up or the time was over."""

    answers: list[tuple[int, bytes]]
    """Status and body of each answer."""
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [status for status, _ in self.answers]


async def say(url: str, *parts: bytes, until_closed: bool = False, timeout: float = 20) -> Answered:
    """Send the parts and read one answer, or all that come until the server closes. Never raises for a reset."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    closed = False
    try:
        async with asyncio.timeout(timeout):
            for part in parts:
                writer.write(part)
                await writer.drain()
            while until_closed or not parse(received):
                try:
                    piece = await reader.read(65536)
                except ConnectionError:
                    piece = b""
                if not piece:
                    closed = True
                    break
                received += piece
    except ConnectionError:
        closed = True
    finally:
        writer.close()
    return Answered(parse(received), closed)


def parse(received: bytes) -> list[tuple[int, bytes]]:
    """Every whole answer in there; 1xx are none."""
    found = []
    while (head := _HEAD.match(received)) is not None:
        length = re.search(rb"content-length: (\d+)", head[0].lower())
        end = head.end() + int(length[1] if length else 0)
        if len(received) < end:
            break
        if not head[1].startswith(b"1"):
            found.append((int(head[1]), received[head.end() : end]))
        received = received[end:]
    return found


def post(body: bytes, *headers: bytes) -> bytes:
    return HEAD + b"".join(b"%s\r\n" % header for header in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body
