"""Batches of labelled examples: little padding, few shapes, random access.

The examples of every epoch come in a new random order. A stretch of sixteen batches of it is sorted by length, cut into
batches, and those come in random order: rows of a batch are about equally long, and a batch is padded to one of a few
lengths, for each of which the step is compiled once.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data import randomness
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

STRETCH = 16  # batches that are sorted by length together
ORDER, BATCH = range(2)  # what keys are for
IGNORED = -1


class Encoded(NamedTuple):
    """Examples ready for batches: rows of the encoder, or several rows side by side (the choices of one question).

    Attributes:
      tokens: by key, for every example an array [..., l]: ``input_ids``, ``segment_ids`` int32, and what else goes with the
        tokens. A batch pads the last axis to L: ``input_ids`` with the padding piece, what ends in ``label`` or ``labels`` with
        -1, the rest with 0. An ``attention_mask`` is made where there is none.
      rows: by key, an array [n, ...]: labels. A row that only fills a batch has -1, or NaN.
      item: int32 [n], ascending: which text each row belongs to, where a long one takes several rows; else 0, 1, 2, ...
    """

    tokens: dict[str, list[np.ndarray]]
    rows: dict[str, np.ndarray]
    item: np.ndarray

    def subset(self, chosen: np.ndarray) -> "Encoded":
        """Some examples, ascending; their items count from 0."""
        return Encoded(
            {name: [arrays[k] for k in chosen] for name, arrays in self.tokens.items()},
            {name: values[chosen] for name, values in self.rows.items()},
            np.unique(self.item[chosen], return_inverse=True)[1].astype(np.int32),
        )


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], length: int) -> Encoded:
    """Sentences and pairs as token ids with special tokens, at most ``length``. What is too long loses the end of its longer
    text, token by token; one warning line says how many were cut.

    Raises:
      BertJaxError: ``length`` leaves no room, or no texts.
    """
    if not texts:
        raise BertJaxError("there are no texts to encode")
    parts = [tokenizer.encode_batch([text[n] for text in texts]) for n in range(len(texts[0]))]
    room = length - len(tokenizer.build([], None if len(parts) == 1 else [])[0])
    if room < len(parts):
        raise BertJaxError(f"length {length} leaves no room for text beside the special tokens")
    ids, segments, cut = [], [], 0
    for row in zip(*parts, strict=True):
        sizes = [len(part) for part in row]
        if sum(sizes) > room:
            cut += 1
            sizes = [room] if len(row) == 1 else _longest_first(*sizes, room)
        built = tokenizer.build(*(part[:size] for part, size in zip(row, sizes, strict=True)))
        ids.append(built[0])
        segments.append(built[1])
    if cut:
        logger.warning("%d of %d examples have more than %d tokens: the ends of their texts were cut", cut, len(ids), length)
    return Encoded({"input_ids": ids, "segment_ids": segments}, {}, np.arange(len(ids), dtype=np.int32))


def _longest_first(first: int, second: int, room: int) -> list[int]:
    """What is left of two lengths after tokens were taken from the longer one, from the second where they are equal."""
    shorter = min(first, second)
    if room - shorter <= shorter:
        return [room - room // 2, room // 2]
    return [room - shorter, shorter] if first > second else [shorter, room - shorter]


class _Batches:
    def __init__(self, data: Encoded, lengths: tuple[int, ...], batch_size: int, rows: np.ndarray | None, pad_id: int):
        self.data, self.batch_size, self.pad_id = data, batch_size, pad_id
        self.sizes = np.array([ids.shape[-1] for ids in data.tokens["input_ids"]])
        self.lengths = np.array(sorted(lengths))
        self.rows = np.arange(batch_size) if rows is None else rows

    def make(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The wanted rows of the batch of the examples ``chosen`` (int64 [B]; -1: an empty row)."""
        longest = int(self.sizes[chosen[chosen >= 0]].max())
        length = int(self.lengths[np.searchsorted(self.lengths, longest)])
        mine = chosen[self.rows]
        real = np.flatnonzero(mine >= 0)
        batch = {"example": mine.astype(np.int32)}
        for name, arrays in self.data.tokens.items():
            fill = self.pad_id if name == "input_ids" else IGNORED if name.endswith(("label", "labels")) else 0
            batch[name] = np.full((len(mine), *arrays[0].shape[:-1], length), fill, arrays[0].dtype)
            for row in real:
                batch[name][row, ..., : self.sizes[mine[row]]] = arrays[mine[row]]
        if "attention_mask" not in batch:
            places = np.arange(length) < np.where(mine >= 0, self.sizes[mine], 0)[:, None]
            middle = batch["input_ids"].ndim - 2
            batch["attention_mask"] = np.broadcast_to(
                places.reshape(len(mine), *(1,) * middle, length), batch["input_ids"].shape
            ).copy()
        for name, values in self.data.rows.items():
            empty = IGNORED if values.dtype.kind == "i" else np.nan
            batch[name] = np.full((len(mine), *values.shape[1:]), empty, values.dtype)
            batch[name][real] = values[mine[real]]
        return batch


class TrainBatches(_Batches):
    """An endless iterator of batches; :class:`bert_jax.task.Examples`. The state counts examples; with another batch size the
    stretches differ, so that some examples of the current one may come again.

    Attributes:
      epoch: examples in one epoch.
    """

    def __init__(
        self, data: Encoded, lengths: tuple[int, ...], batch_size: int, rows: np.ndarray | None, pad_id: int, seed: int
    ):
        super().__init__(data, lengths, batch_size, rows, pad_id)
        self.epoch, self._seed, self._given = len(data.item), seed, 0

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        stretch, place = divmod(self._given // self.batch_size, STRETCH)
        first = stretch * STRETCH * self.batch_size
        positions = np.arange(first, first + STRETCH * self.batch_size)
        epoch = positions // self.epoch
        examples = randomness.permute(positions % self.epoch, self.epoch, randomness.key(self._seed, ORDER, epoch))
        by_length = examples[np.argsort(self.sizes[examples], kind="stable")].reshape(STRETCH, -1)
        order = randomness.permute(np.arange(STRETCH), STRETCH, randomness.key(self._seed, BATCH, stretch))
        batch = self.make(by_length[order[place]])
        self._given += self.batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"examples": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        self._given = state["examples"] // self.batch_size * self.batch_size


class EvalBatches(_Batches):
    """Every example once, by length; the last batch is filled with empty rows. ``order`` int64 [n] says which examples come,
    one after another."""

    def __init__(
        self, data: Encoded, lengths: tuple[int, ...], batch_size: int, rows: np.ndarray | None, pad_id: int, limit: int | None
    ):
        super().__init__(data, lengths, batch_size, rows, pad_id)
        order = np.arange(len(data.item))
        if limit is not None and limit * batch_size < len(order):  # whole items, some of each length, always the same
            items = int(data.item[-1]) + 1
            place = np.empty(items, int)
            place[randomness.permute(np.arange(items), items, randomness.key(0))] = np.arange(items)
            counts = np.cumsum(np.bincount(place[data.item], minlength=items))
            order = order[place[data.item] < max(1, np.searchsorted(counts, limit * batch_size, side="right"))]
        self.order = order[np.argsort(self.sizes[order], kind="stable")]

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for k in range(len(self)):
            chosen = self.order[k * self.batch_size : (k + 1) * self.batch_size]
            yield self.make(np.pad(chosen, (0, self.batch_size - len(chosen)), constant_values=-1))
