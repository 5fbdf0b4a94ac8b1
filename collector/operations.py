"""What an operator can do to a buffer, while a collector runs or on the file alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from collector import deadletters, search
from collector.buffer import Buffer
from collector.quarantine import Quarantine
from collector.search import Query
from collector.status import status_of


class BadRequest(ValueError):
    """An operation was asked for something it cannot understand; the message says what."""


class BufferOperations:
    """The operations that need nothing but the buffer; results are the bodies of the ``/v1`` answers."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    async def status(self) -> dict[str, Any]:
        """``status.json`` of a buffer nobody delivers from."""
        return await status_of(self.buffer, state="stopped")

    async def dead_letters(self, limit: int = 100, after: int = 0) -> dict[str, Any]:
        return await deadletters.page(self.buffer, limit, after)

    async def retry(self, ids: Sequence[int] | None, force: bool = False) -> dict[str, int]:
        return {"count": await deadletters.retry(self.buffer, ids, force=force)}

    async def discard(self, ids: Sequence[int] | None) -> dict[str, int]:
        return {"count": await deadletters.discard(self.buffer, ids)}

    async def find(self, what: Mapping[str, Any]) -> dict[str, Any]:
        """``{"found": [...]}``, each with its state: pending, aside, dead or superseded. Raises BadRequest."""
        return {"found": await search.find(self.buffer, _query(what))}

    async def forget(self, what: Mapping[str, Any]) -> dict[str, Any]:
        """``{"count": n, "quarantined": [...]}``: what was erased, and files that may hold more. Raises BadRequest."""
        erased = await search.forget(self.buffer, _query(what))
        return {**erased, "quarantined": [str(file) for file in Quarantine(self.buffer.path).files()]}


def _query(what: Mapping[str, Any]) -> Query:
    try:
        return msgspec.convert(what, Query)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
