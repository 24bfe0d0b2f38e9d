"""Several examples in one row, so that little of it is padding.

::

    [CLS] a a a [SEP] b b [SEP] [CLS] c c [SEP] [CLS] d [SEP] e e e [SEP] [PAD]     input_ids
      0   0 0 0   0   0 0   0     1   1 1   1     2   2   2   2 2 2   2     0       example_ids
      0   1 2 3   4   5 6   7     0   1 2   3     0   1   2   3 4 5   6     0       position_ids
      0                            8               12                               example_starts

An example sees itself alone, its positions count from 0, and heads of whole examples read each one's own [CLS], so that it has
the loss that it would have in a row of its own (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination";
`create_multi_sequence_example` of graphcore/examples, nlp/bert/popart, makes such rows before training, with the masked tokens
first and the [CLS]s last). Losses are means over all predictions and all examples of a batch, so nothing has to be weighted.

*Which examples share a row.* The order of an epoch, an exact shuffle, is cut into windows of about WINDOW consecutive examples.
Within one they are packed by best fit decreasing: the longest first, each into the row that it leaves least room in. Lengths
follow from offsets; tokens are read only where a kind splits a single sentence at a word. The rows of a window then come in a
random order. Every example is in one row of every epoch, and no row has examples of two epochs.

*Random access.* A window is a function of its number, so whoever knows how many examples were given knows which row is next:
that number is the state, as it is without packing, and going on costs one window.
"""

import bisect
import dataclasses
import threading
from typing import Any

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.best_fit import best_fit
from bert_jax.data.rows import IGNORED, Batch, Examples, Segments
from bert_jax.errors import BertJaxError

WINDOW = 4096  # examples: rows of Wikipedia's lengths are 99.9% full, with 1,024 99.7% (benchmarks/packing.py)
KEPT = 4  # windows in memory, unless batches span more: they ask for one after the other, two threads at once
ENDS_KEPT = 1024  # windows whose ends of rows are: of a batch that the loop has reached, while others are made ahead of it
ROW_ORDER = 254  # stream of the key of a window's first example; kinds of examples count theirs from 0


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive examples in rows.

    Attributes:
      segments, sizes: of its examples, those of a row together; int64 tokens with special ones.
      first: int64 [rows + 1], the number in the window of the first example of each row; the last is how many there are.
    """

    segments: Segments
    sizes: np.ndarray
    first: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.first) - 1


class PackedRows:
    """The rows from some example on, counted from 0.

    Args:
      examples: of a kind with ``packing``.
      given: examples before them, as :meth:`state` says; rows: rows before them.

    Raises:
      BertJaxError: no row ends there.
    """

    def __init__(self, examples: Examples, given: int = 0, rows: int = 0):
        self._examples, self._given_rows = examples, rows
        self._windows = max(1, round(examples.count / WINDOW))  # of an epoch
        self._begin = np.arange(self._windows + 1) * examples.count // self._windows
        self._kept: dict[int, Window] = {}
        self._most = KEPT
        self._firsts: dict[int, np.ndarray] = {}
        self._lock = threading.RLock()  # the loader asks from several threads
        epoch, inside = divmod(given, examples.count)
        part = int(np.searchsorted(self._begin, inside, side="right")) - 1
        self._number = epoch * self._windows + part
        skipped = inside - int(self._begin[part])
        self._ends = [0]  # rows up to the end of each window from this one on, those counted that were given before
        self._skip = 0
        if skipped:
            first = self._window(self._number).first
            self._skip = int(np.searchsorted(first, skipped))
            if first[self._skip] != skipped:
                raise BertJaxError(f"no packed row ends after {given} examples: this run was begun with other data or packing")

    def at(self, numbers: np.ndarray) -> Batch:
        """The rows with these numbers, int64 [B].

        Returns:
          The arrays of :meth:`bert_jax.data.rows.Examples.at`, those of tokens [B, L] with ``position_ids`` always, the label
          int32 [B, P], -1 where a row has fewer examples, and
          ``example_ids`` int32 [B, L]: the number in the row of the example that a token belongs to, 0 on padding;
          ``example_starts`` int32 [B, P]: where each example's [CLS] stands, 0 where a row has fewer.
        """
        places = numbers + self._skip
        self._reach(int(places.max()) + 1)
        begin, end = bisect.bisect_right(self._ends, int(places.min())) - 1, bisect.bisect_right(self._ends, int(places.max()))
        self._most = max(self._most, 2 * (end - begin + 1))
        window = begin + np.searchsorted(self._ends[begin:end], places, side="right") - 1
        batch: Batch = {}
        for number in np.unique(window).tolist():
            here = np.flatnonzero(window == number)
            part = self._rows(self._window(self._number + number), places[here] - self._ends[number])
            for name, values in part.items():
                if name not in batch:
                    batch[name] = np.empty((len(numbers), *values.shape[1:]), values.dtype)
                batch[name][here] = values
        return batch

    def state(self, rows: int) -> dict[str, Any]:
        """After the first so many rows: how many examples have been given since the very beginning, and how many rows; JSON."""
        place = rows + self._skip
        self._reach(place)
        number = bisect.bisect_right(self._ends, place) - 1
        whole, inside = self._number + number, place - self._ends[number]
        epoch, part = divmod(whole, self._windows)
        examples = epoch * self._examples.count + int(self._begin[part])
        if inside:
            examples += int(self._first(whole)[inside])
        return {"examples": examples, "rows": self._given_rows + rows}

    def count(self, limit: int | None) -> int:
        """Rows of the first epoch, or ``limit`` if they are more."""
        while len(self._ends) <= self._windows and (limit is None or self._ends[-1] < limit):
            self._reach(self._ends[-1] + 1)
        return self._ends[-1] if limit is None else min(limit, self._ends[-1])

    def _reach(self, rows: int) -> None:
        """Packs windows until there are so many rows."""
        with self._lock:
            while self._ends[-1] < rows:
                self._ends.append(self._ends[-1] + self._window(self._number + len(self._ends) - 1).rows)

    def _window(self, number: int) -> Window:
        with self._lock:
            if number not in self._kept:
                while len(self._kept) >= self._most:
                    self._kept.pop(min(self._kept))
                while len(self._firsts) >= ENDS_KEPT:
                    self._firsts.pop(min(self._firsts))
                self._kept[number] = self._packed(number)
                self._firsts[number] = self._kept[number].first
            return self._kept[number]

    def _first(self, number: int) -> np.ndarray:
        """``first`` of a window, which need not be packed again for it."""
        with self._lock:
            return self._firsts[number] if number in self._firsts else self._window(number).first

    def _packed(self, number: int) -> Window:
        epoch, part = divmod(number, self._windows)
        spec, examples = self._examples.spec, self._examples
        segments = examples.segments(np.arange(self._begin[part], self._begin[part + 1]) + epoch * examples.count)
        sizes = examples.sizes(segments)
        row_of = best_fit(sizes, spec.length, spec.packing)
        rows = int(row_of.max()) + 1
        row_of = randomness.permute(row_of, rows, randomness.bits(segments.key[:1], ROW_ORDER))
        order = np.argsort(row_of, kind="stable")
        return Window(segments.take(order), sizes[order], np.searchsorted(row_of[order], np.arange(rows + 1)))

    def _rows(self, window: Window, rows: np.ndarray) -> Batch:
        examples, spec = self._examples, self._examples.spec
        first, counts = window.first[rows], window.first[rows + 1] - window.first[rows]
        before = np.cumsum(counts) - counts
        place = np.arange(counts.sum()) - np.repeat(before, counts)  # of an example in its row
        row = np.repeat(np.arange(len(rows)), counts)
        chosen = np.repeat(first, counts) + place
        sizes = window.sizes[chosen]
        start = np.cumsum(sizes) - sizes
        start -= np.repeat(start[before], counts)

        alone = examples.assemble(window.segments.take(chosen))
        real = alone["attention_mask"]
        target = (row * spec.length + start)[:, None] + np.arange(spec.length)
        target = target[real]
        batch: Batch = {}
        for name, values in alone.items():
            if values.shape == real.shape:
                flat = np.full(len(rows) * spec.length, examples.split.pad_id if name == "input_ids" else 0, values.dtype)
                flat[target] = values[real]
                batch[name] = flat.reshape(len(rows), spec.length)
        numbers = np.zeros(len(rows) * spec.length, np.int32)
        numbers[target] = np.repeat(place, sizes)
        batch["example_ids"] = numbers.reshape(len(rows), spec.length)
        batch["example_starts"] = np.zeros((len(rows), spec.packing), np.int32)
        batch["example_starts"][row, place] = start
        if spec.label:
            batch[spec.label] = np.full((len(rows), spec.packing), IGNORED, np.int32)
            batch[spec.label][row, place] = alone[spec.label]
        return batch
