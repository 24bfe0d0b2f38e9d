"""Fine-tuning: an experiment whose task is labelled examples, and the scores of what comes out."""

from pathlib import Path

from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.tasks import TASKS, AnyFinetuning
from bert_jax.tasks.base import FinetuningTask
from bert_jax.training.experiment import Experiment
from bert_jax.training.train import train


def finetuning_task(config: AnyFinetuning, model: Model | None = None) -> FinetuningTask:
    """The task of a configuration; ``model``: what ``config.init`` names, where it is loaded already."""
    return TASKS[type(config)](config, model)


def finetune(experiment: Experiment, workdir: Path | str, model: Model | None = None) -> dict[str, float]:
    """Trains ``experiment`` and returns its scores on the held-out data.

    Raises:
      BertJaxError: see :func:`bert_jax.training.train.train`; also when the run was asked to stop before its end.
    """
    task = finetuning_task(experiment.task, model)
    result = train(task, experiment, workdir)
    if not result.finished:
        raise BertJaxError(f"stopped at step {result.step}, all saved: the same command continues")
    return result.evaluation
