"""The files of a store while they grow, and the record from which an interrupted run goes on."""

import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from bert_jax.data.stages import Piece
from bert_jax.data.store import FORMAT, MANIFEST, Manifest, SplitInfo, digests, token_dtype
from bert_jax.errors import BertJaxError
from bert_jax.files import write_whole

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

NPY_HEADER = 128  # bytes that numpy reserves for a one-dimensional array, whatever its length
STATE = "state.json"
HELD = 1 << 20  # tokens of pieces that wait to be written together, and for each piece `PIECE` more
PIECE = 100


def shard_file(side: str, number: int, kind: str = "tokens") -> str:
    """The name of a shard, relative to the store; `kind` is "tokens" or a channel."""
    return f"{side}/{kind}-{number:05d}.bin"


def languages_file(side: str) -> str:
    """The name of the file of documents' languages, relative to the store."""
    return f"{side}/languages.bin"


def offsets_header(count: int) -> bytes:
    """The `NPY_HEADER` bytes before `count` int64 offsets in a .npy file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
    assert len(header.getvalue()) == NPY_HEADER
    return header.getvalue()


def check_not_empty(splits: dict[str, SplitInfo], documents: int, without_tokens: int) -> None:
    """Raises BertJaxError where a side has nothing, after reading `documents` of which some had no tokens."""
    empty = [name for name, split in splits.items() if not split.documents]
    if empty:
        raise BertJaxError(
            f"no document with tokens on the {empty[0]} side ({without_tokens} of {documents} documents "
            "have none): is this the right text for this tokenizer, and heldout as wished?"
        )


def manifest_of(
    inputs: dict, tokenizer: "Tokenizer", splits: dict[str, SplitInfo], without_tokens: int, files: dict[str, tuple[int, str]]
) -> Manifest:
    """The manifest of a store made from `inputs` (see `Recipe.inputs`); `files` has size and digest by name."""
    return Manifest(
        format=FORMAT,
        tokenizer={
            "kind": tokenizer.kind,
            "hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "pad_id": int(tokenizer.pad_id),
            "unk_id": int(tokenizer.unk_id),
            "cls_id": int(tokenizer.cls_id),
            "sep_id": int(tokenizer.sep_id),
            "mask_id": int(tokenizer.mask_id),
            "special_ids": [int(id) for id in tokenizer.special_ids],
        },
        options=inputs["options"],
        sources=inputs["sources"],
        documents_without_tokens=without_tokens,
        splits=splits,
        files={name: {"size": files[name][0], "blake2b": files[name][1]} for name in sorted(files)},
        channels=tuple(inputs["channels"]),
        languages=tuple(inputs["languages"]),
        parallel=inputs["parallel"],
    )


class _File:
    """A file that is appended to and can be put back to an earlier length."""

    def __init__(self, path: pathlib.Path, length: int = 0):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(path, "r+b" if length else "wb")
        self._file.truncate(length)
        self._file.seek(length)
        self.length = length

    def append(self, data: np.ndarray | bytes) -> None:
        self._file.write(memoryview(data).cast("B"))
        self.length += memoryview(data).nbytes

    def put_header(self, header: bytes) -> None:
        self._file.seek(0)
        self._file.write(header)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _SplitWriter:
    """The growing files of one split."""

    def __init__(self, root: pathlib.Path, name: str, shard_tokens: int, inputs: dict, state: dict | None):
        self.root = root
        self.name = name
        self.shard_tokens = shard_tokens
        self.channels: list[str] = inputs["channels"]
        state = state or {"documents": 0, "sentences": 0, "tokens": 0, "shards": []}
        self.documents: int = state["documents"]
        self.sentences: int = state["sentences"]
        self.tokens: int = state["tokens"]
        self.shards: list[list] = state["shards"]  # [file, tokens], the last one perhaps still open
        self.shard_open: bool = state.get("shard_open", False)
        self._document_start = self.tokens
        self._offsets = {
            "documents": self._offset_file("documents", self.documents),
            "sentences": self._offset_file("sentences", self.sentences),
        }
        self._languages = _File(root / languages_file(name), self.documents) if inputs["languages"] else None
        self._held: list[Piece] = []  # all of the open shard
        self._held_documents: list[tuple[int, int]] = []  # first token, language
        self._held_size = 0
        self._shard: dict[str, _File] = {}  # of the tokens and of every channel; empty between shards

    def _offset_file(self, name: str, count: int) -> _File:
        file = _File(self.root / self.name / f"{name}.npy", NPY_HEADER + 8 * count if count else 0)
        if not count:
            file.append(bytes(NPY_HEADER))  # its place; the length is known at the end
        return file

    def append(self, piece: Piece) -> None:
        """A piece of the current document, whole sentences."""
        count = len(piece.tokens)
        if not count:
            return
        if not self.shard_open:
            self.shards.append([shard_file(self.name, len(self.shards)), 0])
            self.shard_open = True
        self._held.append(piece)
        self._held_size += count + PIECE
        self.sentences += len(piece.sentence_lengths)
        self.tokens += count
        self.shards[-1][1] += count
        if self._held_size >= HELD:
            self._write()

    def end_document(self, language: int) -> bool:
        """Whether the document had a token."""
        if self.tokens == self._document_start:
            return False
        self._held_documents.append((self._document_start, language))
        self.documents += 1
        self._document_start = self.tokens
        return True

    def _write(self) -> None:
        """What was held."""
        pieces, documents = self._held, self._held_documents
        self._held, self._held_documents, self._held_size = [], [], 0
        if pieces:
            tokens = np.concatenate([piece.tokens for piece in pieces])
            if not self._shard:
                self._open_shard(self.shards[-1][1] - len(tokens), tokens.itemsize)
            lengths = np.concatenate([piece.sentence_lengths for piece in pieces])
            starts = self.tokens - len(tokens) + np.cumsum(lengths) - lengths
            self._offsets["sentences"].append(starts.astype("<i8"))
            self._shard["tokens"].append(tokens)
            for channel in self.channels:
                self._shard[channel].append(np.concatenate([piece.channels[channel] for piece in pieces]))
        if documents:
            self._offsets["documents"].append(np.array([start for start, _ in documents], "<i8"))
            if self._languages is not None:
                self._languages.append(bytes(language for _, language in documents))

    def _open_shard(self, count: int, itemsize: int) -> None:
        """The files of the last shard, of which `count` tokens are written."""
        self._shard["tokens"] = _File(self.root / self.shards[-1][0], count * itemsize)
        for channel in self.channels:
            self._shard[channel] = _File(self.root / shard_file(self.name, len(self.shards) - 1, channel), count)

    @property
    def shard_full(self) -> bool:
        return self.shard_open and self.shards[-1][1] >= self.shard_tokens

    def sync(self) -> None:
        self._write()
        for file in self._files:
            file.sync()
        if self.shard_full:
            for file in self._shard.values():
                file.close()
            self._shard = {}
            self.shard_open = False

    @property
    def _files(self) -> list[_File]:
        return [*self._shard.values(), *self._offsets.values(), *filter(None, [self._languages])]

    def state(self) -> dict:
        names = ("documents", "sentences", "tokens", "shards", "shard_open")
        return {name: getattr(self, name) for name in names}

    def finish(self) -> None:
        self._write()
        for name, file in self._offsets.items():
            file.append(np.array([self.tokens], "<i8"))
            file.put_header(offsets_header(getattr(self, name) + 1))
        self.sync()
        self.close()

    def close(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # what was recorded is on disk already
                file.close()


class StoreWriter:
    """All files of the store being written, and the record of what is safely on disk."""

    def __init__(self, path: pathlib.Path, inputs: dict, tokenizer: "Tokenizer", shard_tokens: int, names: list[str]):
        self.path = path
        self.inputs = inputs
        state = _read_state(path, inputs)
        self.consumed: int = state.get("consumed", 0)
        self.chain = bytes.fromhex(state.get("chain", bytes(16).hex()))
        self.without_tokens: int = state.get("without_tokens", 0)
        self.text_bytes: int = state.get("text_bytes", 0)
        if self.consumed:
            logger.warning("%s: going on after %d documents of an interrupted run", path, self.consumed)
        for left in (path / MANIFEST, *path.rglob("*.new")):  # of a run that was killed while it wrote one
            left.unlink(missing_ok=True)
        tokenizer.save(path / "tokenizer")
        saved = state.get("splits", {})
        kinds = ["tokens", *inputs["channels"]]
        _check_lengths(path, saved, kinds, token_dtype(tokenizer.vocab_size).itemsize, bool(inputs["languages"]))
        kept = {
            shard_file(side, number, kind)
            for side, split in saved.items() for number in range(len(split["shards"])) for kind in kinds
        }  # fmt: skip
        for path_of_shard in (found for kind in kinds for found in path.glob(f"*/{kind}-*.bin")):
            if path_of_shard.relative_to(path).as_posix() not in kept:
                path_of_shard.unlink()  # begun after the last record
        self.group = inputs["parallel"] or 1  # documents that stay together
        self.splits = {name: _SplitWriter(path, name, shard_tokens, inputs, saved.get(name)) for name in names}
        self._record()

    def append(self, side: str, piece: Piece) -> None:
        """A piece of the current document."""
        self.splits[side].append(piece)

    def end_document(self, side: str, digest: bytes, text_bytes: int, language: int = 0) -> None:
        """The current document is complete; its digest and size belong to the record."""
        split = self.splits[side]
        self.without_tokens += not split.end_document(language)
        self.consumed += 1
        self.text_bytes += text_bytes
        self.chain = chained(self.chain, digest)
        if split.shard_full and self.consumed % self.group == 0:
            self._record()

    def _record(self) -> None:
        for split in self.splits.values():
            split.sync()
        state = {
            "inputs": self.inputs,
            "consumed": self.consumed,
            "chain": self.chain.hex(),
            "without_tokens": self.without_tokens,
            "text_bytes": self.text_bytes,
            "splits": {name: split.state() for name, split in self.splits.items()},
        }
        write_whole(self.path / STATE, json.dumps(state, indent=1))
        self.recorded = self.consumed

    def finish(self, tokenizer: "Tokenizer") -> Manifest:
        """Completes every file; the manifest comes last. Raises BertJaxError where a side has no document."""
        splits = {
            name: SplitInfo(split.documents, split.sentences, split.tokens, tuple(map(tuple, split.shards)))
            for name, split in self.splits.items()
        }
        try:
            check_not_empty(splits, self.consumed, self.without_tokens)
        except BertJaxError:
            self.recorded = 0  # nothing that another run could use
            raise
        for split in self.splits.values():
            split.finish()
        paths = (path for path in self.path.rglob("*") if path.is_file() and path.name != STATE)
        names = sorted(path.relative_to(self.path).as_posix() for path in paths)
        found = digests(self.path, names, "hashing")
        files = {name: ((self.path / name).stat().st_size, found[name]) for name in names}
        manifest = manifest_of(self.inputs, tokenizer, splits, self.without_tokens, files)
        write_whole(self.path / MANIFEST, manifest.to_json())
        return manifest

    def abandon(self, error: BaseException) -> None:
        """After a failure: what was recorded stays, for the next run; where nothing was, nothing stays."""
        for split in self.splits.values():
            split.close()
        if self.recorded:
            on = "" if isinstance(error, BertJaxError) else "; the same call goes on from there"
            logger.warning("%s: kept, %d documents are done%s", self.path, self.recorded, on)
        else:
            shutil.rmtree(self.path)


def _read_state(path: pathlib.Path, inputs: dict) -> dict:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(path.iterdir()):
            if {entry.name for entry in path.iterdir()} - {"tokenizer", "train", "heldout", f"{STATE}.new"}:
                raise BertJaxError(f"{path}: holds something other than an unfinished store: remove it") from None
        return {}
    except ValueError as error:
        raise BertJaxError(f"{path}: its {STATE} is damaged ({error}): remove the folder and start again") from error
    different = [name for name in inputs if state.get("inputs", {}).get(name) != inputs[name]]
    if different:
        raise BertJaxError(
            f"{path}: left by an interrupted run with other {' and other '.join(different)}: remove it to start again"
        )
    return state


def _check_lengths(path: pathlib.Path, splits: dict[str, dict], kinds: list[str], token_bytes: int, languages: bool) -> None:
    """Raises BertJaxError where a file of an interrupted run lacks what its record says was safely on disk."""
    least = {}
    for side, split in splits.items():
        for name in ("documents", "sentences"):
            least[f"{side}/{name}.npy"] = NPY_HEADER + 8 * split[name] if split[name] else 0
        if languages:
            least[languages_file(side)] = split["documents"]
        for number, (_, tokens) in enumerate(split["shards"]):
            least |= {shard_file(side, number, kind): tokens * (token_bytes if kind == "tokens" else 1) for kind in kinds}
    for name, size in least.items():
        there = (path / name).stat().st_size if (path / name).exists() else 0
        if there < size:
            raise BertJaxError(f"{path}: {name} has {there:,} bytes, and had {size:,} when the interrupted run recorded it: "
                               "remove the folder to start again")


def chained(running: bytes, digest: bytes) -> bytes:
    """The digest of all documents so far, from that of those before and that of one more."""
    return hashlib.blake2b(running + digest, digest_size=16).digest()
