"""Where an object must go: a free spot where the goal wants it, a turn that fits, a support and a rim to clear."""

from dataclasses import dataclass

import numpy as np

from rdvla.experts.libero.boxes import Array, Boxes, top_height
from rdvla.experts.libero.grasps import wrap_half_turn
from rdvla.experts.libero.scene import Goal, LiberoScene

RIM_DEPTH = 0.03  # m: what is deeper is filled from above its rim
RELEASE_GAP = 0.008  # m between object and support at release
FINGER_CLEARANCE = 0.02  # m from a rim up to the grip site at release
REGION_MARGIN = 0.02  # m inside a region's border that an object's centre keeps
SPOT_STEP = 0.01  # m between the spots that are compared
BERTH = 0.005  # m between objects that share a place
CELL = 0.006  # m: raster on which spots are compared; the cells beside an obstacle count as blocked too
REACH = 0.25  # m around the spots that is looked at
SPOT_COST = 100.0  # blocked cells that a metre beside the preferred spot is worth
TURN_COST = 10.0  # the same for a turn by 90 degrees


@dataclass(frozen=True)
class Place:
    """Where to put an object.

    Attributes:
        xy: float64 `[2]`, where its centre goes.
        support: z of what it will stand on.
        rim: z of the highest wall around that.
        turn: radians about the vertical from how the object stands now to how it fits.
    """

    xy: Array
    support: float
    rim: float
    turn: float = 0.0

    def release_height(self, hang: float) -> float:
        """Return the grip site's z at release, for an object that hangs `hang` metres below the grip site."""
        resting = self.support + hang + RELEASE_GAP
        if self.rim - self.support < RIM_DEPTH:
            return resting
        return max(resting, self.rim + FINGER_CLEARANCE)


def find_place(scene: LiberoScene, goal: Goal) -> Place:
    """Return where the goal `in` or `on` wants its first argument, beside what is there already."""
    name, target = goal.arguments
    center = scene.position(target)
    if not scene.is_region(target):
        return _within(scene.boxes(target).points(), center, 0.12)
    half = scene.region_half_size(target)
    walls = scene.walls(target)
    if walls is None:
        place = Place(center[:2], float(center[2]), float(center[2]))
    else:
        place = _within(walls.points(), center, float(max(half[:2])) + 0.03, float(min(half[:2])) / 2)
    shape = scene.boxes(name).points(CELL)[:, :2] - scene.position(name)[:2]
    turns = _turns(scene.boxes(name), scene.boxes(scene.parent(target) or name))
    others = scene.obstacle_points(name)
    above = others[others[:, 2] > place.support + 0.01, :2]
    sharing = [other for other in scene.goals if other.arguments[1:] == goal.arguments[1:]]
    preferred = _slot(place.xy, half[:2], shape, sharing.index(goal), len(sharing)) if goal in sharing else place.xy
    xy, turn = _free_spot(_spots(place.xy, half[:2], preferred), shape, turns, above)
    return Place(xy, place.support, place.rim, turn)


def _within(points: Array, center: Array, radius: float, inner: float = 0.03) -> Place:
    support = top_height(points, center[:2], min(0.03, inner), float(center[2]))
    return Place(np.asarray(center[:2]), support, max(support, top_height(points, center[:2], radius, support)))


def _slot(center: Array, half: Array, shape: Array, index: int, count: int) -> Array:
    """Return where the object of number `index` among `count` that share a region goes: in a row across its width."""
    axis = int(np.argmin(np.ptp(shape, axis=0) - 2 * half))
    room = half[axis] - REGION_MARGIN
    apart = min(float(np.ptp(shape[:, axis])) + BERTH, 2 * room / max(count - 1, 1))
    slot = np.array(center)
    slot[axis] += (index - (count - 1) / 2) * apart
    return slot


def _turns(boxes: Boxes, parent: Boxes) -> list[float]:
    """Return by how much an object can be turned for sides parallel to those of the place, and not at all."""
    aligned = parent.heading() - boxes.heading()
    turns = {wrap_half_turn(aligned + quarter) for quarter in (0.0, np.pi / 2)}
    return [0.0, *sorted(turns, key=abs)]


def _free_spot(spots: Array, shape: Array, turns: list[float], above: Array) -> tuple[Array, float]:
    """Return the spot `[2]`, one of `[K, 2]`, and the turn where a shape `[N, 2]` meets the fewest obstacles `[M, 2]`.

    The first spot is the preferred one.
    """
    origin = spots.min(axis=0) - REACH
    size = np.ceil((spots.max(axis=0) + REACH - origin) / CELL).astype(int) + 1
    blocked = np.zeros(size, dtype=bool)
    cells = np.round((above - origin) / CELL).astype(int)
    cells = cells[((cells > 0) & (cells < size - 1)).all(axis=1)]
    for beside in np.ndindex(3, 3):
        blocked[tuple((cells + beside - 1).T)] = True
    beside_preferred = SPOT_COST * np.linalg.norm(spots - spots[0], axis=1)
    best, best_cost = (spots[0], 0.0), np.inf
    for turn in turns:
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        turned = np.unique(np.round(shape @ rotation.T / CELL), axis=0) * CELL
        where = np.round((turned + spots[:, None] - origin) / CELL).astype(int)
        met = blocked[tuple(np.clip(where, 0, size - 1).transpose(2, 0, 1))].sum(axis=1)
        costs = met + beside_preferred + TURN_COST * abs(turn) / (np.pi / 2)
        if costs.min() < best_cost:
            best, best_cost = (spots[int(np.argmin(costs))], turn), float(costs.min())
    return best


def _spots(center: Array, half: Array, preferred: Array) -> Array:
    """Return the spots `[K, 2]` of a region that are compared, the preferred one first."""
    room = np.maximum(half - REGION_MARGIN, 0.0)
    x, y = (np.linspace(-extent, extent, 2 * round(extent / SPOT_STEP) + 1) for extent in room)
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([preferred[None], center + grid])
