"""What is measured: a random network of the released sizes, the shipped policy's, and their random inputs."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from rdvla.bench.published import Hidden
from rdvla.errors import ConfigError
from rdvla.model.config import DinoSiglipConfig, HeadConfig, RDVLAConfig
from rdvla.model.decide import decide
from rdvla.model.freeze import freeze
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recurrent import Context, RecurrentHead
from rdvla.model.stopping import make_criterion
from rdvla.policy import StopRule

PROMPT_LENGTH = 40
"""Tokens of a released prompt with an instruction of usual length."""

Network = TypeVar("Network", bound=nn.Module)


def frozen(network: Network, precisions: Sequence[str]) -> dict[str, Network]:
    """Return `network`, which stays as it is, made ready to act in each precision that this processor has, by name."""
    ready: dict[str, Network] = {}
    for name in precisions:
        try:
            ready[name] = freeze(network if name != "bfloat16" else copy.deepcopy(network), name)
        except ConfigError:  # no instructions for int8
            continue
    return ready


def random_head(config: HeadConfig, seed: int = 0) -> RecurrentHead:
    """Return a head whose gates are open and whose actions are of order one, so that errors would show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = RecurrentHead(config)
        _open(head)
    return head.requires_grad_(requires_grad=False).eval()


def random_network(config: RDVLAConfig, seed: int = 0) -> RDVLA:
    """Return a network with random weights (released sizes: 5 GB, some ten seconds)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RDVLA(config)
        _open(network.head)
    return network.requires_grad_(requires_grad=False).eval()


@torch.no_grad()
def _open(head: RecurrentHead) -> None:
    for name, parameter in head.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter)
        elif name.endswith("output_proj.weight"):
            nn.init.normal_(parameter, std=head.config.hidden_dim**-0.5)


def random_inputs(config: RDVLAConfig, batch: int, seed: int = 0) -> Inputs:
    """Return `batch` random inputs with prompts of one length."""
    generator = torch.Generator().manual_seed(seed)
    side, vocabulary = config.vision.image_size, config.language.vocab_size
    return Inputs(
        images=torch.randint(256, (batch, len(config.cameras), side, side, 3), generator=generator, dtype=torch.uint8),
        ids=torch.randint(3, vocabulary, (batch, PROMPT_LENGTH), generator=generator),
        lengths=torch.full((batch,), PROMPT_LENGTH),
        state=torch.rand(batch, config.head.state_dim, generator=generator) * 2 - 1,
    )


def random_hidden(config: RDVLAConfig, batch: int, seed: int = 0) -> Hidden:
    """Return random hidden states for the head of `config`, as many as its cameras and latent tokens make."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens: int) -> Tensor:
        return torch.randn(batch, tokens, config.head.hidden_dim, generator=generator)

    layers = config.head.conditioning_layers
    tasks, latents = len(config.cameras) * image_tokens(config), config.num_latent_tokens
    return Hidden({layer: draw(tasks) for layer in layers}, {layer: draw(latents) for layer in layers}, draw(1))


def image_tokens(config: RDVLAConfig) -> int:
    """Return the tokens of one image."""
    vision = config.vision
    if isinstance(vision, DinoSiglipConfig):
        return (vision.image_size // vision.patch_size) ** 2
    return (vision.image_size // (vision.stem_stride * 2 ** (len(vision.channels) - 1))) ** 2 + 1


def contexts_of(hidden: Hidden, samples: int | None = None) -> dict[int, Context]:
    """Return the same conditioning as our head takes it, of the first `samples`."""
    return {
        layer: Context(torch.cat((hidden.latents[layer], hidden.state), dim=1)[:samples], tasks[:samples])
        for layer, tasks in hidden.tasks.items()
    }


def first(hidden: Hidden) -> Hidden:
    """Return the first sample."""
    tasks = {layer: states[:1] for layer, states in hidden.tasks.items()}
    latents = {layer: states[:1] for layer, states in hidden.latents.items()}
    return Hidden(tasks, latents, hidden.state[:1])


def scratchpads(head: RecurrentHead, batch: int, seed: int = 0) -> Tensor:
    """Return initial scratchpads `[B, K, D]`."""
    return head.init_latents(batch, torch.Generator().manual_seed(seed))


def decider(
    head: RecurrentHead, contexts: Mapping[int, Context], latents_BKD: Tensor, rule: StopRule
) -> Callable[[], Tensor]:
    """Return a function that decides as `rdvla.runtime` does: normalised actions float32 `[B, K, A]`.

    Conditioning and scratchpads are brought into the head's dtype before.
    """
    criterion, dtype = make_criterion(rule), head.prelude.action_queries.dtype
    cast = {layer: Context(c.latents.to(dtype), c.vision.to(dtype)) for layer, c in contexts.items()}
    latents_BKD = latents_BKD.to(dtype)

    @torch.no_grad()
    def run() -> Tensor:
        return decide(head, head.condition(cast), latents_BKD, criterion, rule).actions.float()

    return run
