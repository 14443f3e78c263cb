"""Where a run starts: a whole checkpoint, the vision-language part of one, or a Prismatic base."""

import numpy as np
import pytest
import torch
from train_fakes import RELEASED_KIND, record, run_small, small

from checkpoint_fakes import make
from rdvla.checkpoints import load, names, save_native
from rdvla.data.augmentation import Augmentation
from rdvla.errors import ConfigError
from rdvla.policies.io import PolicyIO
from rdvla.train.batches import Disturbance, collate
from rdvla.train.config import TrainConfig
from rdvla.train.start import Origin, new_checkpoint, open_split


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small trained policy of the released kind."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return run_small(record(folder / "demos", episodes=2, length=4), folder / "run", max_steps=1)


def start(dataset, **model):
    config = TrainConfig.build(small(dataset, "run", model=model))
    origin = Origin.load(config)
    split = open_split(config, origin, None)
    return config, split, new_checkpoint(config, split, origin)


def write_prism(path, model):
    """Write a network's vision-language part as the published base nests and names it."""
    nested = {"vision_backbone": {}, "projector": {}, "llm_backbone": {}}
    for name, tensor in names.part(names.to_published(names.stored_state(model)), names.VLM).items():
        part, _, rest = name.partition(".")
        if part == "vision_backbone":
            rest = rest.replace("scale_factor", "gamma").replace("fused_featurizer", "siglip_featurizer")
            nested[part][rest if "siglip" in rest else rest.replace("featurizer", "dino_featurizer")] = tensor
        elif part == "projector":
            layer, _, kind = rest.partition(".")
            nested[part][f"projector.{2 * (int(layer[-1]) - 1)}.{kind}"] = tensor
        elif part == "language_model":
            nested["llm_backbone"][f"llm.{rest}"] = tensor
    path.parent.mkdir(parents=True)
    torch.save({"model": nested}, path)


def test_another_robot_on_the_vision_language_part_of_a_policy(trained, tmp_path):
    dataset = record(tmp_path / "wide", action_dim=9, episodes=2, length=3)
    _, split, checkpoint = start(dataset, base_vlm=str(trained), head={"chunk_size": 3})
    own, theirs = checkpoint.model.state_dict(), load(trained).model.state_dict()
    head = checkpoint.model.config.head
    assert (head.action_dim, head.chunk_size, head.recurrent_layers) == (9, 3, (2, 2))
    assert split.training.batch([0]).actions.shape == (1, 3, 9)
    for name, tensor in own.items():
        kept = not name.startswith(("head.", "state_projector."))
        assert not kept or torch.equal(tensor, theirs[name]), name
    assert not torch.equal(own["state_projector.fc1.weight"], theirs["state_projector.fc1.weight"])


@pytest.mark.parametrize("key", ["base_vlm", "init_from"])
def test_a_preset_that_is_another_network_than_the_checkpoint_s(dataset, tmp_path, key):
    """The checkpoint's network was trained, in the preset's precision, without a word."""
    save_native(tmp_path / "tiny", make())
    with pytest.raises(ConfigError, match=r"model\.preset 'rdvla_0_5b' is another network .* \(backbone 'tiny'\)"):
        start(dataset, preset="rdvla_0_5b", **{key: str(tmp_path / "tiny")})


def test_a_prismatic_base(dataset, trained, tmp_path):
    write_prism(tmp_path / "prism" / "checkpoints" / "step-1.pt", load(trained).model)
    model = RELEASED_KIND | {"base_vlm": str(tmp_path / "prism"), "tokenizer": str(trained), "lora": {"rank": 2}}
    _, _, checkpoint = start(dataset, **model)
    own, theirs = checkpoint.model.state_dict(), load(trained).model.state_dict()
    assert torch.equal(own["backbone.projector.fc1.base_layer.weight"], theirs["backbone.projector.fc1.weight"])
    assert not torch.equal(own["backbone.latent_tokens"], theirs["backbone.latent_tokens"])
    with pytest.raises(ConfigError, match=r"model\.tokenizer"):
        start(dataset, **{key: value for key, value in model.items() if key != "tokenizer"})


def test_sizes_that_the_dataset_does_not_have(dataset):
    with pytest.raises(ConfigError, match=r"model\.head\.action_dim is 9, but .* has 7"):
        start(dataset, **RELEASED_KIND | {"head": RELEASED_KIND["head"] | {"action_dim": 9}})
    with pytest.raises(ConfigError, match="Did you mean 'hidden_size'"):
        start(dataset, **RELEASED_KIND | {"network": {"language": {"hiden_size": 16}}})


def test_images_as_the_policy_will_see_them(dataset):
    """Validation images are cut like the policy's; frames that were JPEG files are not compressed again."""
    _, split, checkpoint = start(dataset, **RELEASED_KIND)
    io = PolicyIO.of(checkpoint)
    stored = split.training.batch([0])
    seen = collate(io, stored).inputs.images
    assert io.image_path.crop_area == 0.9
    assert not torch.equal(seen[0, 0], torch.from_numpy(stored.images["primary"][0]))
    cut = seen[0].numpy()
    for crop, shown in [(None, cut), (0.5, np.stack([stored.images[name][0] for name in io.cameras]))]:
        augmentation = Augmentation(crop_area=crop)
        disturbance = Disturbance(augmentation, 0.0, [np.random.default_rng(0)])
        later = collate(io, stored, disturbance=disturbance, augment_later=True)
        assert (later.inputs.images[0].numpy() == shown).all(), "cut once, by training or as the policy does"
        assert (later.to(torch.device("cpu")).inputs.images[0].numpy() == cut).all() == (crop is None)
        now = collate(io, stored, disturbance=disturbance).inputs.images[0].numpy()
        assert (now == cut).all() == (crop is None)
    values = small(dataset, "run")
    once = TrainConfig.build(values | {"data": values["data"] | {"stored_as_jpeg": True}})
    other = open_split(once, Origin.load(once), None).training.batch([0])
    assert (other.images["primary"] != stored.images["primary"]).any()
    assert checkpoint.image_path.jpeg


def test_a_dataset_that_is_named_twice_is_not_trained_on_where_it_is_held_out(dataset):
    values = small(dataset, "run", data={"root": [str(dataset)] * 2, "validation_fraction": 0.34})
    config = TrainConfig.build(values)
    split = open_split(config, Origin.load(config), None)
    held_out = {split.validation.origin(episode) for episode in split.validation.episodes}
    assert len(split.validation.episodes) == len(held_out) == 2
    assert len(split.training.episodes) == 8, "what is trained on counts twice"
    assert held_out.isdisjoint(split.training.origin(episode) for episode in split.training.episodes)


def test_settings_that_nothing_would_read(dataset):
    for model, message in (
        ({"network": {"cameras": ["wrist", "top"]}}, "say it in data.cameras"),
        ({"vocab_size": 64, "tokenizer": "somewhere"}, r"model\.vocab_size 64 .* model\.tokenizer has its own"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.build(small(dataset, "run", model=model))


def test_an_evaluation_plays_every_task_once(dataset):
    evaluation = {"every": 1, "suites": ["toy"], "task_ids": [3, 3]}
    with pytest.raises(ConfigError, match=r"evaluation\.task_ids repeats a value: 3, 3"):
        TrainConfig.build(small(dataset, "run", evaluation=evaluation))


@pytest.mark.parametrize("name", ["max_loss_ratio", "hang_timeout_s"])
def test_settings_are_finite(dataset, name):
    with pytest.raises(ConfigError, match=f"'{name}' = inf"):
        TrainConfig.build(small(dataset, "run", **{name: float("inf")}))


def test_a_single_feature_needs_no_list(dataset):
    config = TrainConfig.build(small(dataset, "run", data={"root": str(dataset), "state": "s", "action": "a"}))
    assert (config.data.state, config.data.action) == (("s",), ("a",))
    with pytest.raises(ConfigError, match=r"data\.state"):
        TrainConfig.build(small(dataset, "run", data={"root": str(dataset), "state": []}))
