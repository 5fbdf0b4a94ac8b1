"""Tillpost collector: a durable, batching collector for the Synerise API.

`Collector` runs inside an application; the command ``tillpost run`` is the same as a process of its own.
`collector.testing` has the stand-in for the API. Other modules may move.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collector.app import Collector
    from collector.config import ConfigError
    from collector.files import BufferInUse, BufferUnusable

__all__ = ["BufferInUse", "BufferUnusable", "Collector", "ConfigError"]

_HOMES = {
    "BufferInUse": "collector.files",
    "BufferUnusable": "collector.files",
    "Collector": "collector.app",
    "ConfigError": "collector.config",
}


def __getattr__(name: str) -> Any:
    # the command line prints its help without loading an HTTP client
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'collector' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
