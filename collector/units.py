"""Durations and sizes as people write them: ``"250ms"``, ``"10s"``, ``"90d"``, ``"512KiB"``, ``"8MiB"``."""

import re
from typing import Final

_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZES: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NUMBER_AND_UNIT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)

DURATION_FORM: Final = 'a duration such as "250ms", "10s", "5m", "24h" or "90d", or a number of seconds'
SIZE_FORM: Final = 'a size such as "512KiB", "8MiB" or "1MB", or a number of bytes'


def parse_duration(text: str) -> float:
    """Seconds; a number without unit is seconds. Raises ValueError, naming the form, for anything else."""
    number, unit = _split(text, DURATION_FORM)
    factor = _DURATIONS.get(unit.lower() or "s")
    if factor is None:
        raise ValueError(f"must be {DURATION_FORM}")
    return float(number) * factor


def parse_size(text: str) -> int:
    """Whole bytes; a number without unit is bytes. Raises ValueError, naming the form, for anything else."""
    number, unit = _split(text, SIZE_FORM)
    factor = {name.lower(): factor for name, factor in _SIZES.items()}.get(unit.lower() or "b")
    if factor is None:
        raise ValueError(f"must be {SIZE_FORM}")
    size = float(number) * factor if "." in number else int(number) * factor
    if size != int(size):
        raise ValueError(f"must be whole bytes, {SIZE_FORM}")
    return int(size)


def format_duration(seconds: float) -> str:
    """The shortest exact form: ``5m`` for 300, ``1.5s`` for 1.5."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit in ("d", "h", "m"):
        if seconds >= _DURATIONS[unit] and seconds % _DURATIONS[unit] == 0:
            return f"{seconds / _DURATIONS[unit]:.0f}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def format_size(size: int) -> str:
    """The shortest exact form: ``8MiB`` for 8388608, ``1MB`` for 1000000."""
    for unit in ("GiB", "MiB", "KiB", "GB", "MB", "KB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return f"{size}B"


def _split(text: str, form: str) -> tuple[str, str]:
    found = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"must be {form}")
    return found[1], found[2]
