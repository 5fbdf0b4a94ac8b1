"""Where a buffer lies: how much room there is, and whether what lies there stays."""

import contextlib
import shutil
from pathlib import Path
from typing import Final

_PASSING: Final = frozenset({"tmpfs", "ramfs", "overlay", "aufs", "fuse-overlayfs"})
_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs"})
_COPYING: Final = frozenset({"btrfs", "zfs", "bcachefs"})


def concern(kind: str) -> tuple[str, str] | None:
    """What a buffer must fear on a file system of this kind, and what to do; None where there is nothing."""
    if kind in _PASSING:
        return f"{kind} ends with the container or at a restart, and the buffer with it", (
            "name a file on a disk with --buffer"
        )
    if kind in _NETWORK:
        return f"{kind} is another machine's disk: locks and syncs are only as good as that machine makes them", (
            "name a file on a disk of this machine with --buffer"
        )
    if kind in _COPYING:
        return f"{kind} copies on write: with a full disk delivery stops too", (
            "put the buffer on ext4 or xfs, or keep the disk from filling"
        )
    return None


def folder_of(buffer: Path) -> Path:
    """The folder the buffer lies in, or the nearest above it that exists already."""
    return next(place for place in buffer.parents if place.exists())


def free_bytes(buffer: Path) -> int:
    """Room for the buffer's files: what is free, and what they hold already."""
    folder = folder_of(buffer)
    held = sum(file.stat().st_size for file in folder.glob(f"{buffer.name}*") if file.is_file())
    return shutil.disk_usage(folder).free + held


def file_system(path: Path) -> str:
    """The type of the file system the path lies on; empty where /proc does not tell."""
    found, length = "", -1
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            place, _, rest = line.partition(" - ")
            mount = place.split()[4].replace("\\040", " ")
            if len(mount) >= length and path.is_relative_to(mount):
                found, length = rest.split()[0], len(mount)
    return found
