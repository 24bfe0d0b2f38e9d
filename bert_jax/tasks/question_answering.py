"""Extractive question answering: which characters of a context answer a question (Devlin et al. 2019, sections 4.2 and 4.3).

A context that does not fit beside its question is read in windows that overlap, a row of the encoder each. A window without
the answer is to point at its first special token, the null; so is every window of a question that has no answer (SQuAD 2.0).
An answer may only begin where its window is, of all windows, the one that shows most around that token (run_squad.py's "max
context"). Of all pairs of tokens that remain, the best is taken: run_squad.py looks at pairs of the 20 best beginnings and the
20 best ends alone, and may so find none.
"""

import dataclasses
import logging
import unicodedata
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig, Head
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks import squad
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import IGNORED, Encoded, WrongText
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tables import Rows, Source
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

WINDOW = 384  # tokens of question and context, where nothing else is said
NOWHERE, ENDS, BEGINS, NULL = range(4)  # what a token may be: no part of an answer, its end, its beginning too, the null
_JOINER = "\u200d"  # of emoji that are shown as one
# Characters of format belong to what precedes them, but for those between words, and those that open something: a change of
# direction, a number, a verse.
_BETWEEN = frozenset("\u200b\u2060\ufeff")
_OPENING = frozenset("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890"
                     "\u0891\u08e2\U000110bd\U000110cd")


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Finetuning):
    """Where the answer to a question stands in a context. The defaults are those of run_squad.py of google-research/bert.

    Attributes:
      lengths: as in :class:`Finetuning`; the longest is that of a window.
      stride: tokens from the beginning of a window to that of the next. question_tokens: what is longer loses its end.
      answer_tokens: the longest answer that is given; any are trained on.
      null_threshold: None: every question has an answer (SQuAD 1.1). Else a question is left without one where the logits of
        the null exceed those of the best span by more: 0 in SQuAD 2.0, or what an evaluation calls best_f1_threshold.
    """

    data: Squad | Named
    heldout: Squad | Named
    lengths: tuple[int, ...] = (384,)
    stride: int = 128
    question_tokens: int = 64
    answer_tokens: int = 30
    null_threshold: float | None = None

    needs: ClassVar[tuple[Head, ...]] = ("span",)

    def __post_init__(self):
        super().__post_init__()
        for name in ("stride", "question_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise BertJaxError(f"task.{name} is {getattr(self, name)}: it must be at least 1")


def window_sizes(length: int) -> dict[str, int]:
    """``stride``, ``question_tokens`` and ``answer_tokens`` for windows of ``length`` tokens: run_squad.py's, or where windows
    are too short for these a third, a fourth and a fourth of ``length``."""
    sizes = {"stride": min(128, length // 3), "question_tokens": min(64, length // 4), "answer_tokens": min(30, length // 4)}
    return {name: max(1, size) for name, size in sizes.items()}


class AnswersQuestions(Predictor):
    """Texts: (question, context). Answers: ``text``, exactly as it stands in the context, and ``start``, its first character
    there; ``score``, the sum of its two logits, and ``null_score``, the same of the null in the window where it is lowest. With
    a threshold, ``span`` is the best text in any case, and where there is no answer ``text`` is empty and ``start`` -1."""

    taken = (2, 2, "a question and a context")
    kept = ("length", "stride", "question_tokens", "answer_tokens", "null_threshold")

    def __init__(
        self, config: EncoderConfig, tokenizer: Tokenizer, length: int, *, stride: int = 128, question_tokens: int = 64,
        answer_tokens: int = 30, null_threshold: float | None = None,
    ):
        """The arguments are fields of :class:`QuestionAnswering`.

        Raises:
          BertJaxError: the tokenizer has no token for the null.
        """
        super().__init__(config, tokenizer, length)
        self.stride, self.question_tokens, self.answer_tokens = stride, question_tokens, answer_tokens
        self.null_threshold = null_threshold
        probe, _ = tokenizer.build([], [IGNORED])
        if tokenizer.cls_id not in probe:
            raise BertJaxError(f"the tokenizer puts no {tokenizer.pieces[tokenizer.cls_id]} around texts: answers need it")
        self._specials, self._before = len(probe) - 1, int(np.flatnonzero(probe == IGNORED)[0])

    def encode(self, texts: Texts) -> Encoded:
        """Windows. Beside ids and segments their tokens have ``places`` int8 [l], what each may be, and ``characters`` int32
        [2, l], where it begins and ends in the context.

        Raises:
          BertJaxError: no texts, no pairs, a question or a context without any token, or windows too short for the longest
            answer.
        """
        if not texts:
            raise BertJaxError("there are no questions to encode")
        if any(len(text) != 2 for text in texts):
            raise BertJaxError("a question needs a context to look in: give two texts, the question first")
        self._check_room()
        contexts = list(dict.fromkeys(context for _, context in texts))
        encoded = dict(zip(contexts, self.tokenizer.encode_batch_with_offsets(contexts, special=True), strict=True))
        visible = {context: _visible(context, encoded[context].offsets) for context in contexts}
        questions = self.tokenizer.encode_batch([question for question, _ in texts], special=True)
        cut, apart, item = 0, 0, []
        tokens: dict[str, list[np.ndarray]] = {"input_ids": [], "segment_ids": [], "places": [], "characters": []}
        for number, (question, (_, context)) in enumerate(zip(questions, texts, strict=True)):
            if not len(question) or not visible[context].any():
                part = "context" if len(question) else "question"
                raise WrongText(number, f"the {part} has no character that the tokenizer keeps")
            cut += len(question) > self.question_tokens
            question = question[: self.question_tokens]
            ids, offsets = encoded[context]
            room = self.length - self._specials - len(question)
            firsts = self._windows(len(ids), room)
            apart += len(firsts) > 1 and self.stride > room
            central = _central(firsts, len(ids), room)
            for window, first in enumerate(firsts):
                inside = slice(first, first + room)
                built, segments = self.tokenizer.build(question, ids[inside])
                begin = self._before + len(question)
                here = slice(begin, begin + len(ids[inside]))
                places, characters = np.zeros(len(built), np.int8), np.zeros((2, len(built)), np.int32)
                places[here] = np.where(central[inside] == window, BEGINS, ENDS) * visible[context][inside]
                around = self.tokenizer.build(np.full(len(question), IGNORED), np.full(len(ids[inside]), IGNORED))[0]
                places[around == self.tokenizer.cls_id] = NULL  # the one that no text holds
                characters[:, here] = offsets[inside].T
                for name, made in zip(tokens, (built, segments, places, characters), strict=True):
                    tokens[name].append(made)
                item.append(number)
        if cut:
            logger.warning("%d of %d questions have more than %d tokens: their ends were cut", cut, len(texts),
                           self.question_tokens)
        if apart:
            logger.warning("the windows of %d of %d questions follow each other without overlap: they have less room than the "
                           "stride of %d tokens", apart, len(texts), self.stride)
        return Encoded(tokens, {}, np.array(item, np.int32))

    def _check_room(self) -> None:
        if (room := self.length - self._specials - self.question_tokens) < self.answer_tokens:
            raise BertJaxError(
                f"windows of {self.length} tokens leave {room} beside a question of {self.question_tokens}, answers have up to "
                f"{self.answer_tokens}: raise task.lengths, or lower task.question_tokens or task.answer_tokens"
            )

    def _windows(self, length: int, room: int) -> np.ndarray:
        """Where the windows of a context of ``length`` tokens begin."""
        firsts = np.arange(0, max(length - room, 0) + self.stride, min(self.stride, room))
        return firsts[: 1 + np.searchsorted(firsts, length - room)]  # the first that reaches the end is the last

    def count_windows(self, texts: Texts) -> int:
        """How many windows :meth:`encode` makes of texts that it takes; BertJaxError where they are too short."""
        self._check_room()
        contexts = list(dict.fromkeys(context for _, context in texts))
        lengths = dict(zip(contexts, map(len, self.tokenizer.encode_batch(contexts, special=True)), strict=True))
        questions = self.tokenizer.encode_batch([question for question, _ in texts], special=True)
        return sum(
            len(self._windows(lengths[context], self.length - self._specials - min(len(question), self.question_tokens)))
            for question, (_, context) in zip(questions, texts, strict=True)
        )

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        span, score, null = best_span(found.logits["span"], batch["places"], self.answer_tokens)
        characters = jnp.take_along_axis(batch["characters"], span[:, :, None], axis=2)[:, :, 0]
        return {"characters": characters, "score": score, "null_score": null}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        score, null, characters = (np.stack(outputs[name]) for name in ("score", "null_score", "characters"))
        first = np.searchsorted(encoded.item, np.arange(len(texts)))
        nulls = np.minimum.reduceat(null, first)
        best = np.lexsort((-score, encoded.item))[first]  # the first window where some are equal
        found = []
        for (_, context), row, lowest in zip(texts, best, nulls, strict=True):
            begin, end = whole(context, *characters[row].tolist())
            answer = {"text": context[begin:end], "start": begin, "score": float(score[row]), "null_score": float(lowest)}
            if self.null_threshold is not None:
                answer["span"] = answer["text"]
                if answer["null_score"] - answer["score"] > self.null_threshold:
                    answer |= {"text": "", "start": -1}
            found.append(answer)
        return found


class QuestionAnsweringTask(FinetuningTask):
    """The mean of two cross entropies over the tokens of a window, and how many spans are right at both sides. As in
    run_squad.py and transformers, all positions compete, those that only pad a row as well."""

    predictor_type = AnswersQuestions

    def __init__(self, config: QuestionAnswering, model: Model | None = None):
        super().__init__(config, model)
        self.predictor = AnswersQuestions(
            config.encoder, self.tokenizer, max(config.lengths), stride=config.stride, question_tokens=config.question_tokens,
            answer_tokens=config.answer_tokens, null_threshold=config.null_threshold,
        )

    def labelled(self, encoded: Encoded, rows: Rows, table: Source) -> Encoded:
        """``span_label`` int32 [n, 2]: first and last token of the answer that is named first; the null where it is not in a
        window, -1 where no window has it whole."""
        without = [gold.id for gold in rows.labels if not gold.answers]
        if without and self.config.null_threshold is None:
            raise BertJaxError(
                f"{table.path}: {len(without)} of {len(rows.labels)} questions have no answer (the first: {without[0]}): set "
                "task.null_threshold=0, as for SQuAD 2.0 (evaluate --null-threshold 0)"
            )
        chosen = [next((a for a in gold.answers if a.start >= 0), None) for gold in rows.labels]
        labels = np.empty((len(encoded.item), 2), np.int32)
        held = np.array([not gold.answers for gold in rows.labels])
        edge = np.append(np.append(True, encoded.item[1:] != encoded.item[:-1]), True)  # is an item's first row, after its last
        for row, number in enumerate(encoded.item):
            places, answer = encoded.tokens["places"][row], chosen[number]
            span = answer and _span(
                places, encoded.tokens["characters"][row], answer.start, answer.start + len(answer.text), *edge[row : row + 2]
            )
            labels[row] = span or int(np.flatnonzero(places == NULL)[0])
            held[number] |= span is not None
        labels[~held[encoded.item]] = IGNORED
        if lost := int(sum(~held[k] and answer is not None for k, answer in enumerate(chosen))):
            logger.warning("%s: %d of %d answers are in no window whole: their questions weigh nothing in the loss",
                           table.path, lost, len(chosen))
        return encoded._replace(rows={"span_label": labels})

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        labels = batch["span_label"]
        weights = (labels[:, 0] >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(jnp.swapaxes(found.logits["span"], 1, 2), labels)
        return Losses(
            {"span_loss": Ratio((entropy.mean(axis=1) * weights).sum(), weights.sum())},
            {"span_accuracy": Ratio((hits.all(axis=1) * weights).sum(), weights.sum())},
        )

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        return jnp.swapaxes(found.logits["span"], 1, 2), (batch["span_label"] >= 0).astype(jnp.float32)

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        """:func:`bert_jax.tasks.squad.scores`."""
        threshold = self.config.null_threshold
        if threshold is None:
            return squad.scores([answer["text"] for answer in answers], rows.labels)
        margins = np.array([answer["null_score"] - answer["score"] for answer in answers])
        return squad.scores([answer["span"] for answer in answers], rows.labels, margins, threshold)


def best_span(
    logits: Float[Array, "B L 2"], places: Int[Array, "B L"], longest: int
) -> tuple[Int[Array, "B 2"], Float[Array, " B"], Float[Array, " B"]]:
    """The best pair of tokens of each row, both included, at most ``longest`` tokens; the sum of its logits, half the lowest
    float where no token may begin an answer; and that of the null. The first pair where some are equal."""
    length, lowest = logits.shape[1], jnp.finfo(jnp.float32).min / 4
    starts = jnp.where(places == BEGINS, logits[..., 0], lowest)
    ends = jnp.where((places == BEGINS) | (places == ENDS), logits[..., 1], lowest)
    ends = jnp.pad(ends, ((0, 0), (0, longest - 1)), constant_values=lowest)
    reached = jnp.stack([ends[:, k : k + length] for k in range(longest)], axis=-1)  # [B, L, longest], from every start
    totals = starts + reached.max(axis=-1)
    first = totals.argmax(axis=1)
    last = first + jnp.take_along_axis(reached.argmax(axis=-1), first[:, None], axis=1)[:, 0]
    null = jnp.where(places == NULL, logits.sum(axis=-1), 0.0).sum(axis=1)
    return jnp.stack([first, last], axis=1), totals.max(axis=1), null


def whole(context: str, begin: int, end: int) -> tuple[int, int]:
    """A span of characters without white space around it, and with all that belongs to its first and last character as people
    see them: combining marks, which some tokenizers drop, variation selectors, skin tones, emoji that are joined, both letters
    of a flag or all that name it, marks of a direction."""
    while begin < end - 1 and context[begin].isspace():
        begin += 1
    while end > begin + 1 and context[end - 1].isspace():
        end -= 1
    while _splits(context, begin):
        begin -= 1
    while _splits(context, end):
        end += 1
    return begin, end


def _splits(context: str, place: int) -> bool:
    """Whether what is seen as one character lies on both sides of ``place``."""
    if not 0 < place < len(context):
        return False
    before, after = context[place - 1], context[place]
    if before.isspace() or after.isspace():
        return False
    if _is_of_flag(before) and _is_of_flag(after):  # two make a flag, from the first of several on
        first = place
        while first and _is_of_flag(context[first - 1]):
            first -= 1
        return (place - first) % 2 == 1
    if _JOINER in (before, after) or before in _OPENING or "\U0001f3fb" <= after <= "\U0001f3ff":  # the skin tones
        return True
    category = unicodedata.category(after)
    return category.startswith("M") or (category == "Cf" and after not in _BETWEEN | _OPENING)


def _is_of_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _visible(context: str, offsets: np.ndarray) -> np.ndarray:
    """bool [l]: which tokens stand for more than white space."""
    counts = np.concatenate([[0], np.cumsum([not character.isspace() for character in context])])
    return counts[offsets[:, 1]] > counts[offsets[:, 0]]


def _central(firsts: np.ndarray, count: int, room: int) -> np.ndarray:
    """int [count]: the window that shows most around each token: of the smaller of both sides, then of the longer window. The
    few that a token is in are looked at one after another, from the last on, and the first remains where some are equal."""
    tokens = np.arange(count)
    first, after = (np.searchsorted(firsts, edge, side="right") for edge in (tokens - room, tokens))
    best, central = np.zeros(count, int), np.zeros(count, int)
    for back in range(1, int((after - first).max()) + 1):
        window = np.maximum(after - back, first)
        begin, end = firsts[window], np.minimum(firsts[window] + room, count)
        shown = 100 * np.minimum(tokens - begin, end - 1 - tokens) + end - begin
        central = np.where(shown >= best, window, central)
        best = np.maximum(shown, best)
    return central


def _span(
    places: np.ndarray, characters: np.ndarray, start: int, stop: int, begins_context: bool, ends_context: bool
) -> tuple[int, int] | None:
    """The tokens of a window that hold characters ``start`` to ``stop``, or None where they are not all in it."""
    tokens = np.flatnonzero((places == BEGINS) | (places == ENDS))
    if not len(tokens):
        return None
    begins, ends = characters[:, tokens]
    if (begins[0] > start and not begins_context) or (ends[-1] < stop and not ends_context):
        return None
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(begins, stop, side="left") - 1
    return (int(tokens[first]), int(tokens[last])) if first <= last else None
