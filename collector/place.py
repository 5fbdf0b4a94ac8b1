"""Where a buffer lies: how much room there is, and whether what lies there stays."""

import contextlib
import shutil
from pathlib import Path
from typing import Final

PASSING: Final = frozenset({"tmpfs", "ramfs", "overlay", "aufs", "fuse-overlayfs"})
"""File systems that end with the machine or the container."""
COPYING: Final = frozenset({"btrfs", "zfs", "bcachefs"})
"""Copy-on-write file systems: there our reserve cannot keep room for delivery on a full disk."""


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
