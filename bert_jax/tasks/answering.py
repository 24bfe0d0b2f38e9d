"""Answers about new text, streamed: bounded memory, few compiled shapes, rows in the order they came.

Rows are taken in chunks of some batches. A chunk is tokenised in a thread of its own while the device computes the one before.
Short texts, where there are many, share rows of one length; others are sorted by length and cut into batches of one size, each
padded to one of a few lengths: once a length has come, it is never compiled again. What is computed is that of an evaluation
(:mod:`bert_jax.tasks.base`).
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.data.best_fit import cheapest_row
from bert_jax.errors import BertJaxError, each_warning_once
from bert_jax.models import api
from bert_jax.replicas import replicas
from bert_jax.tasks.base import Outputs, Predictor
from bert_jax.tasks.batches import IGNORED, Encoded, EvalBatches, WrongText
from bert_jax.tasks.shared_rows import batches_for_answers
from bert_jax.tasks.texts import ahead

# Few, since each is compiled, and none much longer than the one before; the same for all data, so that a cache has them.
LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
CHUNK = 32  # batches that are sorted by length together
IN_FLIGHT = 2  # batches dispatched and not yet fetched
SAMPLE = 4096  # texts, at most, that decide in what rows all of them come


def taken_by(predictor: Predictor) -> tuple[int, float, str]:
    """How many texts a row of ``predictor`` has, at least and at most, and what they are called."""
    if predictor.texts is not None:
        return predictor.texts, predictor.texts, ("a text alone", "a pair")[predictor.texts - 1]
    return predictor.taken


def _problem(text: tuple[str, ...], first: tuple[str, ...], predictor: Predictor) -> str | None:
    """What is wrong with the form of a row; ``first``: the row that came first."""
    if not all(isinstance(part, str) for part in text):
        return f"is {text!r}: strings are needed"
    if not text or not all(part.strip() for part in text):
        return "is empty, or nothing but white space: take it out"
    (least, most, wanted), count = taken_by(predictor), f"{len(text)} text{'s' * (len(text) > 1)}"
    if not least <= len(text) <= most:
        return f"has {count}: the model needs {wanted}"
    if predictor.alike and len(text) != len(first):
        return f"has {count}, the first one has {len(first)}: give texts alone, or pairs alone"
    for part in text:
        try:
            part.encode()
        except UnicodeEncodeError as error:
            return f"has a lone surrogate at character {error.start}: decode it as UTF-8"
    return None


class Shapes(NamedTuple):
    """Rows of a batch in which each text has one of its own; tokens of rows that texts share, a quarter as many as the batch
    size on each device. None: they share none."""

    rows: int
    shared: int | None


class Answering:
    """A predictor and the few shapes of batches that it computes, each compiled once for all parameters of the same shapes."""

    def __init__(self, predictor: Predictor, batch_size: int = 64):
        """Raises: BertJaxError: a ``batch_size`` below 1."""
        if batch_size < 1:
            raise BertJaxError(f"batch_size is {batch_size}: it must be at least 1")
        self.predictor, self.batch_size, self.replicas = predictor, batch_size, replicas()
        self.lengths = tuple(length for length in LENGTHS if length < predictor.length) + (predictor.length,)

    def stream(
        self, params: api.Params, texts: Iterable[tuple[str, ...]], called: str = "text"
    ) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Each of ``texts``, in their order, with its answer.

        Args:
          called: what messages have before the number of a text, which counts from 1.

        Raises:
          BertJaxError: see the predictor's ``encode``; a text without any character but white space, or of another form than
            the predictor takes.
        """
        params = self.replicas.hold(params)
        for chunk, encoded, shapes in ahead(self._encoded(iter(texts), called)):
            yield from zip(chunk, self.predictor.answers(chunk, encoded, self.outputs(params, encoded, shapes)), strict=True)

    def shapes(self, encoded: Encoded, before: Shapes | None = None) -> Shapes:
        """Those that suit ``encoded``, and what is like it. ``before``: of what came before it."""
        count, shared = len(encoded.item), None
        rows = before.rows if before else self.replicas.rows(self.batch_size, count)
        if self.predictor.output_per is not None and count >= self.batch_size * self.replicas.count:
            some = _sizes(encoded)[:: -(-count // SAMPLE)]
            alone = np.array(self.lengths)[np.searchsorted(self.lengths, some)]
            shared = cheapest_row(
                some, alone, self._shared_rows, rows, self.predictor.config.hidden_width, before.shared if before else None
            )
        return Shapes(rows, shared)

    @property
    def _shared_rows(self) -> int:
        return max(1, self.batch_size // 4) * self.replicas.count

    def outputs(self, params: api.Params, encoded: Encoded, shapes: Shapes) -> Outputs:
        """What the predictor computes of each row of ``encoded``, in their order."""
        params, made = self.replicas.hold(params), {}
        pending: deque = deque()

        def fetch() -> None:
            batch, computed = pending.popleft()
            places = np.argwhere(batch["example"] >= 0)
            for name, values in jax.device_get(computed).items():
                found = made.setdefault(name, {})
                for place in map(tuple, places):
                    k = int(batch["example"][place])
                    if len(place) == 2 and self.predictor.output_per == "token":
                        start = batch["example_starts"][place]
                        found[k] = values[place[0], start : start + len(encoded.tokens["input_ids"][k])]
                    else:
                        found[k] = values[place]

        for batch in self._batches(encoded, shapes):
            pending.append((batch, self.replicas.run(self.predictor.run, params, batch)))
            if len(pending) > IN_FLIGHT:
                fetch()
        while pending:
            fetch()
        return {name: [values[k] for k in range(len(encoded.item))] for name, values in made.items()}

    def _encoded(
        self, texts: Iterator[tuple[str, ...]], called: str
    ) -> Iterator[tuple[list[tuple[str, ...]], Encoded, Shapes]]:
        before, first, said, shapes = 0, None, set(), None
        size = -(-CHUNK * self.batch_size * self.replicas.count // self.predictor.rows_each)
        while chunk := list(itertools.islice(texts, size)):
            first = first or chunk[0]
            for number, text in enumerate(chunk, start=before + 1):
                if problem := _problem(text, first, self.predictor):
                    raise BertJaxError(f"{called} {number} {problem}")
            try:
                more = "; of what comes after these it is not said again" if len(chunk) == size else ""
                with each_warning_once(said, more):  # and not around what yields: others warn meanwhile
                    encoded = self.predictor.encode(chunk)
            except WrongText as error:
                raise BertJaxError(f"{called} {before + error.row + 1}: {error.problem}") from None
            before += len(chunk)
            if shapes is None or len(chunk) == size:  # a last chunk of a few compiles nothing of its own
                shapes = self.shapes(encoded, shapes)
            yield chunk, encoded, shapes

    def _batches(self, encoded: Encoded, shapes: Shapes) -> Iterator[dict[str, np.ndarray]]:
        pad_id, long = self.predictor.tokenizer.pad_id, np.arange(len(encoded.item))
        rows, shared = shapes
        if shared:
            short, long = np.flatnonzero(_sizes(encoded) <= shared), np.flatnonzero(_sizes(encoded) > shared)
            yield from batches_for_answers(encoded, short, self._shared_rows, shared, pad_id)
        if len(long):
            for batch in EvalBatches(encoded.subset(long), self.lengths, rows, None, pad_id, None):
                yield batch | {"example": np.where(batch["example"] >= 0, long[batch["example"]], IGNORED).astype(np.int32)}


def _sizes(encoded: Encoded) -> np.ndarray:
    return np.array([ids.shape[-1] for ids in encoded.tokens["input_ids"]])
