"""Oriented boxes and the points that stand for them in planning."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """Oriented boxes in the world frame.

    Attributes:
        centers: float64 `[N, 3]`, metres.
        rotations: float64 `[N, 3, 3]`, box frame to world frame.
        halves: float64 `[N, 3]`, half side lengths in metres.
    """

    centers: Array
    rotations: Array
    halves: Array

    def only(self, which: int | NDArray[Any]) -> "Boxes":
        """Return some of the boxes: one by its index, or several by a mask or indices."""
        index = np.atleast_1d(which)
        return Boxes(self.centers[index], self.rotations[index], self.halves[index])

    def points(self, spacing: float = 0.01) -> Array:
        """Return a grid of points `[M, 3]` over every box, corners included, at most `spacing` metres apart."""
        clouds = [np.empty((0, 3))]
        for center, rotation, half in zip(self.centers, self.rotations, self.halves, strict=True):
            counts = np.ceil(2 * half / spacing).astype(int) + 1
            axes = [np.linspace(-extent, extent, count) for extent, count in zip(half, counts, strict=True)]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            clouds.append(center + grid @ rotation.T)
        return np.concatenate(clouds)

    def heading(self) -> float:
        """Return the heading of the largest box's horizontal sides: radians, modulo 90 degrees, in [-45, 45)."""
        axes = self.rotations[int(np.argmax(np.prod(self.halves, axis=1)))].T
        flat = axes[int(np.argmin(np.abs(axes[:, 2])))]
        return float((np.arctan2(flat[1], flat[0]) + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def top_height(points: Array, center_xy: Array, radius: float, default: float) -> float:
    """Return the highest z of `points` `[M, 3]` within `radius` metres of `center_xy`, or `default` without any."""
    near = np.linalg.norm(points[:, :2] - center_xy, axis=1) < radius
    return float(points[near, 2].max()) if near.any() else default


def corridor_height(points: Array, start_xy: Array, end_xy: Array, radius: float, default: float) -> float:
    """Return the highest z of `points` `[M, 3]` within `radius` metres of the segment, or `default` without any."""
    along = end_xy - start_xy
    length = float(along @ along)
    offset = points[:, :2] - start_xy
    fraction = np.clip(offset @ along / length, 0.0, 1.0) if length > 1e-9 else np.zeros(len(points))
    distance = np.linalg.norm(offset - fraction[:, None] * along, axis=1)
    near = distance < radius
    return float(points[near, 2].max()) if near.any() else default
