"""Vision towers behind one interface: uint8 images in, patch tokens out.

Shape suffixes: B images (all cameras and samples together), T tokens per image, C feature width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdvla.model.config import ConvConfig, DinoSiglipConfig, VisionConfig, ViTConfig


class VisionTower(Protocol):
    """Turns images into tokens."""

    num_tokens: int
    width: int

    def __call__(self, images: Tensor) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` (0..255, uint8 or float) into tokens `[B, T, C]`."""
        ...


def make_vision(config: VisionConfig) -> "DinoSiglip | ConvTower":
    """Build the tower that `config` describes."""
    return DinoSiglip(config) if isinstance(config, DinoSiglipConfig) else ConvTower(config)


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


class DinoSiglip(nn.Module):
    """DINOv2 and SigLIP on the same image, features side by side (DINOv2 first)."""

    def __init__(self, config: DinoSiglipConfig) -> None:
        """Build both towers."""
        super().__init__()
        self.num_tokens = (config.image_size // config.patch_size) ** 2
        self.width = config.dino.width + config.siglip.width
        self.featurizer = ViT(config.dino, self.num_tokens, config.patch_size)
        self.fused_featurizer = ViT(config.siglip, self.num_tokens, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` (0..255) into `[B, T, C_dino + C_siglip]`."""
        images = images.float() / 255
        return torch.cat((self.featurizer(images), self.fused_featurizer(images)), dim=-1)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, groups: int) -> None:
        """Keep `channels` and the resolution."""
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, C, h, w]`."""
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class ConvTower(nn.Module):
    """A small residual network: its last feature map cell by cell, plus one token of keypoints.

    The keypoint token embeds, per channel of the map before the last, where in the image that channel is active (a
    spatial softmax: Finn et al., Deep Spatial Autoencoders, 2016). It keeps positions finer than the grid of tokens.
    """

    def __init__(self, config: ConvConfig) -> None:
        """Build one stage per entry of `config.channels`."""
        super().__init__()
        self.stages = nn.ModuleList()
        previous = 3
        for index, channels in enumerate(config.channels):
            stride = 2 if index else config.stem_stride
            kernel = 3 if index else 2 * stride
            padding = (kernel - stride + 1) // 2
            convolution = nn.Conv2d(previous, channels, kernel, stride=stride, padding=padding, bias=False)
            layers: list[nn.Module] = [convolution]
            if index >= len(config.channels) - config.residual_stages:
                layers.append(ResidualBlock(channels, config.norm_groups))
            self.stages.append(nn.Sequential(*layers, nn.GroupNorm(config.norm_groups, channels), nn.ReLU()))
            previous = channels
        side = config.image_size // (config.stem_stride * 2 ** (len(config.channels) - 1))
        self.width = previous
        self.num_tokens = side * side + 1
        self.keypoints = nn.Linear(2 * config.channels[-2], previous)
        self.pos_embed = nn.Parameter(torch.randn(1, self.num_tokens, previous) * 0.02)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` (0..255) into `[B, T, C]`, T = cells + 1."""
        x_BChw = images.permute(0, 3, 1, 2).to(self.pos_embed.dtype) / 127.5 - 1
        maps = []
        for stage in self.stages:
            x_BChw = stage(x_BChw)
            maps.append(x_BChw)
        keypoint_B1C = self.keypoints(_where_active(maps[-2], self.temperature)).unsqueeze(1)
        return torch.cat((x_BChw.flatten(2).transpose(1, 2), keypoint_B1C), dim=1) + self.pos_embed


def _where_active(map_BChw: Tensor, temperature: Tensor) -> Tensor:
    """Return the expected (row, column) of each channel, -1..1 from edge to edge: `[B, 2 C]`."""
    side = map_BChw.shape[-1]
    axis = torch.linspace(-1, 1, side, device=map_BChw.device, dtype=map_BChw.dtype)
    grid_T2 = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    return (torch.softmax(map_BChw.flatten(2) * temperature, dim=-1) @ grid_T2).flatten(1)
