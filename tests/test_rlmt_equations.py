"""RLMT's equations against numbers by hand and against other ways to compute them."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_think_ext.methods.groups import group_statistics
from rl_think_ext.methods.rlmt import RLMTConfig, reward_messages, with_floor, without_noise
from rl_think_ext.records import Parts

NAN = float("nan")


def same(found, wanted):
    assert torch.equal(found.isnan(), torch.tensor(wanted).isnan())
    assert found.nan_to_num(0.0).tolist() == pytest.approx([0.0 if v != v else v for v in wanted])


def test_the_floor_by_hand():
    scores = torch.tensor([1.0, NAN, -3.0, NAN, 2.0])
    malformed = torch.tensor([False, True, False, False, False])
    # The fourth has an answer and no score: a server that failed is no bad answer.
    same(with_floor(scores, malformed), [1.0, -3.0, -3.0, NAN, 2.0])
    same(with_floor(scores, malformed, -9.5), [1.0, -9.5, -3.0, NAN, 2.0])
    same(with_floor(torch.tensor([NAN, NAN]), torch.tensor([True, False])), [NAN, NAN])
    same(with_floor(torch.tensor([NAN, NAN]), torch.tensor([True, False]), 0.5), [0.5, NAN])
    same(with_floor(torch.tensor([]), torch.tensor([], dtype=torch.bool)), [])


@given(st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_no_malformed_output_is_worth_more_than_an_answer(samples):
    scores = torch.tensor([NAN if bad or lost else score for score, bad, lost in samples])
    malformed = torch.tensor([bad for _, bad, _ in samples])
    paid = with_floor(scores, malformed)
    answers = scores[~scores.isnan()]
    assert torch.equal(paid[~malformed].nan_to_num(99.0), scores[~malformed].nan_to_num(99.0))
    assert not len(answers) or bool((paid[malformed] <= answers.min()).all())
    assert len(answers) or bool(paid.isnan().all())


def test_noise_by_hand():
    scores = torch.tensor([1.0, 1.25, NAN, 1.0, 5.0, 5.5, 6.0, 5.0])
    same(without_noise(scores, 4, 0.25), [13 / 12, 13 / 12, NAN, 13 / 12, 5.0, 5.5, 6.0, 5.0])
    same(without_noise(scores, 4, 0.2), scores.tolist())
    same(without_noise(scores, 4, NAN), scores.tolist())
    same(without_noise(torch.full((4,), NAN), 4, 1.0), [NAN] * 4)
    same(without_noise(torch.tensor([2.0, 2.0]), 2, 0.0), [2.0, 2.0])


@given(
    st.lists(st.one_of(st.just(NAN), st.floats(-30, 30, width=32)), min_size=4, max_size=16).filter(
        lambda v: len(v) % 4 == 0
    )
)
def test_group_statistics_agree_with_the_standard_library(values):
    found = group_statistics(torch.tensor(values), 4)
    groups = [[v for v in values[i : i + 4] if not math.isnan(v)] for i in range(0, len(values), 4)]
    means = [statistics.fmean(group) for group in groups if group]
    several = [statistics.stdev(group) for group in groups if len(group) > 1]
    for name, wanted in (
        ("score", statistics.fmean(means) if means else NAN),
        ("score_spread", statistics.fmean(several) if several else NAN),
        ("zero_variance_groups", statistics.fmean([float(s == 0) for s in several]) if several else NAN),
    ):
        assert found[name] == pytest.approx(wanted, abs=1e-5, nan_ok=True), name


def test_what_the_reward_model_is_shown():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "2 + 2?", "name": "me"}]
    shown = reward_messages(chat, Parts("SECRET", "4", "ok"))
    assert shown == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    full = reward_messages(chat, Parts("SECRET", "4", "ok"), score="full", text="<think>SECRET</think>4")
    assert full[-1]["content"] == "<think>SECRET</think>4"
    with pytest.raises(ValueError, match="nothing to score: no_close"):
        reward_messages(chat, Parts("SECRET", None, "no_close"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_concurrency": 0}, "`max_concurrency` is at least 1"),
        ({"max_length": 0}, "`max_length` is at least 1"),
        ({"timeout": 0.0}, "`timeout` is a number of seconds above 0"),
        ({"deadline": float("nan")}, "`deadline` is a number of seconds above 0"),
        ({"retries": -1}, "`retries`"),
        ({"score_noise_share": 2.0}, "`score_noise_share`"),
        ({"floor": NAN}, "`floor` is a finite number"),
        ({"floor": 1.0, "malformed": "unscorable"}, "needs `malformed: floor`"),
        ({"backend": "local", "server": "http://x"}, "is not asked with `backend: local`"),
        ({"output": "score", "server": "http://x"}, "a server gives logits"),
        ({"instruction_file": "x"}, "needs style response or response-only"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RLMTConfig(**settings)


def test_mode_and_stop_follow_the_settings():
    assert [RLMTConfig(malformed=m).mode for m in ("floor", "unscorable", "paper-strict")] == ["strict"] * 2 + [
        "paper-strict"
    ]
    assert [RLMTConfig(style=s).stop for s in ("think", "none", "response")] == [None, None, "</response>"]
    assert RLMTConfig(style="response").split("<think>a</think><response>b</response>").answer == "b"
