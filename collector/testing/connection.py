"""What aiohttp has no words for: reading without a limit that answers, resets, bytes that are no answer."""

import asyncio
import contextlib
import socket
import struct
import sys
from typing import Final

from aiohttp import web

from collector.testing.call import READ_LIMIT

_LINGER_0: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


async def read_body(request: web.BaseRequest) -> bytes:
    """The body; of one over the read limit the beginning, one byte more than the limit."""
    chunks, size = [], 0
    async for chunk in request.content.iter_any():
        if size <= READ_LIMIT:
            chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)[: READ_LIMIT + 1]


def cut(request: web.BaseRequest) -> tuple[web.StreamResponse, int]:
    """Resets the connection; the response goes nowhere."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                # Linger 0 turns the close into an RST.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        request.transport.abort()
    return web.Response(), 0


async def write_raw(request: web.BaseRequest, data: bytes) -> tuple[web.StreamResponse, int]:
    """Writes bytes past aiohttp, then closes; the response goes nowhere."""
    if request.transport is not None:
        request.transport.write(data)
        request.transport.close()
        # The transport tells aiohttp in the next turn of the loop; only then the response is surely lost.
        await asyncio.sleep(0)
    return web.Response(), 0
