"""Named choices: which layers the head reads, and how each preset is trained unless told otherwise."""

from collections.abc import Mapping
from typing import Any

from rdvla.data.images import PUBLISHED, TINY, ImagePath
from rdvla.model.config import RDVLAConfig, lifted, rdvla_0_5b, rdvla_tiny

LayerChoice = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

LAYERS: Mapping[str, LayerChoice] = {
    "24-24": ((), (23, 23), ()),
    "24-24-24-24": ((), (23, 23, 23, 23), ()),
    "12-24": ((), (11, 23), ()),
    "6-12-18-24": ((), (5, 11, 17, 23), ()),
    "12_24-24": ((11,), (23, 23), ()),
    "24-24_24": ((), (23, 23), (23,)),
    "12_24-24_24": ((11,), (23, 23), (23,)),
    "P_NA_R_24_C_NA": ((), (23,), ()),
    "P_NA_R_6_24_C_NA": ((), (6, 23), ()),
    "P_NA_R_6_12_24_C_NA": ((), (6, 12, 23), ()),
    "P_NA_R_6_12_18_24_C_NA": ((), (6, 12, 18, 23), ()),
    "P_6_R_12_24_C_NA": ((6,), (12, 23), ()),
    "P_6_R_12_18_C_24": ((6,), (12, 18), (23,)),
    "P_6_12_R_18_24_C_NA": ((6, 12), (18, 23), ()),
    "P_2_6_R_12_16_20_24_C_NA": ((2, 6), (12, 16, 20, 24), ()),
}
"""Published name -> hidden-state indices of Prelude, Core and Coda. The names count layers from 1; what each of them
reads is nevertheless as in this table, off by one for some and not for others."""

IMAGE_PATHS: Mapping[str, ImagePath] = {"tiny": TINY, "rdvla_0_5b": PUBLISHED}


def preset_network(preset: str, *, vocab_size: int) -> RDVLAConfig:
    """Return the network of preset `tiny` or `rdvla_0_5b`; the latter has a vocabulary of its own."""
    return rdvla_tiny(vocab_size) if preset == "tiny" else rdvla_0_5b()


def changed(base: RDVLAConfig, changes: Mapping[str, Any]) -> RDVLAConfig:
    """Return `base` with `changes` (nested alike) put in place; a section that changes a few fields keeps the others.

    A backbone of another kind keeps nothing of the one in its place.

    Raises:
        ConfigError: an unknown field, or sizes that do not fit each other.
    """
    values, changes = base.model_dump(), lifted(changes)
    backbone = changes.get("backbone", {})
    if isinstance(backbone, Mapping) and backbone.get("kind", base.backbone.kind) != base.backbone.kind:
        del values["backbone"]
    return RDVLAConfig.build(_merged(values, changes), source="model")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
