"""Checkpoints: our own format, the released layout, adapters and the base model; every way in is strict."""

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.load import load
from rdvla.checkpoints.native import load_native, save_native
from rdvla.checkpoints.official import load_official
from rdvla.checkpoints.official_write import save_official

__all__ = [
    "Checkpoint",
    "load",
    "load_native",
    "load_official",
    "save_native",
    "save_official",
]
