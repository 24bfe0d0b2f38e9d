"""RACE (Lai et al. 2017), whose passages come as files and from TFDS, and what all questions with choices have in common."""

import dataclasses
import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_jax.errors import BertJaxError
from bert_jax.tasks.files import check_characters
from bert_jax.tasks.tables import Rows

BLANK = "_"  # in questions: where the answer goes


@dataclasses.dataclass(frozen=True)
class Race:
    """A folder, such as ``RACE/train`` or ``RACE/train/high``, of files ``*.txt`` with one JSON object each: ``article``,
    ``questions``, ``options`` and ``answers`` (letters); or one such file."""

    path: str

    def read(self) -> Rows:
        """All questions of all files in the order of their names, as :meth:`bert_jax.tasks.choice.Questions.read`.

        Raises:
          BertJaxError: nothing there, no files in it, a damaged one, an empty text, or a label that is no choice.
        """
        rows = Rows([], [])
        whole = Path(self.path)
        for path in [whole] if whole.is_file() else sorted(whole.rglob("*.txt")):
            try:
                for texts, label in questions_of(json.loads(path.read_text(encoding="utf-8")), str(path)):
                    rows.texts.append(texts)
                    rows.labels.append(label)
            except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
                raise BertJaxError(
                    f"{path}: no passage of RACE, one JSON object with article, questions, options and answers ({error!r})"
                ) from None
        return any_of(rows, self.path if whole.is_file() else f"{self.path}/**/*.txt")


def questions_of(passage: Mapping[str, Any], where: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The questions about a passage: (article, second text, second text, ...) and the number of the right one. The second text
    is question and option, or the question with the option in its blank, as in google-research/albert's race_utils.py.

    Raises:
      BertJaxError: an empty text, or a label that is no choice. KeyError, TypeError, ValueError: in another form.
    """
    article = joined([passage["article"]], f"{where}: article")
    fields = zip(passage["questions"], passage["options"], passage["answers"], strict=True)
    for number, (question, options, answer) in enumerate(fields):
        here = f"{where}: question {number + 1}"
        asked = joined([question], here)
        choices = [joined([option], f"{here}, choice {n}") for n, option in enumerate(options)]
        seconds = [asked.replace(BLANK, choice) if BLANK in asked else f"{asked} {choice}" for choice in choices]
        yield (article, *seconds), right_choice(answer, len(choices), here)


def joined(parts: list[Any], where: str) -> str:
    """Texts with blanks between, of which the last must not be empty; ``where``: what messages call them."""
    if not all(isinstance(part, str) for part in parts):
        raise BertJaxError(f"{where}: a text is a string")
    if not parts[-1].strip():
        raise BertJaxError(f"{where}: is empty")
    for part in parts:
        check_characters(part, f"{where}: it")
    return " ".join(part.strip() for part in parts if part.strip())


def right_choice(value: Any, choices: int, where: str) -> str:
    """The number of the right choice, as a string."""
    text = str(value).strip()
    number = int(text) if text.isdecimal() else string.ascii_uppercase.find(text) if len(text) == 1 else -1
    if not 0 <= number < choices:
        raise BertJaxError(f"{where}: the label {value!r} is none of {choices} choices: a number from 0, or a letter from A")
    return str(number)


def any_of(rows: Rows, path: str) -> Rows:
    """``rows``; BertJaxError where there are none."""
    if not rows.texts:
        raise BertJaxError(f"{path}: no questions")
    return rows
