"""Spearman's rank correlation, over all and within groups."""

import numpy as np
import pytest

from rdvla.eval.paired import Interval
from rdvla.eval.ranks import rank_correlation


def test_rank_correlation():
    few = rank_correlation([1, 2, 3, 4], [2, 4, 8, 9], [""] * 4).value
    assert few == pytest.approx(1), "one resample in 64 holds a single thing, so no interval"
    tied = rank_correlation([1, 2, 2, 3, 5, 4], [3, 1, 2, 2, 5, 9], [""] * 6)
    assert tied.value.value == pytest.approx(0.5441176470588235)  # scipy.stats.spearmanr
    assert tied.value.low < tied.value.value < tied.value.high
    assert rank_correlation([1, 1, 1], [1, 2, 3], [""] * 3) is None
    # two groups that differ in both numbers and, within, go against each other
    within = rank_correlation([1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11], ["a", "a", "a", "b", "b", "b"])
    assert within.value == pytest.approx(-1)
    assert within.p_value == pytest.approx(2 / 36, abs=0.02)  # of 36 shuffles, two are as far from 0
    assert rank_correlation([1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11], [""] * 6).value.value > 0.5


@pytest.mark.parametrize(("failing", "has_interval"), [(2, False), (6, True)])
def test_resamples_without_a_failure_are_not_left_out_of_an_interval(failing, has_interval):
    """With two failing tasks of 20 an eighth of the resamples hold none, and the others exclude 0 far too often."""
    iterations = np.random.default_rng(1).normal(size=20)
    failures = np.arange(20) < failing
    found = rank_correlation(iterations, failures, [""] * 20)
    assert isinstance(found.value, Interval) == has_interval
    assert found.p_value > 0.05
