"""Demonstrations from where a policy gets to: it acts first, then the expert takes over (DAgger, arXiv 1011.0686)."""

from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from rdvla.collect.recording import AlreadySolvedError, Demonstrator
from rdvla.envs.base import Suite
from rdvla.envs.episode import turns
from rdvla.envs.fit import require_fit
from rdvla.execution import Executor, Synchronous
from rdvla.policy import Policy

REPLAN_STEPS = 4  # control steps between the policy's decisions
MAX_POLICY_STEPS = 120


class Takeover:
    """A demonstrator that begins in the states a policy visits, its mistakes included; what led there is not recorded.

    Attributes:
        max_policy_steps: the policy acts for a random number of control steps from 0 to this, all stages together.
    """

    def __init__(
        self, demonstrator: Demonstrator, make_policy: Callable[[], Policy], max_policy_steps: int = MAX_POLICY_STEPS
    ) -> None:
        """Let the policy that `make_policy` builds (in `prepare`, once per process) act before."""
        self.max_policy_steps = max_policy_steps
        self._demonstrator = demonstrator
        self._make_policy = make_policy
        self._executor: Executor | None = None

    def prepare(self, suite: Suite) -> None:
        """Build the policy, which must fit `suite`.

        Raises:
            ConfigError: it does not.
        """
        policy = _build(self._make_policy)
        require_fit(policy.metadata, suite)
        self._executor = Executor(policy, Synchronous(REPLAN_STEPS))
        self._demonstrator.prepare(suite)

    def reset(self, env: Any, *, seed: int) -> None:
        """Let the policy act in `env`, then start the demonstrator in the stage that is reached.

        Everything random comes from `seed`.

        Raises:
            AlreadySolvedError: the policy solved every stage by itself.
        """
        assert self._executor is not None, "prepare comes first"
        self._executor.reset(seed)
        steps = np.random.default_rng([seed, 1]).integers(0, self.max_policy_steps + 1)
        for turn in islice(turns(env), int(steps)):
            if turn.first and turn.step:
                self._executor.next_stage()
            if turn.execute(self._executor.act(env.observe)) and turn.stages_solved == len(env.stages):
                raise AlreadySolvedError
        self._demonstrator.reset(env, seed=seed)

    def act(self, env: Any) -> Any:
        """Return what the demonstrator wants and does."""
        return self._demonstrator.act(env)


@cache
def _build(make_policy: Callable[[], Policy]) -> Policy:
    """A process plays many tasks, each with a demonstrator of its own: they share the policy."""
    return make_policy()
