"""Alarms of RLPT on metrics made by hand: each is raised by its own fault, once, and by nothing else."""

from __future__ import annotations

import pytest

from rl_think_ext.methods.rlpt_alarms import RLPTAlarms

# A run in which all is well; a fault changes some of it from the fifth log on.
WELL = {
    "score": 0.4, "prediction_length": 20.0, "segments_covered": 1.4, "length": 400.0, "no_verdict": 0.01,
    "prediction_copied": 0.02, "truncated": 0.05, "status/no_open": 0.05, "status/no_close": 0.02,
    "zero_variance_groups": 0.3, "judge_canary_wrong_accepted": 0.0, "judge_canary_right_accepted": 1.0,
    "judge_latency_p95": 0.5, "judge_breaker_open": 0.0,
}  # fmt: skip
FAULTS = {
    "predictions shrank from 20 to 9 tokens": {"prediction_length": 9.0},
    "predictions covered 1.4 segments of their reference, and now 0.6": {"segments_covered": 0.6},
    "outputs shrank from 400 to 90 tokens": {"length": 90.0},
    "12% of the outputs got no verdict": {"no_verdict": 0.12},
    "15% of the predictions are copied": {"prediction_copied": 0.15},
    "40% of the outputs run into the length limit": {"truncated": 0.4},
    "60% of the outputs have no prediction": {"status/no_open": 0.35, "status/no_close": 0.25},
    "90% of the groups have equal rewards": {"zero_variance_groups": 0.9},
    "accepts 25% of known-wrong": {"judge_canary_wrong_accepted": 0.25},
    "accepts only 50% of known-right": {"judge_canary_right_accepted": 0.5},
    "slower, from 0.5 to 2.5 seconds": {"judge_latency_p95": 2.5},
    "the judge was given up": {"judge_breaker_open": 1.0},
}


def told(fault, num=14):
    alarms = RLPTAlarms()
    return [(step, text) for step in range(num) for text in alarms(WELL | (fault if step >= 5 else {}))]


@pytest.mark.parametrize("words", FAULTS)
def test_each_fault_is_said_once_and_by_itself(words):
    ((step, text),) = told(FAULTS[words])
    assert words in text and step == 7  # the third log in a row


def test_a_run_in_which_all_is_well_is_silent():
    assert told({}) == []
    assert told({"prediction_length": 11.0, "segments_covered": 0.8, "length": 120.0, "judge_latency_p95": 1.9}) == []


def test_what_comes_and_goes_is_no_alarm():
    alarms = RLPTAlarms()
    logs = [WELL | ({"no_verdict": 0.5, "judge_breaker_open": 1.0} if step % 3 else {}) for step in range(20)]
    assert [text for log in logs for text in alarms(log)] == []


def test_nothing_known_is_nothing_said():
    """A judge by the rule has no canaries and no latency, and an evaluation's log has none of all."""
    alarms = RLPTAlarms()
    nothing = [{}, {"score": None}, dict.fromkeys(WELL, float("nan")), dict.fromkeys(WELL)]
    assert [text for _ in range(9) for log in nothing for text in alarms(log)] == []
