"""StructBERT's sentence structural objective (Wang et al. 2020, section 2.2): next, previous, or from elsewhere?"""

import dataclasses
from typing import ClassVar

from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.objective_heads import SentenceClasses
from bert_jax.objectives.base import Objective, scored_examples
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class Structural(Objective):
    """Class 0: B is the next text of the document. 1: it is the previous one. 2: it is from a random other document."""

    weight: float = 1.0

    name: ClassVar[str] = "structural"
    heads: ClassVar[tuple[str, ...]] = ("pooler",)
    needs: ClassVar[tuple[str, ...]] = ("structural_label",)
    labels: ClassVar[tuple[str, ...]] = needs
    packs: ClassVar[bool] = True

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        return {self.name: SentenceClasses(encoder, 3)}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the examples that carry a label."""
        return scored_examples(outputs.logits[self.name], batch["structural_label"])
