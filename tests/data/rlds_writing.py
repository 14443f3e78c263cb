"""Writes small RLDS datasets in the layout of TensorFlow Datasets, without it.

The messages are put together byte by byte here, so that the reader is not tested against its own declarations. What it
writes was compared once with what tensorflow-datasets 4.9 writes from the same steps (`test_rlds.py` has a record that
TensorFlow wrote).
"""

import io
import json
import struct

import numpy as np
from PIL import Image

from rdvla.data.tfrecord import masked_checksum


def picture(seed, size):
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    channels = [127 + 60 * (np.sin(x / 7 + seed) + np.cos(y / 9 + channel)) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def encode(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def steps(seed, length=6, cameras=None, state=8, kind="JPEG", sentence="Pick up the cup"):
    """One episode: feature -> values, as a record holds them."""
    rng = np.random.default_rng(seed)
    cameras = cameras or {"image": (16, 24), "wrist_image": (16, 24)}
    return {
        "steps/action": rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        "steps/observation/state": rng.normal(size=(length, state)).astype(np.float32),
        **{
            f"steps/observation/{name}": [encode(picture(seed + step, size), kind) for step in range(length)]
            for name, size in cameras.items()
        },
        "steps/language_instruction": [sentence.encode()] * length,
        "steps/is_first": np.arange(length) == 0,
        "episode_metadata/file_path": [b"somewhere"],
    }


def write(root, name, episodes, *, cameras=None, state=8, shards=2):
    """Write `episodes` (of `steps`) as `root/name/1.0.0`; return that folder."""
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(len(episodes)), shards)
    for number, part in enumerate(parts):
        content = b"".join(frame(example(episodes[index])) for index in part)
        (folder / f"{name}-train.tfrecord-{number:05d}-of-{shards:05d}").write_bytes(content)
    train = {
        "name": "train",
        "shardLengths": [str(len(part)) for part in parts],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [train]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    cameras = cameras or {"image": (16, 24), "wrist_image": (16, 24)}
    observation = {key: image_feature(size) for key, size in cameras.items()} | {"state": tensor_feature(state)}
    step = {
        "action": tensor_feature(7),
        "is_first": tensor_feature(dtype="bool"),
        "language_instruction": {"pythonClassName": "Text", "text": {}},
        "observation": group(observation),
    }
    tree = group({"steps": {"sequence": {"feature": group(step)}}, "episode_metadata": group({})})
    (folder / "features.json").write_text(json.dumps(tree))
    return folder


def group(children):
    return {"pythonClassName": "FeaturesDict", "featuresDict": {"features": children}}


def tensor_feature(*shape, dtype="float32"):
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {"pythonClassName": "Tensor", "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}


def image_feature(size):
    return {"image": {"shape": {"dimensions": [str(size[0]), str(size[1]), "3"]}, "dtype": "uint8"}}


def frame(content):
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_checksum(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


def example(features):
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, feature(v))) for key, v in features.items()))


def feature(values):
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    if values.dtype == np.float32:
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(value)) for value in values)))


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number):
    number &= 2**64 - 1
    content = b""
    while number >= 0x80:
        content += bytes([number & 0x7F | 0x80])
        number >>= 7
    return content + bytes([number])
