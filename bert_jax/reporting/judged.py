"""Answers beside what they should have been, in the same form for every kind of task."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from bert_jax.files import write_whole
from bert_jax.tasks import (
    AnyFinetuning,
    Choice,
    Classification,
    MaskedWords,
    QuestionAnswering,
    Regression,
    Tagging,
    squad,
)
from bert_jax.tasks.tables import Rows, Table


class Judged(NamedTuple):
    """A held-out example.

    Attributes:
      texts: in the order of :func:`columns`. label: what is right; several answers are apart by `` | ``. prediction: what the
        model says. probability: that it gives to it, None where the kind has none. error: how wrong that is, 0: right. Of a
        wrong class its probability; of a value the distance; of tags how many are wrong; of an answer 1 less its F1.
      id: of the example, where the data have ids. more: what else the answer says, by name.
    """

    texts: tuple[str, ...]
    label: str
    prediction: str
    probability: float | None
    error: float
    id: str | None = None
    more: Mapping[str, Any] = MappingProxyType({})


Answered = tuple[list[dict[str, Any]], list[Judged]]  # about all held-out texts, and beside what is right


def columns(task: AnyFinetuning) -> tuple[str, ...]:
    """Names of the texts of a :class:`Judged`."""
    if isinstance(task, QuestionAnswering):
        return ("question", "context")
    if isinstance(task, Choice):
        return ("first text", "choices")
    if isinstance(task.data, Table) and not any(name.isdigit() for name in task.data.texts):
        return task.data.texts
    return ("text", "second text")


def judge(task: AnyFinetuning, rows: Rows, answers: Sequence[dict[str, Any]]) -> list[Judged]:
    """Every held-out row with its answer, in their order."""
    of_kind = _OF_KIND[next(kind for kind in type(task).__mro__ if kind in _OF_KIND)]
    return [
        of_kind(texts, label, answer, task) for texts, label, answer in zip(rows.texts, rows.labels, answers, strict=True)
    ]


def _class(texts, label, answer, task) -> Judged:
    wrong = label != answer["label"]
    return Judged(texts, label, answer["label"], answer["probability"], answer["probability"] * wrong)


def _value(texts, label, answer, task) -> Judged:
    value = answer[task.encoder.labels[0]]
    return Judged(texts, str(label).strip(), one_line(value), None, abs(value - float(label)))


def _answer(texts, gold, answer, task) -> Judged:
    right = " | ".join(dict.fromkeys(one.text for one in gold.answers))
    error = 1 - squad.scores([answer["text"]], [gold])["f1"]
    more = {name: answer[name] for name in ("start", "score", "null_score")}
    return Judged(texts, right, answer["text"], None, error, gold.id, more)


def _tags(words, tags, answer, task) -> Judged:
    wrong = sum(one != other for one, other in zip(tags, answer["tags"], strict=True))
    return Judged((" ".join(words),), " ".join(tags), " ".join(answer["tags"]), None, float(wrong))


def _choice(texts, label, answer, task) -> Judged:
    wrong = int(label) != answer["choice"]
    first, *choices = texts
    return Judged((first, " | ".join(choices)), choices[int(label)], answer["text"], answer["probability"],
                  answer["probability"] * wrong)


def _word(texts, word, answer, task) -> Judged:
    wrong = word != answer["word"]
    return Judged(texts[:1], word, answer["word"], answer["probability"], answer["probability"] * wrong)


_OF_KIND: dict[type, Callable[..., Judged]] = {
    Classification: _class, Regression: _value, QuestionAnswering: _answer, Tagging: _tags, Choice: _choice,
    MaskedWords: _word,
}


def hardest(judged: Sequence[Judged], count: int) -> list[Judged]:
    """Those that are most wrong, and of the most probable wrong classes the most probable; none that are right."""
    order = np.argsort([-one.error for one in judged], kind="stable")[:count]
    return [judged[k] for k in order if judged[k].error > 0]


def write(path: Path, names: Sequence[str], judged: Sequence[Judged]) -> None:
    """A TSV file: ``id``, the texts, ``label``, ``prediction``, ``probability`` and what else there is; a line each, the file
    whole or not at all. Tabs and line breaks within a text become blanks."""
    rows = [_fields(one, names) for one in judged]
    lines = [[name for name, _ in rows[0]], *([one_line(value) for _, value in row] for row in rows)]
    write_whole(path, "".join("\t".join(line) + "\n" for line in lines))


def _fields(one: Judged, names: Sequence[str]) -> list[tuple[str, Any]]:
    """(column, value) of all that there is."""
    probability = None if one.probability is None else f"{one.probability:.6f}"
    fields = [("id", one.id), *zip(names, one.texts, strict=False), ("label", one.label), ("prediction", one.prediction),
              ("probability", probability), *one.more.items()]
    return [(name, value) for name, value in fields if value is not None]


def by_id(judged: Sequence[Judged]) -> dict[str, str]:
    """What is said of each example that has an id, as the official scripts of SQuAD take it."""
    return {one.id: one.prediction for one in judged if one.id is not None}


def one_line(value: Any) -> str:
    """A value as a field of a TSV file: numbers with the digits of a float32, lists of words with blanks between, other things
    as JSON, and every tab or line break a blank."""
    if isinstance(value, float):
        return repr(float(str(np.float32(value))))
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return "".join(" " if character in _BREAKS else character for character in value)


_BREAKS = frozenset("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
