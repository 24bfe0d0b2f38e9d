"""Multiple choice: which of several texts goes with a first one (Devlin et al. 2019, section 4.4: SWAG; RACE)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import Head
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import Encoded, Keep, WrongText, encode
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.files import objects_of, text_of
from bert_jax.tasks.race import Race, any_of, joined, right_choice
from bert_jax.tasks.tables import FORMATS, Rows, Source, check_share, part_of, separated


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
            first = joined([record[name] for name in self.first], f"{where}, {' and '.join(self.first)}")
            rows.texts.append((first, *(joined([*lead, choice], f"{where}, choice {n}") for n, choice in enumerate(choices))))
            if len(choices) < 2:
                raise BertJaxError(f"{where}: {len(choices)} choices; two or more are needed")
            if self.label is not None:
                rows.labels.append(right_choice(record[self.label], len(choices), where))
        return part_of(any_of(rows, self.path), self.share, self.path, texts=1)


def swag(path: str) -> Questions:
    """SWAG (Zellers et al. 2018), ``train.csv`` and ``val.csv`` of rowanz/swagaf: a caption, the beginning of the next one, and
    four ends of it. Beginning and end together are the second text, as in transformers' run_swag."""
    return Questions(path, ("sent1",), tuple(f"ending{n}" for n in range(4)), "label", "sent2")


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


@dataclasses.dataclass(frozen=True)
class Choice(Finetuning):
    """Which of the choices goes with the first text. Questions may have different numbers of them. In training a question's
    choices are in one row, with those of others, unless together they are long (:mod:`bert_jax.tasks.shared_rows`).

    Attributes:
      truncate: what remains of texts that are too long; see ``keep`` of :func:`bert_jax.tasks.batches.encode`.
    """

    data: Questions | Race | Named
    heldout: Questions | Race | Named
    truncate: Keep = "start"

    needs: ClassVar[tuple[Head, ...]] = ("pooler", "choice")
    packs: ClassVar[bool] = True


class Chooses(Predictor):
    """Texts: (first text, choice, choice, ...). Answers: ``choice``, its number from 0, its ``text`` and ``probability``."""

    truncate: Keep = "start"
    taken = (3, float("inf"), "a first text and two or more choices")
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
        """[B, C, L] as [B * C, L]; rows that questions share as they are."""
        if batch["input_ids"].ndim == 2:
            return batch
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


def logits_of_choices(found: api.Outputs, batch: Batch) -> Float[Array, "B *P C"]:
    """Those of choices that a question does not have are the most negative float32."""
    counts = batch["choices"]
    logits = found.logits["choice"].reshape(*counts.shape, -1)
    there = jnp.arange(logits.shape[-1]) < counts[..., None]
    return jnp.where(there, logits, jnp.finfo(jnp.float32).min)
