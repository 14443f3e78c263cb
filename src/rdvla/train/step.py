"""One optimiser step, and the losses that judge it. A step is a function of the weights, its batches and its number."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rdvla.errors import TrainingError
from rdvla.model.rdvla import RDVLA, masked_l1
from rdvla.train.batches import TrainBatch


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step's depth and scratchpads."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train_step(
    model: RDVLA,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[TrainBatch],
    *,
    generator: torch.Generator,
    clip_grad_norm: float,
) -> dict[str, float]:
    """Take one step over the micro-batches `batches`; all of them use the same random depth.

    Returns:
        `loss` (mean over the micro-batches), `grad_norm` (before clipping), `depth`.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the episodes and frames.
    """
    n_no_grad, n_grad = model.depth_sampler(generator)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        predicted = model(batch.inputs, n_no_grad=n_no_grad, n_grad=n_grad, generator=generator)
        loss = masked_l1(predicted, batch.actions, batch.action_is_pad) / len(batches)
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm).item()
    if not (total < float("inf") and norm < float("inf")):
        where = [
            f"episode {episode} frame {frame}"
            for batch in batches
            for episode, frame in zip(batch.episode_index, batch.frame_index, strict=True)
        ]
        raise TrainingError(f"loss {total}, gradient norm {norm}; the batch was: {', '.join(where)}.")
    optimizer.step()
    return {"loss": total, "grad_norm": norm, "depth": float(n_no_grad + n_grad)}


@torch.no_grad()
def validation_losses(
    model: RDVLA, batches: Iterable[TrainBatch], depths: Sequence[int], *, seed: int
) -> dict[int, float]:
    """Return the mean masked L1 of normalised actions at each of the ascending `depths`; one recurrence serves all."""
    sums = dict.fromkeys(depths, 0.0)
    count = 0
    head = model.head
    for index, batch in enumerate(batches):
        conditioning = head.condition(model.encode(batch.inputs))
        latents = head.init_latents(len(batch.actions), step_generator(seed, index))
        for depth in range(1, depths[-1] + 1):
            latents = head.core(latents, conditioning)
            if depth in sums:
                loss = masked_l1(head.coda(latents, conditioning), batch.actions, batch.action_is_pad)
                sums[depth] += loss.item() * len(batch.actions)
        count += len(batch.actions)
    return {depth: value / count for depth, value in sums.items()}


class Average:
    """Exponential moving average of a model's weights, with a short memory at the start.

    The decay of update t is min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's weights."""
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)
