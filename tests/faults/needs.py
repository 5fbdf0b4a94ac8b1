"""What a fault test needs from the machine: skip with the reason, or fail where everything must be there."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest


def compiler() -> str:
    """The path of a C compiler."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return found
    return missing("a C compiler (cc, gcc or clang)")


def preload(source: Path, folder: Path) -> Path:
    """A C file as a library for LD_PRELOAD, compiled into the folder."""
    library = folder / f"{source.stem}.so"
    command = [compiler(), "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def faketime() -> str:
    """The path of libfaketime."""
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
        for found in sorted(Path(folder).glob("**/libfaketime.so.1")):
            return str(found)
    return missing("libfaketime (apt-get install faketime)")


def browser() -> str:
    """The path of Chromium, and Playwright to drive it."""
    for package in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(package) is None:
            missing(f"{package} (pip install '.[test]')")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return missing("a browser (apt-get install chromium)")


def systemd_analyze() -> str:
    """The path of systemd-analyze."""
    return shutil.which("systemd-analyze") or missing("systemd-analyze (apt-get install systemd)")


def namespaces() -> None:
    """User and mount namespaces, in which a test may mount a small disk of its own."""
    if shutil.which("unshare") is None:
        missing("unshare (util-linux)")
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        missing("user and mount namespaces (unshare -Urm)")


def missing(what: str) -> NoReturn:
    """Skip the test, naming what is not there; fail it when ``TILLPOST_REQUIRE_ALL=1``."""
    reason = f"needs {what}, which this machine does not have"
    if os.environ.get("TILLPOST_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
