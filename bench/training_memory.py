"""Memory of a training step of the released size: `python bench/training_memory.py [--batch 16] [--depth 12]`.

A whole step (forward, backward, clipping, AdamW) runs on tensors without content, and the bytes of all tensors that are
alive at once are counted operator by operator. So it needs neither a GPU nor the memory; what a GPU's kernels keep for
themselves (workspaces, rounding up of blocks) comes on top.
"""

import argparse

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rdvla.bench.machine import PeakMemory
from rdvla.model.config import rdvla_0_5b
from rdvla.model.rdvla import RDVLA, Inputs, masked_l1
from rdvla.train.config import LoraConfig, OptimizerConfig, Precision
from rdvla.train.lora import add_adapters
from rdvla.train.optim import make_optimizer
from rdvla.train.precision import arithmetic, cast, checkpoint_activations

WAYS: list[tuple[str, Precision, bool]] = [
    ("trained", "mixed", False),
    ("all_linear", "mixed", False),
    ("trained", "bfloat16", False),
    ("all_linear", "bfloat16", False),
    ("trained", "mixed", True),
    ("trained", "bfloat16", True),
]
PROMPT = 40


def network(targets: str, precision: Precision, *, recomputed: bool) -> RDVLA:
    with torch.device("meta"):
        model = RDVLA(rdvla_0_5b())
        add_adapters(model, LoraConfig(targets=targets))
    cast(model, precision)
    if recomputed:
        checkpoint_activations(model)
    return model.train()


def nbytes(model: nn.Module, *, trained: bool) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad == trained)


def step(model: RDVLA, precision: Precision, batch: int, depth: int) -> tuple[int, int]:
    """Take two steps; return the bytes of gradients and moments, and the most that was alive besides the weights."""
    head = model.config.head
    side = model.config.vision.image_size
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--depth", type=int, default=12)
    options = parser.parse_args()
    print(f"batch {options.batch}, depth {options.depth}; 10^9 bytes\n")
    print("| adapters | precision | activations | frozen | trained | gradients, moments | most in a step |")
    print("|---|---|---|---|---|---|---|")
    for targets, precision, recomputed in WAYS:
        model = network(targets, precision, recomputed=recomputed)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            frozen, trained = nbytes(model, trained=False), nbytes(model, trained=True)
            kept, peak = step(model, precision, options.batch, options.depth)
        numbers = " | ".join(f"{value / 1e9:.2f}" for value in (frozen, trained, kept, frozen + trained + peak))
        print(f"| {targets} | {precision} | {'computed again' if recomputed else 'kept'} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
