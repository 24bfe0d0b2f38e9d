"""What every runner of `prepare` runs: documents to pieces, pieces to tokens, tokens to a writer.

`bert_jax.data.prepare` calls these functions on one machine, `bert_jax.data.beam` on many. That they are the same is
why both write the same bytes.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bert_jax.data.sentences import pieces, splitter
from bert_jax.data.sources import Corpus
from bert_jax.data.store import FORMAT, token_dtype, word_start_bit
from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

TASK = 1 << 19  # characters tokenised at once


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a store's bytes, besides text and tokenizer; the `options` of its manifest.

    Attributes:
      documents, field: what to read, see `bert_jax.data.sources.Corpus`.
      sentences: "punkt" or "line", see `bert_jax.data.sentences`.
      heldout: the share of documents kept apart for evaluation, in [0, 1). A hash of the text decides, so copies of a
        document land on the same side, and the choice does not depend on the rest of the corpus.
      shard_tokens: a shard ends with the first document that fills it.

    Raises:
      BertJaxError: a value that cannot be.
    """

    documents: str = "blank"
    sentences: str = "punkt"
    heldout: float = 0.01
    field: str = "text"
    shard_tokens: int = 1 << 24

    def __post_init__(self):
        if not 0 <= self.heldout < 1:
            raise BertJaxError(f"heldout={self.heldout}: give the share of documents to keep apart, from 0 to below 1")
        if self.shard_tokens < 1:
            raise BertJaxError(f"shard_tokens={self.shard_tokens}: at least one is needed")
        splitter(self.sentences)  # refuses an unknown name

    @property
    def sides(self) -> list[str]:
        return ["train", "heldout"] if self.heldout else ["train"]

    def inputs(self, corpus: Corpus, tokenizer: "Tokenizer") -> dict:
        """Everything that the store is made from, as its manifest has it."""
        return {
            "format": FORMAT,
            "tokenizer": tokenizer.hash,
            "options": dataclasses.asdict(self),
            "sources": [{"name": source.name, "bytes": source.size} for source in corpus.sources],
        }


# Documents


def digest(document: str) -> bytes:
    """What a document is known by, 16 bytes."""
    return hashlib.blake2b(document.encode(), digest_size=16).digest()


def _lot(digest: bytes) -> float:
    """A number in [0, 1), the same for the same text; below `heldout` the document is kept apart."""
    return int.from_bytes(digest[:8], "little") / 2.0**64


def check_sides(corpus: Corpus, heldout: float) -> None:
    """Reads until both sides have a document, so that a corpus too small for its split is refused at once."""
    count, lowest, highest = 0, 1.0, 0.0
    for document in corpus:
        if not document or document.isspace():
            continue
        number = _lot(digest(document))
        count, lowest, highest = count + 1, min(lowest, number), max(highest, number)
        if highest >= heldout and (lowest < heldout or not heldout):
            return
    if not count:
        raise BertJaxError(f"no text in {', '.join(source.name for source in corpus.sources[:3])}: nothing to prepare")
    if highest < heldout:
        raise BertJaxError(
            f"heldout={heldout} keeps all {count} documents apart and leaves none to train on: use a smaller share, 0 "
            "for none, or a larger corpus"
        )
    wanted = math.ceil(lowest * 1000 + 1) / 1000
    way_out = f"use {wanted} or more" if count > 1 and wanted < highest else "use a larger corpus"
    raise BertJaxError(
        f"heldout={heldout} keeps none of {count} documents apart: {way_out}, or 0 for no held-out side (is "
        f"documents={corpus.documents} right?)"
    )


# Pieces


@dataclasses.dataclass
class Part:
    """One piece of a document, on its way to a worker and back."""

    text: str
    side: str  # "train" or "heldout"
    last: bool  # the document ends with it
    digest: bytes  # of the whole document
    size: int  # of the whole document in UTF-8, on the last piece


def parts(documents: Iterable[str], heldout: float) -> Iterator[Part]:
    """All pieces of all documents, in order."""
    for document in documents:
        content = digest(document)
        side = "heldout" if _lot(content) < heldout else "train"
        size = len(document.encode())
        rest = pieces(document, TASK)
        text = next(rest)
        for following in rest:
            yield Part(text, side, False, content, 0)
            text = following
        yield Part(text, side, True, content, size)
        del document, rest  # before the next one is read


def tasks(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Parts in groups of about `TASK` characters: small documents together, so that none costs a message of its own."""
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part.text) + 100
        if size >= TASK:
            yield group
            group, size = [], 0
    if group:
        yield group


# Tokens


@dataclasses.dataclass
class Tokenised:
    """What becomes of N texts: stored tokens, tokens of each sentence, sentences of each text."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    sentence_counts: np.ndarray


class Work:
    """Texts to stored tokens; made once in every worker.

    Called with N texts it returns their `Tokenised`; it raises BertJaxError where the tokenizer gives an id that it should
    not have.
    """

    def __init__(self, tokenizer: "Tokenizer", sentences: str):
        self.tokenizer = tokenizer
        self.split = splitter(sentences)
        dtype = token_dtype(tokenizer.vocab_size)
        starts = np.asarray(tokenizer.word_starts(), dtype)
        self.stored = np.arange(tokenizer.vocab_size, dtype=dtype) | starts * dtype.type(word_start_bit(dtype))

    def __call__(self, texts: list[str]) -> Tokenised:
        tokens, lengths, counts = [], [], []
        for text in texts:
            encoded = [ids for ids in self.tokenizer.encode_batch(self.split(text)) if len(ids)]
            tokens += encoded
            lengths += map(len, encoded)
            counts.append(len(encoded))
        ids = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self.stored):
            raise BertJaxError(f"the tokenizer gave id {ids.max()}, but its vocab_size is {len(self.stored)}")
        return Tokenised(self.stored[ids], np.array(lengths, np.int64), np.array(counts, np.int64))


class Writer(Protocol):
    """What takes the tokens: the store itself, or a block of it."""

    def append(self, side: str, tokens: np.ndarray, sentence_lengths: np.ndarray) -> None:
        """A piece of the current document: stored tokens, and int64 lengths of its sentences, none of them 0."""

    def end_document(self, side: str, digest: bytes, text_bytes: int) -> None:
        """The current document is complete."""


def write(writer: Writer, group: list[Part], made: Tokenised) -> None:
    """Hands what was made of a group to `writer`, piece by piece."""
    token = sentence = 0
    for part, count in zip(group, made.sentence_counts, strict=True):
        lengths = made.sentence_lengths[sentence : sentence + count]
        size = int(lengths.sum())
        writer.append(part.side, made.tokens[token : token + size], lengths)
        sentence += count
        token += size
        if part.last:
            writer.end_document(part.side, part.digest, part.size)
