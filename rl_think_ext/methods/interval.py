"""A mean with its confidence interval where values come in clusters: thoughts of one text are not independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_BLOCK = 64


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval, in the unit of the values; NaN where they cannot be known."""

    mean: float
    low: float
    high: float
    num_values: int
    num_clusters: int

    def apart(self, other: Interval) -> bool:
        """Whether the two intervals do not touch; False where either is unknown."""
        return self.low > other.high or other.low > self.high


def mean_interval(
    values: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of the known values, and its percentile bootstrap interval over whole clusters.

    Args:
        values: [N]; None and NaN are left out, never counted as 0.
        clusters: [N] what each value belongs to (its document, or its group); None: every value stands alone.
        level: Probability that the interval is meant to hold.
        resamples: Bootstrap samples; the same seed gives the same interval.

    Returns:
        The interval; low and high are NaN for fewer than two clusters, the mean too where no value is known.

    >>> found = mean_interval([0.0, 1.0, None, 2.0, 3.0], ["a", "a", "a", "b", "b"])
    >>> found.mean, found.low, found.high, found.num_values, found.num_clusters
    (1.5, 0.5, 2.5, 4, 2)
    """
    import numpy as np

    names = range(len(values)) if clusters is None else clusters
    pairs = [(v, name) for v, name in zip(values, names, strict=True) if v is not None and not math.isnan(v)]
    if not pairs:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    index: dict[Hashable, int] = {}
    member = np.array([index.setdefault(name, len(index)) for _, name in pairs])
    known = np.array([value for value, _ in pairs], dtype=np.float64)
    num = len(index)
    if num < 2:
        return Interval(float(known.mean()), math.nan, math.nan, len(known), num)
    sums, counts = np.bincount(member, known, num), np.bincount(member, minlength=num)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _BLOCK):
        drawn = generator.integers(num, size=(min(_BLOCK, resamples - start), num))
        means.append(sums[drawn].sum(-1) / counts[drawn].sum(-1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(known.mean()), float(low), float(high), len(known), num)
