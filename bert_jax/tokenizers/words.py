"""Ids of a corpus word by word: where words decide the ids, a word is encoded once and looked up from then on.

Hardly a word of a book is new, and looking one up takes a small part of the time of encoding it. How texts are cut into words
depends on the tokenizer: at places, not necessarily all of them, across which it never looks.
"""

import itertools
import re
import string
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_END = "\n"  # stands behind each text that is cut; words have no newline
ROOM = 24 << 20  # bytes for the words that are remembered, about: eighty thousand English ones
_WORD_BYTES, _CHARACTER_BYTES = 200, 16  # string, numbers, place in a dictionary; the character, its ids, and their next copy


class Cut(NamedTuple):
    """How texts are cut.

    Attributes:
      words: from texts, with "\\n" behind each and blanks for newlines in it, to their words, the "\\n" among them.
      whole: what is in texts that are not cut, such as newlines that are not the same as blanks.
    """

    words: Callable[[str], list[str]]
    whole: re.Pattern | None

    def stays_whole(self, text: str) -> bool:
        return self.whole is not None and self.whole.search(text) is not None


class WordMemory:
    """Encodes texts whose ids are those of their words one after another. May be called by several threads."""

    def __init__(self, encode: Callable[[Sequence[str]], list[np.ndarray]], cut: Cut):
        self._encode = encode
        self._cut = cut
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._bytes = 0
        self._ids = np.empty(0, np.int32)  # of all words, in the order of their numbers
        self._lengths = self._begins = np.empty(0, np.int32)  # of each word in them

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of N texts one after another, and how many each of them has, int64 [N]."""
        words = self._words(texts)
        with self._lock:
            if self._bytes > ROOM:
                self._forget()
            numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int32, len(words))
            self._learn()
            lengths = self._lengths[numbers]
            ends = np.cumsum(lengths, dtype=np.int32)
            places = np.repeat(self._begins[numbers] - ends + lengths, lengths)
            places += np.arange(len(places), dtype=np.int32)
            return self._ids[places], np.diff(ends[numbers == self._numbers.get(_END)], prepend=0).astype(np.int64)

    def _words(self, texts: Sequence[str]) -> list[str]:
        """Words, some of them empty, `_END` behind those of each text. A text that is not cut is a word, after a newline."""
        words = []
        for whole, group in itertools.groupby(texts, self._cut.stays_whole):
            if whole:
                words += itertools.chain.from_iterable((f"\n{text}", _END) for text in group)
            else:
                words += self._cut.words("".join([text.replace("\n", " ") + _END for text in group]))
        return words

    def _learn(self) -> None:
        """Encodes what has a number and no ids."""
        new, self._numbers.new = self._numbers.new, []
        if not new:
            return
        try:
            encoded = self._encode([word.removeprefix("\n") for word in new])
        except BaseException:
            self._forget()  # they have numbers
            raise
        self._bytes += _WORD_BYTES * len(new) + _CHARACTER_BYTES * sum(map(len, new))
        self._ids = np.concatenate([self._ids, *encoded])
        self._lengths = np.concatenate([self._lengths, np.fromiter(map(len, encoded), np.int32, len(encoded))])
        self._begins = np.cumsum(self._lengths, dtype=np.int32) - self._lengths


class _Numbers(dict):
    """Words to numbers, in the order in which they are first asked for."""

    def __init__(self):
        self.new: list[str] = []  # those that came since somebody emptied it

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        return number


# BERT's words. What is a word of its own, whatever stands beside it: the punctuation of ASCII and what is usual in print,
# and where ideographs are split, most of those. Which of them are listed here decides the speed alone.
MARKS = string.punctuation + "“”‘’–—…、。，！？：；「」"
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_BETWEEN_IDEOGRAPHS = re.compile(f"[{_IDEOGRAPHS}]|[^ {_IDEOGRAPHS}]+")


def _spaced(texts: str) -> str:
    for mark in MARKS:
        if mark in texts:
            texts = texts.replace(mark, f" {mark} ")
    return texts.replace(_END, f" {_END} ")


def _at_marks(texts: str) -> list[str]:
    return _spaced(texts).split(" ")


def _at_marks_and_ideographs(texts: str) -> list[str]:
    return _BETWEEN_IDEOGRAPHS.findall(_spaced(texts)) if _IDEOGRAPH.search(texts) else _at_marks(texts)


def _at_blanks(texts: str) -> list[str]:
    return texts.replace(_END, f" {_END} ").split(" ")


def _before_blanks(texts: str) -> list[str]:
    return texts.replace(_END, f"\0{_END}\0").replace(" ", "\0 ").split("\0")


BERT_WORDS = Cut(_at_marks, None)
BERT_WORDS_AND_IDEOGRAPHS = Cut(_at_marks_and_ideographs, None)
# SentencePiece's character map works on clusters of characters. Those of Latin, Greek and Cyrillic and their punctuation are
# in none with the blank beside them.
_ALONE = r"\n -~\xa0-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u1fff\u2010-\u2027\u2030-\u205e\u20a0-\u20bf"
BLANKS = Cut(_at_blanks, re.compile(f"[^{_ALONE}]"))
# The expression by which byte-level tokenizers cut: a single blank opens the word that it stands before.
BEFORE_BLANKS = Cut(_before_blanks, re.compile(r"[^\S ]|  |\0"))
