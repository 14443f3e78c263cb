"""What a run starts from: the split dataset, and the policy at step 0."""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from rdvla import __version__, checkpoints
from rdvla.checkpoints.base_vlm import copy_vlm, init_from_base
from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.load import is_checkpoint
from rdvla.checkpoints.tokenizer_files import read_tokenizer
from rdvla.data.episodes import Progress
from rdvla.data.frame_cache import FrameTransform
from rdvla.data.images import ImagePath
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import ConfigError
from rdvla.hub import CHECKPOINT, resolve
from rdvla.model.config import RDVLAConfig
from rdvla.model.prompt import train_tokenizer
from rdvla.model.rdvla import RDVLA
from rdvla.train.config import DEFAULT_PRESET, TrainConfig
from rdvla.train.lora import add_adapters
from rdvla.train.precision import cast, checkpoint_activations
from rdvla.train.presets import changed, preset_network
from rdvla.types import ActionConvention


@dataclass(frozen=True)
class Split:
    """Training and held-out episodes of one dataset.

    Attributes:
        training: to learn from.
        validation: held out; None without any.
        sentences: the instructions of all episodes but those held out: what a new tokenizer is made of.
    """

    training: LeRobotDataset
    validation: LeRobotDataset | None
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Checkpoints that a run starts from.

    Attributes:
        whole: gives network, tokenizer and all weights, or None.
        vlm: gives the vision-language part (and a tokenizer), or None.
    """

    whole: Checkpoint | None
    vlm: Checkpoint | None

    @classmethod
    def load(cls, config: TrainConfig) -> "Origin":
        """Read the checkpoints that `config.model` names; a Prismatic base is read later, into the network.

        Their gripper convention does not matter: training space has one, and the policy will have the dataset's.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        whole, vlm = config.model.init_from, config.model.base_vlm
        load = partial(checkpoints.load, gripper=config.data.gripper)
        return cls(None if whole is None else load(whole), None if vlm is None or not is_checkpoint(vlm) else load(vlm))

    def image_path(self, config: TrainConfig) -> ImagePath:
        """Return how images are brought to the network: as the configuration says, else as the checkpoint does."""
        source = self.whole or self.vlm
        return source.image_path if config.data.images is None and source is not None else config.image_path

    def network(self, config: TrainConfig, *, vocab_size: int) -> RDVLAConfig:
        """Return the network to train, before the dataset's cameras and sizes are known.

        Raises:
            ConfigError: the departures do not fit the preset, or the checkpoint is of another network than that.
        """
        source, preset = self.whole or self.vlm, config.model.preset
        base = named = preset_network(preset, vocab_size=vocab_size)
        if source is not None:
            base = source.model.config
            if preset != DEFAULT_PRESET and base.backbone.kind != named.backbone.kind:
                raise ConfigError(
                    f"model.preset '{preset}' is another network than the checkpoint's, whose sizes a run keeps "
                    f"(backbone '{base.backbone.kind}'); leave model.preset out, or start from another checkpoint."
                )
        return changed(base, config.model.changes)


def open_split(config: TrainConfig, origin: Origin, decoding: Progress | None) -> Split:
    """Open the dataset and hold out episodes, evenly spread, with every copy of them in a dataset that is named twice.

    Raises:
        DatasetError: the dataset is missing or damaged, or lacks a camera.
        ConfigError: nothing is left to train on.
    """
    path = origin.image_path(config)
    stored = replace(path, jpeg=path.jpeg and not config.data.stored_as_jpeg)
    dataset = LeRobotDataset.open(
        config.data.root,
        chunk_size=origin.network(config, vocab_size=config.model.vocab_size).head.chunk_size,
        cameras=config.data.cameras,
        transform=FrameTransform(stored.name, stored.shrink),
        sampling=config.data.sampling,
        state_key=config.data.state,
        action_key=config.data.action,
        timestamps=config.data.timestamps,
        progress=decoding,
    )
    if config.keyframe is not None:
        dataset = dataset.with_keyframes(config.keyframe.entries, config.keyframe.beyond)
    chosen = _chosen(dataset, config.data.instructions)
    copies = {episode: dataset.origin(episode) for episode in dataset.episodes}
    firsts: dict[tuple[Path, int], int] = {}
    for episode in chosen:
        firsts.setdefault(copies[episode], episode)
    distinct = list(firsts.values())
    positions = np.linspace(0, len(distinct) - 1, round(len(distinct) * config.data.validation_fraction))
    validation = {distinct[position] for position in positions.round().astype(int)}
    held_out = {copies[episode] for episode in validation}
    training = [episode for episode in chosen if copies[episode] not in held_out]
    if not training:
        raise ConfigError(
            f"validation_fraction {config.data.validation_fraction} of {len(chosen)} episodes leaves none."
        )
    others = dataset.select([episode for episode in dataset.episodes if copies[episode] not in held_out])
    views = {"training": dataset.select(training)}
    if validation:
        views["held-out"] = dataset.select(sorted(validation))
    for kind, view in views.items():
        if not len(view):
            raise ConfigError(f"the {kind} episodes have no sample with data.sampling '{config.data.sampling}'.")
        if config.keyframe is not None and not len(far := view.far_samples()):
            raise ConfigError(f"keyframe.beyond {config.keyframe.beyond}: no sample of the {kind} episodes is so far.")
        if config.keyframe is not None and config.keyframe.alone:
            views[kind] = far
    often = views["training"].with_changes(config.data.gripper_changes)
    return Split(often, views.get("held-out"), others.instructions)


def _chosen(dataset: LeRobotDataset, instructions: str | None) -> list[int]:
    """Return the episodes in whose (first) instruction the regular expression is found."""
    if instructions is None:
        return list(dataset.episodes)
    wanted = re.compile(instructions, re.IGNORECASE)
    chosen = [episode for episode in dataset.episodes if wanted.search(dataset.instruction(episode))]
    if not chosen:
        raise ConfigError(
            f"data.instructions '{instructions}' is found in no instruction; there are {len(dataset.instructions)}, "
            f"the first is '{dataset.instructions[0]}'."
        )
    return chosen


def new_checkpoint(config: TrainConfig, split: Split, origin: Origin) -> Checkpoint:
    """Return the policy at step 0, its network ready to train: adapters in place, dtypes and trainable weights settled.

    Raises:
        ConfigError: the weights expect other cameras than the dataset's mapping, or there is no tokenizer.
        CheckpointError: the weights have another state or action size than the dataset, or do not fit the preset.
    """
    convention = ActionConvention(config.data.gripper)
    statistics = {config.data.name: split.training.statistics(convention)}
    notes = {"recipe": config.model_dump(mode="json", exclude={"output"}), "rdvla": __version__}
    torch.manual_seed(config.seed)
    if origin.whole is not None:
        model, tokenizer = origin.whole.model.float(), origin.whole.tokenizer
        model.reconfigure(origin.network(config, vocab_size=tokenizer.get_vocab_size()))
        if set(model.config.cameras) != set(config.data.cameras):
            raise ConfigError(
                f"data.cameras names {sorted(config.data.cameras)}, the weights expect {sorted(model.config.cameras)}."
            )
    else:
        tokenizer = _tokenizer(config, split, origin)
        model = _new_network(config, split.training, origin, vocab_size=tokenizer.get_vocab_size())
    path = origin.image_path(config)
    checkpoint = Checkpoint(model, statistics, tokenizer, image_path=path, actions=convention, notes=notes)
    if config.model.lora is not None:
        add_adapters(model, config.model.lora)
    cast(model, config.arithmetic)
    if config.model.gradient_checkpointing:
        checkpoint_activations(model)
    return checkpoint


def _new_network(config: TrainConfig, dataset: LeRobotDataset, origin: Origin, *, vocab_size: int) -> RDVLA:
    """Return a network for the dataset's cameras and sizes, with the weights of a base if there is one."""
    wanted = origin.network(config, vocab_size=vocab_size)
    found = {"state_dim": dataset.state_size, "action_dim": dataset.action_size}
    for name, size in found.items():
        if (getattr(config.model.head, name) or size) != size:
            raise ConfigError(
                f"model.head.{name} is {getattr(config.model.head, name)}, but '{config.data.name}' has {size}."
            )
    model = RDVLA(changed(wanted, {"cameras": tuple(config.data.cameras), "head": found}))
    if origin.vlm is not None:
        copy_vlm(model, origin.vlm.model)
    elif config.model.base_vlm is not None:
        init_from_base(model, config.model.base_vlm)
    return model


def _tokenizer(config: TrainConfig, split: Split, origin: Origin) -> Tokenizer:
    model = config.model
    if model.tokenizer is not None:
        return read_tokenizer(resolve(model.tokenizer, CHECKPOINT))
    if origin.vlm is not None:
        return origin.vlm.tokenizer
    if model.base_vlm is not None:
        raise ConfigError(
            "model.base_vlm has no tokenizer; name a directory with Qwen2.5's tokenizer files in model.tokenizer."
        )
    return train_tokenizer(split.sentences, vocab_size=model.vocab_size)
