"""CALVIN through the protocol that every environment has."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from calvin_files import ASSETS, load_recording, needs_calvin, needs_recordings
from rdvla.embodiment import CALVIN
from rdvla.envs import InitState, Seed, find_suite, list_tasks, make_env, num_init_states
from rdvla.envs.calvin import bullet, varied
from rdvla.envs.calvin.assets import load_scene, manifest
from rdvla.envs.calvin.chains import ROBOT_OBS, evaluation_chain
from rdvla.envs.calvin.sentences import SENTENCES
from rdvla.envs.calvin.tasks import COLOURS, TASKS
from rdvla.envs.calvin.varied import moved, places
from rdvla.envs.episode import play
from rdvla.errors import ConfigError, MissingExtraError, SimulatorError
from rdvla.experts import make_expert

WAIT = CALVIN.stand_still(None)


class TestSuites:
    def test_one_task_and_a_thousand_starts_each(self):
        for name in ("calvin_a", "calvin_b", "calvin_c", "calvin_d"):
            (task,) = list_tasks(name)
            assert (task.suite, task.task_id, task.max_steps) == (name, 0, 5 * 360)
            assert num_init_states(name, 0) == 1000
        with pytest.raises(ConfigError, match="one task, 0"):
            num_init_states("calvin_d", 1)

    def test_tasks_one_by_one(self):
        tasks = list_tasks("calvin_b_single")
        assert [task.task_id for task in tasks] == list(range(27))
        assert [tasks[number].name for number in (16, 18, 20)] == [f"lift_{c}_block_table" for c in COLOURS]
        assert tasks[16].instruction == "grasp and lift the red block"
        never_first = {"stack_block", "unstack_block", "place_in_slider", "place_in_drawer"}
        assert set(TASKS) - {task.name for task in tasks} == never_first | {f"lift_{c}_block_drawer" for c in COLOURS}
        assert find_suite("calvin_b_single", "released").tasks()[0].max_steps == 800
        assert num_init_states("calvin_b_single", 26) == 0
        with pytest.raises(ConfigError, match="no task 27"):
            num_init_states("calvin_b_single", 27)

    def test_varied_tables_start_from_seeds_alone_and_d_has_none(self):
        assert num_init_states("calvin_a_varied", 0) == num_init_states("calvin_c_single_varied", 26) == 0
        assert [task.name for task in list_tasks("calvin_b_single_varied")] == [
            task.name for task in list_tasks("calvin_b_single")
        ]
        with pytest.raises(ConfigError, match="unknown suite 'calvin_d_varied'"):
            find_suite("calvin_d_varied")

    def test_protocols(self):
        assert find_suite("calvin_d").protocol == "official"
        assert find_suite("calvin_d", "released").tasks()[0].max_steps == 5 * 800
        with pytest.raises(ConfigError, match="Did you mean 'official'"):
            find_suite("calvin_d", "oficial")

    def test_without_data_files_it_is_said_what_to_do(self, monkeypatch, tmp_path):
        pytest.importorskip("pybullet")
        monkeypatch.setenv("RDVLA_CALVIN_DATA", str(tmp_path))
        with pytest.raises(ConfigError, match=r"\(RDVLA_CALVIN_DATA\).*rdvla setup calvin"):
            make_env("calvin_d", 0)

    def test_without_pybullet(self, monkeypatch):
        def missing():
            raise MissingExtraError("pybullet", "calvin")

        monkeypatch.setattr("rdvla.envs.calvin.env.import_pybullet", missing)
        with pytest.raises(MissingExtraError, match=r"rdvla\[calvin\]"):
            make_env("calvin_d", 0)


@pytest.mark.sim
@needs_calvin
class TestEnv:
    @pytest.fixture(autouse=True)
    def data(self, monkeypatch):
        monkeypatch.setenv("RDVLA_CALVIN_DATA", str(ASSETS))
        monkeypatch.setenv(bullet.VARIABLE, "tiny")

    @pytest.fixture
    def env(self):
        with make_env("calvin_d", 0) as env:
            yield env

    def test_an_evaluation_chain(self, env):
        env.reset(InitState(2))
        chain = evaluation_chain(2)
        assert [stage.name for stage in env.stages] == list(chain.tasks)
        assert [stage.instruction for stage in env.stages] == [SENTENCES[task][0] for task in chain.tasks]
        assert {stage.max_steps for stage in env.stages} == {360}
        seen = env.observe()
        assert {name: image.shape for name, image in seen.images.items()} == {
            "primary": (200, 200, 3),
            "wrist": (84, 84, 3),
        }
        assert seen.instruction == "lift the pink block from the sliding cabinet"
        obs = env.simulation.robot_obs()
        np.testing.assert_array_equal(seen.state, np.array([*obs[:7], obs[-1]], np.float32))
        assert env.frame("wrist").std() > 5

    def test_an_episode_depends_on_its_start_alone(self, env):
        def run(start):
            states = []
            for turn in play(env, start):
                turn.execute(np.array([0.3, -0.5, -1, 0, 0, 0.2, -1 if turn.step % 7 else 1], np.float32))
                states.append(np.concatenate([env.simulation.robot_obs(), env.simulation.scene_obs()]))
                if turn.step == 15:
                    break
            return states

        first = run(InitState(5))
        run(Seed(3))
        np.testing.assert_array_equal(run(InitState(5)), first)

    def test_looking_does_not_change_what_happens(self, env):
        results = []
        for look in (False, True):
            env.reset(Seed(1))
            for _ in range(6):
                env.step(np.array([0.3, -0.5, -1, 0, 0, 0.2, 1], np.float32))
                if look:
                    env.observe()
            results.append(env.simulation.robot_obs())
        np.testing.assert_array_equal(*results)

    def test_a_seed_gives_a_chain_with_sentences_of_several(self, env):
        env.reset(Seed(11))
        for stage in env.stages:
            assert stage.instruction in SENTENCES[stage.name]
        spoken = []
        for seed in range(4):
            env.reset(Seed(seed))
            spoken += [stage.instruction != SENTENCES[stage.name][0] for stage in env.stages]
        assert any(spoken)
        with pytest.raises(ConfigError, match="seed = -1"):
            env.reset(Seed(-1))

    def test_one_task_alone(self):
        (task,) = [task for task in list_tasks("calvin_c_single") if task.name == "lift_blue_block_table"]
        with make_env("calvin_c_single", task.task_id) as env:
            expert = make_expert(task)
            env.reset(Seed(2))
            (stage,) = env.stages
            assert (stage.name, stage.max_steps) == ("lift_blue_block_table", 360)
            assert stage.instruction in SENTENCES[stage.name]
            expert.reset(env)
            solved = [env.step(expert.act(env)) for _ in range(120)]
            assert sum(solved) == 1, "solved once, and nothing comes after it"
            assert env.stage_index == 1
            with pytest.raises(ConfigError, match="'calvin_c_single' has no bundled starts"):
                env.reset(InitState(0))

    @pytest.mark.parametrize("scene", ["a", "b", "c"])
    def test_a_varied_table_has_its_button_elsewhere_and_all_else_in_place(self, scene):
        def parts(env):
            """Return each part's middle, with slider and drawer shut."""
            simulation = env.simulation
            obs = simulation.scene_obs()
            obs[:4] = 0
            simulation.reset(ROBOT_OBS, obs)
            return {link: simulation.link_box("table", link).mean(0) for link in simulation.links["table"]}

        with make_env(f"calvin_{scene}", 0) as env:
            env.reset(Seed(3))
            plain = parts(env)
        with make_env(f"calvin_{scene}_varied", 0) as env:
            places = []
            for seed in range(8):
                env.reset(Seed(seed))
                blocks = env.simulation.scene_obs()[6:].reshape(3, 6)
                found = parts(env)
                button, led, lamp = (found[f"{name}_link"] for name in ("button", "led", "light"))
                for link in found.keys() - {"button_link", "led_link", "switch_link"}:
                    np.testing.assert_allclose(found[link], plain[link], atol=2e-3, err_msg=link)
                np.testing.assert_allclose(button[1:], plain["button_link"][1:], atol=1e-3)
                assert button[0] == pytest.approx(led[0], abs=1e-3)
                assert abs(led[0] - lamp[0]) > 0.09
                on_table = blocks[blocks[:, 1] < 0]
                assert (np.abs(on_table[:, 0] - button[0]) > 0.11).all()
                places.append(round(float(button[0]), 3))
            assert len(set(places)) == 8
            assert max(places) - min(places) > 0.2
            pictures = []
            for _ in range(2):
                env.reset(Seed(0))
                pictures.append(env.frame())
            np.testing.assert_array_equal(*pictures)
            with pytest.raises(ConfigError, match="no bundled starts; take a Seed"):
                env.reset(InitState(0))
            np.testing.assert_array_equal(
                env.frame(), pictures[0], err_msg="a refused start leaves the episode as it is"
            )

    def test_a_button_that_stands_elsewhere_works(self):
        (task,) = [task for task in list_tasks("calvin_b_single_varied") if task.name == "turn_on_led"]
        with make_env("calvin_b_single_varied", task.task_id) as env:
            expert = make_expert(task)
            for seed in range(3):
                env.reset(Seed(seed))
                expert.reset(env)
                assert sum(env.step(expert.act(env)) for _ in range(120)) == 1

    def test_looks_are_those_of_a_to_c(self):
        rng = np.random.default_rng(0)
        data = ASSETS.absolute()
        seen = {link: set() for link in ("base_link", "plank_link", "slide_link", "drawer_link")}
        for _ in range(60):
            drawn = varied.draw_looks(rng, data)
            assert drawn.keys() == seen.keys()
            assert drawn["base_link"].colour == drawn["plank_link"].colour != drawn["slide_link"].colour
            for link, look in drawn.items():
                assert look.texture.is_file()
                assert all(0.5 <= channel <= 1 for channel in look.colour)
                seen[link].add(look.texture.resolve().relative_to(data.resolve()).parts[1])
        assert all(tables == {f"calvin_table_{scene}" for scene in "ABC"} for tables in seen.values())

    def test_parts_of_a_table_are_moved_and_nothing_else(self):
        scene = load_scene("D")
        assert places(scene)["base__switch"] == pytest.approx(0.3)  # 0.375 scaled by 0.8
        with moved(scene, {"base__drawer": 0.1}) as other:
            expected = {**places(scene), "base__drawer": 0.1}
            assert places(other) == pytest.approx(expected)
            assert (other.surfaces, other.blocks) == (scene.surfaces, scene.blocks)
            assert other.doors["base__drawer"].origin == (0.1, *scene.doors["base__drawer"].origin[1:])
            assert other.doors["base__slide"] == scene.doors["base__slide"]
        assert not Path(other.table).exists()
        with (
            pytest.raises(ConfigError, match=r"scene D has no joint 'base__buton'. Did you mean 'base__button'"),
            moved(scene, {"base__buton": 0.1}),
        ):
            pass

    def test_a_table_without_texture_lends_none(self, monkeypatch, tmp_path):
        (tmp_path / "table" / "meshes").mkdir(parents=True)
        for link in ("base_link", "plank_link", "slide_link", "drawer_link"):
            (tmp_path / "table" / "meshes" / f"{link}.mtl").write_text("newmtl Material\nKd 0.8 0.8 0.8\n")
        scene = SimpleNamespace(data=tmp_path, table="table/urdf/table.urdf")
        monkeypatch.setattr(varied, "load_scene", lambda name, data: scene)
        with pytest.raises(ConfigError, match=r"'.*base_link.mtl' names no texture \(map_Kd\)"):
            varied.draw_looks(np.random.default_rng(0), tmp_path)

    @pytest.mark.parametrize("suite", ["calvin_a", "calvin_b", "calvin_c", "calvin_d"])
    def test_what_is_drawn_stays_where_it_is(self, suite):
        """No slider beyond its end, no block inside the slider."""
        with make_env(suite, 0) as env:
            env.reset(Seed(10000))  # slider left, a block behind it
            before = env.simulation.scene_obs()
            for _ in range(8):
                env.step(WAIT)
            after = env.simulation.scene_obs()
        assert before[0] > 0.2
        assert np.abs(after - before)[[0, 6, 7, 8, 12, 13, 14, 18, 19, 20]].max() < 0.003

    @needs_recordings
    def test_stages_are_judged_from_their_own_start(self, env):
        """The chain of the recording would be "led off, then something else"; the second stage starts unsolved."""
        arrays, _ = load_recording("D_lights")
        env.reset(InitState(1))  # its first task: turn_off_led
        env.simulation.reset(arrays["init_robot_obs"], arrays["init_scene_obs"])
        solved = [env.step(action) for action in arrays["actions"][:25]]
        assert solved == [False] * 20 + [True] + [False] * 4
        assert env.stage_index == 1
        assert not env.stage_start.lights["led"]
        assert env.observe().instruction == env.stages[1].instruction

    def test_a_stage_that_is_not_solved_ends_the_episode(self):
        with make_env("calvin_d", 0) as env:
            env._stage_steps = 4
            turns = []
            for turn in play(env, InitState(0)):
                turn.execute(WAIT)
                turns.append(turn)
        assert [turn.stage_index for turn in turns] == [0] * 4

    def test_after_the_last_stage_nothing_is_solved_any_more(self, env):
        env.reset(InitState(0))
        env._stage_index = 5
        assert env.step(WAIT) is False
        assert env.observe().instruction == env.stages[-1].instruction

    def test_absolute_actions(self, env):
        env.reset(InitState(0))
        obs = env.simulation.robot_obs()
        assert env.step_to(obs[:3] + np.array([0, 0, 0.01]), obs[3:6], -1) is False
        assert env.state()[-1] == -1

    def test_sizes_of_pictures(self):
        with make_env("calvin_a", 0, camera_size=48) as env:
            assert dict(env.embodiment.cameras) == {"primary": (48, 48), "wrist": (48, 48)}
            env.reset(Seed(0))
            assert {image.shape for image in env.observe().images.values()} == {(48, 48, 3)}
        with pytest.raises(ConfigError, match="camera_size = 0"):
            make_env("calvin_a", 0, camera_size=0)

    def test_versions(self, env):
        versions = env.versions()
        assert versions["calvin_data"] == manifest().revision
        assert versions["renderer"] == "tiny"
        assert versions["pybullet"].count(".") == 2

    def test_misuse(self, env):
        for call in (env.state, env.observe, lambda: env.step(WAIT), lambda: env.stage_start):
            with pytest.raises(SimulatorError, match="call reset first"):
                call()
        env.reset(InitState(0))
        with pytest.raises(ConfigError, match="unknown camera 'front'"):
            env.frame("front")
        with pytest.raises(ConfigError, match="gripper"):
            env.step(np.zeros(7, np.float32))
        env.close()
        env.close()
        with pytest.raises(SimulatorError, match="call reset first"):
            env.step(WAIT)
