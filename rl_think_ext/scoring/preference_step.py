"""What a whole step's outputs are paid, and what is logged of them: the same under every trainer.

A floor without a number is the lowest score of the step, and noise is a matter of a group: neither is known before all
outputs have been scored.
"""

from __future__ import annotations

from torch import Tensor

from rl_think_ext.methods.groups import group_statistics
from rl_think_ext.methods.rlmt import RLMTConfig, with_floor, without_noise
from rl_think_ext.scoring.preference import column, preference_metrics


def paid(table: Tensor, config: RLMTConfig, group_size: int | None = None, noise: float = 0.0) -> Tensor:
    """What every output is paid, [B], NaN where nothing is.

    Args:
        table: [B, len(FIELDS)], whole groups one after another; a row of NaN is an output that is not there.
        config: Says what an output without the form is worth.
        group_size: None where outputs are not compared with others to the same prompt (a critic takes their place).
        noise: The largest difference of a score when it is computed anew.
    """
    scores = column(table, "score")
    if config.malformed == "floor":
        scores = with_floor(scores, column(table, "malformed") > 0, config.floor)
    return scores if group_size is None else without_noise(scores, group_size, noise)


def step_metrics(
    table: Tensor, rewards: Tensor, config: RLMTConfig, group_size: int | None, noise: float
) -> dict[str, float]:
    """Metrics of a step: form, lengths, scores and what was paid; arguments as in `paid`.

    What a group teaches is told by what it is paid: noise is flattened there, and a floor can tell it apart.
    """
    there = ~column(table, "status").isnan()
    metrics = preference_metrics(table[there], config.floor)
    if group_size is None:
        metrics["score"] = float(column(table, "score").nanmean())
    else:
        metrics |= group_statistics(column(table, "score"), group_size)
        metrics["zero_variance_groups"] = group_statistics(rewards, group_size)["zero_variance_groups"]
    metrics["unscorable"] = float(rewards[there].isnan().float().mean())
    metrics["score_noise"] = noise
    return metrics
