"""Batches of examples through Grain: prefetched, shared between processes, resumable.

A whole batch is one element of a `grain.MapDataset`. With one record an element, Python and Grain spend a millisecond
on each (1,000 sequences/s); a batch of 256 at a time NumPy makes about 100,000 of 128 tokens (`benchmarks/loader.py`).
Example i is a pure function of (seed, i), so the state of an iterator is one number, the examples it has given, and resuming
costs nothing. That number means the same with any number of processes and any batch size.

Grain imports jax, which is why this is the one module of `bert_jax.data` that has to be imported by its name.
"""

from collections.abc import Collection

import grain
import numpy as np

from bert_jax.data.examples import AnyExamples
from bert_jax.data.rows import IGNORED, Batch, Examples
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

ENDLESS = 1 << 40  # batches: Grain wants a length, training ends before
HELDOUT_SEED = 12345  # google-research/bert's own default seed

# NumPy releases the interpreter lock for large copies only: a second thread gains little (1,024 rows: a quarter), more
# threads nothing. What matters is that batches are made while the device computes.
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class _Batches:
    """The `rows` of global batches that begin at example `start`, as a random-access source."""

    def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray, start: int):
        self.examples = examples
        self.batch_size = batch_size
        self.positions = start + rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> Batch:
        return self.examples.at(int(k) * self.batch_size + self.positions)


class TrainBatches:
    """An endless iterator of dictionaries, see `Examples.at`.

    Attributes:
      epoch: examples in one epoch.
    """

    def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray):
        self.epoch = examples.count
        self._source = examples
        self._batch_size = batch_size
        self._rows = rows
        self._begin(0)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._examples += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """How many examples of the global order were given, by all processes together; JSON."""
        return {"examples": self._examples}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from there, in constant time. The batch size may have changed since: the next example is the next one."""
        if "examples" not in state:
            raise BertJaxError("this run was begun by an older version of bert_jax, which counted batches: begin a new one")
        self._begin(state["examples"])

    def _begin(self, examples: int) -> None:
        self._examples = examples
        source = _Batches(self._source, self._batch_size, self._rows, examples)
        self._batches = iter(grain.MapDataset.source(source).to_iter_dataset(READ))


class HeldoutBatches:
    """The first `count` examples of one epoch; rows beyond them are empty. Iterating prefetches."""

    def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray, count: int):
        self.examples = examples
        self.batch_size = batch_size
        self.rows = rows
        self.count = count

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> grain.DatasetIterator:
        return iter(grain.MapDataset.source(self).to_iter_dataset(READ))

    def __getitem__(self, k: int) -> Batch:
        positions = int(k) * self.batch_size + self.rows
        real = positions < self.count
        batch = self.examples.at(np.where(real, positions, 0))
        if not real.all():
            _make_empty(batch, ~real, self.examples)
        return batch


def train_batches(
    split: Split, spec: AnyExamples, *, batch_size: int, seed: int, columns: Collection[str] = (),
    rows: np.ndarray | None = None,
) -> TrainBatches:
    """Training batches without end, one exact shuffle of all examples after another.

    Args:
      batch_size: B of the whole job; global batch k begins at example k * B.
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
    or `limit` of them chosen by the shuffle.

    Every batch has the same shape; rows beyond the last example are padding, with ``attention_mask`` False everywhere
    and label -1. Otherwise as `train_batches`.
    """
    if limit is not None and limit < 1:
        raise BertJaxError(f"limit={limit}: at least one example is needed, or None for all")
    examples = spec.open(split, seed=seed, columns=columns)
    count = examples.count if limit is None else min(limit, examples.count)
    return HeldoutBatches(examples, batch_size, _rows(batch_size, rows), count)


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
