"""Checkpoints: our own format, the released layout, adapters and the base model; every way in is strict."""
