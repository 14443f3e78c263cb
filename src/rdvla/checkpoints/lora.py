"""A low-rank adapter (peft's file names) merged into a base VLM: W + scale * B @ A."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rdvla.checkpoints.tensors import only_tensors, read_json, read_pt, read_safetensors
from rdvla.errors import CheckpointError

CONFIG, WEIGHTS, OLDER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_TIED = "language_model.lm_head.weight"
# Variants of LoRA that change the formula; a released adapter uses none of them.
_PLAIN = {"use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "bias": "none"}
_EMPTY = ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")


def is_adapter(directory: Path) -> bool:
    """Say whether `directory` holds a peft adapter."""
    return (directory / CONFIG).is_file()


def merge_adapter(base: Mapping[str, Tensor], adapter: Path) -> dict[str, Tensor]:
    """Merge an adapter into a VLM.

    Args:
        base: the base VLM's tensors by published names, `action_queries.weight` included (no adapter contains it).
        adapter: directory with `adapter_config.json` and `adapter_model.safetensors` (or the `.bin` of older peft).

    Returns:
        The merged tensors; those without an adapter are the same objects.

    Raises:
        CheckpointError: the adapter is damaged, of another kind, or does not fit the base.
    """
    scale, rank = _scale_and_rank(adapter / CONFIG)
    pairs = _pairs(*_weights(adapter))
    result = dict(base)
    problems = []
    for name, (down, up) in pairs.items():
        weight = result.get(name)
        if name == _TIED and not up.any():
            continue
        if weight is None:
            problems.append(f"{name}: no such weight in the base")
        elif down.shape[0] != rank or up.flatten(1).shape != (weight.shape[0], rank):
            problems.append(
                f"{name}: A {list(down.shape)} and B {list(up.shape)} are not of rank {rank} for this weight"
            )
        elif down.flatten(1).shape[1] != weight.flatten(1).shape[1]:
            problems.append(f"{name}: A {list(down.shape)} does not fit the weight {list(weight.shape)}")
        else:
            result[name] = merged(weight, down, up, scale)
    if problems:
        raise CheckpointError(f"'{adapter}' does not fit its base: " + "; ".join(sorted(problems)[:12]) + ".")
    return result


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return W + scale * B @ A, the product rounded to the weight's dtype before it is added, as published.

    Args:
        weight: W `[out, ...]`, of a linear layer or a convolution.
        down: A `[rank, ...]`.
        up: B `[out, rank]`, with two more axes of size 1 for a convolution.
        scale: alpha / rank.
    """
    delta = (up.flatten(1).float() @ down.flatten(1).float()) * scale
    return weight + delta.reshape(weight.shape).to(weight.dtype)


def _weights(adapter: Path) -> tuple[dict[str, Tensor], Path]:
    """Return the tensors of an adapter and the file they are from.

    Raises:
        CheckpointError: no file, both, or a damaged one.
    """
    path, older = adapter / WEIGHTS, adapter / OLDER_WEIGHTS
    if not older.is_file():
        return read_safetensors(path), path
    if path.is_file():
        raise CheckpointError(f"'{adapter}' has both {WEIGHTS} and {OLDER_WEIGHTS}; remove the stale one.")
    return only_tensors(read_pt(older), str(older)), older


def _scale_and_rank(path: Path) -> tuple[float, int]:
    config = read_json(path)
    for name, plain in _PLAIN.items():
        if config.get(name, plain) != plain:
            raise CheckpointError(f"'{path}': {name} = {config[name]!r} is not supported, only {plain!r}.")
    for name in _EMPTY:
        if config.get(name):
            raise CheckpointError(f"'{path}': {name} = {config[name]!r} is not supported.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"'{path}' needs a whole number r and a number lora_alpha, found {rank!r} and {alpha!r}.")
    return alpha / rank, rank


def _pairs(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight name -> (A, B).

    Raises:
        CheckpointError: a name that peft does not write, or an A without its B.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        module, found, half = name.removesuffix(".weight").rpartition(".lora_")
        if not found or half not in ("A", "B") or not name.startswith(_PREFIX) or not torch.isfinite(tensor).all():
            unknown.append(name)
        else:
            halves.setdefault(module.removeprefix(_PREFIX) + ".weight", {})[half] = tensor
    unknown += [name for name, pair in halves.items() if len(pair) != 2]
    if unknown or not halves:
        raise CheckpointError(
            f"'{path}' has tensors that are no lora_A / lora_B pair: {', '.join(unknown[:12]) or 'none'}."
        )
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
