"""Celery: what tasks track outlives the children of a worker.

A child of the prefork pool ends by `os._exit`, after which nothing registered with `atexit` runs. Call `connect`
where the application is made; trackers made before the fork work in the children as they are.
"""

from typing import Any

from celery import signals

from tracker import process


def connect() -> None:
    """Flushes every tracker, bounded by their `close_timeout`, before a child of the pool ends."""
    signals.worker_process_shutdown.connect(_finish, weak=False, dispatch_uid="tillpost")


def _finish(**_: Any) -> None:
    process.finish()
