"""The gain of thoughts: reasoned, baseline and frozen log-probs of the same targets, and what became of each sample.

One reasoned query per different rollout, one baseline query per different context (never per rollout), one frozen
query per different context. A sample that cannot be scored carries a reason and NaN, never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rl_think_ext.methods.rlp import RLPConfig, information_gain, spread, target_value
from rl_think_ext.records import Score
from rl_think_ext.scoring.likelihood import Query, Scored
from rl_think_ext.template import TagIds, ThoughtIds

REASONS = (
    "no target tokens",
    "empty thought",
    "thought not closed",
    "thought not opened",
    "longer than the model",
    "score not finite",
)
_STATUS_REASON = {"empty_thought": REASONS[1], "no_open": REASONS[3]}

FIELDS = (
    "reasoned",
    "gain",
    "frozen_gain",
    "baseline",
    "baseline_unmasked",
    "frozen",
    "accuracy",
    "baseline_accuracy",
    "length",
    "unclosed",
    "nested",
    "reason",
)


class Rollout(NamedTuple):
    """A context, the target behind it, the prompt that was shown and the thought that was sampled, in ids."""

    prompt: tuple[int, ...]
    context: tuple[int, ...]
    target: tuple[int, ...]
    thought: ThoughtIds


@dataclass(frozen=True)
class Gains:
    """The numbers of N samples: a table [N, len(FIELDS)] float32 in nats and tokens, NaN where there is none.

    "accuracy" is the share of a sample's targets that are the likeliest token behind the thought,
    "baseline_accuracy" the same without a thought, under the baseline's weights and without its opening tag (NaN where
    that has several tokens and is masked).
    "reason" is -1 for a scorable sample, otherwise the index in REASONS; `noise` is the largest difference between
    two scores of one sample in different micro-batches.
    """

    table: Tensor
    noise: float

    def column(self, name: str) -> Tensor:
        """[N] of one field."""
        return self.table[:, FIELDS.index(name)]

    def scores(self) -> list[Score]:
        """The reward of each sample: the gain, or the reason why there is none."""
        pairs = zip(self.column("gain").tolist(), self.column("reason").tolist(), strict=True)
        return [Score(gain) if reason < 0 else Score.unscorable(REASONS[int(reason)]) for gain, reason in pairs]


class GainScorer:
    """Eq. 5 of RLP (arXiv 2510.01265) for rollouts.

    Args:
        config: The method's settings.
        likelihood: Scores queries under the policy's weights of the moment, as `likelihood.Likelihood` does.
        tags: The ids of the tags.
        baseline: Enters the baseline's weights; None for the live policy.
        frozen: Enters the start's weights; None to leave the frozen gain out.
        max_length: Positions that the model has, or None.
    """

    def __init__(
        self,
        config: RLPConfig,
        likelihood: Callable[..., Scored],
        tags: TagIds,
        baseline: Callable[[], AbstractContextManager[None]] | None = None,
        frozen: Callable[[], AbstractContextManager[None]] | None = None,
        max_length: int | None = None,
    ) -> None:
        self.config, self.likelihood, self.tags = config, likelihood, tags
        self.baseline, self.frozen, self.max_length = baseline, frozen, max_length

    def __call__(self, rollouts: Sequence[Rollout]) -> Gains:
        """Score rollouts; the order is kept."""
        reasons = torch.tensor([self._reason(r) for r in rollouts], dtype=torch.float32)
        table = torch.full((len(rollouts), len(FIELDS)), torch.nan)
        table[:, FIELDS.index("length")] = torch.tensor([float(r.thought.num_sampled) for r in rollouts])
        # A second opening tag inside a thought is counted, and scored like any other token: eq. 5 takes any thought.
        for name, status in (("unclosed", "no_close"), ("nested", "extra_tags")):
            flags = [float(r.thought.status == status) for r in rollouts]
            table[:, FIELDS.index(name)] = torch.tensor(flags)
        keep = (reasons < 0).nonzero()[:, 0].tolist()
        noise = self._fill(table, keep, [rollouts[i] for i in keep]) if keep else 0.0
        scored = table[:, : FIELDS.index("frozen_gain")].isfinite().all(-1)
        reasons[(reasons < 0) & ~scored] = REASONS.index("score not finite")
        table[:, FIELDS.index("reason")] = reasons
        return Gains(table, noise)

    def _fill(self, table: Tensor, keep: list[int], rollouts: list[Rollout]) -> float:
        queries = [Query(r.prompt + r.thought.ids, r.target) for r in rollouts]
        contexts = [Query(r.context, r.target) for r in rollouts]
        reasoned, _, hit = self.likelihood(queries)
        mask = reasoned.new_tensor([[k < len(r.target) for k in range(reasoned.shape[1])] for r in rollouts]).bool()
        unmasked = baseline = torch.zeros_like(reasoned)
        baseline_hit = torch.full_like(reasoned, torch.nan)
        if self.config.baseline != "none":
            unmasked, baseline, baseline_hit = self._without_thought(contexts, self.baseline or nullcontext)
        columns = {
            "reasoned": self._value(reasoned, mask),
            "gain": self._gain(reasoned, baseline, mask),
            "baseline": self._value(baseline, mask),
            "baseline_unmasked": self._value(unmasked, mask),
            # A score that is not finite says nothing about what is likeliest either.
            "accuracy": target_value(hit.where(reasoned.isfinite(), torch.nan), mask, "mean"),
            "baseline_accuracy": target_value(baseline_hit.where(baseline.isfinite(), torch.nan), mask, "mean"),
        }
        if self.frozen is not None:
            _, frozen, _ = self._without_thought(contexts, self.frozen)
            columns["frozen"] = self._value(frozen, mask)
            columns["frozen_gain"] = self._gain(reasoned, frozen, mask)
        for name, values in columns.items():
            # Infinities are no scores: whoever averages a column must not meet one (F12, F14).
            table[keep, FIELDS.index(name)] = torch.where(values.isfinite(), values, torch.nan)
        return self._noise(queries, reasoned, mask)

    def _value(self, logprob: Tensor, mask: Tensor) -> Tensor:
        return target_value(logprob, mask, self.config.aggregate, self.config.discount)

    def _gain(self, reasoned: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return information_gain(reasoned, other, mask, aggregate=self.config.aggregate, discount=self.config.discount)

    def _without_thought(self, contexts: list[Query], weights: Callable[[], AbstractContextManager[None]]) -> Scored:
        """Log-probs with the opening tag ruled out at the first target beside the plain ones; or twice the plain."""
        masked, single = self.config.baseline_mask_open_tag, len(self.tags.open) == 1
        with weights():
            scored = self.likelihood(contexts, self.tags.open[0] if masked and single else None)
            if masked and not single:
                tag = self.likelihood([Query(q.prefix, self.tags.open) for q in contexts]).logprob
                other = without_tag(scored.logprob, [q.target for q in contexts], tag, self.tags.open)
                # What is likeliest without the tag would need the whole distribution: nobody can say.
                return scored._replace(restricted=other, hit=torch.full_like(other, torch.nan))
        return scored

    def _noise(self, queries: list[Query], reasoned: Tensor, mask: Tensor) -> float:
        """Score some samples again, one forward each: the same numbers but for rounding, in the reward's own unit."""
        if not self.config.score_noise_share:
            return 0.0
        chosen = range(0, len(queries), max(1, round(1 / self.config.score_noise_share)))
        again = torch.full_like(reasoned, torch.nan)
        for i in chosen:
            again[i, : len(queries[i].target)] = self.likelihood([queries[i]])[0][0]
        found = (self._value(again, mask) - self._value(reasoned, mask))[list(chosen)].abs()
        return float(found[found.isfinite()].max()) if found.isfinite().any() else 0.0

    def _reason(self, rollout: Rollout) -> int:
        """-1, or the index of the reason why a rollout has no score."""
        if not rollout.target:
            return REASONS.index("no target tokens")
        if rollout.thought.status in _STATUS_REASON:
            return REASONS.index(_STATUS_REASON[rollout.thought.status])
        if rollout.thought.status == "no_close" and self.config.closing == "unscorable":
            return REASONS.index("thought not closed")
        # The last target is predicted, not read: it needs no position.
        length = len(rollout.prompt) + len(rollout.thought.ids) + len(rollout.target) - 1
        if self.max_length is not None and length > self.max_length:
            return REASONS.index("longer than the model")
        return -1


def without_tag(plain: Tensor, targets: list[tuple[int, ...]], tag_logprob: Tensor, tag: tuple[int, ...]) -> Tensor:
    """Log-probs of targets given that the text does not begin with a tag of several tokens.

    While a target agrees with the tag, P(x_k | no tag) = (P(x_k) - [x_k = tag_k] S_k) / (1 - S_k) with S_k the
    probability that the rest of the tag follows; a target such as `<` may begin the tag without being it.

    Args:
        plain: [N, K] log-probs of the targets; `tag_logprob`: [N, T] those of the tag behind the same contexts.
    """
    rest = tag_logprob.flip(-1).cumsum(-1).flip(-1)
    # log(1 - S_k); the last column, behind the whole tag, is log 0.
    log_other = torch.log(-torch.expm1(torch.nn.functional.pad(rest, (0, 1))))
    out = plain.clone()
    for row, target in enumerate(targets):
        for k, (token, tag_token) in enumerate(zip(target, tag, strict=False)):
            out[row, k] -= log_other[row, k]
            if token != tag_token:
                break
            out[row, k] += log_other[row, k + 1]
    return out


def gain_metrics(gains: Gains, group_size: int) -> dict[str, float]:
    """What a step says about itself; the samples of all ranks in, groups of `group_size` in a row.

    The same keys every time; NaN where no sample can say. "zero_variance_groups" counts groups whose reasoned scores
    lie within the noise (F47); "gain_spread" is the mean standard deviation within a group.
    """
    reason, gain = gains.column("reason"), gains.column("gain")
    reasoned = torch.where(reason < 0, gains.column("reasoned"), torch.nan)
    width = spread(reasoned, group_size)
    groups = torch.where(reason < 0, gain, torch.nan).reshape(-1, group_size)
    metrics = {
        "gain": _mean(gain),
        "gain_frozen": _mean(gains.column("frozen_gain")),
        "gain_spread": _mean((groups - groups.nanmean(-1, keepdim=True)).square().nanmean(-1).sqrt()),
        "gain_positive": _mean(torch.where(gain.isnan(), torch.nan, (gain > 0).float())),
        "accuracy": _mean(gains.column("accuracy")),
        "baseline_accuracy": _mean(gains.column("baseline_accuracy")),
        "logprob_reasoned": _mean(reasoned),
        "logprob_baseline": _mean(gains.column("baseline")),
        "logprob_baseline_unmasked": _mean(gains.column("baseline_unmasked")),
        "logprob_frozen": _mean(gains.column("frozen")),
        "thought_length": _mean(gains.column("length")),
        "unclosed": _mean(gains.column("unclosed")),
        "nested": _mean(gains.column("nested")),
        "unscorable": _mean((reason >= 0).float()),
        "zero_variance_groups": _mean((width <= gains.noise).float()),
        "score_noise": gains.noise,
        "score_noise_to_spread": gains.noise / float(width.median()) if float(width.median()) > 0 else 0.0,
    }
    for code, name in enumerate(REASONS):
        metrics[f"unscorable/{name.replace(' ', '_')}"] = _mean((reason == code).float())
    return metrics


def _mean(values: Tensor) -> float:
    return float(values.nanmean()) if values.numel() else float("nan")
