"""Sockets to listen on: TCP, and Unix sockets that a crash leaves behind and a live owner keeps."""

import errno
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from collector.config import Address, ConfigError, is_loopback
from collector.connection import short_path
from collector.files import close_in_child, keep_in_child


class ListenError(Exception):
    """An address cannot be listened on; the message names it, the cause and what to do."""


class NoRoom(ListenError):
    """The disk has no room for a socket's file."""


class Listener:
    """Bound sockets of one address, not listening yet."""

    def __init__(self, sockets: Sequence[socket.socket], *, loopback: bool = False, path: Path | None = None) -> None:
        self.sockets = sockets
        self.loopback = loopback
        """Whether web pages on this machine could reach it: TCP on loopback."""
        self._path = path
        self._inode = path.lstat().st_ino if path is not None else None
        for bound in sockets:
            close_in_child(bound.fileno())

    @property
    def addresses(self) -> list[str]:
        """Where it can be reached: ``127.0.0.1:8787``, ``unix:/run/tillpost.sock``."""
        if self._path is not None:
            return [f"unix:{self._path}"]
        names = [bound.getsockname() for bound in self.sockets if bound.fileno() >= 0]
        return [str(Address(host=name[0], port=name[1])) for name in names]

    def release(self) -> None:
        """Remove the socket's file, if it is still the one we made, and close what is still open."""
        for bound in self.sockets:
            if bound.fileno() >= 0:
                keep_in_child(bound.fileno())
            bound.close()
        if self._path is not None:
            with suppress(OSError):
                if self._path.lstat().st_ino == self._inode:
                    self._path.unlink()


def refuse_open_doors(addresses: Sequence[Address], *, token: bool) -> None:
    """Raises ConfigError when other machines could send records without an ingest token."""
    for address in addresses:
        if not token and not address.is_local:
            raise ConfigError(
                f"ingest.listen = {str(address)!r}: other machines could send records without a token. "
                "Set ingest.token_file or TILLPOST_INGEST_TOKEN, or listen on 127.0.0.1 or a Unix socket."
            )


def bind(address: Address, socket_mode: int) -> Listener:
    """Raises ListenError."""
    return bind_unix(Path(address.path), socket_mode) if address.path else _bind_tcp(address)


def _bind_tcp(address: Address) -> Listener:
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        port = address.port
        for family, kind, protocol, _, where in dict.fromkeys(found):
            bound.append(socket.socket(family, kind, protocol))
            if os.name == "posix":
                bound[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound[-1].bind((where[0], port, *where[2:]))
            port = bound[-1].getsockname()[1]  # a free port is the same for every address of the name
    except OSError as error:
        for open_socket in bound:
            open_socket.close()
        raise ListenError(
            f"cannot listen on {address}: {error.strerror or error}. Choose another address with --listen, "
            "or stop what uses this one."
        ) from None
    return Listener(bound, loopback=is_loopback(address.host))


def bind_unix(path: Path, mode: int) -> Listener:
    """A Unix socket with those permissions from the first moment. Raises ListenError.

    What a crash left behind is removed only after connecting to it was refused; a socket
    somebody answers on, and any other kind of file, stays.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ListenError(f"cannot listen on unix:{path}: this system has no Unix sockets. Use 127.0.0.1:8787.")
    path = path.absolute()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as short:
            _remove_stale(path, short)
            bound.bind(short)
        # Nobody can connect between these two: the socket does not listen yet.
        path.chmod(mode)
    except OSError as error:
        bound.close()
        kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else ListenError
        raise kind(
            f"cannot listen on unix:{path}: {error.strerror or error}. Check the folder and its owner."
        ) from None
    except ListenError:
        bound.close()
        raise
    return Listener([bound], path=path)


def _remove_stale(path: Path, short: str) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(
            f"cannot listen on unix:{path}: there is a file that is no socket. Remove it, or choose another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return  # its owner has just removed it
        except OSError as error:
            raise ListenError(
                f"cannot listen on unix:{path}: there is a socket that cannot be probed ({error.strerror or error})."
            ) from None
    raise ListenError(f"cannot listen on unix:{path}: another process listens there. Stop it, or choose another path.")
