"""A tag for every word: named entities, parts of speech (Devlin et al. 2019, section 5.3)."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import Head
from bert_jax.task import Batch, Losses, Ratio
from bert_jax.tasks.base import Finetuning, FinetuningTask, Outputs, Predictor, Texts
from bert_jax.tasks.batches import IGNORED, Encoded
from bert_jax.tasks.columns import ENTITY, Columns, Lists, entities
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.tables import Rows, Source, in_file
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")


@dataclasses.dataclass(frozen=True)
class Tagging(Finetuning):
    """Which of ``encoder.labels`` a word has. Where some of them begin with ``B-`` or ``I-`` they are entities in IOB2 and
    scored as such, else by words. ``data.labels()`` lists those of a file."""

    data: Columns | Lists | Named
    heldout: Columns | Lists | Named

    needs: ClassVar[tuple[Head, ...]] = ("tagger",)
    packs: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        labels = self.encoder.labels
        if len(labels) < 2:
            raise BertJaxError(f"task.encoder.labels {labels}: a tagger needs two or more")
        if entities(labels) and (other := [label for label in labels if label != "O" and not ENTITY.fullmatch(label)]):
            raise BertJaxError(f"task.encoder.labels has {other[0]!r} beside B- and I-: tags of entities are B-X, I-X and O")


class Tags(Predictor):
    """Texts: tuples of words. Answers: ``tags``, one a word; where they are of entities also ``entities``, a list of
    dictionaries: ``text`` (its words with blanks between), ``label``, and ``first`` and ``last`` word, numbered from 0."""

    output_per = "token"
    taken = (1, float("inf"), "a sentence")

    def encode(self, texts: Texts) -> Encoded:
        """Sentences as their words with blanks between them. ``word_starts`` bool: the first piece of each word, the one that
        has its tag. What is longer than ``length`` takes several rows, cut between words; only a word that is longer by itself
        loses its end, with one warning line.

        Raises:
          BertJaxError: no sentences, one without words, an empty word, or ``length`` leaves no room.
        """
        if not texts:
            raise BertJaxError("there are no sentences to tag")
        room = self.length - len(self.tokenizer.build([])[0])
        if room < 1:
            raise BertJaxError(f"length {self.length} leaves no room for text beside the special tokens")
        ids, segments, starts, item, cut = [], [], [], [], 0
        for number, pieces in enumerate(pieces_of_words(self.tokenizer, texts)):
            sizes = [len(word) for word in pieces]
            cut += sum(size > room for size in sizes)
            for first, beyond in windows(sizes, room):
                words = [word[:room] for word in pieces[first:beyond]]
                built, segment_ids = self.tokenizer.build(np.concatenate(words))
                # The layout of the special tokens is the tokenizer's matter: what is negative is none of them.
                marks = [np.where(np.arange(len(word)) == 0, -1, 0) for word in words]
                ids.append(built)
                segments.append(segment_ids)
                starts.append(self.tokenizer.build(np.concatenate(marks))[0] < 0)
                item.append(number)
        if cut:
            logger.warning("%d words have more than %d pieces, what a sequence has room for: their ends were cut", cut, room)
        tokens = {"input_ids": ids, "segment_ids": segments, "word_starts": starts}
        return Encoded(tokens, {}, np.array(item, np.int32))

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        return {"tags": found.logits["tagger"].argmax(axis=-1).astype(jnp.int32)}

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        rows = zip(outputs["tags"], encoded.tokens["word_starts"], strict=True)
        numbers = np.concatenate([tags[: len(starts)][starts] for tags, starts in rows])
        every = [self.config.labels[number] for number in numbers]
        found, at = [], 0
        for words in texts:
            tags = every[at : at + len(words)]
            at += len(words)
            found.append({"tags": tags})
            if entities(self.config.labels):
                found[-1]["entities"] = [
                    {"text": " ".join(words[first : last + 1]), "label": label, "first": first, "last": last}
                    for label, first, last in spans(tags)
                ]
        return found


class TaggingTask(FinetuningTask):
    """Cross entropy and accuracy over the first pieces of words."""

    predictor_type = Tags

    def labelled(self, encoded: Encoded, rows: Rows, table: Source) -> Encoded:
        if entities(self.config.encoder.labels):
            _entity_metrics()  # before hours of training, not after; who only predicts needs none
        known = {label: number for number, label in enumerate(self.config.encoder.labels)}
        for number, (words, tags) in enumerate(zip(rows.texts, rows.labels, strict=True), start=1):
            if len(words) != len(tags):
                raise BertJaxError(f"{table.path}: sentence {number} has {len(words)} words and {len(tags)} tags")
            if unknown := [tag for tag in tags if tag not in known]:
                raise BertJaxError(
                    f"{table.path}: sentence {in_file(table, rows, [number])[0]} has the tag {unknown[0]!r}, "
                    f"task.encoder.labels are {', '.join(known)}"
                )
        every, at, labels = np.array([known[tag] for tags in rows.labels for tag in tags], np.int32), 0, []
        for starts in encoded.tokens["word_starts"]:
            labels.append(np.full(len(starts), IGNORED, np.int32))
            labels[-1][starts] = every[at : at + starts.sum()]
            at += starts.sum()
        return encoded._replace(tokens=encoded.tokens | {"labels": labels})

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        labels = batch["labels"]
        weights = (labels >= 0).astype(jnp.float32)
        entropy, hits = functional.score_labels(found.logits["tagger"], labels)
        return Losses(
            {"tagger_loss": Ratio((entropy * weights).sum(), weights.sum())},
            {"tagger_accuracy": Ratio((hits * weights).sum(), weights.sum())},
        )

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        return found.logits["tagger"], (batch["labels"] >= 0).astype(jnp.float32)

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        return scores(rows.labels, [answer["tags"] for answer in answers], self.config.encoder.labels)


def pieces_of_words(tokenizer: Tokenizer, sentences: Texts) -> list[list[np.ndarray]]:
    """For every sentence and word its pieces, int32 [>= 1].

    A sentence is tokenised as a whole, so that a word has the pieces that it has in running text (byte-level ones know the
    blank before it). A word of which the tokenizer keeps nothing (control characters, a lone combining mark) is the unknown
    piece.

    Raises:
      BertJaxError: a sentence without words, an empty word.
    """
    for number, words in enumerate(sentences, start=1):
        if not words or not all(word.strip() for word in words):
            raise BertJaxError(f"sentence {number} has {'an empty word' if words else 'no words'}")
    found = []
    encodings = tokenizer.encode_batch_with_offsets([" ".join(words) for words in sentences], special=True)
    for words, (ids, offsets) in zip(sentences, encodings, strict=True):
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        # Pieces may count the blank before their word as theirs: the first word that ends behind a piece's begin has it.
        owner = np.minimum(np.searchsorted(ends, offsets[:, 0], side="right"), len(words) - 1)
        counts = np.bincount(np.maximum.accumulate(owner), minlength=len(words)) if len(ids) else np.zeros(len(words), int)
        parts = np.split(ids, np.cumsum(counts)[:-1])
        found.append([part if len(part) else np.array([tokenizer.unk_id], np.int32) for part in parts])
    return found


def windows(sizes: Sequence[int], room: int) -> list[tuple[int, int]]:
    """(first, beyond) of runs of words, each as long as ``room`` pieces allow; a longer word counts as ``room``."""
    found, first, filled = [], 0, 0
    for number, size in enumerate(sizes):
        size = min(size, room)
        if filled + size > room:
            found.append((first, number))
            first, filled = number, 0
        filled += size
    return [*found, (first, len(sizes))]


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first, last) of the entities in IOB2 tags. An ``I-`` after another kind or after none begins one too, as in the
    script of CoNLL-2000, conlleval, and in seqeval."""
    found: list[tuple[str, int, int]] = []
    previous = "O"
    for number, tag in enumerate(tags):
        if tag != "O":
            if tag.startswith("I-") and previous[1:] == tag[1:]:
                found[-1] = (*found[-1][:2], number)
            else:
                found.append((tag[2:], number, number))
        previous = tag
    return found


def scores(
    wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """``accuracy`` by words; where ``labels``, all tags that there are, are of entities also ``precision``, ``recall`` and
    ``f1`` of whole ones, over all kinds together (seqeval's, which are conlleval's); 0 where they are not defined.

    Raises:
      BertJaxError: the labels are of entities and seqeval is not installed.
    """
    hits = [one == other for tags, others in zip(wanted, found, strict=True) for one, other in zip(tags, others, strict=True)]
    result = {"accuracy": float(np.mean(hits))}
    if entities(labels):
        metrics = _entity_metrics()
        wanted, found = [list(tags) for tags in wanted], [list(tags) for tags in found]
        for name in ("precision", "recall", "f1"):
            result[name] = float(getattr(metrics, f"{name}_score")(wanted, found, zero_division=0))
    return result


def _entity_metrics():
    try:
        from seqeval import metrics
    except ImportError:
        raise BertJaxError("entities are scored with seqeval: pip install 'bert_jax[finetune]'") from None
    return metrics
