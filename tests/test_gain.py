"""The gain of thoughts: what is asked of the model, what a tag that leaks costs, and what has no score."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from rl_think_ext.methods.rlp import Aggregate, Baseline, RLPConfig
from rl_think_ext.records import Status
from rl_think_ext.scoring.ema import WeightAverage
from rl_think_ext.scoring.gain import FIELDS, REASONS, Gains, GainScorer, Rollout, gain_metrics, without_tag
from rl_think_ext.scoring.likelihood import Likelihood, Query, Scored
from rl_think_ext.template import TagIds, ThoughtIds

OPEN, CLOSE, VOCAB = 1, 2, 13
TAGS = TagIds((OPEN,), (CLOSE,))
QUIET = RLPConfig(score_noise_share=0.0, num_target_tokens=3)


def qwen3() -> Qwen3ForCausalLM:
    return models.qwen3(VOCAB).eval()


class Markov(nn.Module):
    """A language model whose next token depends on the last one only: every probability can be written down."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, logits_to_keep: int = 0) -> Any:
        return SimpleNamespace(logits=self.table[input_ids[:, -logits_to_keep:]])


def thought(*ids: int, status: Status = "ok", closing: tuple[int, ...] = (CLOSE,)) -> ThoughtIds:
    return ThoughtIds((*ids, *closing), len(ids) + 1, status)


def rollout(
    context: tuple[int, ...] = (3, 4, 5), target: tuple[int, ...] = (6,), said: ThoughtIds | None = None
) -> Rollout:
    return Rollout((*context, OPEN), context, target, said or thought(7, 8))


def two_groups() -> list[Rollout]:
    """Two contexts, four different thoughts each, targets of three tokens and of one."""
    return [
        rollout(context, target, thought(*range(3, 4 + i)))
        for context, target in (((3, 4, 5), (6, 7, 8)), ((9, 10), (11,)))
        for i in range(4)
    ]


@contextmanager
def rows_read(model: nn.Module) -> Iterator[Counter[tuple[int, ...]]]:
    """How often the model reads each row of ids, padding aside."""
    rows: Counter[tuple[int, ...]] = Counter()

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        for ids, seen in zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True):
            rows[tuple(ids[seen].tolist())] += 1

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def oracle(model: nn.Module, prefix: tuple[int, ...], target: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prefix, *target]])).logits[0].double()
    rows = logits.log_softmax(-1)[len(prefix) - 1 : -1]
    return [float(row[x]) for row, x in zip(rows, target, strict=True)]


def test_equation_5_against_one_by_one() -> None:
    model, rollouts = qwen3(), two_groups()
    config = dataclasses.replace(QUIET, baseline_mask_open_tag=False)
    gains = GainScorer(config, Likelihood(model, 0), TAGS)(rollouts)
    for i, r in enumerate(rollouts):
        reasoned, baseline = oracle(model, r.prompt + r.thought.ids, r.target), oracle(model, r.context, r.target)
        assert float(gains.column("reasoned")[i]) == pytest.approx(sum(reasoned), abs=1e-4)
        assert float(gains.column("baseline")[i]) == pytest.approx(sum(baseline), abs=1e-4)
        assert float(gains.column("gain")[i]) == pytest.approx(sum(reasoned) - sum(baseline), abs=1e-4)
        assert float(gains.column("length")[i]) == r.thought.num_sampled
    assert gains.column("gain").std() > 0.1
    assert gains.column("reason").tolist() == [-1.0] * 8
    assert gains.column("frozen").isnan().all()
    assert [score.value for score in gains.scores()] == gains.column("gain").tolist()


@pytest.mark.parametrize("aggregate", ["sum", "mean", "discounted"])
def test_aggregates(aggregate: Aggregate) -> None:
    model, rollouts = qwen3(), two_groups()
    discount = 0.5 if aggregate == "discounted" else 1.0
    config = dataclasses.replace(QUIET, aggregate=aggregate, discount=discount, baseline_mask_open_tag=False)
    gains = GainScorer(config, Likelihood(model, 0), TAGS)(rollouts)
    for i, r in enumerate(rollouts):
        reasoned, baseline = oracle(model, r.prompt + r.thought.ids, r.target), oracle(model, r.context, r.target)
        each = [a - b for a, b in zip(reasoned, baseline, strict=True)]
        by_hand = {
            "sum": sum(each),
            "mean": sum(each) / len(each),
            "discounted": sum(gain * 0.5**k for k, gain in enumerate(each)),
        }
        assert float(gains.column("gain")[i]) == pytest.approx(by_hand[aggregate], abs=1e-4)


def test_accuracy_is_the_share_of_targets_that_are_the_likeliest_token() -> None:
    """By hand on a table of log-probs: behind 4 the tag is likeliest, 6 next; behind 6 it is 1; behind 5 it is 6."""
    table = torch.full((7, 7), -6.0)
    table[4, OPEN], table[4, 6], table[6, 1], table[5, 6], table[CLOSE, 5] = 3.0, 2.0, 4.0, 4.0, 4.0
    model = Markov(table.log_softmax(-1))
    behind_tag = thought(6, CLOSE)
    cases = [((6, 1), 0.0 / 2 + 1 / 2), ((5, 6), 2 / 2), ((5, 1), 1 / 2), ((6, 6), 0.0)]
    rollouts = [rollout((3, 4), target, behind_tag) for target, _ in cases]
    gains = GainScorer(QUIET, Likelihood(model, 0), TAGS)(rollouts)
    assert gains.column("accuracy").tolist() == pytest.approx([share for _, share in cases])
    # Without a thought the first target follows 4; the opening tag is ruled out, so 6 is the likeliest there.
    assert gains.column("baseline_accuracy").tolist() == pytest.approx([2 / 2, 1 / 2, 0.0, 1 / 2])
    raw = dataclasses.replace(QUIET, baseline_mask_open_tag=False)
    gains = GainScorer(raw, Likelihood(model, 0), TAGS)(rollouts)
    assert gains.column("baseline_accuracy").tolist() == pytest.approx([1 / 2, 1 / 2, 0.0, 0.0])
    none = GainScorer(dataclasses.replace(QUIET, baseline="none"), Likelihood(model, 0), TAGS)(rollouts)
    assert none.column("baseline_accuracy").isnan().all()
    assert none.column("accuracy").tolist() == pytest.approx([share for _, share in cases])


def test_a_score_that_is_not_finite_has_no_accuracy() -> None:
    table = torch.zeros(7, 7)
    table[CLOSE, 5] = -torch.inf
    gains = GainScorer(QUIET, Likelihood(Markov(table.log_softmax(-1)), 0), TAGS)([rollout((3, 4), (5,), thought(6))])
    assert gains.scores()[0].reason == "score not finite"
    assert gains.column("accuracy").isnan().all()


@pytest.mark.parametrize("group_size", [1, 4, 7])
def test_one_baseline_query_per_different_context(group_size: int) -> None:
    model = qwen3()
    frozen = WeightAverage(model, 1.0)
    rollouts = [rollout((3, 4, last), said=thought(*[5] * (i + 1))) for last in (6, 7) for i in range(group_size)]
    with rows_read(model) as rows:
        GainScorer(QUIET, Likelihood(model, 0), TAGS, frozen=frozen.swapped_in)(rollouts)
    contexts = {(3, 4, 6), (3, 4, 7)}
    assert {row: count for row, count in rows.items() if row in contexts} == dict.fromkeys(contexts, 2)  # live, frozen
    assert {row: count for row, count in rows.items() if row not in contexts} == {
        r.prompt + r.thought.ids: 1 for r in rollouts
    }


def test_f47_equal_thoughts_are_scored_once_and_equal_to_the_bit() -> None:
    model = qwen3().bfloat16()
    with rows_read(model) as rows:
        gains = GainScorer(QUIET, Likelihood(model, 0), TAGS)([rollout() for _ in range(8)])
    assert sorted(rows.values()) == [1, 1]
    assert len(set(gains.column("gain").tolist())) == 1


def test_without_a_baseline_nothing_is_asked_without_a_thought() -> None:
    model = qwen3()
    with rows_read(model) as rows:
        gains = GainScorer(dataclasses.replace(QUIET, baseline="none"), Likelihood(model, 0), TAGS)(two_groups())
    assert not {(3, 4, 5), (9, 10)} & {row[:3] if row[3:4] != (OPEN,) else () for row in rows}
    assert torch.equal(gains.column("gain"), gains.column("reasoned"))
    assert gains.column("baseline").tolist() == [0.0] * 8


def test_baseline_kinds_leave_the_reasoned_scores_identical_to_the_bit() -> None:
    model, rollouts = qwen3(), two_groups()
    average = WeightAverage(model, 0.5)
    for tensor in average.average.values():
        tensor.mul_(1.5)
    kinds: tuple[tuple[Baseline, Any], ...] = (
        ("ema", average.swapped_in),
        ("init", WeightAverage(model, 1.0).swapped_in),
        ("live", None),
        ("none", None),
    )
    found = {}
    for kind, weights in kinds:
        config = dataclasses.replace(QUIET, baseline=kind)
        found[kind] = GainScorer(config, Likelihood(model, 0), TAGS, weights)(rollouts)
    for gains in found.values():
        assert torch.equal(gains.column("reasoned"), found["ema"].column("reasoned"))
    assert torch.equal(found["init"].column("gain"), found["live"].column("gain"))
    assert (found["ema"].column("gain") - found["live"].column("gain")).abs().min() > 1e-3


def test_frozen_gain_is_against_the_start_and_does_not_touch_the_reward() -> None:
    model, rollouts = qwen3(), two_groups()
    start = WeightAverage(model, 1.0)
    expected = GainScorer(QUIET, Likelihood(model, 0), TAGS)(rollouts)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    plain = GainScorer(QUIET, Likelihood(model, 0), TAGS)(rollouts)
    gains = GainScorer(QUIET, Likelihood(model, 0), TAGS, frozen=start.swapped_in)(rollouts)
    assert torch.equal(gains.column("gain"), plain.column("gain"))
    torch.testing.assert_close(gains.column("frozen"), expected.column("baseline"))
    torch.testing.assert_close(gains.column("frozen_gain"), gains.column("reasoned") - gains.column("frozen"))
    assert (gains.column("frozen") - gains.column("baseline")).abs().min() > 1e-3


def unit_table(vocab: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)) * scale).log_softmax(-1)


@pytest.mark.parametrize("p", [0.001, 0.5, 0.65, 0.99])
def test_leaking_tag_masked_baseline_is_renormalised_exactly(p: float) -> None:
    # Whatever was read, the model puts p on the opening tag and shares the rest evenly.
    probabilities = torch.full((VOCAB, VOCAB), (1 - p) / (VOCAB - 1))
    probabilities[:, OPEN] = p
    model = Markov(probabilities.log())
    gains = GainScorer(QUIET, Likelihood(model, 0), TAGS)([rollout(target=(6, 7, 8)), rollout()])
    unmasked, masked = gains.column("baseline_unmasked"), gains.column("baseline")
    # At the first target only: behind it a tag would be one that the text does not write.
    share = math.log((1 - p) / (VOCAB - 1))
    assert unmasked.tolist() == pytest.approx([3 * share, share], rel=1e-5)
    assert (masked - unmasked).tolist() == pytest.approx([-math.log(1 - p)] * 2, rel=1e-4, abs=1e-6)
    assert gains.column("gain").tolist() == pytest.approx([math.log(1 - p)] * 2, rel=1e-4, abs=1e-6)
    assert gains.column("reasoned").tolist() == unmasked.tolist()
    config = dataclasses.replace(QUIET, baseline_mask_open_tag=False)
    off = GainScorer(config, Likelihood(model, 0), TAGS)([rollout(target=(6, 7, 8))])
    assert float(off.column("gain")) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(off.column("baseline"), off.column("baseline_unmasked"))


def enumerated(table: Tensor, last: int, target: tuple[int, ...], tag: tuple[int, ...]) -> list[float]:
    """P(x_k | x_<k, the text does not begin with the tag), summed over every text of sufficient length."""
    length = max(len(target), len(tag))
    texts = {}
    for text in itertools.product(range(len(table)), repeat=length):
        if text[: len(tag)] != tag:
            texts[text] = math.exp(math.fsum(float(table[a, b]) for a, b in itertools.pairwise((last, *text))))
    agreeing = [math.fsum(p for text, p in texts.items() if text[:k] == target[:k]) for k in range(len(target) + 1)]
    return [math.log(b / a) for a, b in itertools.pairwise(agreeing)]


@pytest.mark.parametrize(
    "target",
    [
        (6,),
        (3, 0, 4),
        (1,),  # begins the tag without being it: `<` in a text of markup
        (1, 5),  # leaves the tag at its second token
        (1, 3, 1),  # leaves it at its last
        (1, 3, 6, 2),
        (3, 1, 3, 5),  # the tag later in the target is nobody's business
    ],
    ids=str,
)
def test_tag_of_several_tokens_agrees_with_enumeration(target: tuple[int, ...]) -> None:
    tag = (1, 3, 5)
    table = unit_table(7, scale=0.7).double()
    for a, b in ((4, 1), (1, 3), (3, 5)):  # a model that likes to open a thought behind a 4
        table[a, b] += 3.0
    table = table.log_softmax(-1)
    model = Markov(table)
    expected = enumerated(table, 4, target, tag)
    scorer = GainScorer(QUIET, Likelihood(model, 0), TagIds(tag, (2,)))
    gains = scorer([rollout((3, 4), target, thought(6, 6)), rollout((3, 4), target, thought(6))])
    assert gains.column("baseline").tolist() == pytest.approx([sum(expected)] * 2, abs=1e-5)
    plain, *_ = Likelihood(model, 0)([Query((4,), target)])
    assert gains.column("baseline_accuracy").isnan().all(), "with a tag of several tokens nobody can say"
    tag_logprob, *_ = Likelihood(model, 0)([Query((4,), tag)])
    each = without_tag(plain, [target], tag_logprob, tag)[0].tolist()
    assert each == pytest.approx(expected, abs=1e-5)
    assert max(abs(x - y) for x, y in zip(each, plain[0].tolist(), strict=True)) > 0.05


def test_target_that_is_the_whole_tag_has_no_score() -> None:
    tag = (1, 3, 5)
    scorer = GainScorer(QUIET, Likelihood(Markov(unit_table(7)), 0), TagIds(tag, (2,)))
    gains = scorer([rollout((3, 4), tag, thought(6)), rollout((3, 4), (6,), thought(6))])
    assert [score.reason for score in gains.scores()] == ["score not finite", None]
    single = GainScorer(QUIET, Likelihood(qwen3(), 0), TAGS)([rollout(target=(OPEN, 3))])
    assert single.scores()[0].reason == "score not finite"


def test_tag_of_one_token_by_either_road() -> None:
    table = unit_table(7)
    plain, restricted, _ = Likelihood(Markov(table), 0)([Query((4,), (6, 1))], forbid_first=1)
    tag_logprob, *_ = Likelihood(Markov(table), 0)([Query((4,), (1,))])
    torch.testing.assert_close(without_tag(plain, [(6, 1)], tag_logprob, (1,)), restricted)


REACHED = {
    "no target tokens": rollout(target=()),
    "empty thought": rollout(said=thought(status="empty_thought")),
    "thought not closed": rollout(said=thought(7, status="no_close")),
    "thought not opened": rollout(said=thought(7, status="no_open")),
    "longer than the model": rollout(context=(3,) * 60),
    "score not finite": rollout(target=(OPEN,)),
}


def test_every_reason_is_reached_and_counted() -> None:
    assert tuple(REACHED) == REASONS
    config = dataclasses.replace(QUIET, closing="unscorable")
    model = qwen3()
    frozen = WeightAverage(model, 1.0)
    scorer = GainScorer(config, Likelihood(model, 0), TAGS, frozen=frozen.swapped_in, max_length=32)
    gains = scorer([rollout(), *REACHED.values()])
    scores = gains.scores()
    assert [score.reason for score in scores] == [None, *REACHED]
    assert [score.value is None for score in scores] == [False] + [True] * len(REASONS)
    assert gains.column("gain")[1:].isnan().all()
    metrics = gain_metrics(gains, len(scores))
    assert metrics["unscorable"] == pytest.approx(len(REASONS) / len(scores))
    for reason in REASONS:
        assert metrics[f"unscorable/{reason.replace(' ', '_')}"] == pytest.approx(1 / len(scores))
    assert metrics["gain"] == pytest.approx(scores[0].value)
    assert metrics["logprob_reasoned"] == pytest.approx(float(gains.column("reasoned")[0]))
    assert metrics["unclosed"] == pytest.approx(1 / len(scores))


def test_f22_cut_off_thought_is_scored_when_it_may_be_appended() -> None:
    model = qwen3()
    gains = GainScorer(QUIET, Likelihood(model, 0), TAGS)([rollout(said=thought(7, 8, status="no_close")), rollout()])
    assert gains.column("gain")[0] == gains.column("gain")[1]
    assert gains.column("unclosed").tolist() == [1.0, 0.0]


def test_second_opening_tag_in_a_thought_is_counted_and_scored_like_any_token() -> None:
    model = qwen3()
    said = thought(7, OPEN, 8, status="extra_tags")
    gains = GainScorer(QUIET, Likelihood(model, 0), TAGS)([rollout(said=said), rollout()])
    expected = sum(oracle(model, (3, 4, 5, OPEN, *said.ids), (6,)))
    assert float(gains.column("reasoned")[0]) == pytest.approx(expected, abs=1e-4)
    assert gains.column("nested").tolist() == [1.0, 0.0]
    assert gain_metrics(gains, 2)["nested"] == 0.5


def test_a_row_as_long_as_the_model_is_scored() -> None:
    r = rollout()
    length = len(r.prompt) + len(r.thought.ids) + len(r.target)
    reasons = [
        GainScorer(QUIET, Likelihood(qwen3(), 0), TAGS, max_length=n)([r]).scores()[0].reason
        for n in (length, length - 2)
    ]
    assert reasons == [None, "longer than the model"]


@pytest.mark.parametrize("where", ["reasoned", "baseline", "both"])
@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_hazard_15_f12_f14_scores_that_are_not_finite_never_become_a_number(where: str, value: float) -> None:
    table = unit_table(VOCAB)
    # The target 6 has no probability behind a closing tag (reasoned), behind the context's last token, or both.
    for last in {"reasoned": [CLOSE], "baseline": [5], "both": [CLOSE, 5]}[where]:
        table[last, 6] = value
    likelihood = Likelihood(Markov(table), 0)
    healthy = rollout((3, 4), said=thought(7, closing=(9,)))
    config = RLPConfig(score_noise_share=1.0)
    gains = GainScorer(config, likelihood, TAGS)([rollout(), rollout((3, 4)), rollout(target=(7,)), healthy])
    first = gains.scores()[0]
    assert (first.value, first.reason) == (None, "score not finite")
    assert not gains.table.isinf().any()
    metrics = gain_metrics(gains, 4)
    assert math.isfinite(metrics["gain"])
    assert math.isfinite(metrics["score_noise"])
    finite = [score.value for score in gains.scores() if score.value is not None]
    assert metrics["unscorable/score_not_finite"] == pytest.approx(1 - len(finite) / 4)
    assert metrics["gain"] == pytest.approx(sum(finite) / len(finite), abs=1e-5)


def test_f12_one_bad_sample_leaves_the_others_as_they_are() -> None:
    model, rollouts = qwen3(), two_groups()
    clean = GainScorer(QUIET, Likelihood(model, 0), TAGS)(rollouts)
    bad = [rollout(target=()), *rollouts[:3], rollout(target=(OPEN,)), *rollouts[3:]]
    gains = GainScorer(QUIET, Likelihood(model, 0), TAGS)(bad)
    keep = [1, 2, 3, 5, 6, 7, 8, 9]
    torch.testing.assert_close(gains.table[keep], clean.table, equal_nan=True, atol=1e-5, rtol=0)


class Noisy(Markov):
    """The rows beside a row change its score, as rounding does in bf16."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, logits_to_keep: int = 0) -> Any:
        logits = self.table[input_ids[:, -logits_to_keep:]].clone()
        logits[..., 6] += 0.01 * len(input_ids)
        return SimpleNamespace(logits=logits)


def test_noise_is_the_largest_difference_between_two_scores_of_a_sample() -> None:
    rollouts = [rollout(said=thought(*[7] * (i + 1))) for i in range(4)]
    table = unit_table(VOCAB)
    gains = GainScorer(RLPConfig(score_noise_share=1.0), Likelihood(Noisy(table), 0), TAGS)(rollouts)

    def score(rows: int) -> float:
        logits = table[CLOSE].clone()
        logits[6] += 0.01 * rows
        return float(logits.log_softmax(-1)[6])

    assert gains.noise == pytest.approx(score(4) - score(1), rel=1e-3)
    assert gain_metrics(gains, 4)["score_noise"] == gains.noise
    quiet = GainScorer(QUIET, Likelihood(Noisy(table), 0), TAGS)(rollouts)
    assert quiet.noise == 0.0


@pytest.mark.parametrize(("share", "again"), [(0.0, 0), (0.01, 1), (0.25, 3), (1.0, 9)])
def test_noise_takes_its_share_of_the_samples(share: float, again: int) -> None:
    model = qwen3()
    rollouts = [rollout(said=thought(*[7] * (i + 1))) for i in range(9)]
    with rows_read(model) as rows:
        GainScorer(dataclasses.replace(QUIET, score_noise_share=share), Likelihood(model, 0), TAGS)(rollouts)
    assert sum(rows.values()) == 9 + 1 + again


def table_of(**columns: list[float]) -> Tensor:
    width = len(next(iter(columns.values())))
    table = torch.full((width, len(FIELDS)), math.nan)
    for name, values in columns.items():
        table[:, FIELDS.index(name)] = torch.tensor(values)
    return table


def test_metrics_by_hand() -> None:
    nan = math.nan
    table = table_of(
        reasoned=[-1.0, -2.0, -1.0, -1.0, -1.5, -9.0],
        gain=[1.0, -1.0, 2.0, 2.0, 4.0, nan],
        baseline=[-2.0, -1.0, -3.0, -3.0, -5.5, nan],
        accuracy=[1.0, 0.0, 1.0, 1.0, 0.5, nan],
        baseline_accuracy=[0.0, 0.0, 1.0, 1.0, 0.0, nan],
        length=[3.0, 5.0, 1.0, 1.0, 2.0, 6.0],
        unclosed=[0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        nested=[0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        reason=[-1.0, -1.0, -1.0, -1.0, -1.0, float(REASONS.index("score not finite"))],
    )
    metrics = gain_metrics(Gains(table, noise=0.1), group_size=2)
    by_hand = {
        "gain": 8 / 5,
        "gain_spread": (1.0 + 0.0 + 0.0) / 3,
        "gain_positive": 4 / 5,
        "accuracy": 3.5 / 5,
        "baseline_accuracy": 2 / 5,
        "logprob_reasoned": -6.5 / 5,  # the unscorable -9 is left out
        "logprob_baseline": -14.5 / 5,
        "thought_length": 3.0,
        "unclosed": 2 / 6,
        "unscorable": 1 / 6,
        "zero_variance_groups": 2 / 3,
        "score_noise": 0.1,
        "unscorable/score_not_finite": 1 / 6,
        "unscorable/empty_thought": 0.0,
        "nested": 1 / 6,
    }
    for name, value in by_hand.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name
    assert math.isnan(metrics["gain_frozen"])


def test_f47_group_within_the_noise_counts_as_zero_variance() -> None:
    table = table_of(reasoned=[-1.0, -1.05, -1.0, -2.0], gain=[0.0] * 4, reason=[-1.0] * 4)
    shares = [gain_metrics(Gains(table, noise), 2)["zero_variance_groups"] for noise in (0.0, 0.1, 1.5)]
    assert shares == [0.0, 0.5, 1.0]
    assert gain_metrics(Gains(table, 0.1), 4)["score_noise_to_spread"] == pytest.approx(0.1)


def test_f11_the_same_keys_whatever_there_is_to_say() -> None:
    scorer = GainScorer(QUIET, Likelihood(qwen3(), 0), TAGS)
    full = gain_metrics(scorer(two_groups()), 4)
    nothing = gain_metrics(scorer([rollout(target=())] * 4), 4)
    empty = gain_metrics(scorer([]), 4)
    assert list(full) == list(nothing) == list(empty)
    assert math.isnan(nothing["gain"])
    assert nothing["unscorable"] == 1.0
    assert math.isfinite(nothing["thought_length"])


def test_f13_no_rollouts_no_scores() -> None:
    gains = GainScorer(QUIET, Likelihood(qwen3(), 0), TAGS)([])
    assert gains.scores() == []
    assert gains.noise == 0.0


@pytest.mark.parametrize(("aggregate", "expected"), [("sum", 0.6), ("mean", 0.2), ("discounted", 0.35)])
def test_noise_is_in_the_unit_of_the_reward(aggregate: Aggregate, expected: float) -> None:
    """Three targets that each score 0.2 higher the second time: the reward differs by their aggregate."""
    calls = []

    def drifting(queries: list[Query], forbid_first: int | None = None) -> Scored:
        calls.append(len(queries))
        score = torch.full((len(queries), 3), -1.0 + (0.2 if len(calls) > 1 else 0.0))
        return Scored(score, score, torch.zeros_like(score))

    discount = 0.5 if aggregate == "discounted" else 1.0
    config = RLPConfig(baseline="none", frozen_gain=False, aggregate=aggregate, discount=discount, num_target_tokens=3)
    rollout = Rollout((5, 2), (5,), (6, 7, 8), ThoughtIds((9, 3), 2, "ok"))
    assert GainScorer(config, drifting, TAGS)([rollout]).noise == pytest.approx(expected)
