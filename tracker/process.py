"""The process around the trackers: one sender per target, forks, and the end.

A forked child starts with empty queues, its own thread and its own connection; what the parent had
waiting stays the parent's. At exit what waits is flushed, for a bounded time. `os._exit` skips that,
as it skips everything.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from tracker.receipt import callbacks


class _Sender(Protocol):
    close_timeout: float

    def finish(self, deadline: float) -> None: ...

    def forget_parent(self) -> None: ...


_S = TypeVar("_S", bound=_Sender)

# Kept alive by their trackers and their threads.
_senders: Final[weakref.WeakValueDictionary[Any, Any]] = weakref.WeakValueDictionary()
_lock = threading.RLock()


def shared(key: object, make: Callable[[], _S]) -> _S:
    """The process's sender for a target, made when there is none yet."""
    with _lock:
        sender: _S | None = _senders.get(key)
        if sender is None:
            _senders[key] = sender = make()
        return sender


def senders(target: str | None = None) -> list[Any]:
    """The senders of this process, or those to one URL."""
    return [sender for key, sender in list(_senders.items()) if target is None or key[0] == target]


def exit_last() -> None:
    """Flushes at exit before everything registered so far is torn down (exit runs backwards)."""
    atexit.unregister(finish)
    atexit.register(finish)
    # Children of multiprocessing leave through os._exit and run its finalisers only.
    util = sys.modules.get("multiprocessing.util")
    if util is not None and sys.modules["multiprocessing.process"].parent_process() is not None:
        util.Finalize(None, finish, exitpriority=0)


def finish() -> None:
    """The process ends: flushes what waits, for at most the longest `close_timeout`; what is left fails as closed."""
    senders = list(_senders.values())
    deadline = time.monotonic() + max((sender.close_timeout for sender in senders), default=0.0)
    for sender in senders:
        sender.finish(deadline)
    callbacks.drain(max(1.0, deadline - time.monotonic()))


def stay(home: int) -> None:
    """Returns in the process `home`, and nowhere else.

    Threads do not come along when a process forks, but those of gevent are greenlets, and do: a copy must not go on
    with the parent's work. It may not even end, for `threading` has forgotten it and would complain.
    """
    if os.getpid() != home:
        threading.Event().wait()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    callbacks.reset()
    for sender in list(_senders.values()):
        sender.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
