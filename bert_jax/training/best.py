"""Which held-out evaluation of a run was the best: its parameters are kept, and a run without a better one can end."""

from pathlib import Path
from typing import Any

from bert_jax.checkpoint import Checkpoints
from bert_jax.errors import BertJaxError
from bert_jax.model import BEST
from bert_jax.task import Params


def check_metric(metric: str, evaluation: dict[str, float]) -> None:
    """Raises BertJaxError where an evaluation has no value that ``train.best`` names."""
    if (name := metric.removeprefix("-")) not in evaluation:
        raise BertJaxError(f"train.best is {name!r}; an evaluation of this task has {', '.join(sorted(evaluation))}")


class Best:
    """The best evaluation so far, by one of its values; without a ``metric`` nothing is compared and nothing kept.

    It survives restarts: an evaluation that is repeated comes out the same, and the same is not better.
    """

    def __init__(self, workdir: Path, metric: str | None, patience: int | None, abstract: Params):
        """Args:
          metric: a value of the evaluation; with ``-`` in front the smallest is the best.
          patience: evaluations without a better one after which the run ends; None: it never does.
          abstract: shapes, dtypes and shardings of the parameters.
        """
        self.step, self.evaluation = 0, {}
        self._name, self._sign = (metric or "").removeprefix("-"), -1.0 if metric and metric.startswith("-") else 1.0
        self._patience, self._abstract = patience, abstract
        self._checkpoints = Checkpoints(workdir / BEST, keep=1, last_saved=True) if metric else None
        if metric and (restored := self._checkpoints.restore({"params": abstract})):
            self.step, self.evaluation = restored.step, restored.metadata["evaluation"]

    def offer(self, step: int, evaluation: dict[str, float], params: Params, identity: dict[str, Any]) -> None:
        """Compares an evaluation with the best one, and keeps its parameters where it is better.

        Raises:
          BertJaxError: the evaluation has no such value.
        """
        if self._checkpoints is None:
            return
        check_metric(self._name, evaluation)
        value = evaluation[self._name]
        if not self.evaluation or self._sign * value > self._sign * self.evaluation[self._name]:
            self.step, self.evaluation = step, evaluation
            self._checkpoints.save(step, {"params": params}, {"evaluation": evaluation, "identity": identity})

    def exhausted(self, step: int, eval_every: int) -> bool:
        """Whether ``patience`` evaluations have come since the best one; counted by steps, so that restarts change nothing."""
        return bool(self._patience and self.evaluation) and step - self.step >= self._patience * eval_every

    def params(self) -> Params:
        """Those of the best evaluation."""
        self._checkpoints.wait()
        return self._checkpoints.restore({"params": self._abstract}, self.step).items["params"]

    def close(self) -> None:
        """Waits for the last save; BertJaxError if it failed."""
        if self._checkpoints is not None:
            self._checkpoints.close()
