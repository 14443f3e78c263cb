"""What one decision leaves to the next: a scratchpad, as a blob that only its own policy can read.

A policy keeps nothing between decisions. A decision returns its carry and takes one; whoever executes an episode passes
it on; a server neither stores nor trusts it. Layout, little-endian: `RDVC`, a version byte, 8 bytes that name the
head's weights, 8 that name the instruction, the scratchpad float32 `[K, D]`, CRC-32 of all of that.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdvla.errors import CarryError
from rdvla.model.recurrent import RecurrentHead

_START = b"RDVC\x01"
_TAG = 8
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Carry:
    """A carry in the open.

    Attributes:
        instruction: the sentence it was thought for, as `tag` names it.
        latents: float32 `[K, D]`, the scratchpad to begin with.
    """

    instruction: bytes
    latents: NDArray[np.float32]


def tag(text: str) -> bytes:
    """Return 8 bytes that name `text`."""
    return hashlib.sha256(text.encode()).digest()[:_TAG]


class CarryFormat:
    """Reads and writes the carries of one head."""

    def __init__(self, head: RecurrentHead) -> None:
        """Take the sizes and the name of `head`, whose weights are final and not packed yet."""
        config = head.config
        self._shape = config.chunk_size, config.hidden_dim
        weights = hashlib.sha256()
        for _, values in sorted(head.state_dict().items()):
            weights.update(np.ascontiguousarray(values.detach().float().cpu().numpy()).tobytes())
        self._head = weights.digest()[:_TAG]
        largest = float(head.core.norm.weight.detach().float().abs().max())
        self._bound = 1.01 * largest * config.hidden_dim**0.5
        self.size = len(_START) + 2 * _TAG + 4 * self._shape[0] * self._shape[1] + _CRC.size

    def write(self, carry: Carry) -> bytes:
        """Return the blob."""
        latents = np.ascontiguousarray(carry.latents, dtype="<f4").tobytes()
        content = _START + self._head + carry.instruction + latents
        return content + _CRC.pack(zlib.crc32(content))

    def read(self, blob: bytes) -> Carry:
        """Read a blob.

        Raises:
            CarryError: no bytes, damaged, of another policy, not finite, or larger than an iteration can leave it.
        """
        if not isinstance(blob, bytes):
            raise CarryError(f"a carry is bytes, found {type(blob).__name__}; start the episode without one.")
        if len(blob) != self.size or not blob.startswith(_START):
            raise CarryError(
                f"the carry has {len(blob)} bytes, this policy's have {self.size}: it is another policy's, or none. "
                "Start the episode without one."
            )
        content, (check,) = blob[: -_CRC.size], _CRC.unpack(blob[-_CRC.size :])
        if zlib.crc32(content) != check:
            raise CarryError("the carry is damaged (its checksum differs); start the episode without one.")
        head, rest = content[len(_START) : len(_START) + _TAG], content[len(_START) + _TAG :]
        if head != self._head:
            raise CarryError("the carry is of a policy with other weights; start the episode without one.")
        latents = np.frombuffer(rest[_TAG:], dtype="<f4").reshape(self._shape)
        if not np.isfinite(latents).all():
            raise CarryError("the carry holds numbers that are not finite; start the episode without one.")
        if np.abs(latents).max() > self._bound:
            raise CarryError("the carry holds larger numbers than an iteration leaves; start the episode without one.")
        return Carry(rest[:_TAG], latents)


def as_latents(carry: Carry, like: Tensor) -> Tensor:
    """Return the scratchpad `[1, K, D]` on the device and in the dtype of `like`."""
    return torch.from_numpy(carry.latents.copy()).unsqueeze(0).to(like.device, like.dtype)
