"""Every field of an `Ask` travels: what is written is read again, and no adapter takes it for a camera."""

import dataclasses

import pytest

from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.wire.adapters import OPTION_KEYS
from rdvla.wire.protocol import RequestOptions, read_options, write_options

UNUSUAL = {
    "stop": StopRule(name="latent", threshold=0.25, max_depth=20),
    "seed": 5,
    "budget_ms": 40.0,
    "trace_depth": 16,
    "warm_start": "half",
    "carry": b"scratchpad",
    "step": 3,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Ask)])
def test_a_field_of_an_ask_is_read_as_it_was_written(name):
    start = {"warm_start": "half"} if name == "carry" else {}
    options = RequestOptions(Ask(**{**start, name: UNUSUAL[name]}), deadline_ms=500.0)
    message = write_options(options)
    assert set(message) == {name, *start, "deadline_ms"}
    assert read_options(message, max_depth=32) == options


def test_the_keys_that_adapters_let_pass_are_those_that_are_read():
    class Asked(dict):
        def get(self, key, default=None):
            read.add(key)
            return default

    read: set[str] = set()
    read_options(Asked(), max_depth=32)
    assert read == OPTION_KEYS
