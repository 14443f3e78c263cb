import math

import pytest

from rdvla.errors import ConfigError
from rdvla.eval.intervals import average, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R: prop.test(x, n, correct = FALSE)$conf.int
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_literature_values(successes, n, low, high):
    rate = wilson(successes, n)
    assert rate.low == pytest.approx(low, abs=6e-5)
    assert rate.high == pytest.approx(high, abs=6e-5)
    assert rate.low <= rate.value <= rate.high


def test_extremes_are_closed_and_no_episodes_say_nothing():
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0
    nothing = wilson(0, 0)
    assert (nothing.low, nothing.high) == (0.0, 1.0)
    assert math.isnan(nothing.value)


def test_interval_is_symmetric_in_success_and_failure():
    a, b = wilson(3, 17), wilson(14, 17)
    assert a.low == pytest.approx(1 - b.high)
    assert a.high == pytest.approx(1 - b.low)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts(successes, n):
    with pytest.raises(ConfigError, match="must lie in"):
        wilson(successes, n)


def test_the_average_of_rates_has_an_interval_at_the_edge():
    whole = average([wilson(20, 20), wilson(20, 20)])
    assert (whole.value, whole.high) == (1.0, 1.0)
    assert wilson(20, 20).low < whole.low < wilson(60, 60).low
    assert average([wilson(7, 20)]).low == wilson(7, 20).low
