"""Sentences and their translations (XLM's translation language modelling, Lample and Conneau 2019, section 3.3).

::

    [CLS] sentences in one language [SEP] [SEP] the same sentences in the other [SEP]

Positions count from 0 again at the second part, whose own [SEP] stands where the first has [CLS], so that words and their
translations stand at about the same positions. That, and the two separators, are those of `concat_batches` in
facebookresearch/XLM, where `</s>` opens and closes both. ``segment_ids`` are language ids: the model's segment table is then
XLM's table of languages.

An example takes consecutive sentence pairs while both texts fit; XLM has one pair in an example. Every document is cut for each
two languages that it exists in, so an epoch has every sentence with each of its translations. As in other kinds the cuts
move between epochs, and pairs at the end of a cell that do not fit are left for another epoch. Which language comes
first is a fair coin (XLM: the alphabet). A single pair that is too long loses tokens at the end of the longer
text (XLM leaves it out).
"""

import dataclasses
import itertools
from collections.abc import Collection

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.grid import Grid
from bert_jax.data.rows import ON_REQUEST, Examples, Kind, Segments
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

FIRST = 0  # the stream of random bits that says which language is first


@dataclasses.dataclass(frozen=True)
class Translations(Kind):
    """Sentence pairs of two languages from a store of parallel documents.

    Attributes:
      length: L, tokens of an example with special tokens; XLM: 256.
      language_segments: segment ids are language ids, of which the model's segment table needs as many; else 0 and 1.
    """

    length: int = 256
    language_segments: bool = True

    on_request = frozenset(ON_REQUEST) - {"context_ids"}  # which would be of one language

    @property
    def always(self) -> frozenset[str]:
        return frozenset({"position_ids"})

    def open(self, split: Split, *, seed: int, columns: Collection[str] = ()) -> "TranslationExamples":
        """The examples of a split; ``columns``: which of the optional keys are wanted.

        Raises:
          BertJaxError: a store without parallel documents, or with documents that are not parallel; channels that it lacks.
        """
        return TranslationExamples(split, self, seed=seed, columns=columns)


class TranslationExamples(Examples):
    """What :meth:`Translations.open` returns. Areas of the grid are documents in two languages, their tokens added."""

    between, restart = 2, True

    def __init__(self, split: Split, spec: Translations, *, seed: int, columns: Collection[str] = ()):
        super().__init__(split, spec, columns)
        if split.parallel < 2:
            raise BertJaxError(
                f"{split.name}: Translations need documents in several languages, sentence by sentence: prepare them with "
                "--parallel, or use examples of another kind"
            )
        # First sentence of each document, and how many it has: [groups, languages].
        bounds = np.searchsorted(split.sentences, split.documents)
        self._first = bounds[:-1].reshape(-1, split.parallel)
        self._sentences = np.diff(bounds).reshape(-1, split.parallel)
        uneven = np.flatnonzero((self._sentences != self._sentences[:, :1]).any(axis=1))
        if len(uneven):
            raise BertJaxError(
                f"{split.name}: parallel documents {uneven[0] * split.parallel} and after have "
                f"{', '.join(map(str, self._sentences[uneven[0]]))} sentences, which must be as many: prepare the corpus again"
            )
        self._pairs = np.array(list(itertools.combinations(range(split.parallel), 2)))
        self._room = spec.length - 4
        lengths = np.diff(split.documents).reshape(-1, split.parallel)
        tokens = lengths[:, self._pairs].sum(axis=2).ravel()
        self.grid = Grid(tokens, np.zeros(len(tokens), np.int64), self._room, seed=seed, exponent=None, copies=spec.copies)
        self.count = self.grid.count

    def segments(self, positions: np.ndarray) -> Segments:
        cells, split = self.grid.at(positions), self.split
        group, pair = cells.area // len(self._pairs), self._pairs[cells.area % len(self._pairs)]
        first, sentences = self._first[group[:, None], pair], self._sentences[group, 0]

        def tokens(sentence: np.ndarray) -> np.ndarray:
            """Tokens of both documents before a sentence."""
            return (split.sentences[first + sentence[:, None]] - split.sentences[first]).sum(axis=1)

        def last_with(limit: np.ndarray) -> np.ndarray:
            """The last sentence (or the end) with at most so many tokens before it, by bisection."""
            low, high = np.zeros_like(limit), sentences
            while (low < high).any():
                middle = (low + high + 1) // 2
                fits = tokens(middle) <= limit
                low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
            return low

        begin = np.where(cells.here > 0, last_with(cells.here - 1) + 1, 0)
        end = last_with(cells.after - 1) + 1
        begin = np.where(begin == end, begin - 1, begin)  # no pair begins in the cell: the one that it lies in, again
        end = np.maximum(np.minimum(end, last_with(tokens(begin) + self._room)), begin + 1)

        swapped = (randomness.uniform(cells.key, FIRST) < 0.5)[:, None]
        pair, first = np.where(swapped, pair[:, ::-1], pair), np.where(swapped, first[:, ::-1], first)
        starts, ends = split.sentences[first + begin[:, None]], split.sentences[first + end[:, None]]
        ids = split.document_language[group[:, None] * split.parallel + pair] if self.spec.language_segments else None
        ids = np.broadcast_to([0, 1], pair.shape) if ids is None else ids
        segments = Segments(starts, ends, np.zeros(len(group), np.int32), cells.key, ids.astype(np.int32))
        return self._truncated(segments)

    def _truncated(self, segments: Segments) -> Segments:
        lengths = segments.lengths
        excess = np.maximum(lengths.sum(axis=1) - self._room, 0)
        more = lengths[:, 0] - lengths[:, 1]
        unequal = np.minimum(excess, np.abs(more))
        half = (excess - unequal)[:, None] + [0, 1]
        loss = np.stack([np.where(more > 0, unequal, 0), np.where(more < 0, unequal, 0)], axis=1) + half // 2
        return dataclasses.replace(segments, ends=segments.ends - loss)
