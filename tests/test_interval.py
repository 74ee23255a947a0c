"""Intervals hold as often as they say, few clusters or many; what is unknown is left out."""

import math

import numpy as np
import pytest

from rl_think_ext.methods.interval import FEW, Interval, mean_interval


@pytest.mark.parametrize("num", [2, 3, 5, 12, FEW - 1, FEW, 60])
def test_interval_misses_the_truth_in_about_a_twentieth_of_the_cases(num):
    """Clusters with a part of their own, three values each; 600 draws with one seed, so nothing is left to chance."""
    rng = np.random.default_rng(num)
    missed = 0
    for _ in range(600):
        values = (rng.normal(size=(num, 1)) + 0.5 * rng.normal(size=(num, 3))).ravel()
        found = mean_interval(values.tolist(), np.repeat(np.arange(num), 3).tolist(), resamples=400)
        missed += not found.low <= 0 <= found.high
    assert 0.02 <= missed / 600 <= 0.09


def test_students_t_by_hand():
    """Three clusters of one value: 1, 2, 6; mean 3, standard error sqrt(7/3), t of two degrees of freedom 4.303."""
    found = mean_interval([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.high - found.mean == pytest.approx(4.303 * math.sqrt(7 / 3), rel=1e-6)
    assert found.mean - found.low == pytest.approx(4.303 * math.sqrt(7 / 3), rel=1e-6)


def test_values_of_one_cluster_do_not_narrow_it():
    rng = np.random.default_rng(0)
    each = rng.normal(size=30).tolist()
    once, often = mean_interval(each, range(30)), mean_interval(each * 5, [*range(30)] * 5)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.01)


def test_unknown_values_are_left_out_and_one_cluster_has_no_interval():
    found = mean_interval([1.0, None, math.nan, 3.0], ["a", "a", "b", "a"])
    assert (found.mean, found.num_values, found.num_clusters) == (2.0, 2, 1)
    assert math.isnan(found.low) and math.isnan(found.high)
    nothing = mean_interval([None, math.nan])
    assert math.isnan(nothing.mean) and nothing.num_clusters == 0
    assert not found.apart(Interval(9.0, 8.0, 10.0, 5, 5)), "what is unknown is not apart"
