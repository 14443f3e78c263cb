"""The released layout: read, written, converted; directly, as shards, with either prefix, from the hub's cache."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import checkpoint_fakes as fakes
from rdvla.checkpoints import load, save_native, save_official
from rdvla.cli.convert import convert_command
from rdvla.errors import CheckpointError
from rdvla.model.rdvla import RDVLA
from rdvla.train.presets import changed

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "parity" / "golden" / "vlm"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded reference tensors are not on this machine")

app = typer.Typer()
app.command()(convert_command)


@pytest.fixture
def released(tmp_path):
    save_official(tmp_path / "released", fakes.make("released", dtype=torch.bfloat16))
    return tmp_path / "released"


def snapshot(directory):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


def test_round_trip_is_bit_equal(released):
    checkpoint, loaded = fakes.make("released", dtype=torch.bfloat16), load(released)
    assert fakes.same_tensors(checkpoint, loaded)
    assert loaded.model.config == checkpoint.model.config
    assert loaded.image_path == checkpoint.image_path
    assert loaded.step == 12
    assert torch.equal(fakes.act(checkpoint), fakes.act(loaded))


def test_loading_never_writes(released):
    before = snapshot(released)
    released.chmod(0o555)
    load(released)
    released.chmod(0o755)
    assert snapshot(released) == before


def test_shards(released):
    tensors = load_file(released / "model.safetensors")
    (released / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, released / file)
    weight_map = {name: file for file, own in halves.items() for name in own}
    (released / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert fakes.same_tensors(load(released), fakes.make("released", dtype=torch.bfloat16))

    weight_map.pop(names[0])
    (released / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"disagree: action_queries\.weight"):
        load(released)


def test_prefix_of_distributed_training(released):
    for path in released.glob("*.pt"):
        tensors = torch.load(path, weights_only=True)
        torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    assert fakes.same_tensors(load(released), fakes.make("released", dtype=torch.bfloat16))


def test_both_spellings_of_the_head_type(released):
    (path,) = released.glob("action_head_config--*.json")
    path.write_text(path.read_text().replace('"ActionHeadRecurrent"', '"ActionHeadRecurrentPro"'))
    load(released)


def test_tied_output_layer_is_accepted_only_if_tied(released):
    path = released / "model.safetensors"
    tensors = load_file(path)
    embeddings = tensors["language_model.model.embed_tokens.weight"]
    save_file(tensors | {"language_model.lm_head.weight": embeddings.clone()}, path)
    load(released)
    save_file(tensors | {"language_model.lm_head.weight": embeddings + 1}, path)
    with pytest.raises(CheckpointError, match="untied"):
        load(released)


def test_without_tower_sizes_the_error_lists_the_shapes(released):
    (released / "rdvla.json").unlink()
    with pytest.raises(CheckpointError, match=r"featurizer.*instead of"):
        load(released)


def test_tower_sizes_by_timm_names(released):
    towers = {
        "vit_large_patch14_reg4_dinov2.lvd142m": {"depth": 3, "embed_dim": 8, "num_heads": 2},
        "vit_so400m_patch14_siglip_224": {"depth": 2, "embed_dim": 12, "num_heads": 2},
        "image_size": 28,
    }
    (released / "rdvla.json").write_text(json.dumps({"vision": towers}))
    assert load(released).model.config == fakes.make("released").model.config
    (released / "rdvla.json").write_text(json.dumps({"vision": {"dyno": {}}}))
    with pytest.raises(CheckpointError, match="Did you mean 'dino'"):
        load(released)


def test_pixel_constants_that_take_effect(released):
    path = released / "preprocessor_config.json"
    document = json.loads(path.read_text())
    document["means"], document["tvf_normalize_params"][0]["mean"] = [[0.1] * 3] * 2, [0.25, 0.5, 0.75]
    path.write_text(json.dumps(document))
    assert load(released).model.config.backbone.vision.dino.mean == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"projector_width": 40}, "projector_width is 40, not 80"),
        ({"vision": {"siglip": {"attention_pool": False}}}, "siglip.attention_pool is False"),
        ({"vision": {"dino": {"layer_scale": False}}}, "dino.layer_scale is False"),
    ],
)
def test_what_a_reader_would_take_for_granted_is_not_written(tmp_path, backbone, message):
    checkpoint = fakes.make("released")
    config = changed(checkpoint.model.config, backbone)
    with pytest.raises(CheckpointError, match=f"cannot hold this network: {message}"):
        save_official(tmp_path / "policy", replace(checkpoint, model=RDVLA(config)))


class TestConvert:
    def test_there_and_back(self, released, tmp_path):
        for source, target in (("released", "native"), ("native", "again")):
            result = CliRunner().invoke(app, [str(tmp_path / source), str(tmp_path / target)])
            assert result.exit_code == 0, result.output
        again = tmp_path / "again"
        assert sorted(os.listdir(again)) == sorted(os.listdir(released))
        assert (again / "model.safetensors").read_bytes() == (released / "model.safetensors").read_bytes()
        for path in released.glob("*.pt"):
            own, other = (torch.load(p, weights_only=True) for p in (path, again / path.name))
            assert list(own) == list(other)
            assert all(torch.equal(own[name], other[name]) for name in own)
        for name in ("dataset_statistics.json", "config.json", "tokenizer.json", "rdvla.json"):
            assert (again / name).read_bytes() == (released / name).read_bytes()

    def test_a_network_that_the_layout_cannot_hold(self, tmp_path):
        save_native(tmp_path / "native", fakes.make("laptop"))
        with pytest.raises(CheckpointError, match="backbone is 'tiny'"):
            CliRunner().invoke(app, [str(tmp_path / "native"), str(tmp_path / "out")], catch_exceptions=False)
        assert not (tmp_path / "out").exists()

    def test_a_head_that_the_layout_cannot_hold(self, tmp_path):
        with pytest.raises(CheckpointError, match="the Coda has no cross-attention"):
            save_official(tmp_path / "out", fakes.make("released", coda_cross_attention=False))
        assert not (tmp_path / "out").exists()


@needs_golden
class TestRecordedCheckpoint:
    @pytest.fixture
    def directory(self, tmp_path):
        shutil.copytree(GOLDEN / "ckpt_tiny", tmp_path / "tiny")
        sizes = json.loads((GOLDEN / "golden.json").read_text())["tiny_vision"]
        (tmp_path / "tiny" / "rdvla.json").write_text(json.dumps({"vision": sizes}))
        return tmp_path / "tiny"

    def test_round_trip_of_a_file_that_others_wrote(self, directory, tmp_path):
        save_native(tmp_path / "native", load(directory))
        save_official(tmp_path / "again", load(tmp_path / "native"))
        own, other = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "again"))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
        for path in directory.glob("*.pt"):
            own, other = (torch.load(p, weights_only=True) for p in (path, tmp_path / "again" / path.name))
            own = {name.removeprefix("module."): tensor for name, tensor in own.items()}
            assert own.keys() == other.keys()
            assert all(torch.equal(own[name], other[name]) for name in own)
        for name in ("vocab.json", "added_tokens.json", "dataset_statistics.json"):
            assert json.loads((directory / name).read_text()) == json.loads((tmp_path / "again" / name).read_text())
        assert (directory / "merges.txt").read_text() == (tmp_path / "again" / "merges.txt").read_text()

    def test_head_file_with_the_prefix(self, directory):
        plain = load(directory)
        shutil.copy(GOLDEN / "variant_ddp_prefix" / "action_head--40000_checkpoint.pt", directory)
        assert fakes.same_tensors(plain, load(directory))


class TestHub:
    @pytest.fixture
    def cache(self, released, tmp_path):
        """A hub cache that already holds owner/tiny at revision `main`."""
        commit = "0123456789abcdef0123456789abcdef01234567"
        root = tmp_path / "hub" / "models--owner--tiny"
        shutil.copytree(released, root / "snapshots" / commit)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        return tmp_path / "hub"

    def run(self, cache, expression):
        code = f"from rdvla.checkpoints import load\nfrom rdvla.errors import CheckpointError\n{expression}"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    def test_offline_from_the_cache(self, cache):
        result = self.run(cache, "print(load('owner/tiny', revision='main').step)")
        assert result.stdout.strip() == "12", result.stderr

    def test_offline_and_not_in_the_cache(self, cache):
        code = "try:\n    load('owner/other')\nexcept CheckpointError as error:\n    print(error)"
        assert "the hub cannot be reached" in self.run(cache, code).stdout

    def test_neither_path_nor_id(self):
        with pytest.raises(CheckpointError, match="no checkpoint directory"):
            load("/no/such/place")
        with pytest.raises(CheckpointError, match="no checkpoint directory"):
            load("justaname")

    def test_a_misspelt_shipped_policy(self):
        with pytest.raises(CheckpointError, match="Did you mean 'rdvla_tiny_libero'"):
            load("rdvla_tiny_liber")

    @pytest.mark.parametrize("name", ["", " "])
    def test_an_empty_variable_is_not_the_present_folder(self, released, monkeypatch, name):
        monkeypatch.chdir(released)
        with pytest.raises(CheckpointError, match="no checkpoint directory at"):
            load(name)

    def test_a_file_in_place_of_its_folder(self, released):
        with pytest.raises(CheckpointError, match="is a file; name the checkpoint directory"):
            load(released / "config.json")

    def test_a_revision_of_a_local_directory(self, released):
        with pytest.raises(CheckpointError, match="belongs to a hub id"):
            load(released, revision="main")

    def test_a_directory_that_is_no_checkpoint(self, tmp_path):
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            load(tmp_path)
