"""A step's samples as RLMT pays them: out of what the reward workers said of each, by the shared arithmetic."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.records import Score
from rl_think_ext.scoring.preference_step import in_groups, one_score_each, paid, step_metrics
from rl_think_ext.verl.rlmt_sample import PREFIX, check_infos, scores_of, stats_of, table_of


@dataclass(frozen=True)
class Step:
    """N samples: what each is paid, which of them differ from their group by noise alone, and the step's metrics."""

    scores: tuple[Score, ...]
    quiet: tuple[bool, ...]
    metrics: Mapping[str, float]

    @classmethod
    def of(
        cls, infos: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], config: RLMTConfig, *, compared: bool
    ) -> Step:
        """Settle the samples of a step.

        Args:
            infos: What the reward manager said of each sample.
            groups: The name of each sample's group; groups need not be of one size.
            compared: Whether advantages compare the samples of a group; with a critic they do not.

        Raises:
            UserError: what ended the run in a worker.
        """
        check_infos(infos)
        shown = ("thought", "answer") if config.score == "full" else ("answer",)
        keys = [(group, *(info[PREFIX + name] for name in shown)) for group, info in zip(groups, infos, strict=True)]
        table, places, largest = in_groups(one_score_each(table_of(infos), keys), groups)
        size, stats = largest if compared else None, stats_of(infos)
        rewards = paid(table, config, size, stats["noise"])
        metrics = step_metrics(table, rewards, config, size, stats.pop("noise"))
        metrics |= {f"reward_model_{name}": value for name, value in stats.items()}
        equal = rewards.new_zeros(len(rewards)).bool()
        if size is not None:
            spread = rewards.view(-1, size)
            equal = spread.nan_to_num(nan=-float("inf")).amax(-1) <= spread.nan_to_num(nan=float("inf")).amin(-1)
            equal = equal.repeat_interleave(size)
        return cls(
            tuple(scores_of(rewards[places].tolist(), infos)),
            tuple(equal[places].tolist()),
            # A mean of nothing is no number, and a logger of verl's would draw it.
            {name: value for name, value in metrics.items() if value == value},
        )
