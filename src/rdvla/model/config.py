"""What a network is made of: every size and choice, and the two presets."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from rdvla.config import Config
from rdvla.errors import ConfigError, suggest
from rdvla.model.backbone import BackboneConfig, backbones
from rdvla.model.backbones.prismatic import PrismaticConfig
from rdvla.model.backbones.tiny import TinyConfig
from rdvla.model.language import LanguageConfig

QWEN_CHAT_PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n"
)
_BESIDE_THE_HEAD = ("vision", "projector_width", "language", "num_latent_tokens")


class HeadConfig(Config):
    """The recurrent action head.

    Attributes:
        hidden_dim: width D of the head; equals the language model's.
        num_heads: attention heads.
        prelude_layers, recurrent_layers, coda_layers: one entry per block, the index k of the language model's
            hidden states (0: input embeddings, k: output of layer k) that the block attends to. Prelude and Coda
            may be empty.
        chunk_size: actions per decision (K).
        action_dim: size of one action (A).
        state_dim: size of the robot state (S).
        mean_recurrence: mean mu of the training depth distribution; also scales the output initialisation.
        backprop_depth: the last so many iterations carry gradient.
        random_depth: draw the training depth; otherwise always mean_recurrence.
        coda_cross_attention: Coda blocks attend to the conditioning (published); False is an ablation in which
            the Coda sees nothing but the scratchpad.
        init_std: deviation of the initial scratchpad and of the action queries.
        rms_norm_eps: added to the mean square in every norm.
        rope_base: of the rotary position embedding.
    """

    hidden_dim: PositiveInt = 896
    num_heads: PositiveInt = 8
    prelude_layers: tuple[int, ...] = (11,)
    recurrent_layers: tuple[int, ...] = (23, 23)
    coda_layers: tuple[int, ...] = (23,)
    chunk_size: PositiveInt = 8
    action_dim: PositiveInt = 7
    state_dim: PositiveInt = 8
    mean_recurrence: PositiveInt = 32
    backprop_depth: PositiveInt = 8
    random_depth: bool = True
    coda_cross_attention: bool = True
    init_std: PositiveFloat = 0.632
    rms_norm_eps: PositiveFloat = 1e-6
    rope_base: PositiveFloat = 1e4

    @property
    def conditioning_layers(self) -> tuple[int, ...]:
        """The distinct hidden-state indices that the head reads, ascending."""
        return tuple(sorted({*self.prelude_layers, *self.recurrent_layers, *self.coda_layers}))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.recurrent_layers:
            raise ValueError("recurrent_layers must name at least one layer")
        if self.hidden_dim % self.num_heads or (self.hidden_dim // self.num_heads) % 2:
            raise ValueError(f"hidden_dim ({self.hidden_dim}) must be an even multiple of num_heads ({self.num_heads})")
        return self


def _of_kind(value: object) -> object:
    """Turn a mapping into the configuration of the backbone that its `kind` names."""
    if not isinstance(value, Mapping):
        return value
    kind = str(value.get("kind"))
    if kind not in backbones():
        raise ConfigError(f"backbone.kind: there is no backbone '{kind}'.{suggest(kind, backbones())}")
    return backbones()[kind].build(value, source="backbone")


class RDVLAConfig(Config):
    """A whole policy network.

    Attributes:
        backbone: the vision-language model; see `rdvla.model.backbone`.
        head: the action head.
        cameras: image keys in the order in which their tokens enter the language model.
        prompt: template of the text; `{instruction}` is replaced by the lower-cased instruction.
    """

    backbone: SerializeAsAny[Annotated[BackboneConfig, BeforeValidator(_of_kind)]] = PrismaticConfig()
    head: HeadConfig = HeadConfig()
    cameras: tuple[str, ...] = ("primary", "wrist")
    prompt: str = QWEN_CHAT_PROMPT

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, values: object) -> object:
        return lifted(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        width, last = self.backbone.width, self.backbone.num_layers
        if self.head.hidden_dim != width:
            raise ValueError(f"head.hidden_dim ({self.head.hidden_dim}) must equal the backbone's width ({width})")
        layers = self.head.conditioning_layers
        if layers[0] < 0 or layers[-1] > last:
            raise ValueError(f"head layers {layers} must lie within 0..{last}")
        if "{instruction}" not in self.prompt:
            raise ValueError("prompt must contain {instruction}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be distinct and at least one, found {self.cameras}")
        return self


def lifted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's fields, whole or in part, with those of the backbone below `backbone`.

    The first checkpoints have them beside the head, and the kind in `vision.kind`: dinosiglip or conv.
    """
    moved: dict[str, Any] = {name: values[name] for name in _BESIDE_THE_HEAD if name in values}
    if not moved:
        return dict(values)
    vision = moved.get("vision")
    if isinstance(vision, Mapping) and "kind" in vision:
        moved["vision"] = {name: value for name, value in vision.items() if name != "kind"}
        moved["kind"] = {"dinosiglip": "prismatic", "conv": "tiny"}.get(vision["kind"], vision["kind"])
    rest = {name: value for name, value in values.items() if name not in _BESIDE_THE_HEAD}
    return rest | {"backbone": {**rest.get("backbone", {}), **moved}}


def rdvla_0_5b() -> RDVLAConfig:
    """Return the released architecture: DINOv2-L + SigLIP-So400m, Qwen2.5-0.5B, 72 M head."""
    return RDVLAConfig()


def rdvla_tiny(vocab_size: int) -> RDVLAConfig:
    """Return the laptop architecture: a few million parameters, same classes, trained from scratch.

    Args:
        vocab_size: size of the tokenizer trained on the instructions.
    """
    language = LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=256,
        rope_theta=1e4,
    )
    return RDVLAConfig(
        backbone=TinyConfig(projector_width=256, language=language, num_latent_tokens=16),
        head=HeadConfig(hidden_dim=128, num_heads=4, prelude_layers=(1,), recurrent_layers=(2,), coda_layers=(2,)),
        prompt="{instruction}",
    )
