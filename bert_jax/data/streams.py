"""Examples that go on from one document to the next, as RoBERTa's and XLM's.

*Whole sentences* (RoBERTa's FULL-SENTENCES, Liu et al. 2019, section 4.2; fairseq's break mode "complete"): consecutive whole
sentences, up to the length; where a document ends the next one goes on, after a [SEP]. An example begins at the first
sentence that starts in its cell of the :mod:`grid <bert_jax.data.grid>` and ends where the next one begins, or with the last
sentence that fits: each is in at most one example an epoch, and the cuts move between epochs. A sentence is cut only if it
is longer than an example, or the last of all and the last cell lies inside it. RoBERTa's DOC-SENTENCES, which stop where the
document does, are ``PairSpec(pairs="none", short_fraction=0)``.

*Any tokens* (XLM's streams, Lample and Conneau 2019, section 3.2; `StreamDataset`): an example is its cell, so each token is in
exactly one example an epoch.

Documents follow each other as in the store, those of a language together where it knows languages: no example mixes two.

*Deviations.* fairseq fills blocks one after the other through the corpus, which has no random access. XLM puts its `</s>` after
every sentence of a stream; here separators are between documents.
"""

import dataclasses
from collections.abc import Collection
from typing import Literal, get_args

import numpy as np

from bert_jax.data.chunks import TextKind
from bert_jax.data.grid import Grid, by_language
from bert_jax.data.rows import (
    NAME_LANGUAGES,
    ON_REQUEST,
    WITHOUT_LANGUAGES,
    Examples,
    Segments,
    sentence_at_or_after,
    sentence_at_or_before,
)
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

Unit = Literal["sentence", "token"]


@dataclasses.dataclass(frozen=True)
class Streams(TextKind):
    """Running text, [SEP] where a document ends.

    Attributes:
      length: L, tokens of an example with special tokens; RoBERTa: 512, XLM: 256.
      unit: what is not cut, "sentence" (RoBERTa) or "token" (XLM).
      language_segments: segment ids are language ids, as in `Translations` (XLM); else 0.
    """

    length: int = 512
    unit: Unit = "sentence"
    language_segments: bool = False

    on_request = frozenset(ON_REQUEST) - {"context_ids"}  # which would be of one document

    def __post_init__(self):
        super().__post_init__()
        if self.unit not in get_args(Unit):
            raise BertJaxError(f"unit={self.unit!r}: use one of {', '.join(get_args(Unit))}")

    def open(self, split: Split, *, seed: int, columns: Collection[str] = ()) -> "StreamExamples":
        """The examples of a split; ``columns``: which of the optional keys are wanted.

        Raises:
          BertJaxError: languages or channels that the store lacks.
        """
        return StreamExamples(split, self, seed=seed, columns=columns)


class StreamExamples(Examples):
    """What :meth:`Streams.open` returns.

    Documents stand on a line, a place for each token and one after each document for its separator: places count from 0
    through the documents in their order. Areas of the grid are the languages' stretches of it.
    """

    def __init__(self, split: Split, spec: Streams, *, seed: int, columns: Collection[str] = ()):
        super().__init__(split, spec, columns)
        if spec.language_segments and not split.languages:
            raise BertJaxError(f"{split.name}: {WITHOUT_LANGUAGES}, which language_segments need: {NAME_LANGUAGES}")
        exponent = spec.language_exponent
        order, language = by_language(split, exponent)
        self._begin, self._end = split.documents[:-1][order], split.documents[1:][order]
        self._line = np.concatenate([[0], np.cumsum(self._end - self._begin + 1)])
        self._room = spec.length - 2
        self._languages, first = np.unique(language, return_index=True)
        bounds = self._line[np.append(first, len(order))]
        self._area = bounds[:-1]
        stretches = np.diff(bounds) - 1  # without the last separator
        self.grid = Grid(stretches, self._languages, self._room, seed=seed, exponent=exponent, copies=spec.copies)
        self.count = self.grid.count

    def segments(self, positions: np.ndarray) -> Segments:
        cells = self.grid.at(positions)
        base = self._area[cells.area]
        start, end = base + cells.here, base + cells.after
        if self.spec.unit == "sentence":
            start, end = self._sentence_inside(start, end), self._sentence_inside(end, base + cells.later)
            fitting = self._sentence_at_or_before(start + self._room)
            fitting = np.where(fitting > start, fitting, start + self._room)
            end = np.where(end - start > self._room, fitting, end)
        rank, token = self._locate(start)
        after = token == self._end[rank]  # a separator: the next document begins
        rank, token = rank + after, np.where(after, self._begin[np.minimum(rank + 1, len(self._begin) - 1)], token)
        last_rank, last_token = self._locate(end - 1)

        each = np.arange((last_rank - rank).max(initial=0) + 1)
        ranks = np.minimum(rank[:, None] + each, last_rank[:, None])
        stop = np.minimum(last_token + 1, self._end[last_rank])[:, None]
        starts = np.where(each == 0, token[:, None], self._begin[ranks])
        ends = np.where(ranks == last_rank[:, None], stop, self._end[ranks])
        starts = np.where(each > (last_rank - rank)[:, None], ends, starts)
        ids = np.broadcast_to(self._languages[cells.area][:, None], starts.shape) if self.spec.language_segments else None
        return Segments(starts, ends, np.zeros(len(rank), np.int32), cells.key, ids)

    def _locate(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rank of the document at each place of the line, and the token there; for a separator the document's end."""
        rank = np.searchsorted(self._line, place, side="right") - 1
        return rank, self._begin[rank] + place - self._line[rank]

    def _sentence_inside(self, place: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """The place of the first sentence in [place, bound), else `place`."""
        rank, token = self._locate(np.minimum(place, self._line[-1] - 1))
        sentence = np.minimum(sentence_at_or_after(self.split, token), self._end[rank])
        found = self._line[rank] + sentence - self._begin[rank]
        found += sentence == self._end[rank]  # past the separator
        return np.where(found < bound, found, place)

    def _sentence_at_or_before(self, place: np.ndarray) -> np.ndarray:
        """The place of the last sentence that begins at or before each, or of the separator there."""
        rank, token = self._locate(np.minimum(place, self._line[-1] - 1))
        sentence = np.where(token == self._end[rank], token, sentence_at_or_before(self.split, token))
        return self._line[rank] + sentence - self._begin[rank]
