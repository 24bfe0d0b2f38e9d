"""What the loop asks of a task. The loop knows nothing of BERT; a task knows nothing of steps, devices or files."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

SMALLER_IS_BETTER = ("loss", "rmse")  # values of an evaluation of which the smallest is the best; else the largest
Params = Any
Batch = dict[str, Array]


class Ratio(NamedTuple):
    """A sum and its weight, kept apart until both have been added up over the whole mesh and every micro-batch."""

    sum: Array
    weight: Array

    @property
    def value(self) -> Array:
        """sum / weight, and 0 where nothing was weighted."""
        return self.sum / jnp.maximum(self.weight, 1e-9)


class Losses(NamedTuple):
    """What a task makes of a batch.

    Attributes:
      terms: the loss is the sum of their values (sum / weight). The weights must not depend on the parameters.
      metrics: everything worth recording. The sum of ``tokens``, if present, is the throughput. A metric with the name of a
        term is recorded in its place (a term may carry a factor).
      outputs: arrays [B, ...] that :meth:`Task.scores` wants of every held-out row; none in training.
    """

    terms: dict[str, Ratio]
    metrics: dict[str, Ratio]
    outputs: dict[str, Array] = {}


Objective = Callable[[Params, Batch, Array | None], tuple[Array, Losses]]


class Examples(Protocol):
    """An endless iterator of batches that knows its place.

    Attributes:
      epoch: examples in one pass over the data.
    """

    epoch: int

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch."""

    def get_state(self) -> dict[str, Any]:
        """JSON; under ``examples`` how many of the global order all processes together have been given."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there, whatever batch size and number of processes it was saved with."""


class Task(Protocol):
    """Anything that can be trained by :func:`bert_jax.training.train.train`."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""

    def start(self, key: Key[Array, ""]) -> Params | None:
        """Host arrays to begin with instead of ``init``'s, or None; asked only where there is nothing to continue. ``key`` is
        for what they lack."""

    def logical_axes(self) -> Any:
        """The tree of ``init`` with a tuple of logical axis names for each array."""

    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with to be continued, such as the tokenizer's hash."""

    def save_assets(self, workdir: Path) -> None:
        """Writes what inference needs beside the parameters (the tokenizer) into the work directory."""

    def corrupt(self, batch: Batch, key: Key[Array, ""], step: Array | None) -> Batch:
        """Draws on the device what is random about the batch itself (masks), before it is cut into micro-batches.

        ``step`` is the number of updates done, None in evaluation.
        """

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Losses:
        """Sums and weights over the rows of a corrupted batch; ``key=None`` means evaluation, without dropout."""

    def gradient(self, objective: Objective, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Losses]:
        """Gradients by ``params`` of the scalar that ``objective(params, batch, key)`` returns first, and the second that it
        returns: :func:`plain_gradient`, unless training is adversarial."""

    def follow(self, params: Params, step: Array, steps: int | None) -> Params:
        """Parameters after update ``step`` (from 0) of a run of ``steps`` (None: of no run): as they are, unless some of them
        are averages of others."""

    def scores(self, outputs: dict[str, list[np.ndarray]]) -> dict[str, float]:
        """What one evaluation comes to, beyond means over rows: from the rows of ``outputs`` of all its batches in their
        order. Asked only where there are outputs."""

    def train_batches(
        self, batch_size: int, seed: int | tuple[int, ...], rows: np.ndarray | None = None, multiple: int = 1
    ) -> Examples:
        """The given ``rows`` (ascending; None: all) of global batches of ``batch_size`` examples, without end. Of several seeds
        side by side, [S, B, ...]; a task that is never trained so (:mod:`bert_jax.training.together`) refuses that. Where
        examples share rows, these are a multiple of ``multiple``, of whose parts ``rows`` says which are wanted."""

    def eval_batches(self, batch_size: int, limit: int | None, rows: np.ndarray | None = None) -> Collection[dict]:
        """The given rows of the held-out batches (at most ``limit``), always the same; their number is known."""


def plain_gradient(objective: Objective, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Losses]:
    """:meth:`Task.gradient` of a task that minimises its loss."""
    return jax.grad(objective, has_aux=True)(params, batch, key)
