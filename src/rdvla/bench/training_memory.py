"""Memory of a training step of the released size.

A whole step (forward, backward, clipping, AdamW) runs on tensors without content, and the bytes of all tensors that are
alive at once are counted operator by operator. So it needs neither a GPU nor the memory; what a GPU's kernels keep for
themselves (workspaces, rounding up of blocks) comes on top.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rdvla.bench.machine import PeakMemory
from rdvla.bench.table import Cell, Table
from rdvla.model.config import RDVLAConfig
from rdvla.model.rdvla import RDVLA, Inputs, masked_l1
from rdvla.train.config import LoraConfig, OptimizerConfig, TrainPrecision
from rdvla.train.lora import add_adapters
from rdvla.train.optim import make_optimizer
from rdvla.train.precision import arithmetic, cast, checkpoint_activations

WAYS: list[tuple[str, TrainPrecision, bool]] = [
    ("trained", "mixed", False),
    ("all_linear", "mixed", False),
    ("trained", "bfloat16", False),
    ("all_linear", "bfloat16", False),
    ("trained", "mixed", True),
    ("trained", "bfloat16", True),
]
PROMPT = 40


def measure_memory(config: RDVLAConfig, batch: int, depth: int, tell: Callable[[str], None] = lambda _: None) -> Table:
    """Return the gigabytes (10^9 bytes) of a step in every way.

    Args:
        config: the network.
        batch: samples, at least 1.
        depth: iterations, at least 1.
        tell: is told what happens.
    """
    rows: list[tuple[Cell, ...]] = []
    for targets, precision, recomputed in WAYS:
        tell(f"{targets}, {precision}")
        model = network(config, targets, precision, recomputed=recomputed)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            frozen, trained = nbytes(model, trained=False), nbytes(model, trained=True)
            kept, peak = step(model, precision, batch, depth)
        numbers = [value / 1e9 for value in (frozen, trained, kept, frozen + trained + peak)]
        rows.append((targets, precision, "computed again" if recomputed else "kept", *numbers))
    columns = ("adapters", "precision", "activations", "frozen", "trained", "gradients, moments", "most in a step")
    return Table(f"Memory of a training step, batch {batch}, depth {depth}, in 10^9 bytes", columns, tuple(rows))


def network(config: RDVLAConfig, targets: str, precision: TrainPrecision, *, recomputed: bool) -> RDVLA:
    """Return a network without content, ready to be trained in this way."""
    with torch.device("meta"):
        model = RDVLA(config)
        add_adapters(model, LoraConfig(targets=targets))
    cast(model, precision)
    if recomputed:
        checkpoint_activations(model)
    return model.train()


def nbytes(model: nn.Module, *, trained: bool) -> int:
    """Return the bytes of the trained weights, or of the frozen ones."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad == trained)


def step(model: RDVLA, precision: TrainPrecision, batch: int, depth: int) -> tuple[int, int]:
    """Take two steps; return the bytes of gradients and moments, and the most that was alive besides the weights."""
    head = model.config.head
    side = model.config.backbone.image_size
    inputs = Inputs(
        torch.zeros(batch, 2, side, side, 3, dtype=torch.uint8),
        torch.zeros(batch, PROMPT, dtype=torch.long),
        torch.zeros(batch, dtype=torch.long),
        torch.zeros(batch, head.state_dim),
    )
    actions = torch.zeros(batch, head.chunk_size, head.action_dim)
    is_pad = torch.zeros(batch, head.chunk_size, dtype=torch.bool)
    latents = torch.zeros(batch, head.chunk_size, head.hidden_dim, dtype=model.head.prelude.action_queries.dtype)
    optimizer = make_optimizer(model, OptimizerConfig(decayed="all"))
    n_grad = min(depth, head.backprop_depth)
    with PeakMemory() as memory:
        for _ in range(2):  # the moments exist from the first on
            optimizer.zero_grad()
            with arithmetic(precision, torch.device("cpu")):
                predicted = model(inputs, latents, n_no_grad=depth - n_grad, n_grad=n_grad)
            masked_l1(predicted.float(), actions, is_pad).backward()
            del predicted
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    kept = [p.grad for p in model.parameters() if p.grad is not None]
    kept += [value for member in optimizer.members for state in member.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept), memory.peak
