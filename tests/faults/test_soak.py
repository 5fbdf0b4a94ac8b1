"""The soak itself runs by command, see soak.py; here its oracle shows that it would notice."""

import pytest

from tests.faults.soak import Oracle

GOOD = [("a", b"A"), ("b", b"B")]


def oracle() -> Oracle:
    made = Oracle(issued={"a": b"A", "b": b"B", "bad": b"C"}, acknowledged={"a", "b", "bad"})
    made.bad.add("bad")
    return made


def test_what_arrived_once_unaltered_or_was_bad_is_well() -> None:
    assert oracle().judge(GOOD, ["bad"]) == []
    unanswered = oracle()
    unanswered.issue("c", b"C")
    assert unanswered.judge(GOOD, ["bad"]) == []  # neither acknowledged nor stored: its sender knows


@pytest.mark.parametrize(
    ("stored", "dead", "says"),
    [
        (GOOD[:1], ["bad"], "1 acknowledged and gone, for example b"),
        (GOOD, [], "1 acknowledged and gone, for example bad"),
        ([*GOOD, GOOD[0]], ["bad"], "1 stored twice, for example a"),
        ([("a", b"A"), ("b", b"b")], ["bad"], "1 altered, for example b"),
        ([*GOOD, ("x", b"X")], ["bad"], "1 stored that nobody sent, for example x"),
        (GOOD[:1], ["bad", "b"], "1 buried without a fault of their own, for example b"),
        ([*GOOD, ("bad", b"C")], [], "1 bad records stored, for example bad"),
    ],
)
def test_the_oracle_notices(stored: list[tuple[str, bytes]], dead: list[str], says: str) -> None:
    assert says in oracle().judge(stored, dead)
