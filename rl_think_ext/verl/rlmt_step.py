"""A step's samples as RLMT pays them: out of what the reward workers said of each, by the shared arithmetic."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rl_think_ext.methods.groups import in_groups, one_score_each
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.preference import column
from rl_think_ext.scoring.preference_step import paid, step_metrics
from rl_think_ext.verl.rlmt_sample import FORM
from rl_think_ext.verl.sample_info import Settled, numbers, scores_of


class Step(Settled):
    """A step of RLMT."""

    @classmethod
    def of(
        cls, infos: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], config: RLMTConfig, *, compared: bool
    ) -> Step:
        """Settle the samples of a step; args and raises as RewardTrainer.settled."""
        FORM.check(infos)
        names = ("thought", "answer") if config.score == "full" else ("answer",)
        shown = [[info[FORM.prefix + name] for name in names] for info in infos]
        keys, table = [(group, *texts) for group, texts in zip(groups, shown, strict=True)], FORM.table(infos)
        column(table, "score")[:] = one_score_each(column(table, "score"), keys, column(table, "malformed") == 0)
        table, places, largest = in_groups(table, groups)
        size, stats = largest if compared else None, FORM.stats(infos)
        noise = stats.pop("noise")
        noise = 0.0 if math.isnan(noise) else noise
        rewards = paid(table, config, size, noise)
        metrics = step_metrics(table, rewards, config, size, noise)
        metrics |= {f"reward_model_{name}": value for name, value in stats.items()}
        equal = rewards.new_zeros(len(rewards)).bool()
        if size is not None:
            spread = rewards.view(-1, size)
            equal = spread.nan_to_num(nan=-float("inf")).amax(-1) <= spread.nan_to_num(nan=float("inf")).amin(-1)
            equal = equal.repeat_interleave(size)
        scores = tuple(scores_of(rewards[places].tolist(), infos))
        return cls(scores, tuple(equal[places].tolist()), numbers(metrics))
