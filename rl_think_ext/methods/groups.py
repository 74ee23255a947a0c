"""What a step's groups say about its scores, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def group_statistics(scores: Tensor, group_size: int) -> Mapping[str, float]:
    """Mean of the group means, mean standard deviation within groups, and the share of groups that are all equal.

    Args:
        scores: [B], whole groups one after another, NaN where there is no score.

    Returns:
        "score", "score_spread" (NaN without a group of two scores), "zero_variance_groups" (of the groups with at
        least two scores; NaN without one).
    """
    groups = scores.double().view(-1, group_size)
    counts = (~groups.isnan()).sum(-1)
    means = groups.nanmean(-1)
    several = counts >= 2
    centred = (groups - means[:, None])[several]
    deviation = (centred.square().nansum(-1) / (counts[several] - 1)).sqrt()
    return {
        "score": float(means.nanmean()),
        "score_spread": float(deviation.mean()),
        "zero_variance_groups": float((deviation == 0).double().mean()),
    }
