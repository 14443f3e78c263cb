"""What our backbones share: projected image patches among the words of a Qwen2.

Shape suffixes: B batch, M cameras, T sequence length, P vision tokens of all cameras, L prompt length, Q latent tokens,
D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from rdvla.model.backbone import Backbone, BackboneConfig, Features
from rdvla.model.language import LanguageConfig, LanguageModel
from rdvla.model.projector import VisionProjector


class InlineConfig(BackboneConfig):
    """An image tower, a projector and a Qwen2.

    Attributes:
        projector_width: hidden width of the vision-to-language projector's first layer.
        language: the language model.
    """

    num_latent_tokens: PositiveInt = 64
    projector_width: PositiveInt = 8704
    language: LanguageConfig = LanguageConfig()

    @property
    def vocab_size(self) -> int:
        """Token ids that the language model knows."""
        return self.language.vocab_size

    @property
    def width(self) -> int:
        """Size D of the hidden states."""
        return self.language.hidden_size

    @property
    def num_layers(self) -> int:
        """Index of the last hidden state."""
        return self.language.num_layers


class Tower(nn.Module, ABC):
    """Turns images into tokens.

    Attributes:
        width: size C of a token.
    """

    width: int

    @abstractmethod
    def forward(self, images: Tensor, sentence_BD: Tensor | None = None) -> Tensor:
        """Encode RGB images `[B, H, W, 3]` (0..255, uint8 or float) into tokens `[B, tokens_per_image, C]`.

        `sentence_BD` is the mean embedding of each image's prompt, for towers that look for what it asks for.
        """

    def blocks(self) -> list[nn.Module]:
        """Return the repeated blocks."""
        return []

    def uncomputed(self) -> tuple[str, ...]:
        """Return the prefixes of what `forward` leaves out."""
        return ()


class Inline(Backbone):
    """Reads [first token, patches, rest of the prompt, latent tokens] with a causal language model."""

    def __init__(self, config: InlineConfig, vision: Tower, *, latents_read_sentence: bool = False) -> None:
        """Put projector, language model and latent tokens, with random weights, behind the tower `vision`.

        With `latents_read_sentence` a projection of the prompt's mean embedding, at first zero, is added to each of
        the latent tokens.
        """
        super().__init__()
        self.config: InlineConfig = config
        self.vision = vision
        self.projector = VisionProjector(vision.width, config.projector_width, config.width)
        self.language = LanguageModel(config.language)
        self.latent_tokens = nn.Parameter(torch.randn(config.num_latent_tokens, config.width) * 0.02)
        self.asked = nn.Linear(config.width, config.width, bias=False) if latents_read_sentence else None
        if self.asked is not None:
            nn.init.zeros_(self.asked.weight)

    def forward(
        self, images: Tensor, ids_BL: Tensor, lengths_B: Tensor, layers: Collection[int]
    ) -> dict[int, Features]:
        """Return what the head attends to; all images go through the tower in one call."""
        sequence, first_latent = self.assemble(images, ids_BL, lengths_B)
        hidden = self.language(sequence, layers)
        rows = torch.arange(len(sequence), device=sequence.device).unsqueeze(1)
        columns = first_latent.unsqueeze(1) + torch.arange(self.config.num_latent_tokens, device=sequence.device)
        num_patches = images.shape[1] * self.config.tokens_per_image
        return {
            index: Features(latents=states[rows, columns], vision=states[:, :num_patches])
            for index, states in hidden.items()
        }

    def assemble(self, images: Tensor, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Lay out [first token, patches, rest of the prompt, latent tokens] per sample, padded on the right.

        The released slices are one position early, and the weights are trained with them: the "task and vision"
        tokens are the first token and all patches but the last; the "latents" are the last prompt token and all
        latent tokens but the last, which therefore need not be computed.

        Returns:
            The sequence `[B, T, D]` and the position of the first of the Q "latents" of each sample, int64 `[B]`.
        """
        text_BLD = self.language.embed(ids_BL)
        latents = self.latent_tokens.to(text_BLD.dtype).expand(len(text_BLD), -1, -1)
        if self.asked is None:
            features = self.vision(images.flatten(0, 1))
        else:
            sentence_BD = _mean(text_BLD, lengths_B)
            features = self.vision(images.flatten(0, 1), sentence_BD.repeat_interleave(images.shape[1], dim=0))
            latents = latents + self.asked(sentence_BD).unsqueeze(1)
        patches_BPD = self.projector(features).unflatten(0, images.shape[:2]).flatten(1, 2)
        batch, num_text, num_patches = len(text_BLD), text_BLD.shape[1], patches_BPD.shape[1]
        pool = torch.cat((text_BLD, patches_BPD.to(text_BLD.dtype), latents), dim=1)
        length = num_patches + num_text + self.config.num_latent_tokens - 1
        position = torch.arange(length, device=text_BLD.device).expand(batch, -1)
        text_end = (num_patches + lengths_B).unsqueeze(1)
        source = position - num_patches
        source = torch.where(position <= num_patches, num_text + position - 1, source)
        source = torch.where(position == 0, 0, source)
        source = torch.where(position >= text_end, num_text + num_patches + position - text_end, source)
        source = source.clamp(max=pool.shape[1] - 1)
        rows = torch.arange(batch, device=text_BLD.device).unsqueeze(1)
        return pool[rows, source], num_patches + lengths_B - 1

    def blocks(self) -> list[nn.Module]:
        """Return language layers and tower blocks."""
        return [*self.language.model.layers, *self.vision.blocks()]

    def uncomputed(self, layers: Sequence[int]) -> tuple[str, ...]:
        """Return what the tower leaves out, and the language model's layers above the highest one that is read."""
        above = range(max(layers), self.config.num_layers)
        tower = (f"vision.{name}" for name in self.vision.uncomputed())
        return (*tower, *(f"language.model.layers.{index}." for index in above))


def _mean(text_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the mean over each prompt's length, `[B, D]`; zero where there is no prompt."""
    is_text_BL1 = (torch.arange(text_BLD.shape[1], device=text_BLD.device) < lengths_B[:, None]).unsqueeze(-1)
    return (text_BLD * is_text_BL1).sum(dim=1) / lengths_B.clamp(min=1)[:, None].to(text_BLD.dtype)
