"""StructBERT's word structural objective (Wang et al. 2020, section 2.2): put shuffled trigrams back into order."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.base import Objective, Pieces, add_predictions, asked_positions, predicted
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class WordOrder(Objective):
    """Shuffle runs of K tokens that other objectives have left alone, and predict the original token at each of their places.

    It comes after the objectives that mask, wherever it stands in the configuration. Runs do not overlap, lie in one
    segment and have no special token. Every place of a run is predicted by the ``mlm`` head, also one that its token has
    kept: all K! orders are equally likely, the original one among them. (The paper does not say.)

    Attributes:
      rate: share of a row's real tokens (specials counted) that lie in shuffled runs. The number of runs is rounded up or
        down at random, so that the share holds on average for rows of any length. The paper's "5% of trigrams" is read
        as 5% of the n / 3 that do not overlap; whoever reads it as n / 20 trigrams wants 0.15.
      span: K, tokens of a run; the paper: 3.
    """

    rate: float = 0.05
    span: int = 3
    weight: float = 1.0

    name: ClassVar[str] = "word_order"
    heads: ClassVar[tuple[str, ...]] = ("mlm",)
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "segment_ids")
    rank: ClassVar[int] = 1
    packs: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise BertJaxError(f"WordOrder.rate is {self.rate}: it must lie between 0 and 1")
        if self.span < 2:
            raise BertJaxError(f"WordOrder.span is {self.span}: at least 2 tokens have an order")

    def check(self, encoder: EncoderConfig, length: int) -> None:
        if length < self.span:
            raise BertJaxError(f"WordOrder.span {self.span} exceeds the rows of {length} tokens")

    def runs(self, length: int) -> int:
        """The static number of runs in a row of ``length`` tokens, the last of them used by chance (3 for 128, 9 for 512)."""
        return math.ceil(self.rate * length / self.span)

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Replaces ``input_ids`` and asks for predictions at every place of a run."""
        if {"visibility", "decoder_input_ids"} & batch.keys():
            raise BertJaxError("WordOrder shuffles text that others have left in place: give it a turn of its own (task.turns)")
        ids, (rows, length) = batch["input_ids"], batch["input_ids"].shape
        place_seeds, count_seeds, order_seeds = (functional.fold(seeds, number) for number in range(3))
        free = pieces.maskable(batch) & ~asked_positions(batch)
        wanted = self.rate / self.span * batch["attention_mask"].sum(axis=-1)
        wanted = jnp.floor(wanted + functional.uniform(count_seeds, (rows,))).astype(jnp.int32)
        starts, found = _choose_runs(place_seeds, free, batch["segment_ids"], self.span, self.runs(length))
        found &= jnp.arange(found.shape[1]) < wanted[:, None]

        positions = starts[:, :, None] + jnp.arange(self.span)
        original = jnp.take_along_axis(ids, positions.reshape(rows, -1), axis=1).reshape(positions.shape)
        order = jnp.argsort(functional.uniform(order_seeds, positions.shape), axis=-1)
        shuffled = jnp.take_along_axis(original, order, axis=-1)
        used = jnp.broadcast_to(found[:, :, None], positions.shape).reshape(rows, -1)
        positions, original, shuffled = (x.reshape(rows, -1) for x in (positions, original, shuffled))
        target = jnp.where(used, positions, length)  # runs that are not used are written nowhere
        ids = ids.at[jnp.arange(rows)[:, None], target].set(shuffled, mode="drop")
        return add_predictions(batch | {"input_ids": ids}, self.name, positions, original, used)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the places of runs."""
        return predicted(outputs, batch, self.name)


def _choose_runs(
    seeds: UInt32[Array, "B 2"], free: Bool[Array, "B L"], segments: Int[Array, "B L"], span: int, runs: int
) -> tuple[Int[Array, "B R"], Bool[Array, "B R"]]:
    """First places of runs, one after the other uniformly from those that are left, and whether there was one left."""
    length = free.shape[1]
    place = jnp.arange(length)
    whole = free[:, : length - span + 1] & (segments[:, : length - span + 1] == segments[:, span - 1 :])
    for offset in range(1, span):
        whole &= free[:, offset : length - span + 1 + offset]
    noise = jnp.where(jnp.pad(whole, ((0, 0), (0, span - 1))), functional.uniform(seeds, free.shape), -1.0)

    def choose(noise, _):
        start = jnp.argmax(noise, axis=1)
        found = noise.max(axis=1) >= 0
        overlapping = jnp.abs(place - start[:, None]) < span
        return jnp.where(overlapping, -1.0, noise), (jnp.where(found, start, 0), found)

    _, (starts, found) = jax.lax.scan(choose, noise, length=runs)
    return starts.T, found.T
