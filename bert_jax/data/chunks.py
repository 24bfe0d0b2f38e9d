"""Chunks of documents: what one-document examples are cut from.

A chunk begins at the first sentence that starts inside its cell of the :mod:`grid <bert_jax.data.grid>` (at the cell's start
where none does: a longer sentence is cut) and ends where the next chunk begins, so each token is in exactly one chunk an
epoch. A chunk may exceed the room by less than a cell.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from bert_jax.data.grid import Cells, Grid, by_language
from bert_jax.data.rows import Examples, Kind, sentence_at_or_after
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError


@dataclasses.dataclass(frozen=True)
class TextKind(Kind):
    """What kinds of examples from running text have in common.

    Attributes:
      language_exponent: S, languages get shares in proportion to p^S of their shares p of the examples; mBERT: 0.7, XLM: 0.5 or
        0.7, XLM-R: 0.3. None: as they are.
    """

    language_exponent: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.language_exponent is not None and not 0 <= self.language_exponent <= 1:
            raise BertJaxError(f"language_exponent={self.language_exponent}: from 0 (equal shares) to 1 (shares as they are)")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Chunks of R examples: uint64 [R] keys; int64 [R] places of their documents in :attr:`DocumentExamples.order`, and
    where they begin and end in the split."""

    key: np.ndarray
    place: np.ndarray
    start: np.ndarray
    end: np.ndarray


class DocumentExamples(Examples):
    """Examples each of which is made of one chunk.

    Attributes:
      order: int64 [documents], the documents with languages together.
    """

    def __init__(self, split: Split, spec: TextKind, room: int, *, seed: int, columns: Collection[str]):
        super().__init__(split, spec, columns)
        self.room = room
        exponent = spec.language_exponent
        self.order, self.language = by_language(split, exponent)
        self._begin, self._end = split.documents[:-1][self.order], split.documents[1:][self.order]
        lengths = self._end - self._begin
        self.grid = Grid(lengths, self.language, room, seed=seed, exponent=exponent, copies=spec.copies)
        self.count = self.grid.count

    def chunks(self, positions: np.ndarray) -> Chunk:
        """The chunks of the examples at `positions`, int64 [R]."""
        return self.chunks_of(self.grid.at(positions))

    def chunks_of(self, cells: Cells) -> Chunk:
        """The chunks of cells."""
        begin = self._begin[cells.area]
        here, after, later = begin + cells.here, begin + cells.after, begin + cells.later
        return Chunk(cells.key, cells.area, self._sentence_inside(here, after), self._sentence_inside(after, later))

    def _sentence_inside(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The first sentence start in [start, end), else `start`."""
        sentence = sentence_at_or_after(self.split, start)
        return np.where(sentence < end, sentence, start)
