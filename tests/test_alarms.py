"""Alarms: each says once, with numbers, what a run's own metrics say; silence and noise raise none."""

from __future__ import annotations

import math

import pytest

from rl_think_ext.methods.alarms import Alarms

HEALTHY = {
    "thought_length": 40.0,
    "entropy": 2.0,
    "logprob_baseline": -2.0,
    "logprob_frozen": -2.0,
    "zero_variance_groups": 0.2,
    "score_noise_to_spread": 0.05,
}


def logs(alarms: Alarms, num: int, **change: float | None) -> list[str]:
    return [text for _ in range(num) for text in alarms({**HEALTHY, **change})]


def test_a_healthy_run_raises_none() -> None:
    alarms = Alarms()
    assert logs(alarms, 50) == []
    assert logs(alarms, 50, thought_length=11.0, entropy=0.6, zero_variance_groups=0.8, logprob_baseline=-2.5) == []
    assert alarms.raised == {}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (
            {"thought_length": 9.9},
            "thought_length collapsed",
            ("thoughts shrank from 40 to 9.9 while the gain",),
        ),
        ({"entropy": 0.1}, "entropy collapsed", ("the sampling entropy shrank from 2 to 0.1",)),
        (
            {"zero_variance_groups": 0.9},
            "dead groups",
            ("90% of the groups have equal", "out of reach; select positions"),
        ),
        ({"score_noise_to_spread": 0.2}, "noise", ("noise is 20% of a group's spread",)),
        ({"logprob_baseline": -2.75}, "baseline fell", ("fell to -2.75 nats, 0.75 below the frozen start",)),
    ],
)
def test_each_alarm_is_raised_after_patience_and_once(
    change: dict[str, float], name: str, words: tuple[str, ...]
) -> None:
    alarms = Alarms()
    logs(alarms, 3)
    assert logs(alarms, 2, **change) == []
    found = logs(alarms, 1, **change)
    assert len(found) == 1
    assert all(word in found[0] for word in words)
    assert alarms.raised == {name: found[0]}
    assert logs(alarms, 20, **change) == []


def test_dead_groups_of_a_policy_that_learned_are_most_likely_solved() -> None:
    alarms = Alarms()
    logs(alarms, 3, gain_frozen=-0.1)
    (found,) = logs(alarms, 3, gain_frozen=2.0, zero_variance_groups=0.9)
    assert found.endswith("most likely solved; stop, or take harder texts")


def test_a_policy_that_learns_may_get_shorter_and_surer() -> None:
    alarms = Alarms()
    logs(alarms, 3, gain_frozen=0.1)
    assert logs(alarms, 20, gain_frozen=0.5, thought_length=1.0, entropy=0.01) == []
    # Once the gain is gone, it is a collapse.
    assert len(logs(alarms, 3, gain_frozen=0.05, thought_length=1.0, entropy=0.01)) == 2


def test_nan_is_no_gain_that_excuses_a_collapse() -> None:
    alarms = Alarms()
    logs(alarms, 3, gain_frozen=math.nan)
    assert len(logs(alarms, 3, gain_frozen=math.nan, thought_length=1.0)) == 1


def test_one_good_log_starts_the_patience_anew() -> None:
    alarms = Alarms(patience=3)
    logs(alarms, 3)
    for _ in range(5):
        assert logs(alarms, 2, entropy=0.1) == []
        assert logs(alarms, 1) == []
    assert len(logs(alarms, 3, entropy=0.1)) == 1


def test_the_beginning_is_the_mean_of_the_first_logs() -> None:
    alarms = Alarms(settle=2, patience=1)
    assert logs(alarms, 1, thought_length=10.0) == []
    assert logs(alarms, 1, thought_length=30.0) == []
    assert logs(alarms, 1, thought_length=5.0) == []  # a quarter of 20, not less
    assert "from 20 to 4.9" in logs(alarms, 1, thought_length=4.9)[0]


def test_direct_path_is_compared_only_when_both_are_there() -> None:
    alarms = Alarms(patience=1)
    assert logs(alarms, 5, logprob_baseline=None) == []
    assert logs(alarms, 5, logprob_frozen=None, logprob_baseline=-9.0) == []
    assert logs(alarms, 5, logprob_baseline=0.0, logprob_frozen=3.0) == []  # `baseline: none` has no baseline to fall
    assert len(logs(alarms, 1, logprob_baseline=-9.0)) == 1


def test_a_metric_that_is_missing_neither_starts_nor_ends_a_row() -> None:
    alarms = Alarms(settle=1, patience=2)
    assert alarms({}) == []
    assert alarms({"entropy": 2.0}) == []
    assert alarms({"entropy": 0.1}) == []
    assert alarms({"entropy": None}) == []
    assert len(alarms({"entropy": 0.1})) == 1


def test_nan_is_no_beginning_and_hides_no_collapse() -> None:
    alarms = Alarms()
    nothing = dict.fromkeys(HEALTHY, math.nan)
    for _ in range(5):
        assert alarms(nothing) == []
    logs(alarms, 3)
    assert logs(alarms, 2, thought_length=1.0) == []
    assert alarms(nothing) == []
    assert "shrank from 40 to 1" in logs(alarms, 1, thought_length=1.0)[0]


def test_several_alarms_at_once() -> None:
    alarms = Alarms(patience=1)
    logs(alarms, 3)
    assert len(logs(alarms, 1, thought_length=1.0, entropy=0.0, zero_variance_groups=1.0, logprob_baseline=-8.0)) == 4
    assert len(alarms.raised) == 4
