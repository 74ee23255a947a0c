"""RLP, reinforcement learning as a pre-training objective (arXiv 2510.01265): settings and equations.

A thought c is rewarded by how much likelier it makes the text that follows: eq. 5,
r(c) = log p_theta(x_t | x_<t, c) - log p_baseline(x_t | x_<t), in nats. Everything here is a pure function of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl_think_ext.template import Closing, Elicit

if TYPE_CHECKING:
    from torch import Tensor

Aggregate = Literal["sum", "mean", "discounted"]
Baseline = Literal["ema", "init", "live", "none"]


@dataclass(frozen=True)
class RLPConfig:
    """Settings of RLP; the defaults are the paper's where it gives one.

    Args:
        num_target_tokens: Target tokens that one reward covers; 1 is the paper's equation 5.
        aggregate: How the gains of several targets become one: sum, mean, or discounted sum.
        discount: The factor per target token of "discounted", in (0, 1].
        baseline: Who predicts without a thought: an EMA of the policy, its frozen start, the live policy, or nobody
            (the reward is then the reasoned log-prob). It cancels in the advantage, see docs/methods.md.
        ema_decay: tau of the EMA, updated once per optimizer step.
        baseline_mask_open_tag: Take the opening tag out of the baseline at the first target and renormalise.
            Differs: eq. 5 does not; without it a model that likes to think makes its own baseline look worse.
        frozen_gain: Also score the start's weights, and log the gain against them (one more copy of the trainable
            weights); a baseline that breaks cannot fake it.
        elicit: How a thought is asked for: opening tag behind the context, by the policy itself, or an instruction.
        closing: A thought that was cut off gets its closing tag appended, or is unscorable. Counted either way.
        score_noise_share: Share of the samples that is scored again in another micro-batch to measure noise.
        max_tokens_per_batch: Tokens in one forward of the scorer, padding included.
        max_failed_steps: Raise after so many reward calls in a row without one scorable sample.
    """

    num_target_tokens: int = 1
    aggregate: Aggregate = "sum"
    discount: float = 1.0
    baseline: Baseline = "ema"
    ema_decay: float = 0.999
    baseline_mask_open_tag: bool = True
    frozen_gain: bool = True
    elicit: Elicit = "prefill"
    closing: Closing = "append"
    score_noise_share: float = 0.01
    max_tokens_per_batch: int = 16384
    max_failed_steps: int = 3

    def __post_init__(self) -> None:
        for name in ("num_target_tokens", "max_tokens_per_batch", "max_failed_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is at least 1, got {getattr(self, name)}")
        for name in ("ema_decay", "score_noise_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is from 0 to 1, got {getattr(self, name)}")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"`discount` is above 0 and at most 1, got {self.discount}")
        if self.discount != 1.0 and self.aggregate != "discounted":
            raise ValueError(f"`discount: {self.discount}` needs `aggregate: discounted`, got {self.aggregate}")

    @property
    def averages(self) -> dict[str, float]:
        """The averages of weights that these settings need, with their decays; "frozen" never moves."""
        ema = {"ema": self.ema_decay} if self.baseline == "ema" else {}
        return ema | ({"frozen": 1.0} if self.frozen_gain or self.baseline == "init" else {})


def target_value(logprob: Tensor, mask: Tensor, aggregate: Aggregate = "sum", discount: float = 1.0) -> Tensor:
    """One number per row out of the log-probs of its targets: [B, K] and bool [B, K] -> [B], nats.

    "mean" divides by the row's number of targets; "discounted" weights the k-th target of a row by discount^k. The
    value is linear in the log-probs, so gains may be formed before or after. A row without a target is NaN (F15).
    """
    import torch

    weight = mask.to(logprob.dtype)
    if aggregate == "discounted":
        weight = weight * discount ** (mask.cumsum(-1) - 1).clamp(min=0).to(logprob.dtype)
    total = torch.where(mask, logprob * weight, 0.0).sum(-1)
    count = mask.sum(-1)
    if aggregate == "mean":
        total = total / count
    return torch.where(count > 0, total, torch.nan)


def information_gain(
    reasoned: Tensor,
    baseline: Tensor,
    mask: Tensor | None = None,
    *,
    aggregate: Aggregate = "sum",
    discount: float = 1.0,
) -> Tensor:
    """Eq. 5: log p_theta(x | context, thought) - log p_baseline(x | context), over the targets of each row.

    Args:
        reasoned: [B, K] log-probs of the targets after the thought, nats.
        baseline: [B, K] log-probs of the same targets without it.
        mask: [B, K] bool, True at targets; None takes all.

    Returns:
        [B]; NaN where a row has no target. Values that are not finite stay so: the scorer makes them unscorable.

    >>> import torch
    >>> information_gain(torch.tensor([[-0.5, -1.0]]), torch.tensor([[-2.0, -1.5]]))
    tensor([2.])
    """
    import torch

    keep = torch.ones_like(reasoned, dtype=torch.bool) if mask is None else mask
    return target_value(reasoned - baseline, keep, aggregate, discount)


def group_advantage(rewards: Tensor, group_size: int, noise_floor: float = 0.0) -> Tensor:
    """Eq. 7: A_i = n / (n - 1) * (r_i - mean r) over the n scorable samples of a group; no division by a spread.

    Args:
        rewards: [B], groups of `group_size` in a row, NaN for an unscorable sample.
        group_size: G >= 1; B is a multiple of it.
        noise_floor: A group whose rewards lie within this width counts as equal (F47): advantage 0.

    Returns:
        [B]; 0 for an unscorable sample and in a group of fewer than two scorable ones.

    Raises:
        ValueError: B is no multiple of the group size.

    >>> import torch
    >>> group_advantage(torch.tensor([1.0, 2.0, 3.0, float("nan")]), 4)
    tensor([-1.5000,  0.0000,  1.5000,  0.0000])
    """
    import torch

    if group_size < 1 or rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards are no whole number of groups of {group_size}")
    groups = rewards.reshape(-1, group_size)
    valid = groups.isfinite()
    n = valid.sum(-1, keepdim=True)
    filled = torch.where(valid, groups, 0.0)
    centred = groups - filled.sum(-1, keepdim=True) / n
    advantage = centred * (n / (n - 1).clamp(min=1))
    # Not left to the arithmetic: equal rewards minus their mean are not always exactly 0. A lonely sample is equal.
    alive = valid & (spread(rewards, group_size)[:, None] > noise_floor)
    return torch.where(alive, advantage, 0.0).reshape(rewards.shape)


def spread(rewards: Tensor, group_size: int) -> Tensor:
    """Largest minus smallest scorable reward of each group: [B] -> [B / G]; 0 where none is scorable."""
    import torch

    groups = rewards.reshape(-1, group_size)
    valid = groups.isfinite()
    high = torch.where(valid, groups, -torch.inf).amax(-1)
    low = torch.where(valid, groups, torch.inf).amin(-1)
    return torch.where(valid.any(-1), high - low, 0.0)
