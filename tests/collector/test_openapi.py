"""The checked-in OpenAPI document says what the collector does."""

import importlib.util
from pathlib import Path

from tests.collector.openapi import ALIKE, exercise
from tests.faults import needs


def test_what_the_openapi_document_allows_is_accepted_and_what_is_answered_is_in_it(tmp_path: Path) -> None:
    """Everything accepted is delivered, too, in requests that the strict stand-in finds legal."""
    if importlib.util.find_spec("schemathesis") is None:
        needs.missing("schemathesis")
    code, said, ledger = exercise(tmp_path, 2, "--exclude-path-regex", ALIKE, "--no-shrink")
    assert code == 0, said
    assert "Tested: 17" in said
    assert ledger["accepted"] == ledger["delivered"] > 0
