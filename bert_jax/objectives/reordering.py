"""ERNIE 2.0's sentence reordering (Sun et al. 2020, section 4.2.2): which permutation were the segments put through?"""

import dataclasses
import math
from typing import ClassVar

from bert_jax.data.examples import AnyExamples
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.objective_heads import SentenceClasses
from bert_jax.objectives.base import Objective, scored_examples
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class Reordering(Objective):
    """A paragraph was cut into 1 to ``most`` segments, which were put into a random order; the class is their number and order.

    Attributes:
      most: m, segments at most; there are sum_{n<=m} n! classes (9 for 3). The paper does not say its m.
    """

    most: int = 3
    weight: float = 1.0

    name: ClassVar[str] = "reordering"
    heads: ClassVar[tuple[str, ...]] = ("pooler",)
    needs: ClassVar[tuple[str, ...]] = ("reorder_label",)
    labels: ClassVar[tuple[str, ...]] = needs
    packs: ClassVar[bool] = True

    def __post_init__(self):
        if not 2 <= self.most <= 7:
            raise BertJaxError(f"Reordering.most is {self.most}: 2 to 7 segments can be told apart (7: 5,913 orders)")

    @property
    def classes(self) -> int:
        """Orders of 1 to ``most`` segments."""
        return sum(math.factorial(n) for n in range(1, self.most + 1))

    def check_examples(self, examples: AnyExamples) -> None:
        if examples.most != self.most:
            raise BertJaxError(
                f"Reordering.most is {self.most}, but the examples have up to {examples.most} segments: set both to the same"
            )

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        return {self.name: SentenceClasses(encoder, self.classes)}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats and accuracy over the examples that carry a label."""
        return scored_examples(outputs.logits[self.name], batch["reorder_label"])
