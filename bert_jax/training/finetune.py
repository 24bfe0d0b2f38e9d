"""Fine-tuning: an experiment whose task is labelled sentences, and the scores of what comes out."""

from pathlib import Path

import numpy as np

from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.tasks import classification, regression
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.regression import Regression, RegressionTask
from bert_jax.tasks.sentences import SentenceTask
from bert_jax.training.experiment import Experiment
from bert_jax.training.train import train


def finetuning_task(config: Classification | Regression, model: Model | None = None) -> SentenceTask:
    """The task of a configuration; ``model``: what ``config.init`` names, where it is loaded already."""
    return (ClassificationTask if isinstance(config, Classification) else RegressionTask)(config, model)


def finetune(experiment: Experiment, workdir: Path | str, model: Model | None = None) -> dict[str, float]:
    """Trains ``experiment`` and returns the scores of the last parameters on the whole held-out table.

    Raises:
      BertJaxError: see :func:`bert_jax.training.train.train`; also when the run was asked to stop before its end.
    """
    task = finetuning_task(experiment.task, model)
    result = train(task, experiment, workdir)
    if not result.finished:
        raise BertJaxError(f"stopped at step {result.step}, all saved: the same command continues")
    logits, labels = task.predict(result.params)
    if isinstance(task, RegressionTask):
        return regression.scores(task.values(logits), np.asarray(labels))
    return classification.scores(logits, np.asarray(labels))
