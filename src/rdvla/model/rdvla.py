"""The assembled network: images, words and state in, a recurrence over actions out.

Shape suffixes: B batch, M cameras, L prompt length, D width, K chunk size, A action size, S state size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdvla.errors import ConfigError
from rdvla.model.config import RDVLAConfig
from rdvla.model.depth import DepthSampler
from rdvla.model.projector import StateProjector
from rdvla.model.recurrent import Context, RecurrentHead


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
    """A recurrent-depth vision-language-action network: a backbone, and the head that reads it."""

    def __init__(self, config: RDVLAConfig) -> None:
        """Build the network with random weights from torch's global generator.

        Raises:
            ConfigError: a part of the backbone has the name of one of ours: a checkpoint would keep one of the two.
        """
        super().__init__()
        self.config = config
        self.backbone = config.backbone.network()
        self.state_projector = StateProjector(config.head.state_dim, config.backbone.width)
        self.head = RecurrentHead(config.head)
        ours = {name for name, _ in self.named_children()}
        for name, _ in self.backbone.named_children():
            if name in ours:
                raise ConfigError(f"the backbone's part '{name}' would be stored as our '{name}'; call it otherwise.")
        self.reconfigure(config)

    def reconfigure(self, config: RDVLAConfig) -> None:
        """Take over how deep training goes (`mean_recurrence`, `backprop_depth`, `random_depth`) from `config`.

        Everything else in it has to be as it is: the weights stay.
        """
        head = config.head
        self.config, self.head.config = config, head
        self.depth_sampler = DepthSampler(head.mean_recurrence, head.backprop_depth, random=head.random_depth)

    def encode(self, inputs: Inputs) -> dict[int, Context]:
        """Compute what the head attends to, by hidden-state index."""
        layers = self.config.head.conditioning_layers
        features = self.backbone(inputs.images, inputs.ids, inputs.lengths, layers)
        state_B1D = self.state_projector(inputs.state).unsqueeze(1)
        return {
            index: Context(torch.cat((each.latents, state_B1D.to(each.latents.dtype)), dim=1), each.vision)
            for index, each in features.items()
        }

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
