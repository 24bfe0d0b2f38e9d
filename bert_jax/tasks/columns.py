"""Sentences whose words have tags, from files with a word a line: CoNLL-2003, WikiANN, IOB2 and CoNLL-U.

Sentences are apart by blank lines. What else such files have (numbers of the words, comments, words of several tokens, a
language in front of every word) is said in the fields of :class:`Columns`; a function for each format fills them in.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from bert_jax.errors import BertJaxError
from bert_jax.tasks.tables import Rows

logger = logging.getLogger("bert_jax")

ENTITY = re.compile(r"[BI]-.+")
DOCUMENT = "-DOCSTART-"  # between the documents of CoNLL-2003, as if it were a word
COLUMNS_OF_UD = {"upos": 3, "xpos": 4}


@dataclasses.dataclass(frozen=True)
class Columns:
    """A file of tagged sentences, a word a line.

    Attributes:
      path: UTF-8. words, tags: numbers of their columns from 0; -1 is the last one. tags None: there are none, as where they
        are to be predicted.
      separator: of columns: ``tab``, or ``blank``, as many blanks and tabs as there are.
      numbered: column 0 is the number of the word, as in CoNLL-U: lines that begin with # are comments, and those numbered
        ``3-4`` (the written form of several words) or ``8.1`` (a word that is not written) are no words.
      prefix: every word begins with it, and it is taken away (``en:`` in WikiANN).
    """

    path: str
    words: int = 0
    tags: int | None = -1
    separator: Literal["tab", "blank"] = "tab"
    numbered: bool = False
    prefix: str = ""

    def read(self) -> Rows:
        """All sentences: ``texts`` are tuples of words, ``labels`` tuples of as many tags (no labels without tags).

        Tags of entities come as IOB2, where every entity begins with ``B-``. A file that is IOB1 (the original CoNLL-2003),
        where only an entity right behind one of its kind does, is converted, with one warning line.

        Raises:
          BertJaxError: no such file, not UTF-8, a line without the wanted columns, an empty word or tag, a word without the
            prefix, entities in neither scheme, or no sentences.
        """
        sentences = self._sentences()
        if not sentences:
            raise BertJaxError(f"{self.path}: no sentences")
        if self.tags is None:
            return Rows([sentence.words for sentence in sentences], [])
        tags = [sentence.tags for sentence in sentences]
        if entities(tag for sentence in tags for tag in sentence):
            tags = self._iob2(sentences)
        return Rows([sentence.words for sentence in sentences], tags)

    def labels(self) -> tuple[str, ...]:
        """The tags that the file has, sorted: ``encoder.labels`` of a tagger for it."""
        return tuple(sorted({tag for tags in self.read().labels for tag in tags}))

    def _sentences(self) -> list["_Sentence"]:
        try:
            text = Path(self.path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise BertJaxError(f"{self.path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise BertJaxError(f"{self.path}: not UTF-8 ({error})") from None
        sentences, words, tags = [], [], []
        for number, line in enumerate([*text.split("\n"), ""], start=1):  # not splitlines: a word may hold U+2028 and the like
            if line.strip(" \t\r"):
                if pair := self._word(line.rstrip("\r"), number):
                    words.append(pair[0])
                    tags.append(pair[1])
            elif words:
                if words != [DOCUMENT]:
                    sentences.append(_Sentence(tuple(words), tuple(tags), number))
                words, tags = [], []
        return sentences

    def _word(self, line: str, number: int) -> tuple[str, str] | None:
        """The word and the tag of a line; None where it has no word."""
        if self.numbered and line.startswith("#"):
            return None
        fields = line.split("\t") if self.separator == "tab" else line.split()
        if self.numbered and re.fullmatch(r"\d+[-.]\d+", fields[0]):
            return None
        wanted = [self.words] if self.tags is None else [self.words, self.tags]
        places = {column if column >= 0 else len(fields) + column for column in wanted}
        if len(places) < len(wanted) or min(places) < 0 or max(places) >= len(fields):
            raise BertJaxError(
                f"{self.path}: line {number} has {len(fields)} columns (apart by {self.separator}s): words must be in "
                f"{self.words}, tags in {self.tags}"
            )
        word, tag = fields[self.words], "O" if self.tags is None else fields[self.tags].strip()
        if not word.startswith(self.prefix):
            raise BertJaxError(f"{self.path}: line {number} has the word {word!r}, which does not begin with {self.prefix!r}")
        word = word[len(self.prefix) :]
        if not word.strip() or not tag or (self.numbered and tag == "_"):
            raise BertJaxError(f"{self.path}: line {number} has no {'tag' if word.strip() else 'word'}")
        return word, tag

    def _iob2(self, sentences: list["_Sentence"]) -> list[tuple[str, ...]]:
        """The tags, converted where all of them are IOB1."""
        begun, wrong = None, None  # where IOB2 and where IOB1 is broken
        for sentence in sentences:
            for previous, tag in zip(("O", *sentence.tags), sentence.tags, strict=False):
                if tag[:2] == "I-" and previous[1:] != tag[1:]:
                    begun = begun or (sentence, previous, tag)
                if tag[:2] == "B-" and previous[1:] != tag[1:]:
                    wrong = wrong or (sentence, previous, tag)
        if begun is None:
            return [sentence.tags for sentence in sentences]
        if wrong is not None:
            sentence, previous, tag = begun
            raise BertJaxError(
                f"{self.path}: neither IOB1 nor IOB2: {tag} after {previous} in the sentence before line {sentence.end}, "
                f"{wrong[2]} after {wrong[1]} in that before line {wrong[0].end}"
            )
        logger.warning("%s: its tags are IOB1 and were converted to IOB2, where every entity begins with B-", self.path)
        return [to_iob2(sentence.tags) for sentence in sentences]


class _Sentence(NamedTuple):
    """Words, their tags, and the number of the line behind them."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    end: int


def conll_2003(path: str) -> Columns:
    """Named entities of CoNLL-2003 (Tjong Kim Sang and De Meulder 2003): word, part of speech, chunk, entity."""
    return Columns(path, 0, 3, "blank")


def wikiann(path: str, language: str) -> Columns:
    """WikiANN (Pan et al. 2017; split by Rahimi et al. 2019): ``en:word``, entity."""
    return Columns(path, 0, 1, prefix=f"{language}:")


def iob2(path: str) -> Columns:
    """Universal NER (Mayhew et al. 2024), files ``*.iob2``: number, word, entity, and who annotated it."""
    return Columns(path, 1, 2, numbered=True)


def conllu(path: str, tags: Literal["upos", "xpos"] = "upos") -> Columns:
    """Parts of speech of Universal Dependencies, files ``*.conllu``: universal ones, or those of the language."""
    return Columns(path, 1, COLUMNS_OF_UD[tags], numbered=True)


def entities(labels: Iterable[str]) -> bool:
    """Whether tags are of entities: some begin with ``B-`` or ``I-``."""
    return any(ENTITY.fullmatch(label) for label in labels)


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """``B-`` for every ``I-`` that begins an entity: one after another kind, or after none."""
    return tuple(
        f"B{tag[1:]}" if tag.startswith("I-") and previous[1:] != tag[1:] else tag
        for previous, tag in zip(("O", *tags), tags, strict=False)
    )
