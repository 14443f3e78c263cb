"""The CALVIN play table on pybullet: the published simulator's numbers, rendering on demand."""
