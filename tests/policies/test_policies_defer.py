"""A policy whose rule defers its Coda: the same actions, counted decodings, nothing left to compile at the first."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import checkpoint_fakes
from rdvla.model import recorded
from rdvla.policies.network import RDVLAPolicy
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import Observation

PLAIN = StopRule("action_mse", threshold=1.2e-3, max_depth=12)
DEFERRED = replace(PLAIN, defer=0.5)


def build(stop=None, **options):
    return RDVLAPolicy(replace(checkpoint_fakes.make(), default_stop=stop), name="small", **options)


def see(seed):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    return Observation(images, rng.normal(size=8).astype(np.float32), "put the milk in the basket")


def test_fewer_decodings_and_the_same_actions():
    seen, asks = [see(seed) for seed in range(4)], [Ask(PLAIN, seed, trace_depth=12) for seed in range(4)]
    plain = build().infer_batch(seen, asks)
    lowest = [np.nanmin(chunk.trace["latent"][: chunk.num_recurrences]) for chunk in plain]
    rule = replace(PLAIN, defer=1.01 * float(max(lowest)))  # open in time for all of them
    policy = build(rule)
    assert policy.metadata.extra["default_stop"] == str(rule)
    deferred = policy.infer_batch(seen, [Ask(seed=seed) for seed in range(4)])
    for one, other in zip(plain, deferred, strict=True):
        assert one.num_recurrences == other.num_recurrences == one.signals["codas"]
        np.testing.assert_allclose(other.actions, one.actions, atol=1e-5)
        assert len(other.convergence) == other.signals["codas"] - 1
    assert sum(chunk.signals["codas"] for chunk in deferred) < sum(chunk.signals["codas"] for chunk in plain)
    assert "codas" not in policy.infer(see(0), Ask(StopRule.fixed(3))).signals


def test_a_gate_that_stays_shut_costs_iterations_and_decodes_once():
    shut = build().infer(see(0), Ask(replace(PLAIN, defer=1e-9), 0))
    assert (shut.num_recurrences, shut.signals["codas"], shut.convergence) == (12, 1, ())
    np.testing.assert_allclose(shut.actions, build().infer(see(0), Ask(StopRule.fixed(12), 0)).actions, atol=1e-5)


@pytest.mark.parametrize(("default", "stop"), [(DEFERRED, None), (None, DEFERRED)])
def test_a_compiled_policy_has_nothing_left_to_record(monkeypatch, default, stop):
    monkeypatch.setattr(recorded, "BACKEND", "eager")
    calls, record = [], recorded.record
    monkeypatch.setattr(recorded, "record", lambda *given: calls.append(given) or record(*given))
    policy = build(default, compile=True)
    policy.warm_up(1, stop)
    assert len(calls) == 4, "conditioning, core, Coda, and the Coda for two"
    policy.infer(see(0), Ask(DEFERRED, 0))
    assert len(calls) == 4
    torch._dynamo.reset()
