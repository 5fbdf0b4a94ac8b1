"""A fleet comes back at the same moment; the full one of 1,000 tills: ``python benchmarks/fleet.py``."""

import logging

import pytest

from benchmarks.fleet import Story, simulate

TILLS, AWAY_S, EACH_S = 40, 900.0, 400.0


@pytest.mark.parametrize("story", ["maintenance", "power"])
def test_a_fleet_that_comes_back_at_once_spares_the_upstream_and_without_jitter_it_would_not(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "tillpost"):  # a till that loses its power gives up what it was at
        spread = simulate(story, TILLS, jitter=True, away_s=AWAY_S, each_s=EACH_S)
        herd = simulate(story, TILLS, jitter=False, away_s=AWAY_S, each_s=EACH_S)
    assert spread.ratio <= 3, spread
    assert herd.ratio > 3, "the control: a herd is seen when there is one"
    assert (spread.early, herd.early) == (0, 0), "never before Retry-After"


def test_the_simulation_sees_who_comes_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.patience.delay_s", lambda failures, **more: 30.0)
    assert simulate("maintenance", 3, jitter=True, away_s=300, each_s=200).early > 0
