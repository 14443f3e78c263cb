"""Our own format: complete, exact, atomic."""

import importlib.metadata
import json
import os

import pytest
import torch
from safetensors import safe_open

import checkpoint_fakes as fakes
from rdvla import __version__
from rdvla.checkpoints import load, load_native, save_native
from rdvla.checkpoints.native import versions
from rdvla.errors import CheckpointError, StorageError
from rdvla.policies.sources import fingerprint


@pytest.mark.parametrize("kind", ["laptop", "released"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tmp_path, kind, dtype):
    checkpoint = fakes.make(kind, dtype=dtype)
    save_native(tmp_path / "ck", checkpoint)
    loaded = load(tmp_path / "ck")
    assert fakes.same_tensors(checkpoint, loaded)
    assert torch.equal(fakes.act(checkpoint), fakes.act(loaded))
    assert loaded.model.config == checkpoint.model.config
    assert loaded.image_path == checkpoint.image_path
    assert loaded.actions == checkpoint.actions
    assert (loaded.step, loaded.notes) == (12, {"recipe": "test"})
    assert loaded.tokenizer.to_str() == checkpoint.tokenizer.to_str()
    own, other = (c.statistics["libero_spatial_no_noops"] for c in (checkpoint, loaded))
    assert own.action.to_json() == other.action.to_json()
    assert own.state.to_json() == other.state.to_json()
    assert not loaded.model.training


def test_files_and_what_config_says(tmp_path):
    save_native(tmp_path / "ck", fakes.make())
    assert sorted(os.listdir(tmp_path / "ck")) == [
        "config.json",
        "model.safetensors",
        "norm_stats.json",
        "tokenizer.json",
    ]
    assert os.listdir(tmp_path) == ["ck"]
    document = json.loads((tmp_path / "ck" / "config.json").read_text())
    assert document["format"] == "rdvla"
    assert document["gripper"] == "open_is_negative"
    assert "max_steps" not in document
    assert document["images"]["size"] == 32
    assert document["model"]["head"]["recurrent_layers"] == [2, 2]
    assert {"python", "torch", "transformers", "rdvla"} <= set(document["versions"])
    with safe_open(tmp_path / "ck" / "model.safetensors", "pt") as file:
        assert "head.core.adapter.weight" in file.keys()  # noqa: SIM118


def test_loading_allocates_no_second_copy_and_leaves_nothing_empty(tmp_path):
    save_native(tmp_path / "ck", fakes.make())
    model = load_native(tmp_path / "ck").model
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])


class TestSaving:
    def test_refuses_to_overwrite_unless_told(self, tmp_path):
        save_native(tmp_path / "ck", fakes.make(seed=0))
        with pytest.raises(StorageError, match="already exists"):
            save_native(tmp_path / "ck", fakes.make(seed=1))
        save_native(tmp_path / "ck", fakes.make(seed=1), replace=True)
        assert fakes.same_tensors(load(tmp_path / "ck"), fakes.make(seed=1))
        assert os.listdir(tmp_path) == ["ck"]

    def test_a_full_disk_leaves_the_old_one_and_no_debris(self, tmp_path, monkeypatch):
        save_native(tmp_path / "ck", fakes.make(seed=0))

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("rdvla.checkpoints.tensors.save_file", full)
        with pytest.raises(StorageError, match="the disk is full"):
            save_native(tmp_path / "ck", fakes.make(seed=1), replace=True)
        assert fakes.same_tensors(load(tmp_path / "ck"), fakes.make(seed=0))
        assert os.listdir(tmp_path) == ["ck"]

    def test_where_a_file_is_in_the_way(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError):
            save_native(tmp_path / "file" / "ck", fakes.make())

    def test_mixed_dtypes(self, tmp_path):
        checkpoint = fakes.make()
        checkpoint.model.head.bfloat16()
        with pytest.raises(CheckpointError, match="bfloat16, float32"):
            save_native(tmp_path / "ck", checkpoint)


class TestParts:
    def test_statistics_of_another_robot(self):
        checkpoint = fakes.make()
        with pytest.raises(CheckpointError, match="action size 6 but the network has 7"):
            type(checkpoint)(
                checkpoint.model, {"x": fakes.statistics(action_dim=6)}, checkpoint.tokenizer, checkpoint.image_path
            )

    def test_an_image_path_of_another_size(self):
        checkpoint = fakes.make()
        with pytest.raises(CheckpointError, match="224 pixels but the tower takes 32"):
            type(checkpoint)(checkpoint.model, checkpoint.statistics, checkpoint.tokenizer, checkpoint.actions)


def test_a_source_tree_that_is_not_installed_says_its_version(monkeypatch):
    """It was looked up at the end of a training run, which then could not be saved."""

    def version(name):
        if name == "rdvla":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions()["rdvla"] == __version__


def test_a_fingerprint_is_of_the_checkpoint_and_not_of_what_lies_beside_it(tmp_path):
    save_native(tmp_path / "policy", fakes.make())
    expected = fingerprint(tmp_path / "policy")
    for name in (
        ".cache/huggingface/download/config.json.metadata",
        ".git/x.json",
        "plot.png",
        "README.md",
        ".DS_Store",
    ):
        file = tmp_path / "policy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("something")
    assert fingerprint(tmp_path / "policy") == expected
    (tmp_path / "policy/tokenizer.json").write_text("{}")
    assert fingerprint(tmp_path / "policy") != expected
