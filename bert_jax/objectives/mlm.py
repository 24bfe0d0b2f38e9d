"""Masked language modelling (Devlin et al. 2019, section 3.1), whole-word masking, ALBERT's n-gram masking."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Pieces
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Predict hidden pieces. Fresh positions every step, drawn on the device.

    Attributes:
      rate: share of a row's real tokens (specials counted, as BERT counts them) that are predicted, at least one.
      unit: ``piece`` draws single pieces; ``word`` draws whole words, first come first served within the budget of pieces,
        a word that exceeds what is left being skipped.
      max_ngram: with words, units of n consecutive words, p(n) proportional to 1/n for n <= max_ngram (ALBERT section 4.1:
        3); a unit too long for the budget is tried shorter, one that overlaps a chosen unit is skipped.
      mask, random: shares of the chosen pieces replaced by [MASK] and by a random piece; the rest stay. Decided per piece.
    """

    rate: float = 0.15
    unit: Literal["piece", "word"] = "piece"
    max_ngram: int = 1
    mask: float = 0.8
    random: float = 0.1

    name: ClassVar[str] = "mlm"
    heads: ClassVar[tuple[str, ...]] = ("mlm",)
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "word_starts")

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise BertJaxError(f"MaskedLM.rate is {self.rate}: it must lie between 0 and 1")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1 + 1e-9:
            raise BertJaxError(f"MaskedLM.mask {self.mask} and random {self.random} must be shares that sum to at most 1")
        if self.max_ngram < 1 or (self.unit == "piece" and self.max_ngram != 1):
            raise BertJaxError(f"MaskedLM.max_ngram {self.max_ngram} needs unit='word' and at least 1")

    def predictions(self, length: int) -> int:
        """M, the static number of prediction slots in a row of ``length`` tokens (19 for 128, 77 for 512 at 15%)."""
        return max(1, int(self.rate * length + 0.5))

    def corrupt(self, batch: Batch, key: Key[Array, ""], pieces: Pieces) -> Batch:
        """Replaces ``input_ids`` and adds ``masked_positions`` int32 [B, M] (ascending), ``masked_labels`` int32 [B, M]
        and ``masked_weights`` float32 [B, M], 0 in the slots that a short row leaves empty."""
        ids, real = batch["input_ids"], batch["attention_mask"]
        special = jnp.zeros_like(real)
        for special_id in pieces.special_ids:
            special |= ids == special_id
        maskable = real & ~special
        slots = self.predictions(ids.shape[1])
        tokens = real.sum(axis=-1)
        budget = jnp.clip(jnp.floor(self.rate * tokens + 0.5).astype(jnp.int32), 1, slots)

        choice_key, action_key, random_key = jax.random.split(key, 3)
        if self.unit == "piece":
            chosen = _choose_pieces(choice_key, maskable, budget, slots)
        else:
            chosen = _choose_words(choice_key, maskable, batch["word_starts"], budget, slots, self.max_ngram)
        found, positions = jax.lax.top_k(chosen.astype(jnp.int32), slots)  # ties go to the lower position

        labels = jnp.take_along_axis(ids, positions, axis=1)
        action = jax.random.uniform(action_key, positions.shape)
        ordinary = np.setdiff1d(np.arange(pieces.vocab_size, dtype=np.int32), np.array(pieces.special_ids, np.int32))
        drawn = jnp.asarray(ordinary)[jax.random.randint(random_key, positions.shape, 0, len(ordinary))]
        replaced = jnp.where(action < self.mask, pieces.mask_id, jnp.where(action < self.mask + self.random, drawn, labels))
        replaced = jnp.where(found > 0, replaced, labels)
        rows = jnp.arange(ids.shape[0])[:, None]
        return batch | {
            "input_ids": ids.at[rows, positions].set(replaced, unique_indices=True, mode="promise_in_bounds"),
            "masked_positions": positions,
            "masked_labels": labels,
            "masked_weights": found.astype(jnp.float32),
        }

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the predicted pieces."""
        labels, weights = batch["masked_labels"], batch["masked_weights"]
        total = weights.sum()
        entropy, hits = functional.score_labels(outputs.logits["mlm"], labels)
        return {"loss": Ratio((entropy * weights).sum(), total), "accuracy": Ratio((hits * weights).sum(), total)}


def _choose_pieces(
    key: Key[Array, ""], maskable: Bool[Array, "B L"], budget: Int[Array, " B"], slots: int
) -> Bool[Array, "B L"]:
    """Uniformly without replacement: the ``budget`` largest of uniform noise."""
    noise = jnp.where(maskable, jax.random.uniform(key, maskable.shape), -1.0)
    value, position = jax.lax.top_k(noise, slots)
    taken = (value >= 0) & (jnp.arange(slots) < budget[:, None])
    rows = jnp.arange(maskable.shape[0])[:, None]
    return jnp.zeros_like(maskable).at[rows, position].set(taken, unique_indices=True, mode="promise_in_bounds")


def _choose_words(
    key: Key[Array, ""], maskable: Bool[Array, "B L"], word_starts: Bool[Array, "B L"], budget: Int[Array, " B"],
    slots: int, max_ngram: int,
) -> Bool[Array, "B L"]:
    """Greedy choice of units of up to ``max_ngram`` whole words in a random order of their first words."""
    rows, length = maskable.shape
    order_key, size_key = jax.random.split(key)
    place = jnp.arange(length)

    # next_start[p]: where the word at p ends, which is the next word start, special token or padding, or L.
    boundary = jnp.where(word_starts | ~maskable, place, length)
    next_start = jax.lax.cummin(boundary, axis=1, reverse=True)
    next_start = jnp.concatenate([next_start[:, 1:], jnp.full((rows, 1), length)], axis=1)

    # A chosen unit fills at least one slot, so after 2M candidates the budget is spent but for words too long for it.
    candidates = min(length, 2 * slots)
    noise = jnp.where(word_starts & maskable, jax.random.uniform(order_key, maskable.shape), -1.0)
    value, start = jax.lax.top_k(noise, candidates)
    shares = 1.0 / np.arange(1, max_ngram + 1)
    size = jax.random.choice(size_key, np.arange(1, max_ngram + 1), start.shape, p=shares / shares.sum())

    # ends[n-1]: where a unit of n words from each candidate ends; it stops short before a special token.
    ends = [jnp.take_along_axis(next_start, start, axis=1)]
    inside = jnp.pad(maskable, ((0, 0), (0, 1)))
    padded_next = jnp.pad(next_start, ((0, 0), (0, 1)), constant_values=length)
    for _ in range(max_ngram - 1):
        last = ends[-1]
        further = jnp.take_along_axis(padded_next, last, axis=1)
        ends.append(jnp.where(jnp.take_along_axis(inside, last, axis=1), further, last))

    def consider(step, carry):
        chosen, left = carry
        begin, end = start[:, step], start[:, step]
        for n, unit_end in enumerate(ends, start=1):  # the longest of the allowed sizes that the budget still covers
            fits = (n <= size[:, step]) & (unit_end[:, step] - begin <= left)
            end = jnp.where(fits, unit_end[:, step], end)
        unit = (place >= begin[:, None]) & (place < end[:, None])
        accepted = (value[:, step] >= 0) & ~(unit & chosen).any(axis=1)
        return chosen | (unit & accepted[:, None]), left - jnp.where(accepted, end - begin, 0)

    chosen, _ = jax.lax.fori_loop(0, candidates, consider, (jnp.zeros_like(maskable), budget))
    return chosen
