"""UniLMv2's pseudo-masked language modelling (Bao et al. 2020): two ways of predicting the same tokens in one pass."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Outputs
from bert_jax.objectives import masking
from bert_jax.objectives.base import Objective, Pieces, add_predictions, predicted
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class PseudoMasked(Objective):
    """Autoencoding (ae): every hidden token from the context alone, as BERT. Partially autoregressive (par): hidden blocks one
    after another in a random order, each from the context and the blocks before it.

    A row of L tokens becomes L + 2M slots: the row with hidden tokens replaced ([M], ae reads its states), the hidden tokens
    themselves, and a pseudo mask [P] for each, whose states par reads. All three have the token's position and segment.
    Who sees whom is :func:`visibility`. No checkpoint gains a row in its token table: [P] is the piece [MASK] again, as in
    microsoft/unilm (s2s-ft/s2s_ft/utils.py, ``mask_way == "v2"``), told from [M] by what it sees.

    Attributes:
      rate: share of a row's real tokens that are hidden: blocks are drawn until it is reached (algorithm 1), up to five more.
      mask, random: shares of hidden tokens that [MASK] and a random piece replace (section 4.1), the same in both slots of a
        token; the rest stay as they are, and tell their own prediction as BERT's do.
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    weight: float = 1.0

    name: ClassVar[str] = "pmlm"
    heads: ClassVar[tuple[str, ...]] = ("mlm",)
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "segment_ids")
    rank: ClassVar[int] = 2  # rows grow: all others have done with them by then

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise BertJaxError(f"PseudoMasked.rate is {self.rate}: it must lie between 0 and 1")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            raise BertJaxError(f"PseudoMasked.mask {self.mask} and random {self.random} must be shares that sum to at most 1")

    def predictions(self, length: int) -> int:
        """M, the static number of hidden tokens that a row of ``length`` has room for (25 for 128, 82 for 512)."""
        return min(length, masking.most_of_share(self.rate, length) + masking.LONGEST_BLOCK - 1)

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Lengthens ``input_ids``, ``segment_ids``, ``position_ids`` and ``attention_mask`` to [B, L + 2M] (the slots are no
        real tokens), adds ``visibility`` bool [B, L + 2M, L + 2M] and two sets of M predictions, pmlm_ae and pmlm_par.

        Raises:
          BertJaxError: another objective has hidden tokens or lengthened the rows.
        """
        if {"masked_positions", "visibility", "decoder_input_ids"} & batch.keys():
            raise BertJaxError("PseudoMasked hides tokens itself: objectives that do must take turns with it (task.turns)")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        length, slots = ids.shape[1], self.predictions(ids.shape[1])
        choice, action_seeds, random_seeds = (functional.fold(seeds, number) for number in range(3))
        budget = jnp.maximum(masking.ceil_share(self.rate, mask.sum(axis=-1)), 1)
        turns = masking.blocks(choice, pieces.maskable(batch), budget, slots)
        found, positions = jax.lax.top_k((turns > 0).astype(jnp.int32), slots)  # ties go to the lower position
        real = jnp.concatenate([mask, found > 0, found > 0], axis=1)

        def at(values):
            return jnp.take_along_axis(values, positions, axis=1)

        def with_slots(values):
            return jnp.concatenate([values, at(values), at(values)], axis=1)

        labels = at(ids)
        drawn = pieces.draw(random_seeds, positions.shape)
        action = functional.uniform(action_seeds, positions.shape)
        replaced = masking.replacements(action, labels, drawn, pieces, self.mask, self.random)
        replaced = jnp.where(found > 0, replaced, labels)
        rows = jnp.arange(ids.shape[0])[:, None]
        context = ids.at[rows, positions].set(replaced, unique_indices=True, mode="promise_in_bounds")
        places = batch.get("position_ids", jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ids.shape))
        batch = batch | {
            "input_ids": jnp.concatenate([context, labels, replaced], axis=1),
            "attention_mask": jnp.pad(mask, ((0, 0), (0, 2 * slots))),
            "segment_ids": with_slots(batch["segment_ids"]), "position_ids": with_slots(places),
            "visibility": visibility(real, at(turns), length),
        }
        batch = add_predictions(batch, f"{self.name}_ae", positions, labels, found)
        pseudo = jnp.broadcast_to(length + slots + jnp.arange(slots), positions.shape)
        return add_predictions(batch, f"{self.name}_par", pseudo, labels, found)

    def terms(self) -> dict[str, float]:
        return {"ae_loss": self.weight, "par_loss": self.weight}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """``ae_loss`` and ``par_loss``, cross entropies in nats, and the two accuracies."""
        ways = {way: predicted(outputs, batch, f"{self.name}_{way}") for way in ("ae", "par")}
        return {f"{way}_{name}": ratio for way, results in ways.items() for name, ratio in results.items()}


def visibility(real: Bool[Array, "B K"], turns: Int[Array, "B M"], length: int) -> Bool[Array, "B K K"]:
    """Which of the K = ``length`` + 2M slots each one sees (section 3.2, figure 5; ``create_attention_mask`` in
    s2s-ft/s2s_ft/modeling.py).

    All see the row with its masks, which sees nothing else: else a later token would reach a prediction by way of the context.
    A hidden token of block i (``turns``, from 1 on) sees those of the blocks up to i. A pseudo mask of block i sees the pseudo
    masks of block i, and the hidden tokens of the blocks before it.
    """
    row = jnp.zeros((len(turns), length), turns.dtype)
    turn = jnp.concatenate([row, turns, turns], axis=1)
    kind = jnp.concatenate([row, jnp.full_like(turns, 1), jnp.full_like(turns, 2)], axis=1)
    query_turn, key_turn = turn[:, :, None], turn[:, None]
    query, key = kind[:, :, None], kind[:, None]
    hidden = (key == 1) & ((query == 1) & (key_turn <= query_turn) | (query == 2) & (key_turn < query_turn))
    pseudo = (key == 2) & (query == 2) & (key_turn == query_turn)
    return ((key == 0) | hidden | pseudo) & real[:, None]
