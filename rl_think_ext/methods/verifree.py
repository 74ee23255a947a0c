"""VeriFree (arXiv 2505.21493): settings and equations of reinforcement learning without a verifier.

J(theta) = E_{z ~ pi(z|x)} [ pi(y* | x, z) ]: a thought z is worth the probability of the reference answer y* behind
it. Its gradient has two terms, R grad log pi(z|x) and R grad log pi(y*|x,z), with R = pi(y*|x,z). A leave-one-out
baseline goes into the first one alone, where it changes nothing in expectation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.template import Closing, Elicit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VeriFreeConfig:
    """Settings of VeriFree.

    Args:
        max_answer_tokens: The longest reference answer, in tokens; a longer one is refused by row, never cut. The
            paper keeps short answers only: the probability of a long one is next to 0 whatever the thought.
        answer_prefix: Text between the closing tag and the answer, such as "The answer is "; encoded on its own, and
            neither scored nor trained.
        answer_term: Also train the reference answer behind each thought, weighted by its probability: the second term
            of the gradient. The stock trl grpo has no place for it.
        elicit: How a thought is asked for: opening tag behind the question, by the policy itself, or an instruction.
        closing: A thought that was cut off gets its closing tag appended, or is unscorable. Counted either way.
        score_noise_share: Share of the samples that is scored again in another micro-batch to measure noise.
        max_tokens_per_batch: Tokens in one forward of the scorer, padding included.
        max_failed_steps: Raise after so many reward calls in a row without one scorable sample.
    """

    max_answer_tokens: int = 64
    answer_prefix: str = ""
    answer_term: bool = True
    elicit: Elicit = "prefill"
    closing: Closing = "append"
    score_noise_share: float = 0.01
    max_tokens_per_batch: int = 16384
    max_failed_steps: int = 3

    def __post_init__(self) -> None:
        check_answer_tokens(self.max_answer_tokens)
        _ = self.scoring  # its own checks

    @property
    def scoring(self) -> RLPConfig:
        """What the scorer and the reader of RLP go by: no baseline, one token more than an answer may have."""
        return RLPConfig(
            num_target_tokens=self.max_answer_tokens + 1,
            baseline="none",
            baseline_mask_open_tag=False,
            frozen_gain=False,
            elicit=self.elicit,
            closing=self.closing,
            score_noise_share=self.score_noise_share,
            max_tokens_per_batch=self.max_tokens_per_batch,
            max_failed_steps=self.max_failed_steps,
        )


def check_answer_tokens(value: int) -> None:
    """Refuse a longest answer of no tokens.

    Raises:
        ValueError: naming the setting.
    """
    if value < 1:
        raise ValueError(f"`max_answer_tokens` is at least 1, got {value}")


def answer_probability(logprob: Tensor, mask: Tensor) -> Tensor:
    """R = pi(y* | x, z) = exp(sum_k log pi(y*_k | x, z, y*_<k)): the probability of the whole reference answer.

    Args:
        logprob: [B, K] log-probs of the answer's tokens behind the thought, nats.
        mask: [B, K] bool, True at the answer's tokens.

    Returns:
        [B] in [0, 1]; NaN for an answer without a token, or with a log-prob that is not finite (F12, F15).

    >>> import torch
    >>> answer_probability(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[True, True]]))
    tensor([0.1250])
    """
    import torch

    total = torch.where(mask, logprob, 0.0).sum(-1)
    return torch.where(scorable(logprob, mask), total.exp(), torch.nan)


def scorable(logprob: Tensor, mask: Tensor) -> Tensor:
    """[B] bool: rows that have a token, and a finite log-prob at each: exp would make a plain 0 of minus infinity."""
    return mask.any(-1) & (logprob.isfinite() | ~mask).all(-1)


def answer_loss(reward: Tensor, logprob: Tensor) -> Tensor:
    """- sum_i R_i log pi(y* | x, z_i): its gradient is minus the second term, R itself being held fixed.

    Args:
        reward: [B] R of each thought; NaN where there is none, which counts for nothing.
        logprob: [B] log-probs of the whole answers, with their graph.
    """
    import torch

    known = reward.isfinite()
    return -(torch.where(known, reward, 0.0).detach() * torch.where(known, logprob, 0.0)).sum()
