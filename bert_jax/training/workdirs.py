"""The work directory of a run: whose it is, what lies there, and whether all hosts see it."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_jax import config as configuration
from bert_jax import tokenizers
from bert_jax.checkpoint import saved_steps
from bert_jax.errors import BertJaxError
from bert_jax.files import locked
from bert_jax.model import BEST, CHECKPOINTS, EXPERIMENT, TOKENIZER
from bert_jax.parallel.cluster import Cluster
from bert_jax.task import Task
from bert_jax.training.experiment import Experiment
from bert_jax.training.record import METRICS, read

log = logging.getLogger("bert_jax")

# Of the task, what may change while a run goes on: neither parameters nor data depend on it. ALBERT ended without dropout, and
# other devices may have less memory.
CHANGEABLE = tuple(f"task.encoder.{name}" for name in ("dropout", "attention_dropout", "remat", "attention", "unroll"))
VISIBLE_SECONDS = 30.0  # until a file that one host wrote is seen by another; network file systems cache


def trained(workdir: Path) -> bool:
    """Whether a run has come so far that it left something: a whole checkpoint, its best parameters, or records of steps."""
    return any(saved_steps(workdir / folder) for folder in (CHECKPOINTS, BEST)) or bool(read(workdir / METRICS))


def experiment_of(workdir: Path) -> Experiment | None:
    """What the work directory says it holds; None where it says nothing."""
    path = workdir / EXPERIMENT
    return configuration.load(Experiment, path) if path.exists() else None


def _changes(workdir: Path, experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Fields in which ``experiment`` differs from the one that the work directory holds, and how."""
    before = experiment_of(workdir)
    if before is not None:
        for field, old, new in configuration.differences(configuration.to_json(before), configuration.to_json(experiment)):
            yield field, f"{field} was {old}, is now {new}"


def check_experiment(workdir: Path, experiment: Experiment, tokenizer: str | None) -> bool:
    """Whether nothing was trained there; BertJaxError if another model or task was, or if somebody's own tokenizer lies there
    that is not the one of this hash. What has only been claimed may be claimed by another."""
    if not trained(workdir):
        if experiment_of(workdir) is None and (workdir / TOKENIZER).exists() and not _has_tokenizer(workdir, tokenizer):
            raise BertJaxError(f"{workdir / TOKENIZER} is there and is not the data's tokenizer: choose another --workdir")
        return True
    for field, change in _changes(workdir, experiment):
        if field.startswith("task") and field not in CHANGEABLE:
            raise BertJaxError(f"{workdir} holds another experiment: {change}; choose another --workdir")
    return False


def _has_tokenizer(workdir: Path, wanted: str | None) -> bool:
    """Whether the one that lies there is whole and has this hash."""
    try:
        return tokenizers.load(workdir / TOKENIZER).hash == wanted
    except BertJaxError:
        return False


def claim(workdir: Path, experiment: Experiment, task: Task, tokenizer: str | None) -> None:
    """Writes experiment.json and assets, and says what has changed since an earlier start. ``tokenizer``: its hash."""
    changes = [change for _, change in _changes(workdir, experiment)]
    if trained(workdir):
        for change in changes:
            log.warning("continuing with a changed setting: %s", change)
    else:
        if changes:
            log.warning("the run that was begun in %s trained nothing, this one takes its place: %s", workdir, changes[0])
        if not _has_tokenizer(workdir, tokenizer):
            shutil.rmtree(workdir / TOKENIZER, ignore_errors=True)
    workdir.mkdir(parents=True, exist_ok=True)
    configuration.save(experiment, workdir / EXPERIMENT)  # first: a tokenizer that is not whole is then this run's own
    task.save_assets(workdir)


@contextlib.contextmanager
def kept_from_others(workdir: Path, first: bool = True) -> Iterator[None]:
    """No other run may begin in ``workdir`` meanwhile, which the ``first`` process sees to. A refusal leaves no folder where
    there was none.

    Raises:
      BertJaxError: another run has it.
    """
    with contextlib.ExitStack() as held:
        if first:
            for folder in [parent for parent in (workdir, *workdir.parents) if not parent.exists()][::-1]:
                held.callback(_remove_if_empty, folder)
            with contextlib.suppress(OSError):  # what cannot be written is said later, and better
                held.enter_context(locked(workdir))
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_shared(workdir: Path, cluster: Cluster, name: str, seen: Callable[[Path], bool]) -> None:
    """What process 0 has under ``name`` must be there for all: every process writes and reads its part of a checkpoint."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not cluster.first and not seen(workdir):
        if time.monotonic() > deadline:
            raise BertJaxError(f"process 0 has {workdir / name}, which is not here: --workdir must be shared by all hosts")
        time.sleep(0.5)


def check_identity(saved: Mapping[str, Any], now: Mapping[str, str], workdir: Path) -> None:
    """Compares the identity in the metadata of a checkpoint with that of this run."""
    where = f" (it lay at {saved['source']})" if saved.get("source") else ""
    for name, value in now.items():
        if (before := saved["identity"].get(name)) != value:
            raise BertJaxError(
                f"{workdir} was trained with {name} {before}, this run has {name} {value}: use the same one{where}, or "
                "another --workdir"
            )
