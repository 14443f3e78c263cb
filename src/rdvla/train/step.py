"""One optimiser step, and the losses that judge it. A step is a function of the weights, its batches and its number."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rdvla.checkpoints.names import stored
from rdvla.errors import TrainingError
from rdvla.model.rdvla import RDVLA, absolute_error, masked_l1
from rdvla.train.batches import TrainBatch
from rdvla.train.config import TrainPrecision
from rdvla.train.distributed import Ranks
from rdvla.train.optim import Optimizers
from rdvla.train.precision import arithmetic
from rdvla.train.sharding import gathered, together


@dataclass(frozen=True)
class Compute:
    """Where and how a network is computed.

    Attributes:
        device: of the weights; batches are brought there.
        precision: see `TrainConfig`.
    """

    device: torch.device
    precision: TrainPrecision = "float32"

    def predict(self, model: RDVLA, batch: TrainBatch, latents_BKD: Tensor, *, n_no_grad: int, n_grad: int) -> Tensor:
        """Return normalised actions `[B, K, A]`, float32, after `n_no_grad + n_grad` iterations."""
        with arithmetic(self.precision, self.device):
            predicted: Tensor = model(batch.inputs, latents_BKD, n_no_grad=n_no_grad, n_grad=n_grad)
        return predicted.float()


CPU = Compute(torch.device("cpu"))


class Gradient:
    """Adds batches' gradients to a network's parameters."""

    def __init__(self, model: RDVLA, compute: Compute) -> None:
        """Work on `model`."""
        self._model, self._compute = model, compute

    def add(self, batch: TrainBatch, latents_BKD: Tensor, scale: float, *, n_no_grad: int, n_grad: int) -> Tensor:
        """Add the gradient of `scale` times the summed absolute error to every `grad`.

        Args:
            batch: on the device.
            latents_BKD: the scratchpads to begin from.
            scale: one over what the error is a mean of.
            n_no_grad: iterations without gradient.
            n_grad: iterations with gradient.

        Returns:
            That error times `scale`, a scalar on the device; valid until the next call.
        """
        predicted = self._compute.predict(self._model, batch, latents_BKD, n_no_grad=n_no_grad, n_grad=n_grad)
        error = absolute_error(predicted, batch.actions, batch.action_is_pad)[0] * scale
        error.backward()
        return error.detach()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step's depth and scratchpads."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train_step(
    model: RDVLA,
    optimizer: Optimizers,
    batches: Sequence[TrainBatch],
    *,
    ranks: Ranks,
    generator: torch.Generator,
    clip_grad_norm: float,
    compute: Compute = CPU,
    gradient: Gradient | None = None,
    highest_loss: float = math.inf,
) -> dict[str, float]:
    """Take one step over the micro-batches of all ranks: the same step as one rank would take over all of them.

    All use one random depth. The scratchpads are drawn for the whole step, and each micro-batch takes its rows.

    Args:
        model: the network, with equal weights on every rank.
        optimizer: holds the model's parameters.
        batches: this rank's micro-batches, of one size.
        ranks: the processes that share the step.
        generator: in the same state on every rank.
        clip_grad_norm: largest global norm of the gradient.
        compute: where and how to compute.
        gradient: computes the gradients; None computes them operation by operation.
        highest_loss: a larger loss stops training before the step is taken.

    Returns:
        `loss` (mean absolute error over every action of the step, or what else `gradient` returns), `grad_norm` (before
        clipping), `depth`.

    Raises:
        TrainingError: the loss or the gradient is not finite, or the loss too large; names this rank's episodes and
            frames.
    """
    n_no_grad, n_grad = model.depth_sampler(generator)
    size = len(batches[0].actions)
    latents = model.head.init_latents(size * len(batches) * ranks.count, generator).split(size)
    valid = sum(int((~batch.action_is_pad).sum()) for batch in batches) * batches[0].actions.shape[-1]
    count = max(ranks.total(float(valid)), 1.0)
    optimizer.zero_grad()
    gradient = gradient or Gradient(model, compute)
    error = 0.0
    for index, batch in enumerate(batches):
        batch = batch.to(compute.device)
        start = latents[index * ranks.count + ranks.index]
        error += gradient.add(batch, start, 1 / count, n_no_grad=n_no_grad, n_grad=n_grad).item()
    ranks.sum_gradients(model)
    error = ranks.total(error)
    norm = gathered(nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)).item()
    if not (math.isfinite(error) and math.isfinite(norm)) or error > highest_loss:
        where = [
            f"episode {episode} frame {frame}"
            for batch in batches
            for episode, frame in zip(batch.episode_index, batch.frame_index, strict=True)
        ]
        limit = f" (the running mean allows {highest_loss:.4g})" if error > highest_loss else ""
        raise TrainingError(
            f"loss {error:.4g}{limit}, gradient norm {norm:.4g}; no step was taken. The batch was: {', '.join(where)}."
        )
    optimizer.step()
    return {"loss": error, "grad_norm": norm, "depth": float(n_no_grad + n_grad)}


@torch.no_grad()
def validation_losses(
    model: RDVLA,
    batches: Iterable[TrainBatch],
    depths: Sequence[int],
    *,
    seed: int,
    compute: Compute = CPU,
) -> dict[int, float]:
    """Return the mean masked L1 of normalised actions at each of the ascending `depths`; one recurrence serves all."""
    sums = dict.fromkeys(depths, 0.0)
    count = 0
    head = model.head
    for index, batch in enumerate(batches):
        batch = batch.to(compute.device)
        with arithmetic(compute.precision, compute.device), together(model):
            conditioning = head.condition(model.encode(batch.inputs))
            latents = head.init_latents(len(batch.actions), step_generator(seed, index))
            for depth in range(1, depths[-1] + 1):
                latents = head.core(latents, conditioning)
                if depth in sums:
                    predicted = head.coda(latents, conditioning).float()
                    loss = masked_l1(predicted, batch.actions, batch.action_is_pad)
                    sums[depth] += loss.item() * len(batch.actions)
        count += len(batch.actions)
    return {depth: value / count for depth, value in sums.items()}


class Average:
    """Exponential moving average of a model's trained weights, with a short memory at the start.

    The decay of update t is min(decay, (1 + t) / (10 + t)); a decay of 0 averages nothing and keeps no copy. Averages
    are float32 whatever the weights are: what one update moves them by would be rounded away in bfloat16.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's weights."""
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {}
        if decay:
            self.weights = {name: value.detach().float().clone() for name, value in trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        own = trained(model)
        if self.weights:
            torch._foreach_lerp_(list(self.weights.values()), [own[name].float() for name in self.weights], 1 - decay)

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """Lend the averaged weights to the model."""
        kept = {name: value.detach().clone() for name, value in trained(model).items() if name in self.weights}
        _put(self.weights, model)
        try:
            yield
        finally:
            _put(kept, model)


@torch.no_grad()
def _put(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    own = trained(model)
    for name, weight in weights.items():
        own[name].copy_(weight)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by their names in files."""
    return {stored(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
