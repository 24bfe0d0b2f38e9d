"""TensorFlow checkpoints read without TensorFlow: the index and the data files of a "tensor bundle".

A checkpoint NAME is `NAME.index`, a sorted table of names and places, and `NAME.data-00000-of-00002` ..., the bare bytes.
The table is LevelDB's (its doc/table_format.md), with blocks bare or compressed by Snappy (its format_description.txt); the
values are messages of tensorflow/core/protobuf/tensor_bundle.proto. Little of each is needed, so all are parsed here.
"""

import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from bert_jax.errors import BertJaxError

logger = logging.getLogger("bert_jax")

_MAGIC = 0xDB4775248B80FB57  # the last 8 bytes of a table
_FOOTER = 48  # two block handles, padded, and the magic number
_TRAILER = 5  # of a block: one byte for the compression, four for the checksum

# Numbers of tensorflow/core/framework/types.proto.
_DTYPES = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 8: np.complex64, 9: np.int64,
    10: np.bool_, 14: ml_dtypes.bfloat16, 17: np.uint16, 18: np.complex128, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
_NO_NUMBERS = (7, 20, 21)  # strings, resources, variants: bookkeeping such as _CHECKPOINTABLE_OBJECT_GRAPH


class _Entry(NamedTuple):
    """Where a tensor lies: shard, first byte, bytes; ``crc`` is the masked CRC-32C of those bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


class TensorBundle:
    """A TensorFlow checkpoint, opened by its index; tensors are read one at a time.

    Attributes:
      path: the checkpoint's prefix, e.g. `.../bert_model.ckpt`.
      shapes, dtypes: of every tensor of numbers, by name in alphabetical order. bfloat16 is that of ml_dtypes.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def __init__(self, prefix: str | os.PathLike):
        """Reads and checks the index, and no data yet.

        Args:
          prefix: as TensorFlow means it, without `.index`; the path of the index file itself is taken too.

        Raises:
          BertJaxError: there is no such index, or it is truncated, damaged, lying or of a big-endian machine.
        """
        self.path = Path(os.fspath(prefix).removesuffix(".index"))
        index = Path(f"{self.path}.index")
        try:
            content = index.read_bytes()
        except OSError as error:
            raise BertJaxError(
                f"{index} cannot be read ({error.strerror}): a TensorFlow checkpoint NAME needs NAME.index and NAME.data-*"
            ) from error
        try:
            self._shards, self._entries = _parse_index(content)
        except (ValueError, IndexError) as error:  # IndexError: a number was cut off
            what = error if isinstance(error, ValueError) else "it ends too early"
            raise BertJaxError(f"{index} is not a TensorFlow checkpoint that can be read: {what}") from error
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor with its stored shape and dtype; nothing but its bytes is read.

        Raises:
          BertJaxError: no such tensor, its data file is absent or too short, its bytes do not have the checksum that the
            index states, or it is stored in slices (a partitioned variable).
        """
        if name not in self._entries:
            raise BertJaxError(f"{self.path} holds no tensor {name}")
        entry = self._entries[name]
        if entry.sliced:
            raise BertJaxError(f"{self.path}: {name} is stored in slices: save it unpartitioned with TensorFlow first")
        data = Path(f"{self.path}.data-{entry.shard:05d}-of-{self._shards:05d}")
        try:
            length = data.stat().st_size
            if entry.offset + entry.size > length:  # before memory is taken
                raise BertJaxError(
                    f"{data} has {length} bytes but {name} ends at {entry.offset + entry.size}: truncated, copy it again"
                )
            raw = np.fromfile(data, np.uint8, count=entry.size, offset=entry.offset)
        except OSError as error:
            raise BertJaxError(f"{data} cannot be read ({error.strerror}): it holds {name}") from error
        if raw.size != entry.size or _masked_crc(raw) != entry.crc:
            raise BertJaxError(f"{data}: the bytes of {name} do not have their checksum: damaged, copy the file again")
        return raw.view(entry.dtype).reshape(entry.shape)


def find_prefix(directory: str | os.PathLike) -> Path | None:
    """The prefix of the TensorFlow checkpoint in a folder, None where there is none.

    TensorFlow's text file `checkpoint` says which one is the newest. Only the file name in it counts, as its folder is often
    one of the machine that wrote it. Without that file there must be one checkpoint.

    Raises:
      BertJaxError: several checkpoints and no word on which.
    """
    directory = Path(directory)
    found = sorted(path.with_suffix("") for path in directory.glob("*.index") if path.is_file())
    if not found:
        return None
    state = directory / "checkpoint"
    if state.is_file():
        with state.open("rb") as file:
            text = file.read(1 << 16).decode(errors="replace")
        if match := re.search(r'^\s*model_checkpoint_path:\s*"(.*)"\s*$', text, re.MULTILINE):
            newest = directory / re.split(r"[/\\]", match[1])[-1]
            if newest in found:
                return newest
            logger.warning("%s names %s, which is not beside it", state, newest.name)
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:8]) + (", ..." if len(found) > 8 else "")
        raise BertJaxError(f"{directory} holds {len(found)} TensorFlow checkpoints, name one: {names}")
    return found[0]


# The table. Offsets and lengths come from the file: every slice is checked, as Python would shorten it without a word.


def _parse_index(content: bytes) -> tuple[int, dict[str, _Entry]]:
    """Number of shards, and the tensors of numbers by name."""
    if len(content) < _FOOTER or int.from_bytes(content[-8:], "little") != _MAGIC:
        raise ValueError("the magic number at its end is missing: truncated, or another kind of file")
    footer = content[-_FOOTER:]
    _, _, at = _handle(footer, 0)  # of the meta index, which is empty
    start, size, _ = _handle(footer, at)
    records = [
        record for _, handle in _block(content, start, size) for record in _block(content, *_handle(handle, 0)[:2])
    ]
    if not records or records[0][0]:
        raise ValueError("it has no header")
    header = _message(records[0][1])
    if _last(header, 2):
        raise ValueError("a big-endian machine wrote it: save it again on a little-endian one")
    shards = _last(header, 1)
    if not 1 <= shards <= 99_999:
        raise ValueError(f"it states {shards} data files")

    entries = {}
    for key, value in records[1:]:
        if key[:1] == b"\0":  # a slice; the variable has an entry of its own that says so
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"a name is not UTF-8: {key!r}") from error
        if name in entries:
            raise ValueError(f"{name} stands in it twice")
        if entry := _entry(name, _message(value), shards):
            entries[name] = entry
    return shards, entries


def _entry(name: str, fields: dict[int, list], shards: int) -> _Entry | None:
    number = _last(fields, 1)
    if number in _NO_NUMBERS:
        return None
    if number not in _DTYPES:
        raise ValueError(f"{name} has the TensorFlow data type {number}, which is not read here")
    dtype = np.dtype(_DTYPES[number])
    dims = [d for shape in fields.get(2, []) for d in _message(_bytes(shape)).get(2, [])]
    shape = tuple(_last(_message(_bytes(d)), 1) for d in dims)
    if len(shape) > 16 or math.prod(d or 1 for d in shape) * dtype.itemsize >= 1 << 63:  # no array has such a shape
        raise ValueError(f"{name} has the shape {list(shape[:16])}")
    entry = _Entry(
        dtype, shape, _last(fields, 3), _last(fields, 4), _last(fields, 5), _last(fields, 6), sliced=7 in fields
    )
    if entry.shard >= shards:
        raise ValueError(f"{name} lies in data file {entry.shard} of {shards}")
    if not entry.sliced and entry.size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {entry.size} bytes, which is not {dtype} {list(shape)}")
    return entry


def _block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block at ``start``. A key states how many bytes it has in common with the one before."""
    end = start + size
    if end + _TRAILER > len(content) - _FOOTER:
        raise ValueError("a block lies outside the file: truncated or damaged")
    stored = int.from_bytes(content[end + 1 : end + _TRAILER], "little")
    if _masked_crc(content[start : end + 1]) != stored:
        raise ValueError("a block does not have its checksum: damaged, copy the file again")
    if content[end] > 1:
        raise ValueError(f"a block is compressed in the unknown way {content[end]}")
    block = _decompress(content[start:end]) if content[end] else content[start:end]
    places = int.from_bytes(_slice(block, len(block) - 4, 4), "little")  # at the end, for a binary search
    end = len(block) - 4 * (places + 1)
    if end < 0:
        raise ValueError("a block is shorter than its own list of places")
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + rest + length > end:
            raise ValueError("a record of it overruns its block")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _decompress(content: bytes) -> bytes:
    """Snappy: a length, then literal bytes and copies of earlier output. Index blocks are small, so Python will do."""
    length, at = _varint(content, 0)
    output = bytearray()
    while at < len(content):
        tag, kind = content[at] >> 2, content[at] & 3
        at += 1
        if kind == 0:  # a literal; long ones state their length in one to four bytes
            extra = max(tag - 59, 0)
            size = (int.from_bytes(_slice(content, at, extra), "little") if extra else tag) + 1
            output += _slice(content, at + extra, size)
            at += extra + size
            continue
        width = (1, 2, 4)[kind - 1]
        back = int.from_bytes(_slice(content, at, width), "little")
        size = tag + 1
        if kind == 1:  # the upper three bits of the tag belong to the distance
            back, size = back | tag >> 3 << 8, (tag & 7) + 4
        at += width
        if not 1 <= back <= len(output):
            raise ValueError("a compressed block refers to bytes before its beginning")
        pattern = output[len(output) - back : len(output) - back + size]
        output += (pattern * -(-size // len(pattern)))[:size]  # a copy may run into its own output
    if len(output) != length:
        raise ValueError(f"a compressed block unfolds to {len(output)} bytes instead of {length}")
    return bytes(output)


def _handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and where the handle ends."""
    start, at = _varint(content, at)
    size, at = _varint(content, at)
    return start, size, at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of up to 64 bits in groups of seven, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ValueError("a number in it does not end")


def _slice(content: bytes, at: int, size: int) -> bytes:
    if at < 0 or at + size > len(content):
        raise ValueError("a field in it is cut off")
    return content[at : at + size]


def _masked_crc(content: bytes | np.ndarray) -> int:
    """CRC-32C, rotated and shifted so that a checksum over checksums does not degenerate."""
    import google_crc32c  # here: only TensorFlow's checkpoints need it

    crc = google_crc32c.extend(0, content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Protocol buffers on the wire: fields by number, the values of a repeated field in a list.


def _message(content: bytes) -> dict[int, list]:
    fields: dict[int, list] = {}
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        match tag & 7:
            case 0:
                value, at = _varint(content, at)
            case 1 | 5 as kind:
                width = 8 if kind == 1 else 4
                value, at = int.from_bytes(_slice(content, at, width), "little"), at + width
            case 2:
                size, at = _varint(content, at)
                value, at = _slice(content, at, size), at + size
            case kind:
                raise ValueError(f"a field in it is of the unknown kind {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _last(fields: dict[int, list], number: int) -> int:
    """A single number; 0 is what is not written."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} in it is not a number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field in it is a number instead of a message")
    return value
