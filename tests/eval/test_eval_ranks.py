"""Spearman's rank correlation, over all and within groups."""

import pytest

from rdvla.eval.ranks import rank_correlation


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [2, 4, 8, 9], [""] * 4).value.value == pytest.approx(1)
    tied = rank_correlation([1, 2, 2, 3, 5, 4], [3, 1, 2, 2, 5, 9], [""] * 6)
    assert tied.value.value == pytest.approx(0.5441176470588235)  # scipy.stats.spearmanr
    assert tied.value.low < tied.value.value < tied.value.high
    assert rank_correlation([1, 1, 1], [1, 2, 3], [""] * 3) is None
    # two groups that differ in both numbers and, within, go against each other
    within = rank_correlation([1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11], ["a", "a", "a", "b", "b", "b"])
    assert within.value.value == pytest.approx(-1)
    assert within.p_value == pytest.approx(2 / 36, abs=0.02)  # of 36 shuffles, two are as far from 0
    assert rank_correlation([1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11], [""] * 6).value.value > 0.5
