"""LIBERO against the stock environment and its promises. Starts the simulator (about 5 s of CPU time per start)."""

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rdvla.envs import InitState, Seed
from rdvla.envs.libero import simulator
from rdvla.envs.libero.env import SETTLING_ACTION, LiberoEnv, axis_angle, load_task
from rdvla.errors import ConfigError, SimulatorError
from rdvla.files import user_cache

pytest.importorskip("libero", reason="LIBERO is not installed")
pytestmark = pytest.mark.sim

# The hardest case for exactness: fixtures at random places, and a drawer that the sampler opens.
SUITE, TASK_ID = "libero_spatial", 4
ACTIONS = np.random.default_rng(7).uniform(-1, 1, size=(4, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def env():
    with LiberoEnv(SUITE, TASK_ID) as env:
        yield env


@contextlib.contextmanager
def start_stock(suite: str, task_id: int):
    """The stock environment: it reloads the model at every reset and renders at every step."""
    simulator.prepare()
    from libero.libero.envs import OffScreenRenderEnv

    bddl_file = load_task(suite, task_id).bddl_file
    with simulator.quiet_import():
        env = OffScreenRenderEnv(bddl_file_name=str(bddl_file), camera_heights=256, camera_widths=256)
    yield env
    context = env.sim._render_context_offscreen
    context.gl_ctx.make_current()
    context.con.free()
    context.gl_ctx.free()
    env.close()


@pytest.fixture(scope="module")
def stock():
    with start_stock(SUITE, TASK_ID) as env:
        env.seed(0)
        yield env


def physics(sim) -> dict[str, np.ndarray]:
    return {
        "qpos": sim.data.qpos.copy(),
        "qvel": sim.data.qvel.copy(),
        "body_pos": sim.model.body_pos.copy(),
        "body_quat": sim.model.body_quat.copy(),
    }


def stock_episode(stock, index: int) -> list[dict[str, np.ndarray]]:
    stock.reset()
    observation = stock.set_init_state(load_task(SUITE, TASK_ID).benchmark.get_task_init_states(TASK_ID)[index])
    moments = []
    for action in [*[SETTLING_ACTION] * 10, *ACTIONS]:
        observation, *_ = stock.step(action)
        state = [
            observation["robot0_eef_pos"],
            axis_angle(observation["robot0_eef_quat"]),
            observation["robot0_gripper_qpos"],
        ]
        moments.append(
            {
                "primary": observation["agentview_image"][::-1, ::-1],
                "wrist": observation["robot0_eye_in_hand_image"][::-1, ::-1],
                "state": np.concatenate(state).astype(np.float32),
                **physics(stock.sim),
            }
        )
    return moments[9:]


def moment(env: LiberoEnv) -> dict[str, np.ndarray]:
    observation = env.observe()
    return {**observation.images, "state": observation.state, **physics(env.sim)}


def test_bundled_states_reproduce_the_published_loop_bit_for_bit(env, stock):
    expected = [stock_episode(stock, 0), stock_episode(stock, 1)]
    for index in (1, 0):  # in another order than the published loop's
        env.reset(InitState(index))
        found = [moment(env)]
        for action in ACTIONS:
            env.step(action)
            found.append(moment(env))
        for step, (ours, theirs) in enumerate(zip(found, expected[index], strict=True)):
            for name, array in theirs.items():
                assert np.array_equal(ours[name], array), f"episode {index}, step {step}: {name} differs"


@pytest.mark.slow
def test_a_sampled_placement_is_that_of_a_reloaded_model():
    with start_stock("libero_object", 3) as stock, LiberoEnv("libero_object", 3) as env:
        for name, observable in stock.env._observables.items():
            observable.set_enabled(not name.endswith("image"))
        env.reset(Seed(1))
        stock.seed(5)
        stock.reset()
        stock.set_init_state(stock.get_sim_state())
        env.reset(Seed(5))
        for action in [*[SETTLING_ACTION] * 10, *ACTIONS]:
            stock.step(action)
        for action in ACTIONS:
            env.step(action)
        theirs, ours = physics(stock.sim), physics(env.sim)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_rendering_does_not_touch_the_physics(env):
    ends = []
    for renders in (False, True):
        env.reset(Seed(11))
        for action in ACTIONS:
            env.step(action)
            if renders:
                env.observe()
        ends.append(physics(env.sim))
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_seeds(env):
    env.reset(Seed(3))
    first = physics(env.sim)
    env.step(ACTIONS[0])
    env.reset(InitState(5))
    bundled = physics(env.sim)
    env.reset(Seed(4))
    other = physics(env.sim)
    env.reset(Seed(3))
    again = physics(env.sim)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["qpos"], other["qpos"])
    assert not np.array_equal(first["qpos"], bundled["qpos"])


def test_the_global_random_state_is_left_alone(env):
    np.random.seed(123)
    before = np.random.get_state()
    env.reset(Seed(1))
    env.reset(InitState(2))
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_the_scene_is_settled(env):
    env.reset(InitState(0))
    state = env.state()
    assert state.dtype == np.float32
    assert state.shape == (8,)
    assert np.abs(env.sim.data.qvel).max() < 0.5
    assert state[6] == pytest.approx(-state[7], abs=1e-3)
    assert state[6] > 0.03  # open
    assert np.allclose(state[:3], env.sim.data.site_xpos[env.unwrapped.robots[0].eef_site_id], atol=2e-3)


def test_images_show_the_robot_at_the_top(env):
    env.reset(InitState(0))
    observation = env.observe()
    assert observation.instruction == env.task.instruction
    grey_pixels = (observation.images["primary"].astype(int).max(2) - observation.images["primary"].min(2)) < 8
    # The white arm stands in the middle of the upper edge; the table fills the lower half.
    assert grey_pixels[:60, 96:160].mean() > 0.9
    assert grey_pixels[200:, :100].mean() < 0.3


def test_frames_for_videos(env):
    env.reset(InitState(0))
    assert env.frame("primary", 64).shape == (64, 64, 3)
    assert np.array_equal(env.frame("agentview"), env.observe().images["primary"])
    with pytest.raises(ConfigError, match="unknown camera 'side'"):
        env.frame("side")


def test_success_is_the_benchmarks_own_check(env):
    env.reset(InitState(0))
    assert env.stages == env.task.stages
    assert not env.step(SETTLING_ACTION)
    inner = env.unwrapped
    plate, bowl = (inner.obj_body_id[name] for name in ("plate_1", "akita_black_bowl_1"))
    above = np.array(env.sim.data.body_xpos[plate]) + np.array([0, 0, 0.02])
    on_plate = np.concatenate([above, env.sim.data.body_xquat[bowl]])
    env.sim.data.set_joint_qpos(inner.objects_dict["akita_black_bowl_1"].joints[-1], on_plate)
    assert any(env.step(SETTLING_ACTION) for _ in range(15))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda env: env.reset(InitState(50)), r"states 0\.\.49"),
        (lambda env: env.reset(InitState(-1)), r"states 0\.\.49"),
        (lambda env: env.reset(Seed(-1)), "seed = -1"),
        (lambda env: env.reset(Seed(2**32)), "seed = 4294967296"),
        (lambda env: env.step(np.zeros(8)), r"shape \[7\], found \[8\]"),
        (lambda env: env.step(np.full(7, np.inf)), "non-finite"),
    ],
)
def test_misuse_is_a_clear_error_and_leaves_the_environment_usable(env, call, named):
    env.reset(Seed(0))
    with pytest.raises(ConfigError, match=named):
        call(env)
    env.step(SETTLING_ACTION)


def test_diverged_physics_is_a_simulator_error(env):
    env.reset(Seed(0))
    env.sim.data.qvel[:] = 1e12
    with pytest.raises(SimulatorError, match="libero_spatial task 4: step"):
        env.step(SETTLING_ACTION)
    with pytest.raises(SimulatorError, match="call reset first"):
        env.step(SETTLING_ACTION)
    env.reset(Seed(0))
    env.step(SETTLING_ACTION)


def test_versions_name_what_decides_results(env):
    versions = env.versions()
    assert versions["libero"].startswith(("libero", "hf-libero"))
    assert versions["gl_backend"] == os.environ["MUJOCO_GL"]
    assert versions["gl_renderer"]
    assert {"mujoco", "robosuite", "numpy"} <= set(versions)


def test_a_bare_machine(tmp_path):
    """Fresh home, no stdin, warnings as errors, environment never closed: silent, and no file outside the cache."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    log = Path("/tmp/robosuite.log")
    log_before = log.stat().st_mtime if log.exists() else None
    code = """
        from rdvla.envs import InitState, make_env
        env = make_env("libero_object", 3)
        env.reset(InitState(0))
        env.observe()
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LIBERO", "XDG", "MPL"))}
    # Compiling robosuite's numeric kernels afresh would take ten seconds more.
    kept |= {"HOME": str(home), "NUMBA_CACHE_DIR": str(user_cache() / "numba")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=kept,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(cwd.iterdir()) == []
    assert {path.relative_to(home).parts[0] for path in home.rglob("*")} <= {".cache"}
    assert (log.stat().st_mtime if log.exists() else None) == log_before
