"""Training examples from a token store: one segment, or two with a label, as BERT and ALBERT pre-train on.

Everything is a pure function of (seed, position), computed for a whole batch at once with NumPy: no state, no table
in the size of the corpus, no Python per record.

*Where examples come from.* With room for T tokens (length - 3, or - 2 for one segment) a document of n tokens is cut
into ceil(n / T) cells of 1 to T tokens, one more where n >= 32 T. How long the first cell is, is drawn for every
epoch and document, so the cuts move from epoch to epoch while their number stays (for a document of one to a few
cells by what its last cell leaves free): position p is example p mod n of epoch p div n, for ever. A chunk begins at
the first sentence that starts inside its cell (at the cell's start where none does: a longer sentence is cut) and
ends where the next chunk begins, so each token is in exactly one chunk an epoch. A chunk may exceed T by less than a
cell; it is then truncated, as BERT's are.

*In which order.* A keyed permutation of the examples of each epoch: an exact global shuffle with nothing stored.

*BERT's pairs* ("nsp", google-research/bert `create_pretraining_data.py`). A tenth of the examples aims at a length
drawn from 2 to T instead of T, and takes whole sentences until it is reached. A is the chunk up to a random sentence
boundary. With probability 1/2, and always for a chunk of one sentence, B is text from a random sentence of another
document, sentence by sentence until the aim is reached (label 1); else B is the rest of the chunk (label 0). A pair
that is too long loses single tokens of the longer segment, from its front or its back with equal probability.

*ALBERT's pairs* ("sop", section 3.1 of the paper). B is the rest of the chunk; with probability 1/2 the two are
swapped (label 1).

*Deviations.* What BERT puts back into the queue, the rest of a short or a random example, is left for another epoch,
when the cuts have moved. B is taken from at most T tokens of its document. ALBERT's code pairs a chunk of one
sentence with a random document even for SOP; here it is split inside, where a word starts if there are two. A chunk
of one token has no order: it stands alone with label -1, which no loss counts.
"""

import dataclasses
from collections.abc import Collection
from typing import Literal, get_args

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

Batch = dict[str, np.ndarray]
Pairs = Literal["nsp", "sop", "none"]

LABELS = {"nsp": "next_sentence_label", "sop": "sentence_order_label"}
IGNORED = -1
LONG_DOCUMENT = 32  # cells; one more then costs 3% of padding at most, and the cuts may fall anywhere

# What keys are for, and one stream of random bits for every decision; the numbers are part of what a seed means.
SHUFFLE, FIRST_CELL, EXAMPLE = range(3)
SHORT, SHORT_LENGTH, SPLIT, KIND, DOCUMENT, SENTENCE, FRONT_A, FRONT_B = range(8)


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """What an example looks like.

    Attributes:
      length: L, tokens of an example with [CLS] and [SEP]; BERT: 128, then 512.
      pairs: "nsp" (BERT), "sop" (ALBERT) or "none" (one segment, as RoBERTa).
      short_fraction: the share of examples that aim at a random shorter length; BERT and ALBERT: 0.1.
    """

    length: int = 128
    pairs: Pairs = "nsp"
    short_fraction: float = 0.1

    def __post_init__(self):
        if self.pairs not in get_args(Pairs):
            raise BertJaxError(f"pairs={self.pairs!r}: use one of {', '.join(get_args(Pairs))}")
        if self.length < 8:
            raise BertJaxError(f"length={self.length}: at least 8 tokens are needed")
        if not 0 <= self.short_fraction <= 1:
            raise BertJaxError(f"short_fraction={self.short_fraction}: a share from 0 to 1 is needed")

    @property
    def room(self) -> int:
        """T, the tokens of text that fit."""
        return self.length - (2 if self.pairs == "none" else 3)

    @property
    def provides(self) -> frozenset[str]:
        """Keys of the batches that :meth:`open` can make."""
        return frozenset(self.layout(1, ()))

    @classmethod
    def ways_to_give(cls, key: str) -> list[str]:
        """Settings with which batches have ``key``."""
        return [f"pairs={pairs!r}" for pairs, label in LABELS.items() if label == key]

    def layout(self, rows: int, columns: Collection[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every array of a batch of R ``rows``, as :meth:`PairBatches.at` makes it, without making one."""
        tokens, integer, truth = (rows, self.length), np.dtype(np.int32), np.dtype(bool)
        layout = {"input_ids": (tokens, integer), "segment_ids": (tokens, integer), "attention_mask": (tokens, truth),
                  "word_starts": (tokens, truth)}
        if self.pairs in LABELS:
            layout[LABELS[self.pairs]] = ((rows,), integer)
        return layout

    def open(self, split: Split, *, seed: int, columns: Collection[str] = ()) -> "PairBatches":
        """The examples of a split; ``columns``: which of the keys that it provides are wanted."""
        return PairBatches(split, self, seed=seed)


@dataclasses.dataclass
class Segments:
    """Which tokens of the split make R examples: int64 [R] each, offsets into the split; B is empty where it ends at
    its start. `label` is int32 [R]."""

    a_start: np.ndarray
    a_end: np.ndarray
    b_start: np.ndarray
    b_end: np.ndarray
    label: np.ndarray


class PairBatches:
    """Examples of one split.

    Attributes:
      count: examples in an epoch.

    Raises:
      BertJaxError: "nsp" on a split of fewer than two documents.
    """

    def __init__(self, split: Split, spec: PairSpec, *, seed: int):
        self.split = split
        self.spec = spec
        self.seed = seed
        lengths = np.diff(split.documents)
        if spec.pairs == "nsp" and len(lengths) < 2:
            raise BertJaxError(f"{split.name}: one document, so none to draw a random next segment from: use pairs=sop")
        self._first_cell = np.concatenate([[0], np.cumsum(_cells(lengths, spec.room))])
        self.count = int(self._first_cell[-1])

    def at(self, positions: np.ndarray) -> Batch:
        """The examples at `positions` (int64 [R], from 0 on, through one epoch after another).

        Returns:
          ``input_ids`` int32 [R, L]: [CLS] A [SEP] B [SEP], then padding;
          ``segment_ids`` int32 [R, L]: 1 on B and its [SEP], else 0;
          ``attention_mask`` bool [R, L]: True except on padding;
          ``word_starts`` bool [R, L]: True on the first piece of every word and of every segment, False on special
          tokens and padding;
          ``next_sentence_label`` int32 [R] (0 = B is next, 1 = random) for "nsp", ``sentence_order_label`` int32 [R]
          (0 = in order, 1 = swapped, -1 = none) for "sop".

        Raises:
          BertJaxError: a token beyond the vocabulary.
        """
        return self.assemble(self.segments(positions))

    def segments(self, positions: np.ndarray) -> Segments:
        """The segments of the examples at `positions`, truncated to fit."""
        positions = np.asarray(positions, np.int64)
        epoch = positions // self.count
        example = randomness.permute(positions % self.count, self.count, self._key(SHUFFLE, epoch))
        key = self._key(EXAMPLE, epoch, example)
        document, start, end = self._chunks(epoch, example)
        aim = self._aims(key)
        if self.spec.short_fraction > 0:
            short_end = self._sentence_at_or_after(start + aim)
            end = np.where(aim < self.spec.room, np.minimum(end, short_end), end)
        if self.spec.pairs == "none":
            whole = Segments(start, end, start, start, np.zeros(len(start), np.int32))
            return self._truncated(whole, key)
        interior = np.searchsorted(self.split.sentences, start, side="right")
        boundaries = np.searchsorted(self.split.sentences, end, side="left") - interior
        chosen = interior + randomness.below(key, SPLIT, np.maximum(boundaries, 1))
        middle = np.where(boundaries > 0, self.split.sentences[np.minimum(chosen, self.split.sentences.size - 1)], end)
        if self.spec.pairs == "nsp":
            return self._truncated(self._next_or_random(key, document, start, middle, end, boundaries, aim), key)
        return self._truncated(self._in_order_or_swapped(key, start, middle, end, boundaries), key)

    def assemble(self, segments: Segments) -> Batch:
        """Token arrays of the segments."""
        split, length = self.split, self.spec.length
        rows = len(segments.label)
        a_length = segments.a_end - segments.a_start
        b_length = segments.b_end - segments.b_start
        alone = b_length == 0
        total = a_length + b_length + np.where(alone, 2, 3)

        lengths = np.concatenate([a_length, b_length])
        raw = split.gather(np.concatenate([segments.a_start, segments.b_start]), lengths)
        ids = raw & split.dtype.type(split.word_start - 1)
        if ids.size and ids.max() >= split.vocab_size:
            raise BertJaxError(
                f"{split.name}: token id {ids.max()} in a batch, but the vocabulary has {split.vocab_size}: prepare "
                "the corpus again"
            )
        row = np.arange(rows) * length
        first = np.concatenate([row + 1, row + a_length + 2])  # of each segment, in the flattened batch
        ends = np.cumsum(lengths)
        place = np.repeat(first - (ends - lengths), lengths) + np.arange(len(raw))

        input_ids = np.full(rows * length, split.pad_id, np.int32)
        input_ids[place] = ids
        input_ids[row] = split.cls_id
        input_ids[row + a_length + 1] = split.sep_id
        input_ids[row + total - 1] = split.sep_id
        word_starts = np.zeros(rows * length, bool)
        word_starts[place] = raw >= split.word_start
        word_starts[first[lengths > 0]] = True

        column = np.arange(length)
        attention_mask = column < total[:, None]
        batch = {
            "input_ids": input_ids.reshape(rows, length),
            "segment_ids": ((column >= a_length[:, None] + 2) & attention_mask).astype(np.int32),
            "attention_mask": attention_mask,
            "word_starts": word_starts.reshape(rows, length),
        }
        if self.spec.pairs in LABELS:
            batch[LABELS[self.spec.pairs]] = segments.label
        return batch

    def _key(self, *parts: int | np.ndarray) -> np.ndarray:
        return randomness.key(self.seed, *parts)

    def _chunks(self, epoch: np.ndarray, example: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, start and end of the chunk of each example: int64 [R]."""
        documents = self.split.documents
        document = np.searchsorted(self._first_cell, example, side="right") - 1
        begin, finish = documents[document], documents[document + 1]
        tokens, room = finish - begin, self.spec.room
        cells = self._first_cell[document + 1] - self._first_cell[document]
        least, most, step, divisor = _grid(tokens, cells, room)
        first = least + randomness.below(self._key(FIRST_CELL, epoch, document), 0, most - least + 1)

        def cell_start(number: np.ndarray) -> np.ndarray:
            inside = first + (number - 1) * step // divisor
            return begin + np.where(number == 0, 0, np.where(number < cells, inside, tokens))

        number = example - self._first_cell[document]
        here, after = cell_start(number), cell_start(number + 1)
        start = self._sentence_inside(here, after)
        end = self._sentence_inside(after, np.minimum(cell_start(number + 2), finish))
        return document, start, end

    def _sentence_at_or_after(self, token: np.ndarray) -> np.ndarray:
        sentences = self.split.sentences
        return sentences[np.minimum(np.searchsorted(sentences, token, side="left"), len(sentences) - 1)]

    def _sentence_inside(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The first sentence start in [start, end), else `start`."""
        sentence = self._sentence_at_or_after(start)
        return np.where(sentence < end, sentence, start)

    def _aims(self, key: np.ndarray) -> np.ndarray:
        """The length in tokens that each example aims at."""
        room = self.spec.room
        short = randomness.uniform(key, SHORT) < self.spec.short_fraction
        return np.where(short, 2 + randomness.below(key, SHORT_LENGTH, np.int64(room - 1)), room)

    def _next_or_random(self, key, document, start, middle, end, boundaries, aim) -> Segments:
        split = self.split
        random = (boundaries == 0) | (randomness.uniform(key, KIND) < 0.5)
        other = randomness.below(key, DOCUMENT, np.int64(len(split.documents) - 2))
        other += other >= document
        first = np.searchsorted(split.sentences, split.documents[other])
        sentences = np.searchsorted(split.sentences, split.documents[other + 1]) - first
        other_start = split.sentences[first + randomness.below(key, SENTENCE, sentences)]
        wanted = np.maximum(aim - (middle - start), 1)
        other_end = np.minimum(self._sentence_at_or_after(other_start + wanted), split.documents[other + 1])
        other_end = np.minimum(other_end, other_start + self.spec.room)
        return Segments(
            a_start=start,
            a_end=middle,
            b_start=np.where(random, other_start, middle),
            b_end=np.where(random, other_end, end),
            label=random.astype(np.int32),
        )

    def _in_order_or_swapped(self, key, start, middle, end, boundaries) -> Segments:
        middle = self._split_inside(key, start, middle, end, boundaries)
        swapped = (middle < end) & (randomness.uniform(key, KIND) < 0.5)
        label = np.where(middle < end, swapped, IGNORED).astype(np.int32)
        return Segments(
            a_start=np.where(swapped, middle, start),
            a_end=np.where(swapped, end, middle),
            b_start=np.where(swapped, start, middle),
            b_end=np.where(swapped, middle, end),
            label=label,
        )

    def _split_inside(self, key, start, middle, end, boundaries) -> np.ndarray:
        """`middle`, but inside the sentence where a chunk has only one: at a random word, or token if one word."""
        single = np.flatnonzero((boundaries == 0) & (end - start > 1))
        if not len(single):
            return middle
        middle = middle.copy()
        inner = end[single] - start[single] - 1  # places to split at, each before a token
        raw = self.split.gather(start[single] + 1, inner)
        owner = np.repeat(np.arange(len(single)), inner)
        word = raw >= self.split.word_start
        words = np.bincount(owner[word], minlength=len(single))
        eligible = word | (words[owner] == 0)
        counts = np.where(words > 0, words, inner)
        before = np.cumsum(counts) - counts
        wanted = before + randomness.below(key[single], SPLIT, counts)
        place = np.flatnonzero(eligible)[wanted]
        middle[single] = start[single] + 1 + place - (np.cumsum(inner) - inner)
        return middle

    def _truncated(self, segments: Segments, key: np.ndarray) -> Segments:
        """BERT's `truncate_seq_pair` in closed form.

        It takes tokens one at a time from the longer segment (from B where they are equal), each from the front or the
        back by a fair coin: what each loses follows from the lengths, and the front's share is the number of heads.
        """
        a_length = segments.a_end - segments.a_start
        b_length = segments.b_end - segments.b_start
        excess = np.maximum(a_length + b_length - self.spec.room, 0)
        if not excess.any():
            return segments
        unequal = np.minimum(excess, np.abs(a_length - b_length))
        both = excess - unequal
        a_loss = np.where(a_length > b_length, unequal, 0) + both // 2
        b_loss = np.where(b_length > a_length, unequal, 0) + (both + 1) // 2
        a_front = randomness.heads(key, FRONT_A, a_loss)
        b_front = randomness.heads(key, FRONT_B, b_loss)
        return Segments(
            a_start=segments.a_start + a_front,
            a_end=segments.a_end - (a_loss - a_front),
            b_start=segments.b_start + b_front,
            b_end=segments.b_end - (b_loss - b_front),
            label=segments.label,
        )


def _cells(tokens: np.ndarray, room: int) -> np.ndarray:
    """How many cells a document of so many tokens has."""
    return -(-tokens // room) + (tokens >= LONG_DOCUMENT * room)


def _grid(tokens: np.ndarray, cells: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the cells of documents may begin, so that each has 1 to `room` tokens whatever is drawn.

    Returns least and most tokens of the first cell, and step and divisor: cell j > 0 begins (j - 1) * step // divisor
    after the first. In a document of a few cells all but the first and the last have `room` tokens, and the first is
    bounded by what the last can hold. With a cell to spare they have tokens / (cells - 1), and the first and the last
    share one such length, cut anywhere.
    """
    long = tokens >= LONG_DOCUMENT * room
    least = np.where(long, 1, np.maximum(1, tokens - (cells - 1) * room))
    most = np.where(long, tokens // np.maximum(cells - 1, 1) - 1, np.minimum(room, tokens))
    return least, most, np.where(long, tokens, room), np.where(long, cells - 1, 1)
