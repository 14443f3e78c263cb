"""Reading and filling tensors strictly: everything used, everything filled, every shape and dtype as expected."""

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rdvla import files
from rdvla.checkpoints.names import stored
from rdvla.errors import CheckpointError
from rdvla.model.config import RDVLAConfig
from rdvla.model.rdvla import RDVLA

_LISTED = 12


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of one safetensors file (memory-mapped where possible).

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; copy the checkpoint again.")
    files.refuse_pointer(path, CheckpointError)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); copy the checkpoint again.") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU tensors as one safetensors file.

    Raises:
        OSError: the disk refuses (safetensors has an error of its own for that).
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(int(code.group(1)) if code else 0, str(error)) from error
    path.chmod(0o644)


def write_pt(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors and plain containers as one `.pt` file.

    Raises:
        OSError: the disk refuses (torch's writer has no error of its own for that).
    """
    try:
        torch.save(dict(content), path)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def read_sharded(directory: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises:
        CheckpointError: neither is there, both are, a shard is missing, or the index and the shards disagree.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() and index.is_file():
        raise CheckpointError(f"'{directory}' has both {single.name} and {index.name}; remove the stale one.")
    if not index.is_file():
        return read_safetensors(single)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"'{index}' has no weight_map of tensor names to files; copy the checkpoint again.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(f"'{index}' points outside its directory: '{name}'.")
        shard = read_safetensors(directory / name)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        if listed != set(shard):
            raise CheckpointError(
                f"'{directory / name}' and its index disagree: {_names(listed ^ set(shard))}; copy them again."
            )
        tensors.update(shard)
    return tensors


def read_pt(path: Path) -> dict[str, object]:
    """Read a dictionary from a `.pt` file without executing anything it may contain.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than tensors and plain containers, or no dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; copy the checkpoint again.")
    files.refuse_pointer(path, CheckpointError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol; the refusal below says more
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' holds something other than tensors, or is damaged; nothing in it was executed. "
            f"Use a file from a source you trust ({str(error).splitlines()[0]})."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"'{path}' is damaged ({reason}); copy the checkpoint again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' must hold a dictionary of tensors, found {type(content).__name__}.")
    return content


def only_tensors(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """Check that a dictionary maps names to tensors; strip the `module.` prefix that distributed training adds.

    Raises:
        CheckpointError: something else is in it, or stripping makes two names equal.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"'{source}': entry {name!r} is a {type(value).__name__}, expected a named tensor.")
        plain = name.removeprefix("module.")
        if plain in tensors:
            raise CheckpointError(f"'{source}' has '{plain}' twice, with and without the prefix 'module.'.")
        tensors[plain] = value
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    return files.read_json(path, CheckpointError, "copy the checkpoint again")


def build_empty(config: RDVLAConfig) -> RDVLA:
    """Build a network without allocating its weights; `fill` provides them."""
    with torch.device("meta"):
        return RDVLA(config)


def fill(model: RDVLA, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, source: str) -> None:
    """Give `model` exactly these tensors.

    Args:
        model: usually from `build_empty`; its parameters are replaced, not copied into.
        tensors: by our names (see `rdvla.checkpoints.names`).
        dtype: what every tensor must have.
        source: where they come from, for messages.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or dtype; all offenders are listed.
    """
    state = model.state_dict()
    expected = {stored(name): tensor.shape for name, tensor in state.items()}
    check_tensors(expected, tensors, dtype=dtype, source=source)
    # Copied out of the mapped file: its tensors are not aligned, which changes the last bit of matrix products.
    model.load_state_dict({name: tensors[stored(name)].clone() for name in state}, strict=True, assign=True)


def check_tensors(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], *, dtype: torch.dtype, source: str
) -> None:
    """Compare names, shapes and dtypes.

    Raises:
        CheckpointError: any difference; all offenders are listed.
    """
    problems: list[str] = []
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing:
        problems.append(f"missing: {_names(missing)}")
    if unknown:
        problems.append(f"unknown: {_names(unknown)}")
    common = [name for name in expected if name in tensors]
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(expected[name])}"
        for name in common
        if tensors[name].shape != expected[name]
    ]
    if shapes:
        problems.append(f"wrong shape: {_names(shapes)}")
    dtypes = [f"{name} {dtype_name(tensors[name].dtype)}" for name in common if tensors[name].dtype != dtype]
    if dtypes:
        problems.append(f"not {dtype_name(dtype)}: {_names(dtypes)}")
    if problems:
        raise CheckpointError(f"'{source}' does not fit the model its config describes. " + "; ".join(problems) + ".")


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more
