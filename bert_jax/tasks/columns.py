"""Sentences whose words have tags, from files with a word a line (CoNLL-2003, WikiANN, IOB2, CoNLL-U), or with lists of them.

Where each word has a line, blank lines are between sentences. What else such files have (numbers of the words, comments, words
of several tokens, a language in front of every word) is said in the fields of :class:`Columns`; a function for each format
fills them in. :class:`Lists` is a sentence a line, as JSON.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from bert_jax.errors import BertJaxError
from bert_jax.tasks.files import check_characters, objects_of, text_of
from bert_jax.tasks.tables import Rows, check_share, part_of

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
      share: only a part of the sentences, as that of a :class:`bert_jax.tasks.tables.Table`. Empty: all.
    """

    path: str
    words: int = 0
    tags: int | None = -1
    separator: Literal["tab", "blank"] = "tab"
    numbered: bool = False
    prefix: str = ""
    share: tuple[float, ...] = ()

    def __post_init__(self):
        check_share(self.share, self.path)

    def read(self) -> Rows:
        """The sentences: ``texts`` are tuples of words, ``labels`` tuples of as many tags (no labels without tags).

        Tags of entities come as IOB2, where every entity begins with ``B-``. A file that is IOB1 (the original CoNLL-2003),
        where only an entity right behind one of its kind does, is converted, with one warning line.

        Raises:
          BertJaxError: no such file, not UTF-8, a line without the wanted columns, an empty word or tag, a word without the
            prefix, entities in neither scheme, or no sentences.
        """
        sentences = self._sentences()
        if not sentences:
            raise BertJaxError(f"{self.path}: no sentences")
        tags = [] if self.tags is None else _as_iob2(sentences, self.path)
        return part_of(Rows([sentence.words for sentence in sentences], tags), self.share, self.path)

    def labels(self) -> tuple[str, ...]:
        """The tags that the file has, sorted: ``encoder.labels`` of a tagger for it."""
        return tuple(sorted({tag for tags in self.read().labels for tag in tags}))

    def _sentences(self) -> list["_Sentence"]:
        sentences, words, tags, width = [], [], [], None
        lines = text_of(self.path).split("\n")  # not splitlines: a word may hold U+2028 and the like
        for number, line in enumerate([*lines, ""], start=1):
            if line.strip(" \t\r"):
                if pair := self._word(line.rstrip("\r"), number):
                    width = width or pair[2]
                    if self.tags == -1 and pair[2] != width:
                        raise BertJaxError(
                            f"{self.path}: line {number} has {pair[2]} columns (apart by {self.separator}s), those before have "
                            f"{width}: is it a comment, or has a word a blank?"
                        )
                    words.append(pair[0])
                    tags.append(pair[1])
            elif words:
                sentences.append(_Sentence(tuple(words), tuple(tags), number))
                words, tags = [], []
        return sentences

    def _word(self, line: str, number: int) -> tuple[str, str, int] | None:
        """The word and the tag of a line, and how many columns it has; None where it has no word."""
        if self.numbered and line.startswith("#"):
            return None
        fields = line.split("\t") if self.separator == "tab" else re.split(r"[ \t]+", line.strip(" \t"))
        if self.numbered and re.fullmatch(r"\d+[-.]\d+", fields[0]):
            return None
        if fields[self.words :][:1] == [DOCUMENT]:
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
        if self.numbered and not fields[0].isdecimal():
            raise BertJaxError(f"{self.path}: line {number} begins with {fields[0]!r}, where the number of the word should be")
        return word, tag, len(fields)


class _Sentence(NamedTuple):
    """Words, their tags, and the number of the line behind them."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    end: int


@dataclasses.dataclass(frozen=True)
class Lists:
    """A file ``*.jsonl`` with a sentence a line: an object in which ``words`` and ``tags`` name lists of as many strings.

    Attributes:
      path: UTF-8. tags: None: there are none. share: only a part of the sentences, as that of a
        :class:`bert_jax.tasks.tables.Table`. Empty: all.
    """

    path: str
    words: str = "words"
    tags: str | None = "tags"
    share: tuple[float, ...] = ()

    def __post_init__(self):
        check_share(self.share, self.path)

    def read(self) -> Rows:
        """The sentences, as :meth:`Columns.read` gives them. Tags that are numbers (of classes) are taken as they are written.

        Raises:
          BertJaxError: no such file, not UTF-8, a line that is no object with these lists, lists of different lengths, an empty
            word or tag, entities in neither scheme, or no sentences.
        """
        sentences = []
        for number, record in objects_of(text_of(self.path), self.path):
            where = f"{self.path}: line {number}"
            words = self._list(record, self.words, where)
            tags = ("O",) * len(words) if self.tags is None else self._list(record, self.tags, where)
            if len(words) != len(tags):
                raise BertJaxError(f"{where} has {len(words)} words and {len(tags)} tags")
            sentences.append(_Sentence(words, tags, number + 1))
        if not sentences:
            raise BertJaxError(f"{self.path}: no sentences")
        tags = [] if self.tags is None else _as_iob2(sentences, self.path)
        return part_of(Rows([sentence.words for sentence in sentences], tags), self.share, self.path)

    def labels(self) -> tuple[str, ...]:
        """The tags that the file has, sorted; numbers by their value, with one warning line."""
        found = {tag for tags in self.read().labels for tag in tags}
        if all(tag.isdecimal() for tag in found):
            logger.warning("%s: its tags are numbers, so only accuracy is scored: write their names for entities", self.path)
            return tuple(sorted(found, key=int))
        return tuple(sorted(found))

    def _list(self, record: dict, name: str, where: str) -> tuple[str, ...]:
        if name not in record:
            raise BertJaxError(f"{where} has no field {name!r}; there are {', '.join(map(str, record))}")
        found = record[name]
        if not isinstance(found, list) or not all(isinstance(one, str) or type(one) is int for one in found):
            raise BertJaxError(f"{where}: {name!r} is not a list of strings")
        if not found or not all(str(one).strip() for one in found):
            raise BertJaxError(f"{where}: {name!r} {'has an empty string' if found else 'is empty'}")
        for one in found:
            check_characters(str(one), f"{where}: {name!r}")
        return tuple(str(one).strip() for one in found)


def _as_iob2(sentences: list[_Sentence], path: str) -> list[tuple[str, ...]]:
    """The tags, those of entities converted where all of them are IOB1."""
    if not entities(tag for sentence in sentences for tag in sentence.tags):
        return [sentence.tags for sentence in sentences]
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
            f"{path}: neither IOB1 nor IOB2: {tag} after {previous} in the sentence before line {sentence.end}, "
            f"{wrong[2]} after {wrong[1]} in that before line {wrong[0].end}"
        )
    logger.warning("%s: its tags are IOB1 and were converted to IOB2, where every entity begins with B-", path)
    return [to_iob2(sentence.tags) for sentence in sentences]


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


def a_word_a_line(path: str, words: int = 0, tags: int = -1) -> Columns:
    """A file of one's own; what its columns are apart by, its first line that is not empty says. Where every word has the same
    language in front, as in WikiANN (``en:word``), it is taken away.

    Raises:
      BertJaxError: it cannot be read, or begins with names of columns, or has comments (``# id``).
    """
    lines = [(number, line) for number, line in enumerate(text_of(path).split("\n"), start=1) if line.strip()]
    first = next((line for _, line in lines if not line.startswith(DOCUMENT)), "")
    if re.match(r"(word|token|form)s?\s", first, re.IGNORECASE):
        raise BertJaxError(f"{path}: it begins with names of columns ({first.strip()!r}): take that line out")
    if comment := next((number for number, line in lines if re.match(r"#\s*(id|sent_id|text|newdoc|newpar)\b", line)), None):
        raise BertJaxError(f"{path}: line {comment} is a comment: take such lines out")
    languages = {re.match("(?:[a-z][a-z-]+:)?", line)[0] for _, line in lines}
    prefix = languages.pop() if words == 0 and len(languages) == 1 else ""
    return Columns(path, words, tags, "tab" if "\t" in first.strip() else "blank", prefix=prefix)


def entities(labels: Iterable[str]) -> bool:
    """Whether tags are of entities: some begin with ``B-`` or ``I-``."""
    return any(ENTITY.fullmatch(label) for label in labels)


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """``B-`` for every ``I-`` that begins an entity: one after another kind, or after none."""
    return tuple(
        f"B{tag[1:]}" if tag.startswith("I-") and previous[1:] != tag[1:] else tag
        for previous, tag in zip(("O", *tags), tags, strict=False)
    )
