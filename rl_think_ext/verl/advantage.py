"""The advantage estimator `rlp` for verl: eq. 7 of RLP over the samples of a group that have a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl_think_ext.methods.rlp import group_advantage


def group_advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[Any],
    config: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Eq. 7 of RLP (arXiv 2510.01265): A_i = n / (n - 1) * (r_i - mean r), no division by a spread.

    verl's own `rloo` computes the same where every sample is scorable. A sample whose mask is empty has no score: it
    counts in no mean, and gets 0.

    Args:
        token_level_rewards: [B, T], the reward of a sample on one of its tokens.
        response_mask: [B, T], 1 at the tokens that are trained.
        index: B names of groups.

    Returns:
        Advantages and returns, both [B, T].
    """
    scored = response_mask.any(-1)
    rewards = torch.where(scored, token_level_rewards.sum(-1), torch.nan)
    advantages = torch.zeros_like(rewards)
    for rows in _groups(index):
        advantages[rows] = group_advantage(rewards[rows], len(rows))
    spread = advantages.unsqueeze(-1) * response_mask
    return spread, spread


def _groups(index: Sequence[Any]) -> list[list[int]]:
    rows: dict[Any, list[int]] = {}
    for i, name in enumerate(index):
        rows.setdefault(name, []).append(i)
    return list(rows.values())
