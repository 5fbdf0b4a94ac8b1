"""The demonstration is honest: it ends well when all is well, and notices when it is not."""

from pathlib import Path

import pytest

from collector.demo.day import Account, play
from collector.demo.shop import digest


def day(folder: Path, sabotage: str | None) -> Account:
    return play(folder, sabotage, lambda _: None, baskets=90)  # type: ignore[arg-type]


def test_a_day_without_sabotage_keeps_the_promise(tmp_path: Path) -> None:
    account = day(tmp_path, None)
    assert account.holds, account
    assert account.ledger["dead"] == 1
    assert account.overwritten > 0, "nothing was sent twice: the kill did not hit a delivery"


@pytest.mark.parametrize(("sabotage", "counts"), [("drop", (1, 0, 0)), ("duplicate", (0, 1, 0)), ("alter", (0, 0, 1))])
def test_sabotage_is_noticed_and_named(tmp_path: Path, sabotage: str, counts: tuple[int, int, int]) -> None:
    account = day(tmp_path, sabotage)
    assert (account.missing, account.duplicates, account.altered) == counts
    assert not account.holds
    assert account.adds_up, "the books balance all the same: only a comparison of content can tell"


def test_the_digest_knows_numbers_by_value_and_everything_else_exactly() -> None:
    assert digest({"a": 12.5, "b": [1, 2.0]}) == digest({"b": [1.0, 2], "a": 12.50})
    assert digest({"a": "1"}) == digest({"a": "1"}) != digest({"a": "1 "})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
