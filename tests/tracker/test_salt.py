import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker import InvalidRecord, derive_salt
from tracker.salt import TimeOrdered, fresh

parts = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers()), min_size=1, max_size=5)


def test_salts_are_uuids_of_version_7_in_order():
    salts = [fresh(1_777_888_999_000 + at // 1000) for at in range(20_000)]
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text) for text in salts
    )
    assert salts == sorted(salts)
    assert len(set(salts)) == len(salts)


def test_salts_stay_in_order_when_the_clock_is_set_back_and_a_millisecond_is_crowded():
    make = TimeOrdered().at
    salts = [make(5_000), *(make(1_000) for _ in range(10_000)), make(5_001)]
    assert salts == sorted(salts)
    assert len(set(salts)) == len(salts)


def test_salts_are_unique_across_threads():
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda _: [fresh(1_777_888_999_000) for _ in range(2_000)], range(8))
    salts = [salt for some in made for salt in some]
    assert len(set(salts)) == len(salts)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_salts_are_unique_across_forks():
    program = """
import os, sys
from tracker.salt import fresh
fresh(1)
for _ in range(3):
    if os.fork() == 0:
        os.write(1, "".join(fresh(1) + "\\n" for _ in range(50)).encode())
        os._exit(0)
os.write(1, "".join(fresh(1) + "\\n" for _ in range(50)).encode())
for _ in range(3):
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    salts = done.stdout.split()
    assert len(salts) == len(set(salts)) == 200


@given(parts, parts)
def test_derived_salts_differ_exactly_when_the_parts_do(one, other):
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (derive_salt(*one) == derive_salt(*other)) is same


def test_derived_salts_do_not_collide_by_concatenation():
    keys = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), (1, 23), (12, 3), (123,), ("123",), (-123,)]
    assert len({derive_salt(*key) for key in keys}) == len(keys)


def test_a_derived_salt_never_changes():
    """Salts live in other people's databases: the same key must give this text for ever."""
    assert derive_salt("T-07", 123) == "d6edb718e6f6f3088ccbdd93393067d2"


def test_a_prefix_stays_readable():
    assert derive_salt("T-07", 123, prefix="pos") == "pos-" + derive_salt("T-07", 123)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((), "parts"), ((1.5,), "parts[0]"), (("a", None), "parts[1]"), ((True,), "parts[0]"), (("\ud800",), "parts[0]")],
)
def test_parts_of_other_types_are_refused(arguments, field):
    with pytest.raises(InvalidRecord) as refused:
        derive_salt(*arguments)
    assert refused.value.field == field


@pytest.mark.parametrize("prefix", ["ż", "a\n", "x" * 65, 7])
def test_a_prefix_that_would_make_a_bad_salt_is_refused(prefix):
    with pytest.raises(InvalidRecord, match=r"prefix: "):
        derive_salt("a", prefix=prefix)
