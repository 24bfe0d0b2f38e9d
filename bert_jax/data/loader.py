"""Batches of examples through Grain: prefetched, shared between processes, resumable.

A whole batch is one element of a `grain.MapDataset`. With one record an element, Python and Grain spend a millisecond
on each (1,000 sequences/s); a batch of 256 at a time NumPy makes more than 100,000 of 128 tokens (`benchmarks/loader.py`).
Example i is a pure function of (seed, i), so the state of an iterator is one number, the examples it has given, and resuming
costs nothing. That number means the same with any number of processes and any batch size. Where examples are packed,
:mod:`bert_jax.data.packing` says which share a row; the state is the same number still.

Grain imports jax, which `bert_jax.data` does not, and is imported where the first batch is read.
"""

from collections.abc import Collection, Iterator

import numpy as np

from bert_jax.data.examples import AnyExamples
from bert_jax.data.packing import PackedRows
from bert_jax.data.rows import IGNORED, Batch, Examples
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

ENDLESS = 1 << 40  # batches: Grain wants a length, training ends before
HELDOUT_SEED = 12345  # google-research/bert's own default seed


class _Rows:
    """The rows from example `given` on, each an example; as :class:`bert_jax.data.packing.PackedRows` has those of several."""

    def __init__(self, examples: Examples, given: int = 0):
        self._examples, self._given = examples, given

    def at(self, numbers: np.ndarray) -> Batch:
        return self._examples.at(self._given + numbers)

    def state(self, rows: int) -> dict[str, int]:
        return {"examples": self._given + rows}

    def count(self, limit: int | None) -> int:
        return self._examples.count if limit is None else min(limit, self._examples.count)


def _rows_of(examples: Examples, state: dict[str, int]) -> _Rows | PackedRows:
    """What comes after ``state``."""
    given = state.get("examples", 0)
    return PackedRows(examples, given, state.get("rows", 0)) if examples.spec.packing else _Rows(examples, given)


class _Batches:
    """The `rows` of global batches, as a random-access source."""

    def __init__(self, source: _Rows | PackedRows, batch_size: int, rows: np.ndarray):
        self.source, self.batch_size, self.rows = source, batch_size, rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> Batch:
        return self.source.at(int(k) * self.batch_size + self.rows)


def _read(source: "_Batches | HeldoutBatches") -> Iterator[Batch]:
    """The batches of a source in their order, made before they are asked for."""
    import grain  # here: who makes a training step for a plan or a benchmark reads no batch, and needs none of it

    # NumPy releases the interpreter lock for large copies only: a second thread gains little (1,024 rows: a quarter), more
    # threads nothing. What matters is that batches are made while the device computes.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


class TrainBatches:
    """An endless iterator of dictionaries, see `Examples.at` and `PackedRows.at`.

    Attributes:
      epoch: examples in one epoch.
    """

    def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray):
        self.epoch = examples.count
        self._examples = examples
        self._batch_size = batch_size
        self._rows = rows
        self._begin({})

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._given += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """How many examples of the global order were given, by all processes together, and where they are packed in how many
        rows; JSON."""
        return self._source.state(self._given)

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from there, in constant time. The batch size may have changed since: the next example is the next one."""
        if "examples" not in state:
            raise BertJaxError("this run was begun by an older version of bert_jax, which counted batches: begin a new one")
        self._begin(state)

    def _begin(self, state: dict[str, int]) -> None:
        self._source, self._given = _rows_of(self._examples, state), 0
        self._batches = _read(_Batches(self._source, self._batch_size, self._rows))


class HeldoutBatches:
    """The first rows of one epoch, at most `limit`; rows beyond them are empty. Iterating prefetches."""

    def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray, limit: int | None):
        self.examples = examples
        self.source = _rows_of(examples, {})
        self.batch_size = batch_size
        self.rows = rows
        self.count = self.source.count(limit)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return _read(self)

    def __getitem__(self, k: int) -> Batch:
        positions = int(k) * self.batch_size + self.rows
        real = positions < self.count
        batch = self.source.at(np.where(real, positions, 0))
        if not real.all():
            _make_empty(batch, ~real, self.examples)
        return batch


def train_batches(
    split: Split, spec: AnyExamples, *, batch_size: int, seed: int, columns: Collection[str] = (),
    rows: np.ndarray | None = None,
) -> TrainBatches:
    """Training batches without end, one exact shuffle of all examples after another.

    Args:
      batch_size: B, rows of the whole job; global batch k begins at row k * B.
      seed: with an example's position, it decides everything.
      columns: keys that are wanted beyond those that every batch has.
      rows: int, ascending: which of the B rows this process wants, None for all. Neither the global batches nor the state
        depend on it.

    Raises:
      BertJaxError: rows that no batch has, or too few documents.
    """
    return TrainBatches(spec.open(split, seed=seed, columns=columns), batch_size, _rows(batch_size, rows))


def heldout_batches(
    split: Split,
    spec: AnyExamples,
    *,
    batch_size: int,
    seed: int = HELDOUT_SEED,
    columns: Collection[str] = (),
    limit: int | None = None,
    rows: np.ndarray | None = None,
) -> HeldoutBatches:
    """One epoch of a split, the same every time: all of its examples (with a ``language_exponent`` as many, in those shares),
    or `limit` of them (of their rows, where they are packed) chosen by the shuffle.

    Every batch has the same shape; rows beyond the last example are padding, with ``attention_mask`` False everywhere
    and label -1. Otherwise as `train_batches`.
    """
    if limit is not None and limit < 1:
        raise BertJaxError(f"limit={limit}: at least one example is needed, or None for all")
    examples = spec.open(split, seed=seed, columns=columns)
    return HeldoutBatches(examples, batch_size, _rows(batch_size, rows), limit)


def _rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    if batch_size < 1:
        raise BertJaxError(f"batch_size={batch_size}: at least 1 is needed")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if not len(rows) or rows.min() < 0 or rows.max() >= batch_size:
        raise BertJaxError(f"rows {rows.tolist()}: a batch has rows 0 to {batch_size - 1}")
    return rows.astype(np.int64)


def _make_empty(batch: Batch, rows: np.ndarray, examples: Examples) -> None:
    for name, values in batch.items():
        nothing = IGNORED if name.endswith("_label") or name == "context_ids" else 0
        values[rows] = examples.split.pad_id if name == "input_ids" else nothing
