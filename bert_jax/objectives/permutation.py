"""Permutation language modelling (Yang et al. 2019, XLNet): tokens predicted one after another in a random order."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Objective, Pieces, add_predictions, predicted
from bert_jax.task import Batch, Ratio

MAX_NGRAM = 5  # of the released code's spans (zihangdai/xlnet data_utils.py, _sample_mask)


@dataclasses.dataclass(frozen=True)
class PermutationLM(Objective):
    """Predict the last tokens of a random order from those before them, in two streams (section 2.3).

    A row gets M further slots, one for each target: its second stream. A query slot begins with [MASK] (or the query vector
    of an encoder with relative positions) at its target's position and sees what comes before the target in the order;
    content sees that and itself; nobody sees a query slot. So any encoder computes both streams in one pass.

    Attributes:
      one_in: K; a row of n tokens (specials counted) has n // K targets, at least one: 85 of 512 for 6 (section 2.3, and
        --mask_alpha=6 --mask_beta=1 --num_predict=85 of the released code).
      targets: ``last``, the paper: all tokens have places in the order, the last maskable ones are the targets. ``spans``, the
        released code: targets are spans of n <= 5 pieces, p(n) proportional to 1/n, that begin with a word, one at a random
        place of every stretch of K n tokens, and single pieces where these are too few; only targets and special tokens have
        places in the order, the rest comes first and sees all of itself.

    Special tokens are never predicted; they have random places in the order, as in the released code. There, [CLS] ends the
    row; ours begins with it. Left out are segment memory (reuse_len, mem_len) and with it the orders of 256 tokens each
    (perm_size), and rows read backwards (bi_data). The released code draws a row's spans half by half.
    """

    one_in: int = 6
    targets: Literal["last", "spans"] = "last"
    weight: float = 1.0

    name: ClassVar[str] = "plm"
    heads: ClassVar[tuple[str, ...]] = ("mlm",)
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "word_starts")
    rank: ClassVar[int] = 2  # rows grow: all others have done with them by then

    def __post_init__(self):
        if self.one_in < 2:
            raise BertJaxError(f"PermutationLM.one_in is {self.one_in}: it must be at least 2, one target in so many tokens")

    def predictions(self, length: int) -> int:
        """M, the static number of query slots of a row of ``length`` tokens."""
        return max(1, length // self.one_in)

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """The batch of :func:`two_streams` with the order and the targets drawn from ``seeds``.

        Raises:
          BertJaxError: another objective has hidden tokens or extended the rows.
        """
        if {"masked_positions", "visibility", "decoder_input_ids"} & batch.keys():
            raise BertJaxError(
                "PermutationLM predicts clean text: objectives that hide tokens must take turns with it (task.turns)"
            )
        maskable, real = pieces.maskable(batch), batch["attention_mask"]
        slots = self.predictions(maskable.shape[1])
        tokens = real.sum(axis=-1)
        budget = jnp.clip(tokens // self.one_in, 1, slots)
        order_seeds, span_seeds = functional.fold(seeds, 0), functional.fold(seeds, 1)
        order = functional.uniform(order_seeds, maskable.shape)

        # Of what may be predicted the latest; with spans, first of all what lies in one.
        wanted = order
        if self.targets == "spans":
            wanted += _spans(span_seeds, batch["word_starts"], tokens, budget, self.one_in)
        value, position = jax.lax.top_k(jnp.where(maskable, wanted, -1.0), slots)
        taken = (value >= 0) & (jnp.arange(slots) < budget[:, None])
        rows = jnp.arange(len(maskable))[:, None]
        chosen = jnp.zeros_like(maskable).at[rows, position].set(taken, unique_indices=True, mode="promise_in_bounds")
        found, positions = jax.lax.top_k(chosen.astype(jnp.int32), slots)  # ties go to the lower position
        if self.targets == "spans":
            order = jnp.where(chosen | (real & ~maskable), order, -1.0)
        return two_streams(batch, order, positions, found > 0, pieces.mask_id)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the targets, each given what comes before it in the order."""
        return predicted(outputs, batch, self.name)


def two_streams(
    batch: Batch, order: Float[Array, "B L"], targets: Int[Array, "B M"], found: Bool[Array, "B M"], mask_id: int
) -> Batch:
    """The batch with M query slots after its L tokens, which are its keys.

    Args:
      order: places in the order of factorisation; tokens at equal places see each other, but a target does not see them.
      targets: positions of the tokens to predict. found: which of them there are; the other slots see and weigh nothing.
        Nor has a target weight that nothing precedes: attention to no keys is uniform over all of them, the target too.

    Returns:
      ``batch`` with ``input_ids``, ``segment_ids``, ``position_ids``, ``query_slots`` and ``attention_mask`` [B, L + M] (query
      slots are no real tokens), ``visibility`` bool [B, L + M, L], and the predictions named ``plm`` at the query slots.
    """
    ids, real = batch["input_ids"], batch["attention_mask"]
    (rows, length), slots = ids.shape, targets.shape[1]
    positions = batch.get("position_ids")
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ids.shape) if positions is None else positions

    def at_targets(a):
        return jnp.take_along_axis(a, targets, axis=1)

    def extended(a, more):
        return jnp.concatenate([a, jnp.broadcast_to(jnp.asarray(more, a.dtype), (rows, slots))], axis=1)

    content = order[:, None, :] <= order[:, :, None]
    queries = (order[:, None, :] < at_targets(order)[:, :, None]) & (found[:, :, None] & real[:, None, :])
    found = queries.any(axis=-1)
    batch = batch | {
        "input_ids": extended(ids, mask_id),
        "segment_ids": extended(batch["segment_ids"], at_targets(batch["segment_ids"])),
        "position_ids": extended(positions, at_targets(positions)),
        "query_slots": extended(jnp.zeros_like(real), True),
        "attention_mask": extended(real, False),
        "visibility": jnp.concatenate([content & real[:, None, :], queries], axis=1),
    }
    at_slots = jnp.broadcast_to(jnp.arange(length, length + slots), targets.shape)
    return add_predictions(batch, PermutationLM.name, at_slots, at_targets(ids), found)


def _spans(
    seeds: UInt32[Array, "B 2"], word_starts: Bool[Array, "B L"], tokens: Int[Array, " B"], budget: Int[Array, " B"],
    one_in: int,
) -> Float[Array, "B L"]:
    """1.0 in the spans of ``_sample_mask`` (zihangdai/xlnet data_utils.py), drawn from left to right, 0.0 elsewhere.

    From where the last stretch ended: a length n, at most what is left of the budget; a place among the next K n; from there
    the next word start and n pieces; what is left of the K n follows. (The code means n words, but looks at the first piece
    again and again, so that every piece counts as a word.) A span that would reach the end of the text ends the row.
    """
    rows, length = word_starts.shape
    place = jnp.arange(length)
    next_start = jax.lax.cummin(jnp.where(word_starts, place, length), axis=1, reverse=True)
    next_start = jnp.pad(next_start, ((0, 0), (0, 1)), constant_values=length)
    steps = length // (one_in + 1) + 1  # a stretch takes n + K n pieces at least
    shares = np.cumsum(1.0 / np.arange(1, MAX_NGRAM + 1))
    sizes = functional.uniform(functional.fold(seeds, 0), (rows, steps))
    sizes = 1 + jnp.searchsorted(jnp.asarray(shares / shares[-1], jnp.float32), sizes, "right").astype(jnp.int32)
    offsets = functional.uniform(functional.fold(seeds, 1), (rows, steps))

    def draw(carry, drawn):
        current, left = carry
        size, offset = drawn
        size = jnp.minimum(size, left)
        context = one_in * size
        before = jnp.floor(offset * context).astype(jnp.int32)
        begin = jnp.take_along_axis(next_start, jnp.minimum(current + before, length)[:, None], axis=1)[:, 0]
        end = begin + size
        stays = (left > 0) & (end < tokens)  # else the row is done
        span = jnp.where(stays, begin, length), jnp.where(stays, end, length)
        return (jnp.where(stays, end + context - before, length), jnp.where(stays, left - size, 0)), span

    start = jnp.zeros_like(tokens), budget
    _, (begin, end) = jax.lax.scan(draw, start, (sizes.T, offsets.T))
    edges = jnp.zeros((rows, length + 1), jnp.int32)
    edges = edges.at[jnp.arange(rows), begin].add(1).at[jnp.arange(rows), end].add(-1)
    return jnp.cumsum(edges[:, :length], axis=1).astype(jnp.float32)
