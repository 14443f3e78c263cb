"""The wire format: msgpack with numpy arrays, as openpi's clients speak it, decoded under strict limits.

An array travels as the map `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}`, a numpy
scalar as `{b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}`. Only plain little-endian numbers exist
here: no objects, no structured types, no strings in arrays, nothing that runs code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdvla.errors import MissingExtraError, ServeError

try:
    import msgpack
except ModuleNotFoundError:
    raise MissingExtraError("msgpack", "client") from None

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in ("|b1", "|u1", "|i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")
}


class CodecError(ServeError):
    """Bytes that are not a message, or a message beyond the limits."""


@dataclass(frozen=True)
class Limits:
    """What a decoded message may hold. The size in bytes is limited by the transport, before decoding.

    Attributes:
        max_items: list elements plus map entries of the whole message (array contents not counted).
        max_text: bytes of one string.
        max_dims: dimensions of an array.
        max_side: length of one dimension.
    """

    max_items: int = 4096
    max_text: int = 4096
    max_dims: int = 4
    max_side: int = 8192


def encode(message: Mapping[str, Any]) -> bytes:
    """Return `message` (plain values and numpy arrays of `DTYPES`) as one binary frame.

    Raises:
        CodecError: a value that the format does not carry.
    """
    try:
        packed = msgpack.packb(message, default=_pack_numpy)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"cannot send this message: {error}") from None
    return bytes(packed)


def decode(frame: bytes, limits: Limits | None = None) -> dict[str, Any]:
    """Return the map that `frame` holds; its arrays are read-only views of the frame's bytes.

    Sizes are checked before anything of that size is allocated, so memory stays within a small multiple of the
    frame whatever it claims to hold.

    Raises:
        CodecError: not msgpack, not a map with text keys, an array whose dtype is not in `DTYPES` or whose
            shape does not fit its data, or more than `limits` allow.
    """
    reader = _Reader(limits or Limits())
    try:
        message = msgpack.unpackb(
            frame,
            object_hook=reader.map,
            list_hook=reader.list,
            ext_hook=_refuse_extension,
            max_array_len=reader.limits.max_items,
            max_map_len=reader.limits.max_items,
            max_str_len=reader.limits.max_text,
        )
    except CodecError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CodecError(f"not a msgpack message: {error}") from None
    if not isinstance(message, dict):
        raise CodecError(f"a message must be a map, found {type(message).__name__}.")
    if not all(isinstance(key, str) for key in message):
        raise CodecError("the keys of a message must be text.")
    return message


class _Reader:
    """The hooks of one decoding: counts items and turns tagged maps into numpy values."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.items = 0

    def list(self, values: list[Any]) -> list[Any]:
        self._count(len(values))
        return values

    def map(self, values: dict[Any, Any]) -> Any:
        self._count(len(values))
        if b"__ndarray__" in values:
            return self._array(values)
        if b"__npgeneric__" in values:
            return _scalar(values)
        return values

    def _count(self, n: int) -> None:
        self.items += n
        if self.items > self.limits.max_items:
            raise CodecError(f"the message holds more than {self.limits.max_items} items; send arrays, not lists.")

    def _array(self, values: dict[Any, Any]) -> np.ndarray[Any, Any]:
        dtype = _dtype(values.get(b"dtype"))
        data, shape = values.get(b"data"), values.get(b"shape")
        if not isinstance(data, bytes):
            raise CodecError(f"an array's data must be bytes, found {type(data).__name__}.")
        if not isinstance(shape, list) or not all(type(side) is int for side in shape):
            raise CodecError(f"an array's shape must be a list of whole numbers, found {shape!r:.80}.")
        if len(shape) > self.limits.max_dims:
            raise CodecError(f"an array has {len(shape)} dimensions; at most {self.limits.max_dims} are accepted.")
        if any(side < 0 or side > self.limits.max_side for side in shape):
            raise CodecError(f"an array's shape {shape} has a side outside 0..{self.limits.max_side}.")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise CodecError(f"an array of shape {shape} and dtype {dtype} does not have {len(data)} bytes.")
        return np.ndarray(shape=shape, dtype=dtype, buffer=data)


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    raise CodecError(f"dtype {name!r:.40} is not accepted; use one of {', '.join(DTYPES)}.")


def _scalar(values: dict[Any, Any]) -> Any:
    dtype = _dtype(values.get(b"dtype"))
    number = values.get(b"data")
    if not isinstance(number, int | float):
        raise CodecError(f"a numpy scalar must hold a number, found {type(number).__name__}.")
    try:
        with np.errstate(over="ignore"):
            return dtype.type(number)
    except (OverflowError, ValueError) as error:
        raise CodecError(f"{number!r} is not a {dtype}: {error}") from None


def _pack_numpy(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise CodecError(f"cannot send a {type(value).__name__}; use plain values and numpy arrays.")
    if value.dtype.str not in DTYPES:
        raise CodecError(f"cannot send an array of dtype {value.dtype}; use one of {', '.join(DTYPES)}.")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise CodecError(f"msgpack extension type {code} is not accepted.")
