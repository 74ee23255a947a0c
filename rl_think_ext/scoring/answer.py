"""What a thought is worth by the probability of a reference answer behind it: the scorer of VeriFree and RLPR."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.gain import FIELDS, GainScorer, Rollout
from rl_think_ext.scoring.likelihood import Scored
from rl_think_ext.template import TagIds


class AnswerScorer(GainScorer):
    """The gain's scorer with another number for a row's targets: "reasoned", "baseline" and "gain" are in its unit.

    The number need not be linear in the log-probs, as RLP's is: it is formed of each side first, and "gain" is the
    difference of the two. Without a baseline "gain" is the number itself, and the baseline's columns are NaN.

    Args:
        config, likelihood, tags, baseline, frozen, max_length: As GainScorer takes them.
        value: [N, K] log-probs and bool mask -> [N]; NaN where a row has none.
    """

    def __init__(
        self,
        config: RLPConfig,
        likelihood: Callable[..., Scored],
        tags: TagIds,
        baseline: Callable[[], AbstractContextManager[None]] | None = None,
        frozen: Callable[[], AbstractContextManager[None]] | None = None,
        max_length: int | None = None,
        *,
        value: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(config, likelihood, tags, baseline, frozen, max_length)
        self.value = value

    def _value(self, logprob: Tensor, mask: Tensor) -> Tensor:
        return self.value(logprob, mask)

    def _gain(self, reasoned: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        value = self.value(reasoned, mask)
        return value if self.config.baseline == "none" else value - self.value(other, mask)

    def _fill(self, table: Tensor, keep: list[int], rollouts: list[Rollout]) -> float:
        noise = super()._fill(table, keep, rollouts)
        if self.config.baseline == "none":
            for name in ("baseline", "baseline_unmasked"):
                table[:, FIELDS.index(name)] = torch.nan
        return noise
