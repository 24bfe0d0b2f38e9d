"""Pre-training from a configuration file and a token store: the glue between the parts, for shell and notebook alike."""

import dataclasses
import logging
import runpy
import traceback
from pathlib import Path

import jax

from bert_jax import config as configuration
from bert_jax.checkpoint import saved_steps
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.model import CHECKPOINTS, EXPERIMENT, find, load_run
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.parallel.cluster import Cluster
from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
from bert_jax.progress import tracked
from bert_jax.training.evaluation import evaluate
from bert_jax.training.experiment import Experiment
from bert_jax.training.step import EVAL_SEED, make_eval_step
from bert_jax.training.train import Result, train

log = logging.getLogger("bert_jax")


def load_config(path: Path | str) -> Experiment:
    """Runs a configuration file and returns what its ``get_config()`` returns.

    Raises:
      BertJaxError: no such file, an error inside it (with its line), or not an Experiment.
    """
    path = Path(path)
    if not path.is_file():
        raise BertJaxError(f"{path}: no such configuration file")
    try:
        names = runpy.run_path(str(path))
        if "get_config" not in names:
            raise BertJaxError("it defines no get_config()")
        value = names["get_config"]()
    except BertJaxError as error:
        raise BertJaxError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file raises, said in one line with its place
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
        message = " ".join(str(error).split())
        raise BertJaxError(f"{path}, line {line}: {type(error).__name__}: {message}") from error
    if not isinstance(value, Experiment):
        raise BertJaxError(f"{path}: get_config() returned {type(value).__name__}, not an Experiment")
    return value


def pretrain(
    experiment: Experiment, data: Path | str, workdir: Path | str, cluster: Cluster | None = None
) -> Result:
    """Trains ``experiment`` on the token store ``data``, or continues the run in ``workdir``; see ``train``.

    Raises:
      BertJaxError: also when another process of the ``cluster`` has another experiment, other data or other devices.
    """
    cluster = cluster or Cluster()
    if not isinstance(experiment.task, Pretraining):
        raise BertJaxError(f"the task is {type(experiment.task).__name__}: pretrain runs Pretraining alone")
    cluster.agree("experiment", configuration.to_json(experiment))
    task = PretrainingTask(experiment.task, TokenStore(data, verify=cluster.first_on_host))
    cluster.agree("data", task.identity())
    cluster.agree_on_devices()
    return train(task, _as_begun(experiment, Path(workdir), cluster), workdir, cluster, source=str(data))


def _as_begun(experiment: Experiment, workdir: Path, cluster: Cluster) -> Experiment:
    """``experiment`` with the ``task.init`` of the run in ``workdir`` where that has a checkpoint, from which it goes on; one
    warning line if another was asked for."""

    def begun() -> dict[str, str | None] | None:
        if not (workdir / EXPERIMENT).is_file() or not saved_steps(workdir / CHECKPOINTS):
            return None
        task = configuration.load(Experiment, workdir / EXPERIMENT).task
        return {"init": task.init} if isinstance(task, Pretraining) else None

    found, asked = cluster.from_first(begun), experiment.task.init
    if found is None or found["init"] == asked:
        return experiment
    if asked is not None and cluster.first:
        log.warning(
            "%s goes on from its own checkpoint: task.init=%s is not read (it began %s)", workdir, asked,
            "from scratch" if found["init"] is None else f"with {found['init']}",
        )
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, **found))


def evaluate_checkpoint(checkpoint: str, data: Path | str, batch_size: int, limit: int | None) -> dict[str, float]:
    """Held-out metrics of a work directory, with the ``NAME_majority_baseline`` of objectives that tell classes apart: their
    accuracy if they always gave the most frequent one. Training says ``NAME_accuracy`` alone.

    Args:
      limit: batches of each kind of examples; None: all.
    """
    for what, number in (("batch size", batch_size), ("number of batches", limit)):
        if number is not None and number < 1:
            raise BertJaxError(f"the {what} is {number}: it must be at least 1")
    store = TokenStore(data)
    workdir = find(checkpoint).path
    if not (workdir / EXPERIMENT).is_file():
        raise BertJaxError(f"{checkpoint} is no work directory of pretrain: its objectives are not known")
    experiment = configuration.load(Experiment, workdir / EXPERIMENT)
    if not isinstance(experiment.task, Pretraining):
        raise BertJaxError(f"{checkpoint} is a run of {type(experiment.task).__name__}: evaluated on a file, not on a store")
    model = load_run(checkpoint, jax.eval_shape(PretrainingTask(experiment.task, None).init, jax.random.key(0)))
    store.check_tokenizer(model.tokenizer.hash)
    task = PretrainingTask(experiment.task, store)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = make_eval_step(task, mesh)
    with jax.set_mesh(mesh):
        values = evaluate(task, step, model.params, mesh, tracked(task.eval_batches(batch_size, limit), "evaluating"))
    return values | heldout_majorities(task, batch_size, limit)


def heldout_majorities(task: PretrainingTask, batch_size: int, limit: int | None) -> dict[str, float]:
    """:meth:`PretrainingTask.majority_baselines` of the held-out data, under the very masks that the evaluation uses."""
    if not any(objective.labels for objective in task.config.all_objectives.values()):
        return {}
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    corrupt = jax.jit(lambda batch, i: task.corrupt(batch, jax.random.fold_in(jax.random.key(EVAL_SEED), i), None))
    return task.majority_baselines(
        corrupt(to_devices(batch, mesh), i)
        for i, batch in enumerate(tracked(task.eval_batches(batch_size, limit), "counting labels"))
    )
