"""The OpenAPI document against a real collector, by schemathesis. The long form, every operation:

python -m tests.collector.openapi --examples 100
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from collector import Collector
from collector.testing import FakeUpstream

ROOT = Path(__file__).parents[2]
ADMIN = "the-admin-token"
ALIKE = "^/(page/|$|openapi|metrics|v4/auth/login|v4/transactions$|v4/events/(?!batch|added-to-cart))"
"""Operations that differ from others in their name only, and answers that are no JSON."""
CONFIG: dict[str, Any] = {
    # JSON Schema cannot say cheaply that no null may be anywhere below
    "ingest": {"listen": ["127.0.0.1:0"], "nulls": "drop"},
    "batch": {"linger": "0s"},
    "clock": {"margin": "0s"},
}


def exercise(folder: Path, examples: int, *options: str) -> tuple[int, str, dict[str, int]]:
    """Sends valid and invalid requests made from the document, `examples` an operation.

    Returns schemathesis's exit code, what it printed, and the ledger. Raises AssertionError when what was accepted
    made an illegal request upstream.
    """
    (folder / "admin").write_text(ADMIN)
    (folder / "admin").chmod(0o600)
    config = {**CONFIG, "admin": {"token_file": str(folder / "admin")}}
    with FakeUpstream(api_key="k") as fake:
        collector = Collector(folder / "tillpost.db", upstream=fake.url, api_key="k", config=config)
        collector.start()
        try:
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{collector.urls[0]}/openapi.json"),
                *("--phases", "fuzzing", "--seed", "1", "--max-examples", str(examples), "--continue-on-failure"),
                *("--header", f"Authorization: Bearer {ADMIN}", "--warnings", "off", *options),
            ]
            hooks = {"SCHEMATHESIS_HOOKS": "tests.collector.openapi_hooks", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, **hooks},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            collector.drain(10)
            ledger = collector.status()["ledger"]
        finally:
            collector.close()
        assert fake.violations == []
    return done.returncode, done.stdout, ledger


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    with tempfile.TemporaryDirectory() as folder:
        code, said, ledger = exercise(Path(folder), parser.parse_args().examples)
    print(said)
    print(ledger)
    return code


if __name__ == "__main__":
    sys.exit(main())
