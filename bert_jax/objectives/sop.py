"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1): are two consecutive segments in their order?"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Key

from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.nsp import pair_terms
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class SentenceOrder:
    """Label 0: in order. Label 1: swapped."""

    name: ClassVar[str] = "sop"
    heads: ClassVar[tuple[str, ...]] = ("pooler", "pair")
    needs: ClassVar[tuple[str, ...]] = ("sentence_order_label",)

    def corrupt(self, batch: Batch, key: Key[Array, ""], pieces: Pieces) -> Batch:
        """Nothing: the pairs are drawn by the loader."""
        return batch

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy and accuracy over the rows that carry a label."""
        return pair_terms(outputs.logits["pair"], batch["sentence_order_label"])
