"""A backbone of another package: one file, found by its entry point; trained and saved by code without its name."""

from importlib.metadata import EntryPoint
from typing import Literal

import pytest
import torch
from torch import nn

from checkpoint_fakes import act, head, make, same_tensors
from rdvla import plugins
from rdvla.checkpoints import load_native, save_native
from rdvla.checkpoints.base_vlm import copy_vlm
from rdvla.checkpoints.names import stored_state
from rdvla.errors import CheckpointError, ConfigError
from rdvla.model import backbone as backbone_module
from rdvla.model.backbone import Backbone, BackboneConfig, Features, backbones
from rdvla.model.backbones.tiny import TinyConfig
from rdvla.model.config import RDVLAConfig, rdvla_0_5b, rdvla_tiny
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.reference.network import PublishedNetwork
from rdvla.train.config import LoraConfig
from rdvla.train.lora import add_adapters, targets
from rdvla.train.precision import checkpoint_activations
from rdvla.train.presets import changed


class MeanConfig(BackboneConfig):
    """Mean colours and words, one linear layer after the other."""

    kind: Literal["mean"] = "mean"
    num_latent_tokens: int = 2
    depth: int = 3

    image_size = property(lambda self: 32)
    tokens_per_image = property(lambda self: 1)
    vocab_size = property(lambda self: 600)
    width = property(lambda self: 16)
    num_layers = property(lambda self: self.depth)

    def network(self):
        return Mean(self)


class Mean(Backbone):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.colours, self.words = nn.Linear(3, 16), nn.Embedding(600, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(config.depth))
        self.latent_tokens = nn.Parameter(torch.randn(config.num_latent_tokens, 16))

    def forward(self, images, ids_BL, lengths_B, layers):
        vision = self.colours(images.float().mean(dim=(2, 3)) / 255)
        said = torch.arange(ids_BL.shape[1]) < lengths_B.unsqueeze(1)
        words = (self.words(ids_BL) * said.unsqueeze(-1)).sum(dim=1, keepdim=True)
        states = [Features(self.latent_tokens + words, vision)]
        for layer in self.layers:
            states.append(Features(layer(states[-1].latents), layer(states[-1].vision)))
        return {index: states[index] for index in layers}

    def blocks(self):
        return list(self.layers)

    def uncomputed(self, layers):
        return tuple(f"layers.{index}" for index in range(max(layers), len(self.layers)))


@pytest.fixture
def installed(monkeypatch):
    entry = EntryPoint("mean", f"{__name__}:MeanConfig", backbone_module.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    backbones.cache_clear()
    yield
    backbones.cache_clear()


@pytest.fixture
def config(installed):
    return changed(rdvla_0_5b(), {"backbone": {"kind": "mean"}, "head": head().model_dump()})


def test_takes_the_place_of_a_presets(config):
    assert config.backbone == MeanConfig()
    assert RDVLAConfig.build(config.model_dump(mode="json")) == config
    assert changed(config, {"backbone": {"depth": 2}}).backbone.depth == 2


def test_is_saved_and_loaded(config, tmp_path):
    like = make()
    checkpoint = type(like)(RDVLA(config).eval(), like.statistics, like.tokenizer, like.actions, like.image_path)
    save_native(tmp_path / "policy", checkpoint)
    again = load_native(tmp_path / "policy")
    assert same_tensors(checkpoint, again)
    assert torch.equal(act(checkpoint), act(again))


def test_is_trained(config):
    pytest.importorskip("peft", reason="peft is not installed (extra 'train')")
    model = RDVLA(config)
    assert targets(model, "trained") == ["backbone.colours", "backbone.layers.0", "backbone.layers.1"]
    add_adapters(model, LoraConfig(rank=2))
    checkpoint_activations(model)
    batch = Inputs(torch.zeros(2, 2, 32, 32, 3), torch.ones(2, 4).long(), torch.tensor([4, 2]), torch.zeros(2, 8))
    model(batch, model.head.init_latents(2), n_no_grad=1, n_grad=1).sum().backward()
    trained = {name for name, each in model.backbone.named_parameters() if each.requires_grad}
    assert "latent_tokens" in trained
    assert all(".lora_" in name for name in trained - {"latent_tokens"})


def test_is_not_compared_with_the_published_computation(config):
    with pytest.raises(ConfigError, match="no published computation to compare a backbone Mean"):
        PublishedNetwork(RDVLA(config))


def test_a_part_that_is_called_like_one_of_ours_is_refused(config, monkeypatch):
    monkeypatch.setattr(MeanConfig, "network", lambda self: nn.ModuleDict({"head": nn.Linear(2, 2)}))
    with pytest.raises(ConfigError, match="the backbone's part 'head' would be stored as our 'head'"):
        RDVLA(config)


def test_an_unknown_kind_is_named(installed):
    with pytest.raises(ConfigError, match=r"backbone\.kind: there is no backbone 'prism'\. Did you mean 'prismatic'\?"):
        RDVLAConfig.build({"backbone": {"kind": "prism"}})


def test_a_second_one_of_a_name_is_refused(monkeypatch):
    entry = EntryPoint("tiny", f"{__name__}:MeanConfig", backbone_module.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    backbones.cache_clear()
    with pytest.raises(
        ConfigError,
        match=r"'tiny' of rdvla.backbones is provided twice, by 'rdvla.*TinyConfig' .* and by '.*MeanConfig'",
    ):
        backbones()
    backbones.cache_clear()


def test_configurations_of_the_first_checkpoints():
    """They have the backbone's sizes beside the head, and the kind in the tower."""
    now = rdvla_tiny(300).model_dump(mode="json")
    backbone = now.pop("backbone")
    assert not backbone.pop("reads_sentence")  # they know nothing of it, nor of this:
    assert backbone["vision"].pop("keypoint_stages") == 1
    kind = {"prismatic": "dinosiglip", "tiny": "conv"}[backbone.pop("kind")]
    then = now | backbone | {"vision": {"kind": kind} | backbone["vision"]}
    assert RDVLAConfig.build(then) == rdvla_tiny(300)
    narrower = changed(rdvla_tiny(300), {"vision": {"image_size": 64}, "num_latent_tokens": 4})
    assert narrower.backbone == TinyConfig.build(backbone | {"vision": {"image_size": 64}, "num_latent_tokens": 4})


def test_tokens_per_image_are_the_towers():
    for kind in ("laptop", "released"):
        model = make(kind).model
        side = model.config.backbone.image_size
        assert model.backbone.vision(torch.zeros(1, side, side, 3)).shape[1] == model.config.backbone.tokens_per_image


def _seen(*prompts, **sizes):
    """Return what goes into the language model beside prompts of word ids, of two equal pictures and latent tokens."""
    torch.manual_seed(0)
    backbone = changed(rdvla_tiny(300), {"backbone": {"vision": {"image_size": 64}, **sizes}}).backbone.network()
    for name, weight in backbone.named_parameters():
        if "asked" in name:
            torch.nn.init.normal_(weight)
    images = torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8).expand(len(prompts), -1, -1, -1, -1)
    ids_BL = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in zip(ids_BL, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    with torch.no_grad():
        features = backbone(images, ids_BL, torch.tensor([len(prompt) for prompt in prompts]), {0})[0]
    return features.vision[:, 1:], features.latents[:, 1:]  # without the first and last words


def test_tower_and_latent_tokens_read_the_sentence():
    prompts = ([5, 6], [5, 9, 7, 8], [5, 6, 0])
    alone = _seen(prompts[0], reads_sentence=True)
    for part, by_itself in zip(_seen(*prompts, reads_sentence=True), alone, strict=True):
        red, blue, longer = part
        assert (red - blue).abs().amax(dim=1).min() > 1e-3  # of every feature
        assert not torch.equal(red, longer)  # id 0 is a word like any other where it is within the length
        torch.testing.assert_close(by_itself[0], red, atol=1e-5, rtol=1e-5)  # whatever its companions' lengths
    for red, blue in _seen([5, 6], [5, 9]):
        assert torch.equal(red, blue)


def test_no_sentence_at_all_is_no_number_lost():
    for part in _seen([], [5, 9], reads_sentence=True):
        assert part.isfinite().all()


def test_a_backbone_goes_on_where_another_left_off_if_it_has_a_place_for_everything():
    plain, reading, finer = (
        RDVLA(changed(rdvla_tiny(300), {"backbone": sizes}))
        for sizes in ({}, {"reads_sentence": True}, {"vision": {"keypoint_stages": 2}})
    )
    copy_vlm(reading, plain)  # begins with what it is asked at zero
    assert torch.equal(reading.backbone.vision.keypoints.weight, plain.backbone.vision.keypoints.weight)
    assert not reading.backbone.asked.weight.any()
    with pytest.raises(ConfigError, match=r"'vision\.asked.*' is .* in it and not there in the network"):
        copy_vlm(plain, reading)
    with pytest.raises(ConfigError, match=r"'vision\.keypoints\.weight' is \[128, 192\] in it and \[128, 320\]"):
        copy_vlm(finer, plain)


def test_what_reads_the_sentence_first_was_never_published():
    with pytest.raises(ConfigError, match="a backbone that reads_sentence"):
        PublishedNetwork(RDVLA(changed(rdvla_tiny(300), {"backbone": {"reads_sentence": True}})))


def test_a_tower_that_reads_the_sentence_begins_like_one_that_does_not_and_needs_one():
    tower = changed(rdvla_tiny(300), {"backbone": {"reads_sentence": True}}).backbone.network().vision
    images = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8)
    first, second = (tower(images, sentence) for sentence in torch.randn(2, 1, 128))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="a tower that reads the sentence"):
        tower(images)


def test_keypoints_of_several_maps():
    one, two = (changed(rdvla_tiny(300), {"vision": {"keypoint_stages": n}}).backbone.network() for n in (1, 2))
    assert two.vision.keypoints.in_features == one.vision.keypoints.in_features + 2 * 64
    assert two.vision(torch.zeros(1, 128, 128, 3)).shape == one.vision(torch.zeros(1, 128, 128, 3)).shape


@pytest.mark.parametrize(("size", "nearest"), [(100, "96 or 128"), (8, "32")])
def test_an_image_size_that_the_stages_do_not_divide_is_refused(size, nearest):
    with pytest.raises(ConfigError, match=rf"vision.image_size = {size} must be a multiple of 32.*: {nearest}\."):
        changed(rdvla_tiny(300), {"vision": {"image_size": size}})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision": {"channels": [30, 64]}}, "30 must be a multiple of norm_groups"),
        ({"vision": {"residual_stages": 5}}, "residual_stages = 5: there are 4 stages"),
        ({"vision": {"keypoint_stages": 4}}, "keypoint_stages = 4: there are 3 maps before the last"),
        ({"vision": {"residual_stages": -1}}, "residual_stages"),
        ({"language": {"num_kv_heads": 3}}, "must be a multiple of num_kv_heads"),
        ({"language": {"num_heads": 5}}, "must be an even multiple of num_heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        changed(rdvla_tiny(300), sizes)


def test_names_in_files_have_no_prefix():
    names = set(stored_state(make().model))
    assert {"latent_tokens", "vision.pos_embed", "projector.fc1.weight", "language.model.norm.weight"} < names
    assert not any("backbone" in name for name in names)


def test_the_released_layout_has_no_place_for_it(config, tmp_path):
    from rdvla.checkpoints import save_official

    like = make()
    checkpoint = type(like)(RDVLA(config), like.statistics, like.tokenizer, like.actions, like.image_path)
    with pytest.raises(CheckpointError, match="the backbone is 'mean', not 'prismatic'"):
        save_official(tmp_path / "released", checkpoint)
