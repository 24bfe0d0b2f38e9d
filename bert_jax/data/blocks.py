"""A store put together from blocks: runs of successive documents, tokenised anywhere and in any order.

Each block is one temporary file. Its counts are enough to know, for almost all of the store, which bytes of which block
belong where; where a shard ends, the lengths of one block's documents are read as well. So whoever plans handles a few
numbers a block, and files of the store can be written by as many workers as there are files.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bert_jax.data.stages import Piece
from bert_jax.data.store import SplitInfo
from bert_jax.data.writer import languages_file, offsets_header, shard_file

Read = Callable[[str, int, int], bytes]  # path, first byte, number of bytes

READERS = 32  # ranges read ahead by whoever writes a file of the store: a bucket answers in tens of milliseconds
_LENGTH = np.dtype("<u4")


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a block has for one side: from byte `begin` its tokens, one byte a token for every channel, then uint32 lengths
    of sentences and of documents, and where languages are known one byte a document."""

    begin: int
    tokens: int
    sentences: int
    documents: int


@dataclasses.dataclass(frozen=True)
class Block:
    """The file of a block; `order` is its source and its place in it, `read` counts its documents, dropped ones too."""

    order: tuple[int, int]
    path: str
    itemsize: int  # bytes of a token
    read: int
    without_tokens: int
    sides: dict[str, Stored]
    channels: tuple[str, ...] = ()

    def place(self, side: str, what: str) -> tuple[int, int]:
        """First byte and bytes of a side's "tokens", of one of its channels, its "sentences", "documents" or "languages"."""
        stored = self.sides[side]
        begin = stored.begin
        sizes = {"tokens": stored.tokens * self.itemsize} | {channel: stored.tokens for channel in self.channels}
        sizes |= {"sentences": stored.sentences * _LENGTH.itemsize, "documents": stored.documents * _LENGTH.itemsize}
        sizes["languages"] = stored.documents
        for name, length in sizes.items():
            if name == what:
                return begin, length
            begin += length
        raise KeyError(what)


class BlockWriter:
    """The `bert_jax.data.stages.Writer` of one block, in memory."""

    def __init__(self, sides: list[str], dtype: np.dtype, channels: list[str], *, languages: bool):
        self.dtype = dtype
        self.channels = channels
        self.languages = languages
        self.pieces: dict[str, list[Piece]] = {side: [] for side in sides}
        self.documents: dict[str, list[tuple[int, int]]] = {side: [] for side in sides}  # tokens, language
        self.read = self.without_tokens = self.text_bytes = 0
        self._size = 0  # tokens of the current document

    def append(self, side: str, piece: Piece) -> None:
        self.pieces[side].append(piece)
        self._size += len(piece.tokens)

    def end_document(self, side: str, digest: bytes, text_bytes: int, language: int = 0) -> None:
        if self._size:
            self.documents[side].append((self._size, language))
        else:
            self.without_tokens += 1
        self.read += 1
        self.text_bytes += text_bytes
        self._size = 0

    def finish(self, path: str, order: tuple[int, int]) -> tuple[Block, list[bytes]]:
        """The block, and what its file at `path` has to hold."""
        sides, chunks, begin = {}, [], 0
        for side, documents in self.documents.items():
            pieces = self.pieces[side]
            tokens = np.concatenate([np.empty(0, self.dtype), *(piece.tokens for piece in pieces)])
            sentences = np.concatenate([np.empty(0, np.int64), *(piece.sentence_lengths for piece in pieces)])
            sides[side] = Stored(begin, len(tokens), len(sentences), len(documents))
            new = [tokens.tobytes(), *(b"".join(piece.channels[name].tobytes() for piece in pieces) for name in self.channels)]
            new += [sentences.astype(_LENGTH).tobytes(), np.array([size for size, _ in documents], _LENGTH).tobytes()]
            if self.languages:
                new.append(bytes(language for _, language in documents))
            begin += sum(map(len, new))
            chunks += new
        channels = tuple(self.channels)
        return Block(order, path, self.dtype.itemsize, self.read, self.without_tokens, sides, channels), chunks


@dataclasses.dataclass(frozen=True)
class StoreFile:
    """A file of the store: the ranges that it consists of, as (path, first byte, bytes).

    The ranges of a shard are its bytes. Those of offsets are lengths, and `offsets` says how many offsets they become.
    """

    name: str
    ranges: list[tuple[str, int, int]]
    offsets: int | None = None

    def chunks(self, read: Read) -> Iterator[bytes]:
        """Its bytes, in order."""
        if self.offsets is None:
            yield from _read_ahead(read, self.ranges)
            return
        yield offsets_header(self.offsets)
        total = 0
        for data in _read_ahead(read, self.ranges):
            ends = total + np.cumsum(np.frombuffer(data, _LENGTH), dtype="<i8")
            yield np.concatenate([[total], ends[:-1]]).astype("<i8").tobytes()
            total = int(ends[-1])
        yield np.array([total], "<i8").tobytes()


def plan(
    blocks: Iterable[Block], sides: list[str], shard_tokens: int, read: Read, *, languages: bool = False
) -> tuple[dict[str, SplitInfo], list[StoreFile]]:
    """What the store consists of: its splits, and its files; those that take longest come first on their side.

    A shard ends with the first document that fills it, as `bert_jax.data.writer.StoreWriter` has it.
    """
    blocks = sorted(blocks, key=lambda block: block.order)
    splits, files = {}, []
    for side in sides:
        full = [block for block in blocks if block.sides[side].tokens]
        documents, sentences, tokens = (
            sum(getattr(block.sides[side], name) for block in full) for name in ("documents", "sentences", "tokens")
        )
        for name, count in (("sentences", sentences), ("documents", documents)):
            ranges = [(block.path, *block.place(side, name)) for block in full]
            files.append(StoreFile(f"{side}/{name}.npy", ranges, count + 1))
        if languages:
            ranges = [(block.path, *block.place(side, "languages")) for block in full]
            files.append(StoreFile(languages_file(side), ranges))
        shards = list(_shards(full, side, shard_tokens, read))
        for kind in ("tokens", *(full[0].channels if full else ())):
            files += [StoreFile(shard_file(side, n, kind), _bytes(shard, side, kind)) for n, shard in enumerate(shards)]
        counts = tuple(
            (shard_file(side, number), sum(count for _, _, count in shard)) for number, shard in enumerate(shards)
        )
        splits[side] = SplitInfo(documents, sentences, tokens, counts)
    return splits, files


def _shards(blocks: list[Block], side: str, shard_tokens: int, read: Read) -> Iterator[list[tuple[Block, int, int]]]:
    """Of each shard, which tokens of which blocks it has: block, first token, number of tokens."""
    size, ranges = 0, []
    for block in blocks:
        done, count = 0, block.sides[side].tokens
        if size + count >= shard_tokens:
            ends = np.cumsum(np.frombuffer(read(block.path, *block.place(side, "documents")), _LENGTH), dtype=np.int64)
            while (number := np.searchsorted(ends, done + shard_tokens - size)) < len(ends):
                end = int(ends[number])
                yield [*ranges, (block, done, end - done)]
                size, ranges, done = 0, [], end
        if done < count:
            ranges.append((block, done, count - done))
            size += count - done
    if ranges:
        yield ranges


def _bytes(shard: list[tuple[Block, int, int]], side: str, kind: str) -> list[tuple[str, int, int]]:
    """Where the tokens of a shard lie, or a channel of them."""
    size = shard[0][0].itemsize if kind == "tokens" else 1
    return [(block.path, block.place(side, kind)[0] + first * size, count * size) for block, first, count in shard]


def _read_ahead(read: Read, ranges: list[tuple[str, int, int]]) -> Iterator[bytes]:
    """The bytes of each range, in order."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for place in ranges:
            waiting.append(pool.submit(read, *place))
            if len(waiting) > READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
