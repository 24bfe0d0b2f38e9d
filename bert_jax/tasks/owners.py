"""Whose each token of a batch is: what an example has of its tokens, also where several share a row."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.task import Batch


class Owners(NamedTuple):
    """The examples that the tokens of a batch belong to; a question with all of its choices is one.

    Attributes:
      mask: which tokens are real. place: which of the examples of its row has a token; anything where it is not real.
      most: P, examples in a row at most.
    """

    mask: Bool[Array, "B *rest L"]
    place: Int[Array, "B *rest L"]
    most: int

    def sum(self, values: Float[Array, "B *rest L"]) -> Float[Array, "B *rest L"]:
        """For each token the sum over the tokens of its example. Of ``values``, 0 where a token is not real."""
        return self._over(values, jnp.sum)

    def largest(self, values: Float[Array, "B *rest L"]) -> Float[Array, "B *rest L"]:
        """For each token the largest over the tokens of its example. Of ``values`` of 0 or more, 0 where it is not real."""
        return self._over(values, jnp.max)

    def _over(self, values: Array, reduce: Callable[..., Array]) -> Array:
        place = self.place.reshape(len(values), -1)
        theirs = jnp.where(place[:, None] == jnp.arange(self.most)[:, None], values.reshape(len(values), 1, -1), 0)
        return jnp.take_along_axis(reduce(theirs, axis=-1), place, axis=1).reshape(values.shape)


def owners(batch: Batch) -> Owners:
    """Those of a batch of :mod:`bert_jax.tasks.batches`, or of :mod:`bert_jax.tasks.shared_rows`."""
    mask = batch["attention_mask"]
    if "example_ids" not in batch:
        return Owners(mask, jnp.zeros(mask.shape, jnp.int32), 1)
    most = batch["example"].shape[-1]
    choices = batch["example_starts"].shape[-1] // most
    return Owners(mask, batch["example_ids"] // choices, most)
