"""LIBERO and LIBERO-PRO, rendered on demand."""
