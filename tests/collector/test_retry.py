"""Patience: full jitter, Retry-After as a floor, and waves of refusals."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.retry import Wave, backoff_s, delay_s, parse_http_date_ms, parse_retry_after

NOW = datetime(2026, 5, 4, 9, 53, 56, tzinfo=UTC)
chances = st.floats(0, 1, exclude_max=True)


@given(failures=st.integers(1, 10**6), base=st.floats(0, 60), most=st.floats(0, 3600), chance=chances)
def test_the_backoff_stays_between_nothing_and_the_exponential(
    failures: int, base: float, most: float, chance: float
) -> None:
    waited = backoff_s(failures, base, most, lambda: chance)
    assert 0 <= waited <= min(most, base * 2.0 ** min(failures - 1, 62))


def test_the_backoff_doubles_up_to_its_maximum() -> None:
    assert [backoff_s(n, 1, 300, lambda: 1.0) for n in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(failures=st.integers(1, 100), asked=st.floats(0.001, 1e12), most=st.floats(1, 7200), seed=st.integers())
def test_never_earlier_than_asked_and_never_more_than_a_fifth_later(
    failures: int, asked: float, most: float, seed: int
) -> None:
    waited = delay_s(
        failures, base_s=1, max_s=1, chance=random.Random(seed).random, retry_after_s=asked, retry_after_max_s=most
    )
    floor = min(asked, most)
    assert floor <= waited <= max(floor * 1.2, 1)


def test_a_thousand_tills_told_the_same_come_back_spread_out() -> None:
    chance = random.Random(7).random
    waits = [delay_s(1, base_s=1, max_s=300, chance=chance, retry_after_s=60) for _ in range(1000)]
    assert min(waits) >= 60
    assert max(waits) <= 72
    assert max(sum(1 for w in waits if second <= w < second + 1) for second in range(60, 72)) < 150


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 2 ", 2),
        ("1.5", 1.5),
        ("1000000000", 1e9),
        ("0", None),
        ("-5", None),
        ("inf", None),
        ("nan", None),
        ("1e400", None),
        ("soon", None),
        ("", None),
        (None, None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), None),
        ("Mon, 99 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_understood_or_left_out(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, format_datetime(NOW, usegmt=True)) == seconds


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_a_time_of_day_without_the_answers_own_date_cannot_be_understood(date: str | None) -> None:
    assert parse_retry_after(format_datetime(NOW, usegmt=True), date) is None


@given(st.text(max_size=40))
def test_no_text_in_a_header_is_a_surprise(text: str) -> None:
    parsed = parse_retry_after(text, text)
    assert parsed is None or parsed > 0
    assert isinstance(parse_http_date_ms(text), int | None)


def test_a_wave_is_full_at_its_limit_and_empties_as_others_are_delivered() -> None:
    wave = Wave.parse("20/400")
    for _ in range(19):
        wave.refused()
    assert not wave.full
    wave.refused()
    assert wave.full
    wave.delivered(380)
    assert wave.full
    wave.delivered()
    assert not wave.full
    wave.refused()
    wave.reset()
    assert not wave.full


@given(st.lists(st.one_of(st.just("refused"), st.integers(1, 30)), max_size=60))
def test_a_wave_counts_exactly_its_window(steps: list[str | int]) -> None:
    wave, history = Wave(3, 10), []
    for step in steps:
        if isinstance(step, int):
            wave.delivered(step)
            history += [0] * step
        else:
            wave.refused()
            history.append(1)
        assert wave.full == (sum(history[-10:]) >= 3)


@pytest.mark.parametrize("text", ["", "20", "20/", "/400", "a/b", "0/400", "401/400", "-1/5", "1/10000000"])
def test_a_wrong_wave_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="is not a wave"):
        Wave.parse(text)
