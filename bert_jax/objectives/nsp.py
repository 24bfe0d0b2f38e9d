"""Next-sentence prediction (Devlin et al. 2019, section 3.1): does B follow A, or come from another document?"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import functional
from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Pieces
from bert_jax.task import Batch, Ratio


def pair_terms(logits: Float[Array, "B 2"], labels: Int[Array, " B"]) -> dict[str, Ratio]:
    """Cross entropy in nats and accuracy of a binary pair label; rows labelled -1 have no weight."""
    weights = (labels >= 0).astype(jnp.float32)
    entropy, hits = functional.score_labels(logits, labels)
    return {
        "loss": Ratio((entropy * weights).sum(), weights.sum()),
        "accuracy": Ratio((hits * weights).sum(), weights.sum()),
    }


@dataclasses.dataclass(frozen=True)
class NextSentence:
    """Label 0: B is the next text of the document. Label 1: B is from a random other document."""

    name: ClassVar[str] = "nsp"
    heads: ClassVar[tuple[str, ...]] = ("pooler", "pair")
    needs: ClassVar[tuple[str, ...]] = ("next_sentence_label",)

    def corrupt(self, batch: Batch, key: Key[Array, ""], pieces: Pieces) -> Batch:
        """Nothing: the pairs are drawn by the loader."""
        return batch

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy and accuracy over the rows that carry a label."""
        return pair_terms(outputs.logits["pair"], batch["next_sentence_label"])
