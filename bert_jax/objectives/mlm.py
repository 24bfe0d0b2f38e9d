"""Masked language modelling (Devlin et al. 2019, section 3.1), whole-word masking, ALBERT's n-gram masking."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Objective, Pieces, add_predictions, predicted
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
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
    weight: float = 1.0

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

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Replaces ``input_ids`` and adds ``masked_positions`` int32 [B, M] (ascending), ``mlm_labels`` int32 [B, M]
        and ``mlm_weights`` float32 [B, M], 0 in the slots that a short row leaves empty."""
        ids, maskable = batch["input_ids"], pieces.maskable(batch)
        slots = self.predictions(ids.shape[1])
        tokens = batch["attention_mask"].sum(axis=-1)
        budget = jnp.clip(jnp.floor(self.rate * tokens + 0.5).astype(jnp.int32), 1, slots)

        choice, action_seeds, random_seeds = (functional.fold(seeds, number) for number in range(3))
        if self.unit == "piece":
            chosen = _choose_pieces(choice, maskable, budget, slots)
        else:
            chosen = _choose_words(choice, maskable, batch["word_starts"], budget, slots, self.max_ngram)
        found, positions = jax.lax.top_k(chosen.astype(jnp.int32), slots)  # ties go to the lower position

        labels = jnp.take_along_axis(ids, positions, axis=1)
        action = functional.uniform(action_seeds, positions.shape)
        drawn = pieces.draw(random_seeds, positions.shape)
        replaced = jnp.where(action < self.mask, pieces.mask_id, jnp.where(action < self.mask + self.random, drawn, labels))
        replaced = jnp.where(found > 0, replaced, labels)
        rows = jnp.arange(ids.shape[0])[:, None]
        ids = ids.at[rows, positions].set(replaced, unique_indices=True, mode="promise_in_bounds")
        return add_predictions(batch | {"input_ids": ids}, self.name, positions, labels, found)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the predicted pieces."""
        return predicted(outputs, batch, self.name)


def _choose_pieces(
    seeds: UInt32[Array, "B 2"], maskable: Bool[Array, "B L"], budget: Int[Array, " B"], slots: int
) -> Bool[Array, "B L"]:
    """Uniformly without replacement: the ``budget`` largest of uniform noise."""
    noise = jnp.where(maskable, functional.uniform(seeds, maskable.shape), -1.0)
    value, position = jax.lax.top_k(noise, slots)
    taken = (value >= 0) & (jnp.arange(slots) < budget[:, None])
    rows = jnp.arange(maskable.shape[0])[:, None]
    return jnp.zeros_like(maskable).at[rows, position].set(taken, unique_indices=True, mode="promise_in_bounds")


def _choose_words(
    seeds: UInt32[Array, "B 2"], maskable: Bool[Array, "B L"], word_starts: Bool[Array, "B L"], budget: Int[Array, " B"],
    slots: int, max_ngram: int,
) -> Bool[Array, "B L"]:
    """Greedy choice of units of up to ``max_ngram`` whole words in a random order of their first words."""
    rows, length = maskable.shape
    order_seeds, size_seeds = functional.fold(seeds, 0), functional.fold(seeds, 1)
    place = jnp.arange(length)

    # next_start[p]: where the word at p ends, which is the next word start, special token or padding, or L.
    boundary = jnp.where(word_starts | ~maskable, place, length)
    next_start = jax.lax.cummin(boundary, axis=1, reverse=True)
    next_start = jnp.concatenate([next_start[:, 1:], jnp.full((rows, 1), length)], axis=1)

    # A chosen unit fills at least one slot, so after 2M candidates the budget is spent but for words too long for it.
    candidates = min(length, 2 * slots)
    noise = jnp.where(word_starts & maskable, functional.uniform(order_seeds, maskable.shape), -1.0)
    value, start = jax.lax.top_k(noise, candidates)
    shares = np.cumsum(1.0 / np.arange(1, max_ngram + 1))
    drawn = functional.uniform(size_seeds, start.shape)
    size = 1 + jnp.searchsorted(jnp.asarray(shares / shares[-1], jnp.float32), drawn, "right")

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
