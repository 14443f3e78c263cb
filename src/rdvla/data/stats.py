"""Statistics of actions and states, and the normalisation of the OpenVLA line (bounds at the 1st and 99th percentile).

Statistics are computed from the columns themselves, never aggregated from per-episode ones: the smallest of many
q01 is not a q01. Actions are in training space (gripper 1 open, 0 closed), states as recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import CheckpointError, DatasetError, suggest
from rdvla.files import read_json, write_json
from rdvla.types import ActionConvention

EPSILON = 1e-8
"""Keeps the division finite for a dimension whose percentiles coincide."""

NARROW = 0.01
"""Percentiles closer than this share of the range cannot carry an action."""

SELDOM = 1e-3
"""Share of the rows that an entry acts in at least, if it is one that acts rarely."""

_VECTORS = ("mean", "std", "max", "min", "q01", "q99")


@dataclass(frozen=True)
class NormStats:
    """Statistics of one feature, one value per dimension.

    Attributes:
        q01: float64 `[D]`, 1st percentile (linear interpolation).
        q99: float64 `[D]`, 99th percentile.
        min: float64 `[D]`, smallest value.
        max: float64 `[D]`, largest value.
        mean: float64 `[D]`.
        std: float64 `[D]`, population standard deviation.
        mask: bool `[D]`, true where values are normalised; false dimensions (a gripper) pass through.
        count: number of rows the statistics were computed from; 0 where a file does not say.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    mask: NDArray[np.bool_]
    count: int = 0

    @property
    def size(self) -> int:
        """Number of dimensions D."""
        return len(self.mask)

    @property
    def reach(self) -> NDArray[np.float64]:
        """Largest size of a value, leaving out the outermost percent: float64 `[D]`."""
        return np.maximum(np.abs(self.q01), np.abs(self.q99))

    @classmethod
    def compute(cls, values_ND: NDArray[np.float32], mask: Sequence[bool] | None = None) -> Self:
        """Compute the statistics of the rows of `values_ND` `[N, D]` (float32, finite).

        An entry that acts so rarely that its percentiles hardly differ (by less than 1 % of its range) could not be
        commanded: it takes its smallest and largest value in their place (see `rarely_changing`).

        Args:
            values_ND: the column of a dataset, all episodes one after the other.
            mask: which dimensions normalisation touches; default all.

        Raises:
            DatasetError: no rows, not a matrix, non-finite values, or a mask of another size.
        """
        values_ND = np.asarray(values_ND, dtype=np.float32)
        if values_ND.ndim != 2 or len(values_ND) == 0:
            raise DatasetError(f"statistics need a non-empty [rows, dimensions] array, found {list(values_ND.shape)}.")
        if not np.isfinite(values_ND).all():
            row, dimension = (int(i) for i in np.argwhere(~np.isfinite(values_ND))[0])
            raise DatasetError(f"row {row}, dimension {dimension} is {values_ND[row, dimension]}; remove that episode.")
        if mask is not None and len(mask) != values_ND.shape[1]:
            raise DatasetError(f"the mask has {len(mask)} entries for {values_ND.shape[1]} dimensions.")
        low, high = (extreme.astype(np.float64) for extreme in (values_ND.min(axis=0), values_ND.max(axis=0)))
        q01, q99 = _quantile(values_ND, 0.01), _quantile(values_ND, 0.99)
        rare = _rare(values_ND, q01, q99)
        return cls(
            q01=np.where(rare, low, q01),
            q99=np.where(rare, high, q99),
            min=low,
            max=high,
            mean=values_ND.mean(axis=0, dtype=np.float64),
            std=values_ND.std(axis=0, dtype=np.float64),
            mask=np.ones(values_ND.shape[1], dtype=bool) if mask is None else np.asarray(mask, dtype=bool),
            count=len(values_ND),
        )

    def normalise(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Map training-space values `[..., D]` to about [-1, 1], as the published training does.

        Masked-in dimensions become `clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)`, or 0 if they never vary
        (min == max); the others pass through. The published code makes those 0 that never vary as well, which is to
        close a gripper that always stood open.

        Returns:
            float32 `[..., D]`.

        Raises:
            DatasetError: the last axis is not D.
        """
        scaled = np.where(self.mask, np.clip(self._scale(values), -1.0, 1.0), values)
        return np.where(self.mask & (self.min == self.max), 0.0, scaled).astype(np.float32)

    def unnormalise(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Map predictions `[..., D]` back to training space, without clipping; unmasked dimensions pass through.

        Returns:
            float32 `[..., D]`.

        Raises:
            DatasetError: the last axis is not D.
        """
        self._require_size(values)
        raw = 0.5 * (values.astype(np.float64) + 1.0) * (self.q99 - self.q01 + EPSILON) + self.q01
        return np.where(self.mask, raw, values).astype(np.float32)

    def to_json(self) -> dict[str, list[float] | list[bool]]:
        """Return the published layout: lists `mean std max min q01 q99 mask` (the count is stored one level up)."""
        vectors: dict[str, list[float] | list[bool]] = {name: getattr(self, name).tolist() for name in _VECTORS}
        return {**vectors, "mask": self.mask.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, count: int = 0, source: str = "statistics") -> Self:
        """Read the published layout; a missing `mask` means all true, as published statistics of states have none.

        Raises:
            CheckpointError: a list is missing, not numeric, not finite, or not as long as the others; or bounds are the
                wrong way round, which would turn actions round.
        """
        if not isinstance(values, dict):
            raise CheckpointError(f"{source} must map {', '.join(_VECTORS)} to lists, found {values!r}.")
        missing = [name for name in _VECTORS if name not in values]
        if missing:
            raise CheckpointError(f"{source} lacks {', '.join(missing)}; recompute the statistics from the dataset.")
        vectors = {name: _vector(values[name], f"{source}.{name}") for name in _VECTORS}
        size = len(vectors["q01"])
        mask = values.get("mask", [True] * size)
        if not isinstance(mask, list) or not all(isinstance(entry, bool) for entry in mask):
            raise CheckpointError(f"{source}.mask must be a list of true and false, found {mask!r}.")
        sizes = {name: len(vector) for name, vector in vectors.items()} | {"mask": len(mask)}
        if len(set(sizes.values())) != 1:
            raise CheckpointError(f"{source}: lists of different length {sizes}; recompute the statistics.")
        _require_order(vectors, source)
        return cls(**vectors, mask=np.asarray(mask, dtype=bool), count=count)

    def _scale(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        self._require_size(values)
        scaled: NDArray[np.float64] = 2.0 * (values - self.q01) / (self.q99 - self.q01 + EPSILON) - 1.0
        return scaled

    def _require_size(self, values: NDArray[np.floating[Any]]) -> None:
        if values.ndim == 0 or values.shape[-1] != self.size:
            raise DatasetError(
                f"values of shape {list(values.shape)} do not fit statistics with {self.size} dimensions; "
                "the dataset and the checkpoint belong to different robots."
            )


@dataclass(frozen=True)
class DatasetStatistics:
    """What a checkpoint keeps about the data it was trained on.

    Attributes:
        action: statistics of the actions in training space.
        state: statistics of the state vector (`proprio` in the file).
        num_transitions: rows in the dataset.
        num_trajectories: episodes in the dataset.
    """

    action: NormStats
    state: NormStats
    num_transitions: int
    num_trajectories: int

    @classmethod
    def compute(
        cls,
        actions: NDArray[np.float32],
        states: NDArray[np.float32],
        convention: ActionConvention,
        *,
        num_trajectories: int,
    ) -> Self:
        """Compute the statistics of a dataset's rows.

        A gripper (the last action) is masked out of normalisation, as in the published data.

        Args:
            actions: float32 `[N, A]`, as recorded.
            states: float32 `[N, S]`.
            convention: of the actions.
            num_trajectories: episodes.

        Raises:
            DatasetError: no rows, or values that are not finite.
        """
        mask = [True] * (actions.shape[1] - 1) + [convention.gripper == "none"]
        return cls(
            action=NormStats.compute(convention.from_env(actions), mask),
            state=NormStats.compute(states),
            num_transitions=len(actions),
            num_trajectories=num_trajectories,
        )


def rarely_changing(values_ND: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return bool `[D]`: entries that change, but whose 1st and 99th percentile are closer than 1 % of their range.

    One row in a thousand at least is beyond them by more than their distance: fewer are a sensor that slipped.
    """
    return _rare(values_ND, _quantile(values_ND, 0.01), _quantile(values_ND, 0.99))


def _rare(values_ND: NDArray[np.floating[Any]], low: Any, high: Any) -> NDArray[np.bool_]:
    """Return `rarely_changing`, where the percentiles are known."""
    span = high - low
    acting = ((values_ND < low - span) | (values_ND > high + span)).mean(axis=0) >= SELDOM
    rare: NDArray[np.bool_] = acting & (span < NARROW * np.ptp(values_ND.astype(np.float64), axis=0))
    return rare


def save_statistics(path: Path, statistics: Mapping[str, DatasetStatistics]) -> None:
    """Write `dataset_statistics.json` in the published layout: dataset key -> action, proprio, counts.

    Raises:
        StorageError: the disk refuses.
    """
    document = {
        key: {
            "action": entry.action.to_json(),
            "proprio": entry.state.to_json(),
            "num_transitions": entry.num_transitions,
            "num_trajectories": entry.num_trajectories,
        }
        for key, entry in statistics.items()
    }
    write_json(path, document)


def load_statistics(path: Path, *, masks: bool = False) -> dict[str, DatasetStatistics]:
    """Read `dataset_statistics.json`: dataset key -> statistics.

    Args:
        path: the file.
        masks: a missing mask is an error, as `save_statistics` writes every one; in published files it means all true.

    Raises:
        CheckpointError: the file is missing, not JSON, or incomplete.
    """
    useless = "without statistics actions cannot be unnormalised"
    document = read_json(path, CheckpointError, "copy the checkpoint again", missing=useless)
    if not document:
        raise CheckpointError(f"'{path}' must map dataset names to statistics.")
    return {key: _entry(values, f"{path.name}: {key}", masks=masks) for key, values in document.items()}


def select_statistics(statistics: Mapping[str, DatasetStatistics], key: str | None) -> DatasetStatistics:
    """Return the entry named `key` or `key_no_noops`; with None, the only one there is.

    Raises:
        CheckpointError: no such entry, or several and no key.
    """
    if key is None:
        if len(statistics) != 1:
            raise CheckpointError(f"the checkpoint has statistics for {', '.join(sorted(statistics))}; name one.")
        return next(iter(statistics.values()))
    for name in (key, f"{key}_no_noops"):
        if name in statistics:
            return statistics[name]
    raise CheckpointError(f"the checkpoint has no statistics for '{key}'.{suggest(key, statistics)}")


def _entry(values: Any, source: str, *, masks: bool) -> DatasetStatistics:
    if not isinstance(values, dict) or "action" not in values or "proprio" not in values:
        raise CheckpointError(f"{source} needs both 'action' and 'proprio'; recompute the statistics.")
    for part in ("action", "proprio") if masks else ():
        if isinstance(values[part], dict) and "mask" not in values[part]:
            raise CheckpointError(f"{source}.{part} lacks mask, which says what is normalised; copy the file again.")
    count, episodes = (values.get(name, 0) for name in ("num_transitions", "num_trajectories"))
    if type(count) is not int or type(episodes) is not int or min(count, episodes) < 0:
        raise CheckpointError(
            f"{source}: num_transitions {count!r} and num_trajectories {episodes!r} must be whole numbers, at least 0."
        )
    return DatasetStatistics(
        action=NormStats.from_json(values["action"], count=count, source=f"{source}.action"),
        state=NormStats.from_json(values["proprio"], count=count, source=f"{source}.proprio"),
        num_transitions=count,
        num_trajectories=episodes,
    )


def _vector(values: Any, source: str) -> NDArray[np.float64]:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise CheckpointError(f"{source} must be a list of numbers, found {values!r}.")
    vector = np.asarray(values, dtype=np.float64)
    if not (np.abs(vector) <= np.finfo(np.float32).max).all():
        raise CheckpointError(f"{source} must be a list of finite numbers, as float32 holds them, found {values!r}.")
    return vector


def _require_order(vectors: Mapping[str, NDArray[np.float64]], source: str) -> None:
    """Make sure that min <= q01 <= q99 <= max (percentiles of a float32 column may be off by its rounding), std >= 0.

    Raises:
        CheckpointError: an entry's are not.
    """
    low, high = vectors["min"], vectors["max"]
    slack = 1e-3 * np.abs(high - low) + 1e-6
    wrong = (low > high) | (vectors["q01"] > vectors["q99"]) | (vectors["std"] < 0)
    wrong |= (vectors["q01"] < low - slack) | (vectors["q99"] > high + slack)
    if wrong.any():
        entry = int(wrong.argmax())
        found = ", ".join(f"{name} {vectors[name][entry]:.6g}" for name in ("min", "q01", "q99", "max", "std"))
        raise CheckpointError(
            f"{source}: entry {entry} has {found}, which no data have (min <= q01 <= q99 <= max); recompute the "
            "statistics, or copy the file again."
        )


def _quantile(values_ND: NDArray[np.floating[Any]], level: float) -> NDArray[np.float64]:
    quantile: NDArray[np.float64] = np.quantile(values_ND.astype(np.float64), level, axis=0)
    return quantile
