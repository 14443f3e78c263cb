"""Checkpoints: our own format, the released layout, adapters and the base model; every way in is strict."""

from rdvla.checkpoints.checkpoint import LIBERO_ACTIONS, LIBERO_MAX_STEPS, Checkpoint
from rdvla.checkpoints.load import load
from rdvla.checkpoints.native import load_native, save_native
from rdvla.checkpoints.official import load_official
from rdvla.checkpoints.official_write import save_official

__all__ = [
    "LIBERO_ACTIONS",
    "LIBERO_MAX_STEPS",
    "Checkpoint",
    "load",
    "load_native",
    "load_official",
    "save_native",
    "save_official",
]
