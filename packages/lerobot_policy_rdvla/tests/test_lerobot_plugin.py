"""The plugin in a real LeRobot, through its own factories and commands (`make lerobot`)."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import LiberoEnv
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_policy_rdvla import RDVLAConfig
from lerobot_policy_rdvla.scratch import new_checkpoint

from rdvla.checkpoints import load
from rdvla.checkpoints.lerobot import save_lerobot
from rdvla.data.lerobot_meta import camera_feature, vector_feature
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.errors import CarryError, CheckpointError, ConfigError, ObservationError
from rdvla.policies import load_policy
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import Observation

register_third_party_plugins()

SHIPPED = "rdvla_tiny_libero"
SENTENCE = "pick up the milk and place it in the basket"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "pretrained_model"
    save_lerobot(folder, load(SHIPPED))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return demonstrations(tmp_path_factory.mktemp("dataset") / "demos")


def demonstrations(root, gripper=np.sign):
    """Two short episodes with LIBERO's cameras and sizes, written by rdvla."""
    rng = np.random.default_rng(0)
    features = {
        "observation.images.image": camera_feature(64, 64, "image"),
        "observation.images.image2": camera_feature(64, 64, "image"),
        "observation.state": vector_feature([f"s{i}" for i in range(8)]),
        "action": vector_feature([f"a{i}" for i in range(7)]),
    }
    writer = LeRobotWriter(root, fps=20, features=features)
    for _ in range(2):
        frames = list(rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8))
        state, action = (rng.normal(size=(12, size)) for size in (8, 7))
        action = np.sign(action)
        action[:, -1] = gripper(action[:, -1])
        columns = {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}
        pictures = {"observation.images.image": frames, "observation.images.image2": frames[::-1]}
        writer.add_episode(RecordedEpisode(SENTENCE, columns, pictures))
    writer.finalize()
    return root


def configured(folder, *overrides):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(overrides))
    config.device = "cpu"
    return config


def opened(folder, *overrides):
    config = configured(folder, *overrides)
    policy = get_policy_class("rdvla").from_pretrained(folder, config=config)
    return policy, make_pre_post_processors(config, str(folder))


def moment(seed=0, size=256):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    state = (0.1 * rng.normal(size=8)).astype(np.float32)
    theirs = {
        key: torch.from_numpy(image).permute(2, 0, 1).float() / 255
        for key, image in zip(("observation.images.image", "observation.images.image2"), images, strict=True)
    }
    ours = Observation({"primary": images[0], "wrist": images[1]}, state, SENTENCE)
    return {**theirs, "observation.state": torch.from_numpy(state), "task": SENTENCE}, ours


def batched(*seeds):
    rows = [moment(seed)[0] for seed in seeds]
    tensors = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key != "task"}
    return {**tensors, "task": [SENTENCE] * len(rows)}


def test_lerobot_discovers_it_by_its_name():
    assert importlib.metadata.distribution("lerobot_policy_rdvla").metadata["Name"] == "lerobot_policy_rdvla"
    assert "rdvla" in PreTrainedConfig.get_known_choices()


@pytest.mark.parametrize("stop", [StopRule.fixed(4), StopRule("action_mse", 1e-4, max_depth=16)], ids=str)
def test_the_same_chunk_as_load_policy(pretrained, stop):
    overrides = ["--depth=4"] if stop.name == "fixed" else ["--stop=action_mse", "--threshold=1e-4", "--max_depth=16"]
    policy, (before, after) = opened(pretrained, *overrides)
    theirs, ours = moment()
    found = after(policy.predict_action_chunk(before(theirs), seeds=[11]))
    expected = load_policy(SHIPPED).infer(ours, Ask(stop, seed=11))
    assert found.shape == (1, 8, 7)
    np.testing.assert_allclose(found[0].numpy(), expected.actions, atol=1e-6)


def test_by_type_with_the_features_of_lerobot_s_libero():
    config = RDVLAConfig(checkpoint=SHIPPED, depth=4, device="cpu")
    policy = make_policy(config, env_cfg=LiberoEnv(observation_height=256, observation_width=256))
    policy.eval()
    before, after = make_pre_post_processors(config)
    theirs, ours = moment()
    found = after(policy.predict_action_chunk(before(theirs), seeds=[11]))
    expected = load_policy(SHIPPED).infer(ours, Ask(StopRule.fixed(4), seed=11))
    np.testing.assert_allclose(found[0].numpy(), expected.actions, atol=1e-6)


def test_rows_execute_their_own_chunks(pretrained, caplog):
    policy, _ = opened(pretrained, "--seed=3", "--n_action_steps=2", "--depth=2")
    both = [policy.select_action(batched(1, 2)) for _ in range(3)]
    assert [tuple(action.shape) for action in both] == [(2, 7)] * 3
    with caplog.at_level("INFO"):
        policy.reset()
    assert "4 decisions, 2.00 iterations on average" in caplog.text
    assert "total ms" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        policy.select_action(batched(1))
        del policy
    assert "1 decisions, 2.00 iterations on average" in caplog.text


def test_warm_starts_end_with_their_episode_and_sentence(pretrained):
    policy, (before, _) = opened(pretrained, "--depth=4", "--start=half")
    one, two = (moment(seed)[0] for seed in (1, 2))
    other = {**two, "task": "open the drawer"}

    def decide(seen, seed):
        return policy.predict_action_chunk(before(dict(seen)), seeds=[seed])

    first, warm, told = decide(one, 1), decide(two, 2), decide(other, 3)
    assert policy._carries[0] is not None
    for seen, seed, expected in ((one, 1, first), (other, 3, told)):
        policy.reset()
        torch.testing.assert_close(decide(seen, seed), expected, atol=0, rtol=0)
    policy.reset()
    assert (decide(two, 2) - warm).abs().max() > 0
    policy._carries = [b"another policy's"]
    with pytest.raises(CarryError, match="another policy's, or none"):
        decide(two, 2)


def test_saved_loaded_and_open_for_rdvla(pretrained, tmp_path):
    policy, _ = opened(pretrained)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1e-3)
    policy.save_pretrained(tmp_path / "saved")
    again = get_policy_class("rdvla").from_pretrained(tmp_path / "saved", config=configured(tmp_path / "saved"))
    for (name, one), other in zip(policy.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert load_policy(tmp_path / "saved").metadata.chunk_size == 8


def test_weights_that_are_missing_are_no_policy(pretrained, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(pretrained, tmp_path / "torn")
    tensors = load_file(tmp_path / "torn" / "model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, tmp_path / "torn" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks|missing"):
        opened(tmp_path / "torn")
    with pytest.raises(ConfigError, match="strict"):
        get_policy_class("rdvla").from_pretrained(pretrained, config=configured(pretrained), strict=False)


def test_mistakes_are_named(pretrained):
    policy, (before, _) = opened(pretrained)
    theirs, _ = moment()
    renamed = {("observation.images.front" if key.endswith("image") else key): value for key, value in theirs.items()}
    with pytest.raises(ObservationError, match=r"policy\.cameras"):
        policy.predict_action_chunk(before(renamed))
    with pytest.raises(ObservationError, match="sentence"):
        policy.predict_action_chunk(before({**theirs, "task": ""}))
    with pytest.raises(ConfigError, match="give one of the two"):
        configured(pretrained, "--depth=4", "--stop=latent")
    with pytest.raises(ConfigError, match=r"policy\.threshold belongs to an adaptive rule"):
        configured(pretrained, "--depth=4", "--threshold=0.1")
    with pytest.raises(ConfigError, match="n_action_steps"):
        configured(pretrained, "--n_action_steps=9")
    with pytest.raises(ConfigError, match=r"policy\.precision must be one of .*int8, found 'int4'"):
        configured(pretrained, "--precision=int4")
    with pytest.raises(ConfigError, match=r"policy\.seed must be at least 0, found -1"):
        configured(pretrained, "--seed=-1")
    with pytest.raises(ConfigError, match="'open_is_negative'; drop 'open_is_positive'"):
        opened(pretrained, "--gripper=open_is_positive")
    blind = {key: value for key, value in theirs.items() if key != "observation.state"}
    with pytest.raises(ObservationError, match=r"no 'observation\.state'.*there is: observation\.images"):
        policy.predict_action_chunk(before(blind))


def test_a_policy_that_is_not_there(tmp_path):
    of_type = get_policy_class("rdvla")
    with pytest.raises(CheckpointError, match="no checkpoint directory at"):
        of_type.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"rdvla convert SOURCE DESTINATION --to lerobot"):
        of_type.from_pretrained(SHIPPED)


def test_steps_are_known_only_where_actions_are_executed(pretrained, monkeypatch):
    policy, (before, _) = opened(pretrained, "--depth=1", "--n_action_steps=2")
    seen = before(moment()[0])
    policy.select_action(seen)
    steps, infer = [], policy._frozen.infer_batch
    monkeypatch.setattr(
        policy._frozen, "infer_batch", lambda shown, asks: steps.extend(ask.step for ask in asks) or infer(shown, asks)
    )
    for _ in range(2):
        policy.select_action(seen)
    policy.predict_action_chunk(seen)
    assert steps == [2, None], "a server does not know how many of a chunk are executed"


def described(root):
    return LeRobotDataset("rdvla/demos", root=root).meta


def test_training_mistakes_are_named(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"decides 8 actions at once.*--policy\.chunk_size=8"):
        make_policy(RDVLAConfig(checkpoint=SHIPPED, chunk_size=25, device="cpu"), ds_meta=described(dataset))
    halves = described(demonstrations(tmp_path / "halves", gripper=lambda command: (command + 1) / 2))
    with pytest.raises(ConfigError, match=r"no gripper command of -1 and \+1.*Set policy\.gripper"):
        make_policy(RDVLAConfig(gripper="open_is_negative", device="cpu"), ds_meta=halves)
    elsewhere = RDVLAConfig(checkpoint=SHIPPED, cameras={"primary": "observation.images.front"}, device="cpu")
    with pytest.raises(ConfigError, match=r"camera 'primary' is 'observation\.images\.front'.*--policy\.cameras"):
        make_policy(elsewhere, ds_meta=described(dataset))


def test_cameras_that_would_have_one_name(dataset):
    features = {f"observation.images.{side}.top": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for side in ("l", "r")}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    acts = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    config = RDVLAConfig(input_features=features, output_features=acts, device="cpu")
    with pytest.raises(ConfigError, match=r"would have the same name.*--policy\.cameras"):
        new_checkpoint(config, described(dataset))


def run(*command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.setdefault("MUJOCO_GL", "egl")
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def train(dataset, output, *options, steps=2):
    return run(
        "lerobot-train",
        "--dataset.repo_id=rdvla/demos",
        f"--dataset.root={dataset}",
        f"--output_dir={output}",
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        f"--steps={steps}",
        "--save_freq=2",
        "--log_freq=1",
        "--batch_size=2",
        "--num_workers=0",
        *options,
    )


@pytest.mark.slow
def test_trained_from_scratch_resumed_and_fine_tuned(dataset, tmp_path):
    train(dataset, tmp_path / "run", "--policy.type=rdvla", "--policy.gripper=open_is_negative")
    saved = tmp_path / "run/checkpoints/last/pretrained_model"
    first = load(saved)
    assert first.actions.gripper == "open_is_negative"
    assert first.statistics["dataset"].num_transitions == 24
    run(
        "lerobot-train",
        f"--config_path={saved / 'train_config.json'}",
        "--resume=true",
        "--steps=4",
    )
    assert (tmp_path / "run/checkpoints/000004").is_dir()
    train(dataset, tmp_path / "tuned", f"--policy.path={saved}")
    tuned = load(tmp_path / "tuned/checkpoints/last/pretrained_model")
    assert tuned.model.state_dict().keys() == first.model.state_dict().keys()
    train(dataset, tmp_path / "started", "--policy.type=rdvla", f"--policy.checkpoint={SHIPPED}")
    assert (
        load(tmp_path / "started/checkpoints/last/pretrained_model").statistics.keys()
        == load(SHIPPED).statistics.keys()
    )


@pytest.mark.slow
def test_it_plays_libero(pretrained, tmp_path):
    run(
        "lerobot-eval",
        f"--policy.path={pretrained}",
        "--policy.device=cpu",
        "--policy.depth=4",
        "--policy.n_action_steps=4",
        "--policy.seed=7",
        "--env.type=libero",
        "--env.task=libero_object",
        "--env.task_ids=[3]",
        "--env.observation_height=256",
        "--env.observation_width=256",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path / 'eval'}",
    )
    info = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1
