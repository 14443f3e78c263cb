"""An rdvla policy as LeRobot sees one: it trains, decides and is saved there.

Everything between an observation and the network, and between the network and an action, is rdvla's `PolicyIO`: the
same numbers as `rdvla.policies.load_policy`. Batches hold float images `[B, 3, H, W]` in 0..1, `observation.state`
`[B, S]`, `action` `[B, K, A]` and sentences under `task`, all in the dataset's or environment's own units.

Shapes: B batch, K chunk size, A action size, S state size.
"""

import weakref
from collections import deque
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_rdvla.configuration_rdvla import RDVLAConfig
from lerobot_policy_rdvla.scratch import new_checkpoint
from lerobot_policy_rdvla.tally import Tally
from rdvla import checkpoints
from rdvla.checkpoints.checkpoint import Checkpoint, require_gripper
from rdvla.checkpoints.lerobot import is_lerobot, load_lerobot, write_parts
from rdvla.data.lerobot_meta import camera_key
from rdvla.errors import CheckpointError, ConfigError, ObservationError
from rdvla.horizons import make_horizon
from rdvla.hub import CHECKPOINT, resolve
from rdvla.model.rdvla import Inputs, absolute_error
from rdvla.policies import network
from rdvla.policies.io import PolicyIO
from rdvla.policy import decision_seed
from rdvla.types import ActionChunk, Observation

ROUNDING = 1e-3
"""How far a picture's floats may lie outside 0..1."""


class RDVLAPolicy(PreTrainedPolicy):
    """A policy that decides how long to think."""

    config_class = RDVLAConfig
    name = "rdvla"

    def __init__(
        self,
        config: RDVLAConfig,
        *,
        checkpoint: Checkpoint | None = None,
        dataset_meta: Any = None,
        **_: Any,
    ) -> None:
        """Build the policy.

        Args:
            config: see `RDVLAConfig`.
            checkpoint: the policy in memory; None takes `config.checkpoint`, else random weights for the dataset.
            dataset_meta: LeRobot's description of the dataset; needed for random weights.

        Raises:
            ConfigError: the features do not fit, or there is nothing to start from.
            CheckpointError: `config.checkpoint` is missing or damaged.
        """
        super().__init__(config)
        config.validate_features()
        if checkpoint is None and config.checkpoint is not None:
            checkpoint = checkpoints.load(config.checkpoint)
        if checkpoint is None:
            checkpoint = new_checkpoint(config, dataset_meta)
        require_gripper(checkpoint, None if config.gripper == "none" else config.gripper)
        self._checkpoint = replace(checkpoint, model=checkpoint.model)
        self.model = checkpoint.model
        self.io = PolicyIO.of(checkpoint, config.statistics)
        self._take_chunk_size(training=dataset_meta is not None)
        self._check_features()
        self._frozen: network.RDVLAPolicy | None = None
        self._episode = -1
        self._tally = Tally()
        weakref.finalize(self, self._tally.tell)  # a robot's last episode ends without a reset
        self.reset()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
        strict: bool = True,
        **kwargs: Any,
    ) -> "RDVLAPolicy":
        """Load a `pretrained_model` folder or hub id; every tensor has to be there and to fit.

        Raises:
            CheckpointError: the folder is incomplete, damaged or of another kind.
            ConfigError: `strict=False`: weights that are silently left out are no policy.
        """
        if not strict:
            raise ConfigError("strict=False is not offered: a policy with weights left out acts at random.")
        options = {
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
            "force_download": force_download,
        }
        folder = resolve(pretrained_name_or_path, CHECKPOINT, revision=revision, download=options)
        if not is_lerobot(folder):
            raise CheckpointError(
                f"'{folder}' is no LeRobot policy of type rdvla; make one of an rdvla checkpoint with `rdvla convert "
                "SOURCE DESTINATION --to lerobot`, or pass --policy.type=rdvla --policy.checkpoint=SOURCE."
            )
        found = PreTrainedConfig.from_pretrained(folder) if config is None else config
        if not isinstance(found, RDVLAConfig):
            raise ConfigError(f"'{folder}' needs a configuration of type rdvla, found {type(found).__name__}.")
        policy = cls(found, checkpoint=load_lerobot(folder), **kwargs)
        policy.to(found.device)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        saved = deepcopy(self.config)
        saved.checkpoint = None  # the weights are here now
        saved._save_pretrained(save_directory)
        model = self.model
        if state_dict is not None:
            model = deepcopy(self.model)
            own = {name.removeprefix("model."): value for name, value in state_dict.items()}
            model.load_state_dict(own, strict=True)
        write_parts(save_directory, replace(self._checkpoint, model=model))

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """Return every weight, in float32."""
        self.model.float()
        return list(self.model.parameters())

    def train(self, mode: bool = True) -> "RDVLAPolicy":
        """Switch between training and deciding; weights frozen for deciding are forgotten."""
        if mode:
            self._frozen = None
        super().train(mode)
        return self

    def reset(self) -> None:
        """Begin an episode; what the last one took goes to the log."""
        self._tally.tell()
        self._episode += 1
        self._rows(0)

    def _rows(self, size: int) -> None:
        """Start afresh with `size` environments."""
        self._queues: list[deque[Tensor]] = [deque() for _ in range(size)]
        self._decisions = [0] * size
        self._carries: list[bytes | None] = [None] * size
        self._steps = [0] * size  # executed, or about to be
        self._horizons = [make_horizon(self.config.horizon or str(self.config.n_action_steps)) for _ in range(size)]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Return the mean absolute error of normalised actions at a random depth, padding left out.

        Args:
            batch: with `action` `[B, K, A]` and `action_is_pad` `[B, K]`.
            reduction: `mean`, or `none` for one loss per sample `[B]`.
        """
        images = {
            camera: np.stack([self.io.image_path.prepare(image) for image in self._images(batch, camera)])
            for camera in self.io.cameras
        }
        state = self.io.state(_numpy(_state(batch)))
        if self.config.state_noise:
            noise = torch.randn(state.shape).numpy() * self.config.state_noise
            state = (state + noise).astype(np.float32)
        device = batch["action"].device
        inputs = self._on(device, self.io.inputs(images, state, _sentences(batch, len(state))))
        target = torch.from_numpy(self.io.targets(_numpy(batch["action"]))).to(device)
        n_no_grad, n_grad = self.model.depth_sampler(None)
        latents = self.model.head.init_latents(len(state), None).to(device)
        predicted = self.model(inputs, latents, n_no_grad=n_no_grad, n_grad=n_grad).float()
        is_pad = batch["action_is_pad"]
        if reduction == "none":
            pairs = [
                absolute_error(*row) for row in zip(predicted[:, None], target[:, None], is_pad[:, None], strict=True)
            ]
            loss = torch.stack([total / count.clamp(min=1) for total, count in pairs])
        else:
            total, count = absolute_error(predicted, target, is_pad)
            loss = total / count.clamp(min=1)
        return loss, {"l1_loss": float(loss.detach().mean()), "depth": float(n_no_grad + n_grad)}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], *, seeds: list[int | None] | None = None, **_: Any) -> Tensor:
        """Return chunks of actions `[B, K, A]` in the environment's convention.

        Args:
            batch: one observation per row.
            seeds: of the scratchpads, one per row; None follows `config.seed`, as `select_action` does.

        Raises:
            ObservationError: a camera is missing, or the state has another size.
        """
        size = len(_state(batch))
        if len(self._queues) != size:
            self._rows(size)
        chunks = self._decide(batch, list(range(size)), seeds=seeds)  # how many are executed is not known here
        self._tally.tell()
        return torch.from_numpy(np.stack([chunk.actions for chunk in chunks])).to(_state(batch).device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return the next action `[B, A]`; rows whose actions are used up decide anew, together."""
        size = len(_state(batch))
        if len(self._queues) != size:
            self._rows(size)
        asking = [row for row, queue in enumerate(self._queues) if not queue]
        if asking:
            chunks = self._decide(_chosen(batch, asking, size), asking, steps=[self._steps[row] for row in asking])
            for row, chunk in zip(asking, chunks, strict=True):
                n_steps = self._horizons[row].steps(chunk.num_recurrences, len(chunk.actions))
                self._queues[row].extend(torch.from_numpy(chunk.actions[:n_steps]))
                self._steps[row] += n_steps
        actions = torch.stack([queue.popleft() for queue in self._queues])
        return actions.to(_state(batch).device)

    def _decide(
        self,
        batch: dict[str, Any],
        rows: list[int],
        *,
        seeds: list[int | None] | None = None,
        steps: list[int] | None = None,
    ) -> list[ActionChunk]:
        """Decide for environments `rows`, of which `batch` holds the observations; `steps` counts since they began."""
        if self.training:
            raise ConfigError("the policy is in training mode; call policy.eval() before it decides.")
        if self._frozen is None:
            own = replace(self._checkpoint, model=deepcopy(self.model))
            device = str(next(self.model.parameters()).device)
            self._frozen = network.RDVLAPolicy(
                own,
                name=self.name,
                statistics=self.config.statistics,
                device=device,
                precision=self.config.precision,
            )
        states = _numpy(_state(batch))
        sentences = _sentences(batch, len(states))
        pictures = {camera: self._images(batch, camera) for camera in self.io.cameras}
        observations = [
            Observation({camera: pictures[camera][row] for camera in pictures}, states[row], sentences[row])
            for row in range(len(states))
        ]
        ask, seeds = self.config.ask(), seeds or [self._seed(row) for row in rows]
        asks = [
            replace(ask, seed=seed, carry=self._carries[row], step=step)
            for row, seed, step in zip(rows, seeds, steps or [None] * len(rows), strict=True)
        ]
        chunks = self._frozen.infer_batch(observations, asks)
        for row, chunk in zip(rows, chunks, strict=True):
            self._decisions[row] += 1
            self._carries[row] = chunk.carry
        self._tally.add(chunks)
        return chunks

    def _images(self, batch: dict[str, Any], camera: str) -> NDArray[np.uint8]:
        """Return a camera's pictures as uint8 `[B, H, W, 3]`."""
        key = self.config.key_of(camera)
        if key not in batch:
            there = ", ".join(name for name in batch if "image" in name) or "none"
            raise ObservationError(
                f"no '{key}' for the policy's camera '{camera}'; the pictures are: {there}. {_naming(camera, key)}"
            )
        pictures = batch[key]
        if pictures.dtype != torch.uint8:
            low, high = (float(bound) for bound in pictures.aminmax())
            if low < -ROUNDING or high > 1 + ROUNDING:
                raise ObservationError(
                    f"'{key}' is of floats from {low:.3g} to {high:.3g}; a picture is uint8, or floats from 0 to 1 "
                    "(leave normalisation to the policy)."
                )
            pictures = (pictures.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy())

    def _seed(self, row: int) -> int | None:
        if self.config.seed is None:
            return None
        entropy = np.random.SeedSequence([self.config.seed, self._episode, row])
        return decision_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1), self._decisions[row])

    def _on(self, device: torch.device, inputs: Inputs) -> Inputs:
        return Inputs(*(tensor.to(device) for tensor in (inputs.images, inputs.ids, inputs.lengths, inputs.state)))

    def _take_chunk_size(self, *, training: bool) -> None:
        """Take over how many actions the network decides; LeRobot has already cut the samples of a training to size."""
        size, given = self.model.config.head.chunk_size, self.config.chunk_size
        if training and size != given:
            raise ConfigError(
                f"the policy decides {size} actions at once, policy.chunk_size = {given} cuts samples of {given}; pass "
                f"--policy.chunk_size={size}."
            )
        self.config.chunk_size = size

    def _check_features(self) -> None:
        inputs, outputs = self.config.input_features or {}, self.config.output_features or {}
        head = self.model.config.head
        for camera in self.io.cameras:
            if self.config.key_of(camera) not in inputs:
                raise ConfigError(
                    f"the policy's camera '{camera}' is '{self.config.key_of(camera)}', which is not among the "
                    f"features {', '.join(inputs)}. {_naming(camera, camera_key(camera))}"
                )
        for key, features, size in (
            ("observation.state", inputs, head.state_dim),
            ("action", outputs, head.action_dim),
        ):
            if key in features and tuple(features[key].shape) != (size,):
                raise ConfigError(f"the policy's {key} has {size} entries, the features say {features[key].shape}.")


def _naming(camera: str, key: str) -> str:
    """Return how a camera of another name is found, which depends on where the policy comes from."""
    return (
        f'A policy from --policy.path finds it with --rename_map=\'{{"KEY": "{key}"}}\', one from --policy.type with '
        f'--policy.cameras=\'{{"{camera}": "KEY"}}\'.'
    )


def _numpy(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.detach().float().cpu().numpy()
    return array


def _state(batch: dict[str, Any]) -> Tensor:
    if "observation.state" not in batch:
        there = ", ".join(name for name in batch if name.startswith("observation.")) or "nothing"
        raise ObservationError(f"no 'observation.state', which the policy sees; there is: {there}. Use --rename_map.")
    state: Tensor = batch["observation.state"]
    return state


def _sentences(batch: dict[str, Any], size: int) -> list[str]:
    task = batch.get("task")
    sentences = [task] * size if isinstance(task, str) else list(task or ())
    if len(sentences) != size or not all(isinstance(text, str) and text.strip() for text in sentences):
        raise ObservationError(f"the batch needs a sentence under 'task' for each of its {size} rows, found {task!r}.")
    return sentences


def _chosen(batch: dict[str, Any], rows: list[int], size: int) -> dict[str, Any]:
    if len(rows) == size:
        return batch
    chosen = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor) and value.ndim}
    task = batch.get("task")
    return {**chosen, "task": task if isinstance(task, str) else [list(task or ())[row] for row in rows]}
