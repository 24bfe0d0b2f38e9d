"""What a masked language model thinks of words and sentences, as it stands or after cloze training.

:class:`FillsWords` weighs words for a mask, and a classification is trained as such a cloze (Schick and Schütze 2021, PET,
section 3.1: a pattern, and a word for every label; without their second loss, that of ordinary masked words).
:class:`ScoresSentences` weighs whole sentences by their pseudo-log-likelihood (Salazar et al. 2020, section 2): the sum over
their tokens of the log probability of each when it alone is masked; :func:`score_minimal_pairs` compares two by two.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig, Head
from bert_jax.progress import Progress, tracked
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.answering import Answering
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import IGNORED, Encoded, WrongText, logger
from bert_jax.tasks.tables import Rows, Table
from bert_jax.tokenizers import Tokenizer


class _Marked(str):
    """A name that can be told from what a pattern has of itself."""

    SIGN = "\0"

    def __format__(self, how: str) -> str:
        return self.SIGN


@dataclasses.dataclass(frozen=True)
class Cloze:
    """A table of labelled texts as sentences with a masked word.

    Attributes:
      table: the texts and labels. pattern: the sentence; ``{0}`` and ``{1}`` stand for the texts, and the mask is written as in
        the vocabulary of the model: ``{0} It was [MASK].``
      labels, words: what the table calls its labels, and for each the word that the mask stands for, one piece of the
        vocabulary.
    """

    table: Table
    pattern: str
    labels: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self):
        if len(self.labels) < 2 or not len(self.labels) == len(self.words) == len(set(self.words)):
            raise BertJaxError(f"words {self.words} for labels {self.labels}: one of its own for each of two or more")
        try:
            made = self.pattern.format(*map(_Marked, self.table.texts))
        except (IndexError, KeyError, ValueError, AttributeError, TypeError):
            raise BertJaxError(f"the pattern {self.pattern!r} may have {{0}}, and {{1}} in a table of pairs") from None
        if _Marked.SIGN not in made:
            raise BertJaxError(f"the pattern {self.pattern!r} has no {{0}}: every text would be the same sentence")

    @property
    def path(self) -> str:
        return self.table.path

    def read(self) -> Rows:
        """All rows: ``texts`` are (sentence, word of each label ...), ``labels`` the right words.

        Raises:
          BertJaxError: see :meth:`Table.read`; a label that is not one of ``labels``.
        """
        rows, word_of = self.table.read(), dict(zip(self.labels, self.words, strict=True))
        if unknown := sorted(set(rows.labels) - word_of.keys()):
            raise BertJaxError(f"{self.path} has the label {unknown[0]!r}, the cloze has words for {', '.join(self.labels)}")
        texts = [(self.pattern.format(*text), *self.words) for text in rows.texts]
        return Rows(texts, [word_of[label] for label in rows.labels])


@dataclasses.dataclass(frozen=True)
class MaskedWords(Finetuning):
    """Which of a few words a mask stands for. What comes out is a masked language model still."""

    data: Cloze
    heldout: Cloze

    needs: ClassVar[tuple[Head, ...]] = ("mlm",)


class FillsWords(Predictor):
    """Texts: (sentence with one mask, word, word, ...). Answers: the best ``word``, its ``probability`` among these words, and
    ``log probability of X`` for each, in nats and among the whole vocabulary."""

    taken = (2, float("inf"), "a sentence with a mask, and words for it")

    def encode(self, texts: Texts) -> Encoded:
        """``candidates`` int32 [n, C], -1 where a sentence has fewer, are the pieces of the words. A sentence that is too long
        keeps what is nearest to its mask, with one warning line.

        Raises:
          BertJaxError: no sentences, one without words or with another number of masks than one, a word that is not one piece
            where the mask stands, or ``length`` leaves no room.
        """
        room = self.length - len(self.tokenizer.build([])[0])
        if room < 1 or not texts:
            raise BertJaxError(f"length {self.length} leaves no room for text" if texts else "there are no sentences to fill")
        built, positions, cut = [], [], 0
        candidates = np.full((len(texts), max(len(text) for text in texts) - 1), IGNORED, np.int32)
        for number, (sentence, *words) in enumerate(texts):
            ids = self.tokenizer.encode(sentence, special=True).ids
            masks = np.flatnonzero(ids == self.tokenizer.mask_id)
            if len(masks) != 1 or not words:
                mask = self.tokenizer.piece(self.tokenizer.mask_id)
                raise BertJaxError(f"{sentence!r} has {len(masks)} times {mask}, {len(words)} words: one, and words for it")
            candidates[number, : len(words)] = [self._piece(sentence, ids[: masks[0]], word) for word in words]
            cut += len(ids) > room
            first = max(0, min(masks[0] - room // 2, len(ids) - room))
            built.append(self.tokenizer.build(ids[first : first + room]))
            positions.append(np.flatnonzero(built[-1][0] == self.tokenizer.mask_id)[0])
        if cut:
            logger.warning("%d of %d sentences have more than %d tokens: cut around their masks", cut, len(texts), self.length)
        return Encoded(
            {"input_ids": [ids for ids, _ in built], "segment_ids": [segments for _, segments in built]},
            {"candidates": candidates, "position": np.array(positions, np.int32)},
            np.arange(len(texts), dtype=np.int32),
        )

    def _piece(self, sentence: str, before: np.ndarray, word: str) -> int:
        """What ``word`` is in the place of the mask, behind the tokens ``before``: the same as there in running text."""
        begin = sentence.split(self.tokenizer.piece(self.tokenizer.mask_id))[0]
        ids = self.tokenizer.encode(begin + word, special=True).ids
        if len(ids) != len(before) + 1 or (ids[:-1] != before).any() or ids[-1] in self.tokenizer.special_ids:
            raise BertJaxError(
                f"{word!r} is not one piece of the vocabulary in {sentence!r}: take another word, or compare whole sentences"
            )
        return int(ids[-1])

    def inputs(self, batch: Batch) -> Batch:
        return masked_inputs(self.config, self.tokenizer, batch, batch["input_ids"])

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        total = jax.nn.logsumexp(found.logits["mlm"][:, 0], axis=-1, keepdims=True)
        return {"log_probabilities": logits_of_candidates(found, batch) - total}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        answers = []
        for (_, *words), row in zip(texts, outputs["log_probabilities"], strict=True):
            row = np.array(row[: len(words)], np.float64)
            best = int(row.argmax())
            answers.append(
                {"word": words[best], "probability": float(np.exp(row[best] - np.logaddexp.reduce(row)))}
                | {f"log probability of {word}": float(value) for word, value in zip(words, row, strict=True)}
            )
        return answers


class MaskedWordsTask(FinetuningTask):
    """Cross entropy over the words, and accuracy."""

    predictor_type = FillsWords

    def labelled(self, encoded: Encoded, rows: Rows, table: Cloze) -> Encoded:
        labels = [text[1:].index(word) for text, word in zip(rows.texts, rows.labels, strict=True)]
        return encoded._replace(rows=encoded.rows | {"label": np.array(labels, np.int32)})

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        labels = batch["label"]
        weights = (labels >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(logits_of_candidates(found, batch), labels)
        return Losses(
            {"words_loss": Ratio((entropy * weights).sum(), weights.sum())},
            {"words_accuracy": Ratio((hits * weights).sum(), weights.sum())},
        )

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        return logits_of_candidates(found, batch), (batch["label"] >= 0).astype(jnp.float32)

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        hits = [answer["word"] == word for answer, word in zip(answers, rows.labels, strict=True)]
        return {"accuracy": float(np.mean(hits))}


class ScoresSentences(Predictor):
    """Texts: (sentence, sentence, ...). Answers: ``log_probabilities``, the pseudo-log-likelihood of each, in nats; the number
    of the largest from 0, ``best``, and its ``text``."""

    taken = (1, float("inf"), "sentences")
    rows_each = 16  # two sentences, of eight tokens each

    def encode(self, texts: Texts) -> Encoded:
        """A row for every token of every sentence, special ones not counted: ``position`` int32 [n] says which. All rows of a
        sentence are the same arrays, and the mask comes in on the device.

        Raises:
          BertJaxError: no sentences, one of nothing that the tokenizer keeps, or one longer than ``length``.
        """
        if not texts or not all(texts):
            raise BertJaxError("there are no sentences to score")
        counts = [len(text) for text in texts]
        encoded = self.tokenizer.encode_batch([sentence for text in texts for sentence in text])
        tokens: dict[str, list[np.ndarray]] = {"input_ids": [], "segment_ids": []}
        positions, sizes = [], []
        for number, ids in enumerate(encoded):
            built, segments = self.tokenizer.build(ids)
            if not len(ids) or len(built) > self.length:
                size = f"{len(built)} tokens, more than {self.length}" if len(ids) else "no tokens"
                text = int(np.searchsorted(np.cumsum(counts), number, side="right"))
                raise WrongText(text, f"sentence {number - sum(counts[:text]) + 1} of it has {size}: it cannot be scored")
            positions.append(np.flatnonzero(self.tokenizer.build(np.full(len(ids), -1))[0] < 0))
            sizes.append(len(ids))
            tokens["input_ids"] += [built] * len(ids)
            tokens["segment_ids"] += [segments] * len(ids)
        sentence = np.repeat(np.arange(len(encoded)), sizes).astype(np.int32)
        rows = {"position": np.concatenate(positions).astype(np.int32), "sentence": sentence}
        return Encoded(tokens, rows, np.repeat(np.arange(len(texts)), counts)[sentence].astype(np.int32))

    def inputs(self, batch: Batch) -> Batch:
        places = jnp.arange(batch["input_ids"].shape[1])
        masked = jnp.where(places == batch["position"][:, None], self.tokenizer.mask_id, batch["input_ids"])
        return masked_inputs(self.config, self.tokenizer, batch, masked)

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        wanted = jnp.take_along_axis(batch["input_ids"], jnp.maximum(batch["position"], 0)[:, None], axis=1)[:, 0]
        entropy, _ = functional.score_labels(found.logits["mlm"][:, 0], wanted)
        return {"log_probability": -entropy}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        _, sentence = np.unique(encoded.rows["sentence"], return_inverse=True)
        sums = np.bincount(sentence, weights=np.array(outputs["log_probability"], np.float64))
        answers, at = [], 0
        for text in texts:
            scores = sums[at : at + len(text)].tolist()
            at += len(text)
            best = int(np.argmax(scores))
            answers.append({"best": best, "text": text[best], "log_probabilities": scores})
        return answers


class MinimalPairs(NamedTuple):
    """``good`` and ``bad`` float64 [n], pseudo-log-likelihoods in nats, and in how many of the pairs the good one is larger."""

    accuracy: float
    good: np.ndarray
    bad: np.ndarray


def score_minimal_pairs(model: Model, pairs: Sequence[tuple[str, str]], batch_size: int = 64) -> MinimalPairs:
    """How often a model finds the first sentence of a pair likelier than the second: acceptability without training (Warstadt
    et al. 2020, BLiMP; by pseudo-log-likelihood as Salazar et al. 2020). One of ``batch_size`` rows is a sentence with one of
    its tokens masked.

    Raises:
      BertJaxError: the model has no masked-language-model head or no tokenizer, there are no pairs, one is no pair, or a
        sentence is empty, or longer than the model takes.
    """
    return _scored(_scorer(model, batch_size), model, pairs, "pair", show=True)


def _scorer(model: Model, batch_size: int) -> Answering:
    if model.tokenizer is None or "mlm" not in model.params:
        raise BertJaxError("this checkpoint has no masked-language-model head, or no tokenizer: both are needed to score")
    predictor = ScoresSentences(model.config, model.tokenizer, model.config.max_length)
    predictor.texts = 2
    return Answering(predictor, batch_size)


def _scored(
    scorer: Answering, model: Model, pairs: Sequence[tuple[str, str]], called: str, show: bool = False
) -> MinimalPairs:
    """``called``: what messages have before the number of a pair. ``show``: progress."""
    if not len(pairs):
        raise BertJaxError(f"{called} 1 is not there: there are no pairs to score")
    found = []
    with Progress("scoring pairs", len(pairs), show) as progress:
        for _, answer in scorer.stream(model.params, map(tuple, pairs), called):
            found.append(answer["log_probabilities"])
            progress.advance()
    good, bad = np.array(found).T
    return MinimalPairs(float((good > bad).mean()), good, bad)


def read_blimp(folder: str) -> dict[str, list[tuple[str, str]]]:
    """The (good, bad) sentences of BLiMP by paradigm: the files ``*.jsonl`` of alexwarstadt/blimp's folder data.

    Raises:
      BertJaxError: no such files, or one that is damaged.
    """
    found = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            found[path.stem] = [(line["sentence_good"], line["sentence_bad"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise BertJaxError(f"{path}: no JSON lines with sentence_good and sentence_bad ({error!r})") from None
    if not found:
        raise BertJaxError(f"{folder}: no files *.jsonl")
    return found


def score_paradigms(
    model: Model, paradigms: Mapping[str, Sequence[tuple[str, str]]], batch_size: int = 64
) -> dict[str, float]:
    """The accuracy of each paradigm (:func:`read_blimp`). A pair that cannot be scored is named by paradigm and number."""
    scorer = _scorer(model, batch_size)
    model = model._replace(params=scorer.replicas.hold(model.params))  # once for all
    named = tracked(paradigms.items(), "scoring paradigms")
    return {name: _scored(scorer, model, pairs, f"{name}: pair").accuracy for name, pairs in named}


def masked_inputs(config: EncoderConfig, tokenizer: Tokenizer, batch: Batch, input_ids: Array) -> Batch:
    """The encoder's batch with vocabulary logits at ``position`` alone."""
    inputs = {name: batch[name] for name in ("segment_ids", "attention_mask")} | {"input_ids": input_ids}
    if config.positions == "relative":  # XLNet never saw [MASK]: a token to be guessed is a query, which nobody sees
        queries = input_ids == tokenizer.mask_id
        inputs |= {"query_slots": queries, "attention_mask": batch["attention_mask"] & ~queries}
    return inputs | {"masked_positions": jnp.maximum(batch["position"], 0)[:, None]}  # -1: a row that only fills the batch


def logits_of_candidates(found: api.Outputs, batch: Batch) -> Array:
    """float32 [B, C]; those of words that a sentence does not have are the most negative float32."""
    logits = jnp.take_along_axis(found.logits["mlm"][:, 0], jnp.maximum(batch["candidates"], 0), axis=1)
    return jnp.where(batch["candidates"] >= 0, logits, jnp.finfo(jnp.float32).min)
