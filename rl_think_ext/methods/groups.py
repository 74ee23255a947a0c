"""What a step's groups say about its scores, whatever the method."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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


def in_groups(rows: Tensor, groups: Sequence[Hashable]) -> tuple[Tensor, list[int], int]:
    """Rows put together by group, every group as large as the largest one; what is missing is a row of NaN.

    Args:
        rows: [N, F].
        groups: The name of each row's group.

    Returns:
        [G * size, F]; the place of each of the N rows in it; size.
    """
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(groups):
        members.setdefault(name, []).append(i)
    size = max(map(len, members.values()), default=1)
    table, places = rows.new_full((len(members) * size, rows.shape[1]), float("nan")), [0] * len(rows)
    for number, group in enumerate(members.values()):
        for j, i in enumerate(group):
            places[i] = number * size + j
    table[places] = rows
    return table, places, size


def one_score_each(scores: Tensor, shown: Sequence[Hashable], asked: Tensor) -> Tensor:
    """Scores in which equal outputs to one prompt have one: processes that score alone differ a little (F47).

    Args:
        scores: [N], NaN where there is none.
        shown: What the scorer was shown of each row, with the prompt that it answers.
        asked: [N] bool; rows about which nobody was asked stay as they are.
    """
    first: dict[Hashable, Tensor] = {}
    for score, key, was_asked in zip(scores, shown, asked.tolist(), strict=True):
        if was_asked and not score.isnan():
            first.setdefault(key, score)
    found = scores.clone()
    for i, (key, was_asked) in enumerate(zip(shown, asked.tolist(), strict=True)):
        if was_asked and key in first:
            found[i] = first[key]
    return found
