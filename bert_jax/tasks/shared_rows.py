"""Batches in which several short examples share a row: hardly any padding, and one or two shapes to compile.

Rows are those of :mod:`bert_jax.data.packing`: an example sees itself alone, its positions count from 0, heads of whole
examples read each one's own [CLS], and those of tokens read all as ever. Of a question with choices each choice is such an
example, and all of them are in one row, behind each other.

For training, a stretch of the random order (:mod:`bert_jax.tasks.batches`) is dealt out to its batches instead of cut: the
longest examples first, each time the next ones to the batches with the fewest tokens. So every batch has short and long
examples, and all have about the same number of tokens, which fill the same number of rows. What is only to be answered comes
in any order, in rows of one length and as many of them in every batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bert_jax.data.best_fit import MOST, best_fit
from bert_jax.tasks.batches import EVERY_SEED, IGNORED, PLANNED, Encoded, TrainBatches, filling

STEP, COARSE = 8, 32  # row lengths are multiples of it; beyond ``LONGEST`` fewer are tried
EXAMPLES, PARTS = 16_384, 16  # that shapes are chosen for, at most, and of how many stretches they are, at least
SHORTEST, LONGEST = 64, 256  # rows, unless an example is longer: in longer ones attention would cost more than padding does
QUESTION = 1024  # tokens of all choices of a question, at most, for the same reason; ``LONGEST`` on average
SECOND = 0.05  # share of the positions that a second shape must save
WORTH = 1.1  # positions for each one by length: what one shape is worth, where each length has to be compiled
TOO_MUCH = 0.1  # padding, as a share of the positions, unless it is more by length as well


def batches_for_training(
    data: Encoded, batch_size: int, rows: np.ndarray | None, pad_id: int, seed: int | tuple[int, ...], length: int, shapes: int,
    multiple: int = 1, group_by_length: bool = True,
) -> TrainBatches:
    """Shared rows, or with up to ``shapes`` lengths a row for each example, where most are too long for two of them to share
    one, so that padding would be more: so it is for reactions of 114 to 246 tokens. It is decided by what batches by length
    would have; without ``group_by_length`` the same rows of their own are then batched at random."""
    by_length = TrainBatches(data, (length,), batch_size, rows, pad_id, seed, shapes)
    several, tokens = data.tokens["input_ids"][0].ndim > 1, by_length.tokens
    if not (several and (tokens.max() > QUESTION or tokens.mean() > LONGEST)):
        shared = SharedRows(data, batch_size, rows, pad_id, seed, multiple)
        too_much = shared.padding > TOO_MUCH >= by_length.padding
        if not too_much and shared.positions <= WORTH * by_length.positions:
            return shared
    return by_length if group_by_length else TrainBatches(data, (length,), batch_size, rows, pad_id, seed, shapes, False)


class Shape(NamedTuple):
    """R rows of L tokens with at most P examples each."""

    rows: int
    length: int
    most: int

    @property
    def positions(self) -> int:
        return self.rows * self.length


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


def choose_shapes(sizes: np.ndarray, longest: int, multiple: int = 1) -> tuple[tuple[Shape, ...], float]:
    """The shape with the fewest positions in which every batch finds room, and these; of equal ones that with the shortest
    rows. Or where that saves more than ``SECOND`` of them, two: one in which most batches do, and one for the others, with no
    fewer rows, and none shorter; the positions are then those of an average batch.

    Args:
      sizes: int64 [m, B], tokens of the examples of each batch. longest: what any example may have. multiple: of the rows.
    """
    begin, largest = max(SHORTEST, -(-longest // STEP) * STEP), sizes.max(axis=1)
    every: list[Shape] = []
    some: list[tuple[float, Shape]] = []  # what share of the batches a shape holds
    for length in sorted({*range(SHORTEST, LONGEST + 1, STEP), *range(LONGEST, begin + begin // 4, COARSE), begin}):
        fitting = sizes[largest <= length]
        held = [np.bincount(best_fit(batch, length, len(batch))) for batch in fitting]  # examples in each row of each batch
        needed = np.array([-(-len(rows) // multiple) * multiple for rows in held], np.int64)
        most = np.array([rows.max() for rows in held], np.int64)
        for rows in np.unique(needed).tolist():
            shape = Shape(rows, length, int(most[needed <= rows].max()))
            some.append((float((needed <= rows).sum()) / len(sizes), shape))
        if length >= longest:
            every.append(shape)
    single = min(every, key=lambda shape: (shape.positions, shape.length))
    best, shapes = (1 - SECOND) * single.positions, None
    for share, shape in some:
        for other in every:
            positions = share * shape.positions + (1 - share) * other.positions
            if positions < best and shape.rows <= other.rows and shape.length <= other.length:
                best, shapes = positions, (shape, other._replace(most=max(shape.most, other.most)))
    return (shapes, best) if shapes else ((single,), float(single.positions))


class SharedRows(TrainBatches):
    """As :class:`TrainBatches`, with ``example`` and what else an example has [R, P] (-1, or NaN, where a row has fewer),
    tokens [R, L], ``position_ids``, ``example_ids`` int32 [R, L] and ``example_starts`` int32 [R, P], or of questions with C
    choices [R, P * C], where a choice that a question does not have stands nowhere.

    Attributes:
      shapes: one or two, see :func:`choose_shapes`. A batch has the first in which it finds room, or of the last one as many
        rows more as it needs; a step is compiled for each. Several seeds have that of the one that needs most, and their
        examples are where they would be without the others.
    """

    def __init__(
        self, data: Encoded, batch_size: int, rows: np.ndarray | None, pad_id: int, seed: int | tuple[int, ...],
        multiple: int = 1,
    ):
        """``multiple``: into how many equal parts rows can be split; ``rows`` of batches in which each example has its own are
        whole parts of them."""
        longest = max(ids.shape[-1] for ids in data.tokens["input_ids"])
        super().__init__(data, (longest,), batch_size, rows, pad_id, seed)
        self.sizes = self.tokens
        self._texts, self._choices = _one_by_one(data), self._across // batch_size
        self._multiple = multiple
        self._parts = np.unique(self.rows // (batch_size // multiple))
        planned = min(PLANNED, -(-EXAMPLES // batch_size))  # of large batches few are enough: they differ less
        some = min(self._stretch, max(1, planned // PARTS))  # of each stretch: batches of one are much alike
        batches = np.concatenate([self._batches_of(k, EVERY_SEED)[:some] for k in range(-(-planned // some))])
        self.shapes, self.positions = choose_shapes(self.sizes[batches], int(self.sizes.max()), multiple)

    def _cut(self, examples: np.ndarray) -> np.ndarray:
        return examples[deal(self.sizes[examples], self._stretch)]

    def _made(self, chosen: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        numbers, row_of = zip(*map(self._fitted, chosen), strict=True)
        shape, needed = self.shapes[max(numbers)], max(int(rows.max()) for rows in row_of) + 1
        shape = shape._replace(rows=max(shape.rows, -(-needed // self._multiple) * self._multiple))
        return [self._filled(*one, shape) for one in zip(chosen, row_of, strict=True)]

    def _fitted(self, examples: np.ndarray) -> tuple[int, np.ndarray]:
        """Which of the shapes a batch has, and the row of each example."""
        sizes, last = self.sizes[examples], len(self.shapes) - 1
        for number, shape in enumerate(self.shapes[:last]):
            if sizes.max() <= shape.length and (row_of := best_fit(sizes, shape.length, shape.most)).max() < shape.rows:
                return number, row_of
        return last, best_fit(sizes, self.shapes[last].length, self.shapes[last].most)

    def _filled(self, chosen: np.ndarray, row_of: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
        """The wanted ones of the rows of ``shape``, of which each of the examples ``chosen`` goes to ``row_of``."""
        part = shape.rows // self._multiple
        mine = (self._parts[:, None] * part + np.arange(part)).reshape(-1)
        batch = _filled(self.data, self._texts, self._choices, chosen, row_of, shape, self.pad_id)
        return {name: values[mine] for name, values in batch.items()}


def _filled(
    data: Encoded, texts: dict[str, list[np.ndarray]], choices: int, chosen: np.ndarray, row_of: np.ndarray, shape: Shape,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """The batch of ``shape`` in which each of the examples ``chosen`` has its texts, as many as ``choices``, in ``row_of``."""
    rows, length, most = shape
    batch = {"example": np.full((rows, most), IGNORED, np.int32)}
    for name, arrays in texts.items():
        batch[name] = np.full((rows, length), filling(name, pad_id), arrays[0].dtype)
    for name, values in data.rows.items():
        empty = IGNORED if values.dtype.kind == "i" else np.nan
        batch[name] = np.full((rows, most, *values.shape[1:]), empty, values.dtype)
    for name in ("position_ids", "example_ids"):
        batch[name] = np.zeros((rows, length), np.int32)
    batch["example_starts"] = np.zeros((rows, most * choices), np.int32)
    batch["attention_mask"] = np.zeros((rows, length), bool)

    ends, held = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for example, row in zip(chosen, row_of, strict=True):
        place = held[row]
        batch["example"][row, place] = example
        for name, values in data.rows.items():
            batch[name][row, place] = values[example]
        for choice in range(choices):
            text, number, start = example * choices + choice, place * choices + choice, ends[row]
            size = len(texts["input_ids"][text])
            span = slice(start, start + size)
            for name, arrays in texts.items():
                batch[name][row, span] = arrays[text]
            batch["position_ids"][row, span] = np.arange(size)
            batch["example_ids"][row, span] = number
            batch["attention_mask"][row, span] = True
            batch["example_starts"][row, number] = start if size else 0
            ends[row] = span.stop
        held[row] += 1
    return batch


def batches_for_answers(
    data: Encoded, chosen: np.ndarray, rows: int, length: int, pad_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """The examples ``chosen``, each once, in batches as :class:`SharedRows` has them, [R, L] with R ``rows`` of ``length``."""
    sizes = np.array([len(ids) for ids in data.tokens["input_ids"]])
    row_of, shape = best_fit(sizes[chosen], length, MOST), Shape(rows, length, MOST)
    order = np.argsort(row_of, kind="stable")
    firsts = np.arange(0, int(row_of.max(initial=-1)) + 1, rows)
    for first, here in zip(firsts, np.split(order, np.searchsorted(row_of[order], firsts[1:])), strict=False):  # none: none
        yield _filled(data, data.tokens, 1, chosen[here], row_of[here] - first, shape, pad_id)


def _one_by_one(data: Encoded) -> dict[str, list[np.ndarray]]:
    """The tokens of each example; or of each choice of each question, one after another, and of one that is not there none."""
    if data.tokens["input_ids"][0].ndim == 1:
        return data.tokens
    masks = data.tokens["attention_mask"]
    return {
        name: [row[real] for array, mask in zip(arrays, masks, strict=True) for row, real in zip(array, mask, strict=True)]
        for name, arrays in data.tokens.items()
    }
