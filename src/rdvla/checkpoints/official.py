"""The released layout, read: a merged VLM, an action head, a state projector, statistics and a tokenizer.

Loading never writes into the directory and never executes anything in it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdvla.checkpoints import names
from rdvla.checkpoints.checkpoint import Checkpoint, check_statistics
from rdvla.checkpoints.official_beside import convention, published_images, read_beside
from rdvla.checkpoints.official_config import head_config, read_model_config
from rdvla.checkpoints.tensors import build_empty, check_tensors, fill, only_tensors, read_json, read_pt, read_sharded
from rdvla.checkpoints.tokenizer_files import read_tokenizer
from rdvla.data.stats import load_statistics
from rdvla.errors import CheckpointError
from rdvla.types import GripperConvention

STATISTICS = "dataset_statistics.json"
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
_STEP = re.compile(r"--(\d+)_checkpoint\.")


def is_official(directory: Path) -> bool:
    """Say whether `directory` looks like a released checkpoint (it holds an action head's configuration)."""
    return any(directory.glob("action_head_config--*.json"))


def load_official(
    directory: Path,
    *,
    vlm: Mapping[str, Tensor] | None = None,
    towers: Mapping[str, Any] | None = None,
    gripper: GripperConvention | None = None,
) -> Checkpoint:
    """Read a released directory; the network is on the CPU, in the stored dtype, in evaluation mode.

    Args:
        directory: the directory.
        vlm: the merged VLM's tensors by published names, if they do not come from `model.safetensors`.
        towers: sizes of the vision towers, instead of those in `rdvla.json`.
        gripper: what the environment expects in the last action, where `rdvla.json` does not say it; None derives it
            (`official_beside.derived_gripper`).

    Raises:
        CheckpointError: anything is missing, ambiguous, damaged, or does not fit.
    """
    said = read_beside(directory)
    head_file = find_one(directory, "action_head--*.pt")
    config_file = find_one(directory, "action_head_config--*.json")
    proprio_file = find_one(directory, "proprio_projector--*.pt")
    step = _common_step(head_file, config_file, proprio_file)
    statistics = load_statistics(directory / STATISTICS)
    state_dim = next(iter(statistics.values())).state.size
    head = head_config(read_json(config_file), state_dim=state_dim, source=str(config_file))
    check_statistics(statistics, action_dim=head.action_dim, state_dim=state_dim)
    actions = convention(said.gripper, gripper, statistics, source=str(directory))

    dtype = stored_dtype(directory)
    vlm_tensors = tied(dict(vlm) if vlm is not None else read_sharded(directory), source=str(directory))
    queries = vlm_tensors.get("action_queries.weight")
    if queries is None or queries.ndim != 2:
        raise CheckpointError(f"'{directory}': the VLM has no matrix action_queries.weight, so it is not an RD-VLA.")
    config = read_model_config(directory, head, len(queries), towers=said.vision if towers is None else towers)
    model = build_empty(config)
    expected = names.to_published(names.stored_state(model))
    published: dict[str, Tensor] = {}
    for prefix, tensors, source in (
        (names.VLM, vlm_tensors, directory),
        (names.HEAD, only_tensors(read_pt(head_file), str(head_file)), head_file),
        (names.PROPRIO, only_tensors(read_pt(proprio_file), str(proprio_file)), proprio_file),
    ):
        shapes = {name: tensor.shape for name, tensor in names.part(expected, prefix).items()}
        check_tensors(shapes, tensors, dtype=dtype, source=str(source))
        published |= names.with_prefix(prefix, tensors)
    fill(model, names.to_ours(published), dtype=dtype, source=str(directory))
    return Checkpoint(
        model=model.eval(),
        statistics=statistics,
        tokenizer=read_tokenizer(directory),
        actions=actions,
        image_path=said.images or published_images(config.backbone.image_size),
        step=step,
        default_stop=said.default_stop,
        alarm=said.alarm,
    )


def find_one(directory: Path, pattern: str) -> Path:
    """Return the only file that matches.

    Raises:
        CheckpointError: none or several.
    """
    found = sorted(directory.glob(pattern))
    if not found:
        raise CheckpointError(f"'{directory}' has no file '{pattern}'; copy the checkpoint again.")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise CheckpointError(f"'{directory}' has several files '{pattern}' ({listed}); keep one.")
    return found[0]


def stored_dtype(directory: Path) -> torch.dtype:
    """Return the dtype that `config.json` promises.

    Raises:
        CheckpointError: missing or not a floating dtype.
    """
    document = read_json(directory / "config.json")
    name = document.get("torch_dtype", document.get("dtype"))  # newer transformers write the second
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(
            f"'{directory / 'config.json'}': torch_dtype is {name!r}, expected one of {list(_DTYPES)}."
        )
    return _DTYPES[name]


def tied(vlm: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Drop `lm_head.weight` where it repeats the embeddings (it is tied and never computed).

    Raises:
        CheckpointError: it differs from the embeddings.
    """
    name, embeddings = "language_model.lm_head.weight", vlm.get("language_model.model.embed_tokens.weight")
    if name in vlm:
        if embeddings is None or not torch.equal(vlm[name], embeddings):
            raise CheckpointError(f"'{source}': {name} differs from the embeddings; untied models are not supported.")
        del vlm[name]
    return vlm


def _common_step(*files: Path) -> int | None:
    """Return the step in the file names.

    Raises:
        CheckpointError: the files carry different steps, so they were not saved together.
    """
    steps = {match.group(1) if (match := _STEP.search(path.name)) else None for path in files}
    if len(steps) != 1:
        listed = ", ".join(path.name for path in files)
        raise CheckpointError(f"files of different steps: {listed}; a checkpoint's files must be saved together.")
    label = steps.pop()
    return None if label is None else int(label)
