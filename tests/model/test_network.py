"""The assembled network: layout of the sequence, independence within a batch, the policy around it."""

import copy

import numpy as np
import pytest
import torch

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.data.images import TINY
from rdvla.data.stats import DatasetStatistics, NormStats
from rdvla.errors import ConfigError, ObservationError
from rdvla.model import recorded
from rdvla.model.config import rdvla_tiny
from rdvla.model.prompt import Prompt, train_tokenizer
from rdvla.model.rdvla import RDVLA, Inputs, masked_l1
from rdvla.policies.network import RDVLAPolicy
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import ActionConvention, Observation

INSTRUCTIONS = ["pick up the red bowl", "push the plate to the front of the stove and wait"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(INSTRUCTIONS, vocab_size=300)


@pytest.fixture(scope="module")
def network(tokenizer):
    torch.manual_seed(0)
    return RDVLA(rdvla_tiny(tokenizer.get_vocab_size())).eval()


@pytest.fixture(scope="module")
def statistics():
    rng = np.random.default_rng(0)
    return DatasetStatistics(
        action=NormStats.compute(rng.normal(size=(50, 7)).astype(np.float32), mask=[True] * 6 + [False]),
        state=NormStats.compute(rng.normal(size=(50, 8)).astype(np.float32)),
        num_transitions=50,
        num_trajectories=1,
    )


@pytest.fixture(scope="module")
def policy(network, tokenizer, statistics):
    return RDVLAPolicy(
        Checkpoint(network, {"test": statistics}, tokenizer, ActionConvention("open_is_negative"), TINY), name="test"
    )


def observation(seed=0, instruction=INSTRUCTIONS[0], size=256, **changes):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    fields = {"images": images, "state": rng.normal(size=8).astype(np.float32), "instruction": instruction}
    return Observation(**(fields | changes))


def test_sequence_layout_per_sample(network):
    """[tok0, patches, tok1.., latents]; the slices the head reads are one position early, as published."""
    images = torch.randint(0, 256, (2, 2, 128, 128, 3), dtype=torch.uint8)
    ids, lengths = torch.tensor([[11, 12, 13], [14, 15, 0]]), torch.tensor([3, 2])
    with torch.no_grad():
        backbone = network.backbone
        sequence, first_latent = backbone.assemble(images, ids, lengths)
        patches = backbone.projector(backbone.vision(images.flatten(0, 1))).unflatten(0, (2, 2)).flatten(1, 2)
        words = backbone.language.embed(ids)
    latents = backbone.latent_tokens[:-1].detach()
    long = torch.cat((words[0, :1], patches[0], words[0, 1:], latents))
    short = torch.cat((words[1, :1], patches[1], words[1, 1:2], latents))
    torch.testing.assert_close(sequence[0], long)
    torch.testing.assert_close(sequence[1, :-1], short)
    num_patches = patches.shape[1]
    assert first_latent.tolist() == [num_patches + 2, num_patches + 1]  # the last prompt token


def test_padding_and_companions_change_nothing(network, tokenizer):
    ids, lengths = Prompt(tokenizer, "{instruction}")(INSTRUCTIONS)
    assert lengths[0] < lengths[1]
    images = torch.randint(0, 256, (2, 2, 128, 128, 3), dtype=torch.uint8)
    state = torch.randn(2, 8)
    with torch.no_grad():
        together = network.encode(Inputs(images, ids, lengths, state))
        alone = network.encode(Inputs(images[:1], ids[:1, : lengths[0]], lengths[:1], state[:1]))
    for layer, context in alone.items():
        torch.testing.assert_close(context.latents[0], together[layer].latents[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(context.vision[0], together[layer].vision[0], atol=2e-5, rtol=1e-4)


def test_the_instruction_matters(policy):
    same_scene = [policy.infer(observation(instruction=text), Ask(seed=1)).actions for text in INSTRUCTIONS]
    assert np.abs(same_scene[0][:, :6] - same_scene[1][:, :6]).max() > 1e-5


def test_decisions_are_seeded_and_in_the_environments_convention(policy):
    first = policy.infer(observation(), Ask(seed=3))
    assert first.actions.shape == (8, 7)
    assert first.actions.dtype == np.float32
    assert set(np.unique(first.actions[:, 6])) <= {-1.0, 1.0}
    assert first.num_recurrences == 12
    np.testing.assert_array_equal(first.actions, policy.infer(observation(), Ask(seed=3)).actions)
    shallow = policy.infer(observation(), Ask(StopRule.fixed(1), 3))
    assert not np.array_equal(shallow.actions, policy.infer(observation(), Ask(StopRule.fixed(1), 4)).actions)
    assert {"prepare", "encode", "recurrence", "total"} <= set(first.timings)


def test_a_batch_gives_each_sample_what_it_gets_alone(policy):
    observations = [observation(0), observation(1, INSTRUCTIONS[1], size=128), observation(2, size=300)]
    stop = StopRule("action_l2", threshold=1e-4, max_depth=20)
    together = policy.infer_batch(observations, [Ask(stop, seed) for seed in (1, 2, 3)])
    for each, seed, batched in zip(observations, [1, 2, 3], together, strict=True):
        alone = policy.infer(each, Ask(stop, seed))
        assert alone.num_recurrences == batched.num_recurrences
        np.testing.assert_allclose(alone.actions, batched.actions, atol=1e-4)


@pytest.mark.parametrize(
    "stop",
    [
        StopRule("latent", threshold=0.02, max_depth=20),
        StopRule("action_mse", threshold=1e-6, max_depth=20, check_every=3),
    ],
    ids=lambda stop: stop.name,
)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_tasks_prompts_and_depths_mix_in_a_batch_in_every_precision(network, tokenizer, statistics, stop, precision):
    checkpoint = Checkpoint(network, {"test": statistics}, tokenizer, ActionConvention("open_is_negative"), TINY)
    policy = RDVLAPolicy(checkpoint, name="test", precision=precision)
    observations = [observation(seed, INSTRUCTIONS[seed % 2]) for seed in range(4)]
    together = policy.infer_batch(observations, [Ask(stop, seed) for seed in range(4)])
    for seed, batched in enumerate(together):
        alone = policy.infer(observations[seed], Ask(stop, seed))
        assert alone.num_recurrences == batched.num_recurrences
        np.testing.assert_allclose(alone.actions, batched.actions, atol=1e-4 if precision == "float32" else 5e-3)


@pytest.mark.parametrize("stop", [StopRule.fixed(3), StopRule("action_mse", threshold=1e-5, max_depth=20)])
def test_a_trace_changes_nothing_and_goes_on_after_the_stop(policy, stop):
    plain, traced = policy.infer(observation(), Ask(stop, 3)), policy.infer(observation(), Ask(stop, 3, trace_depth=24))
    np.testing.assert_array_equal(traced.actions, plain.actions)
    assert (traced.num_recurrences, traced.convergence) == (plain.num_recurrences, plain.convergence)
    assert all(column.shape == (24,) and column.dtype == np.float32 for column in traced.trace.values())
    seen = traced.trace["action_mse"][1 : plain.num_recurrences]
    np.testing.assert_array_equal(seen[: len(plain.convergence)], np.float32(plain.convergence))
    assert traced.trace["to_full"][-1] == 0 < traced.trace["to_full"][0]
    assert not plain.trace
    assert traced.timings["trace"] > 0


def test_a_budget_buys_at_least_one_iteration_and_at_most_what_the_rule_wants(policy):
    plenty = policy.infer(observation(), Ask(seed=3, budget_ms=1e6))
    assert (plenty.num_recurrences, plenty.out_of_time) == (12, False)
    np.testing.assert_array_equal(plenty.actions, policy.infer(observation(), Ask(seed=3)).actions)
    nothing = policy.infer(observation(), Ask(seed=3, budget_ms=1e-3))
    assert (nothing.num_recurrences, nothing.out_of_time) == (1, True)
    np.testing.assert_array_equal(nothing.actions, policy.infer(observation(), Ask(StopRule.fixed(1), 3)).actions)
    costs = policy.costs[1]
    assert min(costs.encode, costs.iteration, costs.decode) > 0
    between = policy.infer(observation(), Ask(StopRule.fixed(4000), 3, nothing.timings["total"] + 200))
    assert 1 <= between.num_recurrences < 4000
    assert between.out_of_time


def test_a_compiled_policy_decides_the_same_and_is_measured_before_it_is_asked(
    policy, network, tokenizer, statistics, monkeypatch
):
    monkeypatch.setattr(recorded, "BACKEND", "eager")
    checkpoint = Checkpoint(network, {"test": statistics}, tokenizer, ActionConvention("open_is_negative"), TINY)
    compiled = RDVLAPolicy(checkpoint, name="test", compile=True)
    compiled.warm_up(2)
    costs = compiled.costs[2]
    assert min(costs.encode, costs.iteration, costs.decode) > 0
    observations = [observation(seed, INSTRUCTIONS[seed % 2]) for seed in range(2)]
    for stop in (None, StopRule("latent", threshold=0.02, max_depth=20)):
        plain, fast = (each.infer_batch(observations, [Ask(stop, 1), Ask(stop, 2)]) for each in (policy, compiled))
        for one, other in zip(plain, fast, strict=True):
            assert other.num_recurrences == one.num_recurrences
            np.testing.assert_allclose(other.actions, one.actions, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_decides_like_a_cpu(network, tokenizer, statistics):
    checkpoint = Checkpoint(
        copy.deepcopy(network), {"test": statistics}, tokenizer, ActionConvention("open_is_negative"), TINY
    )
    expected = RDVLAPolicy(checkpoint, name="test").infer(observation(), Ask(StopRule.fixed(4), 3))
    policy = RDVLAPolicy(checkpoint, name="test", device="cuda")
    found = policy.infer(observation(), Ask(StopRule.fixed(4), 3, budget_ms=1e6))
    assert found.num_recurrences == 4
    np.testing.assert_allclose(found.actions, expected.actions, atol=1e-3)


def test_bad_observations_say_what_is_wrong(policy):
    full = observation()
    with pytest.raises(ObservationError, match="no camera 'wrist'"):
        policy.infer(Observation({"primary": full.images["primary"]}, full.state, full.instruction))
    with pytest.raises(ObservationError, match="8 values, found 7"):
        policy.infer(observation(state=np.zeros(7, np.float32)))
    with pytest.raises(ObservationError, match="non-finite"):
        observation(state=np.full(8, np.nan, np.float32))
    with pytest.raises(ObservationError, match="state must hold numbers"):
        observation(state=["left"] * 8)
    with pytest.raises(ObservationError, match="uint8"):
        observation(images={"primary": np.zeros((4, 4, 3), np.float32)})
    with pytest.raises(ObservationError, match=r"\[H, W, 3\]"):
        observation(images={"primary": np.zeros((3, 4, 4), np.uint8)})
    with pytest.raises(ObservationError, match="instruction"):
        observation(instruction="  ")
    with pytest.raises(ConfigError, match="at least one"):
        policy.infer_batch([], [])
    with pytest.raises(ConfigError, match="as many asks"):
        policy.infer_batch([full], [Ask(), Ask()])
    with pytest.raises(ConfigError, match="budget_ms"):
        Ask(budget_ms=0)


def test_padded_actions_do_not_count():
    predicted = torch.tensor([[[1.0, 1.0], [9.0, 9.0]], [[2.0, 0.0], [0.0, 0.0]]])
    is_pad = torch.tensor([[False, True], [False, False]])
    assert masked_l1(predicted, torch.zeros_like(predicted), is_pad).item() == pytest.approx((1 + 1 + 2) / 6)


def test_any_instruction_encodes(tokenizer):
    prompt = Prompt(tokenizer, "{instruction}")
    assert tokenizer.decode(prompt.encode("Übergib die ZANGE!")) == "übergib die zange!"
    assert prompt.encode("PICK up the red bowl ") == prompt.encode("pick up the red bowl")
