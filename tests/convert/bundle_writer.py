"""Writes TensorFlow checkpoints without TensorFlow, so that tests can damage them and make them lie.

Only for tests, and written apart from the reader: field numbers are those of tensor_bundle.proto, the table is LevelDB's.
"""

import pathlib
from collections.abc import Callable, Mapping

import google_crc32c
import ml_dtypes
import numpy as np

DTYPES = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8, "int64": 9, "bool": 10,
    "bfloat16": 14, "uint16": 17, "complex128": 18, "float16": 19, "uint32": 22, "uint64": 23,
}  # fmt: skip
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def varint(n: int) -> bytes:
    n %= 1 << 64  # as protocol buffers write negative numbers
    groups = [n >> shift & 127 for shift in range(0, max(n.bit_length(), 1), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def message(fields: Mapping[int, int | bytes | list]) -> bytes:
    """Fields by number: numbers, bytes (or lists of them); the checksum, field 6, has a fixed width."""
    out = b""
    for number, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if number == 6:
                out += varint(number << 3 | 5) + value.to_bytes(4, "little")
            elif isinstance(value, bytes):
                out += varint(number << 3 | 2) + varint(len(value)) + value
            else:
                out += varint(number << 3) + varint(value)
    return out


def masked_crc(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)


def literal(content: bytes) -> bytes:
    """A valid Snappy stream that compresses nothing."""
    return varint(len(content)) + bytes([61 << 2]) + (len(content) - 1).to_bytes(2, "little") + content


def block(records: list[tuple[bytes, bytes]], every: int = 4) -> bytes:
    """Keys share their beginnings with the key before, but every fourth, whose place is listed at the end."""
    out, places, before = b"", [], b""
    for i, (key, value) in enumerate(records):
        shared = 0
        if i % every:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            places.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    places = places or [0]
    return out + b"".join(n.to_bytes(4, "little") for n in [*places, len(places)])


def table(records: list[tuple[bytes, bytes]], compressed: bool = False, a_block: int = 5) -> bytes:
    out = b""

    def put(content: bytes) -> bytes:
        nonlocal out
        content = literal(content) if compressed else content
        handle = varint(len(out)) + varint(len(content))
        content += bytes([compressed])
        out += content + masked_crc(content).to_bytes(4, "little")
        return handle

    parts = [records[i : i + a_block] for i in range(0, len(records), a_block)]
    index = [(part[-1][0] + b"~", put(block(part))) for part in parts]
    footer = put(block([])) + put(block(index))  # the first is of the meta index, which TensorFlow leaves empty
    return out + footer.ljust(40, b"\0") + MAGIC


def write_bundle(
    prefix: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    shards: int = 1,
    compressed: bool = False,
    edit: Callable[[str, dict], dict] = lambda name, fields: fields,
) -> None:
    """Tensors go to the data files in turn. ``edit`` may change the fields of an entry, and of the header, named ""."""
    data = [b""] * shards
    records = [(b"", message(edit("", {1: shards, 3: message({1: 1})})))]
    for i, (name, a) in enumerate(sorted(tensors.items())):
        raw, shard = a.tobytes(), i % shards
        shape = message({2: [message({1: d}) for d in a.shape]})
        fields = {1: DTYPES[a.dtype.name], 2: shape, 3: shard, 4: len(data[shard]), 5: len(raw), 6: masked_crc(raw)}
        records.append((name.encode(), message(edit(name, fields))))
        data[shard] += raw
    pathlib.Path(f"{prefix}.index").write_bytes(table(records, compressed))
    for i, content in enumerate(data):
        pathlib.Path(f"{prefix}.data-{i:05d}-of-{shards:05d}").write_bytes(content)
