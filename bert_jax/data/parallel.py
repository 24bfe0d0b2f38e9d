"""Translations, read in step: document n of every language belongs together, and so does line k in each of them.

How documents are found depends on what the files can say. Where a line is known by its number alone ("file", "line", "blank"),
all files are read line by line together: a line that is blank in every language ends a document under "blank", a line
that is blank in some is a translation that is missing. Where documents are marked (JSON lines, TFDS, "formfeed",
"prefix:STRING"), document n of each is taken whole and its lines are counted: a document whose translations
have different numbers of lines is left out, as nothing says which line is missing, and one warning counts such documents
(a manual of 2,515 pages in eight languages has 15). If the numbers of documents or, without marks, of lines differ, the text is
refused: from the first gap on, everything would be paired wrongly.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence

from bert_jax.data import sources
from bert_jax.data.sources import Corpus, Group, Source
from bert_jax.errors import BertJaxError

logger = logging.getLogger("bert_jax")


class ParallelCorpus:
    """Groups of translations from sources in several languages; iterate as often as wanted, each time from the start.

    Args:
      specs, documents, field: as for `Corpus`; every source has a language, and every language equally many sources, read
        in the order given: the first of each together, then the second of each.

    Attributes:
      sources, total_bytes, languages: as of `Corpus`.
      left_out: groups that the newest iteration left out so far, because their numbers of lines differ.

    Raises:
      BertJaxError: sources without a language, a single language, unequal numbers of sources; while iterating, unequal
        numbers of documents or lines, and what `Corpus` refuses.
    """

    def __init__(self, specs: Sequence["str | os.PathLike | Source"], *, documents: str = "blank", field: str = "text"):
        whole = Corpus(specs, documents=documents, field=field)
        self.sources, self.total_bytes, self.languages = whole.sources, whole.total_bytes, whole.languages
        self.documents = documents
        if len(self.languages) < 2:
            raise BertJaxError("parallel text has at least two languages: write sources as in en=a.txt de=b.txt")
        columns = [[source for source in self.sources if source.language == name] for name in self.languages]
        if len({len(column) for column in columns}) > 1:
            counts = ", ".join(f"{name} {len(column)}" for name, column in zip(self.languages, columns, strict=True))
            raise BertJaxError(f"parallel text needs equally many sources in every language, here are {counts}")
        self._rows = [
            [Corpus([source], documents=documents, field=field) for source in row] for row in zip(*columns, strict=True)
        ]
        for row in self._rows:
            if len({corpus.sources[0].kind for corpus in row}) > 1:
                names = " and ".join(corpus.sources[0].name for corpus in row)
                raise BertJaxError(f"{names}: of different kinds, so they cannot be read in step: use one kind for all")
        self.left_out = 0

    @property
    def position(self) -> int:
        """Bytes on disk read so far by the newest iteration."""
        return sum(corpus.position for row in self._rows for corpus in row)

    def groups(self) -> Iterator[Group]:
        """Texts of as many lines each, one in every language."""
        self.left_out, given = 0, 0
        marked = self.documents == "formfeed" or self.documents.startswith("prefix:")
        for row in self._rows:
            by_document = marked or row[0].sources[0].kind != "text"
            for lines in self._marked(row) if by_document else self._in_step(row):
                given += 1
                yield Group(tuple("\n".join(part) for part in lines))
        if self.left_out and not given:
            names = ", ".join(self.languages)
            raise BertJaxError(f"none of {self.left_out} documents has equally many lines in {names}: are they translations?")

    def _in_step(self, row: list[Corpus]) -> Iterator[list[list[str]]]:
        """Groups of lists of lines, where line k of every file belongs together."""
        group: list[tuple[str, ...]] = []
        size = 0
        ended: tuple[int, Source] | None = None
        for number, lines in enumerate(itertools.zip_longest(*(corpus.lines() for corpus in row)), 1):
            if None in lines and ended is None:
                ended = number - 1, row[lines.index(None)].sources[0]
            lines = tuple(line or "" for line in lines)
            blank = not any(line.strip() for line in lines)
            if ended and not blank:  # blank lines at the end of a file mean nothing
                other = next(c.sources[0] for c, line in zip(row, lines, strict=True) if line.strip())
                raise BertJaxError(
                    f"{ended[1].path}: ends after line {ended[0]}, {other.path} has more: parallel files have equally many "
                    "lines, line k of each a translation of the others"
                )
            length = sum(map(len, lines))
            too_long = group and size + length > sources.MAX_DOCUMENT
            if too_long:
                limit = sources.MAX_DOCUMENT >> 20
                logger.warning("%s: a document of more than %d MB is cut, in all languages", row[0].sources[0].path, limit)
            if group and (too_long or self.documents == "line" or (blank and self.documents == "blank")):
                yield [list(column) for column in zip(*group, strict=True)]
                group, size = [], 0
            if not blank:
                group.append(lines)
                size += length
        if group:
            yield [list(column) for column in zip(*group, strict=True)]

    def _marked(self, row: list[Corpus]) -> Iterator[list[list[str]]]:
        """Groups of lists of lines, where document n of every source belongs together."""
        for number, documents in enumerate(itertools.zip_longest(*map(self._documents, row)), 1):
            if None in documents:
                short = row[documents.index(None)].sources[0]
                other = next(c.sources[0] for c, lines in zip(row, documents, strict=True) if lines is not None)
                raise BertJaxError(
                    f"{short.path}: ends after {number - 1} documents, {other.path} has more: parallel sources have equally "
                    "many, document n of each a translation of the others"
                )
            if len(set(map(len, documents))) > 1:
                documents = tuple(map(_stripped, documents))  # unless blank lines around the text are all that differs
            if len(set(map(len, documents))) > 1:
                self.left_out += 1
            elif any(line.strip() for line in documents[0]):
                yield list(documents)

    def _documents(self, corpus: Corpus) -> Iterator[list[str]]:
        """The lines of each document, empty ones included."""
        if corpus.sources[0].kind != "text":
            for text in corpus:
                yield text.split("\n")
            return
        prefix = self.documents.removeprefix("prefix:")
        lines: list[str] = []
        begun = self.documents == "formfeed"  # with a prefix, what stands before the first is no document unless it has text
        for line in corpus.lines():
            if self.documents == "formfeed":
                *before, line = line.split("\f")
                for part in before:
                    yield [*lines, part]
                    lines = []
            elif line.startswith(prefix):
                if begun or _stripped(lines):
                    yield lines
                lines, begun = [], True
                continue
            lines.append(line)
        if begun or _stripped(lines):
            yield lines


def _stripped(lines: list[str]) -> list[str]:
    full = [number for number, line in enumerate(lines) if line.strip()]
    return lines[full[0] : full[-1] + 1] if full else []
