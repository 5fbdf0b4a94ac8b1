"""A disk of its own for a scenario: small, and nobody else's."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

THIEF = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("at work", flush=True)
while True:
    for size in (1 << 20, 1 << 16, 4096):
        try:
            while os.write(fd, bytes(size)):
                pass
        except OSError:
            continue
    time.sleep(0.0002)
"""


TMPFS = {"": "size=24m", "few inodes": "size=24m,nr_inodes=30"}
EXT4 = {"": "-b 4096", "few inodes": "-b 4096 -N 40"}
LOOP = "dd if=/dev/zero of={image} bs=1M count=40 status=none && mkfs.ext4 -q -m 0 {options} {image} && mount -o loop"


def run_on_disk(file_system: str, script: Path, scenario: str, tmp_path: Path, kind: str = "") -> str:
    """Run a scenario of a script on a file system of its own, ``tmpfs`` or ``ext4``, in a namespace of its own.

    Returns its output; fails with that when the script does. ext4 needs a real root, for the loop device.
    """
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    if file_system == "tmpfs":
        unshare, mount = ["unshare", "-Urm"], f'mount -t tmpfs -o {TMPFS[kind]} tmpfs "$1"'
    else:
        unshare, mount = ["unshare", "-m"], f'{LOOP} {image} "$1"'.format(image=image, options=EXT4[kind])
    done = subprocess.run(
        [*unshare, "sh", "-c", f'{mount} && shift && exec "$@"', "sh", str(disk),
         sys.executable, str(script), scenario, str(disk)],
        capture_output=True, text=True, timeout=110, check=False, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(what: str, condition: Callable[[], object], within_s: float = 20.0) -> float:
    """Wait for something; the seconds it took. Looks often: what is measured may be short."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, f"waited {within_s:.0f} s for {what}"
        time.sleep(0.002)
    return time.monotonic() - begun


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Filler:
    """Takes the disk's last byte, once; `free` gives it all back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "filler"

    def fill(self) -> None:
        until("the disk to be full", self._take)  # the collector may just be giving something back

    def _take(self) -> bool:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 24, 1 << 20, 1 << 16, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(fd, os.fstat(fd).st_size, size)
        finally:
            os.close(fd)
        return free_bytes(self.path.parent) == 0

    def free(self) -> None:
        self.path.unlink()


@contextlib.contextmanager
def thief(folder: Path) -> Iterator[None]:
    """Another process that takes every byte as soon as it is free, and gives all back at the end."""
    loot = folder / "loot"
    with subprocess.Popen([sys.executable, "-c", THIEF, str(loot)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()
            process.wait(20)
            loot.unlink()
