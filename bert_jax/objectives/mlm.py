"""Masked language modelling (Devlin et al. 2019, section 3.1) with every choice of what is hidden, how much, and by what."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from bert_jax import functional
from bert_jax.data.rows import SMALLEST
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Outputs
from bert_jax.objectives import masking
from bert_jax.objectives.base import Objective, Pieces, add_predictions, predicted
from bert_jax.task import Batch, Ratio

CONTINUES = {"phrase": "phrase_continues", "entity": "entity_continues"}


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
    """Predict hidden pieces. Fresh positions every step, drawn on the device.

    Attributes:
      rate: share of an example's real tokens (specials counted, as BERT counts them; not counted for spans, as SpanBERT does)
        that are predicted, at least one; of every example by itself where a row has several.
      final_rate, rate_steps: the rate goes in a straight line from ``rate`` to ``final_rate`` over so many updates and stays
        there. None: it is constant.
      eval_rate: of held-out batches; None: the last rate of training. MosaicBERT trains with 0.3 and evaluates with 0.15.
      unit: what is drawn, at random. ``piece``: single pieces. ``word``: whole words, first come first served within the budget
        of pieces, a word that exceeds what is left being skipped (as in BERT; in short rows long words are thus rarer).
        ``phrase``, ``entity``: the same with the words of a phrase or a named entity as one, all other words being units too
        (ERNIE, Sun et al. 2019, section 3.2). ``span``: SpanBERT's spans of 1 to 10 whole words (Joshi et al. 2020,
        section 3.1).
      max_ngram: with words, units of n consecutive words, p(n) proportional to 1/n for n <= max_ngram (ALBERT section 4.1:
        3); a unit too long for the budget is tried shorter, one that overlaps a chosen unit is skipped.
      mask, random, unknown: shares of what is chosen that [MASK], a random piece or [UNK] replaces; the rest stays.
      replace: whether that is decided for each piece, as in BERT, ALBERT and ERNIE (its batching.py), or once for a ``unit``,
        as in SpanBERT (random pieces still differ within it).
    """

    rate: float = 0.15
    final_rate: float | None = None
    rate_steps: int = 0
    eval_rate: float | None = None
    unit: Literal["piece", "word", "phrase", "entity", "span"] = "piece"
    max_ngram: int = 1
    mask: float = 0.8
    random: float = 0.1
    unknown: float = 0.0
    replace: Literal["piece", "unit"] = "piece"
    weight: float = 1.0

    name: ClassVar[str] = "mlm"
    heads: ClassVar[tuple[str, ...]] = ("mlm",)
    labels: ClassVar[tuple[str, ...]] = ("mlm_labels", "mlm_weights")

    def __post_init__(self):
        for field in ("rate", "final_rate", "eval_rate"):
            if getattr(self, field) is not None and not 0 < getattr(self, field) < 1:
                raise BertJaxError(f"MaskedLM.{field} is {getattr(self, field)}: it must lie between 0 and 1")
        if (self.final_rate is None) != (self.rate_steps == 0) or self.rate_steps < 0:
            raise BertJaxError(
                f"MaskedLM.final_rate {self.final_rate} and rate_steps {self.rate_steps}: set both for a schedule, or neither"
            )
        shares = (self.mask, self.random, self.unknown)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise BertJaxError(f"MaskedLM.mask, random and unknown {shares} must be shares that sum to at most 1")
        if self.max_ngram < 1 or (self.unit != "word" and self.max_ngram != 1):
            raise BertJaxError(f"MaskedLM.max_ngram {self.max_ngram} needs unit='word' and at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        """Word starts for all but single pieces; where phrases or entities go on, for these."""
        words = () if self.unit == "piece" else ("word_starts",)
        return ("input_ids", "attention_mask", *words, *([CONTINUES[self.unit]] if self.unit in CONTINUES else []))

    @property
    def packs(self) -> bool:
        """All but spans: which of them the budget cuts short is settled for a row."""
        return self.unit != "span"

    def predictions(self, length: int, examples: int = 1) -> int:
        """M, the static number of prediction slots in a row of ``length`` tokens (19 for 128, 77 for 512 at 15%): enough for
        the largest of the rates. Of ``examples`` in a row each is rounded by itself (81 for 8 of them in 512)."""
        rates = [rate for rate in (self.rate, self.final_rate, self.eval_rate) if rate is not None]
        if examples > 1:  # n tokens have at most rate * n + 1/2 predictions; but the fewest, SMALLEST, have one
            most = max(int(rate * length + examples * max(0.5, 1 - rate * SMALLEST) + 1e-6) for rate in rates)
            return min(most, length)
        most = max(rates)
        return max(1, masking.most_of_share(most, length) if self.unit == "span" else int(most * length + 0.5))

    def rate_at(self, step: Int[Array, ""] | None) -> float | Float[Array, ""]:
        """The share that is predicted in the update after ``step`` others; None: in evaluation."""
        last = self.rate if self.final_rate is None else self.final_rate
        if step is None:
            return last if self.eval_rate is None else self.eval_rate
        return self.rate + (last - self.rate) * jnp.minimum(step / max(self.rate_steps, 1), 1.0)

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Replaces ``input_ids`` and adds ``masked_positions`` int32 [B, M] (ascending), ``mlm_labels`` int32 [B, M]
        and ``mlm_weights`` float32 [B, M], 0 in the slots that a short row leaves empty. With spans also, int32 [B, M] each,
        ``span_left`` and ``span_right``, the places before and after the span of a slot, and ``span_place``, its place in it
        from 0 on."""
        ids, maskable = batch["input_ids"], pieces.maskable(batch)
        examples = batch["example_starts"].shape[1] if "example_starts" in batch else 1
        slots = self.predictions(ids.shape[1], examples)
        rate = self.rate_at(step)
        if self.unit == "span":
            budget = masking.ceil_share(rate, maskable.sum(axis=-1))
        else:  # halves up, as BERT
            tokens = batch["attention_mask"].sum(axis=-1) if examples == 1 else tokens_around(batch, examples)
            budget = jnp.floor(rate * tokens + 0.5).astype(jnp.int32)
        budget = jnp.clip(budget, 1, slots)

        choice, action_seeds, random_seeds = (functional.fold(seeds, number) for number in range(3))
        first = self._choose(choice, batch, maskable, budget, slots)
        found, positions = jax.lax.top_k((first >= 0).astype(jnp.int32), slots)  # ties go to the lower position

        def at(values):
            return jnp.take_along_axis(values, positions, axis=1)

        labels = at(ids)
        if self.replace == "piece":
            action = functional.uniform(action_seeds, positions.shape)
        else:  # what is drawn for the first place of a unit serves all of it
            action = jnp.take_along_axis(functional.uniform(action_seeds, ids.shape), jnp.maximum(at(first), 0), axis=1)
        drawn = pieces.draw(random_seeds, positions.shape)
        replaced = masking.replacements(action, labels, drawn, pieces, self.mask, self.random, self.unknown)
        replaced = jnp.where(found > 0, replaced, labels)
        rows = jnp.arange(ids.shape[0])[:, None]
        ids = ids.at[rows, positions].set(replaced, unique_indices=True, mode="promise_in_bounds")
        batch = batch | {"input_ids": ids}
        if self.unit == "span":
            batch |= {
                "span_left": jnp.maximum(at(first) - 1, 0), "span_place": jnp.maximum(positions - at(first), 0),
                "span_right": jnp.minimum(at(masking.run_ends(first >= 0)), ids.shape[1] - 1),
            }
        return add_predictions(batch, self.name, positions, labels, found)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the predicted pieces."""
        return predicted(outputs, batch, self.name)

    def _choose(self, seeds: Array, batch: Batch, maskable: Array, budget: Array, slots: int) -> Int[Array, "B L"]:
        """Where the unit begins that a chosen place belongs to, -1 elsewhere."""
        rivals = masking.Rivals(batch["example_ids"], batch["example_starts"].shape[1]) if "example_ids" in batch else None
        if self.unit == "piece":
            return masking.pieces(seeds, maskable, budget, slots, rivals)
        starts = batch["word_starts"]
        if self.unit == "span":
            return masking.spans(seeds, maskable, starts, budget, slots)
        if self.unit in CONTINUES:
            starts &= ~batch[CONTINUES[self.unit]]
        return masking.words(seeds, maskable, starts, budget, slots, self.max_ngram, rivals)


def tokens_around(batch: Batch, examples: int) -> Int[Array, "B L"]:
    """How many real tokens the example of each token has, itself counted, in rows of up to P ``examples``."""
    one_hot = jax.nn.one_hot(batch["example_ids"], examples, dtype=jnp.int32)
    tokens = (one_hot * batch["attention_mask"][..., None]).sum(axis=1)
    return jnp.take_along_axis(tokens, batch["example_ids"], axis=1)
