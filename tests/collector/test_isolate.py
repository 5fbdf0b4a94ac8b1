"""A bad record costs only itself, and not many requests."""

import math

from hypothesis import given
from hypothesis import strategies as st

from collector.isolate import Search


def hunt(
    count: int, bad: set[int], hints: list[int] | None = None, honest: bool = False
) -> tuple[list[int], list[int], int]:
    """(culprits, accepted in the order sent, requests with the first refusal) for a batch refused as a whole."""
    search = Search(count, hints or [])
    requests, accepted, culprits = 1, [], []
    while part := search.part:
        part = list(part)
        requests += 1
        assert requests <= 10 * count + 10, "the search does not end"
        if bad & set(part):
            named = [i for i, position in enumerate(part) if position in bad] if honest else []
            culprit = search.refused(named)
            if culprit is not None:
                assert part == [culprit], "blamed without being refused alone"
                culprits.append(culprit)
        else:
            search.accepted()
            accepted.extend(part)
    assert not search.left
    return culprits, accepted, requests


def test_every_single_bad_record_in_every_batch_up_to_64_stays_within_the_bound() -> None:
    for count in range(1, 65):
        for bad in range(count):
            culprits, accepted, requests = hunt(count, {bad})
            assert culprits == [bad]
            assert accepted == [i for i in range(count) if i != bad], "order kept"
            assert requests <= 1 + 2 * math.ceil(math.log2(count)) + (count == 1), (count, bad)


@given(count=st.integers(2, 1000), data=st.data())
def test_one_bad_record_in_n_costs_at_most_1_plus_2_ceil_log2_n(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, count - 1))
    culprits, accepted, requests = hunt(count, {bad})
    assert culprits == [bad]
    assert accepted == [i for i in range(count) if i != bad]
    assert requests <= 1 + 2 * math.ceil(math.log2(count))


@given(count=st.integers(2, 1000), data=st.data())
def test_hints_that_lie_do_not_break_the_bound(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, count - 1))
    hints = data.draw(st.lists(st.integers(0, count + 5), max_size=20))
    culprits, accepted, requests = hunt(count, {bad}, hints)
    assert culprits == [bad]
    assert sorted(accepted) == [i for i in range(count) if i != bad]
    assert requests <= 1 + 2 * math.ceil(math.log2(count))


@given(count=st.integers(2, 1000), data=st.data())
def test_an_honest_hint_costs_three_requests(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, count - 1))
    assert hunt(count, {bad}, [bad]) == ([bad], [i for i in range(count) if i != bad], 3)


@given(count=st.integers(1, 300), data=st.data())
def test_any_number_of_bad_records_is_found_exactly(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=count))
    honest = data.draw(st.booleans())
    hints = data.draw(st.lists(st.integers(0, count - 1), max_size=10))
    culprits, accepted, requests = hunt(count, bad, hints, honest)
    assert sorted(culprits) == sorted(bad)
    assert sorted(accepted) == [i for i in range(count) if i not in bad]
    assert requests <= 3 + max(len(bad), 1) * (4 + 2 * math.ceil(math.log2(count + 1)))


def test_a_batch_whose_parts_are_all_accepted_names_nobody() -> None:
    search = Search(8)
    sent = []
    while search.part:
        sent.extend(search.part)
        search.accepted()
    assert sorted(sent) == list(range(8))


@given(count=st.integers(1, 100), data=st.data())
def test_what_has_no_verdict_is_never_forgotten(count: int, data: st.DataObject) -> None:
    search, judged = Search(count), set()
    while search.part:
        part = set(search.part)
        assert part <= set(search.left)
        if data.draw(st.booleans()):
            search.accepted()
            judged |= part
        elif (culprit := search.refused()) is not None:
            judged.add(culprit)
        assert set(search.left) == set(range(count)) - judged
