"""Everything a training run can be told."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rdvla.config import Config
from rdvla.data.augmentation import LIGHT_AUGMENTATION, Augmentation
from rdvla.data.episodes import Sampling
from rdvla.data.images import TINY, ImagePath

LIBERO_CAMERAS = {"primary": "observation.images.image", "wrist": "observation.images.image2"}
"""Policy camera -> dataset feature, as LIBERO datasets name them."""


class DataConfig(Config):
    """What to learn from.

    Attributes:
        root: LeRobotDataset v3.0 directory.
        cameras: policy camera name -> dataset feature.
        images: how stored frames become the network's pixels.
        sampling: `padded` (every frame starts a chunk) or `published` (the last chunk_size - 1 do not).
        gripper: the environment's gripper convention in the dataset's last action dimension.
        augmentation: applied to every training image.
        state_noise: deviation of the Gaussian noise added to the normalised state.
        validation_fraction: fraction of the episodes held out, evenly spread.
    """

    root: Path
    cameras: dict[str, str] = Field(default=LIBERO_CAMERAS)
    images: ImagePath = TINY
    sampling: Sampling = "padded"
    gripper: Literal["none", "open_is_negative", "open_is_positive"] = "open_is_negative"
    augmentation: Augmentation = LIGHT_AUGMENTATION
    state_noise: NonNegativeFloat = 0.05
    validation_fraction: float = Field(default=0.04, ge=0.0, lt=1.0)


class HeadOverrides(Config):
    """Departures from the preset's head; null keeps the preset's value."""

    mean_recurrence: PositiveInt | None = None
    backprop_depth: PositiveInt | None = None
    chunk_size: PositiveInt | None = None
    recurrent_layers: tuple[int, ...] | None = None
    coda_cross_attention: bool | None = None


class ModelConfig(Config):
    """Which network to train.

    Attributes:
        preset: `tiny` trains every weight from scratch, with a tokenizer made from the dataset's instructions.
        init_from: a native checkpoint whose network, tokenizer and weights to start from.
        vocab_size: largest size of the tokenizer.
        head: departures from the preset.
    """

    preset: Literal["tiny"] = "tiny"
    init_from: Path | None = None
    vocab_size: PositiveInt = 512
    head: HeadOverrides = HeadOverrides()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.init_from is not None and self.head != HeadOverrides():
            raise ValueError("model.head cannot be changed when the weights come from model.init_from")
        return self


class OptimizerConfig(Config):
    """AdamW with linear warm-up and a cosine (or no) decay.

    Attributes:
        learning_rate: peak rate.
        weight_decay: decoupled weight decay of matrices; norms, gates, biases and embeddings have none.
        warmup_steps: steps of linear warm-up.
        schedule: `cosine` decays to `final_fraction` of the peak at max_steps.
        clip_grad_norm: largest global norm of the gradient.
        muon: Muon instead of AdamW for the weights of hidden linear layers.
    """

    learning_rate: PositiveFloat = 6e-4
    weight_decay: NonNegativeFloat = 0.01
    warmup_steps: NonNegativeInt = 200
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: float = Field(default=0.02, ge=0.0, le=1.0)
    clip_grad_norm: PositiveFloat = 1.0
    muon: bool = False


class TrainConfig(Config):
    """One training run.

    Attributes:
        output: run folder; a run that is there already is continued.
        seed: decides initialisation, order, augmentation, depths and scratchpads.
        batch_size: samples per micro-batch and process.
        grad_accumulation_steps: micro-batches per optimiser step.
        max_steps: optimiser steps.
        ema_decay: decay of the averaged weights that are saved for use; 0 saves the trained weights themselves.
        save_freq: steps between checkpoints.
        keep: newest checkpoints to keep.
        log_freq: steps between log lines.
        validate_freq: steps between validations.
        validation_samples: samples per validation.
        validation_depths: depths at which the validation loss is measured.
        num_threads: torch threads; null takes torch's default.
    """

    output: Path
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = Field(default=0, ge=0, lt=2**31)
    batch_size: PositiveInt = 64
    grad_accumulation_steps: PositiveInt = 1
    max_steps: PositiveInt
    ema_decay: float = Field(default=0.998, ge=0.0, lt=1.0)
    save_freq: PositiveInt = 500
    keep: PositiveInt = 2
    log_freq: PositiveInt = 20
    validate_freq: PositiveInt = 500
    validation_samples: PositiveInt = 512
    validation_depths: tuple[PositiveInt, ...] = (1, 2, 4, 8, 12, 32)
    num_threads: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.validation_depths) != sorted(set(self.validation_depths)):
            raise ValueError(f"validation_depths must ascend, found {self.validation_depths}")
        return self
