"""A reply that no honest server sends is a typed error at the client, never a strange episode."""

import numpy as np
import pytest

from rdvla.errors import ServeError
from rdvla.policy import PolicyMetadata
from rdvla.types import ActionChunk
from rdvla.wire.protocol import chunk_from_reply, reply_message

METADATA = PolicyMetadata("small", ("primary",), state_dim=8, action_dim=7, chunk_size=4, extra={})
CHUNK = ActionChunk(
    np.ones((4, 7), np.float32),
    num_recurrences=6,
    convergence=(0.5, 0.1),
    timings={"total": 3.0},
    signals={"codas": 6.0},
    carry=b"RDVC",
)


def reply(**changes):
    return (
        reply_message(CHUNK, n_action_steps=3, policy_ms=3.0, server_timing={"infer_ms": 4.0}, budget_ms=None) | changes
    )


def test_an_honest_reply_is_what_was_decided():
    found = chunk_from_reply(reply(), METADATA)
    assert (found.num_recurrences, found.n_action_steps, found.carry) == (6, 3, b"RDVC")
    assert (found.convergence, found.signals) == (CHUNK.convergence, CHUNK.signals)
    np.testing.assert_array_equal(found.actions, CHUNK.actions)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("actions", np.ones((5, 7), np.float32), r"floats of shape \(4, 7\), found float32 \(5, 7\)"),
        ("actions", [[1.0] * 7] * 4, "found list"),
        ("num_recurrences", -1, "num_recurrences must be a whole number of at least 0, found -1"),
        ("num_recurrences", float("inf"), "num_recurrences must be a whole number"),
        ("num_recurrences", True, "num_recurrences must be a whole number"),
        ("n_action_steps", -3, "n_action_steps must be a whole number of at least 1, found -3"),
        ("n_action_steps", 2.5, "n_action_steps must be a whole number"),
        ("carry", "text", "a carry must be bytes, found str"),
        ("convergence", "abc", "malformed"),
        ("convergence", 3, "malformed"),
        ("signals", {"alarm": "high"}, "malformed"),
        ("policy_timing", {"total": -1.0}, "policy_timing must be milliseconds"),
        ("server_timing", 5, "malformed"),
        ("opening", [1.0], "opening has shape"),
    ],
)
def test_a_reply_that_makes_no_sense_is_refused(name, value, message):
    with pytest.raises(ServeError, match=message):
        chunk_from_reply(reply(**{name: value}), METADATA)
