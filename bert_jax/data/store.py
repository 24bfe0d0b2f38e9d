"""The token store: a tokenised corpus on disk, read through memory maps.

::

    store/manifest.json            what the store is, and every file's size and digest; written last
    store/tokenizer/...            what `Tokenizer.save` wrote
    store/train/tokens-00000.bin   tokens, little-endian, cut into shards where documents end
    store/train/documents.npy      int64 [documents + 1], token offset of each document, the last = tokens
    store/train/sentences.npy      int64 [sentences + 1], token offset of each sentence, the last = tokens
    store/train/case-00000.bin     a channel, where `prepare` was asked for one: one byte a token, cut as the tokens are
    store/train/languages.bin      one byte a document, the number of its language, where sources have languages
    store/heldout/...              the same, for the documents kept apart for evaluation
    store/annotations.json         channels added later by `annotate`, with sizes and digests of their files
    store/phrases/TAG/...          the files of such a channel

Offsets count from the start of the split. A token is a uint16 where V <= 32,768 and a uint32 beyond, and its top bit
says that a word starts there. The bit is free, as no vocabulary reaches it; it saves a look-up in a table of V entries
for every token of every batch, and whole-word masking then needs no tokenizer.

A channel says something more about every token. What `annotate` adds does not touch the manifest: the text is what it
was, so a run that uses no annotation goes on after it (see `TokenStore.identity`).
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import resource
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_jax.errors import BertJaxError
from bert_jax.files import check_local
from bert_jax.progress import Progress

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

FORMAT = 2
READABLE = (1, 2)  # format 1 had no channels, languages or annotations
MANIFEST = "manifest.json"
ANNOTATIONS = "annotations.json"
ADVICE = {
    "case": "prepare the corpus with --case",
    "phrases": "run `bert-jax annotate STORE --phrases`",
    "entities": "run `bert-jax annotate STORE --gazetteer FILE`",
}
RESTORE = "copy the store again, or prepare it again"
FEW = 64  # open files that any process has room for
PARTIAL = ".partial"  # what `prepare` adds to the folder's name until all is written


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """How much one split holds; `shards` are file names relative to the store, in order, with their tokens."""

    documents: int
    sentences: int
    tokens: int
    shards: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
      tokenizer: kind, hash, vocab_size and the special ids.
      options: what `prepare` was asked for.
      sources: name and size in bytes of every source, and its language where one was given.
      documents_without_tokens: how many were dropped.
      splits: "train", and "heldout" unless none was asked for.
      files: size and blake2b digest (16 bytes, hex) of every other file of the store, by relative path; those of
        annotations are in ``annotations.json``.
      channels: those that `prepare` made.
      languages: names, in the order of their numbers; empty where sources have none.
      parallel: 0, or how many documents in a row are translations of each other, one in each language.
    """

    format: int
    tokenizer: dict[str, Any]
    options: dict[str, Any]
    sources: list[dict[str, Any]]
    documents_without_tokens: int
    splits: dict[str, SplitInfo]
    files: dict[str, dict[str, Any]]
    channels: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    parallel: int = 0

    def to_json(self) -> str:
        """What is empty is left out, so that a store of format 1 keeps its text, which runs remember the hash of."""
        fields = dataclasses.asdict(self)
        for name in ("channels", "languages", "parallel"):
            if not fields[name]:
                del fields[name]
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises ValueError, TypeError or KeyError for anything that `to_json` did not write."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise TypeError("not an object")
        fields["splits"] = {
            name: SplitInfo(**{**info, "shards": tuple((file, int(tokens)) for file, tokens in info["shards"])})
            for name, info in fields["splits"].items()
        }
        for name in ("channels", "languages"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A channel that was added to a finished store.

    `folder` is relative to the store and holds ``SPLIT-00000.bin`` for every shard of every split, `options` says how it
    was made, `files` has size and digest by name as in the manifest.
    """

    folder: str
    options: dict[str, Any]
    files: dict[str, dict[str, Any]]


def token_dtype(vocab_size: int) -> np.dtype:
    """The stored type of a token: 15 bits of id and the word-start bit, or 31 and one."""
    return np.dtype("<u2") if vocab_size <= 1 << 15 else np.dtype("<u4")


def word_start_bit(dtype: np.dtype) -> int:
    return 1 << (8 * dtype.itemsize - 1)


class Split:
    """One split of a store.

    Attributes:
      documents, sentences: int64 [documents + 1] and [sentences + 1], token offsets (see the module).
      tokens: how many tokens.
      vocab_size, cls_id, sep_id, pad_id: of the tokenizer.
      word_start: the bit of a raw token that marks the first piece of a word.
      channels: names of what `gather_channel` knows: "case" (1 where the word began with an upper-case letter), "phrases"
        and "entities" (1 where the token's word goes on with a unit that an earlier word began).
      languages: names, empty where nothing is said; document_language: uint8 [documents], numbers into it.
      parallel: 0, or g: documents come in groups of g, one in each language in the order of `languages`, and sentence k of
        each is a translation of sentence k of the others.
    """

    def __init__(
        self, path: pathlib.Path, name: str, manifest: Manifest, annotations: Mapping[str, Annotation] | None = None
    ):
        info = manifest.splits[name]
        self.name = name
        self.tokens = info.tokens
        self.vocab_size: int = manifest.tokenizer["vocab_size"]
        self.cls_id: int = manifest.tokenizer["cls_id"]
        self.sep_id: int = manifest.tokenizer["sep_id"]
        self.pad_id: int = manifest.tokenizer["pad_id"]
        self.dtype = token_dtype(self.vocab_size)
        self.word_start = word_start_bit(self.dtype)
        # Plain arrays on the maps: np.memmap runs Python code on every slice.
        self.documents = np.load(path / name / "documents.npy", mmap_mode="r").view(np.ndarray)
        self.sentences = np.load(path / name / "sentences.npy", mmap_mode="r").view(np.ndarray)
        places = {channel: path / name / f"{channel}-" for channel in manifest.channels}
        places |= {channel: path / made.folder / f"{name}-" for channel, made in (annotations or {}).items()}
        allow_open((1 + len(places)) * len(info.shards))
        self._shards = [_mapped(path / file, self.dtype) for file, _ in info.shards]
        self._shard_starts = np.cumsum([0, *(tokens for _, tokens in info.shards)])
        self.languages = manifest.languages
        self.parallel = manifest.parallel
        count = len(self.documents) - 1
        self.document_language = np.broadcast_to(np.uint8(0), count)
        if self.languages:
            self.document_language = _mapped(path / name / "languages.bin", np.uint8)
        self.channels = tuple(places)
        numbers = range(len(info.shards))
        self._channels = {
            channel: [_mapped(f"{place}{number:05d}.bin", np.uint8) for number in numbers] for channel, place in places.items()
        }

    def stretch(self, start: int, stop: int) -> np.ndarray:
        """Raw tokens [stop - start], of any documents."""
        first = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        parts = []
        for shard, begin in zip(self._shards[first:], self._shard_starts[first:-1], strict=True):
            if begin >= stop:
                break
            parts.append(shard[max(start - begin, 0) : stop - begin])
        return np.concatenate([np.empty(0, self.dtype), *parts])

    def gather_channel(self, name: str, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What a channel says of the tokens that `gather` gives: uint8 [sum(lengths)].

        Raises BertJaxError for a channel that the store does not have.
        """
        if name not in self._channels:
            raise BertJaxError(f"the token store has no channel {name!r}: {ADVICE.get(name, 'known are ' + ', '.join(ADVICE))}")
        return self._gather(self._channels[name], np.dtype(np.uint8), starts, lengths)

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Raw tokens [sum(lengths)] of segments, one after the other.

        `starts` and `lengths` are int64 [N]; a segment lies inside one document, and so inside one shard.
        """
        return self._gather(self._shards, self.dtype, starts, lengths)

    def _gather(self, shards: list[np.ndarray], dtype: np.dtype, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        if len(shards) == 1:
            return shards[0][np.repeat(starts, lengths) + within]
        shard = np.searchsorted(self._shard_starts, starts, side="right") - 1
        shard = shard.astype(np.min_scalar_type(len(shards)))  # short integers are sorted by radix
        shard_of_token = np.repeat(shard, lengths)
        position = np.repeat(starts - self._shard_starts[shard], lengths) + within
        # Tokens sorted by shard: one look-up a shard, however many rows there are.
        order = np.argsort(shard_of_token, kind="stable")
        cuts = np.searchsorted(shard_of_token[order], np.arange(len(shards) + 1, dtype=shard.dtype))
        raw = np.empty(len(order), dtype)
        for number in np.flatnonzero(np.diff(cuts)):
            chosen = order[cuts[number] : cuts[number + 1]]
            raw[chosen] = shards[number][position[chosen]]
        return raw


def _mapped(path: str | os.PathLike, dtype: np.dtype | type) -> np.ndarray:
    try:
        return np.memmap(path, dtype, "r").view(np.ndarray)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise BertJaxError(f"{path}: a process may not have so many files open (ulimit -Hn): raise the limit, or prepare with "
                           "larger --shard-tokens") from None


def allow_open(files: int) -> None:
    """Lets this process have ``files`` more of them open, as far as the system's hard limit goes: Python keeps that of a memory
    map open, and 1,024 in all are usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files > FEW and soft != resource.RLIM_INFINITY:
        most = soft + files
        with contextlib.suppress(ValueError, OSError):  # where it does not suffice, opening says so
            resource.setrlimit(resource.RLIMIT_NOFILE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


class TokenStore:
    """A finished store, checked and opened.

    Args:
      path: the folder.
      verify: read every byte and compare digests (about a second a gigabyte and core). Presence and size of
        every file are checked always.

    Raises:
      BertJaxError: not a store, an interrupted or incomplete one, a file changed, cut or missing, or a tokenizer folder
        that is not the one the tokens were made with.
    """

    def __init__(self, path: str | os.PathLike, *, verify: bool = True):
        check_local(path)
        self.path = pathlib.Path(path)
        self.manifest = _read_manifest(self.path)
        self.annotations = _read_annotations(self.path)
        self._files = dict(self.manifest.files)
        for made in self.annotations.values():
            self._files |= made.files
        self._check_files()
        if verify:
            self._check_digests()
            if self.tokenizer.hash != self.manifest.tokenizer["hash"]:
                raise BertJaxError(
                    f"{self.path}: its tokenizer folder holds {self.tokenizer.hash}, but its tokens were made with "
                    f"{self.manifest.tokenizer['hash']}: prepare the corpus again"
                )

    @functools.cached_property
    def tokenizer(self) -> "Tokenizer":
        from bert_jax import tokenizers

        return tokenizers.load(self.path / "tokenizer")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def split(self, name: str) -> Split:
        """The split "train" or "heldout"; BertJaxError where the store was made without it."""
        if name not in self.manifest.splits:
            known = ", ".join(self.splits)
            raise BertJaxError(f"{self.path}: no split {name!r}, only {known}: prepare with heldout > 0")
        return Split(self.path, name, self.manifest, self.annotations)

    def identity(self, channels: Collection[str] = ()) -> str:
        """What a run must find again to go on: 16 bytes in hex, of the manifest and of those annotations that it uses.

        An annotation that is not among `channels` may come, change or go.
        """
        text = self.manifest.to_json()
        for channel in sorted(set(channels) & set(self.annotations)):
            text += json.dumps([channel, dataclasses.asdict(self.annotations[channel])], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def check_tokenizer(self, hash: str) -> None:
        """Raises BertJaxError, naming both, unless `hash` is that of the tokenizer that made the store."""
        if hash != self.manifest.tokenizer["hash"]:
            raise BertJaxError(
                f"{self.path} was made with tokenizer {self.manifest.tokenizer['hash']}, not with {hash}: prepare the "
                "corpus again with this tokenizer, or use the store's own"
            )

    def _check_files(self) -> None:
        for name, expected in self._files.items():
            try:
                size = (self.path / name).stat().st_size
            except FileNotFoundError:
                raise BertJaxError(f"{self.path}: {name} is missing: {RESTORE}") from None
            if size != expected["size"]:
                wrong = f"{size:,} bytes instead of {expected['size']:,}"
                raise BertJaxError(f"{self.path}: {name} has {wrong}: {RESTORE}")

    def _check_digests(self) -> None:
        found = digests(self.path, list(self._files), "checking")
        for name, expected in self._files.items():
            if found[name] != expected["blake2b"]:
                raise BertJaxError(f"{self.path}: {name} was changed after it was written (digests differ): {RESTORE}")


def digests(root: pathlib.Path, names: list[str], verb: str) -> dict[str, str]:
    """The blake2b digest, 16 bytes in hex, of each file; progress is called `verb`."""

    def of_file(name: str) -> str:
        state = hashlib.blake2b(digest_size=16)
        with open(root / name, "rb") as file:
            while block := file.read(1 << 22):
                state.update(block)
                progress.advance(len(block))
        return state.hexdigest()

    total = sum((root / name).stat().st_size for name in names)
    with Progress(verb, total) as progress, concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the lock
        try:
            return dict(zip(names, pool.map(of_file, names), strict=True))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_manifest(path: pathlib.Path) -> Manifest:
    if path.name.endswith(PARTIAL):
        raise BertJaxError(f"{path}: an interrupted store: run the same `prepare` again to finish it")
    if not path.is_dir():
        beside = path.with_name(path.name + PARTIAL)
        if beside.is_dir():
            raise BertJaxError(f"{path}: not finished ({beside.name} is there): run the same `prepare` again")
        raise BertJaxError(f"{path}: no such token store: make one with `bert-jax prepare`")
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BertJaxError(f"{path}: not a token store (no {MANIFEST}): make one with `bert-jax prepare`") from None
    except UnicodeDecodeError as error:
        raise BertJaxError(f"{path}: {MANIFEST} is damaged ({error}): {RESTORE}") from error
    try:
        found = json.loads(text).get("format")
        if found not in READABLE:
            reads = " and ".join(map(str, READABLE))
            raise BertJaxError(f"{path}: store format {found}, this version reads {reads}: prepare the corpus again")
        return Manifest.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BertJaxError(f"{path}: {MANIFEST} is damaged ({error}): {RESTORE}") from error


def _read_annotations(path: pathlib.Path) -> dict[str, Annotation]:
    try:
        fields = json.loads((path / ANNOTATIONS).read_text(encoding="utf-8"))
        return {name: Annotation(**made) for name, made in fields.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise BertJaxError(f"{path}: {ANNOTATIONS} is damaged ({error}): remove it, and annotate the store again") from error
