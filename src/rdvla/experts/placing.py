"""Where an object must go: the goal's target as a point, a support height and a rim to clear."""

from dataclasses import dataclass

import numpy as np

from rdvla.experts.boxes import Array, top_height
from rdvla.experts.scene import Goal, LiberoScene

RIM_DEPTH = 0.03  # m: what is deeper is filled from above its rim
RELEASE_GAP = 0.008  # m between object and support at release
FINGER_CLEARANCE = 0.02  # m from a rim up to the grip site at release


@dataclass(frozen=True)
class Place:
    """Where to put an object.

    Attributes:
        xy: float64 `[2]`, where its centre goes.
        support: z of what it will stand on.
        rim: z of the highest wall around that.
    """

    xy: Array
    support: float
    rim: float

    def release_height(self, hang: float) -> float:
        """Return the grip site's z at release, for an object that hangs `hang` metres below the grip site."""
        resting = self.support + hang + RELEASE_GAP
        if self.rim - self.support < RIM_DEPTH:
            return resting
        return max(resting, self.rim + FINGER_CLEARANCE)


def find_place(scene: LiberoScene, goal: Goal) -> Place:
    """Return where the goal `in` or `on` wants its first argument."""
    target = goal.arguments[1]
    center = scene.position(target)
    if not scene.is_region(target):
        return _within(scene.boxes(target).points(), center, 0.12)
    parent = scene.parent(target)
    if parent is None:
        return Place(center[:2], float(center[2]), float(center[2]))
    half = scene.region_half_size(target)
    return _within(scene.boxes(parent).points(), center, float(max(half[:2])) + 0.03)


def _within(points: Array, center: Array, radius: float) -> Place:
    support = top_height(points, center[:2], 0.03, float(center[2]))
    return Place(np.asarray(center[:2]), support, max(support, top_height(points, center[:2], radius, support)))
