"""What is measured: a random network of the released sizes, the shipped policy's, and their random inputs."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rdvla.errors import ConfigError
from rdvla.model.config import HeadConfig, RDVLAConfig
from rdvla.model.decide import decide
from rdvla.model.freeze import freeze
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recorded import RecordedHead, RecordedNetwork, fuse
from rdvla.model.recurrent import Context, RecurrentHead
from rdvla.model.stopping import make_criterion
from rdvla.model.watch import Recurrence
from rdvla.reference.head import Hidden
from rdvla.stops import StopRule

CPU = torch.device("cpu")
PROMPT_LENGTH = 40
"""Tokens of a released prompt with an instruction of usual length."""

Network = TypeVar("Network", bound=nn.Module)
Start = Callable[[], tuple[Recurrence[Any], Any]]
"""Begins a decision: encodes what there is to encode, and returns a head and its conditioning."""


@dataclass(frozen=True)
class Form:
    """How ours computes; its text is the name of the variant."""

    precision: str
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of scratchpads and conditioning."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def __str__(self) -> str:
        return f"compiled {self.precision}" if self.compiled else self.precision


def frozen(network: Network, forms: Iterable[Form]) -> dict[Form, Network]:
    """Return `network`, which stays as it is, made ready to act in each form whose precision the device has."""
    ready: dict[Form, Network] = {}
    for form in forms:
        original = network if form.precision != "bfloat16" else copy.deepcopy(network)
        try:
            ready[form] = freeze(original, form.precision, pack=not form.compiled)
        except ConfigError:  # no instructions for int8
            continue
    return ready


def random_head(config: HeadConfig) -> RecurrentHead:
    """Return a head whose gates are open and whose actions are of order one, so that errors would show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = RecurrentHead(config)
        _open(head)
    return head.requires_grad_(requires_grad=False).eval()


def random_network(config: RDVLAConfig) -> RDVLA:
    """Return a network with random weights (released sizes: 5 GB, some ten seconds)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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


def random_inputs(config: RDVLAConfig, batch: int, *, device: torch.device) -> Inputs:
    """Return `batch` random inputs with prompts of one length."""
    generator = torch.Generator().manual_seed(0)
    side, vocabulary = config.backbone.image_size, config.backbone.vocab_size
    images = torch.randint(256, (batch, len(config.cameras), side, side, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(3, vocabulary, (batch, PROMPT_LENGTH), generator=generator)
    state = torch.rand(batch, config.head.state_dim, generator=generator) * 2 - 1
    return Inputs(
        images.to(device), ids.to(device), torch.full((batch,), PROMPT_LENGTH, device=device), state.to(device)
    )


def random_hidden(config: RDVLAConfig, batch: int, *, device: torch.device = CPU) -> Hidden:
    """Return random hidden states for the head of `config`, as many as its cameras and latent tokens make."""
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> Tensor:
        return torch.randn(batch, tokens, config.head.hidden_dim, generator=generator).to(device)

    layers = config.head.conditioning_layers
    tasks, latents = len(config.cameras) * config.backbone.tokens_per_image, config.backbone.num_latent_tokens
    return Hidden({layer: draw(tasks) for layer in layers}, {layer: draw(latents) for layer in layers}, draw(1))


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


def scratchpads(head: RecurrentHead, batch: int) -> Tensor:
    """Return initial scratchpads `[B, K, D]`."""
    return head.init_latents(batch, torch.Generator().manual_seed(0))


def start_head(form: Form, head: RecurrentHead, contexts: Mapping[int, Context]) -> Start:
    """Return what conditions `head`, ready in `form`, on all of `contexts`."""
    cast = {layer: Context(c.latents.to(form.dtype), c.vision.to(form.dtype)) for layer, c in contexts.items()}
    if not form.compiled:
        return lambda: (head, head.condition(cast))
    batch, condition = len(next(iter(cast.values())).latents), fuse(head.condition)
    recorded = RecordedHead(head, lambda: condition(cast), batch)
    return lambda: (recorded, recorded.condition(batch))


def start_network(form: Form, network: RDVLA, inputs: Inputs) -> Start:
    """Return what encodes `inputs` and conditions the head of `network`, ready in `form`, on them."""
    if not form.compiled:
        return lambda: (network.head, network.head.condition(network.encode(inputs)))
    recorded = RecordedNetwork(network)
    return lambda: recorded.condition(inputs)


def decider(start: Start, latents_BKD: Tensor, rule: StopRule) -> Callable[[], Tensor]:
    """Return a function that decides as `rdvla.policies.network` does: normalised actions float32 `[B, K, A]`."""
    criterion = make_criterion(rule)

    @torch.no_grad()
    def run() -> Tensor:
        head, conditioning = start()
        return decide(head, conditioning, latents_BKD, criterion, rule).actions.float()

    return run
