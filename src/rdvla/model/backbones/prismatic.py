"""The released backbone: DINOv2 and SigLIP side by side, their patches among the words of a Qwen2.

Shape suffixes: B images (all cameras and samples together), T tokens per image, C feature width.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from rdvla.config import Config
from rdvla.errors import ConfigError
from rdvla.model.backbones.inline import Inline, InlineConfig, Tower

_Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    num_registers: NonNegativeInt | None = None
    layer_scale: bool = False
    attention_pool: bool = False
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Spread, _Spread, _Spread]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.num_heads:
            raise ConfigError(f"a tower's width ({self.width}) must be a multiple of its num_heads ({self.num_heads}).")
        return self


class DinoSiglipConfig(Config):
    """DINOv2 and SigLIP side by side, features concatenated per patch (the released backbone)."""

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

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


class PrismaticConfig(InlineConfig):
    """The released backbone; by default in the released sizes.

    Attributes:
        vision: both towers.
    """

    kind: Literal["prismatic"] = "prismatic"
    vision: DinoSiglipConfig = DinoSiglipConfig()

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.vision.image_size

    @property
    def tokens_per_image(self) -> int:
        """One for each patch."""
        return self.vision.num_patches

    def network(self) -> Inline:
        """Return the network with random weights."""
        return Inline(self, DinoSiglip(self.vision))


class Attention(nn.Module):
    """Multi-head self-attention with fused projections."""

    def __init__(self, width: int, num_heads: int) -> None:
        """Attend over tokens of size `width`."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return attended tokens `[B, T, C]`."""
        q, k, v = self.qkv(x_BTC).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers around the exact (erf) GELU, which the released towers use."""

    def __init__(self, width: int, hidden: int) -> None:
        """Expand `width` to `hidden` and back."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned scale per channel."""

    def __init__(self, width: int) -> None:
        """Start at DINOv2's 1e-5."""
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis."""
        return x * self.scale_factor


class ViTBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        """Build attention and feed-forward with their norms (eps 1e-6) and optional layer scales."""
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, config.num_heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, config.mlp_width)
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the block's output `[B, T, C]`."""
        x_BTC = x_BTC + self.ls1(self.attn(self.norm1(x_BTC)))
        return x_BTC + self.ls2(self.mlp(self.norm2(x_BTC)))


class PatchEmbed(nn.Module):
    """Cuts images into patches and embeds them."""

    def __init__(self, width: int, patch_size: int) -> None:
        """Embed square patches of `patch_size` pixels."""
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return patch embeddings `[B, T, C]`, row by row."""
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """SigLIP's pooling head. Its weights are part of a released checkpoint, so they are kept; nothing computes it."""

    def __init__(self, config: ViTConfig) -> None:
        """Allocate the weights under their released names."""
        super().__init__()
        width = config.width
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, config.mlp_width)


class ViT(nn.Module):
    """One tower: raw features after the second-to-last block, prefix tokens removed.

    The last block, the final norm and the pooling head exist so that checkpoints stay complete; they are not computed.
    """

    def __init__(self, config: ViTConfig, num_patches: int, patch_size: int) -> None:
        """Build a tower for images of `num_patches` patches."""
        super().__init__()
        width = config.width
        self.num_prefix = 0
        if config.num_registers is not None:
            self.num_prefix = 1 + config.num_registers
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, width))
        self.pos_embed = nn.Parameter(torch.randn(1, num_patches, width) * 0.02)
        self.patch_embed = PatchEmbed(width, patch_size)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if config.attention_pool:
            self.attn_pool = AttentionPool(config)
        self._constants = (config.mean, config.std)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` in 0..1 (float32) into patch features `[B, T, C]`."""
        x_BTC = self.patch_embed(self.pixels(images_BHWC).to(self.pos_embed.dtype)) + self.pos_embed
        if self.num_prefix:
            prefix = torch.cat((self.cls_token, self.reg_token), dim=1)
            x_BTC = torch.cat((prefix.expand(len(x_BTC), -1, -1), x_BTC), dim=1)
        for block in self.blocks[:-1]:
            x_BTC = block(x_BTC)
        return x_BTC[:, self.num_prefix :]

    def pixels(self, images_BHWC: Tensor) -> Tensor:
        """Normalise RGB images `[B, H, W, 3]` in 0..1 with the tower's constants: `[B, 3, H, W]`."""
        return normalise_pixels(images_BHWC, *self._constants)


def normalise_pixels(images_BHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return `(image - mean) / std` per channel of RGB images `[B, H, W, 3]` in 0..1, as `[B, 3, H, W]`."""
    channels = zip(images_BHWC.unbind(-1), mean, std, strict=True)
    return torch.stack([(channel - centre) / deviation for channel, centre, deviation in channels], dim=1)


class DinoSiglip(Tower):
    """DINOv2 and SigLIP on the same image, features side by side (DINOv2 first)."""

    def __init__(self, config: DinoSiglipConfig) -> None:
        """Build both towers."""
        super().__init__()
        self.width = config.dino.width + config.siglip.width
        self.featurizer = ViT(config.dino, config.num_patches, config.patch_size)
        self.fused_featurizer = ViT(config.siglip, config.num_patches, config.patch_size)

    def forward(self, images: Tensor, sentence_BD: Tensor | None = None) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` (0..255) into `[B, T, C_dino + C_siglip]`; no sentence is read."""
        images = images.float() / 255
        return torch.cat((self.featurizer(images), self.fused_featurizer(images)), dim=-1)

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of both towers."""
        return [*self.featurizer.blocks, *self.fused_featurizer.blocks]

    def uncomputed(self) -> tuple[str, ...]:
        """Return the last block of each tower and what would follow it."""
        towers = {"featurizer": self.featurizer, "fused_featurizer": self.fused_featurizer}
        return tuple(
            f"{name}.{part}."
            for name, tower in towers.items()
            for part in (f"blocks.{len(tower.blocks) - 1}", "norm", "attn_pool")
        )
