"""What changes while training: trained weights, optimiser, averaged weights, the running mean of the loss."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.tensors import build_empty
from rdvla.errors import CheckpointError
from rdvla.train.batches import TrainBatch
from rdvla.train.captured import CapturedGradient
from rdvla.train.config import TrainConfig
from rdvla.train.distributed import Ranks
from rdvla.train.keyframe import PROBE, KeyframeGradient, KeyframeProbe, keyframe_loss
from rdvla.train.lora import merged_weights
from rdvla.train.optim import make_optimizer, rate_factor
from rdvla.train.precision import saved_dtype
from rdvla.train.sharding import gathered, shard, spread
from rdvla.train.step import Average, Compute, Gradient, step_generator, train_step, trained, validation_losses

_MEAN_DECAY, _MEAN_STEPS = 0.98, 50


class Learner:
    """A policy in training. On equal states, equal batches make equal states.

    Attributes:
        model: the network.
        sharded: its weights are spread over the processes, so that all of them have to call every method.
    """

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint, *, ranks: Ranks, compute: Compute) -> None:
        """Train `checkpoint.model` in place.

        Args:
            config: the run.
            checkpoint: the policy at step 0, from `rdvla.train.start`.
            ranks: the processes that share every step.
            compute: where and how to compute.

        Raises:
            ConfigError: the steps are to be captured, and it is no GPU.
        """
        self._config, self._checkpoint, self._ranks, self._compute = config, checkpoint, ranks, compute
        self.sharded = config.sharded and ranks.count > 1
        if self.sharded:
            with ranks.together():
                shard(checkpoint.model, compute.device)
        self._probe: KeyframeProbe | None = None
        if config.keyframe is not None:
            self._probe = KeyframeProbe(config.keyframe, checkpoint.model.config, seed=config.seed)
            checkpoint.model.add_module(PROBE, self._probe)
        self.model = checkpoint.model.to(compute.device).train()
        self._gradient = self._choose_gradient()
        self._optimizer = make_optimizer(self.model, config.optimizer)
        self._average = Average(self.model, config.ema_decay)
        self._mean_loss, self._losses = 0.0, 0

    def step(self, number: int, batches: Sequence[TrainBatch]) -> dict[str, float]:
        """Take the `number`-th step (from 0); returns the numbers of `train_step` and the learning rate.

        Raises:
            TrainingError: the loss is not finite, or exploded.
            PeerError: another process has ended, or hangs.
        """
        optimizer = self._config.optimizer
        factor = rate_factor(optimizer, number, self._config.max_steps)
        self._optimizer.set_rates(factor)
        with self._collective():
            numbers = train_step(
                self.model,
                self._optimizer,
                batches,
                ranks=self._ranks,
                generator=step_generator(self._config.seed, number),
                clip_grad_norm=optimizer.clip_grad_norm,
                compute=self._compute,
                gradient=self._gradient,
                highest_loss=self._highest_loss,
            )
        self._average.update(self.model)
        decay = min(_MEAN_DECAY, self._losses / (self._losses + 1))
        self._mean_loss = decay * self._mean_loss + (1 - decay) * numbers["loss"]
        self._losses += 1
        return numbers | {"learning_rate": optimizer.learning_rate * factor}

    def _choose_gradient(self) -> Gradient:
        config = self._config
        if self._probe is None:
            return (CapturedGradient if config.captured else Gradient)(self.model, self._compute)
        samples = config.batch_size * config.grad_accumulation_steps * self._ranks.count
        return KeyframeGradient(self.model, self._compute, self._probe, samples=samples)

    @property
    def _highest_loss(self) -> float:
        return self._config.max_loss_ratio * self._mean_loss if self._losses >= _MEAN_STEPS else math.inf

    def validate(self, batches: Iterable[TrainBatch], far: Iterable[TrainBatch]) -> dict[str, float]:
        """Return the averaged weights' validation loss per depth, and that of the second task if there is one.

        Args:
            batches: held-out samples.
            far: those for the second task, at least one of them far from its keyframe.
        """
        config = self._config
        losses: dict[int, float] = {}
        numbers: dict[str, float] = {}
        self.model.eval()
        with self._collective(), self._average.used_by(self.model):
            if self._probe is not None:
                numbers["validation_keyframe_l1"] = keyframe_loss(self.model, self._probe, far, self._compute)
            if config.keyframe is None or not config.keyframe.alone:
                losses = validation_losses(
                    self.model, batches, config.validation_depths, seed=config.seed, compute=self._compute
                )
        self.model.train()
        return {f"validation_l1/depth_{depth}": loss for depth, loss in losses.items()} | numbers

    def policy(self, step: int) -> Checkpoint:
        """Return a copy for use: averaged weights, adapters merged, on the CPU, in the dtype of saved policies."""
        dtype = saved_dtype(self._compute.precision)
        with self._collective(), self._average.used_by(self.model):
            weights = {
                name: weight.to("cpu", dtype, copy=True)
                for name, weight in merged_weights(self.model)
                if not name.startswith(PROBE)
            }
        model = build_empty(self.model.config)
        model.load_state_dict(weights, strict=True, assign=True)
        return replace(self._checkpoint, model=model.eval(), step=step)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs: everything that training changes. Frozen weights are not in it."""
        with self._collective():
            whole = {
                "trained": gathered({name: parameter.detach() for name, parameter in trained(self.model).items()}),
                "optimizer": self._optimizer.state_dict(),
                "average": gathered(self._average.weights),
            }
        return {
            **whole,
            "updates": self._average.updates,
            "mean_loss": self._mean_loss,
            "losses": self._losses,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: it belongs to another network.
        """
        own = trained(self.model)
        if state["trained"].keys() != own.keys():
            raise CheckpointError("the saved state has other trained weights than this run; choose another output.")
        with self._collective(), torch.no_grad():
            for name, tensor in state["trained"].items():
                own[name].copy_(spread(tensor, own[name]))
            self._optimizer.load_state_dict(state["optimizer"])
            for name, weight in state["average"].items():
                self._average.weights[name].copy_(spread(weight, own[name]))
        self._average.updates = state["updates"]
        self._mean_loss, self._losses = state["mean_loss"], state["losses"]

    def _collective(self) -> AbstractContextManager[None]:
        """Return what encloses computations with weights: where they are spread, any of them needs all processes."""
        return self._ranks.together() if self.sharded else nullcontext()
