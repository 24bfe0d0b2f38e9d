"""The verb ``bert_jax.evaluate``: a fine-tuned model on labelled data that it has not seen, such as a test set."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.compilation import keep_programs
from bert_jax.errors import BertJaxError
from bert_jax.files import read_json
from bert_jax.finetuning import RESULT, finished_seeds
from bert_jax.model import EXPERIMENT, PLAN, load
from bert_jax.predicting import task_in
from bert_jax.progress import tracked
from bert_jax.reporting.table import Scores, gather
from bert_jax.tasks import (
    TASKS,
    AnyFinetuning,
    Choice,
    Classification,
    MaskedWords,
    QuestionAnswering,
    Regression,
    Tagging,
    finetuning_task,
)
from bert_jax.tasks.answering import Answering
from bert_jax.tasks.datasets import InPlace, Named
from bert_jax.tasks.race import Race
from bert_jax.tasks.tables import Source, Table
from bert_jax.training.recipe import Kind, own_data

_KINDS: dict[type[AnyFinetuning], Kind] = {
    Classification: "classification", Regression: "regression", Tagging: "tagging", Choice: "choice",
    QuestionAnswering: "question-answering",
}
_ALL = {"share": (), "rows": (), "articles": (0.0, 1.0)}  # of a source: no part, but the whole


def evaluate(
    run: str | os.PathLike, data: str | os.PathLike, texts: Sequence[str] = (), label: str | None = None, *,
    batch_size: int = 64, null_threshold: float | None = None,
) -> Scores:
    """The scores of every finished seed of a fine-tuning on labelled data, with mean and deviation; nothing is written.

    Args:
      run: the work directory of ``bert-jax finetune``, or one of its seeds.
      data: a file in the form of what it was trained on, a folder of RACE's passages, or ``NAME:SPLIT`` of a published data
        set, such as ``glue/mnli:validation_mismatched`` (:class:`bert_jax.tasks.datasets.Named`; it is read where the training
        data of that name were, else from TFDS).
      texts, label: the columns of a file, see :func:`bert_jax.training.recipe.own_data`; none: they have the names that those
        of the training data had, or are where the form says.
      batch_size: examples that a device computes at once, or four times the rows that short ones share.
      null_threshold: of questions about contexts, in place of ``task.null_threshold``, such as the best_f1_threshold that the
        evaluation of other data came to.

    Raises:
      BertJaxError: no such run, none of its seeds is finished, data in another form, labels that the model does not know, or a
        threshold for what answers no questions.
    """
    keep_programs()
    run, data = Path(run), str(data)
    if batch_size < 1:
        raise BertJaxError(f"batch_size is {batch_size}: it must be at least 1")
    if (run / PLAN).is_file():
        config = task_in(run / PLAN, ("experiment", "task"))
        folders = {seed: run / f"seed-{seed}" for seed in finished_seeds(run)}
    elif (run / EXPERIMENT).is_file():
        experiment = read_json(run / EXPERIMENT)
        if not _is_kind(experiment):
            raise BertJaxError(f"{run} is a run of pretrain: it is evaluated on a token store, and {data} is a file")
        config = task_in(run / EXPERIMENT, ("task",))
        folders = {experiment["train"]["seed"]: run} if (run / RESULT).is_file() else {}
    else:
        raise BertJaxError(f"{run} is no work directory of finetune: what its columns and labels are is known there alone")
    if not folders:
        raise BertJaxError(f"{run} is not finished, nor any seed in it: the same finetune command goes on")
    config = dataclasses.replace(config, heldout=_source(config, data, texts, label))
    if null_threshold is not None:
        if not isinstance(config, QuestionAnswering):
            raise BertJaxError(f"{run} answers no questions about contexts: leave the null threshold out")
        config = dataclasses.replace(config, null_threshold=null_threshold)
    if isinstance(config, Regression):  # what is loaded gives the value itself
        config = dataclasses.replace(config, offset=0.0, scale=1.0)
    found, task = {}, None
    for seed, folder in tracked(sorted(folders.items()), "evaluating"):
        model = load(folder)
        if task is None:  # seeds differ in their parameters alone, so that one program serves them all
            task = finetuning_task(dataclasses.replace(config, encoder=model.config), model)
            encoded = task.evaluation  # labels that are not known are said at once
            answering = Answering(task.predictor, batch_size)
            shapes = answering.shapes(encoded)
        outputs = answering.outputs(model.params, encoded, shapes)
        found[seed] = task.score(task.heldout, task.predictor.answers(task.heldout.texts, encoded, outputs), outputs)
    scores = gather(found, config.encoder.labels if isinstance(config, Classification) else ())
    return scores._replace(note=f"{len(task.heldout.texts):,} examples of {data}. {scores.note}".rstrip())


def is_finetuning(run: str | os.PathLike) -> bool:
    """Whether a folder is the work directory of a fine-tuning, or that of one of its seeds."""
    return (Path(run) / PLAN).is_file() or (Path(run) / EXPERIMENT).is_file() and _is_kind(read_json(Path(run) / EXPERIMENT))


def _is_kind(experiment: Mapping[str, Any]) -> bool:
    task = experiment.get("task")
    return isinstance(task, Mapping) and task.get("kind") in {kind.__name__ for kind in TASKS}


def _source(config: AnyFinetuning, path: str, texts: Sequence[str], label: str | None) -> Source:
    """``path`` as the data of ``config`` were read, or with columns of its own, or the split that it names."""
    data = config.data
    name, named, split = path.partition(":")
    if named and not Path(path).exists():
        if texts or label is not None:
            raise BertJaxError(f"{path}: the data set says where texts and labels are: leave --texts and --label out")
        folders = [one.folder for one in (data, config.heldout) if isinstance(one, Named) and one.name == name]
        return Named(name, split, *folders[:1])
    if isinstance(config, MaskedWords):
        if texts or label is not None:
            raise BertJaxError("the columns of masked words belong to their pattern: leave --texts and --label out")
        return dataclasses.replace(data, table=_moved(data.table, path))
    if isinstance(data, Named):
        return _in_place_of(data, path, texts, label, _KINDS[type(config)])
    if texts or label is not None:
        return own_data(path, texts, label, _KINDS[type(config)])
    return _moved(data, path)


def _in_place_of(data: Named, path: str, texts: Sequence[str], label: str | None, kind: Kind) -> Source:
    """A file for what was trained on ``data``, with the same labels."""
    if not texts and label is None:
        if found := data.at(path):
            return found
        if kind == "choice" and (Path(path).is_dir() or path.endswith(".txt")):
            return Race(path)
        if kind in ("classification", "regression", "choice"):
            raise BertJaxError(f"{path}: this was trained on {data.name}: name the columns of your file (--texts, --label)")
    found = own_data(path, texts, label, kind)
    return InPlace(found, data.name) if isinstance(found, Table) else found


def _moved(data: Source, path: str) -> Source:
    whole = {field.name: _ALL[field.name] for field in dataclasses.fields(data) if field.name in _ALL}
    return dataclasses.replace(data, path=path, **whole)
