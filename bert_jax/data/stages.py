"""What every runner of `prepare` runs: documents to pieces, pieces to tokens, tokens to a writer.

`bert_jax.data.prepare` calls these functions on one machine, `bert_jax.data.beam` on many. That they are the same is
why both write the same bytes.
"""

import dataclasses
import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from bert_jax.data.parallel import ParallelCorpus
from bert_jax.data.sentences import in_step, pieces, splitter
from bert_jax.data.sources import Corpus, Group, Source
from bert_jax.data.store import FORMAT, TokenStore, token_dtype, word_start_bit
from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

TASK = 1 << 19  # characters tokenised at once
UNKNOWN = 0.01  # share of tokens or words
LONG = 128  # tokens in an average sentence; a novel has 22
STRETCH, STRETCHES = 4096, 1024
_NOT_BLANK = re.compile(r"\S")
WORDS = ("tokenizer", "whitespace")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a store's bytes, besides text and tokenizer; the `options` of its manifest.

    Attributes:
      documents, field: what to read, see `bert_jax.data.sources.Corpus`.
      sentences: "punkt" or "line", see `bert_jax.data.sentences`.
      heldout: the share of documents kept apart for evaluation, in [0, 1). A hash of the text decides, so copies of a
        document land on the same side, and the choice does not depend on the rest of the corpus.
      shard_tokens: a shard ends with the first document (of parallel text: the first group) that fills it.
      case: whether the store gets the channel "case", see `Work`.
      words: where words begin: "tokenizer", where its pieces say so, or "whitespace", only after blanks of the text, for text
        that was segmented so (Chinese). The pieces are the same.
      parallel: whether the sources are translations of each other, see `bert_jax.data.parallel`. Sentences are lines then,
        and the text of the first language decides for its whole group whether it is kept apart.

    Raises:
      BertJaxError: a value that cannot be.
    """

    documents: str = "blank"
    sentences: str = "punkt"
    heldout: float = 0.01
    field: str = "text"
    shard_tokens: int = 1 << 24
    case: bool = False
    words: str = "tokenizer"
    parallel: bool = False

    def __post_init__(self):
        if not 0 <= self.heldout < 1:
            raise BertJaxError(f"heldout={self.heldout}: give the share of documents to keep apart, from 0 to below 1")
        if self.shard_tokens < 1:
            raise BertJaxError(f"shard_tokens={self.shard_tokens}: at least one is needed")
        if self.words not in WORDS:
            raise BertJaxError(f"words={self.words!r}: use one of {', '.join(WORDS)}")
        if self.parallel:
            object.__setattr__(self, "sentences", "line")  # the one rule under which sentence k stays sentence k
        splitter(self.sentences)  # refuses an unknown name

    @property
    def sides(self) -> list[str]:
        return ["train", "heldout"] if self.heldout else ["train"]

    @property
    def channels(self) -> list[str]:
        return ["case"] if self.case else []

    def corpus(self, sources: Sequence["str | os.PathLike | Source"]) -> Corpus | ParallelCorpus:
        """The text that `sources` name, read as the recipe says."""
        kind = ParallelCorpus if self.parallel else Corpus
        return kind(sources, documents=self.documents, field=self.field)

    def inputs(self, corpus: Corpus | ParallelCorpus, tokenizer: "Tokenizer") -> dict:
        """Everything that the store is made from, as its manifest has it."""
        return {
            "format": FORMAT,
            "tokenizer": tokenizer.hash,
            "options": dataclasses.asdict(self),
            "sources": [
                {"name": source.name, "bytes": source.size} | ({"language": source.language} if source.language else {})
                for source in corpus.sources
            ],
            "channels": self.channels,
            "languages": list(corpus.languages),
            "parallel": len(corpus.languages) if self.parallel else 0,
        }


# Documents


def digest(document: str) -> bytes:
    """What a document is known by, 16 bytes."""
    return hashlib.blake2b(document.encode(), digest_size=16).digest()


def _lot(digest: bytes) -> float:
    """A number in [0, 1), the same for the same text; below `heldout` the document is kept apart."""
    return int.from_bytes(digest[:8], "little") / 2.0**64


def check_sides(corpus: Corpus | ParallelCorpus, heldout: float) -> None:
    """Reads until both sides have a document, so that a corpus too small for its split is refused at once."""
    count, lowest, highest = 0, 1.0, 0.0
    for group in corpus.groups():
        if not group.texts[0] or group.texts[0].isspace():
            continue
        number = _lot(digest(group.texts[0]))
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


def warn_of_doubts(path: str | os.PathLike) -> None:
    """One warning line for each language of a finished store (or the whole) in which hardly an end of a sentence was found, and
    one for each of whose tokens or words more than `UNKNOWN` are unknown to its tokenizer (one such token may be a long word,
    where there are no blanks): counted in up to `STRETCHES` stretches of the train split, evenly spaced."""
    store = TokenStore(path, verify=False)
    split, tokenizer = store.split("train"), store.tokenizer
    names = split.languages or ("",)
    unknown, unknown_words, words, count, sentences = (np.zeros(len(names), np.int64) for _ in range(5))
    for start in np.unique(np.linspace(0, max(0, split.tokens - STRETCH), STRETCHES, dtype=np.int64)):
        raw = split.stretch(int(start), int(min(start + STRETCH, split.tokens)))
        document = np.searchsorted(split.documents, start + np.arange(len(raw)), side="right") - 1
        language = split.document_language[document]
        count += np.bincount(language, minlength=len(names))
        first, last = np.searchsorted(split.sentences, (start, start + len(raw)))
        sentences += np.bincount(language[split.sentences[first:last] - start], minlength=len(names))
        begins, strange = (raw & split.word_start) != 0, (raw & (split.word_start - 1)) == tokenizer.unk_id
        for counts, chosen in ((unknown, strange), (words, begins), (unknown_words, begins & strange)):
            counts += np.bincount(language[chosen], minlength=len(names))
    punkt = store.manifest.options["sentences"] == "punkt"
    for name, whole, begun, *parts in zip(names, count.tolist(), sentences.tolist(), unknown / np.maximum(count, 1),
                                          unknown_words / np.maximum(words, 1), strict=True):
        if punkt and whole > LONG * max(1, begun):
            logger.warning(
                "%s: a sentence%s has %d tokens on average: few ends were found. Objectives on sentences want one a line and "
                "--sentences line", path, name and f" in {name}", whole // max(1, begun),
            )  # fmt: skip
        if max(parts) > UNKNOWN:
            logger.warning(
                "%s: %.1f%% of the %s%s are unknown to the tokenizer (%s): was it made for this text?", path, 100 * max(parts),
                "tokens" if parts[0] >= parts[1] else "words", name and f" in {name}", tokenizer.piece(tokenizer.unk_id),
            )  # fmt: skip


# Pieces


@dataclasses.dataclass
class Part:
    """One piece of a group of documents, on its way to a worker and back: the same lines of each, or one piece of the only."""

    texts: tuple[str, ...]
    side: str  # "train" or "heldout"
    last: bool  # the documents end with it
    language: int  # of the first
    digests: tuple[bytes, ...]  # of the whole documents
    sizes: tuple[int, ...]  # of the whole documents in UTF-8


def parts(groups: Iterable[Group], heldout: float) -> Iterator[Part]:
    """All pieces of all documents, in order."""
    for group in groups:
        digests = tuple(map(digest, group.texts))
        side = "heldout" if _lot(digests[0]) < heldout else "train"
        sizes = tuple(len(text) if text.isascii() else len(text.encode()) for text in group.texts)
        language = group.language
        rest = ((piece,) for piece in pieces(group.texts[0], TASK)) if len(sizes) == 1 else in_step(group.texts, TASK)
        texts = next(rest)
        for following in rest:
            yield Part(texts, side, False, language, digests, sizes)
            texts = following
        yield Part(texts, side, True, language, digests, sizes)
        del group, texts, rest  # before the next one is read


def tasks(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Parts in groups of about `TASK` characters: small documents together, so that none costs a message of its own."""
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += sum(map(len, part.texts)) + 100
        if size >= TASK:
            yield group
            group, size = [], 0
    if group:
        yield group


# Tokens


@dataclasses.dataclass
class Tokenised:
    """What becomes of N texts: stored tokens, channels of as many bytes, tokens of each sentence, sentences of each text."""

    tokens: np.ndarray
    channels: dict[str, np.ndarray]
    sentence_lengths: np.ndarray
    sentence_counts: np.ndarray


class Work:
    """Texts to stored tokens; made once in every worker.

    Called with the texts of N parts it returns their `Tokenised`. Of parts with several texts, translations of each other,
    it keeps the lines that have a token in all of them. The channel "case" is 1 on all pieces of a word whose first character
    in the text is an upper-case letter, whatever the tokenizer makes of it.

    Byte-level pieces include the blank before a word. With a tokenizer that so tells the start of a text from a word within
    it, a sentence has the blank that stands before it, as it has where the whole text is encoded (RoBERTa: "ĠThe" after a full
    stop), and newlines within it are blanks; only a part begins as a text does. The first piece of a sentence begins a word.

    It raises BertJaxError where the tokenizer gives an id that it should not have.
    """

    def __init__(self, tokenizer: "Tokenizer", recipe: Recipe):
        self.tokenizer = tokenizer
        self.encode = tokenizer.encoder()
        self.split = splitter(recipe.sentences)
        self.channels = recipe.channels
        self.whitespace = recipe.words == "whitespace"
        self.blanks_count = _blanks_count(tokenizer)
        dtype = token_dtype(tokenizer.vocab_size)
        self.bit = dtype.type(word_start_bit(dtype))
        self.starts = np.zeros(tokenizer.vocab_size, bool) if self.whitespace else np.asarray(tokenizer.word_starts(), bool)
        self.stored = np.arange(tokenizer.vocab_size, dtype=dtype) | self.starts * self.bit

    def __call__(self, parts: list[tuple[str, ...]]) -> Tokenised:
        columns = [(text, self.split(text) if len(texts) == 1 else text.split("\n")) for texts in parts for text in texts]
        made = self._encoded(columns)
        if made.ids.size and not 0 <= made.ids.min() <= made.ids.max() < len(self.stored):
            raise BertJaxError(f"the tokenizer gave id {made.ids.max()}, but its vocab_size is {len(self.stored)}")
        ends = np.cumsum([0, *(len(sentences) for _, sentences in columns)])  # of texts, in sentences
        kept = made.lengths > 0
        column = 0
        for texts in parts:
            if len(texts) > 1:
                rows = kept[ends[column] : ends[column + len(texts)]].reshape(len(texts), -1)
                rows &= rows.all(axis=0)
            column += len(texts)
        lengths, chosen = made.lengths[kept], np.repeat(kept, made.lengths)
        tokens = self.stored[made.ids[chosen]]
        if self.whitespace:
            tokens |= made.starts[chosen] * self.bit
        tokens[np.cumsum(lengths) - lengths] |= self.bit
        counts = np.diff(np.concatenate([[0], np.cumsum(kept)])[ends])
        return Tokenised(tokens, {name: made.case[chosen] for name in self.channels}, lengths, counts)

    def _encoded(self, columns: list[tuple[str, list[str]]]) -> "_Sentences":
        """The sentences of texts, in their order."""
        sentences = [sentence for _, column in columns for sentence in column]
        before, written = [""] * len(sentences), sentences
        if self.blanks_count:
            before = [blank for text, column in columns for blank in _blanks_before(text, column)]
            # What is blank has no token, whatever the tokenizer makes of blanks.
            written = ["" if sentence.isspace() else blank + sentence.replace("\n", " ")
                       for blank, sentence in zip(before, sentences, strict=True)]
        if not (self.whitespace or self.channels):
            return _Sentences(*self.encode(written))
        made = self.tokenizer.encode_batch_with_offsets(written)
        offsets = [np.maximum(one.offsets - len(blank), 0) for one, blank in zip(made, before, strict=True)]
        starts = [_after_blanks(sentence, places) if self.whitespace else self.starts[one.ids]
                  for sentence, places, one in zip(sentences, offsets, made, strict=True)]
        case = map(_case, sentences, offsets, starts) if self.channels else ()
        return _Sentences(
            np.concatenate([np.empty(0, np.int32), *(one.ids for one in made)]),
            np.fromiter((len(one.ids) for one in made), np.int64, len(made)),
            np.concatenate([np.empty(0, bool), *starts]),
            np.concatenate([np.empty(0, np.uint8), *case]),
        )


def _blanks_count(tokenizer: "Tokenizer") -> bool:
    """Whether a word at the start of a text gives other pieces than after a blank, with which it gives those within a text."""
    first, blank, twice = (ids.tolist() for ids in tokenizer.encode_batch(["a", " a", "a a"]))
    return blank != first and twice == first + blank


def _blanks_before(text: str, sentences: list[str]) -> list[str]:
    """For each of the sentences that follow each other in a text a blank, or nothing where none stands before it."""
    blanks, position = [], 0
    for sentence in sentences:
        begin = text.index(sentence, position)
        position = begin + len(sentence)
        blanks.append(" " if begin and text[begin - 1].isspace() and not sentence[:1].isspace() else "")
    return blanks


class _Sentences(NamedTuple):
    """N sentences, one after another: ids [L] and their lengths [N], and where they are needed the other two [L]."""

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray | None = None
    case: np.ndarray | None = None


def _after_blanks(text: str, offsets: np.ndarray) -> np.ndarray:
    """bool [L]: whether each piece is the first of its word, where words are what blanks separate."""
    blank = np.fromiter(map(str.isspace, text), bool, len(text))
    word = np.cumsum(blank[:-1] & ~blank[1:]) if len(text) else np.empty(0, np.int64)
    # By its last character: a piece may include the blank before it.
    of_piece = np.concatenate([[0], word])[np.maximum(offsets[:, 0], offsets[:, 1] - 1)] if len(offsets) else word[:0]
    return np.diff(of_piece, prepend=-1) != 0


def _case(text: str, offsets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint8 [L]: whether the word of each piece begins with an upper-case (or title-case) letter."""
    if not len(offsets):
        return np.empty(0, np.uint8)
    word = np.cumsum(starts) - starts[0]  # a first piece that claims to continue a word begins one all the same
    firsts = np.flatnonzero(np.diff(word, prepend=-1))
    found = (_NOT_BLANK.search(text, begin) for begin in offsets[firsts, 0].tolist())  # a first piece may be the blank alone
    letters = (letter[0] if letter else "" for letter in found)
    return np.array([letter.isupper() or letter.istitle() for letter in letters], np.uint8)[word]


@dataclasses.dataclass
class Piece:
    """Tokens of one document: stored tokens, int64 lengths of their sentences, none of them 0, and the channels."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    channels: dict[str, np.ndarray]


class Writer(Protocol):
    """What takes the tokens: the store itself, or a block of it."""

    def append(self, side: str, piece: Piece) -> None:
        """A piece of the current document."""

    def end_document(self, side: str, digest: bytes, text_bytes: int, language: int) -> None:
        """The current document is complete."""


class Assembly:
    """Hands what was made of parts to a writer, document after document; translations wait until the first one is complete."""

    def __init__(self, writer: Writer):
        self.writer = writer
        self._waiting: list[list[Piece]] = []

    def write(self, group: list[Part], made: Tokenised) -> None:
        """The next parts, and what was made of their texts."""
        made_of_text = _split(made)
        for part in group:
            self.writer.append(part.side, next(made_of_text))
            self._waiting = self._waiting or [[] for _ in part.texts[1:]]
            for waiting in self._waiting:
                waiting.append(next(made_of_text))
            if part.last:
                for number, (digest, size) in enumerate(zip(part.digests, part.sizes, strict=True)):
                    for piece in self._waiting[number - 1] if number else ():
                        self.writer.append(part.side, piece)
                    self.writer.end_document(part.side, digest, size, part.language + number)
                self._waiting = []


def _split(made: Tokenised) -> Iterator[Piece]:
    sentences = np.cumsum(made.sentence_counts)
    tokens = np.concatenate([[0], np.cumsum(made.sentence_lengths)])[sentences]
    sentence = token = 0
    for next_sentence, next_token in zip(sentences.tolist(), tokens.tolist(), strict=True):
        place = slice(token, next_token)
        channels = {name: values[place] for name, values in made.channels.items()}
        yield Piece(made.tokens[place], made.sentence_lengths[sentence:next_sentence], channels)
        sentence, token = next_sentence, next_token
