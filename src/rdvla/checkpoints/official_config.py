"""The configuration files of the released layout: which sizes they say, which they leave to convention.

A released `config.json` has no field for the sizes of the vision towers: the timm names stand for them. The optional
`rdvla.json` beside it (`official_beside`) may name others in `vision`:

    {"dino": {"depth": 4, "width": 32, "num_heads": 2}, "siglip": {"depth": 4, "width": 24, "num_heads": 2}}

The timm names (`vit_large_patch14_reg4_dinov2.lvd142m`, `vit_so400m_patch14_siglip_224`) and timm's `embed_dim` are
accepted in place of `dino`, `siglip` and `width`. `mlp_width` follows from the width (and timm's `mlp_ratio`, if it is
given) unless it is given itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdvla.checkpoints.tensors import read_json
from rdvla.errors import CheckpointError, ConfigError, suggest
from rdvla.model.backbones.prismatic import DinoSiglipConfig, PrismaticConfig, ViTConfig
from rdvla.model.config import HeadConfig, RDVLAConfig
from rdvla.model.language import LanguageConfig

TOWER_NAMES = {"vit_large_patch14_reg4_dinov2.lvd142m": "dino", "vit_so400m_patch14_siglip_224": "siglip"}
SIGLIP_MLP_RATIO = 3.7362
PROJECTOR_RATIO = 4

# Published name of a head field -> ours.
HEAD_FIELDS = {
    "hidden_dim": "hidden_dim",
    "num_heads": "num_heads",
    "prelude_vlm_layers": "prelude_layers",
    "recurrent_vlm_layers": "recurrent_layers",
    "coda_vlm_layers": "coda_layers",
    "action_chunk_len": "chunk_size",
    "action_dim": "action_dim",
    "mean_recurrence": "mean_recurrence",
    "backprop_depth": "backprop_depth",
    "random_iterations": "random_depth",
    "init_std": "init_std",
    "rms_norm_eps": "rms_norm_eps",
    "rope_base": "rope_base",
}
# The sizes a head configuration must state; the rest has one published value each.
_HEAD_REQUIRED = ("hidden_dim", "num_heads", "prelude_vlm_layers", "recurrent_vlm_layers", "coda_vlm_layers")
_TEXT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "mlp_width",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
}
_TEXT_EXPECTED = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False, "tie_word_embeddings": True}


def head_config(document: Mapping[str, Any], *, state_dim: int, source: str) -> HeadConfig:
    """Translate `action_head_config--*.json`; `_type` (two spellings exist) is ignored.

    Raises:
        CheckpointError: a field is missing, unknown or out of range.
    """
    values = {name: value for name, value in document.items() if name != "_type"}
    for name in values:
        if name not in HEAD_FIELDS:
            raise CheckpointError(f"{source}: unknown field '{name}'.{suggest(name, HEAD_FIELDS)}")
    missing = [name for name in _HEAD_REQUIRED if name not in values]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}; copy the checkpoint again.")
    try:
        return HeadConfig.build(
            {HEAD_FIELDS[name]: value for name, value in values.items()} | {"state_dim": state_dim}, source=source
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def head_document(config: HeadConfig) -> dict[str, Any]:
    """Return the content of `action_head_config--*.json`."""
    ours = config.model_dump(mode="json")
    return {published: ours[name] for published, name in HEAD_FIELDS.items()} | {"_type": "ActionHeadRecurrent"}


def read_model_config(
    directory: Path, head: HeadConfig, num_latent_tokens: int, *, towers: Mapping[str, Any]
) -> RDVLAConfig:
    """Combine `config.json`, tower sizes and the head's configuration.

    Args:
        directory: the released directory.
        head: from `head_config`.
        num_latent_tokens: rows of the latent tokens in the file (no configuration states it).
        towers: tower sizes that are not the released ones.

    Raises:
        CheckpointError: a field is missing, or describes another kind of model.
    """
    path = directory / "config.json"
    text = read_json(path).get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(f"'{path}' has no text_config, so it is not a released VLM.")
    missing = [name for name in _TEXT_FIELDS if name not in text and name != "rms_norm_eps"]
    if missing:
        raise CheckpointError(f"'{path}': text_config lacks {', '.join(missing)}; copy the checkpoint again.")
    for name, expected in _TEXT_EXPECTED.items():
        if text.get(name, expected) != expected:
            raise CheckpointError(f"'{path}': text_config.{name} is {text[name]!r}, only {expected!r} is supported.")
    try:
        vision = vision_config(_with_normalisation(directory, towers), source=f"'{directory}': tower sizes")
        language = {_TEXT_FIELDS[name]: text[name] for name in _TEXT_FIELDS if name in text}
        backbone = PrismaticConfig(
            vision=vision,
            projector_width=PROJECTOR_RATIO * (vision.dino.width + vision.siglip.width),
            language=LanguageConfig.build(language, source=str(path)),
            num_latent_tokens=num_latent_tokens,
        )
        return RDVLAConfig(backbone=backbone, head=head)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"'{directory}': {error}") from error


def vision_config(towers: Mapping[str, Any], *, source: str) -> DinoSiglipConfig:
    """Return the released towers with the sizes in `towers` put in place (see the module's text for the form).

    Raises:
        CheckpointError: an unknown tower or field.
        ConfigError: a size of the wrong type or range.
    """
    released = DinoSiglipConfig()
    known = ("dino", "siglip", "image_size", "patch_size")
    values: dict[str, Any] = released.model_dump()
    for name, given in towers.items():
        field = TOWER_NAMES.get(name, name)
        if field not in known:
            raise CheckpointError(f"{source}: unknown tower '{name}'.{suggest(name, (*TOWER_NAMES, *known))}")
        is_tower = isinstance(values[field], dict) and isinstance(given, dict)
        values[field] = values[field] | _tower_sizes(field, given, source) if is_tower else given
    return DinoSiglipConfig.build(values, source=source)


def tower_overrides(config: DinoSiglipConfig) -> dict[str, Any]:
    """Return what `rdvla.json` must say for `config`; empty for the released sizes."""
    if config == DinoSiglipConfig():
        return {}
    sizes = ("depth", "width", "num_heads", "mlp_width", "num_registers")
    towers: dict[str, Any] = {"image_size": config.image_size, "patch_size": config.patch_size}
    for name, tower in (("dino", config.dino), ("siglip", config.siglip)):
        towers[name] = {size: getattr(tower, size) for size in sizes if getattr(tower, size) is not None}
    return towers


def _with_normalisation(directory: Path, towers: Mapping[str, Any]) -> dict[str, Any]:
    """Add the pixel constants of `preprocessor_config.json` to the tower sizes.

    The file states them twice. `tvf_normalize_params` is what the published processor ends up using.
    """
    path = directory / "preprocessor_config.json"
    merged = {TOWER_NAMES.get(name, name): value for name, value in towers.items()}
    if not path.is_file():
        return merged
    constants = read_json(path).get("tvf_normalize_params")
    if (
        not isinstance(constants, list)
        or len(constants) != 2
        or not all(isinstance(entry, dict) for entry in constants)
    ):
        raise CheckpointError(f"'{path}' needs tvf_normalize_params for two towers; copy the checkpoint again.")
    for tower, entry in zip(("dino", "siglip"), constants, strict=True):
        given = merged.get(tower, {})
        if not isinstance(given, dict):
            raise CheckpointError(f"'{directory}': the sizes of tower '{tower}' must be a mapping, found {given!r}.")
        merged[tower] = {name: entry.get(name) for name in ("mean", "std")} | given
    return merged


def _tower_sizes(tower: str, given: Mapping[str, Any], source: str) -> dict[str, Any]:
    sizes = {"width" if name == "embed_dim" else name: value for name, value in given.items()}
    ratio = sizes.pop("mlp_ratio", SIGLIP_MLP_RATIO if tower == "siglip" else 4)
    for name in sizes:
        if name not in ViTConfig.model_fields:
            raise CheckpointError(f"{source}: unknown field '{tower}.{name}'.{suggest(name, ViTConfig.model_fields)}")
    width = sizes.get("width", getattr(DinoSiglipConfig(), tower).width)
    if isinstance(width, int) and isinstance(ratio, int | float):
        sizes.setdefault("mlp_width", int(width * ratio))
    return sizes
