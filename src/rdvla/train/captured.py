"""The gradient of a step captured as CUDA graphs: the host says "again" instead of launching thousands of kernels.

A small network's step is bound by its launches: an iteration is some sixty kernels, most of them shorter than their
launch. Depth differs from step to step, so a step is three graphs that share their memory: encode and condition, one
iteration without gradient (replayed as often as the depth asks), and the iterations with gradient, the Coda, the loss
and the backward pass through all of it.
"""

from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdvla.errors import ConfigError
from rdvla.model.rdvla import RDVLA, Inputs, absolute_error
from rdvla.model.recorded import PROMPT_MULTIPLE, warm_up
from rdvla.model.recurrent import Conditioning
from rdvla.train.batches import TrainBatch
from rdvla.train.precision import arithmetic
from rdvla.train.step import Compute, Gradient


class CapturedGradient(Gradient):
    """Adds a batch's gradient by replaying CUDA graphs, captured when the first batch of a shape comes.

    Steps shallower than the depth of backpropagation (every fifth at a mean of 12) have graphs of their own.
    """

    def __init__(self, model: RDVLA, compute: Compute) -> None:
        """Work on `model`, whose weights stay where they are; the activations of a batch stay reserved.

        Raises:
            ConfigError: the device is no GPU.
        """
        if compute.device.type != "cuda":
            raise ConfigError(
                f"captured: only a GPU captures steps, and device is '{compute.device}'; set it to false."
            )
        super().__init__(model, compute)
        self._pool = torch.cuda.graph_pool_handle()
        self._captures: dict[tuple[int, ...], _Capture] = {}

    def add(self, batch: TrainBatch, latents_BKD: Tensor, scale: float, *, n_no_grad: int, n_grad: int) -> Tensor:
        """See `Gradient.add`."""
        batch = _padded(batch)
        form = (*batch.inputs.ids.shape, n_grad)
        if form not in self._captures:
            self._captures[form] = _Capture(self._model, self._compute, batch, latents_BKD, n_grad, self._pool)
        capture = self._captures[form]
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in capture.parameters]
        error = capture.replay(batch, latents_BKD, scale, n_no_grad)
        for parameter, earlier, gradient in zip(capture.parameters, before, capture.gradients, strict=True):
            parameter.grad = gradient if earlier is None else earlier if gradient is None else earlier + gradient
        return error


class _Capture:
    """The graphs of one shape, and the places that they read and write.

    Attributes:
        parameters: of the model, those that are trained.
        gradients: where the graphs leave each one's gradient; None where the error does not depend on it.
    """

    def __init__(
        self,
        model: RDVLA,
        compute: Compute,
        like: TrainBatch,
        latents_BKD: Tensor,
        n_grad: int,
        pool: Any,
    ) -> None:
        """Capture the step of `model` for batches like `like`; graphs of one `pool` never run at once."""
        head, device = model.head, compute.device
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        inputs = {entry.name: getattr(like.inputs, entry.name).clone() for entry in fields(Inputs)}
        self._batch = replace(
            like,
            inputs=Inputs(**inputs),
            actions=like.actions.clone(),
            action_is_pad=like.action_is_pad.clone(),
        )
        self._latents_BKD = latents_BKD.to(device, copy=True)
        self._scale = torch.ones((), device=device)

        def encode() -> Conditioning:
            with arithmetic(compute.precision, device):
                return head.condition(model.encode(self._batch.inputs))

        def iterate(conditioning: Conditioning) -> None:
            with torch.no_grad(), arithmetic(compute.precision, device):
                self._latents_BKD.copy_(head.core(self._latents_BKD, conditioning))

        def finish(conditioning: Conditioning) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            latents_BKD = self._latents_BKD
            with arithmetic(compute.precision, device):
                for _ in range(n_grad):
                    latents_BKD = head.core(latents_BKD, conditioning)
                predicted_BKA = head.coda(latents_BKD, conditioning).float()
            error = absolute_error(predicted_BKA, self._batch.actions, self._batch.action_is_pad)[0] * self._scale
            gradients = torch.autograd.grad(error, self.parameters, allow_unused=True)
            return error.detach(), tuple(map(_laid_out_as, self.parameters, gradients))

        def once() -> None:
            conditioning = encode()
            iterate(conditioning)
            finish(conditioning)

        with torch.cuda.device(device):
            warm_up(once)
            self._encode, self._iterate, self._finish = (torch.cuda.CUDAGraph() for _ in range(3))
            with torch.cuda.graph(self._encode, pool=pool):
                conditioning = encode()
            with torch.cuda.graph(self._iterate, pool=pool):
                iterate(conditioning)
            with torch.cuda.graph(self._finish, pool=pool):
                self._error, self.gradients = finish(conditioning)

    def replay(self, batch: TrainBatch, latents_BKD: Tensor, scale: float, n_no_grad: int) -> Tensor:
        """Compute `gradients` for `batch`; return the error."""
        for entry in fields(Inputs):
            getattr(self._batch.inputs, entry.name).copy_(getattr(batch.inputs, entry.name))
        self._batch.actions.copy_(batch.actions)
        self._batch.action_is_pad.copy_(batch.action_is_pad)
        self._latents_BKD.copy_(latents_BKD)
        self._scale.fill_(scale)
        self._encode.replay()
        for _ in range(n_no_grad):
            self._iterate.replay()
        self._finish.replay()
        return self._error


def _laid_out_as(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return the gradient in its parameter's layout, which a fused optimiser wants; convolutions have their own."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _padded(batch: TrainBatch) -> TrainBatch:
    """Pad the prompts, so that shapes are few; nothing before the padding changes."""
    ids = batch.inputs.ids
    return replace(batch, inputs=replace(batch.inputs, ids=F.pad(ids, (0, -ids.shape[1] % PROMPT_MULTIPLE))))
