"""Batches of pairs through Grain: prefetched, sharded over processes, resumable.

A whole batch is one element of a `grain.MapDataset`. With one record an element, Python and Grain spend a millisecond
on each (1,000 sequences/s); a batch of 256 at a time NumPy makes about 100,000 of 128 tokens (`benchmarks/loader.py`).
Batch k is a pure function of (seed, k), so the state of an iterator is one number, and resuming costs nothing.

Grain imports jax, which is why this is the one module of `bert_jax.data` that has to be imported by its name.
"""

import grain
import numpy as np

from bert_jax.data.pairs import IGNORED, LABELS, Batch, PairBatches, PairSpec
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

ENDLESS = 1 << 40  # batches: Grain wants a length, training ends before
HELDOUT_SEED = 12345  # google-research/bert's own default seed

# NumPy releases the interpreter lock for large copies only: a second thread gains little (1,024 rows: a quarter), more
# threads nothing. What matters is that batches are made while the device computes.
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class _TrainBatches:
    """Rows `first` to `last` of the global batches, as a random-access source."""

    def __init__(self, pairs: PairBatches, batch_size: int, first: int, last: int):
        self.pairs = pairs
        self.batch_size = batch_size
        self.rows = np.arange(first, last, dtype=np.int64)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> Batch:
        return self.pairs.at(int(k) * self.batch_size + self.rows)


class HeldoutBatches:
    """The same over the first `count` examples of one epoch; rows beyond them are empty. Iterating prefetches."""

    def __init__(self, pairs: PairBatches, batch_size: int, first: int, last: int, count: int):
        self.pairs = pairs
        self.batch_size = batch_size
        self.rows = np.arange(first, last, dtype=np.int64)
        self.count = count

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> grain.DatasetIterator:
        return iter(grain.MapDataset.source(self).to_iter_dataset(READ))

    def __getitem__(self, k: int) -> Batch:
        positions = int(k) * self.batch_size + self.rows
        real = positions < self.count
        batch = self.pairs.at(np.where(real, positions, 0))
        if not real.all():
            _make_empty(batch, ~real, self.pairs)
        return batch


def train_batches(
    split: Split, spec: PairSpec, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Training batches without end, one exact shuffle of all examples after another.

    Args:
      batch_size: B of the whole job; of global batch k, process p yields rows p * B / n to (p + 1) * B / n, and the
        global batch does not depend on n.
      seed: with k, it decides everything.
      process_index, process_count: p and n, as in `jax.process_index()`.

    Returns:
      An iterator of the dictionaries of `PairBatches.at`. `get_state()` gives JSON, `set_state` goes on from
      there in constant time; the state does not depend on the process.

    Raises:
      BertJaxError: a batch size that processes cannot share evenly, or too few documents.
    """
    first, last = _rows(batch_size, process_index, process_count)
    source = _TrainBatches(PairBatches(split, spec, seed=seed), batch_size, first, last)
    return iter(grain.MapDataset.source(source).to_iter_dataset(READ))


def heldout_batches(
    split: Split,
    spec: PairSpec,
    *,
    batch_size: int,
    seed: int = HELDOUT_SEED,
    limit: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> HeldoutBatches:
    """One pass over a split, the same every time: all of its examples, or `limit` of them chosen by the shuffle.

    Every batch has the same shape; rows beyond the last example are padding, with ``attention_mask`` False everywhere
    and label -1. Otherwise as `train_batches`.
    """
    if limit is not None and limit < 1:
        raise BertJaxError(f"limit={limit}: at least one example is needed, or None for all")
    first, last = _rows(batch_size, process_index, process_count)
    pairs = PairBatches(split, spec, seed=seed)
    count = pairs.count if limit is None else min(limit, pairs.count)
    return HeldoutBatches(pairs, batch_size, first, last, count)


def _rows(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    if batch_size < 1 or batch_size % process_count:
        raise BertJaxError(f"batch_size={batch_size}: a positive multiple of the {process_count} processes is needed")
    if not 0 <= process_index < process_count:
        raise BertJaxError(f"process_index={process_index}: there are {process_count} processes, counted from 0")
    share = batch_size // process_count
    return process_index * share, (process_index + 1) * share


def _make_empty(batch: Batch, rows: np.ndarray, pairs: PairBatches) -> None:
    batch["input_ids"][rows] = pairs.split.pad_id
    batch["segment_ids"][rows] = 0
    batch["attention_mask"][rows] = False
    batch["word_starts"][rows] = False
    if pairs.spec.pairs in LABELS:
        batch[LABELS[pairs.spec.pairs]][rows] = IGNORED
