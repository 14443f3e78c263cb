import h5py
import numpy as np
import pytest
from replay_fakes import SENTENCE, FakeEnv, demonstration, write_file
from typer.testing import CliRunner

from one_sample import sample
from rdvla.cli.main import app
from rdvla.collect.regenerate import Regeneration
from rdvla.data.convert import convert
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.libero_hdf5 import LiberoDemonstrations, moving_steps
from rdvla.envs import Seed
from rdvla.envs.libero.env import LiberoEnv
from rdvla.errors import ConfigError, DatasetError
from rdvla.experts import make_expert
from rdvla.types import Observation

pytest.importorskip("libero", reason="the LIBERO simulator is not installed")

PRIMARY, WRIST = "observation.images.image", "observation.images.image2"


def test_no_ops_by_hand():
    still, moves = np.zeros(6), np.full(6, 0.3)
    steps = [(still, -1), (moves, -1), (still, -1), (still, 1), (still, 1), (np.full(6, 3e-5), 1), (still, -1)]
    kept = moving_steps(np.array([[*motion, gripper] for motion, gripper in steps]))
    assert kept.tolist() == [False, True, False, True, False, False, True]


def test_what_the_files_hold(tmp_path):
    recorded = [demonstration(seed, still=(0, 3)) for seed in range(11)]  # demo_10 comes after demo_9, not demo_1
    write_file(tmp_path / "libero_object", recorded)
    source = LiberoDemonstrations.open(tmp_path / "libero_object")
    assert (source.name, len(source)) == ("libero_object", 11)
    for episode, arrays in zip(source, recorded, strict=True):
        kept = [1, 2, 4, 5]
        assert episode.task == SENTENCE
        np.testing.assert_array_equal(episode.columns["action"], arrays["actions"][kept].astype(np.float32))
        state = np.concatenate([arrays["obs/ee_states"], arrays["obs/gripper_states"]], axis=1)
        np.testing.assert_array_equal(episode.columns["observation.state"], state[kept].astype(np.float32))
        np.testing.assert_array_equal(episode.images[PRIMARY][0], np.rot90(arrays["obs/agentview_rgb"][1], 2))
        np.testing.assert_array_equal(episode.images[WRIST][3], np.rot90(arrays["obs/eye_in_hand_rgb"][5], 2))


def test_the_command_converts(tmp_path):
    write_file(tmp_path / "libero_object", [demonstration(0), demonstration(1)])
    arguments = ["dataset", "convert", str(tmp_path / "libero_object"), str(tmp_path / "v3")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 episodes, 12 frames" in result.output
    dataset = LeRobotDataset.open(tmp_path / "v3", chunk_size=4, cache_dir=tmp_path / "cache")
    assert dataset.instructions == (SENTENCE,)
    np.testing.assert_array_equal(
        sample(dataset, 0).images["primary"], np.rot90(demonstration(0)["obs/agentview_rgb"][0], 2)
    )


def test_replays_record_what_is_seen_before_each_action(tmp_path):
    recorded = [demonstration(0, still=(2,)), demonstration(1, length=3), demonstration(2)]
    write_file(tmp_path / "libero_object", recorded)
    envs = []

    def make_env(suite, task_id):
        envs.append(FakeEnv(suite, task_id, needed=4))
        return envs[-1]

    source = Regeneration(LiberoDemonstrations.open(tmp_path / "libero_object"), make_env, camera_size=32)
    convert(source, tmp_path / "v3")
    (env,) = envs
    assert env.closed
    assert (env.task.suite, env.task.task_id) == ("libero_object", 0)
    assert [episode for _, episode in env.restored] == [0, 1, 2]
    for (state, _), arrays in zip(env.restored, recorded, strict=True):
        np.testing.assert_array_equal(state, arrays["states"][0])
    assert source.dropped == 1, "the one of three steps solves nothing"
    dataset = LeRobotDataset.open(tmp_path / "v3", chunk_size=1, cache_dir=tmp_path / "cache")
    assert dataset.episodes == (0, 1)
    assert sample(dataset, 0).images["wrist"].shape == (32, 32, 3)
    shown = [int(sample(dataset, index).images["primary"][0, 0, 0]) for index in range(len(dataset))]
    assert shown == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    actions = [np.delete(recorded[0]["actions"], 2, axis=0), recorded[2]["actions"]]
    np.testing.assert_array_equal(
        np.concatenate([sample(dataset, index).actions for index in range(len(dataset))]),
        np.concatenate(actions).astype(np.float32),
    )


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(DatasetError, match="no files"):
        LiberoDemonstrations.open(tmp_path)
    damaged = tmp_path / "x_demo.hdf5"
    damaged.write_bytes(b"not HDF5")
    with pytest.raises(DatasetError, match="is damaged"):
        LiberoDemonstrations.open(tmp_path)
    damaged.unlink()
    whole = demonstration(0)
    del whole["obs/gripper_states"]
    write_file(tmp_path, [whole])
    with pytest.raises(DatasetError, match="gripper_states"):
        list(LiberoDemonstrations.open(tmp_path))
    write_file(tmp_path, [demonstration(0, still=range(6))])
    with pytest.raises(DatasetError, match="no-ops only"):
        list(LiberoDemonstrations.open(tmp_path))
    write_file(tmp_path / "other", [demonstration(0)], task="pick_up_the_alphabet_soup_and_place_it_in_the_baskets")
    with pytest.raises(DatasetError, match=r"no task of the installed LIBERO\. Did you mean"):
        Regeneration(LiberoDemonstrations.open(tmp_path / "other"), FakeEnv)


@pytest.mark.parametrize("name", ["actions", "obs/ee_states", "obs/agentview_rgb"])
def test_what_a_demonstration_lacks_is_named(tmp_path, name):
    """File, demonstration and key: when it is missing, empty, or of another length than the actions."""
    for spoil, words in ((None, "has no rows"), (slice(0, 0), "has no rows"), (slice(0, 3), "has . rows")):
        whole, bad = demonstration(0), demonstration(1)
        bad[name] = bad[name][spoil] if spoil else None
        if bad[name] is None:
            del bad[name]
        path = write_file(tmp_path, [whole, bad])
        with pytest.raises(DatasetError, match=f"{path.name}': demonstration '/data/demo_1' {words}"):
            list(LiberoDemonstrations.open(tmp_path))


def test_a_file_without_demonstrations_or_sentence(tmp_path):
    with h5py.File(tmp_path / "x_demo.hdf5", "w") as file:
        file["observations"] = [1, 2]
    with pytest.raises(DatasetError, match="holds no LIBERO demonstrations"):
        LiberoDemonstrations.open(tmp_path)
    path = write_file(tmp_path / "d", [demonstration(0)])
    with h5py.File(path, "a") as file:
        del file["data"].attrs["problem_info"]
    with pytest.raises(DatasetError, match="no attribute problem_info"):
        list(LiberoDemonstrations.open(tmp_path / "d"))


def test_regenerating_needs_demonstrations(tmp_path):
    result = CliRunner().invoke(app, ["dataset", "convert", str(tmp_path), str(tmp_path / "v3"), "--regenerate"])
    assert isinstance(result.exception, ConfigError)


class RarelyRenderedEnv(LiberoEnv):
    """Renders the first image of an episode only: the images are not what the test below is about."""

    def restore(self, state, *, episode=0):
        super().restore(state, episode=episode)
        self.images = {camera: self.frame(camera) for camera in ("primary", "wrist")}

    def observe(self):
        return Observation(self.images, self.state(), self.task.instruction)


@pytest.mark.sim
@pytest.mark.slow
def test_a_replay_in_the_simulator_repeats_the_demonstration_exactly(tmp_path):
    states, actions = [], []
    with RarelyRenderedEnv("libero_object", 0, camera_size=64) as env:
        env.reset(Seed(3))
        start = env.sim.get_state().flatten()
        env.restore(start)
        expert = make_expert(env.task)
        expert.reset(env)
        solved = False
        while not solved:
            states.append(env.state())
            actions.append(np.asarray(expert.act(env), np.float32))
            solved = env.step(actions[-1])
        with pytest.raises(ConfigError, match="states of"):
            env.restore(start[:-1])
        recorded = demonstration(0) | {"actions": np.stack(actions), "states": start[None]}
        write_file(tmp_path / "libero_object", [recorded], task=env.task.name)
        env.close = lambda: None  # one start of the simulator is enough
        source = Regeneration(LiberoDemonstrations.open(tmp_path / "libero_object"), lambda *_: env, camera_size=64)
        (episode,) = source
        del env.close
    assert source.dropped == 0
    np.testing.assert_array_equal(episode.columns["observation.state"], np.stack(states))
    assert episode.images[PRIMARY][0].shape == (64, 64, 3)
