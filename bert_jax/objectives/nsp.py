"""Next-sentence prediction (Devlin et al. 2019, section 3.1): does B follow A, or come from another document?"""

import dataclasses
from typing import ClassVar

from bert_jax.models.api import Outputs
from bert_jax.objectives.base import Objective, scored_examples
from bert_jax.task import Batch, Ratio


@dataclasses.dataclass(frozen=True)
class NextSentence(Objective):
    """Label 0: B is the next text of the document. Label 1: B is from a random other document."""

    weight: float = 1.0

    name: ClassVar[str] = "nsp"
    heads: ClassVar[tuple[str, ...]] = ("pooler", "pair")
    needs: ClassVar[tuple[str, ...]] = ("next_sentence_label",)
    labels: ClassVar[tuple[str, ...]] = needs
    packs: ClassVar[bool] = True

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy and accuracy over the examples that carry a label."""
        return scored_examples(outputs.logits["pair"], batch["next_sentence_label"])
