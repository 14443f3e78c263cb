"""What `--policy.type=rdvla` can be told. LeRobot finds this file and its siblings by their names."""

from dataclasses import dataclass, field
from typing import Any, cast

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from rdvla.data.lerobot_meta import camera_key
from rdvla.errors import ConfigError
from rdvla.horizons import DEFAULT_HORIZON, make_horizon
from rdvla.model.freeze import PRECISIONS
from rdvla.policy import Ask, WarmStart
from rdvla.stops import DEFAULT_MAX_DEPTH, choose_rule

GRIPPERS = ("none", "open_is_negative", "open_is_positive")


def _identity() -> dict[str, NormalizationMode]:
    # The policy normalises by itself: LeRobot has no mode that clips, masks a gripper and zeroes constant dimensions.
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass("rdvla")
@dataclass
class RDVLAConfig(PreTrainedConfig):
    """A recurrent-depth policy.

    Attributes:
        checkpoint: start from a checkpoint of rdvla (folder, hub id or `rdvla_tiny_libero`) instead of random weights.
        statistics: which of that checkpoint's statistics, if it has several.
        cameras: our camera -> feature key; empty takes `primary` = observation.images.image, `wrist` =
            observation.images.image2, and for other names observation.images.NAME.
        gripper: from scratch: what the dataset's last action entry is: `none`, `open_is_negative` (LIBERO) or
            `open_is_positive`. A checkpoint says it itself, and refuses another.
        vocab_size: from scratch: of the tokenizer that is trained on the dataset's sentences.
        chunk_size: actions per decision; a checkpoint brings its own, which to train it has to be given here too.
        n_action_steps: of these, how many are executed, unless `horizon` names a rule.
        horizon: a rule of `rdvla.horizons`, e.g. `linear_decay`.
        depth: iterations of every decision; without `depth` and `stop` the policy's default.
        stop: an adaptive rule, e.g. `action_mse`.
        threshold: of that rule; None takes its default.
        max_depth: the most iterations of that rule.
        start: where scratchpads begin, a name of `rdvla.policy.WARM_STARTS`.
        budget_ms: stop iterating after this time, milliseconds.
        precision: of inference: `float32`, `bfloat16` or `int8`; None keeps the checkpoint's.
        seed: of the scratchpads; None draws them.
        state_noise: in training: deviation of Gaussian noise on the normalised state.
        optimizer_lr: peak learning rate.
        optimizer_weight_decay: of AdamW.
        optimizer_grad_clip_norm: largest norm of the gradient.
        scheduler_warmup_steps: of the cosine schedule.
        scheduler_decay_steps: after which the rate is a tenth of its peak.
    """

    checkpoint: str | None = None
    statistics: str | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    gripper: str = "none"
    vocab_size: int = 512
    chunk_size: int = 8
    n_action_steps: int = int(DEFAULT_HORIZON)
    horizon: str | None = None
    depth: int | None = None
    stop: str | None = None
    threshold: float | None = None
    max_depth: int = DEFAULT_MAX_DEPTH
    start: str = "noise"
    budget_ms: float | None = None
    precision: str | None = None
    seed: int | None = None
    state_noise: float = 0.0
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_identity)
    push_to_hub: bool = False
    optimizer_lr: float = 6e-4
    optimizer_weight_decay: float = 1e-4
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 200
    scheduler_decay_steps: int = 30_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ConfigError(f"policy.n_obs_steps must be 1, found {self.n_obs_steps}: a decision sees one moment.")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigError(
                f"policy.n_action_steps must be in 1..{self.chunk_size}, which is policy.chunk_size, found "
                f"{self.n_action_steps}."
            )
        if self.gripper not in GRIPPERS:
            raise ConfigError(f"policy.gripper must be one of {', '.join(GRIPPERS)}, found '{self.gripper}'.")
        if set(map(str, self.normalization_mapping.values())) - {str(NormalizationMode.IDENTITY)}:
            raise ConfigError("policy.normalization_mapping must be IDENTITY throughout: the policy normalises itself.")
        if self.precision not in (None, *PRECISIONS):
            raise ConfigError(f"policy.precision must be one of {', '.join(PRECISIONS)}, found '{self.precision}'.")
        for name in ("seed", "state_noise"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"policy.{name} must be at least 0, found {getattr(self, name)}.")
        self.ask()
        make_horizon(self.horizon or str(self.n_action_steps))

    def ask(self) -> Ask:
        """Return how every decision is wanted.

        Raises:
            ConfigError: both a depth and a rule, an unknown name, or a value out of range.
        """
        max_depth = None if self.max_depth == DEFAULT_MAX_DEPTH else self.max_depth  # saved configurations have it
        adaptive = {"threshold": self.threshold, "max_depth": max_depth}
        rule = choose_rule(self.depth, self.stop, say="policy.{}".format, **adaptive)
        return Ask(rule, budget_ms=self.budget_ms, warm_start=cast("WarmStart", self.start))

    def key_of(self, camera: str) -> str:
        """Return the feature of one of our cameras."""
        return self.cameras.get(camera) or camera_key(camera)

    @property
    def observation_delta_indices(self) -> None:
        """A decision sees one moment."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions of a chunk, from now on."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """Rewards are not used."""
        return None

    def validate_features(self) -> None:
        """Make sure that there are images, a state and actions.

        Raises:
            ConfigError: one is missing; the message lists what there is.
        """
        features: dict[str, Any] = {**(self.input_features or {}), **(self.output_features or {})}
        kinds = {feature.type for feature in features.values()}
        for kind, what in (
            (FeatureType.VISUAL, "camera"),
            (FeatureType.STATE, "observation.state"),
            (FeatureType.ACTION, "action"),
        ):
            if kind not in kinds:
                raise ConfigError(f"the policy needs a {what}; the features are {', '.join(features) or 'none'}.")

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return AdamW."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Return a cosine schedule with warm-up, shortened with the run."""
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.optimizer_lr / 10,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )
