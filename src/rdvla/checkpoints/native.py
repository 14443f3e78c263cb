"""Our own format: `config.json`, `model.safetensors`, `norm_stats.json`, `tokenizer.json`.

`config.json` holds every field that is needed to rebuild the network and to use it; an unknown field is an error.
"""

import importlib.metadata
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from rdvla import __version__
from rdvla.checkpoints import names
from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.tensors import build_empty, dtype_name, fill, read_json, read_safetensors, write_safetensors
from rdvla.checkpoints.tokenizer_files import load_tokenizer
from rdvla.config import Config
from rdvla.data.images import ImagePath
from rdvla.data.stats import load_statistics, save_statistics
from rdvla.errors import CheckpointError, ConfigError
from rdvla.files import replacing_folder
from rdvla.model.config import RDVLAConfig
from rdvla.policy import Alarm
from rdvla.stops import StopRule
from rdvla.types import ActionConvention, GripperConvention

FORMAT = "rdvla"
FORMAT_VERSION = 1
CONFIG, WEIGHTS, STATISTICS, TOKENIZER = "config.json", "model.safetensors", "norm_stats.json", "tokenizer.json"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NativeConfig(Config):
    """The content of `config.json`.

    Attributes:
        format: always `rdvla`.
        format_version: changes when an older reader would misread the directory.
        dtype: dtype of every tensor.
        model: the network.
        images: the image path.
        gripper: the environment's gripper convention.
        max_steps: of earlier versions; for nobody, not written any more.
        step: optimiser step of the checkpoint.
        default_stop: when to stop iterating where nobody says; absent where nothing was chosen.
        alarm: when an episode takes longer than successful ones do; absent likewise.
        versions: what wrote it; for people, not read.
        notes: recipe, data, commit; for people, not read.
    """

    format: Literal["rdvla"] = "rdvla"
    format_version: Literal[1] = 1
    dtype: Literal["float32", "bfloat16", "float16"]
    model: RDVLAConfig
    images: ImagePath
    gripper: GripperConvention
    max_steps: dict[str, PositiveInt] | None = Field(default=None, exclude=True)
    step: NonNegativeInt | None = None
    default_stop: StopRule | None = None
    alarm: Alarm | None = None
    versions: dict[str, str]
    notes: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of the file."""
        unset = {name for name in ("default_stop", "alarm") if getattr(self, name) is None}  # as earlier versions wrote
        return json.dumps(self.model_dump(mode="json", exclude=unset), indent=2) + "\n"


def is_native(directory: Path) -> bool:
    """Say whether `directory` looks like our format (its `config.json` says so)."""
    path = directory / CONFIG
    return path.is_file() and read_json(path).get("format") == FORMAT


def save_native(directory: Path, checkpoint: Checkpoint, *, replace: bool = False) -> None:
    """Write a checkpoint atomically.

    Args:
        directory: where to; must not exist (or be empty) unless `replace`.
        checkpoint: what to write; all its tensors have one dtype.
        replace: replace what is there.

    Raises:
        StorageError: the directory exists, or the disk refuses.
        CheckpointError: the tensors have different dtypes.
    """
    with replacing_folder(directory, replace=replace) as draft:
        write_description(draft, checkpoint)
        write_safetensors(draft / WEIGHTS, stored_tensors(checkpoint))


def stored_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint's file holds, by our names, on the CPU."""
    own = names.stored_state(checkpoint.model)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}


def write_description(directory: Path, checkpoint: Checkpoint) -> None:
    """Write everything but the weights: `config.json`, `norm_stats.json`, `tokenizer.json`.

    Raises:
        CheckpointError: the tensors have different dtypes.
    """
    dtypes = {tensor.dtype for tensor in checkpoint.model.state_dict().values()}
    if len(dtypes) != 1:
        found = ", ".join(sorted(dtype_name(dtype) for dtype in dtypes))
        raise CheckpointError(f"a checkpoint holds one dtype, found {found}; cast the model first.")
    config = NativeConfig.build(
        {
            "dtype": dtype_name(dtypes.pop()),
            "model": checkpoint.model.config,
            "images": checkpoint.image_path,
            "gripper": checkpoint.actions.gripper,
            "step": checkpoint.step,
            "default_stop": checkpoint.default_stop,
            "alarm": checkpoint.alarm,
            "versions": versions(),
            "notes": dict(checkpoint.notes),
        }
    )
    (directory / CONFIG).write_text(config.to_json(), encoding="utf-8")
    save_statistics(directory / STATISTICS, checkpoint.statistics)
    (directory / TOKENIZER).write_text(checkpoint.tokenizer.to_str(), encoding="utf-8")


def load_native(directory: Path) -> Checkpoint:
    """Read a checkpoint; the network is on the CPU, in the stored dtype, in evaluation mode.

    Raises:
        CheckpointError: anything is missing, damaged, unknown or of another shape or dtype than `config.json` says.
    """
    weights = directory / WEIGHTS
    return read_description(directory, partial(read_safetensors, weights), source=str(weights))


def read_description(directory: Path, read_weights: Callable[[], dict[str, Tensor]], *, source: str) -> Checkpoint:
    """Read what `write_description` wrote, and put it together with the weights.

    Args:
        directory: holds the files.
        read_weights: returns every tensor of the network by name; called last, as it takes longest.
        source: where they are from, for messages.

    Raises:
        CheckpointError: see `load_native`.
    """
    config = read_config(directory)
    statistics = load_statistics(directory / STATISTICS, masks=True)
    tokenizer = load_tokenizer(directory / TOKENIZER)
    model = build_empty(config.model)
    fill(model, read_weights(), dtype=_DTYPES[config.dtype], source=source)
    return Checkpoint(
        model=model.eval(),
        statistics=statistics,
        tokenizer=tokenizer,
        image_path=config.images,
        actions=ActionConvention(config.gripper),
        step=config.step,
        default_stop=config.default_stop,
        alarm=config.alarm,
        notes=config.notes,
    )


def read_config(directory: Path) -> NativeConfig:
    """Read `config.json`.

    Raises:
        CheckpointError: it is missing, damaged, of another version, or has an unknown field.
    """
    document = read_json(directory / CONFIG)
    if document.get("format") != FORMAT:
        raise CheckpointError(f'\'{directory / CONFIG}\' is not a rdvla configuration (it has no "format": "rdvla").')
    if document.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"'{directory}' has format version {document.get('format_version')!r}, this rdvla reads {FORMAT_VERSION}; "
            "upgrade rdvla."
        )
    try:
        return NativeConfig.build(document, source=str(directory / CONFIG))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def versions() -> dict[str, str]:
    """Return the versions that determine what a checkpoint computes."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    ours = {"python": platform.python_version(), "rdvla": __version__}
    return ours | {name: importlib.metadata.version(name) for name in packages}
