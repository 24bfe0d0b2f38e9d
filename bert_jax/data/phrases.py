"""Phrases of a corpus, found by pointwise mutual information (PMI-Masking: Levine et al., ICLR 2021).

A phrase is an n-gram of 2 to 5 words that occurs more often than its parts would by chance, however it is cut::

    PMI(w1..wn) = min over the ways to cut w1..wn into shorter n-grams s  of  log( p(w1..wn) / product of p(s) )

(the paper's equation 3). As the score depends on the length, every length has its own ranking: half of the phrases are the
best bigrams, a quarter the best trigrams, an eighth each the best of four and five words. N-grams that occur ten times or
less do not count. (Section 1 of the README of AI21Labs/pmi-masking, by the authors.) The published lists rank by the score plus
log p(w1..wn) instead, which favours what is frequent; that variant is not made here.

Here p of an n-gram is its count divided by that of all n-grams of as many words. N-grams lie within a sentence and have
no word that lacks letters and digits: the paper does not say, and punctuation would be part of most phrases.

Counting is exact but for collisions of 64-bit hashes, and takes bounded memory. A frequent n-gram has frequent parts, so
n-grams are counted only where both (n-1)-grams are frequent; and where even those are too many, a pass counts the lower part
of all hashes, another the rest.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.store import Split

LONGEST = 5
SHARES = {2: 0.5, 3: 0.25, 4: 0.125, 5: 0.125}
MINIMUM = 11  # the paper: "over 10 occurrences"
CHUNK = 1 << 20  # tokens looked at together
TABLE = 1 << 26  # n-grams counted in one pass: 1 GB of hashes and counts, for a moment three times as much

Report = Callable[[str, int], None]  # what is being done, and how many tokens of it were done just now


@dataclasses.dataclass
class Words:
    """The W words of successive sentences.

    `hashes` uint64 [W], the same for the same pieces; `starts` and `ends` int64 [W], tokens of the split; `room` int64 [W], how
    many words from this one on may belong to one n-gram: up to the end of the sentence, or a word without letters.
    """

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    room: np.ndarray


def chunks(split: Split, size: int = CHUNK) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """All tokens of a split in order, whole sentences, about `size` tokens at a time.

    Yields the offset of the first token, raw tokens [T], and bool [T], where sentences begin.
    """
    begin = 0
    while begin < split.tokens:
        last = min(np.searchsorted(split.sentences, begin + size), len(split.sentences) - 1)
        end = int(split.sentences[last])
        starts = np.zeros(end - begin, bool)
        starts[split.sentences[np.searchsorted(split.sentences, begin) : last] - begin] = True
        yield begin, split.stretch(begin, end), starts
        begin = end


def words(split: Split, wordlike: np.ndarray, size: int = CHUNK) -> Iterator[Words]:
    """All words of a split; `wordlike` bool [V] says which pieces have letters or digits."""
    for offset, raw, sentence_starts in chunks(split, size):
        ids = raw & split.dtype.type(split.word_start - 1)
        begins = np.flatnonzero((raw >= split.word_start) | sentence_starts)
        sizes = np.diff(begins, append=len(raw))
        place = np.arange(len(raw)) - np.repeat(begins, sizes)
        with np.errstate(over="ignore"):
            hashes = randomness.bits(np.add.reduceat(randomness.bits(ids.astype(np.uint64), 0, place), begins), 1)
        usable = np.logical_or.reduceat(wordlike[ids], begins)
        index = np.arange(len(begins))
        barrier = np.where(~usable | sentence_starts[begins], index, len(begins))
        after = np.append(np.minimum.accumulate(barrier[::-1])[::-1][1:], len(begins))
        yield Words(hashes, offset + begins, offset + begins + sizes, np.where(usable, after - index, 0))


def extended(total: np.ndarray, items: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The running sum uint64 [W] of W sequences with `items` uint64 [W] at `place` (from 0 on) added, and its hash."""
    with np.errstate(over="ignore"):
        total = total + randomness.bits(items, 0, place)
    return total, randomness.bits(total, 1)


def ngram_hashes(items: np.ndarray, longest: int) -> Iterator[np.ndarray]:
    """For n = 1, 2, ... the hashes uint64 [W - n + 1] of all n successive items of uint64 [W]."""
    total = np.zeros(len(items), np.uint64)
    for n in range(1, min(longest, len(items)) + 1):
        total, hashes = extended(total[: len(items) - n + 1], items[n - 1 :], n - 1)
        yield hashes


def find(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64: where each value stands in a sorted table, -1 where it does not."""
    if not len(table):
        return np.full(len(values), -1)
    index = np.searchsorted(table, values)
    index[index == len(table)] = 0
    return np.where(table[index] == values, index, -1)


def count(stream: Callable[[], Iterable[np.ndarray]], minimum: int, limit: int = TABLE) -> tuple[np.ndarray, np.ndarray]:
    """The values, sorted, that `stream` gives at least `minimum` times, and how often: uint64 and int64.

    No more than `limit` different values are held at once (beyond those that are frequent, and one chunk): where there are
    more, the lowest are counted and the stream is asked again for the rest.
    """
    found, low, width = [], 0, 1 << 64
    while low < 1 << 64:
        high = min(low + width, 1 << 64)
        values, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        waiting, size = [], 0

        def merge(values, counts, waiting):
            new, times = np.unique(np.concatenate([np.empty(0, np.uint64), *waiting]), return_counts=True)
            together = np.concatenate([values, new])
            order = np.argsort(together, kind="stable")  # two sorted runs, which it merges
            together, times = together[order], np.concatenate([counts, times])[order]
            firsts = np.flatnonzero(np.concatenate([together[:1] == together[:1], together[1:] != together[:-1]]))
            return together[firsts], np.add.reduceat(times, firsts) if len(firsts) else times

        for chunk in stream():
            if low or high < 1 << 64:
                chunk = chunk[(chunk >= np.uint64(low)) & (chunk <= np.uint64(high - 1))]
            waiting.append(chunk)
            size += len(chunk)
            if size >= max(limit // 4, len(values) // 4):
                values, counts = merge(values, counts, waiting)
                waiting, size = [], 0
                if len(values) > limit:
                    high = int(values[limit // 2])
                    below = np.searchsorted(values, np.uint64(high))
                    values, counts = values[:below], counts[:below]
        values, counts = merge(values, counts, waiting)
        frequent = counts >= minimum
        found.append((values[frequent], counts[frequent]))
        low, width = high, high - low
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


@dataclasses.dataclass
class Ngrams:
    """The K n-grams of one length that occur often enough.

    `hashes` uint64 [K], sorted; `counts` int64 [K]; `total`: how many n-grams of this length the text has in all; `scores`
    float64 [K], the PMI (of single words 0); `starts` and `ends` int64 [K], tokens of the first occurrence.
    """

    hashes: np.ndarray
    counts: np.ndarray
    total: int
    scores: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def ngrams(
    split: Split, wordlike: np.ndarray, *, minimum: int = MINIMUM, table: int = TABLE, report: Report = lambda what, done: None
) -> dict[int, Ngrams]:
    """Every n-gram of 1 to 5 words that occurs at least `minimum` times, with its PMI."""
    found: dict[int, Ngrams] = {}
    for n in range(1, LONGEST + 1):
        total = 0

        def frequent(n=n) -> Iterator[np.ndarray]:
            nonlocal total
            total = 0
            for part in words(split, wordlike):
                fits = part.room >= n
                total += int(fits.sum())
                hashes = list(ngram_hashes(part.hashes, n))
                if len(hashes) == n:
                    fits = fits[: len(hashes[-1])]
                    if n > 1:
                        parts = find(found[n - 1].hashes, hashes[-2]) >= 0
                        fits &= parts[:-1] & parts[1:]
                    yield hashes[-1][fits]
                report(f"counting {n}-grams" if n > 1 else "counting words", int(part.ends[-1] - part.starts[0]))

        hashes, counts = count(frequent, minimum, table)
        places = np.full(len(hashes), -1)
        found[n] = Ngrams(hashes, counts, total, np.zeros(len(hashes)), places, places.copy())
    for part in words(split, wordlike):
        _score(part, found)
        report("scoring", int(part.ends[-1] - part.starts[0]))
    return found


def _score(part: Words, found: dict[int, Ngrams]) -> None:
    """Fills in scores and places of those n-grams that occur here first."""
    likelihood: dict[int, np.ndarray] = {}  # log p of the n-gram at each word, 0 where it is not frequent
    best: dict[int, np.ndarray] = {}  # the greatest sum of log p of any way to cut it, uncut included
    for n, hashes in enumerate(ngram_hashes(part.hashes, LONGEST), 1):
        known = found[n]
        here = np.where(part.room[: len(hashes)] >= n, find(known.hashes, hashes), -1)
        if not len(known.hashes):
            return
        likelihood[n] = np.where(here >= 0, np.log(known.counts[here] / max(known.total, 1)), 0.0)
        cuts = [likelihood[k][: len(hashes)] + best[n - k][k : k + len(hashes)] for k in range(1, n)]
        best[n] = np.maximum.reduce([likelihood[n], *cuts])
        if n > 1:
            index, first = np.unique(here, return_index=True)
            new = (index >= 0) & (known.starts[index] < 0)
            index, first = index[new], first[new]
            known.scores[index] = likelihood[n][first] - np.maximum.reduce(cuts)[first]
            known.starts[index], known.ends[index] = part.starts[first], part.ends[first + n - 1]


def best(found: dict[int, Ngrams], size: int) -> dict[int, np.ndarray]:
    """Which n-grams of each length are among the `size` best phrases: indices, best first.

    Equal scores: the more frequent one first. A length that has fewer than its share has all that it has.
    """
    chosen = {}
    for n, share in SHARES.items():
        order = np.lexsort((found[n].hashes, -found[n].counts, -found[n].scores))
        chosen[n] = order[: int(share * size)]
    return chosen
