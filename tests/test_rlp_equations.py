"""RLP's equations 5 and 7 and Proposition 1 (arXiv 2510.01265) against numbers by hand and other algorithms."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import models
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen3ForCausalLM

from rl_think_ext.methods.rlp import (
    Aggregate,
    RLPConfig,
    group_advantage,
    information_gain,
    spread,
    target_value,
)
from rl_think_ext.records import Score
from rl_think_ext.scoring.ema import WeightAverage
from rl_think_ext.scoring.likelihood import Likelihood, Query

NAN, INF = math.nan, math.inf


def test_gain_by_hand() -> None:
    reasoned = torch.tensor([[-0.5, -1.0, -9.0], [-1.0, NAN, NAN], [-2.0, -2.0, -2.0]])
    baseline = torch.tensor([[-2.0, -1.5, -1.0], [-0.5, NAN, NAN], [-2.0, -3.0, -4.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    assert information_gain(reasoned, baseline, mask).tolist() == [2.0, -0.5, 3.0]
    assert information_gain(reasoned, baseline, mask, aggregate="mean").tolist() == [1.0, -0.5, 1.0]
    halved = information_gain(reasoned, baseline, mask, aggregate="discounted", discount=0.5)
    assert halved.tolist() == [1.5 + 0.5 * 0.5, -0.5, 0.0 + 0.5 * 1.0 + 0.25 * 2.0]
    assert information_gain(reasoned[2:], baseline[2:]).tolist() == [3.0]


def test_gain_is_positive_exactly_when_the_thought_made_the_text_likelier() -> None:
    reasoned, baseline = torch.randn(50, 1), torch.randn(50, 1)
    assert torch.equal(information_gain(reasoned, baseline) > 0, (reasoned > baseline)[:, 0])


@pytest.mark.parametrize("aggregate", ["sum", "mean", "discounted"])
def test_aggregates_agree_with_a_loop(aggregate: Aggregate) -> None:
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(40, 7, generator=generator, dtype=torch.float64) * 20
    mask = torch.rand(40, 7, generator=generator) < 0.6
    got = target_value(logprob, mask, aggregate, discount=0.9).tolist()
    for row, keep, value in zip(logprob.tolist(), mask.tolist(), got, strict=True):
        targets = [x for x, kept in zip(row, keep, strict=True) if kept]
        if not targets:
            assert math.isnan(value)
            continue
        # The k-th target, not the k-th column: what is masked takes no power of the discount.
        weights = [0.9**k if aggregate == "discounted" else 1.0 for k in range(len(targets))]
        total = math.fsum(w * x for w, x in zip(weights, targets, strict=True))
        assert value == pytest.approx(total / len(targets) if aggregate == "mean" else total, rel=1e-14)


@pytest.mark.parametrize("aggregate", ["sum", "mean", "discounted"])
def test_f15_no_target_is_nan_and_never_zero(aggregate: Aggregate) -> None:
    logprob, nothing = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    assert target_value(logprob, nothing, aggregate, 0.5).isnan().all()
    assert information_gain(torch.zeros(2, 0), torch.zeros(2, 0), aggregate=aggregate).isnan().all()
    assert information_gain(torch.zeros(0, 3), torch.zeros(0, 3), aggregate=aggregate).shape == (0,)


def test_f14_infinite_and_very_long_sums() -> None:
    gain = information_gain(torch.tensor([[-INF], [-1.0], [-INF]]), torch.tensor([[-1.0], [-INF], [-INF]]))
    assert gain[:2].tolist() == [-INF, INF]
    assert gain[2].isnan()
    # A masked infinity is nobody's business.
    row, mask = torch.tensor([[-1.0, -INF, NAN]]), torch.tensor([[True, False, False]])
    assert target_value(row, mask, "discounted", 0.5).tolist() == [-1.0]
    long = torch.full((1, 200_000), -0.1)
    assert float(target_value(long, torch.ones_like(long, dtype=torch.bool))) == pytest.approx(-20_000.0, rel=1e-6)


def leave_one_out(rewards: list[float], size: int) -> list[float]:
    """Eq. 7 by another road: r_i minus the mean of the others, in rational numbers."""
    out = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        for i, reward in enumerate(group):
            others = [Fraction(r) for j, r in enumerate(group) if j != i and math.isfinite(r)]
            alone = not math.isfinite(reward) or not others
            out.append(0.0 if alone else float(Fraction(reward) - sum(others) / len(others)))
    return out


def test_advantage_by_hand() -> None:
    # G / (G - 1) * (r - mean) with G = 4: mean 2.5, factor 4 / 3.
    assert group_advantage(torch.tensor([1.0, 2.0, 3.0, 4.0]), 4).tolist() == pytest.approx([-2.0, -2 / 3, 2 / 3, 2.0])
    # One unscorable sample leaves the group: n = 3, mean 2, factor 3 / 2.
    assert group_advantage(torch.tensor([1.0, NAN, 2.0, 3.0]), 4).tolist() == [-1.5, 0.0, 0.0, 1.5]
    # Groups are apart.
    assert group_advantage(torch.tensor([0.0, 2.0, 100.0, 102.0]), 2).tolist() == [-2.0, 2.0, -2.0, 2.0]


def test_advantage_is_not_divided_by_a_spread() -> None:
    rewards = torch.tensor([0.0, 1.0, 5.0, 2.0])
    torch.testing.assert_close(group_advantage(rewards * 10, 4), group_advantage(rewards, 4) * 10)


groups = st.integers(1, 6).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            st.lists(st.floats(-100, 100, width=32) | st.sampled_from((NAN, INF, -INF)), min_size=size, max_size=size),
            max_size=4,
        ),
    )
)


@given(groups)
@example((3, [[0.1, 0.1, 0.1]]))
@example((2, []))
def test_f13_advantage_sums_to_zero_and_agrees_with_leave_one_out(drawn: tuple[int, list[list[float]]]) -> None:
    size, rows = drawn
    rewards = [r for row in rows for r in row]
    got = group_advantage(torch.tensor(rewards), size)
    assert got.shape == (len(rewards),)
    assert got.isfinite().all()
    assert got.tolist() == pytest.approx(leave_one_out(rewards, size), abs=1e-4)
    assert got.reshape(-1, size).sum(-1).tolist() == pytest.approx([0.0] * len(rows), abs=1e-4)
    assert not got[~torch.tensor(rewards).isfinite()].any()


@given(groups, st.randoms(use_true_random=False))
def test_advantage_moves_with_its_sample(drawn: tuple[int, list[list[float]]], random: object) -> None:
    size, rows = drawn
    assume(rows)
    order = list(range(size))
    random.shuffle(order)  # type: ignore[attr-defined]
    rewards = torch.tensor(rows)
    plain = group_advantage(rewards.reshape(-1), size).reshape(-1, size)
    moved = group_advantage(rewards[:, order].reshape(-1), size).reshape(-1, size)
    torch.testing.assert_close(moved, plain[:, order], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "rewards", [[0.1] * 4, [0.1] * 7, [1e4 / 3] * 11, [NAN] * 4, [INF, NAN, 2.0, NAN], [0.1, NAN, 0.1, 0.1]]
)
def test_f13_equal_or_lonely_rewards_are_exactly_zero(rewards: list[float]) -> None:
    assert group_advantage(torch.tensor(rewards), len(rewards)).tolist() == [0.0] * len(rewards)


def test_f13_group_of_one_and_empty_batch() -> None:
    assert group_advantage(torch.tensor([3.0, -1.0]), 1).tolist() == [0.0, 0.0]
    assert group_advantage(torch.zeros(0), 4).shape == (0,)


def test_f47_spread_within_the_noise_counts_as_equal() -> None:
    rewards = torch.tensor([1.0, 1.01, 1.0, 1.5])
    assert spread(rewards, 2).tolist() == pytest.approx([0.01, 0.5])
    got = group_advantage(rewards, 2, noise_floor=0.1)
    assert got.tolist() == [0.0, 0.0, -0.5, 0.5]
    assert group_advantage(torch.tensor([1.0, 1.5]), 2, noise_floor=0.5).tolist() == [0.0, 0.0]


def test_spread_leaves_out_what_is_not_scorable() -> None:
    rewards = torch.tensor([1.0, NAN, 4.0, NAN, NAN, NAN, INF, 2.0, 2.0])
    assert spread(rewards, 3).tolist() == [3.0, 0.0, 0.0]
    assert spread(torch.zeros(0), 3).shape == (0,)


@pytest.mark.parametrize(("num", "size"), [(5, 2), (3, 4), (4, 0), (4, -1)])
def test_advantage_wants_whole_groups(num: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{num} rewards are no whole number of groups of {size}"):
        group_advantage(torch.zeros(num), size)


def test_advantage_keeps_the_shape_and_the_baseline_cancels() -> None:
    rewards = torch.randn(6, 4)
    assert group_advantage(rewards, 4).shape == (6, 4)
    shifted = group_advantage((rewards + torch.arange(6.0)[:, None]).flatten(), 4)
    torch.testing.assert_close(shifted, group_advantage(rewards.flatten(), 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_target_tokens": 0}, "`num_target_tokens` is at least 1, got 0"),
        ({"max_tokens_per_batch": 0}, "`max_tokens_per_batch` is at least 1"),
        ({"max_failed_steps": 0}, "`max_failed_steps` is at least 1"),
        ({"ema_decay": 1.001}, "`ema_decay` is from 0 to 1"),
        ({"score_noise_share": NAN}, "`score_noise_share` is from 0 to 1"),
        ({"discount": 0.0}, "`discount` is above 0"),
        ({"discount": 1.1}, "`discount` is above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(RLPConfig(), **change)


def test_the_defaults_are_the_papers_equation() -> None:
    config = RLPConfig()
    assert (config.num_target_tokens, config.aggregate, config.baseline, config.ema_decay) == (1, "sum", "ema", 0.999)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_f12_a_score_is_never_a_number_that_is_none(value: float) -> None:
    with pytest.raises(ValueError, match="a score is finite or None with a reason"):
        Score(value)


def test_score_is_a_value_or_a_reason() -> None:
    assert Score(0.0).value == 0.0
    assert Score.unscorable("empty", length=3.0) == Score(None, "empty", {"length": 3.0})
    for value, reason in ((None, None), (1.0, "but")):
        with pytest.raises(ValueError, match="a value or a reason"):
            Score(value, reason)


VOCAB = 23


def sharp_model(seed: int) -> Qwen3ForCausalLM:
    return models.qwen3(VOCAB, seed, tie_word_embeddings=False).eval()


def log_softmax_at(model: Qwen3ForCausalLM, prefix: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model.double()(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)


def test_proposition_1_expected_gain_is_a_difference_of_cross_entropies() -> None:
    model = sharp_model(0)
    start = WeightAverage(model, 1.0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    context, thought = (3, 1, 4, 1, 5), (9, 2, 6, 5, 21)
    likelihood = Likelihood(model, pad_id=0)
    # E over the FULL vocabulary: every token once as the target, with and without the thought.
    reasoned, *_ = likelihood([Query(context + thought, (x,)) for x in range(VOCAB)])
    with start.swapped_in():
        baseline, *_ = likelihood([Query(context, (x,)) for x in range(VOCAB)])
    reward = information_gain(reasoned, baseline).double()
    log_theta = log_softmax_at(model, context + thought)
    with start.swapped_in():
        log_baseline = log_softmax_at(model, context)
    assert (log_theta - log_baseline).abs().max() > 0.5, "the thought has to change something"
    peaked = torch.zeros(VOCAB, dtype=torch.float64)
    peaked[7] = 1.0
    generator = torch.Generator().manual_seed(1)
    for p_star in (
        torch.rand(VOCAB, generator=generator, dtype=torch.float64).pow(4),
        torch.ones(VOCAB, dtype=torch.float64),
        peaked,
    ):
        p = p_star / p_star.sum()
        expected = -(p * log_baseline).sum() + (p * log_theta).sum()
        assert float((p * reward).sum()) == pytest.approx(float(expected), abs=1e-5)


def test_proposition_3_mean_gain_is_the_cross_entropy_improvement_per_token() -> None:
    model, other = sharp_model(0), sharp_model(1)
    text, thought = (3, 1, 4, 1, 5, 9, 2, 6), (11, 12)
    cuts = range(1, len(text))
    reasoned, *_ = Likelihood(model, 0)([Query(text[:t] + thought, text[t : t + 1]) for t in cuts])
    baseline, *_ = Likelihood(other, 0)([Query(text[:t], text[t : t + 1]) for t in cuts])
    ids = torch.tensor([text])
    with torch.no_grad():
        ce_baseline = float(other(ids, labels=ids).loss)
    ce_reasoned = -sum(float(log_softmax_at(model, text[:t] + thought)[text[t]]) for t in cuts) / len(cuts)
    assert float(information_gain(reasoned, baseline).mean()) == pytest.approx(ce_baseline - ce_reasoned, abs=1e-5)
