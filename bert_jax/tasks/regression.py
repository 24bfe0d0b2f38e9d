"""Regression on sentences and pairs: one value, squared error (STS-B; reaction yields)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy import stats

from bert_jax.errors import BertJaxError
from bert_jax.models.api import Params
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.sentences import Sentences, SentenceTask
from bert_jax.tasks.tables import Rows, Table


@dataclasses.dataclass(frozen=True)
class Regression(Sentences):
    """Which value a sentence or pair has. The model's output is ``offset + scale * logit``.

    Attributes:
      offset, scale: mean and deviation of the values, roughly: the head starts at the former, and the loss is the squared
        error in units of the latter.
    """

    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if len(self.encoder.labels) != 1:
            raise BertJaxError(f"task.encoder.labels {self.encoder.labels}: a regression needs one, the name of the value")
        if not self.scale > 0:
            raise BertJaxError(f"task.scale is {self.scale}: it must be above 0")


class RegressionTask(SentenceTask):
    """Mean squared error."""

    def numbers(self, rows: Rows, table: Table) -> np.ndarray:
        values = np.zeros(len(rows.labels), np.float32)
        for number, label in enumerate(rows.labels):
            try:
                values[number] = float(label)
            except ValueError:
                raise BertJaxError(f"{table.path}: row {number + 1} has the value {label!r}: a number is needed") from None
        if not np.isfinite(values).all():
            raise BertJaxError(f"{table.path}: row {int(np.argmin(np.isfinite(values))) + 1} has a value that is not finite")
        return values

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Losses:
        real = jnp.isfinite(batch["label"])
        wanted = (jnp.where(real, batch["label"], self.config.offset) - self.config.offset) / self.config.scale
        error = jnp.square(self.logits(params, batch, key)[:, 0] - wanted)
        weight = real.sum(dtype=jnp.float32)
        return Losses({"regression_loss": Ratio((error * real).sum(), weight)}, {"tokens": self.tokens(batch)})

    def values(self, logits: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, " n"]:
        """Predictions in the units of the labels."""
        return self.config.offset + self.config.scale * logits[:, 0]


def scores(predicted: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> dict[str, float]:
    """``pearson`` and ``spearman`` correlation, 0 where predictions are constant, and ``rmse`` in the units of the labels."""
    found = {"rmse": float(np.sqrt(np.square(predicted - labels).mean()))}
    constant = np.ptp(predicted) == 0
    found["pearson"] = 0.0 if constant else float(stats.pearsonr(predicted, labels).statistic)
    found["spearman"] = 0.0 if constant else float(stats.spearmanr(predicted, labels).statistic)
    return found
