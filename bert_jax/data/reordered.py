"""Paragraphs cut into segments and put together in another order (ERNIE 2.0, Sun et al. 2020, section 4.2.2).

A chunk of a document (:mod:`bert_jax.data.chunks`), as many whole sentences of it as fit, is cut at sentence boundaries into n
segments, n from 1 to m, and these are put into one of their n! orders, without separators. The label says n and the
order, among the classes of all n from 1 to m: first 1, then the 2 orders of two segments, the 6 of three, ...

The paper says "randomly" of n, of the cuts and of the order. Here n is uniform from 1 to m, or to the sentences that there
are if those are fewer; the cuts are uniform among the boundaries, and so is the order.
"""

import dataclasses
import itertools
from collections.abc import Collection

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.chunks import DocumentExamples, TextKind
from bert_jax.data.rows import Segments, sentence_at_or_before
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

NUMBER, ORDER, CUT = range(3)  # streams of random bits; cuts use the streams from CUT on


@dataclasses.dataclass(frozen=True)
class Reordered(TextKind):
    """Text of one document, its parts in any order.

    Attributes:
      length: L, tokens of an example with special tokens.
      most: m, segments at most: 3 gives 9 classes, 4 gives 33. As in the objective; the paper does not say its own.
    """

    most: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.most <= 7:
            raise BertJaxError(f"most={self.most}: from 2 to 7 segments (7 have 5,913 orders)")

    @property
    def label(self) -> str:
        return "reorder_label"

    @classmethod
    def ways_to_give(cls, key: str) -> list[str]:
        return super().ways_to_give(key) + (["Reordered"] if key == "reorder_label" else [])

    def open(self, split: Split, *, seed: int, columns: Collection[str] = ()) -> "ReorderedExamples":
        """The examples of a split; ``columns``: which of the optional keys are wanted.

        Raises:
          BertJaxError: languages or channels that the store lacks.
        """
        return ReorderedExamples(split, self, seed=seed, columns=columns)


class ReorderedExamples(DocumentExamples):
    """What :meth:`Reordered.open` returns."""

    between = 0

    def __init__(self, split: Split, spec: Reordered, *, seed: int, columns: Collection[str] = ()):
        super().__init__(split, spec, spec.length - 2, seed=seed, columns=columns)
        # orders[c]: which segments class c puts first, second, ...; unused places keep their number.
        orders = [(*order, *range(n, spec.most)) for n in range(1, spec.most + 1) for order in itertools.permutations(range(n))]
        self.orders = np.array(orders)
        self._classes = np.cumprod(np.arange(1, spec.most + 1))  # n! for n = 1, 2, ...

    def segments(self, positions: np.ndarray) -> Segments:
        chunk = self.chunks(positions)
        key, start, end = chunk.key, chunk.start, chunk.end
        fitting = sentence_at_or_before(self.split, start + self.room)
        fitting = np.where(fitting > start, fitting, start + self.room)
        end = np.where(end - start > self.room, fitting, end)

        sentences, most = self.split.sentences, self.spec.most
        first = np.searchsorted(sentences, start, side="right")
        boundaries = np.searchsorted(sentences, end, side="left") - first
        number = 1 + randomness.below(key, NUMBER, np.minimum(boundaries + 1, most))
        cuts = sentences[np.minimum(first[:, None] + self._cuts(key, number, boundaries), len(sentences) - 1)]
        cuts = np.where(np.arange(1, most) < number[:, None], cuts, end[:, None])
        bounds = np.concatenate([start[:, None], cuts, end[:, None]], axis=1)

        classes = self._classes[number - 1]
        label = (np.cumsum(self._classes) - self._classes)[number - 1] + randomness.below(key, ORDER, classes)
        order = self.orders[label]
        starts, ends = np.take_along_axis(bounds, order, axis=1), np.take_along_axis(bounds, order + 1, axis=1)
        return Segments(starts, ends, label.astype(np.int32), key)

    def _cuts(self, key: np.ndarray, number: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
        """`number` - 1 different ones of so many boundaries, ascending, int64 [R, m - 1]; beyond them a large number.

        Floyd's choice without replacement: for each j of the last numbers, a random one up to j, or j if it was chosen.
        """
        never = np.int64(1) << 40
        chosen = np.full((len(key), self.spec.most - 1), never)
        for which in range(self.spec.most - 1):
            j = boundaries - number + 1 + which
            drawn = randomness.below(key, CUT + which, np.maximum(j + 1, 1))
            drawn = np.where((chosen == drawn[:, None]).any(axis=1), j, drawn)
            chosen[:, which] = np.where(which < number - 1, drawn, never)
        return np.sort(chosen, axis=1)
