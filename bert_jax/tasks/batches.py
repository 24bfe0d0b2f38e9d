"""Batches of labelled examples: little padding, few shapes, random access.

The examples of every epoch come in a new random order. A stretch of it, up to sixty-four batches, is sorted by length, cut
into batches, and those come in random order: rows of a batch are about equally long, and a batch is padded to one of a few
lengths, for each of which the step is compiled once. transformers cuts stretches of fifty batches
(``get_length_grouped_indices``), a quarter of an epoch at most, and leaves their batches in order: its epochs are sweeps from
long to short.

Which examples a batch has is the seed's matter. How long the batches are that follow each other is the same for every seed, or
nearly so: seeds share what is compiled, and train side by side (:mod:`bert_jax.training.together`).
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bert_jax.data import randomness
from bert_jax.errors import BertJaxError
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

STRETCH = 64  # batches that are sorted by length together, at most; and an epoch has
STRETCHES = 4  # at least
PADDING = 0.09  # share of positions that lengths are chosen for: a little below a tenth, as no two epochs are alike
NEAR = 0.01  # of positions: what more is as good as nothing where that cannot be reached
PLANNED = 512  # batches, at least, whose longest examples decide on the lengths
ORDER, BATCH = range(2)  # what keys are for
EVERY_SEED = 0  # of what seeds have in common
IGNORED = -1

Keep = Literal["start", "end", "both"]


class WrongText(BertJaxError):
    """What is wrong with one of several texts. row: its number from 0. problem: what is said of it, without the number."""

    def __init__(self, row: int, problem: str):
        super().__init__(f"row {row + 1}: {problem}")
        self.row, self.problem = row, problem


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

    def digest(self) -> str:
        """Of all its arrays: the same where batches are."""
        found = hashlib.blake2b(digest_size=16)
        whole = {name: [array] for name, array in {**self.rows, "item": self.item}.items()}
        for name, arrays in [*self.tokens.items(), *whole.items()]:
            found.update(name.encode())
            for array in arrays:
                found.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
        return found.hexdigest()

    def subset(self, chosen: np.ndarray) -> "Encoded":
        """Some examples, ascending; their items count from 0."""
        return Encoded(
            {name: [arrays[k] for k in chosen] for name, arrays in self.tokens.items()},
            {name: values[chosen] for name, values in self.rows.items()},
            np.unique(self.item[chosen], return_inverse=True)[1].astype(np.int32),
        )


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], length: int, keep: Keep = "start") -> Encoded:
    """Sentences and pairs as token ids with special tokens, at most ``length``. Special pieces that stand in a text have their
    own ids, as in transformers. Of what is too long the longer text is cut, token by token; one warning line says how many were
    cut.

    Args:
      keep: which tokens of a text that is cut remain: those at its start, at its end, or the first quarter of as many as there
        is room for and the rest from the end, 128 and 382 of 510 (head+tail of Sun et al. 2019).

    Raises:
      BertJaxError: ``length`` leaves no room, or no texts; a :class:`WrongText`: the tokenizer keeps nothing of one.
    """
    if not texts:
        raise BertJaxError("there are no texts to encode")
    parts = [tokenizer.encode_batch([text[n] for text in texts], special=True) for n in range(len(texts[0]))]
    room = length - len(tokenizer.build([], None if len(parts) == 1 else [])[0])
    if room < len(parts):
        raise BertJaxError(f"length {length} leaves no room for text beside the special tokens")
    ids, segments, cut = [], [], 0
    for number, row in enumerate(zip(*parts, strict=True)):
        sizes = [len(part) for part in row]
        if not all(sizes):
            wrong = "the text" if len(row) == 1 else "a text of it"
            raise WrongText(number, f"{wrong} has no character that the tokenizer keeps")
        if sum(sizes) > room:
            cut += 1
            sizes = [room] if len(row) == 1 else _longest_first(*sizes, room)
        built = tokenizer.build(*(_kept(part, size, keep) for part, size in zip(row, sizes, strict=True)))
        ids.append(built[0])
        segments.append(built[1])
    if cut:
        lost = {"start": "ends", "end": "beginnings", "both": "middles"}[keep]
        counts = cut, len(ids), length
        logger.warning("%d of %d examples have more than %d tokens: the %s of their texts were cut", *counts, lost)
    return Encoded({"input_ids": ids, "segment_ids": segments}, {}, np.arange(len(ids), dtype=np.int32))


def _longest_first(first: int, second: int, room: int) -> list[int]:
    """What is left of two lengths after tokens were taken from the longer one, from the second where they are equal."""
    shorter = min(first, second)
    if room - shorter <= shorter:
        return [room - room // 2, room // 2]
    return [room - shorter, shorter] if first > second else [shorter, room - shorter]


def _kept(ids: np.ndarray, size: int, keep: Keep) -> np.ndarray:
    head = {"start": size, "end": 0, "both": -(-size // 4)}[keep]
    return ids if len(ids) <= size else np.concatenate([ids[:head], ids[len(ids) - (size - head) :]])


def optimal_lengths(longest: np.ndarray, most: int) -> list[tuple[int, ...]]:
    """For one length, two, ... up to ``most`` (or as many as differ) those that pad batches least.

    By dynamic programming over the lengths that occur: the best n for the batches up to some length are the best n - 1 up to a
    shorter one, and that length for those between.

    Args:
      longest: int64 [m], the longest example of each batch.
    """
    values, counts = np.unique(longest, return_counts=True)
    before = np.append(0, counts.cumsum())
    between = (before[1:] - before[:-1, None]) * values.astype(float)  # [i, j]: what batches of lengths i to j take at length j
    between[np.tril_indices(len(values), -1)] = np.inf
    cost, begins, found = np.append(0.0, np.full(len(values), np.inf)), [], []
    for _ in range(min(most, len(values))):
        whole = cost[:-1, None] + between
        begins.append(whole.argmin(axis=0))
        cost = np.append(np.inf, whole.min(axis=0))
        lengths, last = [], len(values) - 1
        for begin in reversed(begins):
            lengths.append(int(values[last]))
            last = begin[last] - 1
        found.append(tuple(reversed(lengths)))
    return found


def choose_lengths(longest: np.ndarray, tokens: float, limit: int, shapes: int) -> tuple[int, ...]:
    """The fewest lengths, ascending, with which padding is at most ``PADDING`` of all positions: of multiples of 8, on which
    accelerators lay out arrays, or else of 4, of 2, or any. Where ``shapes`` of them do not reach that, the best that do not;
    where no lengths would, since the examples of a batch differ, the fewest that come near padding each to its longest one.

    Args:
      longest: int64 [m], the longest example of each batch. tokens: of one row of each batch, on average, in all.
      limit: the longest that may be.
    """
    lengths: tuple[int, ...] = ()
    least = 1 - tokens / np.minimum(longest, limit).sum()
    enough = PADDING if least <= PADDING else least + NEAR
    for multiple in (8, 4, 2, 1):
        rounded = np.minimum(-(-longest // multiple) * multiple, limit)
        for lengths in optimal_lengths(rounded, shapes):
            padding = 1 - tokens / np.array(lengths)[np.searchsorted(lengths, rounded)].sum()
            if padding <= enough:
                return lengths
    return lengths


def filling(name: str, pad_id: int) -> int:
    """What an array over tokens has where there is none."""
    return pad_id if name == "input_ids" else IGNORED if name.endswith(("label", "labels")) else 0


class _Batches:
    def __init__(self, data: Encoded, lengths: tuple[int, ...], batch_size: int, rows: np.ndarray | None, pad_id: int):
        self.data, self.batch_size, self.pad_id = data, batch_size, pad_id
        ids, masks = data.tokens["input_ids"], data.tokens.get("attention_mask")
        self.sizes = np.array([one.shape[-1] for one in ids])
        self.tokens = np.array([one.size for one in ids] if masks is None else [int(mask.sum()) for mask in masks])
        self.lengths = np.array(sorted(lengths))
        self._across = batch_size * int(np.prod(ids[0].shape[:-1]))  # rows of the encoder in a batch
        self.positions = float(self._across * self.lengths[-1])
        self.rows = np.arange(batch_size) if rows is None else rows

    @property
    def padding(self) -> float:
        """Share of the ``positions``."""
        return 1 - self.batch_size * float(self.tokens.mean()) / self.positions

    def choose(self, batches: np.ndarray, shapes: int) -> None:
        """Replaces the longest length by up to ``shapes`` that suit ``batches``, int64 [m, B] of examples (-1: none)."""
        longest, tokens = (np.where(batches >= 0, of[batches], 0) for of in (self.sizes, self.tokens))
        longest = longest.max(axis=1)
        self.lengths = np.array(choose_lengths(longest, tokens.sum() / self._across, self.lengths[-1], shapes))
        self.positions = self._across * float(self.lengths[np.searchsorted(self.lengths, longest)].mean())

    def length_of(self, chosen: np.ndarray) -> int:
        """To which a batch of the examples ``chosen`` (int64 [B]; -1: an empty row) is padded."""
        longest = int(self.sizes[chosen[chosen >= 0]].max())
        return int(self.lengths[np.searchsorted(self.lengths, longest)])

    def make(self, chosen: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The wanted rows of the batch of the examples ``chosen`` (int64 [B]; -1: an empty row), padded to ``length``."""
        mine = chosen[self.rows]
        real = np.flatnonzero(mine >= 0)
        batch = {"example": mine.astype(np.int32)}
        for name, arrays in self.data.tokens.items():
            batch[name] = np.full((len(mine), *arrays[0].shape[:-1], length), filling(name, self.pad_id), arrays[0].dtype)
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
    """An endless iterator of batches; :class:`bert_jax.task.Examples`. The state counts examples of one seed; with another
    batch size the stretches differ, so that some examples of the current one may come again.

    Attributes:
      epoch: examples in one epoch. lengths: to which batches are padded, ascending. positions: of a batch, with its padding,
        on average as planned; of lengths that were given, at most.
    """

    def __init__(
        self, data: Encoded, lengths: tuple[int, ...], batch_size: int, rows: np.ndarray | None, pad_id: int,
        seed: int | tuple[int, ...], shapes: int = 1, group_by_length: bool = True,
    ):
        """Args:
          group_by_length: whether a stretch of the order is sorted before it is cut into batches; else these are at random.
          seed: of the order. Several: the batches of each side by side, [S, B, ...], padded to one length.
          shapes: above 1, where ``lengths`` is one alone, at most so many up to it are chosen from the data.
        """
        super().__init__(data, lengths, batch_size, rows, pad_id)
        self.epoch, self._seed, self._given = len(data.item), seed, 0
        self._cut_last: dict[int, tuple[int, np.ndarray]] = {}  # by seed: a stretch, and its batches
        self._stretch = min(STRETCH, max(1, self.epoch // (STRETCHES * batch_size))) if group_by_length else 1
        if shapes > 1 and len(lengths) == 1:
            self.choose(self._planned(max(-(-self.epoch // batch_size), PLANNED)), shapes)

    def _planned(self, batches: int) -> np.ndarray:
        """int64 [m, B]: the first stretches of an order, with at least so many ``batches``."""
        return np.concatenate([self._batches_of(k, EVERY_SEED) for k in range(-(-batches // self._stretch))])

    def _batches_of(self, stretch: int, seed: int) -> np.ndarray:
        """int64 [batches, B]: the examples of each batch of a stretch."""
        first = stretch * self._stretch * self.batch_size
        positions = np.arange(first, first + self._stretch * self.batch_size)
        epoch = positions // self.epoch
        examples = randomness.permute(positions % self.epoch, self.epoch, randomness.key(seed, ORDER, epoch))
        return self._cut(examples[np.argsort(self.sizes[examples], kind="stable")])

    def _batches_now(self, stretch: int, seed: int) -> np.ndarray:
        """The same; those of the last stretch are kept."""
        if self._cut_last.get(seed, (None,))[0] != stretch:
            self._cut_last[seed] = stretch, self._batches_of(stretch, seed)
        return self._cut_last[seed][1]

    def _cut(self, examples: np.ndarray) -> np.ndarray:
        """The batches of examples that are sorted by length."""
        return examples.reshape(self._stretch, -1)

    def _made(self, chosen: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The batches of examples ``chosen`` by each seed, of one shape."""
        length = self.length_of(np.concatenate(chosen))
        return [self.make(one, length) for one in chosen]

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        stretch, place = divmod(self._given // self.batch_size, self._stretch)
        order = randomness.permute(np.arange(self._stretch), self._stretch, randomness.key(EVERY_SEED, BATCH, stretch))
        seeds = self._seed if isinstance(self._seed, tuple) else (self._seed,)
        batches = self._made([self._batches_now(stretch, seed)[order[place]] for seed in seeds])
        self._given += self.batch_size
        if not isinstance(self._seed, tuple):
            return batches[0]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    def get_state(self) -> dict[str, Any]:
        return {"examples": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        self._given = state["examples"] // self.batch_size * self.batch_size


class EvalBatches(_Batches):
    """Every example once, by length; the first batch, the shortest, is filled with empty rows. ``order`` int64 [n] says which
    examples come, one after another."""

    def __init__(
        self, data: Encoded, lengths: tuple[int, ...], batch_size: int, rows: np.ndarray | None, pad_id: int,
        limit: int | None, shapes: int = 1,
    ):
        """``shapes``: as for training, but only one for every four batches: to compile a step costs as much as several."""
        super().__init__(data, lengths, batch_size, rows, pad_id)
        order = np.arange(len(data.item))
        if limit is not None and limit * batch_size < len(order):  # whole items, some of each length, always the same
            items = int(data.item[-1]) + 1
            place = np.empty(items, int)
            place[randomness.permute(np.arange(items), items, randomness.key(0))] = np.arange(items)
            counts = np.cumsum(np.bincount(place[data.item], minlength=items))
            order = order[place[data.item] < max(1, np.searchsorted(counts, limit * batch_size, side="right"))]
        self.order = order[np.argsort(self.sizes[order], kind="stable")]
        empty = -len(order) % batch_size
        filled = np.insert(self.order, np.full(empty, batch_size - empty if empty else 0), -1)
        self._batches = filled.reshape(-1, batch_size)
        if shapes > 1 and len(lengths) == 1:
            self.choose(self._batches, min(shapes, -(-len(self._batches) // 4)))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self.make(chosen, self.length_of(chosen)) for chosen in self._batches)
