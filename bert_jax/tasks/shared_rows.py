"""Batches for training in which several short examples share a row: hardly any padding, and one or two shapes to compile.

A stretch of the random order (:mod:`bert_jax.tasks.batches`) is dealt out to its batches instead of cut: the longest examples
first, each time the next ones to the batches with the fewest tokens. So every batch has short and long examples, and all have
about the same number of tokens, which fill the same number of rows. Rows are those of :mod:`bert_jax.data.packing`: an
example sees itself alone, its positions count from 0, heads of whole examples read each one's own [CLS], and those of tokens
read all as ever.
"""

from typing import NamedTuple

import numpy as np

from bert_jax.data.best_fit import best_fit
from bert_jax.tasks.batches import IGNORED, PLANNED, Encoded, TrainBatches

STEP = 8  # row lengths are multiples of it
EXAMPLES = 16_384  # that the shape is chosen for
SHORTEST, LONGEST = 64, 256  # rows, unless an example is longer: in longer ones attention would cost more than padding does
SECOND = 0.05  # share of the positions that a second shape must save
WORTH = 1.1  # positions for each one by length: what one shape is worth, where each length has to be compiled


def batches_for_training(
    data: Encoded, batch_size: int, rows: np.ndarray | None, pad_id: int, seed: int | tuple[int, ...], length: int, shapes: int,
    multiple: int = 1,
) -> TrainBatches:
    """Shared rows, or where most examples are too long for two of them to share one, and padding would be more than with up
    to ``shapes`` lengths, those: so it is for reactions of 114 to 246 tokens."""
    shared = SharedRows(data, batch_size, rows, pad_id, seed, multiple)
    by_length = TrainBatches(data, (length,), batch_size, rows, pad_id, seed, shapes)
    return shared if shared.positions <= WORTH * by_length.positions else by_length


class Shape(NamedTuple):
    """R rows of L tokens with at most P examples each."""

    rows: int
    length: int
    most: int


def deal(sizes: np.ndarray, batches: int) -> np.ndarray:
    """Which of the n examples each batch has, int64 [batches, n / batches], so that all have about as many tokens.

    Args:
      sizes: int64 [n], tokens of each example, ascending; n is a multiple of ``batches``.
    """
    rounds = np.arange(len(sizes))[::-1].reshape(-1, batches)  # the longest first
    tokens, dealt = np.zeros(batches, np.int64), np.empty((batches, len(rounds)), np.int64)
    for number, examples in enumerate(rounds):
        poorest = np.argsort(tokens, kind="stable")
        dealt[poorest, number] = examples
        tokens[poorest] += sizes[examples]
    return dealt


def choose_shape(sizes: np.ndarray, longest: int, multiple: int = 1) -> tuple[Shape, float]:
    """The shape with the fewest positions in which every batch finds room, and these; of equal ones that with the shortest
    rows. Or where that saves more than ``SECOND`` of them, one in which most batches do: the others have ``multiple`` rows
    more, for which the step is compiled a second time, and the positions are those of an average batch.

    Args:
      sizes: int64 [m, B], tokens of the examples of each batch. longest: what any example may have. multiple: of the rows.
    """
    begin = max(SHORTEST, -(-longest // STEP) * STEP)
    one, two = [], []
    for length in range(begin, max(begin, LONGEST) + 1, STEP):
        held = [np.bincount(best_fit(batch, length, len(batch))) for batch in sizes]  # examples in each row of each batch
        needed = -(-np.array([len(rows) for rows in held]) // multiple) * multiple
        rows, most = int(needed.max()), max(int(counts.max()) for counts in held)
        one.append((float(rows * length), Shape(rows, length, most)))
        if rows > multiple:
            positions = length * float(np.maximum(needed, rows - multiple).mean())
            two.append((positions, Shape(rows - multiple, length, most)))

    def best(found: list[tuple[float, Shape]]) -> tuple[Shape, float]:
        positions, shape = min(found, key=lambda pair: (pair[0], pair[1].length))
        return shape, positions

    single = best(one)
    return best(two) if two and best(two)[1] < (1 - SECOND) * single[1] else single


class SharedRows(TrainBatches):
    """As :class:`TrainBatches`, with ``example`` and what else an example has [R, P] (-1, or NaN, where a row has fewer),
    tokens [R, L], ``position_ids``, ``example_ids`` int32 [R, L] and ``example_starts`` int32 [R, P].

    Attributes:
      shape: of most batches, see :func:`choose_shape`. One that needs more rows has them, and a step is compiled for it.
    """

    def __init__(
        self, data: Encoded, batch_size: int, rows: np.ndarray | None, pad_id: int, seed: int | tuple[int, ...],
        multiple: int = 1,
    ):
        """``multiple``: into how many equal parts rows can be split; ``rows`` of batches in which each example has its own are
        whole parts of them."""
        longest = max(ids.shape[-1] for ids in data.tokens["input_ids"])
        super().__init__(data, (longest,), batch_size, rows, pad_id, seed)
        self._multiple = multiple
        self._parts = np.unique(self.rows // (batch_size // multiple))
        planned = min(PLANNED, -(-EXAMPLES // batch_size))  # of large batches few are enough: they differ less
        self.shape, self.positions = choose_shape(self.sizes[self._planned(planned)[:planned]], longest, multiple)

    def _cut(self, examples: np.ndarray) -> np.ndarray:
        return examples[deal(self.sizes[examples], self._stretch)]

    def _made(self, chosen: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        row_of = [best_fit(self.sizes[examples], self.shape.length, self.shape.most) for examples in chosen]
        needed = max(int(rows.max()) for rows in row_of) + 1
        rows = max(self.shape.rows, -(-needed // self._multiple) * self._multiple)
        return [self._filled(*one, rows) for one in zip(chosen, row_of, strict=True)]

    def _filled(self, chosen: np.ndarray, row_of: np.ndarray, rows: int) -> dict[str, np.ndarray]:
        """The wanted ones of ``rows`` rows, of which each of the examples ``chosen`` goes to ``row_of``."""
        part = rows // self._multiple
        mine = (self._parts[:, None] * part + np.arange(part)).reshape(-1)
        length, most = self.shape.length, self.shape.most
        batch = {"example": np.full((rows, most), IGNORED, np.int32)}
        for name, arrays in self.data.tokens.items():
            batch[name] = np.full((rows, length), self.filling(name), arrays[0].dtype)
        for name, values in self.data.rows.items():
            empty = IGNORED if values.dtype.kind == "i" else np.nan
            batch[name] = np.full((rows, most, *values.shape[1:]), empty, values.dtype)
        for name in ("position_ids", "example_ids"):
            batch[name] = np.zeros((rows, length), np.int32)
        batch["example_starts"] = np.zeros((rows, most), np.int32)
        batch["attention_mask"] = np.zeros((rows, length), bool)

        ends, held = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        for example, row in zip(chosen, row_of, strict=True):
            place, start = held[row], ends[row]
            span = slice(start, start + self.sizes[example])
            for name, arrays in self.data.tokens.items():
                batch[name][row, span] = arrays[example]
            batch["position_ids"][row, span] = np.arange(self.sizes[example])
            batch["example_ids"][row, span] = place
            batch["attention_mask"][row, span] = True
            batch["example_starts"][row, place] = start
            batch["example"][row, place] = example
            for name, values in self.data.rows.items():
                batch[name][row, place] = values[example]
            ends[row], held[row] = span.stop, place + 1
        return {name: values[mine] for name, values in batch.items()}
