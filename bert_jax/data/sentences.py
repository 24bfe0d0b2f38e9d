"""Sentences of a document.

``punkt`` uses nupunkt's pre-trained English model, measured on two megabytes of public-domain novels, one core:

==================  =======  ==========================================================================================
library             MB/s     what it does to a novel
==================  =======  ==========================================================================================
nupunkt 0.8.0       6        keeps `"Is that all?" asked the Pope.` whole, knows Mr., D.C., 5 p.m. and initials
livekit-blingfire   32       ends a sentence at every `?"`, so `said he sternly.` becomes one; splits after an initial
pysbd 0.3.4         0.14     too slow for a corpus, so not looked at further
==================  =======  ==========================================================================================

nupunkt is pure Python, has no dependencies and takes a large part of `prepare`'s time with WordPiece. Its model is English:
abbreviations of other languages ("z.B.") end sentences, which costs little, since sentences here only say where a
segment may begin. It does not know the full stops of other scripts (CJK, Devanagari, Urdu, Ethiopic ...), so those are
split first. Scripts without any (Thai, Lao) and text with one sentence a line want ``line``.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator

from bert_jax.errors import BertJaxError

MODES = ("punkt", "line")

_RUN = 1000
_LONG_RUN = re.compile(rf"\S{{{_RUN + 1},}}")
_PARAGRAPH = re.compile(r"\n(?:[ \t\r]*\n)+")
# What follows a stop belongs to its sentence: other marks, closing quotes and brackets. A Japanese quotation followed by the
# particle と goes on, as does a word or number with ۔ inside. Possessive quantifiers, so that a refused match does not come
# back without its closing quote.
# Unicode's Sentence_Terminal of scripts that are written today, but for those that also stand inside numbers. In order: CJK,
# Armenian, Arabic, Syriac, N'Ko, the dandas of India, Myanmar, Ethiopic, Canadian, Khmer, Mongolian, Ol Chiki, Lisu,
# Vai, Javanese, Meetei.
_STOPS = "。！？｡" "։" "؟" "܀܁܂" "߹" "।॥" "။" "።፧፨" "᙮" "។៕" "᠃᠉" "᱾᱿" "꓿" "꘎꘏" "꧈꧉" "꫰꫱꯫"
_STOP = re.compile(rf"(?:[{_STOPS}]|۔(?!\w))++[!?.…]*+[”’」』）】》〉»)\]\"']*+(?!と)")


def splitter(mode: str) -> Callable[[str], list[str]]:
    """The function from a document to its sentences, in order, none of them blank.

    "punkt" finds sentences inside paragraphs (which blank lines separate; single newlines are spaces), "line" takes
    every line as a sentence. Raises BertJaxError for another mode.
    """
    if mode == "punkt":
        return split_punkt
    if mode == "line":
        return split_lines
    raise BertJaxError(f"sentences={mode!r}: use one of {', '.join(MODES)}")


def split_lines(document: str) -> list[str]:
    return [line for line in document.split("\n") if line and not line.isspace()]


def split_punkt(document: str) -> list[str]:
    find = _punkt()
    return [
        sentence
        for paragraph in _PARAGRAPH.split(document)
        for part in _after_stops(paragraph)
        for window in _windows(part)
        for sentence in find(window)
        if sentence and not sentence.isspace()
    ]


def pieces(document: str, limit: int) -> Iterator[str]:
    """`document` in pieces of at most `limit` characters, so that a book can be shared among workers.

    A cut falls on the last blank line that fits, where a sentence ends anyway; failing that at a newline, a space, or
    after `limit` characters.
    """
    start = 0
    while len(document) - start > limit:
        end = -1
        for mark in ("\n\n", "\n", " "):
            end = document.rfind(mark, start + 1, start + limit)
            if end > 0:
                end += len(mark)
                break
        if end <= 0:
            end = start + limit
        yield document[start:end]
        start = end
    yield document[start:] if start else document


def in_step(documents: tuple[str, ...], limit: int) -> Iterator[tuple[str, ...]]:
    """Translations in pieces of the same lines, as many as fit into `limit` characters together, at least one."""
    first, size = 0, 0
    rows = list(zip(*(document.split("\n") for document in documents), strict=True))
    for number, row in enumerate(rows):
        length = sum(map(len, row))
        if number > first and size + length > limit:
            yield tuple("\n".join(column) for column in zip(*rows[first:number], strict=True))
            first, size = number, 0
        size += length
    yield tuple("\n".join(column) for column in zip(*rows[first:], strict=True))


def _after_stops(paragraph: str) -> list[str]:
    ends = [] if paragraph.isascii() else [match.end() for match in _STOP.finditer(paragraph)]
    if not ends:
        return [paragraph]
    return [paragraph[start:end] for start, end in zip([0, *ends], [*ends, len(paragraph)], strict=True)]


def _windows(part: str) -> list[str]:
    """`part` whole, or cut around every run of more than `_RUN` characters without a space, and such a run every `_RUN`.

    nupunkt takes quadratic time over a run of marks ("?!?!?!..."): 0.3 s for 16,000 characters, minutes for a megabyte.
    """
    if len(part) <= _RUN:
        return [part] if part else []
    cuts = [0]
    for run in _LONG_RUN.finditer(part):
        cuts += range(run.start(), run.end(), _RUN)
        cuts.append(run.end())
    return [part[start:end] for start, end in itertools.pairwise([*cuts, len(part)]) if end > start]


@functools.cache
def _punkt() -> Callable[[str], list[str]]:
    import nupunkt  # here: readers of a store have no use for it

    return nupunkt.load("default").tokenize
