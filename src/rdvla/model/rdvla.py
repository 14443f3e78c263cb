"""The assembled network: images, words and state in, a recurrence over actions out.

Shape suffixes: B batch, M cameras, P vision tokens of all cameras, L prompt length, Q latent tokens, D width,
K chunk size, A action size, S state size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdvla.model.config import RDVLAConfig
from rdvla.model.depth import DepthSampler
from rdvla.model.language import LanguageModel
from rdvla.model.projector import StateProjector, VisionProjector
from rdvla.model.recurrent import Context, RecurrentHead
from rdvla.model.vision import make_vision


@dataclass(frozen=True)
class Inputs:
    """A batch ready for the network.

    Attributes:
        images: `[B, M, H, W, 3]` RGB in 0..255 (uint8, or float after augmentation), cameras in config order.
        ids: int64 `[B, L]` prompt ids, padded on the right.
        lengths: int64 `[B]` prompt lengths.
        state: float32 `[B, S]`, normalised.
    """

    images: Tensor
    ids: Tensor
    lengths: Tensor
    state: Tensor


class RDVLA(nn.Module):
    """A recurrent-depth vision-language-action network."""

    def __init__(self, config: RDVLAConfig) -> None:
        """Build the network with random weights from torch's global generator."""
        super().__init__()
        self.config = config
        width = config.language.hidden_size
        self.vision = make_vision(config.vision)
        self.projector = VisionProjector(self.vision.width, config.projector_width, width)
        self.language = LanguageModel(config.language)
        self.latent_tokens = nn.Parameter(torch.randn(config.num_latent_tokens, width) * 0.02)
        self.state_projector = StateProjector(config.head.state_dim, width)
        self.head = RecurrentHead(config.head)
        self.depth_sampler = DepthSampler(
            config.head.mean_recurrence, config.head.backprop_depth, random=config.head.random_depth
        )

    def encode(self, inputs: Inputs) -> dict[int, Context]:
        """Compute what the head attends to, by hidden-state index. All images go through the tower in one call."""
        sequence, first_latent = self.assemble(inputs)
        hidden = self.language(sequence, self.config.head.conditioning_layers)
        state_B1D = self.state_projector(inputs.state).unsqueeze(1)
        rows = torch.arange(len(sequence), device=sequence.device).unsqueeze(1)
        columns = first_latent.unsqueeze(1) + torch.arange(self.config.num_latent_tokens, device=sequence.device)
        num_patches = len(self.config.cameras) * self.vision.num_tokens
        return {
            index: Context(
                latents=torch.cat((states[rows, columns], state_B1D.to(states.dtype)), dim=1),
                vision=states[:, :num_patches],
            )
            for index, states in hidden.items()
        }

    def assemble(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Lay out [first token, patches, rest of the prompt, latent tokens] per sample, padded on the right.

        The released slices are one position early, and the weights are trained with them: the "task and vision"
        tokens are the first token and all patches but the last; the "latents" are the last prompt token and all
        latent tokens but the last, which therefore need not be computed.

        Returns:
            The sequence `[B, T, D]` and the position of the first of the Q "latents" of each sample, int64 `[B]`.
        """
        features = self.vision(inputs.images.flatten(0, 1))
        patches_BPD = self.projector(features).unflatten(0, inputs.images.shape[:2]).flatten(1, 2)
        text_BLD, lengths_B = self.language.embed(inputs.ids), inputs.lengths
        batch, num_text, num_patches = len(text_BLD), text_BLD.shape[1], patches_BPD.shape[1]
        latents = self.latent_tokens.to(text_BLD.dtype).expand(batch, -1, -1)
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

    def forward(self, inputs: Inputs, latents_BKD: Tensor, *, n_no_grad: int, n_grad: int) -> Tensor:
        """Return normalised actions `[B, K, A]` after `n_no_grad + n_grad` iterations, gradient through the last."""
        actions: Tensor = self.head(self.encode(inputs), latents_BKD, n_no_grad=n_no_grad, n_grad=n_grad)
        return actions


def absolute_error(predicted_BKA: Tensor, target_BKA: Tensor, is_pad_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed absolute error over the actions that are not padding, and how many numbers that sums."""
    error_BKA = F.l1_loss(predicted_BKA, target_BKA, reduction="none")
    valid_BK1 = (~is_pad_BK).unsqueeze(-1)
    return (error_BKA * valid_BK1).sum(), valid_BK1.sum() * predicted_BKA.shape[-1]


def masked_l1(predicted_BKA: Tensor, target_BKA: Tensor, is_pad_BK: Tensor) -> Tensor:
    """Return the mean absolute error over the actions that are not padding (zero if all are)."""
    total, count = absolute_error(predicted_BKA, target_BKA, is_pad_BK)
    return total / count.clamp(min=1)
