"""The head is what its docstrings say: a weight-tied loop over cached conditioning, truncated gradients."""

import functools

import pytest
import torch
from head_fakes import make_head

from rdvla.bench.machine import PeakMemory
from rdvla.errors import ConfigError
from rdvla.model.config import RDVLAConfig
from rdvla.model.decide import decide
from rdvla.model.depth import DepthSampler
from rdvla.model.recurrent import Context, apply_rope, truncated_normal
from rdvla.model.stopping import Look, make_criterion
from rdvla.model.trace import trace
from rdvla.stops import StopRule, rules
from rdvla.types import TO_FULL


@pytest.fixture
def head():
    return make_head()


def contexts(batch=3, seed=1, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens):
        return torch.randn(batch, tokens, 32, generator=generator).requires_grad_(requires_grad)

    return {layer: Context(latents=draw(5), vision=draw(9)) for layer in (1, 2)}


def latents(batch=3, seed=2):
    return torch.randn(batch, 8, 32, generator=torch.Generator().manual_seed(seed))


def plain_cross_attention(block, x, context):
    """The published form: project everything, gate the vision logits, one softmax."""
    q = block.heads(block.q_cross(block.norm2(x)))
    scale = q.shape[-1] ** -0.5
    to_latents = q @ block.heads(block.k_latents(context.latents)).transpose(-1, -2)
    to_vision = q @ block.heads(block.k_vision(context.vision)).transpose(-1, -2) * torch.tanh(block.gate)
    weights = torch.softmax(torch.cat((to_latents, to_vision), dim=-1) * scale, dim=-1)
    values = torch.cat(
        (block.heads(block.v_latents(context.latents)), block.heads(block.v_vision(context.vision))), dim=2
    )
    return block.o_cross((weights @ values).transpose(1, 2).flatten(-2))


def test_cached_conditioning_equals_projecting_every_time(head):
    block, context, x = head.core.blocks[0], contexts()[2], latents()
    cached = block.condition(context)
    assert cached is not None
    q = block.heads(block.q_cross(block.norm2(x)))
    attended = torch.nn.functional.scaled_dot_product_attention(q, cached.keys, cached.values)
    ours = block.o_cross(attended.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(ours, plain_cross_attention(block, x, context), atol=2e-6, rtol=0)


def test_depth_r_equals_r_explicit_calls(head):
    conditioning = head.condition(contexts())
    state = latents()
    for _ in range(5):
        state = head.core(state, conditioning)
    expected = head.coda(state, conditioning)
    torch.testing.assert_close(head(contexts(), latents(), n_no_grad=0, n_grad=5), expected)
    torch.testing.assert_close(head(contexts(), latents(), n_no_grad=3, n_grad=2), expected)
    decision = decide(head, conditioning, latents(), make_criterion(StopRule.fixed(5)), StopRule.fixed(5))
    torch.testing.assert_close(decision.actions, expected)
    assert decision.num_recurrences.tolist() == [5, 5, 5]


def test_gradient_flows_through_the_last_iterations_only(head):
    def gradient(start, n_no_grad, n_grad):
        head.zero_grad()
        head(contexts(), start, n_no_grad=n_no_grad, n_grad=n_grad).square().sum().backward()
        return head.core.adapter.weight.grad.clone()

    conditioning = head.condition(contexts())
    with torch.no_grad():
        halfway = head.core(head.core(latents(), conditioning), conditioning)
    torch.testing.assert_close(gradient(latents(), 2, 3), gradient(halfway, 0, 3))
    assert not torch.allclose(gradient(latents(), 2, 3), gradient(latents(), 0, 5))


def test_cached_conditioning_carries_gradient_from_every_gradient_iteration(head):
    inputs = contexts(requires_grad=True)
    head(inputs, latents(), n_no_grad=2, n_grad=2).sum().backward()
    assert all(context.vision.grad.abs().sum() > 0 for context in inputs.values())


def test_rope_is_the_published_one():
    cos, sin = torch.full((1, 4), 0.5), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    x = torch.tensor([[[[1.0, 10.0, 100.0, 1000.0]]]])
    expected = torch.tensor([[[[0.5 - 10.0, 5.0 + 2.0, 50.0 - 3000.0, 500.0 + 400.0]]]])
    torch.testing.assert_close(apply_rope(x, (cos, sin)), expected)


@pytest.mark.parametrize("name", ["action_l2", "action_mse", "cosine", "latent"])
def test_one_samples_stop_changes_nothing_for_another(head, name):
    conditioning = head.condition(contexts(6))
    never = StopRule(name, threshold=1.0 if name == "cosine" else 0.0, max_depth=6)
    traces = decide(head, conditioning, latents(6), make_criterion(never), never).traces
    middle = float(torch.tensor(traces)[:, 3].median())  # half of the samples pass it at the fourth look
    rule = StopRule(name, threshold=1 - middle if name == "cosine" else middle, max_depth=12)
    together = decide(head, head.condition(contexts(6)), latents(6), make_criterion(rule), rule)
    assert len(set(together.num_recurrences.tolist())) > 1, "the samples should stop at different depths"
    whole = head.condition(contexts(6))
    for row in range(6):
        alone = decide(head, whole.select(torch.tensor([row])), latents(6)[row : row + 1], make_criterion(rule), rule)
        assert alone.num_recurrences[0] == together.num_recurrences[row]
        torch.testing.assert_close(alone.actions[0], together.actions[row], atol=2e-5, rtol=0)
        assert alone.traces[0] == pytest.approx(together.traces[row], rel=1e-2, abs=1e-6)


def test_a_trace_is_what_every_rule_would_have_seen(head):
    conditioning = head.condition(contexts(3))
    columns = trace(head, conditioning, latents(3), 6)
    assert columns.keys() == {*rules(), TO_FULL}
    for name, spec in rules().items():
        assert columns[name].isnan().nonzero().tolist() == [[row, 0] for row in range(3)]
        never = StopRule(name, threshold=1.0 if spec.runs == "above" else 0.0, max_depth=6)
        seen = decide(head, conditioning, latents(3), make_criterion(never), never).traces
        torch.testing.assert_close(columns[name][:, 1:], torch.tensor(seen), rtol=0, atol=0)
    for depth in (2, 6):
        rule = StopRule.fixed(depth)
        reached = decide(head, conditioning, latents(3), make_criterion(rule), rule).actions
        full = decide(head, conditioning, latents(3), make_criterion(StopRule.fixed(6)), StopRule.fixed(6)).actions
        distance = (reached - full).square().mean(dim=(1, 2))
        torch.testing.assert_close(columns[TO_FULL][:, depth - 1], distance, rtol=1e-5, atol=1e-9)


def test_a_threshold_of_zero_means_maximum_depth(head):
    rule = StopRule("action_mse", threshold=0.0, max_depth=7)
    decision = decide(head, head.condition(contexts()), latents(), make_criterion(rule), rule)
    assert decision.num_recurrences.tolist() == [7, 7, 7]
    assert [len(trace) for trace in decision.traces] == [6, 6, 6]


def test_min_depth_and_check_every_are_kept(head):
    conditioning = head.condition(contexts())
    eager = StopRule("action_l2", threshold=1e9, max_depth=12)
    assert decide(head, conditioning, latents(), make_criterion(eager), eager).num_recurrences.tolist() == [2, 2, 2]
    patient = StopRule("action_l2", threshold=1e9, min_depth=5, max_depth=12)
    assert decide(head, conditioning, latents(), make_criterion(patient), patient).num_recurrences.tolist() == [5] * 3
    seldom = StopRule("action_l2", threshold=1e9, max_depth=12, check_every=3)
    assert decide(head, conditioning, latents(), make_criterion(seldom), seldom).num_recurrences.tolist() == [6] * 3


@pytest.mark.parametrize(("name", "deep"), [("fixed", 512), ("action_mse", 24), ("latent", 24)])
def test_memory_does_not_grow_with_depth(head, name, deep):
    def peak(depth):
        rule = StopRule.fixed(depth) if name == "fixed" else StopRule(name, threshold=0.0, max_depth=depth)
        with PeakMemory() as memory:
            decide(head, head.condition(contexts()), latents(), make_criterion(rule), rule)
        return memory.peak

    assert peak(deep) == peak(3) >= latents().nbytes


def test_stopping_metrics_on_three_numbers():
    before = Look(torch.zeros(1, 1, 3), torch.tensor([[[1.0, 2.0, 3.0]]]))
    after = Look(torch.tensor([[[3.0, 4.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 6.0]]]))

    def value(name):
        return make_criterion(StopRule(name)).measure(before, after).item()

    assert value("action_l2") == pytest.approx(9.0)
    assert value("action_mse") == pytest.approx(3.0)
    assert value("cosine") == pytest.approx(1 - 23 / (14 * 41) ** 0.5, abs=1e-6)
    assert value("latent") == pytest.approx(1.0)


def test_whole_batch_judges_all_samples_together():
    before = Look(torch.zeros(2, 1, 1), torch.tensor([[[0.0]], [[0.0]]]))
    after = Look(torch.zeros(2, 1, 1), torch.tensor([[[0.1]], [[1.0]]]))
    rule = StopRule("action_mse", threshold=0.1)
    alone = make_criterion(rule)
    assert alone.passed(alone.measure(before, after)).tolist() == [True, False]
    whole = make_criterion(rule, whole_batch=True)
    value = whole.measure(before, after)
    together = whole.passed(value)
    assert together.tolist() == [False, False]
    assert value.tolist() == pytest.approx([0.505, 0.505])


def test_depth_sampler_follows_its_distribution():
    sampler = DepthSampler(32, 8)
    generator = torch.Generator().manual_seed(0)
    depths = torch.tensor([sampler.sample(generator) for _ in range(4000)]).float()
    assert depths.min() >= 1
    assert depths.max() == 64
    assert depths.mean().item() == pytest.approx(31.84, abs=0.8)
    assert depths.std().item() == pytest.approx(14.94, abs=0.6)
    assert DepthSampler(12, 8, random=False)() == (4, 8)
    assert DepthSampler(3, 8, random=False)() == (0, 3)


def test_the_scratchpad_is_cut_at_three_deviations_and_seeded(head):
    first = head.init_latents(200, torch.Generator().manual_seed(5))
    assert first.abs().max() <= 3 * 0.632
    assert first.std().item() == pytest.approx(0.632 * 0.9866, abs=0.01)
    torch.testing.assert_close(first, head.init_latents(200, torch.Generator().manual_seed(5)))


def test_a_seed_has_its_numbers_under_every_torch():
    """The numbers of torch 2.13.0. Its normals differ between processors in the last digits."""
    drawn = truncated_normal((2, 8, 64), 1.0, generator=torch.Generator().manual_seed(3)).flatten()
    close = functools.partial(torch.testing.assert_close, atol=5e-6, rtol=0)
    first = [-0.0766443, 0.3598815, -0.7820168, 0.0715277, 0.6648394, -0.2867803, 1.6205508, -1.5967081]
    close(drawn[:8], torch.tensor(first))
    close(drawn[[541, 688]], torch.tensor([-0.5244579, -1.8569393]))  # were -3.1811 and 3.5658
    assert float(drawn.double().square().sum()) == pytest.approx(1009.99655, abs=1e-3)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch drew otherwise before 2.13")
@pytest.mark.parametrize("seed", range(20))
def test_they_are_those_of_torch_2_13_to_the_last_bit(seed):
    bounds = {"std": 0.02, "a": -0.06, "b": 0.06}
    theirs = torch.nn.init.trunc_normal_(torch.empty(8, 896), generator=torch.Generator().manual_seed(seed), **bounds)
    ours = truncated_normal((8, 896), 0.02, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ours, theirs)


def test_a_seed_has_its_numbers_in_every_dtype(head):
    plain = [head.init_latents(40, torch.Generator().manual_seed(seed)) for seed in range(5)]
    head.to(torch.bfloat16)
    rounded = [head.init_latents(40, torch.Generator().manual_seed(seed)) for seed in range(5)]
    for one, other in zip(plain, rounded, strict=True):
        assert torch.equal(one.to(torch.bfloat16), other)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"head": {"recurrent_layers": []}}, "recurrent_layers"),
        ({"head": {"num_heads": 5}}, "num_heads"),
        ({"head": {"coda_layers": [25]}}, "0..24"),
        ({"prompt": "do it"}, "instruction"),
        ({"cameras": []}, "cameras"),
        ({"head": {"chunk_sise": 4}}, "chunk_size"),
    ],
)
def test_contradictory_configurations_are_refused(changes, field):
    with pytest.raises(ConfigError, match=field):
        RDVLAConfig.build(changes)
