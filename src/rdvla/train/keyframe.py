"""The second task: where the robot will be at the next keyframe, told from the latent tokens.

A loss of actions asks little for where things are: far from them an action says the direction only, near them the
robot's state says the rest, and a small policy learns to go to where things lie on average. This asks for nothing else.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rdvla.model.config import RDVLAConfig
from rdvla.model.rdvla import RDVLA, absolute_error
from rdvla.model.recurrent import Context
from rdvla.train.batches import TrainBatch
from rdvla.train.config import KeyframeConfig
from rdvla.train.precision import arithmetic
from rdvla.train.step import Compute, Gradient

PROBE = "keyframe_probe"
"""The probe's name among the network's parts while it is trained."""


class KeyframeProbe(nn.Module):
    """A linear layer on the mean of the deepest latent tokens that the head attends to."""

    def __init__(self, config: KeyframeConfig, network: RDVLAConfig, *, seed: int) -> None:
        """Build the layer for `network`; its random weights depend on `seed` alone."""
        super().__init__()
        self.config = config
        self.entries = list(range(network.head.state_dim)) if config.entries is None else list(config.entries)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.output_proj = nn.Linear(network.backbone.width, len(self.entries))

    def forward(self, contexts: Mapping[int, Context]) -> Tensor:
        """Return the normalised state at the keyframe, float32 `[B, entries]`."""
        latents_BQD = contexts[max(contexts)].latents[:, :-1]  # the last is the state
        predicted_BE: Tensor = self.output_proj(latents_BQD.mean(dim=1).to(self.output_proj.weight.dtype))
        return predicted_BE.float()

    def error(self, contexts: Mapping[int, Context], batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return the sum over far samples of their mean absolute error, and how many samples that sums.

        Raises:
            ValueError: the batch has no keyframes.
        """
        if batch.keyframe is None:
            raise ValueError("the batch has no keyframes.")
        errors_B = (self(contexts) - batch.keyframe.state[:, self.entries]).abs().mean(dim=1)
        return (errors_B * batch.keyframe.is_far).sum(), batch.keyframe.is_far.sum()


class KeyframeGradient(Gradient):
    """Adds the gradient of the second task's loss to that of the actions', or computes it alone."""

    def __init__(self, model: RDVLA, compute: Compute, probe: KeyframeProbe, *, samples: int) -> None:
        """Work on `model` and `probe`; a step has so many `samples`, of all processes."""
        super().__init__(model, compute)
        self._probe, self._samples = probe, samples

    def add(self, batch: TrainBatch, latents_BKD: Tensor, scale: float, *, n_no_grad: int, n_grad: int) -> Tensor:
        """See `Gradient.add`; what is returned is the actions' error, or the second task's where it is alone."""
        config = self._probe.config
        with arithmetic(self._compute.precision, self._compute.device):
            contexts = self._model.encode(batch.inputs)
            where = self._probe.error(contexts, batch)[0] / self._samples
            if config.alone:
                where.backward()
                return where.detach()
            predicted = self._model.head(contexts, latents_BKD, n_no_grad=n_no_grad, n_grad=n_grad).float()
        error = absolute_error(predicted, batch.actions, batch.action_is_pad)[0] * scale
        (error + config.weight * where).backward()
        return error.detach()


@torch.no_grad()
def keyframe_loss(model: RDVLA, probe: KeyframeProbe, batches: Iterable[TrainBatch], compute: Compute) -> float:
    """Return the mean absolute error of the normalised state at the keyframe, over far samples, at least one."""
    total, count = 0.0, 0
    for batch in batches:
        batch = batch.to(compute.device)
        with arithmetic(compute.precision, compute.device):
            error, far = probe.error(model.encode(batch.inputs), batch)
        total, count = total + error.item(), count + int(far)
    return total / count
