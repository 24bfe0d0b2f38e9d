"""An experiment fitted to the checkpoint that it starts from, which decides on the sizes of its encoder."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from bert_jax import config as configuration
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks import TASKS
from bert_jax.tasks.base import Finetuning
from bert_jax.training.experiment import Experiment
from bert_jax.training.recipe import paths_of
from bert_jax.warm_start import of_the_checkpoint


def fit(
    experiment: Experiment, checkpoint: str | None = None, assignments: Sequence[str] = ()
) -> tuple[Experiment, Model]:
    """An experiment whose encoder has the sizes of the checkpoint that it starts from, and that checkpoint.

    Args:
      checkpoint: in place of ``task.init``. assignments: as ``--set`` has them.

    Raises:
      BertJaxError: no fine-tuning, no such checkpoint, or see :func:`check_assignments`.
    """
    check_kind(experiment)
    if not isinstance(experiment.task, Finetuning):
        raise BertJaxError(f"the task is {type(experiment.task).__name__}: finetune runs {_kinds()}; pretrain runs the others")
    check_assignments(assignments, checkpoint)
    init = [f"task.init={json.dumps(str(checkpoint))}"] if checkpoint else []
    begun = init or [one for one in assignments if paths_of([one]) <= {"task", "task.init"}]
    model = load(configuration.override(experiment, begun).task.init)
    # All together, and only then checked: what is set must fit the checkpoint, and need not fit the configuration's sizes.
    sizes = [f"task.encoder.{name}={json.dumps(configuration.to_json(getattr(model.config, name)))}" for name in _SIZES]
    return configuration.override(experiment, [*assignments, *init, *sizes]), model


def check_kind(experiment: Any) -> None:
    """Raises BertJaxError where ``experiment`` is none, but perhaps the name of a file."""
    if not isinstance(experiment, Experiment):
        raise BertJaxError(
            f"finetune takes an experiment, not {experiment!r}: bert_jax.training.recipe.recipe makes an "
            "experiment of a model and own_data(FILE, ...), bert_jax.training.pretrain.load_config of a configuration file"
        )


def check_assignments(assignments: Sequence[str], checkpoint: str | None) -> None:
    """Raises BertJaxError where ``--set`` changes what the checkpoint decides, or which one it is."""
    for path in sorted(paths_of(assignments)):
        if path.startswith("task.encoder.") and path.split(".")[2] in _SIZES:
            raise BertJaxError(f"--set {path}: the checkpoint decides about it, leave it out")
        if path == "task.init" and checkpoint:
            raise BertJaxError(f"--set task.init beside --checkpoint {checkpoint}: use --checkpoint alone")


_SIZES = tuple(field.name for field in dataclasses.fields(EncoderConfig) if of_the_checkpoint(field.name))


def _kinds() -> str:
    return ", ".join(kind.__name__ for kind in TASKS)
