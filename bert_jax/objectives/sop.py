"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1): are two consecutive segments in their order?"""

import dataclasses
from typing import ClassVar

from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Objective, scored_examples
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class SentenceOrder(Objective):
    """Label 0: in order. Label 1: swapped."""

    weight: float = 1.0

    name: ClassVar[str] = "sop"
    heads: ClassVar[tuple[str, ...]] = ("pooler", "pair")
    needs: ClassVar[tuple[str, ...]] = ("sentence_order_label",)
    labels: ClassVar[tuple[str, ...]] = needs
    packs: ClassVar[bool] = True

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy and accuracy over the examples that carry a label."""
        return scored_examples(outputs.logits["pair"], batch["sentence_order_label"])
