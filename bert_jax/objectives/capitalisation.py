"""ERNIE 2.0's capitalisation prediction (Sun et al. 2020, section 4.2.1): was the word written with a capital letter?"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.objective_heads import TokenTruth
from bert_jax.objectives.base import Objective, Pieces, scored_truth
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class Capitalisation(Objective):
    """True or false of every token that is not special: did the text of its word begin with an upper-case letter?

    For vocabularies that fold case; one that keeps it gives the answer away. The paper counts tokens and names no exceptions:
    pieces that go on with a word, punctuation, digits and masked tokens all count.
    """

    weight: float = 1.0

    name: ClassVar[str] = "capitalisation"
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "capitalised")
    rank: ClassVar[int] = -1
    packs: ClassVar[bool] = True
    labels: ClassVar[tuple[str, ...]] = ("capitalised", "capitalisation_weights")

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        return {self.name: TokenTruth(encoder)}

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Adds ``capitalisation_weights`` float32 [B, L], 1 on tokens that are not special."""
        return batch | {"capitalisation_weights": pieces.maskable(batch).astype(jnp.float32)}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over tokens."""
        return scored_truth(outputs.logits[self.name], batch["capitalised"], batch["capitalisation_weights"])
