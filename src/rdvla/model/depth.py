"""How deep to think while training: the log-normal Poisson distribution of the paper."""

import math

import torch

MAX_TRAINING_DEPTH = 64
MAX_POISSON_RATE = 100.0
SIGMA = 0.5


class DepthSampler:
    """Draws (iterations without gradient, iterations with gradient).

    N = min(Poisson(lambda) + 1, 64) with lambda = min(exp(tau), 100) and tau ~ Normal(ln(mean) - sigma^2 / 2, sigma),
    sigma = 0.5 (RD-VLA, arXiv 2602.07845); the last `backprop_depth` of the N iterations carry gradient.
    """

    def __init__(self, mean_recurrence: int, backprop_depth: int, *, random: bool = True) -> None:
        """Draw around `mean_recurrence`; with `random=False` the depth is always `mean_recurrence`."""
        self.mean_recurrence = mean_recurrence
        self.backprop_depth = backprop_depth
        self.random = random

    def sample(self, generator: torch.Generator | None = None) -> int:
        """Draw N in 1..64 from the CPU `generator` (None: torch's global one)."""
        tau = torch.normal(math.log(self.mean_recurrence) - SIGMA**2 / 2, SIGMA, size=(1,), generator=generator)
        rate = torch.exp(tau).clamp(max=MAX_POISSON_RATE)
        return int((torch.poisson(rate, generator=generator) + 1).clamp(1, MAX_TRAINING_DEPTH).item())

    def __call__(self, generator: torch.Generator | None = None) -> tuple[int, int]:
        """Return `(n_no_grad, n_grad)` with n_grad = min(N, backprop_depth)."""
        depth = self.sample(generator) if self.random else self.mean_recurrence
        n_grad = min(depth, self.backprop_depth)
        return depth - n_grad, n_grad
