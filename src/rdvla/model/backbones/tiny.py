"""The laptop's backbone: a small convolutional tower, its cells among the words of a small Qwen2; trained from scratch.

Shape suffixes: B images (all cameras and samples together), T tokens per image, C feature width.
"""

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from rdvla.config import Config
from rdvla.errors import ConfigError
from rdvla.model.backbones.inline import Inline, InlineConfig, Tower


class ConvConfig(Config):
    """A small residual convolutional tower, trained from scratch.

    Attributes:
        image_size: side of the square input in pixels.
        stem_stride: reduction of the first convolution (its kernel is twice as wide).
        channels: width of each stage, two at least; every stage after the first halves the resolution.
        residual_stages: how many of the last stages are followed by a residual block.
        norm_groups: groups of the group normalisation.
        keypoint_stages: how many of the maps before the last give keypoints, one per channel.
    """

    image_size: PositiveInt = 128
    stem_stride: PositiveInt = 4
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (32, 64, 96, 128)
    residual_stages: NonNegativeInt = 2
    norm_groups: PositiveInt = 8
    keypoint_stages: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if odd := [width for width in self.channels if width % self.norm_groups]:
            raise ConfigError(f"vision.channels: {odd[0]} must be a multiple of norm_groups ({self.norm_groups}).")
        if self.residual_stages > len(self.channels):
            raise ConfigError(
                f"vision.residual_stages = {self.residual_stages}: there are {len(self.channels)} stages (channels)."
            )
        if self.keypoint_stages >= len(self.channels):
            before = len(self.channels) - 1
            raise ConfigError(
                f"vision.keypoint_stages = {self.keypoint_stages}: there are {before} maps before the last."
            )
        if rest := self.image_size % self.stride:
            below = self.image_size - rest
            nearest = " or ".join(str(size) for size in (below, below + self.stride) if size)
            raise ConfigError(
                f"vision.image_size = {self.image_size} must be a multiple of {self.stride}, by which the stages "
                f"divide it: {nearest}."
            )
        return self

    @property
    def stride(self) -> int:
        """Pixels between the cells of the last map."""
        return int(self.stem_stride * 2 ** (len(self.channels) - 1))

    @property
    def num_tokens(self) -> int:
        """Cells of the last map, and one token of keypoints."""
        return (self.image_size // self.stride) ** 2 + 1


class TinyConfig(InlineConfig):
    """A convolutional tower and a Qwen2 of any size.

    Attributes:
        vision: the tower.
        reads_sentence: tell tower and latent tokens what is asked, ahead of the language model: the mean embedding of
            the sentence scales and shifts the channels of every stage (FiLM: Perez et al., 2018), so that a red block
            is looked for when the red block is asked for, and is added to every latent token, so that the head is
            told which way to turn it.
    """

    kind: Literal["tiny"] = "tiny"
    vision: ConvConfig = ConvConfig()
    reads_sentence: bool = False

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.vision.image_size

    @property
    def tokens_per_image(self) -> int:
        """Cells of the tower's last map, and one of keypoints."""
        return self.vision.num_tokens

    def network(self) -> Inline:
        """Return the network with random weights."""
        tower = ConvTower(self.vision, sentence_width=self.width if self.reads_sentence else None)
        return Inline(self, tower, latents_read_sentence=self.reads_sentence)


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


class _Asked(nn.Module):
    """Scales and shifts a map's channels by what a sentence asks for; changes nothing before it is trained."""

    def __init__(self, sentence_width: int, channels: int) -> None:
        """Start with scale 1 and shift 0."""
        super().__init__()
        self.scale_and_shift = nn.Linear(sentence_width, 2 * channels)
        nn.init.zeros_(self.scale_and_shift.weight)
        nn.init.zeros_(self.scale_and_shift.bias)

    def forward(self, map_BChw: Tensor, sentence_BD: Tensor) -> Tensor:
        """Return the map `[B, C, h, w]`."""
        scale_BC11, shift_BC11 = self.scale_and_shift(sentence_BD)[:, :, None, None].chunk(2, dim=1)
        return map_BChw * (1 + scale_BC11) + shift_BC11


class ConvTower(Tower):
    """A small residual network: its last feature map cell by cell, plus one token of keypoints.

    The keypoint token embeds, per channel of the map before the last (or of several), where in the image that channel
    is active (a spatial softmax: Finn et al., Deep Spatial Autoencoders, 2016). It keeps positions finer than the grid
    of tokens.
    """

    def __init__(self, config: ConvConfig, *, sentence_width: int | None) -> None:
        """Build one stage per entry of `config.channels`; a sentence, if one is read, has the size `sentence_width`."""
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
        self.asked = nn.ModuleList(
            _Asked(sentence_width, channels) for channels in config.channels if sentence_width is not None
        )
        self.width = previous
        self.keypoint_maps = slice(-1 - config.keypoint_stages, -1)
        self.keypoints = nn.Linear(2 * sum(config.channels[self.keypoint_maps]), previous)
        self.pos_embed = nn.Parameter(torch.randn(1, config.num_tokens, previous) * 0.02)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor, sentence_BD: Tensor | None = None) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` (0..255) into `[B, T, C]`, T = cells + 1; see `Tower` for the sentence.

        Raises:
            ValueError: the tower reads the sentence, and there is none, or the other way round.
        """
        if bool(self.asked) != (sentence_BD is not None):
            raise ValueError(
                f"a tower that reads {'the' if self.asked else 'no'} sentence, and sentence_BD says otherwise."
            )
        x_BChw = images.permute(0, 3, 1, 2).to(self.pos_embed.dtype) / 127.5 - 1
        maps = []
        for index, stage in enumerate(self.stages):
            x_BChw = stage(x_BChw)
            if sentence_BD is not None:
                x_BChw = self.asked[index](x_BChw, sentence_BD)
            maps.append(x_BChw)
        places = [_where_active(each_BChw, self.temperature) for each_BChw in maps[self.keypoint_maps]]
        keypoint_B1C = self.keypoints(torch.cat(places, dim=1)).unsqueeze(1)
        return torch.cat((x_BChw.flatten(2).transpose(1, 2), keypoint_B1C), dim=1) + self.pos_embed


def _where_active(map_BChw: Tensor, temperature: Tensor) -> Tensor:
    """Return the expected (row, column) of each channel, -1..1 from edge to edge: `[B, 2 C]`."""
    side = map_BChw.shape[-1]
    axis = torch.linspace(-1, 1, side, device=map_BChw.device, dtype=map_BChw.dtype)
    grid_T2 = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    return (torch.softmax(map_BChw.flatten(2) * temperature, dim=-1) @ grid_T2).flatten(1)
