"""Questions about paragraphs in the files of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) and XQuAD, and their scores."""

import collections
import dataclasses
import json
import logging
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.errors import BertJaxError
from bert_jax.tasks.files import text_of
from bert_jax.tasks.tables import Rows

logger = logging.getLogger("bert_jax")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
    """What somebody marked in a context: the text, and where it begins, in characters; -1: it does not stand where the file
    says, so that it is good for scores only."""

    text: str
    start: int


class Gold(NamedTuple):
    """The label of a question: its id, and the answers that count as right; none: the context has no answer (SQuAD 2.0)."""

    id: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Squad:
    """A file of SQuAD 1.1 or 2.0, or any in their form.

    Attributes:
      path: the JSON file.
      articles: the part of its articles that is read, in the order of the file: (0, 0.75) the first three quarters, (0.75, 1)
        the rest. Questions about one article never come apart, so that what is held out is about other subjects.
    """

    path: str
    articles: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self):
        if len(self.articles) != 2 or not 0 <= self.articles[0] < self.articles[1] <= 1:
            raise BertJaxError(f"{self.path}: articles={self.articles}: a part is from where to where, such as (0, 0.75)")

    def read(self) -> Rows:
        """All questions: texts (question, context), labels :class:`Gold`. An answer that does not stand in its context at
        ``answer_start`` is kept for scores, as run_squad.py of google-research/bert does; one warning line says how many.

        Raises:
          BertJaxError: no such file, no JSON, not in the form of SQuAD (the missing key is named), an empty question or
            context, an id that comes twice, no questions, or not one answer that stands where it should.
        """
        return rows_of(self._questions(), self.path, f"articles={self.articles}")

    def asked(self) -> list[tuple[str, str, str]]:
        """Id, question and context of all questions, whether the file has their answers or not; refused is what :meth:`read`
        refuses of these."""
        found = [one[:3] for one in _identified(self._questions(), self.path)]
        if not found:
            raise BertJaxError(f"{self.path}: no questions")
        return found

    def _questions(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Context, question, and what messages call its place."""
        try:
            content = json.loads(text_of(self.path))
        except (ValueError, RecursionError) as error:
            raise BertJaxError(f"{self.path} is not JSON: {error}") from None
        every = _get(content, "data", list, f"{self.path}: not a SQuAD file: the whole")
        first, last = (round(share * len(every)) for share in self.articles)
        for number, article in enumerate(every[first:last], start=first + 1):
            here = f"{self.path}: article {number}"
            for paragraph in _get(article, "paragraphs", list, here):
                context = _text(paragraph, "context", here)
                for entry in _get(paragraph, "qas", list, here):
                    yield context, entry, here


def rows_of(questions: Iterable[tuple[str, dict[str, Any], str]], path: str, part: str) -> Rows:
    """Texts and labels of questions in SQuAD's form, see :meth:`Squad.read`: context, question, and what messages call its
    place. ``part``: what was read of ``path``."""
    texts, labels, misplaced = [], [], []
    answers = 0
    for identity, question, context, entry, where in _identified(questions, path):
        gold = [] if entry.get("is_impossible") else [
            _answer(one, context, f"{where}: question {identity}") for one in _get(entry, "answers", list, where)
        ]
        answers += len(gold)
        misplaced += [identity for answer in gold if answer.start < 0]
        texts.append((question, context))
        labels.append(Gold(identity, tuple(gold)))
    if not texts:
        raise BertJaxError(f"{path}: no questions in {part}")
    if misplaced:
        found = (f"{path}: {len(misplaced)} of {answers} answers are not in their contexts at answer_start (the first: "
                 f"question {misplaced[0]})")
        if len(misplaced) == answers:
            raise BertJaxError(f"{found}: it must count characters of the context")
        logger.warning("%s: they count in scores, and are not trained on", found)
    return Rows(texts, labels)


def _identified(
    questions: Iterable[tuple[str, dict[str, Any], str]], path: str
) -> Iterator[tuple[str, str, str, dict[str, Any], str]]:
    """The id and the text of each question, and then the same."""
    ids = set()
    for context, entry, where in questions:
        question, identity = _text(entry, "question", where), str(_get(entry, "id", (str, int), where))
        if identity in ids:
            raise BertJaxError(f"{path}: the id {identity} comes twice")
        ids.add(identity)
        yield identity, question, context, entry, where


def _get(data: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(data, dict) or key not in data:
        raise BertJaxError(f"{where} has no {key!r}")
    if not isinstance(data[key], kind):
        raise BertJaxError(f"{where}: {key!r} is {type(data[key]).__name__}, which it must not be")
    return data[key]


def _text(data: Any, key: str, where: str) -> str:
    text = _get(data, key, str, where)
    if not text.strip():
        raise BertJaxError(f"{where} has an empty {key}")
    return text


def _answer(data: Any, context: str, where: str) -> Answer:
    text, start = _text(data, "text", where), _get(data, "answer_start", int, where)
    stands = start >= 0 and context.startswith(text, start)
    return Answer(text, start if stands else -1)


def normalise(text: str) -> str:
    """What the official scripts compare: lower case, without punctuation of ASCII and without a, an, the; single spaces. It is
    the same for all languages, as XQuAD is scored; Chinese, without spaces, then counts as one word for each clause."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def scores(
    predictions: Sequence[str], golds: Sequence[Gold], margins: np.ndarray | None = None, threshold: float = 0.0
) -> dict[str, float]:
    """The scores of evaluate-v2.0.py, as shares of 1 and not in percent. Those of 1.1 are the same, but for questions whose
    answers are nothing but punctuation and articles: there an equally empty prediction has an F1 of 0 in evaluate-v1.1.py.

    Args:
      predictions: the best spans.
      margins: float [n], how much more probable no answer is than the span; where it exceeds ``threshold``, there is none.
        None: all questions are answered.

    Returns:
      ``exact_match`` and ``f1``. Where some questions have no answer, these also for each kind: ``has_answer_exact_match``,
      ``has_answer_f1``, ``no_answer_accuracy``. With margins ``best_exact_match``, ``best_f1``, and the thresholds
      ``best_exact_match_threshold``, ``best_f1_threshold`` that give them: chosen with knowledge of the answers.
    """
    pairs = list(zip(predictions, golds, strict=True))
    compared = np.array([_compare(text, [answer.text for answer in gold.answers]) for text, gold in pairs])
    has = np.array([bool(gold.answers) for gold in golds])
    none = np.zeros(len(golds), bool) if margins is None else np.asarray(margins) > threshold
    final = np.where(none[:, None], ~has[:, None], compared)
    found = dict(zip(("exact_match", "f1"), final.mean(axis=0).tolist(), strict=True))
    if not has.all():
        found["no_answer_accuracy"] = float(final[~has, 0].mean())
        if has.any():
            found |= dict(zip(("has_answer_exact_match", "has_answer_f1"), final[has].mean(axis=0).tolist(), strict=True))
    if margins is not None:
        said = np.array([bool(text) for text in predictions])
        for name, values in zip(("exact_match", "f1"), compared.T, strict=True):
            gain = np.where(has, values, -1.0 * said)  # of answering, against an empty answer
            best, at = _best_threshold(gain, np.asarray(margins))
            found[f"best_{name}"], found[f"best_{name}_threshold"] = (best + (~has).sum()) / len(golds), at
    return found


def _best_threshold(gain: np.ndarray, margins: np.ndarray) -> tuple[float, float]:
    """The largest sum of the gains whose margin is at most a threshold, and the smallest such threshold. The official script
    may end within equal margins, which no threshold can do."""
    order = np.argsort(margins, kind="stable")
    ordered = margins[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of equal ones
    sums = np.append(0.0, np.cumsum(gain[order])[last])
    thresholds = np.append(np.nextafter(ordered[0], -np.inf), ordered[last])
    best = int(sums.argmax())
    return float(sums[best]), float(thresholds[best])


def _compare(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 with the closest of the answers."""
    wanted = [found for answer in answers if (found := normalise(answer))] or [""]
    said = normalise(prediction)
    return float(said in wanted), max(_f1(said.split(), gold.split()) for gold in wanted)


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    same = (collections.Counter(said) & collections.Counter(gold)).total()
    return 2 * same / (len(said) + len(gold))
