"""RLPR (arXiv 2506.18254): settings and equations of reinforcement learning by the reference's token probabilities.

r = 1/|y*| sum_k pi(y*_k | x, z, y*_<k), the *mean* of the probabilities of the reference answer's tokens; r' is the
same without the thought z; a thought is paid clip(r - r', 0, 1). Prompts whose rewards hardly differ are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl_think_ext.methods.rlp import RLPConfig, spread
from rl_think_ext.methods.verifree import check_answer_tokens, scorable
from rl_think_ext.template import Closing, Elicit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RLPRConfig:
    """Settings of RLPR.

    Args:
        max_answer_tokens: The longest reference answer, in tokens; a longer one is refused by row, never cut.
        answer_prefix: Text between the closing tag and the answer, and before the answer without a thought, such as
            "The answer is "; encoded on its own and not scored.
        baseline: Who says r', the answer without a thought: the policy's frozen start (one more copy of the trainable
            weights), the live policy, or nobody (r is then paid as it is).
        std_filter: Leave out prompts whose rewards' standard deviation is below this share of its moving average over
            the steps; null keeps all.
        std_decay: Decay of that moving average, per step.
        std_filter_start: Steps after which prompts begin to be left out.
        elicit: How a thought is asked for: opening tag behind the question, by the policy itself, or an instruction.
        closing: A thought that was cut off gets its closing tag appended, or is unscorable. Counted either way.
        score_noise_share: Share of the samples that is scored again in another micro-batch to measure noise.
        max_tokens_per_batch: Tokens in one forward of the scorer, padding included.
        max_failed_steps: Raise after so many reward calls in a row without one scorable sample.
    """

    max_answer_tokens: int = 256
    answer_prefix: str = ""
    baseline: Literal["init", "live", "none"] = "init"
    std_filter: float | None = 0.5
    std_decay: float = 0.99
    std_filter_start: int = 10
    elicit: Elicit = "prefill"
    closing: Closing = "append"
    score_noise_share: float = 0.01
    max_tokens_per_batch: int = 16384
    max_failed_steps: int = 3

    def __post_init__(self) -> None:
        check_answer_tokens(self.max_answer_tokens)
        if self.std_filter is not None and not 0.0 < self.std_filter < float("inf"):
            raise ValueError(f"`std_filter` is above 0, or null for none, got {self.std_filter}")
        if not 0.0 <= self.std_decay < 1.0:
            raise ValueError(f"`std_decay` is from 0 to below 1, got {self.std_decay}")
        if self.std_filter_start < 0:
            raise ValueError(f"`std_filter_start` is at least 0, got {self.std_filter_start}")
        _ = self.scoring  # its own checks

    @property
    def scoring(self) -> RLPConfig:
        """What the scorer and the reader of RLP go by: one token more than an answer may have."""
        return RLPConfig(
            num_target_tokens=self.max_answer_tokens + 1,
            baseline=self.baseline,
            baseline_mask_open_tag=False,
            frozen_gain=False,
            elicit=self.elicit,
            closing=self.closing,
            score_noise_share=self.score_noise_share,
            max_tokens_per_batch=self.max_tokens_per_batch,
            max_failed_steps=self.max_failed_steps,
        )


def mean_probability(logprob: Tensor, mask: Tensor) -> Tensor:
    """r = 1/|y*| sum_k pi(y*_k | ...): the mean of probabilities, not the probability of the whole.

    Args:
        logprob: [B, K] log-probs of the answer's tokens, nats.
        mask: [B, K] bool, True at the answer's tokens.

    Returns:
        [B] in [0, 1]; NaN for an answer without a token, or with a log-prob that is not finite (F12, F15).

    >>> import torch
    >>> mean_probability(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[True, True]]))
    tensor([0.3750])
    """
    import torch

    total = torch.where(mask, logprob.exp(), 0.0).sum(-1) / mask.sum(-1)
    return torch.where(scorable(logprob, mask), total, torch.nan)


def debiased(reasoned: Tensor, direct: Tensor) -> Tensor:
    """clip(r - r', 0, 1): what the thought adds; NaN where either is.

    >>> import torch
    >>> debiased(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
    tensor([0.2500, 0.0000])
    """
    return (reasoned - direct).clamp(0.0, 1.0)


def group_std(rewards: Tensor, group_size: int) -> Tensor:
    """Standard deviation of each group's scorable rewards: [B] -> [B / G]; NaN where there are fewer than two.

    Args:
        rewards: [B], groups of `group_size` in a row, NaN for an unscorable sample.
    """
    import torch

    groups = rewards.reshape(-1, group_size)
    num = groups.isfinite().sum(-1)
    squares = (groups - groups.nanmean(-1, keepdim=True)).square()
    return torch.where(num >= 2, (squares.nansum(-1) / (num - 1).clamp(min=1)).sqrt(), torch.nan)


@dataclass(frozen=True)
class StdFilter:
    """The moving average of the steps' mean standard deviation: beta is a share of it.

    Args:
        mean: The average so far; None before the first step that had one.
        steps: Steps so far, those without a standard deviation among them.
    """

    mean: float | None = None
    steps: int = 0

    def updated(self, std: Tensor, decay: float) -> StdFilter:
        """The average after one more step, whose groups' deviations are [B / G]; it begins at the first one."""
        now = float(std.nanmean())
        if now != now:
            return StdFilter(self.mean, self.steps + 1)
        return StdFilter(now if self.mean is None else decay * self.mean + (1.0 - decay) * now, self.steps + 1)

    def left_out(self, std: Tensor, share: float | None, start: int) -> Tensor:
        """[B / G] bool: groups with a deviation below beta = share * average, once `start` steps have gone by."""
        import torch

        if share is None or self.mean is None or self.steps <= start:
            return torch.zeros_like(std, dtype=torch.bool)
        return std < share * self.mean


# As TRL's own: what keeps a tiny deviation from blowing a group up.
EPSILON = 1e-4


def scaled_advantage(rewards: Tensor, group_size: int) -> Tensor:
    """GRPO's A_i = (r_i - mean r) / (std r + 1e-4) over the n scorable samples of a group.

    Returns:
        [B]; 0 for an unscorable sample, and in a group of equal rewards or of fewer than two.

    >>> import torch
    >>> scaled_advantage(torch.tensor([0.0, 1.0, float("nan")]), 3).round(decimals=3)
    tensor([-0.7070,  0.7070,  0.0000])
    """
    import torch

    groups = rewards.reshape(-1, group_size)
    centred = groups - groups.nanmean(-1, keepdim=True)
    advantage = centred / (group_std(rewards, group_size)[:, None] + EPSILON)
    alive = groups.isfinite() & (spread(rewards, group_size)[:, None] > 0)
    return torch.where(alive, advantage, 0.0).reshape(rewards.shape)
