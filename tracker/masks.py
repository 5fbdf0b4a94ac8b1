"""What `repr` shows of a record: which fields are set, never what they hold.

Objects end in logs and error reports, and identifiers and payloads must not.
"""

from typing import Any, Final

import msgspec


class _Hidden:
    def __repr__(self) -> str:
        return "…"


_HIDDEN: Final = _Hidden()


def fields_masked(record: msgspec.Struct) -> list[tuple[str, Any]]:
    """The set fields of a record for rich, which would print their values."""
    return [(name, _HIDDEN) for name in record.__struct_fields__ if getattr(record, name) is not None]


def masked(record: msgspec.Struct) -> str:
    """``Client(email=…)``."""
    return f"{type(record).__name__}({', '.join(f'{name}={hidden!r}' for name, hidden in fields_masked(record))})"
