"""Examples of one segment, or of two with a label, as BERT, ALBERT, StructBERT and ERNIE 2.0 pre-train on.

Everything is a pure function of (seed, position), computed for a whole batch at once with NumPy. Every example is made of
one chunk of a document (:mod:`bert_jax.data.chunks`) with room for T tokens, length - 3, or - 2 for one segment.

*BERT's pairs* ("nsp", google-research/bert `create_pretraining_data.py`). A tenth of the examples aims at a length
drawn from 2 to T instead of T, and takes whole sentences until it is reached. A is the chunk up to a random sentence
boundary. With probability 1/2, and always for a chunk of one sentence, B is text from a random sentence of another
document, sentence by sentence until the aim is reached (label 1); else B is the rest of the chunk (label 0). A pair
that is too long loses single tokens of the longer segment, from its front or its back with equal probability.

*ALBERT's pairs* ("sop", section 3.1 of the paper). B is the rest of the chunk; with probability 1/2 the two are
swapped (label 1).

*StructBERT's pairs* ("structural", Wang et al. 2020, section 2.2). A third each: B is the rest of the chunk (label 0); the
two are swapped, so B is what precedes A (1); B is from another document (2).

*ERNIE 2.0's pairs* ("distance", Sun et al. 2020, section 4.2.2). A third each: B is the rest of the chunk (label 0); B is
from the same document, with at least a sentence (or the rest of the one in which A ends) between it and A (1); B is from
another document (2). Where the document has no room for a distant B, the other two classes have a half each.

*One segment* ("none"): the chunk. With ``short_fraction=0`` it is RoBERTa's DOC-SENTENCES (Liu et al. 2019, section 4.2): text
of one document, up to the length; but a chunk that is too long loses tokens at both ends instead of its last sentence.
Text that crosses documents is :class:`bert_jax.data.streams.Streams`.

*Deviations.* Whether an example is short is drawn for each; BERT and ALBERT draw it for each pass over a document, all
of whose examples are then short, which makes more of them (ELECTRA draws as here). What BERT puts back into the queue,
the rest of a short or a random example, is left for another epoch, when the cuts have moved. B is taken from at most T
tokens of its document; where the store knows languages, from one of the same language if there are two. A chunk of one
sentence has no second segment: for all but "nsp" it is split inside, where a word starts if there are two (ALBERT's
code takes a random document even for SOP). A chunk of one token cannot be split: "sop" leaves it alone with label -1,
which no loss counts, "structural" and "distance" give it another document.
"""

import dataclasses
from collections.abc import Collection
from typing import Literal, get_args

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.chunks import Chunk, DocumentExamples, TextKind
from bert_jax.data.rows import IGNORED, Segments, sentence_at_or_after, sentence_at_or_before
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

Pairs = Literal["nsp", "sop", "structural", "distance", "none"]

LABELS = {"nsp": "next_sentence_label", "sop": "sentence_order_label", "structural": "structural_label",
          "distance": "distance_label"}

# One stream of random bits for every decision; the numbers are part of what a seed means.
SHORT, SHORT_LENGTH, SPLIT, KIND, DOCUMENT, SENTENCE, FRONT_A, FRONT_B, DISTANT = range(9)


@dataclasses.dataclass(frozen=True)
class PairSpec(TextKind):
    """One segment of a document, or two with a label.

    Attributes:
      length: L, tokens of an example with [CLS] and [SEP]; BERT: 128, then 512.
      pairs: "nsp" (BERT), "sop" (ALBERT), "structural" (StructBERT), "distance" (ERNIE 2.0) or "none" (one segment).
      short_fraction: the share of examples that aim at a random shorter length; BERT and ALBERT: 0.1.
    """

    pairs: Pairs = "nsp"
    short_fraction: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.pairs not in get_args(Pairs):
            raise BertJaxError(f"pairs={self.pairs!r}: use one of {', '.join(get_args(Pairs))}")
        if not 0 <= self.short_fraction <= 1:
            raise BertJaxError(f"short_fraction={self.short_fraction}: a share from 0 to 1 is needed")

    @property
    def room(self) -> int:
        """T, the tokens of text that fit."""
        return self.length - (2 if self.pairs == "none" else 3)

    @property
    def label(self) -> str | None:
        return LABELS.get(self.pairs)

    @classmethod
    def ways_to_give(cls, key: str) -> list[str]:
        return super().ways_to_give(key) + [f"PairSpec(pairs={pairs!r})" for pairs, label in LABELS.items() if label == key]

    def open(self, split: Split, *, seed: int, columns: Collection[str] = ()) -> "PairExamples":
        """The examples of a split; ``columns``: which of the optional keys are wanted.

        Raises:
          BertJaxError: labels that need other documents on a split of one; languages or channels that the store lacks.
        """
        return PairExamples(split, self, seed=seed, columns=columns)


class PairExamples(DocumentExamples):
    """What :meth:`PairSpec.open` returns. ``segment_ids`` are 1 on B and its [SEP]."""

    def __init__(self, split: Split, spec: PairSpec, *, seed: int, columns: Collection[str] = ()):
        super().__init__(split, spec, spec.room, seed=seed, columns=columns)
        if spec.pairs not in ("sop", "none") and len(self.order) < 2:
            raise BertJaxError(f"{split.name}: one document, so none to draw a random next segment from: use pairs=sop")
        # Where the documents of each language begin in `order`, for B from another document.
        self._language_first = np.searchsorted(self.language, np.arange(self.language.max(initial=0) + 2))

    def segments(self, positions: np.ndarray) -> Segments:
        split, kind = self.split, self.spec.pairs
        chunk = self.chunks(positions)
        key, start, end = chunk.key, chunk.start, chunk.end
        aim = self._aims(key)
        if self.spec.short_fraction > 0:
            short_end = sentence_at_or_after(split, start + aim)
            end = np.where(aim < self.room, np.minimum(end, short_end), end)
        if kind == "none":
            return self._truncated(_segments(key, np.zeros(len(key), np.int32), (start, end)))
        interior = np.searchsorted(split.sentences, start, side="right")
        boundaries = np.searchsorted(split.sentences, end, side="left") - interior
        chosen = interior + randomness.below(key, SPLIT, np.maximum(boundaries, 1))
        middle = np.where(boundaries > 0, split.sentences[np.minimum(chosen, split.sentences.size - 1)], end)
        if kind != "nsp":
            middle = self._split_inside(key, start, middle, end, boundaries)
        first, rest, alone = (start, middle), (middle, end), middle == end
        coin = randomness.uniform(key, KIND)
        if kind == "nsp":
            random = alone | (coin < 0.5)
            return self._pairs(key, random, first, _choose(random, self._elsewhere(chunk, start, middle, aim), rest))
        if kind == "sop":
            swapped = ~alone & (coin < 0.5)
            label = np.where(alone, IGNORED, swapped)
            return self._pairs(key, label, _choose(swapped, rest, first), _choose(swapped, first, rest))
        third = np.where(alone, 2, np.minimum((3 * coin).astype(np.int64), 2))
        elsewhere = self._elsewhere(chunk, start, middle, aim)
        if kind == "structural":
            before = third == 1
            b = _choose(third == 2, elsewhere, _choose(before, first, rest))
            return self._pairs(key, third, _choose(before, rest, first), b)
        distant, possible = self._distant(chunk, start, middle, aim)
        third = np.where((third == 1) & ~possible, 2 * (coin < 0.5), third)  # the coin is from 1/3 to 2/3 there
        return self._pairs(key, third, first, _choose(third == 2, elsewhere, _choose(third == 1, distant, rest)))

    def _pairs(self, key, label, a, b) -> Segments:
        return self._truncated(_segments(key, np.asarray(label).astype(np.int32), a, b))

    def _aims(self, key: np.ndarray) -> np.ndarray:
        """The length in tokens that each example aims at."""
        short = randomness.uniform(key, SHORT) < self.spec.short_fraction
        return np.where(short, 2 + randomness.below(key, SHORT_LENGTH, np.int64(self.room - 1)), self.room)

    def _up_to_aim(self, begin, limit, wanted) -> np.ndarray:
        """Where whole sentences from `begin` reach the wanted tokens, at `limit` and at T tokens at the latest."""
        end = np.minimum(sentence_at_or_after(self.split, begin + np.maximum(wanted, 1)), limit)
        return np.minimum(end, begin + self.room)

    def _elsewhere(self, chunk: Chunk, start, middle, aim) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of text from a random sentence of another document of the language, if it has another."""
        split, key = self.split, chunk.key
        language = self.language[chunk.place]
        low, high = self._language_first[language], self._language_first[language + 1]
        only = high - low < 2
        low, high = np.where(only, 0, low), np.where(only, len(self.order), high)
        other = low + randomness.below(key, DOCUMENT, high - low - 1)
        document = self.order[other + (other >= chunk.place)]
        begin, limit = split.documents[document], split.documents[document + 1]
        sentence = np.searchsorted(split.sentences, begin)
        sentences = np.searchsorted(split.sentences, limit) - sentence
        begin = split.sentences[sentence + randomness.below(key, SENTENCE, sentences)]
        return begin, self._up_to_aim(begin, limit, aim - (middle - start))

    def _distant(self, chunk: Chunk, start, middle, aim) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Start and end of text from a random sentence of the same document that neither touches A nor what is next to it:
        a sentence at least is between. And whether there is such text."""
        sentences, document = self.split.sentences, self.order[chunk.place]
        begin, limit = self.split.documents[document], self.split.documents[document + 1]
        gap = sentence_at_or_before(self.split, np.maximum(start - 1, begin))  # text before A ends here
        first, last = np.searchsorted(sentences, begin), np.searchsorted(sentences, limit)
        before = np.searchsorted(sentences, gap) - first
        after_first = np.searchsorted(sentences, middle, side="right")
        after = np.maximum(last - after_first, 0)
        number = randomness.below(chunk.key, DISTANT, np.maximum(before + after, 1))
        is_before = number < before
        which = np.where(is_before, first + number, after_first + number - before)
        b_start = sentences[np.minimum(which, len(sentences) - 1)]
        b_end = self._up_to_aim(b_start, np.where(is_before, gap, limit), aim - (middle - start))
        return (b_start, b_end), before + after > 0

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

    def _truncated(self, segments: Segments) -> Segments:
        """BERT's `truncate_seq_pair` in closed form.

        It takes tokens one at a time from the longer segment (from B where they are equal), each from the front or the
        back by a fair coin: what each loses follows from the lengths, and the front's share is the number of heads.
        """
        lengths = segments.lengths
        excess = np.maximum(lengths.sum(axis=1) - self.room, 0)
        if not excess.any():
            return segments
        if lengths.shape[1] == 1:
            loss = excess[:, None]
        else:
            more = lengths[:, 0] - lengths[:, 1]
            unequal = np.minimum(excess, np.abs(more))
            both = excess - unequal
            loss = [np.where(more > 0, unequal, 0) + both // 2, np.where(more < 0, unequal, 0) + (both + 1) // 2]
            loss = np.stack(loss, axis=1)
        front = np.stack([randomness.heads(segments.key, FRONT_A + k, loss[:, k]) for k in range(loss.shape[1])], axis=1)
        return dataclasses.replace(segments, starts=segments.starts + front, ends=segments.ends - (loss - front))


def _segments(key, label, *spans: tuple[np.ndarray, np.ndarray]) -> Segments:
    """R rows of one segment or two, the second with segment id 1."""
    starts, ends = (np.stack(side, axis=1) for side in zip(*spans, strict=True))
    ids = np.broadcast_to(np.arange(len(spans), dtype=np.int32), starts.shape) if len(spans) > 1 else None
    return Segments(starts, ends, label, key, ids)


def _choose(condition, one, other) -> tuple[np.ndarray, np.ndarray]:
    """Spans of `one` where the condition holds, else of `other`."""
    return np.where(condition, one[0], other[0]), np.where(condition, one[1], other[1])
