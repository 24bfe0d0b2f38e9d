"""SpanBERT's span boundary objective (Joshi et al. 2020, section 3.2): a span from what stands on either side of it."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.span_boundary import SpanBoundaryHead
from bert_jax.objectives.base import Objective, Pieces, scored
from bert_jax.task import Batch, Ratio

PLACE_WIDTH = 200  # --pair-positional-embedding-size of pretraining/README.md, facebookresearch/SpanBERT


@dataclasses.dataclass(frozen=True)
class SpanBoundary(Objective):
    """Predict each token of the spans that ``MaskedLM(unit="span")`` hides from the final states of the tokens before and after
    the span and the token's place in it. A span beside a special token has no boundary and is left out (the
    original's code leaves out those at the ends of a text; [UNK] counts as well here).

    Attributes:
      places: tokens of a span that are predicted, from its first on; SpanBERT: --max-pair-targets 15.
    """

    places: int = 15
    weight: float = 1.0

    name: ClassVar[str] = "sbo"
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "word_starts")
    rank: ClassVar[int] = 1

    def __post_init__(self):
        if self.places < 1:
            raise BertJaxError(f"SpanBoundary.places is {self.places}: at least 1")

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        return {self.name: SpanBoundaryHead(encoder, self.places, PLACE_WIDTH)}

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Adds ``sbo_weights`` float32 [B, M] for the slots of masked language modelling, whose labels it shares.

        Raises:
          BertJaxError: no objective hides spans.
        """
        if "span_left" not in batch:
            raise BertJaxError("SpanBoundary predicts what MaskedLM(unit='span') hides: put that beside it into the objectives")
        ordinary = pieces.maskable(batch)
        sides = [jnp.take_along_axis(ordinary, batch[side], axis=1) for side in ("span_left", "span_right")]
        told = sides[0] & sides[1] & (batch["span_place"] < self.places)
        return batch | {"sbo_weights": batch["mlm_weights"] * told}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the tokens of spans that have both boundaries."""
        return scored(outputs.logits[self.name], batch["mlm_labels"], batch["sbo_weights"])
