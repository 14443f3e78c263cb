"""The play table against recordings of the published simulator, and its promises."""

import os

import numpy as np
import pytest

from calvin_files import ASSETS, GOLDEN, load_recording, needs_calvin, needs_recordings
from rdvla.doctor.calvin_replay import replay_recording
from rdvla.doctor.golden_calvin import check_oracle_states
from rdvla.envs import find_suite
from rdvla.envs.calvin import bullet
from rdvla.envs.calvin.assets import SCENES, load_scene
from rdvla.envs.calvin.simulation import Simulation
from rdvla.errors import ConfigError, SimulatorError

pytestmark = [pytest.mark.sim, needs_calvin]

SCENE_OBS = [
    0,
    0,
    0,
    0,
    0,
    0,
    0.05,
    -0.12,
    0.46,
    0,
    0,
    1.5,
    0.23,
    -0.12,
    0.46,
    0,
    0,
    1.5,
    -0.24,
    0.09,
    0.461,
    0,
    0,
    1.5,
]
STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("RDVLA_CALVIN_DATA", str(ASSETS))


@pytest.fixture
def simulation():
    simulation = Simulation(load_scene("D"), renderer="tiny")
    simulation.reset(None, SCENE_OBS)
    yield simulation
    simulation.close()


@needs_recordings
@pytest.mark.parametrize(
    ("name", "steps"), [("C_mixed", 150), ("D_unstack", 130), ("D_drawer_lift", 80), ("B_mixed", 40)]
)
def test_replays_a_recording_to_the_last_bit(name, steps):
    arrays, facts = load_recording(name)
    drawn = [f"rgb_{camera}_{step}" for camera in ("static", "gripper") for step in (0, 40)]
    cut = arrays | {"actions": arrays["actions"][:steps]}
    found = replay_recording(cut, facts, "tiny", drawn)
    np.testing.assert_array_equal(found.robot_obs, arrays["robot_obs"][: steps + 1])
    np.testing.assert_array_equal(found.scene_obs, arrays["scene_obs"][: steps + 1])
    for key in drawn:
        np.testing.assert_array_equal(found.pictures[key], arrays[key])
    changes = {step: tasks for step, tasks in facts["solved_since_last_start_info"] if step <= steps}
    assert [found.solved[step] for step in changes] == [sorted(tasks) for tasks in changes.values()]
    assert len({tuple(tasks) for tasks in found.solved}) == len({tuple(tasks) for tasks in changes.values()})


@needs_recordings
def test_pairs_of_states():
    assert [check.status for check in check_oracle_states(GOLDEN / "oracle_states.json")] == ["pass"]


@needs_recordings
def test_egl_draws_the_recorded_pictures_and_changes_no_physics():
    if bullet.choose_renderer() != "egl":
        pytest.skip("EGL does not draw here, or was not chosen")
    arrays, facts = load_recording("D_drawer_place")
    with np.load(GOLDEN / "rollouts" / "D_drawer_place.egl.npz") as file:
        expected = {key: file[key] for key in ("rgb_static_0", "rgb_gripper_0")}
    found = replay_recording(arrays | {"actions": arrays["actions"][:20]}, facts, "egl", list(expected))
    np.testing.assert_array_equal(found.robot_obs, arrays["robot_obs"][:21])
    for key, image in expected.items():
        assert np.abs(found.pictures[key].astype(int) - image).mean() < 1
    assert found.drawn_by.startswith("egl, ")


@pytest.mark.parametrize("scene", SCENES)
def test_names_of_a_scene(scene):
    simulation = Simulation(load_scene(scene), renderer="tiny")
    assert set(simulation.bodies) == {"robot", "robot_base", "block_red", "block_blue", "block_pink", "table", "floor"}
    assert {"base_link", "plank_link", "drawer_link", "slide_link"} <= set(simulation.links["table"])
    simulation.close()


def test_where_things_are(simulation):
    low, high = simulation.link_box("block_red", "base_link")
    np.testing.assert_allclose((low + high) / 2, simulation.scene_obs()[6:9], atol=1e-3)
    below, above = simulation.link_box("table", "drawer_link")
    assert (below < above).all()


def test_float32_is_scaled_in_float32(simulation):
    before = simulation.robot.target_position.copy()
    simulation.step(np.array([0.1, 0, 0, 0, 0, 0, 1], np.float32))
    assert simulation.robot.target_position[0] == before[0] + np.float32(0.1) * np.float32(0.02)
    before = simulation.robot.target_position.copy()
    simulation.step([0.1, 0, 0, 0, 0, 0, 1])
    assert simulation.robot.target_position[0] == before[0] + 0.1 * 0.02


def test_absolute_actions_go_there_and_leave_the_relative_target(simulation):
    target, goal = simulation.robot.target_position.copy(), simulation.robot_obs()[:3] + np.array([0, 0, 0.04])
    euler = simulation.robot_obs()[3:6]
    quaternion = simulation.client.getQuaternionFromEuler(euler)
    for step in range(20):
        simulation.step_to(goal, euler if step % 2 else quaternion, -1)
    np.testing.assert_allclose(simulation.robot_obs()[:3], goal, atol=5e-3)
    assert simulation.robot_obs()[-1] == -1
    np.testing.assert_array_equal(simulation.robot.target_position, target)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(6), r"shape \[7\], found \[6\]"),
        (np.array([0, np.nan, 0, 0, 0, 0, 1]), "non-finite"),
        (["a"] * 7, "action must hold numbers"),
        ([[1], [2, 3]], "action must hold numbers"),
        ("open", "action must hold numbers"),
        (np.zeros(7), "gripper = 0.0"),
        ([0, 0, 0, 0, 0, 0, 0.99], r"\+1 \(open\) or -1 \(close\)"),
    ],
)
def test_bad_actions_change_nothing(simulation, action, message):
    before = simulation.robot.target_position.copy()
    with pytest.raises(ConfigError, match=message):
        simulation.step(action)
    np.testing.assert_array_equal(simulation.robot.target_position, before)


def test_bad_poses(simulation):
    for arguments, message in [
        (([0, 0], [0, 0, 0], 1), "Euler"),
        (([0, 0, 0], [0, 0, 0], 0), "gripper"),
        (([0, 0, np.inf], [0, 0, 0], 1), "position has non-finite"),
    ]:
        with pytest.raises(ConfigError, match=message):
            simulation.step_to(*arguments)


def test_bad_observations(simulation):
    for robot, scene, message in [
        (np.zeros(14), SCENE_OBS, r"robot_obs must have shape \[15\]"),
        (None, [*SCENE_OBS, 0], r"scene_obs must have shape \[24\]"),
        (None, [np.nan, *SCENE_OBS[1:]], "scene_obs has non-finite"),
        (None, ["on"] * 24, "scene_obs must hold numbers"),
        (None, [*SCENE_OBS[:4], 0.5, *SCENE_OBS[5:]], "a light is 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            simulation.reset(robot, scene)


def test_a_second_simulation_in_the_process_disturbs_nothing():
    def play(beside):
        one = Simulation(load_scene("A"), renderer="tiny")
        other = Simulation(load_scene("D"), renderer="tiny") if beside else None
        one.reset(None, SCENE_OBS)
        for _ in range(10):
            one.step([0.5, -0.5, -1, 0, 0, 0.1, 1])
            if other is not None:
                other.reset(None, SCENE_OBS)
                other.step(STILL)
        result = np.concatenate([one.robot_obs(), one.scene_obs()])
        for each in filter(None, (one, other)):
            each.close()
        return result

    np.testing.assert_array_equal(play(beside=True), play(beside=False))


def test_nothing_is_printed(capfd):
    simulation = Simulation(load_scene("D"), renderer="tiny")
    simulation.reset(None, SCENE_OBS)
    simulation.draw("gripper")
    simulation.close()
    simulation.close()
    assert capfd.readouterr() == ("", "")


def test_a_renderer_that_is_none(monkeypatch):
    monkeypatch.setenv(bullet.VARIABLE, "opengl")
    with pytest.raises(ConfigError, match="the renderers are egl and tiny"):
        bullet.choose_renderer()


@pytest.fixture
def without_egl(monkeypatch):
    monkeypatch.setattr(bullet, "_PROBE", "raise SystemExit(1)")
    monkeypatch.setenv(bullet.VARIABLE, "")  # as if it were not set, and what is chosen does not stay
    monkeypatch.delenv(bullet._DRAWS, raising=False)
    bullet._egl_draws.cache_clear()
    yield
    bullet._egl_draws.cache_clear()


def test_egl_that_was_chosen_and_does_not_draw_is_an_error(monkeypatch, without_egl):
    monkeypatch.setenv(bullet.VARIABLE, "egl")
    for _ in range(2):
        with pytest.raises(SimulatorError, match=f"EGL does not draw here.*libegl1.*{bullet.VARIABLE}=tiny"):
            bullet.choose_renderer()
        monkeypatch.setattr(bullet, "_PROBE", "is not run again")


def test_without_egl_the_pictures_are_tinyrenderers_and_it_is_said(monkeypatch, without_egl, caplog):
    assert bullet.choose_renderer() == "tiny"
    assert "EGL does not draw here" in caplog.text
    caplog.clear()
    assert bullet.choose_renderer() == "tiny"
    assert caplog.text == ""


def test_a_suite_chooses_the_renderer_for_all_its_workers(monkeypatch, without_egl):
    find_suite("calvin_a").prepare()
    assert os.environ[bullet.VARIABLE] == "tiny"


def test_a_damaged_model_is_an_error_of_the_simulator(tmp_path, monkeypatch):
    import shutil

    shutil.copytree(ASSETS, tmp_path / "calvin", copy_function=shutil.copyfile)
    for path in (tmp_path / "calvin").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "calvin/data/plane/plane.urdf").write_text("<robot", encoding="utf-8")
    pybullet = bullet.import_pybullet()
    connected = [pybullet.isConnected(number) for number in range(20)]
    for _ in range(2):
        with pytest.raises(SimulatorError, match=r"scene D: loading failed .*It says: .*XML_ERROR_PARSING_ELEMENT"):
            Simulation(load_scene("D", tmp_path / "calvin"), renderer="tiny")
    assert [pybullet.isConnected(number) for number in range(20)] == connected
