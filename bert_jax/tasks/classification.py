"""Classification of sentences and pairs (Devlin et al. 2019, section 4.1)."""

import dataclasses
import functools
from typing import Any, ClassVar

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
from bert_jax.tasks.tables import Rows, Table, in_file, listed


@dataclasses.dataclass(frozen=True)
class Classification(Finetuning):
    """Which of ``encoder.labels`` a sentence or pair has.

    Attributes:
      truncate: what remains of texts that are too long; see ``keep`` of :func:`bert_jax.tasks.batches.encode`.
      class_weights: what an example of each label counts for in the loss, in the order of ``encoder.labels``; empty: 1. The
        loss is their weighted mean, as torch.nn.CrossEntropyLoss(weight=...) has it.
      balanced: the weights are n / (classes * n of the class), by the training data, so that all classes count alike (King and
        Zeng 2001, as scikit-learn's class_weight="balanced").
      focal: gamma of the focal loss, (1 - p) ** gamma * -log p of the right label (Lin et al. 2017, best with 2); 0: without.
        Class weights are their alpha; the mean is over weights without the new factor.
    """

    truncate: Keep = "start"
    class_weights: tuple[float, ...] = ()
    balanced: bool = False
    focal: float = 0.0

    packs: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.encoder.labels) < 2:
            raise BertJaxError(f"task.encoder.labels {self.encoder.labels}: a classification needs two or more")
        if self.class_weights and len(self.class_weights) != len(self.encoder.labels):
            raise BertJaxError(
                f"task.class_weights has {len(self.class_weights)} values: one for each of {', '.join(self.encoder.labels)}"
            )
        if self.class_weights and not all(0 < weight < float("inf") for weight in self.class_weights):
            raise BertJaxError(f"task.class_weights {self.class_weights}: they must be above 0")
        if self.class_weights and self.balanced:
            raise BertJaxError("task.balanced makes weights of its own: leave it or task.class_weights out")
        if not 0 <= self.focal < float("inf"):
            raise BertJaxError(f"task.focal is {self.focal}: it must be 0 or more")


class Classifies(Predictor):
    """Texts: (sentence,) or (first, second). Answers: ``label``, its ``probability``, and ``probability of X`` for each X."""

    truncate: Keep = "start"
    output_per = "example"
    taken, alike = (1, 2, "a text or a pair"), True
    kept = ("length", "texts", "truncate")

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
    """Cross entropy; accuracy and what :func:`scores` has beside it."""

    predictor_type = Classifies

    def __init__(self, config: Classification, model: Model | None = None):
        super().__init__(config, model)
        self.predictor.truncate = config.truncate

    def labelled(self, encoded: Encoded, rows: Rows, table: Table) -> Encoded:
        known = {label: number for number, label in enumerate(self.config.encoder.labels)}
        if unknown := [row for row, label in enumerate(rows.labels, start=1) if label not in known]:
            raise BertJaxError(
                f"{table.path} has the label {rows.labels[unknown[0] - 1]!r}, task.encoder.labels are {', '.join(known)}; "
                f"they lack those of {listed(in_file(table, rows, unknown))}"
            )
        return encoded._replace(rows={"label": np.array([known[label] for label in rows.labels], np.int32)})

    @functools.cached_property
    def class_weights(self) -> Float[np.ndarray, " C"]:
        """What an example of each label counts for in the loss, float32."""
        config = self.config
        if not config.balanced:
            return np.array(config.class_weights or [1.0] * len(config.encoder.labels), np.float32)
        labels = self.training.rows["label"]
        counts = np.bincount(labels, minlength=len(config.encoder.labels))
        if not counts.all():
            missing = config.encoder.labels[int(counts.argmin())]
            raise BertJaxError(f"task.balanced: {config.data.path} has no example of {missing!r}; set task.class_weights")
        return (len(labels) / (len(counts) * counts)).astype(np.float32)

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        labels = batch["label"]
        there = (labels >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(found.logits["classifier"], labels)
        weights = there * jnp.asarray(self.class_weights)[labels]
        loss = entropy if not self.config.focal else focal(entropy, self.config.focal)
        return Losses(
            {"classifier_loss": Ratio((loss * weights).sum(), weights.sum())},
            {"classifier_accuracy": Ratio((hits * there).sum(), there.sum())},
        )

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        labels = batch["label"]
        return found.logits["classifier"], (labels >= 0) * jnp.asarray(self.class_weights)[labels]

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        labels = np.array([self.config.encoder.labels.index(label) for label in rows.labels])
        return scores(np.stack(outputs["logits"]), labels)


def focal(entropy: Float[Array, "..."], gamma: float) -> Float[Array, "..."]:
    """(1 - p) ** gamma * -log p, from -log p (Lin et al. 2017)."""
    wrong = jnp.maximum(-jnp.expm1(-entropy), 1e-12)  # where it is 0 its power may have no derivative
    return wrong**gamma * entropy


def scores(logits: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """``accuracy``; ``matthews``, the correlation of Matthews (CoLA's), of more than two classes as Gorodkin 2004 has it; of
    two ``f1``, that of the second, of more ``f1_macro``, the mean of those of the classes that occur, in labels or answers. 0
    where they are not defined."""
    classes, predicted = logits.shape[1], logits.argmax(axis=1)
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(np.float64)
    right, wanted, given, total = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    f1 = 2 * right / np.maximum(wanted + given, 1.0)
    found = {"accuracy": float(right.sum() / total)}
    found |= {"f1": float(f1[1])} if classes == 2 else {"f1_macro": float(f1[wanted + given > 0].mean())}
    spread = (total**2 - wanted @ wanted) * (total**2 - given @ given)
    return found | {"matthews": float((total * right.sum() - wanted @ given) / spread**0.5) if spread else 0.0}
