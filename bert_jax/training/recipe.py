"""Data of one's own without a configuration file: which kind it is, its labels, and the published recipe for it."""

import dataclasses
import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bert_jax import config as configuration
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks import AnyFinetuning
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.choice import Choice, Questions
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.columns import Columns, Lists, a_word_a_line, conllu, iob2
from bert_jax.tasks.question_answering import WINDOW, AnswersQuestions, QuestionAnswering, window_sizes
from bert_jax.tasks.regression import Regression, values_of
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tables import FORMATS, Table, kind_of, labels_of
from bert_jax.tasks.tagging import Tagging, Tags
from bert_jax.tokenizers import Tokenizer
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW

logger = logging.getLogger("bert_jax")

HELDOUT = 0.1  # of data that comes alone
LONGEST = 512  # tokens; shorter texts take no more than they need
SHOWN, LABEL = 6, 30  # labels that a line shows, and characters of each
EPOCHS, WARM = 3.0, 0.1
FEWEST_UPDATES, MOST_EPOCHS = 200, 20.0  # small tables: as many epochs as that takes, at most 20
EVALUATIONS = 10  # at most
QUESTIONS, TAGS, CHOICES = "question-answering", "tagging", "choice"

SentenceKind = Literal["classification", "regression"]
Kind = SentenceKind | Literal["tagging", "choice", "question-answering"]
Own = Table | Columns | Lists | Questions | Squad

# Rows of an update and learning rate: Devlin et al. 2019, sections 4.1, 4.2 and 4.4; of tags one of appendix A.3's.
UPDATE: dict[type[Own], tuple[int, float]] = {
    Table: (32, 2e-5), Squad: (32, 5e-5), Columns: (32, 5e-5), Lists: (32, 5e-5), Questions: (16, 2e-5),
}


def own_data(path: str, texts: Sequence[str] = (), label: str | None = None, kind: Kind | None = None) -> Own:
    """A file of one's own, as its kind is read.

    Args:
      path: a table ``*.tsv``, ``*.csv`` or ``*.jsonl``; ``*.json`` in the form of SQuAD; tagged words ``*.conllu``, ``*.iob2``,
        ``*.jsonl`` with lists, and with ``kind`` any other file with a word a line. Each also with ``.gz`` behind.
      texts: the column of the text; the two of a pair; the first text and every choice (one column of lists alone, in
        ``*.jsonl``); the words, by number, where each has a line. label: the column of the label, or of the tags.
      kind: None: what the name says (``.json``, ``.conllu``, ``.iob2``), choices where there are more than two texts, else a
        table, whose labels decide.

    Raises:
      BertJaxError: columns are missing, or named where the form says them; a file that is not for the kind.
    """
    suffix = Path(path.removesuffix(".gz")).suffix
    if kind is None:
        of_suffix = {".json": QUESTIONS, ".conllu": TAGS, ".iob2": TAGS}
        kind = of_suffix.get(suffix, CHOICES if len(texts) > 2 else None)
    if kind is None and suffix not in FORMATS:
        raise BertJaxError(f"{path}: a table is a file {', '.join(FORMATS)}; for a word a line with its tag say --kind tagging")
    if kind == QUESTIONS:
        if suffix != ".json":
            raise BertJaxError(f"{path}: questions with their contexts and answers are read from SQuAD's form, a file *.json")
        return Squad(_no_columns(path, texts, label))
    if kind == TAGS:
        return _tagged(path, suffix, texts, label)
    if not texts or label is None:
        raise BertJaxError(f"{path}: --data needs --{'label' if texts else 'texts'} as well")
    if kind == CHOICES:
        if len(texts) < 2:
            raise BertJaxError(f"{path}: name the column of the first text and those of the choices (--texts)")
        return Questions(path, (texts[0],), tuple(texts[1:]), label)
    return Table(path, tuple(texts), label)


def _tagged(path: str, suffix: str, texts: Sequence[str], label: str | None) -> Columns | Lists:
    if suffix == ".conllu":
        return conllu(_no_columns(path, texts, label))
    if suffix == ".iob2" and not texts and label is None:
        return iob2(path)
    if suffix in (".json", ".csv"):
        raise BertJaxError(f"{path}: tagged words come from a file with a word a line, or *.jsonl with lists")
    if len(texts) > 1:
        raise BertJaxError(f"{path}: --texts {' '.join(texts)}: words are in one column")
    words = texts[0] if texts else None
    if suffix == ".jsonl":
        return Lists(path, words or "words", label or "tags")
    try:
        return a_word_a_line(path, int(words or 0), int(label or -1))
    except ValueError:
        raise BertJaxError(
            f"{path}: with a word a line columns have numbers from 0 (-1: the last): --texts {words or 0} --label {label or -1}"
        ) from None


def _no_columns(path: str, texts: Sequence[str], label: str | None) -> str:
    if texts or label is not None:
        raise BertJaxError(f"{path}: its form says where texts and labels are: leave --{'texts' if texts else 'label'} out")
    return path


def recipe(
    model: Model, checkpoint: str, data: Own, heldout: Own | None = None, *, kind: SentenceKind | None = None,
    epochs: float | None = None, assignments: Sequence[str] = (),
) -> Experiment:
    """How to fine-tune ``model`` on labelled data: 3 epochs of 32 rows (16 questions with choices) at 2e-5 or, of answers and
    tags, 5e-5, all from Devlin et al. 2019 (sections 4.1, 4.2, 4.4, appendix A.3), and with the bias correction of Mosbach et
    al. 2021; SQuAD 2.0 as 1.1; warm-up over a tenth of the updates (run_classifier.py of google-research/bert), then linearly
    to 0; weight decay 0.01. Dropout is the checkpoint's. Small tables have more epochs, as many as 200 updates take, at most
    the 20 of Mosbach et al.: after the 56 updates of three epochs of 600 rows, MiniLM-L6 has learnt nothing yet.

    Args:
      checkpoint: the name of ``model``. heldout: None: a tenth of ``data``, which examples with the same texts share; of
        SQuAD's form the last tenth of the articles.
      epochs: None: as above.
      kind: of a table; None: what the labels say (:func:`bert_jax.tasks.tables.kind_of`).
      assignments: as ``--set`` has them. Updates, warm-up, how often is evaluated, and how many shapes are compiled follow from
        rows of an update and lengths of texts as these have them, where they do not say it themselves.

    Raises:
      BertJaxError: data that cannot be read, without a label, with too few rows or but one label or value; assignments that do
        not fit.
    """
    if epochs is not None and not 0 < epochs < math.inf:
        raise BertJaxError(f"epochs is {epochs:g}: it must be above 0, and finite")
    if heldout is not None and type(heldout) is not type(data):
        raise BertJaxError(f"{heldout.path}: what is held out must be in the form of {data.path}")
    if model.tokenizer is None:
        raise BertJaxError(f"{checkpoint} has no tokenizer beside its weights, and text needs one")
    training, heldout = _split(data, heldout)
    batch, rate = UPDATE[type(data)]
    begun = Experiment(
        _task(model, checkpoint, data, training, heldout, kind), AdamW(learning_rate=rate, bias_correction=True),
        TrainConfig(batch_size=batch, eval_batches=None, eval_batch_size=64, keep=1),
    )
    said = paths_of(assignments)
    given = configuration.override(begun, [*assignments, f"task.init={json.dumps(checkpoint)}"])
    if isinstance(given.task, QuestionAnswering):
        given = configuration.override(given, _unsaid(
            said, {f"task.{name}": size for name, size in window_sizes(max(given.task.lengths)).items()}
        ))
    each = count_rows(given.task, model.tokenizer) / given.train.batch_size  # updates of an epoch
    if epochs is None:
        epochs = max(EPOCHS, min(FEWEST_UPDATES / each, MOST_EPOCHS))
    steps = given.train.steps if said & {"train", "train.steps"} else max(1, round(epochs * each))
    each = max(1, round(each * math.ceil(steps / max(1, round(each)) / EVALUATIONS)))
    derived = {
        "train.steps": steps, "train.eval_every": each, "train.save_every": each,
        "train.log_every": max(1, min(50, each // 4)), "optimizer.warmup_steps": int(WARM * steps),
        "task.shapes": min(16, max(2, steps // 100)),  # a step is compiled for each, and one more has to save what that costs
    }
    return configuration.override(given, _unsaid(said, derived))


def _unsaid(said: set[str], derived: dict[str, Any]) -> list[str]:
    """Assignments of what is ``derived``, but for what ``said`` has, as a field or with all of its part."""
    return [f"{path}={value}" for path, value in derived.items() if not said & {path, path.partition(".")[0]}]


def paths_of(assignments: Sequence[str]) -> set[str]:
    """What ``--set`` changes."""
    return {assignment.partition("=")[0].strip() for assignment in assignments}


def described(experiment: Experiment) -> str:
    """A line about what is trained: kind, labels, rows and updates, so that a label or a row too many is seen before it is."""
    task, train = experiment.task, experiment.train
    labels = [label if len(label) <= LABEL else f"{label[:LABEL]}..." for label in task.encoder.labels]
    kind = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(task).__name__).lower()
    if isinstance(task, Regression):
        kind += f" of {labels[0]} (mean {task.offset:g}, deviation {task.scale:g})"
    elif labels:
        shown = labels if len(labels) <= SHOWN else [*labels[: SHOWN - 2], "...", labels[-1]]
        kind += f" of {len(labels)} labels ({', '.join(shown)})"
    rows, heldout = len(task.data.read().texts), len(task.heldout.read().texts)
    updates = f"{train.steps:,} update{'s' * (train.steps > 1)} of {train.batch_size}"
    return f"{kind}: {rows:,} rows, {heldout:,} held out; {updates}"


def count_rows(task: AnyFinetuning, tokenizer: Tokenizer) -> int:
    """Rows of an epoch: examples, but of contexts all windows, and of long sentences with tags all parts."""
    texts = task.data.read().texts
    if isinstance(task, QuestionAnswering):
        return AnswersQuestions(
            task.encoder, tokenizer, max(task.lengths), stride=task.stride, question_tokens=task.question_tokens,
            answer_tokens=task.answer_tokens,
        ).count_windows(texts)
    if isinstance(task, Tagging):
        return len(Tags(task.encoder, tokenizer, max(task.lengths)).encode(texts).item)
    return len(texts)


def _task(
    model: Model, checkpoint: str, data: Own, training: Own, heldout: Own, kind: SentenceKind | None
) -> AnyFinetuning:
    """The task that ``data`` asks for, with the sizes of ``model``."""
    longest = min(LONGEST, model.config.max_length)

    def encoder(labels: tuple[str, ...], *heads: Any):
        return dataclasses.replace(
            finetuned_encoder(model.config, labels, heads), compute_dtype=EncoderConfig.compute_dtype,
            lora_rank=0, lora_alpha=EncoderConfig.lora_alpha,  # it begins with the product
        )

    sentences = ("pooler", "classifier")
    shared = {"init": checkpoint, "data": training, "heldout": heldout, "lengths": (longest,)}
    match data:
        case Squad():
            every = [*training.read().labels, *heldout.read().labels]
            return QuestionAnswering(
                encoder((), "span"), **shared | {"lengths": (min(WINDOW, longest),)},
                null_threshold=None if all(gold.answers for gold in every) else 0.0,
            )
        case Columns() | Lists():
            known = data.labels()
            if len(known) < 2:
                raise BertJaxError(f"{data.path}: every word has the tag {known[0]!r}: there is nothing to learn")
            if new := [tag for tag in heldout.labels() if tag not in known]:
                logger.warning("%s has tags that %s lacks: they are not learnt: %s", heldout.path, data.path, ", ".join(new))
            return Tagging(encoder((*known, *new), "tagger"), **shared)
        case Questions():
            return Choice(encoder((), "pooler", "choice"), **shared)
    if (kind or kind_of(data)) == "classification":
        return Classification(encoder(labels_of(data), *sentences), **shared)
    for part in (data, *([heldout] if heldout.path != data.path else [])):
        values_of(part.read(), part)  # of the whole file, before a model is made for a part of it
    values = values_of(training.read(), training)
    if np.ptp(values) == 0:
        raise BertJaxError(f"{data.path}: every row has the value {values[0]:g}: there is nothing to learn")
    return Regression(
        encoder((data.label,), *sentences), **shared, offset=float(values.mean()), scale=float(values.std())
    )


def _split(data: Own, heldout: Own | None) -> tuple[Own, Own]:
    """What is trained on, and what is held out."""
    if heldout is not None:
        if Path(heldout.path).resolve() == Path(data.path).resolve():
            logger.warning("%s is trained on and held out: its scores say nothing of new data", data.path)
        return data, heldout
    field = "articles" if isinstance(data, Squad) else "share"
    parts = [dataclasses.replace(data, **{field: part}) for part in ((0.0, 1 - HELDOUT), (1 - HELDOUT, 1.0))]
    for part in parts:
        try:
            part.read()
        except BertJaxError as error:
            if not str(error).startswith((f"{data.path}: no rows in share=", f"{data.path}: no questions in articles=")):
                raise
            few = "articles" if field == "articles" else _what_is_few(data)
            raise BertJaxError(f"{data.path}: too few {few} to hold some out: name another file (--heldout)") from None
    return parts[0], parts[1]


def _what_is_few(data: Own) -> str:
    """Rows, or different texts where some are the same: these stay together."""
    rows = [texts[:1] if isinstance(data, Questions) else texts for texts in data.read().texts]
    different = len(set(rows))
    return "rows" if different == len(rows) else f"different texts ({different} in {len(rows)} rows; the same stay together)"
