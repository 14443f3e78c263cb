"""The released network around its head: every tower block, every layer and all logits, one image after the other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdvla.checkpoints.names import HEAD, PROPRIO, part, to_published
from rdvla.checkpoints.official_config import head_document
from rdvla.errors import ConfigError
from rdvla.model.backbones.inline import Inline
from rdvla.model.backbones.prismatic import DinoSiglip, ViT
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recurrent import RecurrentHead
from rdvla.reference.head import Hidden, PublishedHead, project_state
from rdvla.stops import StopRule

STOP_TOKEN = 2


def published_head(head: RecurrentHead) -> PublishedHead:
    """Return the released computation of `head`, on the same tensors."""
    weights = to_published({f"head.{name}": value for name, value in head.named_parameters()})
    return PublishedHead(part(weights, HEAD), head_document(head.config))


class PublishedNetwork(nn.Module):
    """An `RDVLA` computed as released; its parameters are the network's own."""

    def __init__(self, network: RDVLA) -> None:
        """Share the tensors of `network`.

        Raises:
            ConfigError: its backbone is not one of ours, or reads the sentence first; there is nothing published to
                compare it with.
        """
        super().__init__()
        if not isinstance(network.backbone, Inline):
            kind = type(network.backbone).__name__
            raise ConfigError(f"there is no published computation to compare a backbone {kind} with.")
        if network.backbone.asked is not None:
            raise ConfigError("there is no published computation to compare a backbone that reads_sentence with.")
        self.network, self._backbone = network, network.backbone
        projector = {f"state_projector.{name}": value for name, value in network.state_projector.named_parameters()}
        self._state_projector = part(to_published(projector), PROPRIO)
        self.head = published_head(network.head)

    def encode(self, inputs: Inputs) -> Hidden:
        """Compute all hidden states, and the logits, which nobody reads.

        The prompts of a batch have one length. The slices are the released ones, one position early.
        """
        backbone = self._backbone
        patches_BPD = torch.cat([backbone.projector(self._look(image)) for image in inputs.images.unbind(1)], dim=1)
        stop = inputs.ids.new_full((len(inputs.ids), 1), STOP_TOKEN)
        text, end = backbone.language.embed(inputs.ids), backbone.language.embed(stop)
        queries = backbone.latent_tokens.expand(len(text), -1, -1)
        sequence = torch.cat([text[:, :1], patches_BPD, text[:, 1:], queries, end], dim=1)
        layers = backbone.config.num_layers
        states = backbone.language(sequence, range(layers + 1))
        F.linear(states[layers], backbone.language.model.embed_tokens.weight).float()
        num_patches, first = patches_BPD.shape[1], patches_BPD.shape[1] + text.shape[1] - 1
        latents = slice(first, first + backbone.config.num_latent_tokens)
        return Hidden(
            tasks={layer: states[layer][:, :num_patches] for layer in states},
            latents={layer: states[layer][:, latents] for layer in states},
            state=project_state(self._state_projector, inputs.state),
        )

    def decide(self, inputs: Inputs, scratchpad_BKD: Tensor, rule: StopRule) -> Tensor:
        """Return normalised actions `[B, K, A]`."""
        return self.head.decide(self.encode(inputs), scratchpad_BKD, rule)

    def forward(self, inputs: Inputs, scratchpad_BKD: Tensor, *, n_no_grad: int, n_grad: int) -> Tensor:
        """Return normalised actions `[B, K, A]` of truncated backpropagation."""
        return self.head.train_forward(self.encode(inputs), scratchpad_BKD, n_no_grad=n_no_grad, n_grad=n_grad)

    def _look(self, images_BHWC: Tensor) -> Tensor:
        """Return the features of one camera, tower after tower."""
        vision = self._backbone.vision
        if not isinstance(vision, DinoSiglip):
            return vision(images_BHWC)
        images = images_BHWC.float() / 255
        return torch.cat([_tower(tower, images) for tower in (vision.featurizer, vision.fused_featurizer)], dim=-1)


def _tower(tower: ViT, images_BHWC: Tensor) -> Tensor:
    """Compute every block, and return what the second-to-last one gave."""
    x_BTC = tower.patch_embed(tower.pixels(images_BHWC)) + tower.pos_embed
    if tower.num_prefix:
        prefix = torch.cat((tower.cls_token, tower.reg_token), dim=1)
        x_BTC = torch.cat((prefix.expand(len(x_BTC), -1, -1), x_BTC), dim=1)
    features = x_BTC
    for block in tower.blocks:
        features, x_BTC = x_BTC, block(x_BTC)
    return features[:, tower.num_prefix :]
