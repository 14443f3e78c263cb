"""A damaged checkpoint gives one clear error and executes nothing."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint_fakes as fakes
from full_disk import no_file_beyond
from rdvla.checkpoints import load, save_native, save_official
from rdvla.checkpoints.lerobot import save_lerobot
from rdvla.errors import CheckpointError, StorageError
from rdvla.policies.sources import choose_policy

EXECUTED = []


class Bomb:
    """Unpickling this calls a function."""

    def __reduce__(self):
        return EXECUTED.append, ("boom",)


def edit_safetensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_pt(path, change):
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def head_file(directory):
    (path,) = directory.glob("action_head--*.pt")
    return path


def rename(tensors):
    name = sorted(tensors)[3]
    tensors[name + "x"] = tensors.pop(name)


def transpose(tensors):
    name = next(name for name, value in tensors.items() if value.ndim == 2 and value.shape[0] != value.shape[1])
    tensors[name] = tensors[name].T.contiguous()


def other_statistics(directory, name="dataset_statistics.json"):
    document = json.loads((directory / name).read_text())
    for entry in document.values():
        entry["action"] = {key: value[:6] for key, value in entry["action"].items()}
    (directory / name).write_text(json.dumps(document))


def two_heads(directory):
    (directory / "action_head--99_checkpoint.pt").write_bytes(head_file(directory).read_bytes())


def bomb(directory):
    head_file(directory).write_bytes(pickle.dumps({"model.gamma_init": Bomb()}))


def zipped_bomb(directory):
    torch.save({"model.gamma_init": Bomb()}, head_file(directory))


def wrong_dtype(tensors):
    tensors[sorted(tensors)[0]] = tensors[sorted(tensors)[0]].float()


def vlm(change):
    return lambda directory: edit_safetensors(directory / "model.safetensors", change)


def in_head(change):
    return lambda directory: edit_pt(head_file(directory), change)


def add_one(tensors):
    tensors["extra.weight"] = torch.zeros(2, dtype=torch.bfloat16)


def json_edit(name, change):
    def edit(directory):
        (path,) = directory.glob(name)
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit


RELEASED = {
    "truncated VLM": (lambda d: truncate(d / "model.safetensors"), "model.safetensors' is damaged"),
    "truncated head": (lambda d: truncate(head_file(d)), "damaged"),
    "empty head": (lambda d: head_file(d).write_bytes(b""), "damaged"),
    "renamed VLM key": (vlm(rename), r"missing: .*unknown: .*x\b"),
    "renamed head key": (in_head(rename), r"missing: .*unknown: .*x\b"),
    "dropped VLM key": (vlm(lambda t: t.pop("projector.fc2.bias")), "missing: projector.fc2.bias"),
    "dropped head key": (in_head(lambda t: t.pop("model.gamma_adapt")), "missing: model.gamma_adapt"),
    "added VLM key": (vlm(add_one), "unknown: extra.weight"),
    "added head key": (in_head(add_one), "unknown: extra.weight"),
    "transposed in the VLM": (vlm(transpose), "wrong shape: .* instead of"),
    "transposed in the head": (in_head(transpose), "wrong shape: .* instead of"),
    "wrong dtype in the VLM": (vlm(wrong_dtype), "not bfloat16: .* float32"),
    "wrong dtype in the head": (in_head(wrong_dtype), "not bfloat16: .* float32"),
    "two head files": (two_heads, "several files"),
    "no head file": (lambda d: head_file(d).unlink(), "no file 'action_head"),
    "head of another step": (
        lambda d: head_file(d).rename(d / "action_head--13_checkpoint.pt"),
        "files of different steps",
    ),
    "no statistics": (lambda d: (d / "dataset_statistics.json").unlink(), "dataset_statistics.json' is missing"),
    "statistics of another action size": (other_statistics, "action size 6 but the network has 7"),
    "pickle bomb": (bomb, "nothing in it was executed"),
    "zipped pickle bomb": (zipped_bomb, "nothing in it was executed"),
    "head file with an object": (in_head(lambda t: t.update(note="hello")), "'note' is a str"),
    "unknown head field": (
        json_edit("action_head_config--*.json", lambda c: c.update(num_headz=2)),
        "Did you mean 'num_heads'",
    ),
    "head field missing": (json_edit("action_head_config--*.json", lambda c: c.pop("num_heads")), "lacks num_heads"),
    "heads that do not divide": (
        json_edit("action_head_config--*.json", lambda c: c.update(num_heads=3)),
        "multiple of num_heads",
    ),
    "layer beyond the language model": (
        json_edit("action_head_config--*.json", lambda c: c.update(coda_vlm_layers=[9])),
        "within 0..2",
    ),
    "another language model": (
        json_edit("config.json", lambda c: c["text_config"].update(model_type="llama")),
        "only 'qwen2' is supported",
    ),
    "config.json cut": (lambda d: truncate(d / "config.json"), "config.json' is not valid JSON"),
    "no tokenizer": (
        lambda d: [(d / name).unlink() for name in ("tokenizer.json", "vocab.json")],
        "vocab.json' is missing",
    ),
    "tokenizer cut": (lambda d: truncate(d / "tokenizer.json"), "tokenizer.json' is damaged"),
}


@pytest.mark.parametrize("damage", RELEASED)
def test_released_layout(tmp_path, damage):
    edit, message = RELEASED[damage]
    directory = tmp_path / "released"
    save_official(directory, fakes.make("released", dtype=torch.bfloat16))
    load(directory)
    edit(directory)
    EXECUTED.clear()
    with pytest.raises(CheckpointError, match=message):
        load(directory)
    assert EXECUTED == []


NATIVE = {
    "truncated": (lambda d: truncate(d / "model.safetensors"), "is damaged"),
    "renamed key": (vlm(rename), r"missing: .*unknown: .*x\b"),
    "dropped key": (vlm(lambda t: t.pop("latent_tokens")), "missing: latent_tokens"),
    "added key": (vlm(lambda t: t.update(extra=torch.zeros(1))), "unknown: extra"),
    "transposed": (vlm(transpose), "wrong shape: .* instead of"),
    "wrong dtype": (vlm(lambda t: t.update(latent_tokens=t["latent_tokens"].half())), "not float32: latent_tokens"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors' is missing"),
    "no statistics": (lambda d: (d / "norm_stats.json").unlink(), "norm_stats.json' is missing"),
    "statistics of another action size": (lambda d: other_statistics(d, "norm_stats.json"), "action size 6"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json' is missing"),
    "tokenizer cut": (lambda d: truncate(d / "tokenizer.json"), "tokenizer.json' is damaged"),
    "config cut": (lambda d: truncate(d / "config.json"), "not valid JSON"),
    "unknown field": (json_edit("config.json", lambda c: c["model"]["head"].update(num_headz=2)), "num_heads"),
    "unknown image field": (json_edit("config.json", lambda c: c["images"].update(sise=2)), "sise"),
    "a later version": (json_edit("config.json", lambda c: c.update(format_version=2)), "upgrade rdvla"),
    "other pixels": (json_edit("config.json", lambda c: c["images"].update(size=64)), "64 pixels but the tower"),
}


@pytest.mark.parametrize("damage", NATIVE)
def test_native(tmp_path, damage):
    edit, message = NATIVE[damage]
    directory = tmp_path / "native"
    save_native(directory, fakes.make())
    load(directory)
    edit(directory)
    with pytest.raises(CheckpointError, match=message):
        load(directory)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("kind", ["native", "released"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, kind):
    """Whichever file of a checkpoint a clone without Git LFS has left behind."""
    directory = tmp_path / kind
    (save_native if kind == "native" else save_official)(directory, fakes.make("released"))
    unread = {"generation_config.json", "processor_config.json", "special_tokens_map.json", "added_tokens.json"}
    unread |= {"vocab.json", "merges.txt", "tokenizer_config.json"}  # of the tokenizer's older form
    for path in sorted(directory.iterdir()):
        if path.name in unread:
            continue
        content = path.read_bytes()
        path.write_text(POINTER)
        with pytest.raises(CheckpointError, match=rf"{path.name}' is a Git LFS pointer.*git lfs pull"):
            load(directory)
        path.write_bytes(content)
    if kind == "released":
        (directory / "tokenizer.json").unlink()
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            content = (directory / name).read_bytes()
            (directory / name).write_text(POINTER)
            with pytest.raises(CheckpointError, match=rf"{name}' is a Git LFS pointer"):
                load(directory)
            (directory / name).write_bytes(content)
        load(directory)


def test_what_is_around_a_checkpoint_is_told_from_it(tmp_path, monkeypatch):
    """A training run instead of its policy; known without reading a weight."""
    run = tmp_path / "run"
    save_native(run / "checkpoints" / "000500" / "policy", fakes.make())
    save_native(run / "checkpoints" / "001000" / "policy", fakes.make())
    (run / "config.json").write_text('{"seed": 0}')
    monkeypatch.setattr("rdvla.policies.sources.fingerprint", lambda folder: pytest.fail("hashed"))
    for load_it in (load, lambda path: choose_policy(path, None)):
        with pytest.raises(
            CheckpointError, match=r"not a checkpoint: .* Did you mean '.*run/checkpoints/001000/policy'"
        ):
            load_it(run)
    save_native(run / "policy", fakes.make())
    with pytest.raises(CheckpointError, match=r"Did you mean '.*run/policy'\?"):
        load(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"--\*\.json\.$"):
        choose_policy(tmp_path / "empty", None)


@pytest.mark.parametrize("save", [save_native, save_official, save_lerobot])
@pytest.mark.parametrize("size", [100, 12_000, 60_000], ids=["nothing", "words", "half the weights"])
def test_a_full_disk_leaves_nothing(tmp_path, save, size):
    checkpoint = fakes.make("released")
    with no_file_beyond(size), pytest.raises(StorageError, match="cannot write"):
        save(tmp_path / "policy", checkpoint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("std", -0.5), ("std", 0.0), ("std", float("nan")), ("mean", float("inf"))]
)
def test_pixel_constants_that_turn_pictures_into_something_else(tmp_path, name, value):
    save_native(tmp_path / "policy", fakes.make("released"))
    path = tmp_path / "policy" / "config.json"
    document = json.loads(path.read_text())
    document["model"]["backbone"]["vision"]["dino"][name][1] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=rf"dino\.{name}\.1"):
        load(tmp_path / "policy")


def test_a_size_below_nothing(tmp_path):
    save_native(tmp_path / "policy", fakes.make("released"))
    path = tmp_path / "policy" / "config.json"
    document = json.loads(path.read_text())
    document["model"]["backbone"]["vision"]["dino"]["num_registers"] = -1
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="num_registers"):
        load(tmp_path / "policy")


@pytest.mark.parametrize("dtype", [[], {}, None, 3, "int8"])
def test_a_dtype_that_is_none(tmp_path, dtype):
    save_official(tmp_path / "policy", fakes.make("released"))
    path = tmp_path / "policy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": dtype}))
    with pytest.raises(CheckpointError, match="torch_dtype is"):
        load(tmp_path / "policy")
