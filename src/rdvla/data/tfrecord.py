"""TFRecord files of `tf.train.Example`, read without TensorFlow.

A record is its length (uint64), a checksum of the length, the bytes, a checksum of the bytes; numbers are
little-endian, checksums are CRC-32C, rotated and shifted by a constant. The bytes are an `Example` message: feature
name -> a list of bytes, of floats or of integers. The message is declared here, in a pool of its own, so that it does
not clash with TensorFlow's where that is imported too.
"""

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import DatasetError, MissingExtraError

try:
    import google_crc32c
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError
except ImportError as error:
    raise MissingExtraError("google-crc32c or protobuf", "rlds") from error

Values = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
"""What one feature of an `Example` holds."""

_CRC_SHIFT = 0xA282EAD8
_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    Raises:
        DatasetError: the file is missing, cut short, or a checksum does not fit.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while head := file.read(_LENGTH.size):
                yield _read_record(file, head, f"'{path}', record {number}")
                number += 1
    except FileNotFoundError:
        raise DatasetError(f"'{path}' is missing; copy the dataset again, all of its files.") from None
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read: {error.strerror}.") from None


def parse_example(record: bytes, where: str) -> Mapping[str, Values]:
    """Return the features of a serialised `tf.train.Example`.

    Args:
        record: the message.
        where: names the record in an error.

    Raises:
        DatasetError: the bytes are not such a message.
    """
    example = _example_class()()
    try:
        example.ParseFromString(record)
    except DecodeError:
        raise DatasetError(f"{where} is not a tf.train.Example; copy the dataset again.") from None
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def masked_checksum(content: bytes) -> int:
    """Return the checksum that TFRecord files store for `content`."""
    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + _CRC_SHIFT) & 0xFFFFFFFF


def _read_record(file: Any, head: bytes, where: str) -> bytes:
    if len(head) < _LENGTH.size:
        raise DatasetError(f"{where} is cut short; copy the dataset again.")
    length, expected = _LENGTH.unpack(head)
    if masked_checksum(head[:8]) != expected:
        raise DatasetError(f"{where} has a damaged length, or this is no TFRecord file; copy the dataset again.")
    content: bytes = file.read(length)
    tail: bytes = file.read(_CHECKSUM.size)
    if len(content) < length or len(tail) < _CHECKSUM.size:
        raise DatasetError(f"{where} is cut short; copy the dataset again.")
    if masked_checksum(content) != _CHECKSUM.unpack(tail)[0]:
        raise DatasetError(f"{where} is damaged: its checksum does not fit; copy the dataset again.")
    return content


def _values(feature: Any) -> Values:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, dtype=np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, dtype=np.int64)
    return list(feature.bytes_list.value)


class _Field(NamedTuple):
    name: str
    number: int
    kind: int
    message: str = ""
    repeated: bool = False
    one_of: bool = False


_Proto = descriptor_pb2.FieldDescriptorProto
_MESSAGES = {
    "BytesList": [_Field("value", 1, _Proto.TYPE_BYTES, repeated=True)],
    "FloatList": [_Field("value", 1, _Proto.TYPE_FLOAT, repeated=True)],
    "Int64List": [_Field("value", 1, _Proto.TYPE_INT64, repeated=True)],
    "Feature": [
        _Field("bytes_list", 1, _Proto.TYPE_MESSAGE, "BytesList", one_of=True),
        _Field("float_list", 2, _Proto.TYPE_MESSAGE, "FloatList", one_of=True),
        _Field("int64_list", 3, _Proto.TYPE_MESSAGE, "Int64List", one_of=True),
    ],
    "Features": [_Field("feature", 1, _Proto.TYPE_MESSAGE, "Features.FeatureEntry", repeated=True)],
    "Example": [_Field("features", 1, _Proto.TYPE_MESSAGE, "Features")],
}
_MAP_ENTRY = [_Field("key", 1, _Proto.TYPE_STRING), _Field("value", 2, _Proto.TYPE_MESSAGE, "Feature")]


@cache
def _example_class() -> Any:
    """Return the message class `Example`."""
    file = descriptor_pb2.FileDescriptorProto(name="rdvla/example.proto", package="rdvla", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name == "Feature":
            message.oneof_decl.add(name="kind")
        if name == "Features":
            entry = message.nested_type.add(name="FeatureEntry")
            entry.options.map_entry = True
            _declare(entry, _MAP_ENTRY)
        _declare(message, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rdvla.Example"))


def _declare(message: Any, fields: list[_Field]) -> None:
    for entry in fields:
        field = message.field.add(name=entry.name, number=entry.number, type=entry.kind)
        field.label = _Proto.LABEL_REPEATED if entry.repeated else _Proto.LABEL_OPTIONAL
        if entry.message:
            field.type_name = f".rdvla.{entry.message}"
        if entry.one_of:
            field.oneof_index = 0
