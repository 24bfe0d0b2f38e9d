"""Ids of a corpus word by word: where words decide the ids, a word is encoded once and looked up from then on.

Hardly a word of a book is new, and looking one up takes a small part of the time of encoding it.
"""

import re
import string
import threading
from collections.abc import Callable, Sequence

import numpy as np

# What is a word of its own to BERT, whatever stands beside it: the punctuation of ASCII and what is usual in print, and
# where ideographs are split, most of those. Which of them are listed here decides the speed alone.
MARKS = string.punctuation + "“”‘’–—…、。，！？：；「」"
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_WORD = re.compile(f"[{_IDEOGRAPHS}]|[^ {_IDEOGRAPHS}]+")
_END = "\n"  # a word without ids: it stands between texts
ROOM = 24 << 20  # bytes for the words that are remembered, about: a hundred thousand English ones
_WORD_BYTES, _CHARACTER_BYTES = 200, 8  # string, numbers, place in a dictionary; the character and its id


class WordMemory:
    """Encodes texts, the ids of each of which must be those of its words one after another.

    Words are what blanks, newlines and `MARKS` separate, and with `ideographs` each of those. May be called by several threads.
    """

    def __init__(self, encode_batch: Callable[[Sequence[str]], list[np.ndarray]], *, ideographs: bool):
        self._encode_batch = encode_batch
        self._ideographs = ideographs
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._bytes = 0
        self._ids = np.empty(0, np.int32)  # of all words, in the order of their numbers
        self._lengths = self._begins = np.empty(0, np.int64)  # of each word in them

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of N texts one after another, and how many each of them has, int64 [N]."""
        words = self._words("".join([text.replace("\n", " ") + f" {_END} " for text in texts]))
        with self._lock:
            if self._bytes > ROOM:
                self._forget()
            numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
            self._learn()
            lengths = self._lengths[numbers]
            ends = np.cumsum(lengths)
            places = np.repeat(self._begins[numbers] - ends + lengths, lengths) + np.arange(lengths.sum())
            return self._ids[places], np.diff(ends[numbers == self._numbers.get(_END)], prepend=0)

    def _words(self, written: str) -> list[str]:
        """Some of them empty."""
        for mark in MARKS:
            if mark in written:
                written = written.replace(mark, f" {mark} ")
        if self._ideographs and _IDEOGRAPH.search(written):
            return _WORD.findall(written)
        return written.split(" ")

    def _learn(self) -> None:
        """Encodes what has a number and no ids."""
        new, self._numbers.new = self._numbers.new, []
        if not new:
            return
        try:
            encoded = self._encode_batch(new)
        except BaseException:
            self._forget()  # they have numbers
            raise
        self._bytes += _WORD_BYTES * len(new) + _CHARACTER_BYTES * sum(map(len, new))
        self._ids = np.concatenate([self._ids, *encoded])
        self._lengths = np.concatenate([self._lengths, np.fromiter(map(len, encoded), np.int64, len(encoded))])
        self._begins = np.cumsum(self._lengths) - self._lengths


class _Numbers(dict):
    """Words to numbers, in the order in which they are first asked for."""

    def __init__(self):
        self.new: list[str] = []  # those that came since somebody emptied it

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        return number
