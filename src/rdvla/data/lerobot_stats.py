"""Exact statistics of every feature, in the layout of `meta/stats.json`.

Numbers come from the columns themselves. Images are summed up as histograms of their 256 grey levels, from which
every percentile follows exactly.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Histogram = NDArray[np.int64]
"""`[3, 256]`: how often each channel has each grey level."""


def column_statistics(values_ND: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return min, max, mean, std (population), count and percentiles of the rows of `[N, D]`, each `[D]`."""
    values = values_ND.astype(np.float64)
    levels = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, levels, strict=True)),
    }


def image_histogram(image_HWC: NDArray[np.uint8]) -> Histogram:
    """Return the histogram of one uint8 `[H, W, 3]` image."""
    return np.stack([np.bincount(image_HWC[..., channel].ravel(), minlength=256) for channel in range(3)])


def image_statistics(histogram: Histogram, num_images: int) -> dict[str, NDArray[Any]]:
    """Return the same statistics of all pixels of `num_images` images, scaled to 0..1, each `[3, 1, 1]`."""
    levels = np.arange(256) / 255.0
    total = histogram.sum(axis=1)
    mean = histogram @ levels / total
    variance = histogram @ levels**2 / total - mean**2
    present = [np.flatnonzero(channel) for channel in histogram]
    statistics = {
        "min": np.array([levels[found[0]] for found in present]),
        "max": np.array([levels[found[-1]] for found in present]),
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0.0)),
        **{
            name: np.array([_histogram_quantile(channel, level) for channel in histogram])
            for name, level in QUANTILES.items()
        },
    }
    shaped: dict[str, NDArray[Any]] = {name: values.reshape(3, 1, 1) for name, values in statistics.items()}
    return {**shaped, "count": np.array([num_images])}


def _histogram_quantile(counts: NDArray[np.int64], level: float) -> float:
    cumulative = np.cumsum(counts)
    rank = level * (cumulative[-1] - 1)
    below, above = np.searchsorted(cumulative, [np.floor(rank), np.ceil(rank)], side="right")
    return float((below + (rank - np.floor(rank)) * (above - below)) / 255.0)
