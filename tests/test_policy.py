"""How a decision is asked for: what can be no wish is refused where it is written down."""

import numpy as np
import pytest

from rdvla.errors import ConfigError
from rdvla.policy import Ask
from rdvla.stops import StopRule


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"stop": "latent"}, "stop must be a StopRule"),
        ({"seed": -1}, "seed must be a whole number of at least 0, found -1"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, found 'a'"),
        ({"step": 1.5}, "step must be a whole number"),
        ({"budget_ms": "50"}, "budget_ms must be a positive number, found '50'"),
        ({"budget_ms": float("nan")}, "budget_ms must be a positive number"),
        ({"trace_depth": 2.5}, "trace_depth must be at least 2 iterations, found 2.5"),
        ({"trace_depth": 1}, "trace_depth must be at least 2 iterations, found 1"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused(wish, message):
    with pytest.raises(ConfigError, match=message):
        Ask(**wish)


def test_numbers_of_numpy_are_numbers():
    ask = Ask(StopRule("latent", 0.03), seed=np.int64(3), budget_ms=np.float32(50), trace_depth=np.int32(8))
    assert (ask.seed, ask.budget_ms, ask.trace_depth) == (3, 50, 8)
