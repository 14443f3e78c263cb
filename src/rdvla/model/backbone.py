"""A vision-language model as the action head sees it: what every backbone offers, and which backbones there are.

Ours are listed here. An installed package adds one with an entry point in the group `rdvla.backbones` that names a
subclass of `BackboneConfig`.

Shape suffixes: B batch, M cameras, L prompt length, P task and vision tokens, Q latent tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pydantic import PositiveInt
from torch import Tensor, nn

from rdvla import plugins
from rdvla.config import Config

ENTRY_POINTS = "rdvla.backbones"

BACKBONES: Mapping[str, str] = {
    "prismatic": "rdvla.model.backbones.prismatic:PrismaticConfig",
    "tiny": "rdvla.model.backbones.tiny:TinyConfig",
}
"""Kind -> its configuration."""


class BackboneConfig(Config, ABC):
    """Every size and choice of a backbone.

    Attributes:
        kind: which backbone.
        num_latent_tokens: learned latent tokens that it reads after the prompt (Q).
    """

    kind: str
    num_latent_tokens: PositiveInt

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the square images that it takes, in pixels."""

    @property
    @abstractmethod
    def tokens_per_image(self) -> int:
        """Vision tokens that one image becomes."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids that it knows."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Size D of its hidden states."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Index of its last hidden state; 0 is what goes into the first layer."""

    @abstractmethod
    def network(self) -> "Backbone":
        """Return the network with random weights from torch's global generator."""


@dataclass(frozen=True)
class Features:
    """What a backbone makes of a batch, taken from one of its layers.

    Attributes:
        latents: `[B, Q, D]` of the latent tokens.
        vision: `[B, P, D]` of the task and vision tokens; P is M times `tokens_per_image`.
    """

    latents: Tensor
    vision: Tensor


class Backbone(nn.Module, ABC):
    """A vision-language model. In checkpoints its tensors have their names in here, without a prefix.

    Attributes:
        config: its sizes.
        latent_tokens: `[Q, D]`, trained with the head: no pretrained model has them.
    """

    config: BackboneConfig
    latent_tokens: nn.Parameter

    @abstractmethod
    def forward(
        self, images: Tensor, ids_BL: Tensor, lengths_B: Tensor, layers: Collection[int]
    ) -> dict[int, Features]:
        """Return what the head attends to, by hidden-state index. A sample does not depend on its companions.

        Args:
            images: `[B, M, H, W, 3]` RGB in 0..255 (uint8, or float after augmentation).
            ids_BL: int64 prompt ids, padded on the right.
            lengths_B: int64 prompt lengths.
            layers: indices of the hidden states, of 0 .. `config.num_layers`.
        """

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the repeated blocks: what training recomputes, or brings together, one at a time."""

    @abstractmethod
    def uncomputed(self, layers: Sequence[int]) -> tuple[str, ...]:
        """Return the prefixes, within this module, of what `forward` leaves out for hidden states up to `layers`."""


@cache
def backbones() -> Mapping[str, type[BackboneConfig]]:
    """Return every backbone's configuration by kind: ours, then those of installed packages.

    Raises:
        ConfigError: an installed package's entry point is no `BackboneConfig`, or its kind is taken.
    """
    found = plugins.find(ENTRY_POINTS, BACKBONES)
    return {kind: plugins.load(entry, _is_config, "a BackboneConfig") for kind, entry in found.items()}


def _is_config(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, BackboneConfig)
