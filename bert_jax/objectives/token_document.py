"""ERNIE 2.0's token-document relation (Sun et al. 2020, section 4.2.1): does the token occur elsewhere in the document?"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from bert_jax.data.examples import AnyExamples
from bert_jax.data.pairs import PairSpec
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.objective_heads import TokenTruth
from bert_jax.objectives.base import Objective, Pieces, scored_truth
from bert_jax.task import Batch, Ratio

COLUMNS = 32  # of the context, compared at a time


@dataclasses.dataclass(frozen=True)
class TokenDocument(Objective):
    """True or false of every token that is not special: is it among the tokens of its document outside the example?

    The paper names no exceptions: of common words it says that they, beside the document's key words, are what occurs
    often, so they count. Nor does it say how much of the document is looked at; here it is ``context_ids``. Rows
    whose document has no further text have no weight.
    """

    weight: float = 1.0

    name: ClassVar[str] = "token_document"
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "context_ids")
    rank: ClassVar[int] = -1
    labels: ClassVar[tuple[str, ...]] = ("token_document_labels", "token_document_weights")

    def check_examples(self, examples: AnyExamples) -> None:
        if isinstance(examples, PairSpec) and examples.pairs not in ("none", "sop"):
            raise BertJaxError(
                f"TokenDocument with {examples}: a row may have text of two documents, context_ids belong to the first; use "
                "pairs='none' or 'sop', or Reordered"
            )

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        return {self.name: TokenTruth(encoder)}

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Adds ``token_document_labels`` bool [B, L] and ``token_document_weights`` float32 [B, L]."""
        ids, context = batch["input_ids"], batch["context_ids"]
        # Comparisons only: look-ups in a sorted or tabulated context are slow on TPUs. Some columns of the context at a time,
        # because XLA:CPU stores the truths of all pairs [B, L, W] before it reduces them.
        padded = jnp.pad(context, ((0, 0), (0, -context.shape[1] % COLUMNS)), constant_values=-1)
        columns = padded.reshape(len(ids), -1, COLUMNS).swapaxes(0, 1)
        occurs, _ = jax.lax.scan(
            lambda found, some: (found | (ids[:, :, None] == some[:, None, :]).any(axis=-1), None),
            jnp.zeros(ids.shape, bool), columns,
        )
        counted = pieces.maskable(batch) & (context >= 0).any(axis=-1, keepdims=True)
        return batch | {f"{self.name}_labels": occurs, f"{self.name}_weights": counted.astype(jnp.float32)}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over tokens."""
        return scored_truth(outputs.logits[self.name], batch[f"{self.name}_labels"], batch[f"{self.name}_weights"])
