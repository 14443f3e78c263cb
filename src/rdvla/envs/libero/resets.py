"""Resets that give what the stock environment's resets give, bit for bit, without reloading the model.

The stock environment recompiles its model at every reset, which takes seconds. Three things survive a reset without
that, and are put back here: where fixtures stand, the gripper's filtered command, and the solver's starting point.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import SimulatorError

_MAX_TRIES = 100


@contextlib.contextmanager
def numpy_random(state: Any) -> Iterator[None]:
    """Run with this state of numpy's global generator (the simulator draws from it), then restore the caller's."""
    before = np.random.get_state()
    np.random.set_state(state)
    try:
        yield
    finally:
        np.random.set_state(before)


def seeded(seed: int) -> Any:
    """Return the state of numpy's legacy generator after seeding it."""
    return np.random.RandomState(seed).get_state()


class Resets:
    """Resets one robosuite environment, with random numbers that do not depend on earlier episodes."""

    def __init__(self, env: Any) -> None:
        """Take over the resets of `env`, the robosuite environment, which must not reload its model."""
        self._env = env
        self._samplers = tuple(env.object_property_initializers)
        self._fixture_poses = _compiled_fixture_poses(env)
        self._published_states = [seeded(0)]
        env.sim.reset = functools.partial(_reset_like_a_reload, env.sim)

    def published(self, episode: int) -> None:
        """Place everything as the published loop does in its episode `episode`.

        That loop seeds once with 0 and draws all episodes from one stream. It also reloads the model at every reset,
        and every reload appends the samplers of drawers and doors to a list once more, so episode k draws k + 2 times
        from each; only the random numbers are affected.
        """
        for index in range(len(self._published_states) - 1, episode):
            self._reset(self._published_states[index], sampler_repeats=index + 2)
        self._reset(self._published_states[episode], sampler_repeats=episode + 2)

    def sampled(self, seed: int) -> None:
        """Place everything with the environment's own sampler, seeded."""
        self._reset(seeded(seed), sampler_repeats=1)

    def _reset(self, random_state: Any, *, sampler_repeats: int) -> None:
        with numpy_random(random_state):
            self._place(sampler_repeats)
            after = np.random.get_state()
        if random_state is self._published_states[-1]:
            self._published_states.append(after)

    def _place(self, sampler_repeats: int) -> None:
        from robosuite.utils.errors import RandomizationError

        env = self._env
        env.object_property_initializers = list(self._samplers) * sampler_repeats
        for _ in range(_MAX_TRIES):
            # Objects in a fixture are sampled relative to where the fixture was before.
            for body, (position, quaternion) in self._fixture_poses.items():
                env.sim.model.body_pos[body] = position
                env.sim.model.body_quat[body] = quaternion
            gripper = env.robots[0].gripper
            gripper.current_action = np.zeros(gripper.dof)
            try:
                env.reset()
            except RandomizationError:
                continue
            return
        raise SimulatorError(f"no valid placement of the objects in {_MAX_TRIES} tries.")


def _compiled_fixture_poses(env: Any) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return body id -> position and quaternion that the model's XML gives to each fixture, before any placement."""
    poses = {}
    for fixture in env.fixtures_dict.values():
        attributes = env.model.worldbody.find(f".//body[@name='{fixture.root_body}']").attrib
        position = np.array(attributes.get("pos", "0 0 0").split(), dtype=np.float64)
        quaternion = np.array(attributes.get("quat", "1 0 0 0").split(), dtype=np.float64)
        poses[env.sim.model.body_name2id(fixture.root_body)] = position, quaternion / np.linalg.norm(quaternion)
    return poses


def _reset_like_a_reload(sim: Any) -> None:
    """Reset the simulation's data and evaluate the dynamics twice, as compiling the model and attaching a renderer do.

    The solver starts from its last solution, so that without this trajectories would differ in the last digits.
    """
    type(sim).reset(sim)
    sim.forward()
    sim.forward()
