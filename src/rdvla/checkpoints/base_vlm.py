"""The base VLM from which the published training starts: a Prismatic `.pt` file with nested dictionaries."""

from pathlib import Path

import torch
from torch import Tensor

from rdvla.checkpoints import names
from rdvla.checkpoints.official import tied
from rdvla.checkpoints.tensors import check_tensors, only_tensors, read_pt
from rdvla.errors import CheckpointError, ConfigError
from rdvla.model.rdvla import RDVLA

_COMPONENTS = ("vision_backbone", "projector", "llm_backbone")
# Applied in this order to the flattened names, anywhere in the name.
_RENAMES = (
    ("vision_backbone.dino_featurizer", "vision_backbone.featurizer"),
    ("vision_backbone.siglip_featurizer", "vision_backbone.fused_featurizer"),
    ("llm_backbone.llm", "language_model"),
    ("projector.projector.0", "projector.fc1"),
    ("projector.projector.2", "projector.fc2"),
    ("projector.projector.4", "projector.fc3"),
    ("gamma", "scale_factor"),
)
_QUERIES = "action_queries.weight"


def read_base_vlm(path: Path) -> dict[str, Tensor]:
    """Read a Prismatic checkpoint into published VLM names; it has no latent tokens, and may lack the towers.

    Args:
        path: the `.pt` file, or a directory with exactly one in `checkpoints/`.

    Raises:
        CheckpointError: missing, damaged, unsafe, or of another structure.
    """
    file = _checkpoint_file(path)
    content = read_pt(file).get("model")
    if not isinstance(content, dict) or not {"projector", "llm_backbone"} <= content.keys() <= set(_COMPONENTS):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"'{file}': 'model' must hold {', '.join(_COMPONENTS)}, found {found}.")
    tensors: dict[str, Tensor] = {}
    for component, values in content.items():
        if not isinstance(values, dict):
            raise CheckpointError(f"'{file}': 'model.{component}' must be a dictionary of tensors.")
        for name, tensor in only_tensors(values, f"{file}: {component}").items():
            tensors[_renamed(f"{component}.{name}")] = tensor
    return tied(tensors, source=str(file))


def init_from_base(model: RDVLA, path: Path) -> None:
    """Copy a base VLM's weights into `model`; latent tokens, head and state projector keep their initialisation.

    Args:
        model: the network to initialise, of the base's sizes, any dtype.
        path: the base VLM, with its vision towers.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    tensors = read_base_vlm(path)
    if not any(name.startswith("vision_backbone.") for name in tensors):
        raise CheckpointError(f"'{path}' has no vision towers; name a base that was saved with them.")
    own = names.stored_state(model)
    published = names.part(names.to_published(own), names.VLM)
    expected = {name: tensor.shape for name, tensor in published.items() if name != _QUERIES}
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1:
        raise CheckpointError(f"'{path}' mixes dtypes {sorted(map(str, dtypes))}; copy the checkpoint again.")
    check_tensors(expected, tensors, dtype=dtypes.pop(), source=str(path))
    with torch.no_grad():
        for name, tensor in names.to_ours(names.with_prefix(names.VLM, tensors)).items():
            own[name].copy_(tensor)


def copy_vlm(model: RDVLA, source: RDVLA) -> None:
    """Copy the backbone, latent tokens included; head and state projector of `model` stay as they are.

    Args:
        model: the network to initialise, any dtype.
        source: a network with the same sizes up to the head; what it lacks to read the sentence starts as new.

    Raises:
        ConfigError: a tensor of `source` has no place in `model`, or another size there.
    """
    own, theirs = model.backbone.state_dict(), source.backbone.state_dict()
    for name, tensor in theirs.items():
        if name not in own or own[name].shape != tensor.shape:
            here = list(own[name].shape) if name in own else "not there"
            raise ConfigError(
                f"model.base_vlm: '{name}' is {list(tensor.shape)} in it and {here} in the network; "
                "drop the departures in model.network.backbone, or take another base."
            )
    with torch.no_grad():
        for name, tensor in theirs.items():
            own[name].copy_(tensor)


def _checkpoint_file(path: Path) -> Path:
    path = path.expanduser()
    if path.is_file():
        return path
    found = sorted((path / "checkpoints").glob("*.pt"))
    if len(found) != 1:
        raise CheckpointError(f"'{path}' must be a .pt file or have exactly one in checkpoints/, found {len(found)}.")
    return found[0]


def _renamed(name: str) -> str:
    for old, new in _RENAMES:
        name = name.replace(old, new)
    return name
