"""ERNIE 2.0's sentence distance (Sun et al. 2020, section 4.2.2): how far apart are two sentences?"""

import dataclasses
from typing import ClassVar

from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.objective_heads import SentenceClasses
from bert_jax.objectives.base import Objective, scored_examples
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class Distance(Objective):
    """Class 0: adjacent in one document. 1: of one document, but not adjacent. 2: of two documents."""

    weight: float = 1.0

    name: ClassVar[str] = "distance"
    heads: ClassVar[tuple[str, ...]] = ("pooler",)
    needs: ClassVar[tuple[str, ...]] = ("distance_label",)
    labels: ClassVar[tuple[str, ...]] = needs
    packs: ClassVar[bool] = True

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        return {self.name: SentenceClasses(encoder, 3)}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the examples that carry a label."""
        return scored_examples(outputs.logits[self.name], batch["distance_label"])
