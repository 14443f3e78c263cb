"""What tensors get on a GPU is what arrays get on a CPU."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from rdvla.data.augmentation import LIGHT_AUGMENTATION, PUBLISHED_AUGMENTATION, Augmentation, augment
from rdvla.train.augment import augment_tensors


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(shift=7),
        Augmentation(crop_area=0.6),
        Augmentation(hue=0.5),
        Augmentation(saturation=1.0),
        LIGHT_AUGMENTATION,
        PUBLISHED_AUGMENTATION,
        Augmentation(crop_area=0.8, shift=4, brightness=0.3, contrast=0.4, saturation=0.4, hue=0.2),
    ],
    ids=repr,
)
def test_tensors_get_what_arrays_get(augmentation):
    rng = np.random.default_rng(0)
    gray = np.repeat(rng.integers(0, 256, (2, 21, 33, 1), dtype=np.uint8), 3, axis=3)
    images = np.concatenate([rng.integers(0, 256, (6, 21, 33, 3), dtype=np.uint8), gray])
    draws = [augmentation.sample(rng) for _ in images]
    expected = np.stack([augment(image, draw) for image, draw in zip(images, draws, strict=True)])
    factors = torch.tensor([astuple(draw) for draw in draws], dtype=torch.float32)
    found = augment_tensors(torch.from_numpy(images), factors).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found != expected) < 0.001
