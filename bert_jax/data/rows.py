"""From segments to arrays: the tokens of K segments a row, special tokens between them, and whatever is told about each."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.store import ADVICE, Split
from bert_jax.errors import BertJaxError

Batch = dict[str, np.ndarray]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]

IGNORED = -1
SMALLEST = 3  # tokens of an example: [CLS], one of text, [SEP]
EXAMPLE_SEEDS = 255  # stream of an example's key; kinds of examples count theirs from 0

ALWAYS = {"input_ids": np.int32, "segment_ids": np.int32, "attention_mask": bool, "word_starts": bool}
ON_REQUEST = {"sentence_starts": bool, "phrase_continues": bool, "entity_continues": bool, "capitalised": bool,
              "position_ids": np.int32, "language_ids": np.int32, "context_ids": np.int32}
WITHOUT_LANGUAGES = "the store does not say which language a document has"
NAME_LANGUAGES = "prepare it from sources with languages, as in en=a.txt"
CHANNEL_OF = {"phrase_continues": "phrases", "entity_continues": "entities", "capitalised": "case"}


@dataclasses.dataclass(frozen=True)
class Segments:
    """Which tokens of the split make R examples of up to K segments.

    Attributes:
      starts, ends: int64 [R, K], offsets into the split; a segment lies in one document. Those that a row lacks are empty
        and come last.
      label: int32 [R]. key: uint64 [R], the examples' own.
      ids: int32 [R, K], what ``segment_ids`` says of each segment; None: 0.
    """

    starts: np.ndarray
    ends: np.ndarray
    label: np.ndarray
    key: np.ndarray
    ids: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each segment, int64 [R, K]."""
        return self.ends - self.starts

    def take(self, rows: np.ndarray) -> "Segments":
        """Those of the examples with these numbers."""
        parts = (self.starts, self.ends, self.label, self.key, self.ids)
        return Segments(*(None if part is None else part[rows] for part in parts))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What all kinds of examples have in common.

    Attributes:
      length: L, tokens of an example with special tokens.
      copies: None: new cuts, pairs and masks in every epoch. n: n versions of every example are made, one after the other,
        and come again from epoch n on, in a new order (the original's `dupe_factor`, 10; a pass of a language, where those
        are sampled). Batches then have ``example_seeds`` uint32 [R, 2], from which masks are drawn that come again too.
      packing: None: a row has one example, and padding after it. P: a row has up to P examples, as many as fit
        (:mod:`bert_jax.data.packing`); a batch is as many rows, of more examples. Not with ``copies``.
    """

    length: int = 128
    copies: int | None = dataclasses.field(default=None, kw_only=True)
    packing: int | None = dataclasses.field(default=None, kw_only=True)

    on_request: ClassVar[frozenset[str]] = frozenset(ON_REQUEST)

    def __post_init__(self):
        if self.length < 8:
            raise BertJaxError(f"length={self.length}: at least 8 tokens are needed")
        if self.copies is not None and self.copies < 1:
            raise BertJaxError(f"copies={self.copies}: at least 1, or none for new examples in every epoch")
        most = self.length // SMALLEST
        if self.packing is not None and not 2 <= self.packing <= most:
            raise BertJaxError(f"packing={self.packing}: from 2 to {most} examples in {self.length} tokens, or none")
        if self.packing is not None and self.copies is not None:
            raise BertJaxError(
                f"packing={self.packing} with copies={self.copies}: masks are drawn for rows, and an example comes again in "
                "another one; leave one of the two out"
            )

    @property
    def label(self) -> str | None:
        """The key of the label that its examples carry, if any."""
        return None

    @property
    def always(self) -> frozenset[str]:
        """Keys of :data:`ON_REQUEST` that it gives unasked."""
        return frozenset()

    @property
    def provides(self) -> frozenset[str]:
        """Keys of the batches that it can make; whether a store has what they need, is seen when it is opened."""
        return frozenset(self.layout(1, self.on_request))

    @classmethod
    def ways_to_give(cls, key: str) -> list[str]:
        """Settings with which batches have ``key``."""
        if key == "example_seeds":
            return [f"{cls.__name__}(copies=10)"]
        return [cls.__name__] if key in cls.on_request else []

    def layout(self, rows: int, columns: Collection[str]) -> Layout:
        """Shape and dtype of every array of a batch of R ``rows``, without making one: those that every batch has, and the
        optional ones among ``columns``."""
        wanted = self.optional(columns)
        layout = {key: ((rows, self.length), np.dtype(dtype)) for key, dtype in (ALWAYS | ON_REQUEST).items()
                  if key in ALWAYS or key in wanted}
        if self.packing:
            layout["example_ids"] = ((rows, self.length), np.dtype(np.int32))
            layout["example_starts"] = ((rows, self.packing), np.dtype(np.int32))
        if self.label:
            layout[self.label] = ((rows, self.packing) if self.packing else (rows,), np.dtype(np.int32))
        if self.copies is not None:
            layout["example_seeds"] = ((rows, 2), np.dtype(np.uint32))
        return layout

    def optional(self, columns: Collection[str]) -> frozenset[str]:
        """The optional keys of a batch for which ``columns`` are wanted."""
        keys = (frozenset(columns) & self.on_request) | self.always
        return (keys | {"position_ids"}) - {"context_ids"} if self.packing else keys  # a context is of one example


class Examples:
    """The examples of one split: what ``open`` of a kind returns.

    Attributes:
      split, spec: what they are made of. count: examples in an epoch.
      optional: which optional keys the batches have.
      between: [SEP]s between two segments; of two, the second belongs to the segment after. restart: whether positions count
        from 0 again at every segment, the [SEP] before it included if there are two.

    Raises:
      BertJaxError: an optional key needs what the store lacks.
    """

    count: int
    between: int = 1
    restart: bool = False

    def __init__(self, split: Split, spec: Kind, columns: Collection[str]):
        self.split, self.spec, self.optional = split, spec, spec.optional(columns)
        for key in sorted(self.optional & CHANNEL_OF.keys()):
            channel = CHANNEL_OF[key]
            if channel not in split.channels:
                raise BertJaxError(f"{split.name}: the store has no channel {channel!r} to make {key} of: {ADVICE[channel]}")
        if "language_ids" in self.optional and not split.languages:
            raise BertJaxError(f"{split.name}: {WITHOUT_LANGUAGES}, which language_ids need: {NAME_LANGUAGES}")

    def at(self, positions: np.ndarray) -> Batch:
        """The examples at `positions` (int64 [R], from 0 on, through one epoch after another).

        Returns:
          ``input_ids`` int32 [R, L]: [CLS], the segments, a [SEP] after the last and what the kind puts between, padding;
          ``segment_ids`` int32 [R, L]: 0 on padding;
          ``attention_mask`` bool [R, L]: True except on padding;
          ``word_starts`` bool [R, L]: True on the first piece of every word and of every segment, False on special
          tokens and padding;
          the kind's label int32 [R], -1 where an example has none;
          ``example_seeds`` uint32 [R, 2] with ``copies``; and what was asked for:
          ``sentence_starts`` bool [R, L]: True on the first token of every sentence and segment;
          ``phrase_continues``, ``entity_continues`` bool [R, L]: as the store's channels, but never on a segment's first token;
          ``capitalised`` bool [R, L]: as the store's channel;
          ``position_ids`` int32 [R, L]: 0 to L - 1, unless the kind says otherwise;
          ``language_ids`` int32 [R, L]: of the segment's document, special tokens as ``segment_ids``, 0 on padding;
          ``context_ids`` int32 [R, L]: tokens of the first segment's document just before and just after what the example
          has of it, half of each unless one side has less, -1 beyond; never tokens of the example.

        Raises:
          BertJaxError: a token beyond the vocabulary.
        """
        return self.assemble(self.segments(positions))

    def segments(self, positions: np.ndarray) -> Segments:
        """The segments of the examples at `positions`, truncated to fit."""
        raise NotImplementedError

    def sizes(self, segments: Segments) -> np.ndarray:
        """Tokens of each example with its special ones, int64 [R]."""
        used = (segments.lengths > 0).sum(axis=1)
        return segments.lengths.sum(axis=1) + 2 + self.between * (used - 1)

    def assemble(self, segments: Segments) -> Batch:
        """Arrays of the segments, an example a row."""
        split, frame = self.split, Frame(segments.lengths, self.spec.length, self.between)
        starts = segments.starts.ravel()
        raw = frame.spread(split.gather(starts, frame.sizes), split.dtype.type(split.pad_id))
        raw[frame.row] = split.cls_id
        raw[frame.separators] = split.sep_id
        ids = raw & split.dtype.type(split.word_start - 1)
        if ids.max(initial=0) >= split.vocab_size:
            raise BertJaxError(
                f"{split.name}: token id {ids.max()} in a batch, but the vocabulary has {split.vocab_size}: prepare "
                "the corpus again"
            )
        word_starts = raw >= split.word_start
        word_starts[frame.first_places] = True
        flat = {"input_ids": ids.astype(np.int32), "word_starts": word_starts}
        for key in self.optional & CHANNEL_OF.keys():
            flat[key] = frame.spread(split.gather_channel(CHANNEL_OF[key], starts, frame.sizes) > 0, False)
            if key != "capitalised":
                flat[key][frame.first_places] = False
        if "sentence_starts" in self.optional:
            flat["sentence_starts"] = self._sentence_starts(segments, frame)

        batch = {key: values.reshape(frame.shape) for key, values in flat.items()}
        batch["attention_mask"] = frame.attended
        batch["segment_ids"] = np.zeros(frame.shape, np.int32) if segments.ids is None else frame.of_segments(segments.ids)
        if "position_ids" in self.optional:
            places = np.tile(np.arange(self.spec.length, dtype=np.int32), (len(frame.row), 1))
            batch["position_ids"] = places - frame.of_segments(frame.begin) if self.restart else places
        if "language_ids" in self.optional:
            document = np.searchsorted(split.documents[1:-1], segments.starts, side="right")
            batch["language_ids"] = frame.of_segments(split.document_language[document])
        if "context_ids" in self.optional:
            batch["context_ids"] = self._context(segments)
        if self.spec.label:
            batch[self.spec.label] = segments.label
        if self.spec.copies is not None:
            words = randomness.bits(segments.key[:, None], EXAMPLE_SEEDS, np.arange(2))
            batch["example_seeds"] = (words >> np.uint64(32)).astype(np.uint32)
        return batch

    def _sentence_starts(self, segments: Segments, frame: "Frame") -> np.ndarray:
        sentences = self.split.sentences
        start, end = segments.starts[frame.used], segments.ends[frame.used]
        low = np.searchsorted(sentences, start)
        counts = np.searchsorted(sentences, end) - low
        which = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        found = np.zeros(np.prod(frame.shape), bool)
        found[sentences[which] + np.repeat(frame.first_places - start, counts)] = True
        found[frame.first_places] = True
        return found

    def _context(self, segments: Segments) -> np.ndarray:
        split, window = self.split, self.spec.length
        document = np.searchsorted(split.documents, segments.starts[:, 0], side="right") - 1
        begin, finish = split.documents[document], split.documents[document + 1]
        there = (segments.starts >= begin[:, None]) & (segments.starts < finish[:, None]) & (segments.lengths > 0)
        low = np.where(there, segments.starts, finish[:, None]).min(axis=1)
        high = np.where(there, segments.ends, begin[:, None]).max(axis=1)
        before = np.minimum(low - begin, np.maximum(window // 2, window - (finish - high)))
        after = np.minimum(finish - high, window - before)
        lengths = np.stack([before, after], axis=1).ravel()
        raw = split.gather(np.stack([low - before, high], axis=1).ravel(), lengths)
        context = np.full((len(low), window), -1, np.int32)
        context[np.arange(window) < (before + after)[:, None]] = raw & split.dtype.type(split.word_start - 1)
        return context


class Frame:
    """Where R rows of L places have the tokens of their segments, int64 [R, K] ``lengths`` of them.

    Attributes:
      shape: (R, L). used: bool [R, K], the segments that are not empty. total: int64 [R], tokens with special ones.
      attended: bool [R, L], not padding.
      begin: int64 [R, K], where in its row that begins which belongs to a segment: its first token, a [SEP] before, or [CLS].
      sizes: tokens of each segment, in order. Places in the batch made flat: row, of each row's first; first_places, of
        each segment's first token; separators, of every [SEP].
    """

    def __init__(self, lengths: np.ndarray, length: int, between: int):
        rows = len(lengths)
        self.shape = rows, length
        self.used = lengths > 0
        gaps = np.where(self.used, between, 0)
        gaps[:, 0] = 1
        first = np.cumsum(lengths + gaps, axis=1) - lengths
        self.total = first[:, -1] + lengths[:, -1] + 1
        self.begin = np.where(self.used, first - (between == 2), self.total[:, None])
        self.begin[:, 0] = 0
        self.sizes = lengths.ravel()
        self.row = np.arange(rows) * length
        first += self.row[:, None]
        self.first_places = first[self.used]
        later = first[:, 1:][self.used[:, 1:]]
        self.separators = np.concatenate([self.row + self.total - 1, *(later - 1 - number for number in range(between))])
        self.attended = np.arange(length) < self.total[:, None]
        self._text = self.attended.flatten()
        self._text[self.row] = self._text[self.separators] = False

    def spread(self, values: np.ndarray, elsewhere: np.generic | bool) -> np.ndarray:
        """Values of the segments' tokens, one segment after the other, at their places in the flat batch."""
        flat = np.full(np.prod(self.shape), elsewhere)
        flat[self._text] = values
        return flat

    def of_segments(self, values: np.ndarray) -> np.ndarray:
        """int32 [R, L]: at every place the value [R, K] of the segment to which it belongs, 0 on padding."""
        rows, length = self.shape
        padded = np.zeros((rows, values.shape[1] + 1), np.int32)
        padded[:, :-1] = values
        ends = np.stack([self.total, np.full(rows, length)], axis=1)
        return np.repeat(padded.ravel(), np.diff(self.begin, axis=1, append=ends).ravel()).reshape(self.shape)


def sentence_at_or_after(split: Split, token: np.ndarray) -> np.ndarray:
    """Where the first sentence begins that does not begin before each token of the split (its end where none does)."""
    sentences = split.sentences
    return sentences[np.minimum(np.searchsorted(sentences, token, side="left"), len(sentences) - 1)]


def sentence_at_or_before(split: Split, token: np.ndarray) -> np.ndarray:
    """Where the last sentence begins that does not begin after each token of the split."""
    return split.sentences[np.searchsorted(split.sentences, token, side="right") - 1]
