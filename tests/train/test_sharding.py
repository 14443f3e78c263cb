"""Weights spread over two processes (FSDP2, gloo): the same training, and the same checkpoints, as with whole ones."""

import json
import shutil
import signal
import time

import pytest
import torch
from train_fakes import RELEASED_KIND, Crew, in_processes, released_network, run_small, small

from rdvla.checkpoints import load
from rdvla.errors import ConfigError
from rdvla.train.config import LoraConfig, TrainConfig
from rdvla.train.lora import add_adapters
from rdvla.train.sharding import gathered, is_sharded, shard

pytest.importorskip("peft", reason="peft is not installed (extra 'train')")

CHANGES = {
    "model": RELEASED_KIND | {"lora": {"rank": 2}, "gradient_checkpointing": True},
    "optimizer": {"schedule": "constant", "warmup_steps": 2},
    "grad_accumulation_steps": 2,
    "validate_freq": 2,
    "max_steps": 3,
    "keep": 3,
}


def train_by_two(dataset, folder, **changes):
    values = small(dataset, folder, **(CHANGES | changes))
    values["data"]["validation_fraction"] = 0.2
    crew = Crew(folder.parent / f"{folder.name}_errors", values, count=2)
    codes = crew.wait()
    assert codes == [0, 0], [error.read_text() for error in crew.errors if error.exists()]


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = ("samples_per_second", "memory_gb")
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


@pytest.fixture(scope="module")
def sharded(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        train_by_two(dataset, folder, sharded=True)
    return folder


def test_the_losses_are_those_of_whole_copies(dataset, sharded, tmp_path):
    train_by_two(dataset, tmp_path / "whole")
    found, expected = logged(sharded), logged(tmp_path / "whole")
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    assert "validation_l1/depth_2" in found[2]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4)


def test_an_interrupted_run_continues_bit_for_bit(dataset, sharded, tmp_path):
    """From a copy of the folder without its last step; and then with whole copies, from the same file."""
    for name, spread_again in (("again", True), ("whole", False)):
        shutil.copytree(sharded, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "000003")
        train_by_two(dataset, tmp_path / name, sharded=spread_again)
    folders = (sharded, tmp_path / "again", tmp_path / "whole")
    before, again, whole = (load(folder / "policy").model.state_dict() for folder in folders)
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
    assert all(torch.allclose(whole[name], tensor, atol=1e-5) for name, tensor in before.items())


def test_each_process_holds_half(tmp_path):
    in_processes(2, _check_parts)


def _check_parts():
    model = released_network()
    add_adapters(model, LoraConfig(rank=2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    shard(model, torch.device("cpu"))
    assert is_sharded(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        assert torch.equal(gathered(parameter.detach()), before[name]), name
    held = sum(parameter.to_local().numel() for name, parameter in after.items() if name != "head.gamma_init")
    assert 0.4 < held / sum(tensor.numel() for tensor in before.values()) < 0.6


def test_a_process_that_dies_stops_the_other(dataset, tmp_path):
    crew = Crew(tmp_path, small(dataset, tmp_path / "run", max_steps=10_000, save_freq=10_000, sharded=True), count=2)
    while crew.running and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    crew.members[0].kill()
    assert crew.wait() == [-signal.SIGKILL, 2]
    assert "another process has ended without a word" in crew.errors[1].read_text()


def test_one_process_has_nobody_to_share_with(dataset, tmp_path):
    run_small(dataset, tmp_path / "run", max_steps=1, sharded=True)
    with pytest.raises(ConfigError, match="whole matrices"):
        TrainConfig.build(small(dataset, "x", sharded=True, optimizer={"muon": True}))
