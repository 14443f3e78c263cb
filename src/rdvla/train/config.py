"""Everything a training run can be told."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rdvla.config import Config, require_distinct
from rdvla.data.augmentation import LIGHT_AUGMENTATION, Augmentation
from rdvla.data.episodes import Sampling, Timestamps
from rdvla.data.images import ImagePath
from rdvla.data.lerobot_meta import STANDARD_CAMERAS
from rdvla.errors import ConfigError, suggest
from rdvla.model.config import HeadConfig
from rdvla.stops import DEFAULT_STOP, StopRule, choose_rule
from rdvla.train.presets import IMAGE_PATHS, LAYERS


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _compiles(value: object) -> object:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error}).") from None
    return value


Pattern = Annotated[str, BeforeValidator(_compiles)]
"""A regular expression."""

Names = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_several)]
"""A name, or a list of them."""


class _Settings(Config):
    """Settings that are written down as JSON, which has no infinite numbers."""

    model_config = ConfigDict(allow_inf_nan=False)


class DataConfig(_Settings):
    """What to learn from.

    Attributes:
        root: LeRobotDataset v3.0: a folder, or `owner/name[@revision]` on the Hugging Face hub; or a list of them.
        cameras: policy camera name -> dataset feature.
        state: a feature, or several whose vectors, joined, are the robot's state.
        action: a feature, or several whose vectors, joined, are the actions.
        images: how a camera image becomes the network's pixels; null takes the preset's path, or that of the
            checkpoint the weights come from.
        stored_as_jpeg: the frames went through JPEG before they were stored, so the path's own JPEG step is left out
            in training (the released data are of this kind).
        sampling: `padded` (every frame starts a chunk; what lies beyond the episode's end is not learned), `lasting`
            (beyond it the last action goes on), `resting` (beyond it every entry but the last, the gripper, is 0; for
            relative actions of one arm with a gripper) or `published` (the last chunk_size - 1 frames start none).
        gripper_changes: how often an epoch draws a sample in whose chunk the gripper opens or closes.
        timestamps: `stored`, or `frame_index` for evenly spaced video frames whose stored times are a wall clock's.
        gripper: the environment's gripper convention in the dataset's last action dimension; refused if the values
            contradict it.
        augmentation: applied to every training image.
        state_noise: deviation of the Gaussian noise added to the normalised state.
        validation_fraction: fraction of the episodes held out, evenly spread.
        instructions: a regular expression: only episodes in whose first instruction it is found, whatever the case,
            are learned from and held out; null takes all.
    """

    root: Path | Annotated[tuple[Path, ...], Field(min_length=1)]
    cameras: dict[str, str] = Field(default=STANDARD_CAMERAS)
    state: Names = ("observation.state",)
    action: Names = ("action",)
    images: ImagePath | None = None
    stored_as_jpeg: bool = False
    sampling: Sampling = "padded"
    gripper_changes: PositiveInt = 1
    timestamps: Timestamps = "stored"
    gripper: Literal["none", "open_is_negative", "open_is_positive"] = "open_is_negative"
    augmentation: Augmentation = LIGHT_AUGMENTATION
    state_noise: NonNegativeFloat = 0.05
    validation_fraction: float = Field(default=0.04, ge=0.0, lt=1.0)
    instructions: Pattern | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        goes_by_gripper = {"sampling: resting": self.sampling == "resting", "gripper_changes": self.gripper_changes > 1}
        for name, chosen in goes_by_gripper.items():
            if chosen and self.gripper == "none":
                raise ConfigError(f"data.{name} needs a gripper, and data.gripper is none; name its convention.")
        return self

    @property
    def name(self) -> str:
        """The names of the datasets: what the checkpoint calls their statistics."""
        roots = (self.root,) if isinstance(self.root, Path) else self.root
        return "+".join(root.name for root in roots)


class KeyframeConfig(_Settings):
    """A second task beside the actions: to tell from the latent tokens where the robot will be at the next keyframe.

    A keyframe is where the gripper opens or closes next, or the episode's end. A linear layer reads the mean of the
    latent tokens, which know pictures and words and no state; it is trained along and not saved with the policy.

    Attributes:
        weight: of its loss beside that of the actions: the mean absolute error of the normalised state, 0 for samples
            that do not count; irrelevant where it is alone.
        entries: which entries of the state, counted from 0; null takes all.
        beyond: only samples at a larger distance from their keyframe count, in the state's own units (m): nearer ones
            show the arm where it will be.
        alone: learn this only, from those samples only: a first stage, after which `model.base_vlm` takes the backbone.
    """

    weight: PositiveFloat = 1.0
    entries: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    beyond: NonNegativeFloat = 0.0
    alone: bool = False


class HeadOverrides(_Settings):
    """Departures from a head (fields of `HeadConfig`); null keeps what is there.

    That is the head of the checkpoint that a run starts from, also where its weights start anew, else the preset's.
    The dataset decides `action_dim` and `state_dim`; given here, they must agree with it.
    """

    described_by: ClassVar[type[BaseModel] | None] = HeadConfig
    hidden_dim: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    prelude_layers: tuple[int, ...] | None = None
    recurrent_layers: tuple[int, ...] | None = None
    coda_layers: tuple[int, ...] | None = None
    chunk_size: PositiveInt | None = None
    action_dim: PositiveInt | None = None
    state_dim: PositiveInt | None = None
    mean_recurrence: PositiveInt | None = None
    backprop_depth: PositiveInt | None = None
    random_depth: bool | None = None
    coda_cross_attention: bool | None = None
    init_std: PositiveFloat | None = None
    rms_norm_eps: PositiveFloat | None = None
    rope_base: PositiveFloat | None = None


OF_TRAINING = ("backprop_depth", "mean_recurrence", "random_depth")
"""The head's fields that no weight depends on: how deep training goes. A run may change them from its start on."""


class LoraConfig(_Settings):
    """Low-rank adapters on the language model, both towers and the projector; their own weights stay as they are.

    Attributes:
        rank: of every adapter.
        alpha: scale is alpha / rank; null takes twice the rank, as published.
        targets: `trained` adapts every linear layer (and patch embedding) that gets a gradient; `all_linear` also
            those that nothing computes, as published.
    """

    rank: PositiveInt = 64
    alpha: PositiveInt | None = None
    targets: Literal["trained", "all_linear"] = "trained"


Preset = Literal["tiny", "rdvla_0_5b"]
DEFAULT_PRESET: Preset = "tiny"


class ModelConfig(_Settings):
    """Which network to train.

    Attributes:
        preset: `tiny` trains every weight from scratch, with a tokenizer made from the dataset's instructions;
            `rdvla_0_5b` is the released architecture. A checkpoint brings its own network, sizes of the head included.
        init_from: a native or released checkpoint (or a hub id) whose network, tokenizer and weights to start from.
        base_vlm: where the vision-language part comes from, while head and state projector start anew: a Prismatic
            base (a `.pt` file or its directory), or a native or released checkpoint.
        tokenizer: directory with tokenizer files, where neither checkpoint brings them.
        vocab_size: largest size of a tokenizer made from the instructions.
        network: departures from preset or checkpoint, nested like `RDVLAConfig`.
        layers: published name of a choice of layers (`12_24-24_24`); see `rdvla.train.presets.LAYERS`.
        head: departures from its head; beside `init_from` only the fields that say how deep training goes.
        lora: train adapters instead of the vision-language part's own weights; null trains those.
        gradient_checkpointing: keep no activations inside tower blocks and language layers; compute them again.
    """

    preset: Preset = DEFAULT_PRESET
    init_from: Path | None = None
    base_vlm: Path | None = None
    tokenizer: Path | None = None
    vocab_size: PositiveInt = 512
    network: dict[str, Any] = Field(default_factory=dict)
    layers: str | None = None
    head: HeadOverrides = HeadOverrides()
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layers is not None and self.layers not in LAYERS:
            raise ConfigError(f"model.layers: unknown choice '{self.layers}'.{suggest(self.layers, LAYERS)}")
        if "head" in self.network:
            raise ConfigError("model.network.head: say it in model.head.")
        if "cameras" in self.network:
            raise ConfigError("model.network.cameras: say it in data.cameras.")
        brings = next((name for name in ("init_from", "base_vlm", "tokenizer") if getattr(self, name)), None)
        if brings is not None and self.vocab_size != type(self).model_fields["vocab_size"].default:
            raise ConfigError(
                f"model.vocab_size {self.vocab_size} is of a tokenizer made from the instructions; model.{brings} has "
                "its own: drop one."
            )
        named = ("prelude_layers", "recurrent_layers", "coda_layers")
        if self.layers is not None and any(getattr(self.head, name) is not None for name in named):
            raise ConfigError(f"model.layers '{self.layers}' and model.head's own layers exclude each other; keep one.")
        if self.init_from is not None:
            for name in ("base_vlm", "tokenizer", "network", "layers"):
                if getattr(self, name):
                    raise ConfigError(f"model.{name} cannot be given when the weights come from model.init_from.")
            fixed = self.head.model_dump(exclude_none=True).keys() - OF_TRAINING
            if fixed:
                raise ConfigError(
                    f"model.head.{min(fixed)} cannot be changed when the weights come from model.init_from; "
                    f"only {', '.join(OF_TRAINING)} can."
                )
        return self

    @property
    def changes(self) -> dict[str, Any]:
        """Departures from the preset, nested like `RDVLAConfig`."""
        head = self.head.model_dump(exclude_none=True)
        if self.layers is not None:
            names = ("prelude_layers", "recurrent_layers", "coda_layers")
            head |= dict(zip(names, LAYERS[self.layers], strict=True))
        return self.network | {"head": head}


class OptimizerConfig(_Settings):
    """AdamW with linear warm-up and a decay.

    Attributes:
        learning_rate: peak rate.
        weight_decay: decoupled weight decay.
        decayed: what decays: `matrices` spares norms, gates, biases and embeddings; `all` spares nothing (published).
        warmup_steps: steps of linear warm-up.
        warmup_start: fraction of the peak at which warm-up starts.
        schedule: `cosine` decays to `final_fraction` of the peak at max_steps, `step` jumps there at `decay_at`.
        final_fraction: fraction of the peak after the decay.
        decay_at: the step at which a `step` schedule decays.
        clip_grad_norm: largest global norm of the gradient.
        muon: Muon instead of AdamW for the weights of hidden linear layers (not for adapters).
        muon_learning_rate: peak rate of Muon; null takes `learning_rate`, which suits it as well.
        muon_weight_decay: null takes `weight_decay`.
        muon_momentum: momentum of Muon.
    """

    learning_rate: PositiveFloat = 6e-4
    weight_decay: NonNegativeFloat = 0.01
    decayed: Literal["matrices", "all"] = "matrices"
    warmup_steps: NonNegativeInt = 200
    warmup_start: float = Field(default=0.0, ge=0.0, le=1.0)
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    final_fraction: float = Field(default=0.02, ge=0.0, le=1.0)
    decay_at: PositiveInt | None = None
    clip_grad_norm: PositiveFloat = 1.0
    muon: bool = False
    muon_learning_rate: PositiveFloat | None = None
    muon_weight_decay: NonNegativeFloat | None = None
    muon_momentum: float = Field(default=0.95, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.schedule == "step") != (self.decay_at is not None):
            raise ConfigError("optimizer.decay_at belongs to optimizer.schedule: step; give both or neither.")
        return self


class EvaluationConfig(_Settings):
    """Episodes that are played with a saved policy while training goes on.

    Attributes:
        every: steps between evaluations; a multiple of save_freq.
        suites: of `rdvla eval`; of chains, how many stages are solved in a row is logged too.
        task_ids: tasks of every suite; null takes all.
        episodes: episodes per task, from the bundled initial states (evaluation chains) 0, 1, ...
        depth: iterations per decision; null takes 12, or leaves it to `stop`.
        stop: an adaptive rule (`rdvla.stops`) instead of a depth; its mean iterations are logged.
        threshold: of that rule; null takes its default.
        max_depth: the most iterations of that rule; null takes 32.
        horizon: actions executed per decision.
        workers: simulator processes.
        device: where every one of them computes its policy.
    """

    every: PositiveInt
    suites: tuple[str, ...] = Field(min_length=1)
    task_ids: tuple[int, ...] | None = None
    episodes: PositiveInt = 1
    depth: PositiveInt | None = None
    stop: str | None = None
    threshold: float | None = None
    max_depth: PositiveInt | None = None
    horizon: PositiveInt = 8
    workers: PositiveInt = 1
    device: str = "cpu"

    @model_validator(mode="after")
    def _check(self) -> Self:
        require_distinct("evaluation.suites", self.suites)
        require_distinct("evaluation.task_ids", self.task_ids or ())
        _ = self.rule  # a wrong name or threshold is an error now
        return self

    @property
    def rule(self) -> StopRule:
        """The stopping rule of every decision."""
        adaptive = {"threshold": self.threshold, "max_depth": self.max_depth}
        return choose_rule(self.depth, self.stop, say="evaluation.{}".format, **adaptive) or DEFAULT_STOP


TrainPrecision = Literal["float32", "mixed", "bfloat16"]


class TrainConfig(_Settings):
    """One training run.

    Attributes:
        output: run folder; a run that is there already is continued.
        keyframe: a second task that makes the backbone look where things are; null has none.
        seed: decides initialisation, order, augmentation, depths and scratchpads.
        device: `auto` takes a GPU where there is one.
        precision: `mixed` computes in bfloat16 and keeps trained weights in float32; `bfloat16` keeps them in bfloat16
            too (published); null takes `float32` where `model.preset` is `tiny`, as it is unless named, also beside a
            checkpoint, and `mixed` otherwise.
        batch_size: samples per micro-batch and process.
        grad_accumulation_steps: micro-batches per optimiser step.
        max_steps: optimiser steps.
        ema_decay: decay of the averaged weights that are saved for use; 0 saves the trained weights themselves.
        save_freq: steps between checkpoints.
        keep: newest checkpoints to keep.
        log_freq: steps between log lines; the last step has one, too.
        validate_freq: steps between validations.
        validation_samples: samples per validation.
        validation_depths: depths at which the validation loss is measured.
        evaluation: episodes played while training; null plays none.
        trackers: where the numbers go besides `metrics.jsonl`.
        project: project name for `wandb` and `trackio`.
        max_loss_ratio: a loss that is so many times its running mean stops the run.
        hang_timeout_s: a process that lets the others wait for longer is taken for hung.
        num_threads: torch threads; null takes torch's default.
        num_workers: 1 prepares batches in a thread of each process; more, in so many processes for each.
        sharded: several processes share one copy of weights, gradients and optimiser state (FSDP2) instead of holding
            one each: less memory, more communication. For networks larger than the presets.
        captured: on a GPU, a step is captured as CUDA graphs and replayed; a small network's is otherwise bound by
            launches. Keeps the activations of a micro-batch reserved.
    """

    output: Path
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    keyframe: KeyframeConfig | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str = "auto"
    precision: TrainPrecision | None = None
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
    evaluation: EvaluationConfig | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "rdvla"
    max_loss_ratio: float = Field(default=20.0, gt=1.0)
    hang_timeout_s: PositiveFloat = 1800.0
    num_threads: PositiveInt | None = None
    num_workers: PositiveInt = 1
    sharded: bool = False
    captured: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.validation_depths) != sorted(set(self.validation_depths)):
            raise ConfigError(f"validation_depths must ascend, found {self.validation_depths}.")
        if self.sharded and self.optimizer.muon:
            raise ConfigError("optimizer.muon needs whole matrices, sharded has parts of them; choose one.")
        if self.captured and (self.sharded or self.model.gradient_checkpointing):
            raise ConfigError(
                "captured needs weights and activations that stay in their place, sharded and"
                " model.gradient_checkpointing move them; choose one."
            )
        if self.keyframe is not None and (self.sharded or self.captured):
            raise ConfigError("keyframe is computed in whole networks, operation by operation; drop sharded, captured.")
        if self.keyframe is not None and self.data.gripper == "none":
            raise ConfigError("keyframe needs a gripper to go by, and data.gripper is none; name its convention.")
        if self.keyframe is not None and self.keyframe.alone and self.evaluation is not None:
            raise ConfigError("keyframe.alone trains no actions that an evaluation could play; drop evaluation.")
        if self.evaluation is not None and self.evaluation.every % self.save_freq:
            raise ConfigError(
                f"evaluation.every ({self.evaluation.every}) must be a multiple of save_freq ({self.save_freq}):"
                " what is played is a saved policy."
            )
        return self

    @property
    def arithmetic(self) -> TrainPrecision:
        """The precision, where null is settled."""
        return self.precision or ("float32" if self.model.preset == "tiny" else "mixed")

    @property
    def image_path(self) -> ImagePath:
        """The image path of a network that is not loaded from a checkpoint."""
        return self.data.images or IMAGE_PATHS[self.model.preset]
