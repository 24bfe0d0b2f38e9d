"""Classification of sentences and pairs (Devlin et al. 2019, section 4.1)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.api import Params
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.sentences import Sentences, SentenceTask
from bert_jax.tasks.tables import Rows, Table


@dataclasses.dataclass(frozen=True)
class Classification(Sentences):
    """Which of ``encoder.labels`` a sentence or pair has."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.encoder.labels) < 2:
            raise BertJaxError(f"task.encoder.labels {self.encoder.labels}: a classification needs two or more")


class ClassificationTask(SentenceTask):
    """Cross entropy and accuracy."""

    def numbers(self, rows: Rows, table: Table) -> np.ndarray:
        known = {label: number for number, label in enumerate(self.config.encoder.labels)}
        if unknown := sorted(set(rows.labels) - known.keys()):
            raise BertJaxError(f"{table.path} has the label {unknown[0]!r}, task.encoder.labels are {', '.join(known)}")
        return np.array([known[label] for label in rows.labels], np.int32)

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Losses:
        labels = batch["label"]
        weights = (labels >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(self.logits(params, batch, key), labels)
        return Losses(
            {"classifier_loss": Ratio((entropy * weights).sum(), weights.sum())},
            {"classifier_accuracy": Ratio((hits * weights).sum(), weights.sum()), "tokens": self.tokens(batch)},
        )


def scores(logits: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """``accuracy``; for two classes also ``f1`` of the second and ``matthews``, the correlation of Matthews (CoLA's); 0 where
    they are not defined."""
    predicted = logits.argmax(axis=1)
    found = {"accuracy": float((predicted == labels).mean())}
    if logits.shape[1] == 2:
        true, false = labels == 1, labels == 0
        tp, fp = float((true & (predicted == 1)).sum()), float((false & (predicted == 1)).sum())
        tn, fn = float((false & (predicted == 0)).sum()), float((true & (predicted == 0)).sum())
        spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        found["f1"] = 2 * tp / max(2 * tp + fp + fn, 1.0)
        found["matthews"] = (tp * tn - fp * fn) / spread**0.5 if spread else 0.0
    return found
