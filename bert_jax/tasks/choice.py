"""Multiple choice: which of several texts goes with a first one (Devlin et al. 2019, section 4.4: SWAG; RACE)."""

import dataclasses
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import Head
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import Encoded, Keep, WrongText, encode
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.files import check_characters, objects_of, text_of
from bert_jax.tasks.tables import FORMATS, Rows, Source, check_share, part_of, separated

BLANK = "_"  # in questions of RACE: where the answer goes


@dataclasses.dataclass(frozen=True)
class Questions:
    """A file of questions, ``*.csv``, ``*.tsv`` or ``*.jsonl`` (also with ``.gz``), whose fields have names, as :func:`swag`.

    Attributes:
      path: UTF-8. first: fields that make the first text, blanks between. lead: one that is put before every choice, or None.
      choices: a field for each choice; one field alone is a list of them (``*.jsonl``), and their number may differ.
      label: the field of the right choice: its number from 0, or its letter (A, B, ...); None: there is none.
      share: only a part of the questions, as that of a :class:`bert_jax.tasks.tables.Table`; those with the same first text are
        in the same part. Empty: all.
    """

    path: str
    first: tuple[str, ...]
    choices: tuple[str, ...]
    label: str | None = None
    lead: str | None = None
    share: tuple[float, ...] = ()

    def __post_init__(self):
        if not self.path.removesuffix(".gz").endswith(FORMATS):
            raise BertJaxError(f"{self.path}: questions come from a file *.csv, *.tsv or *.jsonl, or one with .gz behind")
        if not self.first or not self.choices:
            raise BertJaxError(f"{self.path}: name the fields of the first text and of the choices")
        check_share(self.share, self.path)

    def read(self) -> Rows:
        """The questions: ``texts`` are (first text, choice, choice, ...), ``labels`` the numbers of the right ones from 0.

        Raises:
          BertJaxError: no such file, damaged, a field that is not there (those that are, are listed), an empty text, fewer than
            two choices, a label that is no choice, or no rows.
        """
        rows = Rows([], [])
        wanted = [name for name in (*self.first, self.lead, *self.choices, self.label) if name is not None]
        for number, record in _records(self.path, wanted):
            where = f"{self.path}: line {number}"
            if missing := [name for name in wanted if name not in record]:
                raise BertJaxError(f"{where} has no field {missing[0]!r}; there are {', '.join(map(str, record))}")
            choices = [record[name] for name in self.choices]
            if len(choices) == 1:
                choices = choices[0] if isinstance(choices[0], list) else choices
            lead = [record[self.lead]] if self.lead else []
            first = _text([record[name] for name in self.first], f"{where}, {' and '.join(self.first)}")
            rows.texts.append((first, *(_text([*lead, choice], f"{where}, choice {n}") for n, choice in enumerate(choices))))
            if len(choices) < 2:
                raise BertJaxError(f"{where}: {len(choices)} choices; two or more are needed")
            if self.label is not None:
                rows.labels.append(_label(record[self.label], len(choices), where))
        return part_of(_any(rows, self.path), self.share, self.path, texts=1)


def swag(path: str) -> Questions:
    """SWAG (Zellers et al. 2018), ``train.csv`` and ``val.csv`` of rowanz/swagaf: a caption, the beginning of the next one, and
    four ends of it. Beginning and end together are the second text, as in transformers' run_swag."""
    return Questions(path, ("sent1",), tuple(f"ending{n}" for n in range(4)), "label", "sent2")


@dataclasses.dataclass(frozen=True)
class Race:
    """RACE (Lai et al. 2017): a folder, such as ``RACE/train`` or ``RACE/train/high``, of files ``*.txt`` with one JSON object
    each: ``article``, ``questions``, ``options`` and ``answers`` (letters). The second text is question and option, or the
    question with the option in its blank ``_``, as in google-research/albert's race_utils.py."""

    path: str

    def read(self) -> Rows:
        """All questions of all files in the order of their names, as :meth:`Questions.read`.

        Raises:
          BertJaxError: no such folder, no files, one that is damaged, an empty text, or a label that is no choice.
        """
        rows = Rows([], [])
        for path in sorted(Path(self.path).rglob("*.txt")):
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                article = _text([found["article"]], f"{path}: article")
                fields = zip(found["questions"], found["options"], found["answers"], strict=True)
                for number, (question, options, answer) in enumerate(fields):
                    where = f"{path}: question {number + 1}"
                    asked = _text([question], where)
                    choices = [_text([option], f"{where}, choice {n}") for n, option in enumerate(options)]
                    seconds = [asked.replace(BLANK, c) if BLANK in asked else f"{asked} {c}" for c in choices]
                    rows.texts.append((article, *seconds))
                    rows.labels.append(_label(answer, len(choices), where))
            except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
                raise BertJaxError(
                    f"{path}: no passage of RACE, one JSON object with article, questions, options and answers ({error!r})"
                ) from None
        return _any(rows, f"{self.path}/**/*.txt")


def _records(path: str, wanted: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, its fields by name) for every line with any; of the ``wanted`` each must be there once at most."""
    text, form = text_of(path), path.removesuffix(".gz")
    if form.endswith(".jsonl"):
        yield from objects_of(text, path)
        return
    lines = separated(text, path)
    names = [name.strip() for name in next(lines, (1, []))[1]]
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise BertJaxError(f"{path}: {names.count(twice[0])} columns have the name {twice[0]!r}: rename all but one")
    for number, fields in lines:
        if len(fields) != len(names):
            raise BertJaxError(f"{path}: line {number} has {len(fields)} fields, the first line {len(names)}")
        yield number, dict(zip(names, fields, strict=True))


def _text(parts: list[Any], where: str) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise BertJaxError(f"{where}: a text is a string")
    if not parts[-1].strip():
        raise BertJaxError(f"{where}: is empty")
    for part in parts:
        check_characters(part, f"{where}: it")
    return " ".join(part.strip() for part in parts if part.strip())


def _label(value: Any, choices: int, where: str) -> str:
    """The number of the right choice, as a string."""
    text = str(value).strip()
    number = int(text) if text.isdecimal() else string.ascii_uppercase.find(text) if len(text) == 1 else -1
    if not 0 <= number < choices:
        raise BertJaxError(f"{where}: the label {value!r} is none of {choices} choices: a number from 0, or a letter from A")
    return str(number)


def _any(rows: Rows, path: str) -> Rows:
    if not rows.texts:
        raise BertJaxError(f"{path}: no questions")
    return rows


@dataclasses.dataclass(frozen=True)
class Choice(Finetuning):
    """Which of the choices goes with the first text. Questions may have different numbers of them.

    Attributes:
      truncate: what remains of texts that are too long; see ``keep`` of :func:`bert_jax.tasks.batches.encode`.
    """

    data: Questions | Race | Named
    heldout: Questions | Race | Named
    truncate: Keep = "start"

    needs: ClassVar[tuple[Head, ...]] = ("pooler", "choice")


class Chooses(Predictor):
    """Texts: (first text, choice, choice, ...). Answers: ``choice``, its number from 0, its ``text`` and ``probability``."""

    truncate: Keep = "start"
    kept = ("length", "truncate")

    def encode(self, texts: Texts) -> Encoded:
        """A question has its choices side by side, arrays [C, l], where C is the largest number of them; ``choices`` int32 [n]
        says how many are there. Each is the pair of the first text and the choice, cut as :func:`batches.encode` does.

        Raises:
          BertJaxError: no texts, a question with fewer than two choices or a text of which the tokenizer keeps nothing, or
            ``length`` leaves no room.
        """
        if few := [number for number, text in enumerate(texts) if len(text) < 3]:
            raise WrongText(few[0], "a first text and two or more choices are needed")
        counts = np.array([len(text) - 1 for text in texts], np.int32)
        every = [(first, choice) for first, *choices in texts for choice in choices]
        try:
            pairs = encode(self.tokenizer, every, self.length, self.truncate)
        except WrongText as error:
            raise WrongText(int(np.searchsorted(counts.cumsum(), error.row, side="right")), error.problem) from None
        ids, segments, masks, at = [], [], [], 0
        for count in counts:
            rows = range(at, at + count)
            shape = (counts.max(), max(len(pairs.tokens["input_ids"][row]) for row in rows))
            ids.append(np.full(shape, self.tokenizer.pad_id, np.int32))
            segments.append(np.zeros(shape, np.int32))
            masks.append(np.zeros(shape, bool))
            for place, row in enumerate(rows):
                size = len(pairs.tokens["input_ids"][row])
                ids[-1][place, :size] = pairs.tokens["input_ids"][row]
                segments[-1][place, :size] = pairs.tokens["segment_ids"][row]
                masks[-1][place, :size] = True
            at += count
        tokens = {"input_ids": ids, "segment_ids": segments, "attention_mask": masks}
        return Encoded(tokens, {"choices": counts}, np.arange(len(counts), dtype=np.int32))

    def inputs(self, batch: Batch) -> Batch:
        """[B, C, L] as [B * C, L]."""
        names = ("input_ids", "segment_ids", "attention_mask")
        return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        return {"logits": logits_of_choices(found, batch)}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        probabilities = np.asarray(jax.nn.softmax(np.stack(outputs["logits"]), axis=-1))
        chosen = probabilities.argmax(axis=-1)
        return [
            {"choice": int(number), "text": text[1 + number], "probability": float(row[number])}
            for text, number, row in zip(texts, chosen, probabilities, strict=True)
        ]


class ChoiceTask(FinetuningTask):
    """Cross entropy over the choices of a question, and accuracy."""

    predictor_type = Chooses

    def __init__(self, config: Choice, model: Model | None = None):
        super().__init__(config, model)
        self.predictor.truncate = config.truncate

    def labelled(self, encoded: Encoded, rows: Rows, table: Source) -> Encoded:
        return encoded._replace(rows=encoded.rows | {"label": np.array([int(label) for label in rows.labels], np.int32)})

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        labels = batch["label"]
        weights = (labels >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(logits_of_choices(found, batch), labels)
        return Losses(
            {"choice_loss": Ratio((entropy * weights).sum(), weights.sum())},
            {"choice_accuracy": Ratio((hits * weights).sum(), weights.sum())},
        )

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        return logits_of_choices(found, batch), (batch["label"] >= 0).astype(jnp.float32)

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        hits = [answer["choice"] == int(label) for answer, label in zip(answers, rows.labels, strict=True)]
        return {"accuracy": float(np.mean(hits))}


def logits_of_choices(found: api.Outputs, batch: Batch) -> Array:
    """float32 [B, C]; those of choices that a question does not have are the most negative float32."""
    rows, choices, _ = batch["input_ids"].shape
    there = jnp.arange(choices) < batch["choices"][:, None]
    return jnp.where(there, found.logits["choice"].reshape(rows, choices), jnp.finfo(jnp.float32).min)
