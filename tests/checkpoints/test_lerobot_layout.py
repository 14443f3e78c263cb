"""LeRobot's `pretrained_model` folder, both ways, without LeRobot."""

import json

import pytest
from typer.testing import CliRunner

import checkpoint_fakes as fakes
from rdvla.checkpoints import load, save_native
from rdvla.checkpoints.lerobot import is_lerobot, save_lerobot
from rdvla.cli.main import app
from rdvla.data.lerobot_meta import camera_key
from rdvla.errors import CheckpointError, StorageError


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=True)


def test_there_and_back_bit_for_bit(tmp_path):
    save_native(tmp_path / "ours", fakes.make())
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--to", "lerobot").exit_code == 0
    assert convert(tmp_path / "theirs", tmp_path / "again").exit_code == 0
    for name in ("model.safetensors", "norm_stats.json", "tokenizer.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert is_lerobot(tmp_path / "theirs")
    assert not is_lerobot(tmp_path / "ours")


def test_it_says_what_lerobot_reads(tmp_path):
    checkpoint = fakes.make()
    save_lerobot(tmp_path / "theirs", checkpoint)
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert config["type"] == "rdvla"
    assert (config["chunk_size"], config["n_action_steps"]) == (4, 4), "the plugin's own 5 would be refused"
    assert set(config["input_features"]) == {*map(camera_key, checkpoint.model.config.cameras), "observation.state"}
    assert config["output_features"]["action"]["shape"] == [checkpoint.model.config.head.action_dim]
    assert camera_key("primary") == "observation.images.image"
    assert camera_key("front") == "observation.images.front"
    with pytest.raises(StorageError, match="already exists"):
        save_lerobot(tmp_path / "theirs", checkpoint)


def test_damage_is_named(tmp_path):
    save_lerobot(tmp_path / "theirs", fakes.make())
    (tmp_path / "theirs/rdvla/config.json").rename(tmp_path / "moved.json")
    with pytest.raises(CheckpointError, match="no folder rdvla/"):
        load(tmp_path / "theirs")
    (tmp_path / "moved.json").rename(tmp_path / "theirs/rdvla/config.json")
    (tmp_path / "theirs/model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load(tmp_path / "theirs")
