"""What a fine-tuned model says about new text: a list, a file, or an endless stream, from whatever holds such a model."""

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax import config as configuration
from bert_jax import model as models
from bert_jax.compilation import keep_programs
from bert_jax.convert.reading import PREDICTOR
from bert_jax.errors import BertJaxError, check_several
from bert_jax.files import read_json
from bert_jax.model import PLAN, Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.replicas import replicas
from bert_jax.reporting import answers
from bert_jax.tasks import AnyFinetuning, finetuning_task
from bert_jax.tasks.answering import Answering, taken_by
from bert_jax.tasks.base import Predictor
from bert_jax.tasks.batches import Keep
from bert_jax.tasks.choice import Chooses, Questions
from bert_jax.tasks.classification import Classifies
from bert_jax.tasks.columns import Lists
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.question_answering import WINDOW, AnswersQuestions, window_sizes
from bert_jax.tasks.race import Race
from bert_jax.tasks.regression import Values
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tables import Source, Table
from bert_jax.tasks.tagging import Tags
from bert_jax.tasks.texts import Form, check_lines, form_of, open_texts
from bert_jax.tokenizers import Tokenizer

WORD_A_LINE = (".conllu", ".iob2", ".conll", ".bio", ".iob")
LONGEST = 512  # tokens of a row where nothing else is said

logger = logging.getLogger("bert_jax")


class Ready(NamedTuple):
    """A model that answers: its predictor, float32 parameters, the columns of the texts that it was trained on, where they
    have names, and how a text of it was put together from several."""

    predictor: Predictor
    params: api.Params
    columns: tuple[str, ...] = ()
    made_of: str = ""


def predict(
    model: str | os.PathLike | Model | Ready, texts: Iterable[str | Sequence[str]], *, batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """Answers about ``texts``, one for each, in their order, while they come: a list, a file, or an endless stream.

    Args:
      model: a loaded one, or the path of one: the work directory of ``bert-jax finetune``, or whatever :func:`bert_jax.load`
        takes, with a classifier, tagger, span or choice head; or what :func:`load` made of such a path, for whoever asks again
        and again: a path is read, and its shapes compiled, once a call, and a loaded model's parameters brought to the device.
      texts: strings, or tuples: (first, second) for pairs, (question, context), (first, choice, choice, ...), words to tag
        (of a string, what is between its blanks).
      batch_size: texts that a device computes at once, or four times the rows that short ones share.

    Returns:
      Dictionaries: ``label``, ``probability`` and ``probability of X`` of classes; the value of a regression under its name;
      ``tags`` (and ``entities``); ``text``, ``start``, ``score``, ``null_score`` of an answer; ``choice`` and its ``text``.

    Raises:
      BertJaxError: no such model, no head that answers, or a text that is empty or of another form than the head needs, such
        as pairs where a work directory was trained on texts alone.
    """
    keep_programs()
    check_several(texts)
    ready = model if isinstance(model, Ready) else of_model(model) if isinstance(model, Model) else load(model)
    tags = isinstance(ready.predictor, Tags)
    given = (
        tuple(text) if isinstance(text, Iterable) and not isinstance(text, str | Mapping | Set) else _flat((text,), tags)
        for text in texts
    )
    return (answer for _, answer in Answering(ready.predictor, batch_size).stream(ready.params, given))


def predict_file(
    model: str, path: str, out: str | None = None, *, columns: tuple[str, ...] = (), form: Form | None = None,
    batch_size: int = 64, null_threshold: float | None = None,
) -> int:
    """Answers about a file, see :func:`bert_jax.tasks.texts.open_texts`, or about all questions of one in SQuAD's form
    (``*.json``, also with ``.gz``), into ``out`` or standard output, see :func:`bert_jax.reporting.answers.write`; how many.

    Args:
      columns: of the texts; none: those that the model was trained on, or the only one. A tagger's are sentences, with blanks
        between words, or in ``*.jsonl`` lists of words; there the choices of a question may be a list as well.
      null_threshold: see :func:`load`.

    Raises:
      BertJaxError: see these, and :func:`predict`; ``out`` exists; too few or too many columns for the model.
    """
    target = Path(out) if out is not None else None
    asked = form is None and Path(path.removesuffix(".gz")).suffix == ".json"
    answers.check(target, asked)
    ready = load(model, null_threshold)
    if asked and isinstance(ready.predictor, AnswersQuestions):
        return _answer_squad(ready, path, target, columns, batch_size)
    tabular = form_of(path, form) != "lines"
    columns = columns or (ready.columns if tabular else ())
    tags, listed = isinstance(ready.predictor, Tags), isinstance(ready.predictor, Chooses) and len(columns) == 2
    if tags and not tabular and Path(path.removesuffix(".gz")).suffix in WORD_A_LINE:
        raise BertJaxError(f"{path}: it has a word a line: give a sentence a line, with blanks between the words, or lists of "
                           "words in *.jsonl")
    if form is None and not tabular:
        check_lines(path, ready.columns)
    lists = 0 if tags else 1 if listed else None
    source = open_texts(path, columns, form, lists=lists, whole=isinstance(ready.predictor, AnswersQuestions))
    least, most, wanted = taken_by(ready.predictor)
    if len(source.columns) != 1 if tags else not listed and not least <= len(source.columns) <= most:
        name = "name them (--texts)" if tabular else "give *.tsv, *.csv or *.jsonl, and name its columns (--texts)"
        raise BertJaxError(f"{model} needs {wanted}, not {len(source.columns)} column{'s' * (len(source.columns) > 1)} "
                           f"({', '.join(source.columns)}): {name}")
    if tabular and ready.made_of:
        logger.warning("%s was trained on texts that were put together from columns (%s), and takes those of a file as they "
                       "stand: put them together there", model, ready.made_of)
    taken = 0  # rows that have been read, ahead of those that are answered

    def rows() -> Iterator[tuple[str, ...]]:
        nonlocal taken
        for row in source.rows:
            taken += 1
            yield _flat(row, tags)

    found = Answering(ready.predictor, batch_size).stream(ready.params, rows(), f"{path}: row")
    if tags:
        found = (((" ".join(words),), answer) for words, answer in found)
    elif listed:
        found = (((first, tuple(choices)), answer) for (first, *choices), answer in found)
    return answers.write(source.columns, found, target, source.size, lambda count: source.read() * count / taken)


def _answer_squad(ready: Ready, path: str, target: Path | None, columns: tuple[str, ...], batch_size: int) -> int:
    """:func:`predict_file` of a file in SQuAD's form, which is read whole; ids come before the texts."""
    if columns:
        raise BertJaxError(f"{path}: SQuAD's form has no columns {', '.join(columns)}: leave --texts out")
    ids, texts = zip(*((identity, text) for identity, *text in Squad(path).asked()), strict=True)
    found = Answering(ready.predictor, batch_size).stream(ready.params, map(tuple, texts), f"{path}: question")
    rows = (((identity, *text), answer) for identity, (text, answer) in zip(ids, found, strict=True))
    return answers.write(("id", "question", "context"), rows, target, len(ids), lambda count: count)


def _flat(row: tuple[str | tuple[str, ...], ...], words: bool) -> tuple[str, ...]:
    """A row as its predictor takes it, with the texts of a list side by side; ``words``: those of a sentence."""
    return tuple(
        one for text in row for one in (
            text if isinstance(text, tuple) else text.split() if words and isinstance(text, str) else (text,)
        )
    )


def load(path: str | os.PathLike, null_threshold: float | None = None) -> Ready:
    """The model at ``path``, see :func:`predict`, on the devices that it answers from.

    Args:
      null_threshold: in place of that which a model for questions was trained with, such as the best_f1_threshold of an
        evaluation; see :class:`bert_jax.tasks.QuestionAnswering`. None: as it is.

    Raises:
      BertJaxError: no such model, none that answers, or a threshold for one that answers no questions.
    """
    ready = _load(path)
    if null_threshold is None:
        return ready
    if not isinstance(ready.predictor, AnswersQuestions):
        raise BertJaxError(f"{path} answers no questions about contexts: leave the null threshold out")
    predictor = copy.copy(ready.predictor)  # what is compiled is for all
    predictor.null_threshold = null_threshold
    return ready._replace(predictor=predictor)


def _load(path: str | os.PathLike) -> Ready:
    folder = Path(path)
    if (folder / PLAN).is_file():  # of bert-jax finetune: the model that it exported, in the terms of its configuration
        return _on_device(of_task(task_in(folder / PLAN, ("experiment", "task")), models.load(folder)))
    place, model = models.find(path), models.load(path)
    if place.kind != "workdir" or not _answering(model):
        return _on_device(of_model(model, str(path)))
    return _on_device(of_task(task_in(place.path / models.EXPERIMENT, ("task",)), model))


def _on_device(ready: Ready) -> Ready:
    return ready._replace(params=replicas().hold(ready.params))


def of_task(task: AnyFinetuning, model: Model) -> Ready:
    """A model that came of a configuration."""
    predictor = finetuning_task(dataclasses.replace(task, encoder=model.config), model).predictor
    if isinstance(predictor, Classifies | Values):
        predictor.texts = len(task.data.dataset.texts if isinstance(task.data, Named) else task.data.texts)
    return Ready(predictor, model.params, _columns_of(task.data), _made_of(task.data))


def _columns_of(data: Source) -> tuple[str, ...]:
    """The columns of the texts, where a file of new ones may have the same."""
    match data:
        case Questions():
            return () if data.lead or len(data.first) > 1 else (*data.first, *data.choices)
        case Lists():
            return (data.words,)
        case Table():
            return data.texts
    return ()


def _made_of(data: Source) -> str:
    """Columns of a text that has more than one, for the message."""
    if isinstance(data, Race) or (isinstance(data, Named) and data.name.startswith("race/")):
        return "article, question + option"
    if not isinstance(data, Questions) or not (data.lead or len(data.first) > 1):
        return ""
    leads = [f"{data.lead} + {choice}" for choice in data.choices] if data.lead else []
    return ", ".join([" + ".join(data.first), *leads])


def of_model(model: Model, name: str = "this model") -> Ready:
    """A model without the task that it was trained on: the predictor of its head, with what was kept of it beside the weights,
    else with its defaults.

    Raises:
      BertJaxError: no tokenizer, no head that answers or several, or a head for several labels or values at once.
    """
    heads = _answering(model)
    if model.tokenizer is None:
        raise BertJaxError(f"{name} has no tokenizer beside its weights, and text needs one")
    if len(heads) != 1:
        raise BertJaxError(
            f"{name} has {'the heads ' + ', '.join(heads) if heads else 'no classifier, tagger, span or choice head'} (it has "
            f"{', '.join(model.config.with_heads) or 'no head'}): predict needs one of these: bert-jax finetune trains it"
        )
    (head,) = heads
    stated = model.origin.settings if model.origin else {}
    problem = stated.get("problem_type") if head == "classifier" else None
    if problem == "multi_label_classification":
        raise BertJaxError(f"{name} gives texts several labels at once (its problem_type), which is not read here")
    if problem == "regression" and len(model.config.labels) > 1:
        raise BertJaxError(f"{name} gives {len(model.config.labels)} values at once (its problem_type), which is not read here")
    kind = Values if head == "classifier" and len(model.config.labels) == 1 else PREDICTORS[head]
    if kind is Values and model.origin and problem is None:
        logger.warning("%s gives one number and does not say what it is (problem_type): it is given as the head makes it; "
                       "pipelines of transformers, and CrossEncoder unless settings forbid it, put it through a sigmoid", name)
    kept = configuration.from_json(Kept, model.predictor or {}, f"{name}: {PREDICTOR} beside its weights")
    length = min(kept.length or (WINDOW if kind is AnswersQuestions else LONGEST), model.config.max_length)
    attributes = window_sizes(length) if kind is AnswersQuestions else {}
    attributes |= {name: value for name, value in vars(kept).items() if value is not None} | {"length": length}
    attributes = tuple((name, value) for name, value in attributes.items() if name in kind.kept)
    return Ready(_predictor(kind, model.config, model.tokenizer, attributes), model.params)


@functools.lru_cache(maxsize=4)
def _predictor(
    kind: type[Predictor], config: EncoderConfig, tokenizer: Tokenizer, attributes: tuple[tuple[str, Any], ...]
) -> Predictor:
    """One with these ``attributes``, and what it has compiled: the same for a model that is asked again."""
    predictor = kind(config, tokenizer, dict(attributes)["length"])
    for name, value in attributes:
        setattr(predictor, name, value)
    return predictor


@dataclasses.dataclass(frozen=True)
class Kept:
    """Attributes of predictors (``Predictor.kept``) as they lie beside the weights of an exported model; None: its default."""

    length: int | None = None
    texts: int | None = None
    truncate: Keep | None = None
    stride: int | None = None
    question_tokens: int | None = None
    answer_tokens: int | None = None
    null_threshold: float | None = None

    def __post_init__(self):
        for name in ("length", "texts", "stride", "question_tokens", "answer_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BertJaxError(f"{PREDICTOR} says {name} {value}: it must be at least 1")


def kept_of(task: AnyFinetuning, model: Model) -> dict[str, Any]:
    """What :class:`Kept` has of the predictor of a model that came of ``task``, as JSON."""
    predictor = of_task(task, model).predictor
    return {name: value for name in predictor.kept if (value := getattr(predictor, name)) is not None}


PREDICTORS: dict[str, type[Predictor]] = {
    "classifier": Classifies, "tagger": Tags, "span": AnswersQuestions, "choice": Chooses,
}


def _answering(model: Model) -> list[str]:
    return [head for head in PREDICTORS if head in model.config.with_heads]


@dataclasses.dataclass(frozen=True)
class _Holder:
    """What a JSON file has under ``task``."""

    task: AnyFinetuning


def task_in(path: Path, keys: tuple[str, ...]) -> AnyFinetuning:
    """The task that a JSON file of a run has under ``keys``.

    Raises:
      BertJaxError: it has none of fine-tuning.
    """
    content = read_json(path)
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return configuration.from_json(_Holder, {"task": content}, str(path)).task
