"""Regression on sentences and pairs: one value, squared error (STS-B; reaction yields)."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bert_jax.errors import BertJaxError
from bert_jax.model import Model, rescaled
from bert_jax.models import api
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import Encoded, Keep, encode
from bert_jax.tasks.tables import Rows, Source, Table, in_file, listed, not_numbers


@dataclasses.dataclass(frozen=True)
class Regression(Finetuning):
    """Which value a sentence or pair has. While it is trained, the model's output is ``offset + scale * logit``; what is
    exported gives the value itself.

    Attributes:
      truncate: what remains of texts that are too long; see ``keep`` of :func:`bert_jax.tasks.batches.encode`.
      offset, scale: mean and deviation of the values, roughly: the head starts at the former, and the loss is the squared
        error in units of the latter.
    """

    truncate: Keep = "start"
    offset: float = 0.0
    scale: float = 1.0

    packs: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.encoder.labels) != 1:
            raise BertJaxError(f"task.encoder.labels {self.encoder.labels}: a regression needs one, the name of the value")
        if not self.scale > 0:
            raise BertJaxError(f"task.scale is {self.scale}: it must be above 0")


class Values(Predictor):
    """Texts: (sentence,) or (first, second). Answers: the value, under the name that it has in ``encoder.labels``."""

    truncate: Keep = "start"
    output_per = "example"
    taken, alike = (1, 2, "a text or a pair"), True
    kept = ("length", "texts", "truncate")

    def encode(self, texts: Texts) -> Encoded:
        return encode(self.tokenizer, texts, self.length, self.truncate)

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        return {"logits": found.logits["classifier"]}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        return [{self.config.labels[0]: float(row[0])} for row in outputs["logits"]]


class RegressionTask(FinetuningTask):
    """Mean squared error. A head that the checkpoint has for the same value gives the same values at the start."""

    predictor_type = Values

    def __init__(self, config: Regression, model: Model | None = None):
        super().__init__(config, model)
        self.predictor.truncate = config.truncate
        if "classifier" in self._model.params:  # it gives the value itself; what is trained gives its logit
            logit = rescaled(self._model.params["classifier"], -config.offset / config.scale, 1 / config.scale)
            self._model = self._model._replace(params=self._model.params | {"classifier": logit})

    def labelled(self, encoded: Encoded, rows: Rows, table: Table) -> Encoded:
        return encoded._replace(rows={"value": values_of(rows, table).astype(np.float32)})

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        real = jnp.isfinite(batch["value"])
        wanted = (jnp.where(real, batch["value"], self.config.offset) - self.config.offset) / self.config.scale
        error = jnp.square(found.logits["classifier"][..., 0] - wanted)
        return Losses({"regression_loss": Ratio((error * real).sum(), real.sum(dtype=jnp.float32))}, {})

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        return found.logits["classifier"], jnp.isfinite(batch["value"]).astype(jnp.float32)

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        logits = np.stack(outputs["logits"])[:, 0]
        return scores(self.config.offset + self.config.scale * logits, np.array([float(label) for label in rows.labels]))

    def finished(self, params: api.Params) -> api.Params:
        """The head gives the value itself."""
        head = rescaled(params["classifier"], self.config.offset, self.config.scale)
        return super().finished(params) | {"classifier": head}


def values_of(rows: Rows, source: Source) -> Float[np.ndarray, " n"]:
    """The values of the rows that were read of ``source``.

    Raises:
      BertJaxError: a label that is no finite number.
    """
    if wrong := not_numbers(rows.labels):
        raise BertJaxError(
            f"{source.path}: a regression needs numbers, not so {listed(in_file(source, rows, wrong))}, the first is "
            f"{rows.labels[wrong[0] - 1]!r}: mend it, or take the row out"
        )
    return np.array([float(label) for label in rows.labels])


def scores(predicted: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> dict[str, float]:
    """``rmse`` in the units of the labels; ``r2``, the share of their variance that is explained: 1 less the squared errors
    over the squared distances of the labels from their mean (so below 0 where that mean would be nearer), 0 where they are
    constant; ``pearson`` and ``spearman`` correlation, 0 where predictions or labels are constant."""
    from scipy import stats  # here: it takes the better part of a second, which pre-training need not wait for

    labels, predicted = np.float64(labels), np.float64(predicted)
    errors, spread = np.square(predicted - labels), np.square(labels - labels.mean())
    alike = np.ptp(labels) == 0
    constant = alike or np.ptp(predicted) == 0
    return {
        "rmse": float(np.sqrt(errors.mean())), "r2": 0.0 if alike else float(1 - errors.sum() / spread.sum()),
        "pearson": 0.0 if constant else float(stats.pearsonr(predicted, labels).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(predicted, labels).statistic),
    }
