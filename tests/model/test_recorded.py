"""A recorded network decides as the network itself does, in any batch, compiled once for each shape."""

import weakref

import numpy as np
import pytest
import torch

from rdvla.errors import ConfigError
from rdvla.model import recorded
from rdvla.model.backbones.prismatic import DinoSiglipConfig, PrismaticConfig, ViTConfig
from rdvla.model.backbones.tiny import ConvConfig, TinyConfig
from rdvla.model.config import HeadConfig, RDVLAConfig
from rdvla.model.decide import decide
from rdvla.model.freeze import freeze
from rdvla.model.language import LanguageConfig
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recorded import RecordedNetwork
from rdvla.model.stopping import make_criterion
from rdvla.stops import StopRule

HEAD = HeadConfig(hidden_dim=32, num_heads=2, prelude_layers=(1,), recurrent_layers=(2, 2), coda_layers=(2,))
LANGUAGE = LanguageConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=48)
TOWER = {"num_heads": 2, "mean": (0.48, 0.45, 0.4), "std": (0.23, 0.22, 0.225)}
BESIDE = {"projector_width": 16, "language": LANGUAGE, "num_latent_tokens": 3}
CONV = ConvConfig(image_size=32, channels=(8, 8), norm_groups=4)
TOWERS = DinoSiglipConfig(
    image_size=28,
    dino=ViTConfig(depth=3, width=8, mlp_width=32, num_registers=4, layer_scale=True, **TOWER),
    siglip=ViTConfig(depth=2, width=12, mlp_width=44, attention_pool=True, **TOWER),
)
LAPTOP_KIND = RDVLAConfig(backbone=TinyConfig(vision=CONV, **BESIDE), head=HEAD)
RELEASED_KIND = RDVLAConfig(backbone=PrismaticConfig(vision=TOWERS, **BESIDE), head=HEAD)
ADAPTIVE = StopRule("latent", threshold=0.2, max_depth=12)


def build(config):
    torch.manual_seed(0)
    network = RDVLA(config)
    for name, parameter in network.head.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.normal_(parameter)
        elif name == "coda.output_proj.weight":
            torch.nn.init.normal_(parameter, std=32**-0.5)  # actions of order one, so that errors would show
    return network.requires_grad_(requires_grad=False).eval()


def inputs(config, lengths, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    batch, side = len(lengths), config.backbone.image_size
    images = torch.randint(256, (batch, 2, side, side, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(50, (batch, max(lengths)), generator=generator)
    state = torch.rand(batch, 8, generator=generator)
    return Inputs(images.to(device), ids.to(device), torch.tensor(lengths, device=device), state.to(device))


def scratchpads(network, batch):
    return network.head.init_latents(batch, torch.Generator().manual_seed(5))


@torch.no_grad()
def plain(network, given, rule):
    conditioning = network.head.condition(network.encode(given))
    return decide(network.head, conditioning, scratchpads(network, len(given.ids)), make_criterion(rule), rule)


def fast(network, record, given, rule):
    head, places = record.condition(given)
    return decide(head, places, scratchpads(network, len(given.ids)), make_criterion(rule), rule)


def test_the_same_decisions_from_three_graphs_for_each_shape(graphs):
    network = build(RELEASED_KIND)
    record = RecordedNetwork(network)
    for number, lengths in enumerate([(5, 9), (12, 3), (7,)]):  # one prompt size, batches of two and of one
        for rule in (StopRule.fixed(6), StopRule("action_mse", threshold=1e-3, max_depth=12)):
            given = inputs(RELEASED_KIND, lengths, seed=number)
            expected, found = plain(network, given, rule), fast(network, record, given, rule)
            assert expected.actions.abs().max() > 0.1
            assert found.num_recurrences.tolist() == expected.num_recurrences.tolist()
            torch.testing.assert_close(found.actions, expected.actions, atol=2e-5, rtol=0)
    assert len(graphs) == 2 * 3, "condition, core and Coda for a batch of two, then of one"
    fast(network, record, inputs(RELEASED_KIND, (20,)), StopRule.fixed(2))
    assert len(graphs) == 2 * 3 + 1, "a longer prompt needs another encoder, nothing else"
    for graph in graphs:  # what is made on the host would be copied in every decision, which a CUDA graph refuses
        assert not [name for name, _ in graph.named_buffers() if "constant" in name]
        targets = {str(node.target) for node in graph.graph.nodes}
        assert not targets & {"item", "tolist", "cpu", "new_tensor", "nonzero"}


def test_samples_stop_by_themselves_in_a_batch_that_is_padded(graphs):
    network = build(LAPTOP_KIND)
    record = RecordedNetwork(network)
    fast(network, record, inputs(LAPTOP_KIND, (9, 9, 9, 9), seed=9), StopRule.fixed(2))  # leaves a full batch behind
    given = inputs(LAPTOP_KIND, (5, 9, 3), seed=1)
    never = StopRule("latent", threshold=0.0, max_depth=6)
    changes = torch.tensor(plain(network, given, never).traces)[:, 3]
    rule = StopRule("latent", threshold=float(changes.median()), max_depth=12)
    expected, found = plain(network, given, rule), fast(network, record, given, rule)
    assert len(set(expected.num_recurrences.tolist())) > 1
    assert found.num_recurrences.tolist() == expected.num_recurrences.tolist()
    for row, trace in enumerate(expected.traces):
        assert found.traces[row] == pytest.approx(trace, rel=1e-4)
    torch.testing.assert_close(found.actions, expected.actions, atol=2e-5, rtol=0)
    assert len(graphs) == 3, "three samples are computed as four"


def test_more_shapes_than_torch_expects(graphs):
    double = recorded.fuse(lambda x: 2 * x)
    for size in range(1, 12):
        place = torch.zeros(size)
        again = recorded.record(lambda place=place: double(place), place.device)
        place += 1
        assert again().tolist() == [2.0] * size
    assert len(graphs) == 11


def test_a_fixed_depth_never_waits_for_the_device():
    """On the meta device tensors have no values: who needed one would fail."""
    network = build(RELEASED_KIND).to("meta")
    given = inputs(RELEASED_KIND, (5, 9), device="meta")
    latents = torch.empty(2, 8, 32, device="meta")
    conditioning = network.head.condition(network.encode(given))
    decision = decide(network.head, conditioning, latents, make_criterion(StopRule.fixed(4)), StopRule.fixed(4))
    assert decision.actions.shape == (2, 8, 7)
    assert decision.actions.is_meta
    with pytest.raises(NotImplementedError, match="meta"):
        decide(network.head, conditioning, latents, make_criterion(ADAPTIVE), ADAPTIVE)


def test_8_bits_cannot_be_compiled():
    with pytest.raises(ConfigError, match=r"int8.*cannot be compiled"):
        freeze(build(LAPTOP_KIND), "int8", pack=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_keeps_what_it_reads():
    def begin():
        read = torch.ones(4, device="cuda")
        return recorded.record(lambda: read + 1, read.device), weakref.ref(read)

    replay, read = begin()
    assert read() is not None
    assert replay().tolist() == [2.0] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "rule", [StopRule.fixed(12), ADAPTIVE, StopRule("action_mse", 1e-3, max_depth=12, defer=0.3)], ids=str
)
def test_cuda_graphs_decide_as_the_network_does(rule):
    network = build(RELEASED_KIND).cuda()
    record = RecordedNetwork(network)
    for seed in range(3):  # the second and third replay
        given = inputs(RELEASED_KIND, (5, 9, 3), seed=seed, device="cuda")
        expected, found = plain(network, given, rule), fast(network, record, given, rule)
        assert found.num_recurrences.tolist() == expected.num_recurrences.tolist()
        torch.testing.assert_close(found.actions, expected.actions, atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_replays_wait_at_checks_alone():
    network = build(RELEASED_KIND).cuda()
    record = RecordedNetwork(network)
    given, latents = inputs(RELEASED_KIND, (5,), device="cuda"), scratchpads(network, 1)
    record.condition(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        head, places = record.condition(given)
        decision = decide(head, places, latents, make_criterion(StopRule.fixed(12)), StopRule.fixed(12))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(decision.actions.cpu().numpy()).all()
