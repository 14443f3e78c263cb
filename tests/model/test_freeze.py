"""A frozen network computes what it computed before, faster; 8 bits and bfloat16 nearly."""

import copy

import pytest
import torch
from torch import nn

import rdvla.model.freeze as freezing
from rdvla.errors import ConfigError
from rdvla.model.config import HeadConfig
from rdvla.model.decide import decide
from rdvla.model.freeze import Int8Linear, PackedLinear, freeze
from rdvla.model.recurrent import Context, RecurrentHead
from rdvla.model.stopping import make_criterion
from rdvla.stops import StopRule

WIDE = HeadConfig(hidden_dim=384, num_heads=4, prelude_layers=(1,), recurrent_layers=(2,), coda_layers=(2,))
ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    head = RecurrentHead(WIDE).eval()
    for name, parameter in head.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter)
        elif name == "coda.output_proj.weight":
            nn.init.normal_(parameter, std=384**-0.5)  # actions of order one, so that errors would show
    return head


def contexts(batch=3):
    generator = torch.Generator().manual_seed(1)
    latents, vision = (torch.randn(batch, tokens, 384, generator=generator) for tokens in (9, 40))
    return {layer: Context(latents + layer, vision) for layer in (1, 2)}


def scratchpads(batch=3):
    return 0.6 * torch.randn(batch, 8, 384, generator=torch.Generator().manual_seed(2))


def outcome(head, rule, batch=3):
    with torch.no_grad():
        conditioning = head.condition(contexts(batch))
    return decide(head, conditioning, scratchpads(batch), make_criterion(rule), rule)


@ONEDNN
def test_a_frozen_head_decides_the_same(head):
    frozen = freeze(head)
    assert isinstance(frozen.core.blocks[0].ffn_gate, PackedLinear)
    assert isinstance(frozen.coda.output_proj, nn.Linear), "a small product is better left alone"
    for depth in (1, 12):
        plain, fast = (outcome(each, StopRule.fixed(depth)) for each in (head, frozen))
        assert plain.actions.abs().max() > 0.5
        torch.testing.assert_close(fast.actions, plain.actions, atol=2e-5, rtol=0)
    trace = torch.tensor(outcome(head, StopRule("action_mse", threshold=0.0, max_depth=6)).traces)
    rule = StopRule("action_mse", threshold=float(trace[:, 2:4].mean()), max_depth=12)
    plain, fast = (outcome(each, rule) for each in (head, frozen))
    assert plain.num_recurrences.max() < 12
    assert fast.num_recurrences.tolist() == plain.num_recurrences.tolist()
    torch.testing.assert_close(fast.actions, plain.actions, atol=2e-5, rtol=0)


@ONEDNN
def test_freezing_leaves_the_network_alone(head):
    original = copy.deepcopy(head).train()
    freeze(original)
    assert original.training
    assert original.state_dict().keys() == head.state_dict().keys()
    original(contexts(), scratchpads(), n_no_grad=1, n_grad=1).sum().backward()
    assert original.core.blocks[0].norm1.weight.grad is not None
    assert original.core.blocks[0].ffn_up.weight.grad is not None


@ONEDNN
@pytest.mark.parametrize("shape", [(8, 384), (2, 577, 384), (1, 2, 3, 384)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_and_8_bit_layers_equal_the_plain_one(shape, bias):
    torch.manual_seed(3)
    linear = nn.Linear(384, 512, bias=bias).requires_grad_(requires_grad=False)
    x = torch.randn(*shape)[..., :-1, :] * 10 ** torch.linspace(-3, 1, shape[-2] - 1).unsqueeze(-1)  # not contiguous
    expected = linear(x)
    torch.testing.assert_close(PackedLinear(linear)(x), expected, atol=2e-5, rtol=1e-5)
    error = (Int8Linear(linear)(x) - expected).norm(dim=-1) / (linear(x) - linear(torch.zeros(384))).norm(dim=-1)
    assert error.max() < 0.02, "every token has its own scale, so the smallest are as precise as the largest"
    assert torch.isfinite(Int8Linear(linear)(torch.zeros(shape))).all()


@ONEDNN
@pytest.mark.parametrize("width", [64, 383])
def test_8_bit_products_are_exact_on_every_processor(width, monkeypatch):
    """Largest levels of one sign everywhere: pairs of their products do not fit into 16 bits."""
    linear = nn.Linear(width, 9, bias=False)
    levels = torch.randint(-127, 128, (7, width)).float()
    levels[0] = 127
    levels[:, 0] = 127  # so that the scale of a row is one
    for weights in (torch.randint(-127, 128, (9, width)).float(), torch.full((9, width), 127.0)):
        weights[:, 1] = -127
        linear.weight.data = weights
        expected = (levels.double() @ weights.double().T).float()  # whole numbers below 2^24
        monkeypatch.setattr(freezing, "int8_products", lambda: "wide")
        torch.testing.assert_close(Int8Linear(linear)(levels), expected, atol=0, rtol=0)
        monkeypatch.undo()
        torch.testing.assert_close(Int8Linear(linear)(levels), expected, atol=0, rtol=0)


@ONEDNN
def test_8_bits_are_near_and_independent_of_companions(head):
    frozen = freeze(copy.deepcopy(head), "int8")
    assert all(type(module) is not nn.Linear for module in frozen.modules())
    rule = StopRule.fixed(12)
    plain, rounded = outcome(head, rule).actions, outcome(frozen, rule).actions
    error = (rounded - plain).norm() / plain.norm()
    assert 1e-4 < error < 0.1
    alone = decide(
        frozen,
        frozen.condition(contexts()).select(torch.tensor([1])),
        scratchpads()[1:2],
        make_criterion(rule),
        rule,
    )
    torch.testing.assert_close(alone.actions[0], rounded[1], atol=2e-3, rtol=0)


def test_bfloat16_is_near(head):
    frozen = freeze(copy.deepcopy(head), "bfloat16")
    generator = torch.Generator().manual_seed(5)
    assert frozen.init_latents(1, generator).dtype == torch.bfloat16
    near = {layer: Context(each.latents.bfloat16(), each.vision.bfloat16()) for layer, each in contexts().items()}
    rule = StopRule.fixed(12)
    with torch.no_grad():
        conditioning = frozen.condition(near)
    rounded = decide(frozen, conditioning, scratchpads().bfloat16(), make_criterion(rule), rule).actions
    plain = outcome(head, rule).actions
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - plain).norm() / plain.norm() < 0.1


def test_what_cannot_be_is_said(head, monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown precision 'int4'.*int8"):
        freeze(head, "int4")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="int8"):
        freeze(head, "int8")
    assert not any(isinstance(module, PackedLinear) for module in freeze(head).modules())
