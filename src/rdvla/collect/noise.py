"""Small recoverable noise: the noisy action is executed, the clean one is the label."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.base import Suite
from rdvla.errors import ConfigError
from rdvla.experts.base import Expert


class Demonstrated(NamedTuple):
    """One step of a demonstration.

    Attributes:
        clean: float32 `[action_dim]`, what the expert wants: the label to record.
        executed: float32 `[action_dim]`, what goes to the environment.
    """

    clean: NDArray[np.float32]
    executed: NDArray[np.float32]


@dataclass(frozen=True)
class NoiseConfig:
    """An Ornstein-Uhlenbeck process on every action but the gripper, and a push at the start.

    Attributes:
        sigma: stationary standard deviation of the translation noise, in units of action; 0 turns noise off.
        rotation_sigma: the same for the rotation.
        correlation: how much of the noise remains after one step, in [0, 1).
        precise_scale: factor while the expert needs accuracy.
        max_push_steps: the push lasts a random number of steps from 0 to this.
        push: length of the push in units of action.

    Raises:
        ConfigError: a value out of range.
    """

    sigma: float = 0.25
    rotation_sigma: float = 0.05
    correlation: float = 0.85
    precise_scale: float = 0.5
    max_push_steps: int = 6
    push: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.correlation < 1:
            raise ConfigError(f"noise.correlation must be in [0, 1), found {self.correlation!r}.")
        for name in ("sigma", "rotation_sigma", "precise_scale", "max_push_steps", "push"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"noise.{name} must be at least 0, found {getattr(self, name)!r}.")


class NoisyExpert:
    """Wraps an expert and disturbs what it does, reproducibly."""

    def __init__(self, expert: Expert, config: NoiseConfig | None = None) -> None:
        """Disturb `expert` as `config` (default: the recipe for demonstrations) says."""
        self.expert = expert
        self.config = config or NoiseConfig()
        self._rng = np.random.default_rng(0)
        self._noise: NDArray[np.float64] | None = None
        self._push: NDArray[np.float64] | None = None
        self._push_steps = 0

    def prepare(self, suite: Suite) -> None:
        """Nothing: whoever makes the expert has asked whether there is one."""

    def reset(self, env: Any, *, seed: int) -> None:
        """Start an episode whose noise is drawn from `seed`."""
        self._rng = np.random.default_rng(seed)
        self._noise = self._push = None
        self._push_steps = int(self._rng.integers(0, self.config.max_push_steps + 1))
        self.expert.reset(env)

    def act(self, env: Any) -> Demonstrated:
        """Return the expert's action for the state as it is, clean and disturbed; the gripper is not disturbed."""
        clean = self.expert.act(env)
        disturbance = self._next(len(clean) - 1) * (self.config.precise_scale if self.expert.precise else 1.0)
        if self._push_steps > 0 and self._push is not None:
            self._push_steps -= 1
            disturbance = disturbance + self._push
        executed = clean.copy()
        executed[:-1] = np.clip(clean[:-1] + disturbance, -1.0, 1.0)
        return Demonstrated(clean, executed)

    def _next(self, size: int) -> NDArray[np.float64]:
        sigma = np.full(size, self.config.rotation_sigma)
        sigma[:3] = self.config.sigma
        if self._noise is None or self._push is None:
            self._noise = sigma * self._rng.standard_normal(size)
            direction = self._rng.standard_normal(min(3, size))
            self._push = np.zeros(size)
            self._push[: len(direction)] = self.config.push * direction / np.linalg.norm(direction)
            return self._noise
        kept = self.config.correlation
        self._noise = kept * self._noise + np.sqrt(1 - kept**2) * sigma * self._rng.standard_normal(size)
        return self._noise
