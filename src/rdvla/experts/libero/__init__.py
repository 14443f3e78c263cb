"""The expert for LIBERO: one skill for each kind of predicate, from whatever state the scene is in."""

from rdvla.experts.libero.expert import make_expert

__all__ = ["make_expert"]
