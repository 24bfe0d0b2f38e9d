"""Classification of sentences and pairs (Devlin et al. 2019, section 4.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import Encoded, Keep, encode
from bert_jax.tasks.tables import Rows, Table, listed


@dataclasses.dataclass(frozen=True)
class Classification(Finetuning):
    """Which of ``encoder.labels`` a sentence or pair has.

    Attributes:
      truncate: what remains of texts that are too long; see ``keep`` of :func:`bert_jax.tasks.batches.encode`.
    """

    truncate: Keep = "start"

    def __post_init__(self):
        super().__post_init__()
        if len(self.encoder.labels) < 2:
            raise BertJaxError(f"task.encoder.labels {self.encoder.labels}: a classification needs two or more")


class Classifies(Predictor):
    """Texts: (sentence,) or (first, second). Answers: ``label``, its ``probability``, and ``probability of X`` for each X."""

    truncate: Keep = "start"

    def encode(self, texts: Texts) -> Encoded:
        return encode(self.tokenizer, texts, self.length, self.truncate)

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        return {"logits": found.logits["classifier"]}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        probabilities = np.asarray(jax.nn.softmax(np.stack(outputs["logits"]), axis=-1))
        return [
            {"label": self.config.labels[int(row.argmax())], "probability": float(row.max())}
            | {f"probability of {label}": float(p) for label, p in zip(self.config.labels, row, strict=True)}
            for row in probabilities
        ]


class ClassificationTask(FinetuningTask):
    """Cross entropy and accuracy."""

    predictor_type = Classifies

    def __init__(self, config: Classification, model: Model | None = None):
        super().__init__(config, model)
        self.predictor.truncate = config.truncate

    def labelled(self, encoded: Encoded, rows: Rows, table: Table) -> Encoded:
        known = {label: number for number, label in enumerate(self.config.encoder.labels)}
        if unknown := [row for row, label in enumerate(rows.labels, start=1) if label not in known]:
            raise BertJaxError(
                f"{table.path} has the label {rows.labels[unknown[0] - 1]!r}, task.encoder.labels are {', '.join(known)}; "
                f"they lack those of {listed(unknown)}"
            )
        return encoded._replace(rows={"label": np.array([known[label] for label in rows.labels], np.int32)})

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        labels = batch["label"]
        weights = (labels >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(found.logits["classifier"], labels)
        return Losses(
            {"classifier_loss": Ratio((entropy * weights).sum(), weights.sum())},
            {"classifier_accuracy": Ratio((hits * weights).sum(), weights.sum())},
        )

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        labels = np.array([self.config.encoder.labels.index(label) for label in rows.labels])
        return scores(np.stack(outputs["logits"]), labels)


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
