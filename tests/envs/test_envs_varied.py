"""libero_object with other places, another target and other words."""

import numpy as np
import pytest

from rdvla.envs import InitState, Seed, find_suite, make_env
from rdvla.envs.libero.varied import SENTENCES, find_places
from rdvla.errors import ConfigError
from rdvla.eval.protocol import check_init_states
from rdvla.experts import make_expert

pytest.importorskip("libero", reason="LIBERO is not installed")
pytestmark = pytest.mark.sim

SUITE = "libero_object_varied"


@pytest.fixture(scope="module")
def env():
    with make_env(SUITE, 0) as env:
        yield env


def places(env) -> dict[str, np.ndarray]:
    joints = {name: thing.joints[0] for name, thing in env.unwrapped.objects_dict.items()}
    return {name: env.sim.data.get_joint_qpos(joint)[:2].copy() for name, joint in joints.items()}


def distances(found: dict[str, np.ndarray]) -> list[float]:
    apart = [place for name, place in found.items() if not name.startswith("basket")]
    return [float(np.linalg.norm(a - b)) for i, a in enumerate(apart) for b in apart[:i]]


def test_places_target_and_words_differ_from_start_to_start(env):
    seen = []
    for seed in range(6):
        env.reset(Seed(seed))
        (goal,) = env.unwrapped.parsed_problem["goal_state"]
        (stage,) = env.stages
        thing = goal[1].removesuffix("_1").replace("_", " ")
        assert f"the {thing}" in stage.instruction
        assert env.observe().instruction == stage.instruction
        assert min(distances(places(env))) > 0.08  # nothing was thrown over when the scene settled
        seen.append((places(env), goal[1], stage.instruction))
    assert np.ptp([found["butter_1"] for found, *_ in seen], axis=0).min() > 0.1
    assert len({target for _, target, _ in seen}) > 2
    assert len({sentence for *_, sentence in seen}) > 3


def test_every_seed_finds_places():
    usual = np.array([[-0.12, -0.24], [0.05, -0.1], [-0.15, 0.06], [0.1, -0.2], [0.15, 0.03], [-0.2, -0.08]])
    for seed in range(60):
        found = find_places(np.random.default_rng(seed), usual)
        assert (found >= usual.min(axis=0)).all()
        assert (found <= usual.max(axis=0)).all()
        assert min(distances(dict(zip("abcdef", found, strict=True)))) >= min(
            distances(dict(zip("abcdef", usual, strict=True)))
        )


def test_a_start_depends_on_its_seed_alone(env):
    env.reset(Seed(4))
    before, stage, goal = places(env), env.stages, env.unwrapped.parsed_problem["goal_state"]
    env.reset(Seed(5))
    env.reset(Seed(4))
    after = places(env)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (stage, goal) == (env.stages, env.unwrapped.parsed_problem["goal_state"])


def test_the_expert_brings_what_is_asked_for(env):
    env.reset(Seed(0))
    expert = make_expert(env.task)
    expert.reset(env)
    assert any(env.step(expert.act(env)) for _ in range(env.task.max_steps))
    (goal,) = env.unwrapped.parsed_problem["goal_state"]
    assert env.unwrapped._eval_predicate(goal)


def test_it_has_no_bundled_states(env):
    suite = find_suite(SUITE)
    assert suite.num_init_states(9) == 0
    with pytest.raises(ConfigError, match="no bundled initial states"):
        env.reset(InitState(0))
    with pytest.raises(ConfigError, match=r"names 9, but libero_object_varied has no bundled initial states.*--seeds"):
        check_init_states(suite, [3], [9], "init-states names 9")


def test_our_words_are_not_those_of_the_robustness_benchmark():
    theirs = {task.instruction.lower() for task in find_suite("libero_object_lan").tasks()}
    things = ("alphabet soup", "bbq sauce", "butter", "chocolate pudding", "cream cheese", "ketchup", "milk")
    ours = {sentence.format(thing) for sentence in SENTENCES for thing in (*things, "orange juice")}
    assert theirs
    assert not ours & theirs
