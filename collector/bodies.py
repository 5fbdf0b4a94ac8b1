"""Request bodies: read within a time and a size, and unpacked by ourselves.

aiohttp would accept a truncated gzip stream and let trailing bytes raise; here both are the sender's fault.
"""

import asyncio
import zlib
from collections.abc import Callable

from aiohttp import web

from collector.refusals import Refused

_GZIP = 16 + zlib.MAX_WBITS


def check_type(request: web.BaseRequest) -> None:
    """Raises Refused unless the body claims to be JSON in UTF-8, plain or gzip."""
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise Refused(415, "the Content-Type must be application/json (in UTF-8)")
    if _encoding(request) not in ("identity", "gzip"):
        raise Refused(415, "the Content-Encoding must be gzip or identity")


async def read_body(
    request: web.BaseRequest, max_bytes: int, timeout_s: float, reserve: Callable[[int], None]
) -> bytes:
    """The whole body, unpacked. `reserve` is told of all memory before it is used, and may raise.

    Raises Refused: 413 too large, 408 too slow, 400 not gzip although it says so.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await request.content.readany():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                reserve(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {timeout_s:g} seconds") from None
    body = b"".join(chunks)
    return _unpacked(body, max_bytes, reserve) if _encoding(request) == "gzip" else body


def _encoding(request: web.BaseRequest) -> str:
    return request.headers.get("Content-Encoding", "identity").strip().lower()


def _unpacked(body: bytes, max_bytes: int, reserve: Callable[[int], None]) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        raise Refused(400, "the body is not gzip, although Content-Encoding says so") from None
    if len(content) > max_bytes:
        raise _too_large(max_bytes)
    if not stream.eof:
        raise Refused(400, "the gzip body is cut short")
    if stream.unused_data:
        raise Refused(400, "there are bytes after the end of the gzip body; send a single gzip member")
    reserve(len(content))
    return content


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, f"the body is larger than {max_bytes} bytes: send fewer records per request")
