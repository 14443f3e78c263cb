"""What a network is made of: every size and choice, and the two presets."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rdvla.config import Config

QWEN_CHAT_PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n"
)


class ViTConfig(Config):
    """One vision transformer tower, with the features taken after its second-to-last block.

    Attributes:
        depth, width, num_heads, mlp_width: sizes.
        num_registers: register tokens; None for a tower without class token and registers.
        layer_scale: a learned per-channel scale after each residual branch.
        attention_pool: the tower carries an attention pooling head (stored, never computed).
        mean, std: per-channel normalisation of pixel values in 0..1.
    """

    depth: PositiveInt
    width: PositiveInt
    num_heads: PositiveInt
    mlp_width: PositiveInt
    num_registers: int | None = None
    layer_scale: bool = False
    attention_pool: bool = False
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class DinoSiglipConfig(Config):
    """DINOv2 and SigLIP side by side, features concatenated per patch (the released backbone)."""

    kind: Literal["dinosiglip"] = "dinosiglip"
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 14
    # The released processor's effective constants: the ImageNet values rounded to bfloat16 for DINOv2.
    dino: ViTConfig = ViTConfig(
        depth=24,
        width=1024,
        num_heads=16,
        mlp_width=4096,
        num_registers=4,
        layer_scale=True,
        mean=(0.484375, 0.455078125, 0.40625),
        std=(0.228515625, 0.2236328125, 0.224609375),
    )
    siglip: ViTConfig = ViTConfig(
        depth=27,
        width=1152,
        num_heads=16,
        mlp_width=4304,
        attention_pool=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


class ConvConfig(Config):
    """A small residual convolutional tower, trained from scratch.

    Attributes:
        image_size: side of the square input in pixels.
        stem_stride: reduction of the first convolution (its kernel is twice as wide).
        channels: width of each stage, two at least; every stage after the first halves the resolution.
        residual_stages: how many of the last stages are followed by a residual block.
        norm_groups: groups of the group normalisation.
    """

    kind: Literal["conv"] = "conv"
    image_size: PositiveInt = 128
    stem_stride: PositiveInt = 4
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (32, 64, 96, 128)
    residual_stages: int = 2
    norm_groups: PositiveInt = 8


VisionConfig = Annotated[DinoSiglipConfig | ConvConfig, Field(discriminator="kind")]


class LanguageConfig(Config):
    """A Qwen2 causal language model (transformers' names)."""

    vocab_size: PositiveInt = 151936
    hidden_size: PositiveInt = 896
    num_layers: PositiveInt = 24
    num_heads: PositiveInt = 14
    num_kv_heads: PositiveInt = 2
    mlp_width: PositiveInt = 4864
    rope_theta: PositiveFloat = 1e6
    rms_norm_eps: PositiveFloat = 1e-6


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


class RDVLAConfig(Config):
    """A whole policy network.

    Attributes:
        cameras: image keys in the order in which their tokens enter the language model.
        num_latent_tokens: learned latent tokens appended to the prompt (Q).
        projector_width: hidden width of the vision-to-language projector's first layer.
        prompt: template of the text; `{instruction}` is replaced by the lower-cased instruction.
    """

    vision: VisionConfig = DinoSiglipConfig()
    projector_width: PositiveInt = 8704
    language: LanguageConfig = LanguageConfig()
    num_latent_tokens: PositiveInt = 64
    head: HeadConfig = HeadConfig()
    cameras: tuple[str, ...] = ("primary", "wrist")
    prompt: str = QWEN_CHAT_PROMPT

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head.hidden_dim != self.language.hidden_size:
            raise ValueError(
                f"head.hidden_dim ({self.head.hidden_dim}) must equal language.hidden_size"
                f" ({self.language.hidden_size})"
            )
        layers = self.head.conditioning_layers
        if layers[0] < 0 or layers[-1] > self.language.num_layers:
            raise ValueError(f"head layers {layers} must lie within 0..{self.language.num_layers}")
        if "{instruction}" not in self.prompt:
            raise ValueError("prompt must contain {instruction}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be distinct and at least one, found {self.cameras}")
        return self


def rdvla_0_5b() -> RDVLAConfig:
    """Return the released architecture: DINOv2-L + SigLIP-So400m, Qwen2.5-0.5B, 72 M head."""
    return RDVLAConfig()


def rdvla_tiny(vocab_size: int) -> RDVLAConfig:
    """Return the laptop architecture: a few million parameters, same classes, trained from scratch.

    Args:
        vocab_size: size of the tokenizer trained on the instructions.
    """
    return RDVLAConfig(
        vision=ConvConfig(),
        projector_width=256,
        language=LanguageConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            mlp_width=256,
            rope_theta=1e4,
        ),
        num_latent_tokens=16,
        head=HeadConfig(hidden_dim=128, num_heads=4, prelude_layers=(1,), recurrent_layers=(2,), coda_layers=(2,)),
        prompt="{instruction}",
    )
