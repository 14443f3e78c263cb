"""The wire format: round trips, the very bytes of openpi's format, and everything hostile."""

import pickle
import random

import msgpack
import numpy as np
import pytest

from rdvla.wire.codec import DTYPES, CodecError, Limits, decode, encode


def array(data: bytes = b"\0" * 12, dtype: object = "<f4", shape: object = (3,)) -> dict[bytes, object]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_survives_a_round_trip(name: str) -> None:
    values = (np.arange(24) % 2).astype(name).reshape(2, 3, 4)
    message = decode(encode({"a": values, "scalar": values[1, 1, 1], "none": None, "list": [1, 2.5, "x", True]}))
    assert message["a"].dtype == values.dtype
    np.testing.assert_array_equal(message["a"], values)
    assert message["scalar"] == values[1, 1, 1]
    assert np.asarray(message["scalar"]).dtype == values.dtype
    assert message["none"] is None
    assert message["list"] == [1, 2.5, "x", True]


def test_the_bytes_are_openpis() -> None:
    packed = msgpack.unpackb(encode({"x": np.array([[1, 2]], np.uint8), "y": np.float32(0.5)}))
    assert packed == {
        "x": {b"__ndarray__": True, b"data": b"\x01\x02", b"dtype": "|u1", b"shape": [1, 2]},
        "y": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"},
    }


def test_a_non_contiguous_array_arrives_as_it_looks() -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(decode(encode({"a": values}))["a"], values)


def test_decoded_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        decode(encode({"a": np.zeros(3)}))["a"][0] = 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (array(dtype="|O"), "dtype"),
        (array(dtype="O"), "dtype"),
        (array(dtype="|V12"), "dtype"),
        (array(dtype="<c8"), "dtype"),
        (array(dtype="<U3"), "dtype"),
        (array(dtype="<M8[ns]"), "dtype"),
        (array(dtype="f4,O"), "dtype"),
        (array(dtype=[["a", "<f4"]]), "dtype"),
        (array(dtype=None), "dtype"),
        (array(dtype={"formats": ["O"]}), "dtype"),
        (array(shape=(4,)), "does not have 12 bytes"),
        (array(shape=(-3,)), "outside"),
        (array(shape=(-1, -3)), "outside"),
        (array(shape=(2**40, 2**40)), "outside"),
        (array(shape=(8192, 8192, 8192, 8192)), "does not have 12 bytes"),
        (array(shape=(1,) * 5), "dimensions"),
        (array(shape="3"), "shape"),
        (array(shape=(3.0,)), "shape"),
        (array(shape=(True, True, True)), "shape"),
        (array(shape=None), "shape"),
        (array(data=None), "bytes"),
        (array(data="text"), "bytes"),
        ({b"__ndarray__": True}, "dtype"),
        ({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}, "number"),
        ({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}, "300"),
        ({b"__npgeneric__": True, b"data": float("nan"), b"dtype": "<i4"}, "nan"),
        ({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}, "dtype"),
        (msgpack.ExtType(5, b"x"), "extension"),
        ([[1] * 4000, [1] * 4000], "items"),
        (dict.fromkeys(map(str, range(5000)), 0), "max_map_len|items"),
        ("x" * 5000, "max_str_len"),
    ],
)
def test_hostile_values_are_refused(value: object, match: str) -> None:
    with pytest.raises(CodecError, match=match):
        decode(msgpack.packb({"a": value}))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"hello",
        b"\x80\x80",
        msgpack.packb([1, 2]),
        msgpack.packb(3),
        msgpack.packb({b"a": 1}),
        msgpack.packb({"a": {1: 2}}),
        pickle.dumps({"a": 1}),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xffx",
        b"\x81\xa1a" + b"\x91" * 100_000,
        b"\x91" * 2000,
        b"\x81\xa1\xff\x01",
        b"\xd6\xff\x00\x00\x00\x00",
    ],
)
def test_frames_that_are_no_messages_are_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        decode(frame)


def test_many_small_lists_cannot_take_much_memory() -> None:
    """64 KiB of empty lists would become 4 MiB of objects; the count stops it after max_items."""
    with pytest.raises(CodecError, match=r"items|max_array_len"):
        decode(b"\x81\xa1a\xdc\xff\xff" + b"\x90" * 65535)
    nested = msgpack.packb({"a": [[[0] * 15 for _ in range(15)] for _ in range(200)]})
    with pytest.raises(CodecError, match="items"):
        decode(nested, Limits(max_items=1000))


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), np.array([object()]), np.array(["x"]), np.zeros(1, complex), 2**70]
)
def test_what_the_format_does_not_carry_is_not_sent(value: object) -> None:
    with pytest.raises(CodecError, match="cannot send"):
        encode({"a": value})


def test_mutated_frames_never_raise_anything_else() -> None:
    rng = random.Random(0)
    good = encode({"observation/image": np.zeros((8, 8, 3), np.uint8), "state": np.ones(8, np.float32), "prompt": "go"})
    refused = 0
    for _ in range(3000):
        frame = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        try:
            decode(bytes(frame[: rng.randint(1, len(frame))] if rng.random() < 0.3 else frame))
        except CodecError:
            refused += 1
    assert refused > 1000
