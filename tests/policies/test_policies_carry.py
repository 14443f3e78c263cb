"""Warm starts: a decision returns its carry and takes one; the policy itself keeps nothing."""

import struct
import zlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import checkpoint_fakes
from rdvla.envs import find_suite
from rdvla.errors import CarryError, ConfigError
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import read_records
from rdvla.eval.runner import evaluate
from rdvla.execution import Synchronous
from rdvla.model import recorded
from rdvla.policies.network import RDVLAPolicy
from rdvla.policy import Ask, decision_ask
from rdvla.robot.client import RemotePolicy
from rdvla.robot.guard import ActionGuard, ActionLimits
from rdvla.robot.loop import ControlLoop, Outcome
from rdvla.server.background import serving
from rdvla.stops import StopRule
from rdvla.types import Observation
from rdvla.wire.protocol import BadRequest
from serve_fakes import QUICK

SIX = StopRule.fixed(6)
ADAPTIVE = StopRule("action_mse", threshold=1.2e-3, max_depth=12)


def build(seed=0, **options):
    return RDVLAPolicy(checkpoint_fakes.make(seed=seed), name="small", **options)


@pytest.fixture(scope="module")
def policy():
    return build()


def see(seed=0, instruction="put the milk in the basket"):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    return Observation(images, rng.normal(size=8).astype(np.float32), instruction)


@pytest.fixture(scope="module")
def carry(policy):
    return policy.infer(see(0), Ask(SIX, 1, warm_start="half")).carry


def latents_of(policy, observation, start, depth):
    """Return the scratchpad after `depth` iterations, by hand."""
    network = policy.model
    with torch.no_grad():
        conditioning = network.head.condition(network.encode(policy.io.observed([observation])))
        for _ in range(depth):
            start = network.head.core(start, conditioning)
        return start, network.head.coda(start, conditioning)


@pytest.mark.parametrize(("warm_start", "depth"), [("half", 3), ("end", 6)])
def test_the_next_decision_begins_where_this_one_was(policy, warm_start, depth):
    first = policy.infer(see(0), Ask(SIX, 1, warm_start=warm_start))
    noise = policy.model.head.init_latents(1, torch.Generator().manual_seed(1))
    kept, _ = latents_of(policy, see(0), noise, depth)
    second = policy.infer(see(1), Ask(SIX, 2, warm_start=warm_start, carry=first.carry))
    _, normalised = latents_of(policy, see(1), kept, 6)
    np.testing.assert_allclose(second.actions, policy.io.actions(normalised[0].numpy()), atol=1e-5)
    cold = policy.infer(see(1), Ask(SIX, 2))
    assert np.abs(second.actions - cold.actions).max() > 1e-4


def test_one_iteration_is_kept_at_least(policy):
    once = policy.infer(see(0), Ask(StopRule.fixed(1), 1, warm_start="half"))
    assert once.carry == policy.infer(see(0), Ask(StopRule.fixed(1), 1, warm_start="end")).carry


@pytest.mark.parametrize("stop", [None, SIX, ADAPTIVE], ids=str)
def test_without_a_carry_everything_is_as_from_noise(policy, stop):
    plain = policy.infer(see(0), Ask(stop, 1))
    assert plain.carry is None
    for warm_start in ("half", "end"):
        cold = policy.infer(see(0), Ask(stop, 1, warm_start=warm_start))
        np.testing.assert_array_equal(cold.actions, plain.actions)
        assert (cold.num_recurrences, cold.convergence) == (plain.num_recurrences, plain.convergence)


def test_another_instruction_starts_cold(policy, carry):
    other = see(1, "pick up the black bowl and place it on the plate")
    warm = policy.infer(other, Ask(SIX, 2, warm_start="half", carry=carry))
    np.testing.assert_array_equal(warm.actions, policy.infer(other, Ask(SIX, 2)).actions)


@pytest.mark.parametrize("stop", [SIX, ADAPTIVE], ids=str)
def test_carries_and_ways_mix_in_a_batch(policy, stop):
    seen = [see(0), see(1), see(2, "pick up the black bowl and place it on the plate"), see(3)]
    before = policy.infer_batch(seen, [Ask(stop, row, warm_start="half") for row in range(4)])
    assert stop == SIX or len({chunk.num_recurrences for chunk in before}) > 1
    asks = [
        Ask(stop, 5, warm_start="half", carry=before[0].carry),
        Ask(stop, 6),
        Ask(stop, 7, warm_start="half"),
        Ask(stop, 8, warm_start="half", carry=before[3].carry),
    ]
    together = policy.infer_batch(seen, asks)
    for observation, ask, batched in zip(seen, asks, together, strict=True):
        alone = policy.infer(observation, ask)
        assert alone.num_recurrences == batched.num_recurrences
        np.testing.assert_allclose(batched.actions, alone.actions, atol=1e-5)
        assert (batched.carry is None) == (ask.warm_start == "noise")


def test_a_recorded_network_carries_the_same(policy, carry, monkeypatch):
    monkeypatch.setattr(recorded, "BACKEND", "eager")
    compiled = build(compile=True)
    ask = Ask(ADAPTIVE, 2, warm_start="half", carry=carry)
    plain, fast = policy.infer(see(1), ask), compiled.infer(see(1), ask)
    assert plain.num_recurrences == fast.num_recurrences
    ours, theirs = (np.frombuffer(chunk.carry[21:-4], "<f4") for chunk in (plain, fast))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    torch._dynamo.reset()


def resealed(blob, position, number):
    """Return the blob with another number at a place, and a checksum that fits."""
    content = bytearray(blob[:-4])
    content[position : position + 4] = struct.pack("<f", number)
    return bytes(content) + struct.pack("<I", zlib.crc32(content))


DAMAGES = {
    "empty": (lambda blob: b"", "has 0 bytes"),
    "cut": (lambda blob: blob[:-1], "bytes, this policy's have"),
    "another format": (lambda blob: b"NOPE" + blob[4:], "another policy's, or none"),
    "a flipped bit": (lambda blob: blob[:40] + bytes([blob[40] ^ 1]) + blob[41:], "damaged"),
    "not finite": (lambda blob: resealed(blob, len(blob) - 8, float("nan")), "not finite"),
    "too large": (lambda blob: resealed(blob, len(blob) - 8, 1e6), "larger numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_carry_is_refused(policy, carry, damage):
    change, message = DAMAGES[damage]
    with pytest.raises(CarryError, match=message):
        policy.infer(see(1), Ask(SIX, 2, warm_start="half", carry=change(carry)))


@pytest.mark.parametrize("part", ["prelude", "core", "coda"])
def test_a_carry_of_a_head_that_differs_anywhere_is_refused(carry, part):
    checkpoint = checkpoint_fakes.make()
    with torch.no_grad():
        next(iter(getattr(checkpoint.model.head, part).parameters())).view(-1)[0] += 1e-3
    with pytest.raises(CarryError, match="other weights"):
        RDVLAPolicy(checkpoint, name="tuned").infer(see(1), Ask(SIX, 2, warm_start="half", carry=carry))


@pytest.mark.parametrize("wrong", ["text", memoryview(b"1"), 3])
def test_a_carry_that_is_no_bytes_is_refused(policy, wrong):
    with pytest.raises(CarryError, match="a carry is bytes, found"):
        policy.infer(see(1), Ask(SIX, 2, warm_start="half", carry=wrong))


def test_a_trace_shallower_than_the_rule_is_refused_before_it_decides(policy):
    with pytest.raises(ConfigError, match=r"trace_depth is 8, but fixed\(12\) may take 12 iterations"):
        policy.infer(see(0), Ask(trace_depth=8))


def test_a_carry_of_other_weights_is_refused(carry):
    with pytest.raises(CarryError, match="other weights"):
        build(seed=1).infer(see(1), Ask(SIX, 2, warm_start="half", carry=carry))


def test_the_same_weights_in_another_precision_take_it(carry):
    build(precision="bfloat16").infer(see(1), Ask(SIX, 2, warm_start="half", carry=carry))


def test_wishes_that_make_no_sense_are_named(carry):
    with pytest.raises(ConfigError, match="Did you mean 'half'"):
        Ask(warm_start="hlaf")
    with pytest.raises(ConfigError, match="of no use to a start from noise"):
        Ask(carry=carry)


def test_a_server_passes_it_on_and_keeps_nothing(policy, carry):
    ask = Ask(SIX, 2, warm_start="half", carry=carry)
    with serving(build(), QUICK) as server, RemotePolicy(server.url) as remote:
        there, here = remote.infer(see(1), ask), policy.infer(see(1), ask)
        np.testing.assert_array_equal(there.actions, here.actions)
        assert there.carry == here.carry
        assert remote.infer(see(1), Ask(SIX, 2)).carry is None
        with pytest.raises(BadRequest, match="damaged"):
            remote.infer(see(1), replace(ask, carry=carry[:-1] + b"?"))
        foreign = build(seed=1).infer(see(1), Ask(SIX, 2, warm_start="half")).carry
        for wrong, message in ((foreign, "other weights"), (DAMAGES["not finite"][0](carry), "not finite")):
            with pytest.raises(BadRequest, match=message):
                remote.infer(see(1), replace(ask, carry=wrong))
        with pytest.raises(BadRequest, match="at most"):
            remote.infer(see(1), replace(ask, carry=bytes(2**20 + 1)))
        np.testing.assert_array_equal(remote.infer(see(1), ask).actions, here.actions)


class Direct:
    """A decider that asks at once."""

    def __init__(self, policy):
        self.policy, self.outcome = policy, None

    def submit(self, observation, ask):
        self.outcome = Outcome(self.policy.infer(observation, ask))

    def collect(self, wait_s):
        outcome, self.outcome = self.outcome, None
        return outcome


def test_a_control_loop_passes_it_on_within_an_episode_and_an_instruction(policy):
    other = "pick up the black bowl and place it on the plate"
    guard = ActionGuard(ActionLimits(np.full(7, -1e6), np.full(7, 1e6)), stop_action=np.zeros(7, np.float32))
    loop = ControlLoop(Direct(policy), Synchronous(1), guard, deadline_s=60.0, ask=Ask(SIX, warm_start="half"))

    def first_action(seen, decision, carry=None):
        return policy.infer(seen, decision_ask(Ask(SIX, 5, warm_start="half"), decision, carry)).actions[0]

    loop.reset(seed=5)
    start = policy.infer(see(0), decision_ask(Ask(SIX, 5, warm_start="half"), 0))
    np.testing.assert_array_equal(loop.act(lambda: see(0)), start.actions[0])
    np.testing.assert_array_equal(loop.act(lambda: see(1)), first_action(see(1), 1, start.carry))
    assert np.abs(first_action(see(1), 1, start.carry) - first_action(see(1), 1)).max() > 1e-6
    np.testing.assert_array_equal(loop.act(lambda: see(2, other)), first_action(see(2, other), 2))
    loop.reset(seed=5)
    np.testing.assert_array_equal(loop.act(lambda: see(1)), first_action(see(1), 0))


def play(factory, output, starts):
    config = EvalConfig(
        policy="small", suites=("toy",), task_ids=(0,), init_states=(0,), stops=(ADAPTIVE,), warm_starts=starts
    )
    evaluate(config, suites={"toy": find_suite("toy")}, policy_factory=factory, output=output)
    return read_records(output)


def test_an_evaluation_plays_them_here_and_over_there(tmp_path):
    noise, half = play(build, tmp_path / "here", ("noise", "half"))
    assert (noise.rule, half.rule) == ("action_mse(0.0012, max 12)", "action_mse(0.0012, max 12), half start")
    assert (noise.warm_start, half.warm_start) == ("noise", "half")
    assert noise.iterations[0] == half.iterations[0]
    assert noise.iterations != half.iterations
    with serving(build(), QUICK) as server:
        (remote,) = play(partial(RemotePolicy, server.url), tmp_path / "there", ("half",))
    assert (remote.iterations, remote.convergence) == (half.iterations, half.convergence)


def test_an_older_run_is_continued(tmp_path):
    (noise,) = play(build, tmp_path, ("noise",))
    run = tmp_path / "run.json"
    text = run.read_text()
    assert '"warm_starts"' in text
    run.write_text(text.replace('    "warm_starts": [\n      "noise"\n    ],\n', ""))
    assert '"warm_starts"' not in run.read_text()
    assert play(lambda: SimpleNamespace(), tmp_path, ("noise",)) == [noise]
