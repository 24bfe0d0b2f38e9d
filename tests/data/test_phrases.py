"""Counting and PMI against the definition, written out in plain Python."""

import collections
import itertools
import math

import numpy as np
import pytest

from bert_jax.data import phrases
from bert_jax.data.phrases import SHARES, best, count, ngrams


def by_definition(sentences: list[list[list[int]]], punctuation: set[int], minimum: int) -> dict[tuple, tuple[int, float]]:
    """Count and PMI of every frequent n-gram of 2 to 5 words (tuples of pieces), as the paper's equation 3 says."""
    counts = {n: collections.Counter() for n in range(1, 6)}
    for sentence in sentences:
        for runs in _runs(sentence, punctuation):
            for n in range(1, 6):
                counts[n].update(tuple(runs[i : i + n]) for i in range(len(runs) - n + 1))
    totals = {n: counts[n].total() for n in counts}

    def p(gram):
        return counts[len(gram)][gram] / totals[len(gram)]

    found = {}
    for n in range(2, 6):
        for gram, times in counts[n].items():
            if times >= minimum:
                scores = []
                for cuts in itertools.product([False, True], repeat=n - 1):
                    if any(cuts):
                        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
                        parts = [gram[a:b] for a, b in zip(places, places[1:], strict=False)]
                        scores.append(math.log(p(gram) / math.prod(map(p, parts))))
                found[gram] = times, min(scores)
    return found


def _runs(sentence, punctuation):
    run = []
    for word in sentence:
        if all(piece in punctuation for piece in word):
            yield run
            run = []
        else:
            run.append(tuple(word))
    yield run


@pytest.fixture
def corpus(make_split):
    """Documents of words of one to three pieces, some of which like each other; pieces below 5 are punctuation."""
    rng = np.random.default_rng(0)
    lexicon = [list(rng.integers(5, 40, rng.integers(1, 4))) for _ in range(25)] + [[1], [2], [3, 4]]
    favourites = [[4, 9], [7, 7, 7], [1, 2, 3, 4], [11, 12, 13, 14, 15], [5, 6, 11, 12, 13]]
    documents = []
    for _ in range(80):
        document = []
        for _ in range(rng.integers(1, 6)):
            words = []
            for _ in range(rng.integers(1, 8)):
                words += favourites[rng.integers(5)] if rng.random() < 0.4 else [int(rng.choice(28, p=_zipf(28)))]
            document.append([[int(piece) for piece in lexicon[word]] for word in words])
        documents.append(document)
    # The first piece of a word is positive, the others negative: so the fixture marks words.
    ids = [[[piece if i == 0 else -piece for word in s for i, piece in enumerate(word)] for s in d] for d in documents]
    wordlike = np.arange(50) >= 5
    return make_split(ids, vocab_size=50, shards=3), [sentence for document in documents for sentence in document], wordlike


def _zipf(n):
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def mined(split, wordlike, **options):
    """{words as tuples of pieces: (count, score)}, from where the n-grams stand first."""
    found = ngrams(split, wordlike, **options)
    result = {}
    for n in SHARES:
        table = found[n]
        for start, end, times, score in zip(table.starts, table.ends, table.counts, table.scores, strict=True):
            raw = split.stretch(int(start), int(end))
            begins = np.flatnonzero((raw >= split.word_start) | (np.arange(len(raw)) == 0))
            words = np.split(raw & (split.word_start - 1), begins[1:])
            gram = tuple(tuple(word.tolist()) for word in words)
            assert len(gram) == n and gram not in result
            result[gram] = int(times), float(score)
    return result


@pytest.mark.parametrize(("minimum", "table", "chunk"), [(2, 1 << 20, 1 << 20), (5, 40, 100), (11, 7, 1)])
def test_counts_and_pmi_are_the_definition(corpus, monkeypatch, minimum, table, chunk):
    split, sentences, wordlike = corpus
    original = phrases.words
    monkeypatch.setattr(phrases, "words", lambda split, wordlike: original(split, wordlike, chunk))
    expected = by_definition(sentences, {1, 2, 3, 4}, minimum)
    found = mined(split, wordlike, minimum=minimum, table=table)
    assert found.keys() == expected.keys() and {len(gram) for gram in expected} == {2, 3, 4, 5}
    for gram, (times, score) in expected.items():
        assert found[gram][0] == times
        assert found[gram][1] == pytest.approx(score, abs=1e-9)


def test_a_score_is_the_worst_cut_not_the_finest(corpus):
    """Else this test of tests would not see it: for some n-gram the cut into single words is not the minimum."""
    split, sentences, wordlike = corpus
    found = mined(split, wordlike, minimum=5)
    single = {n: collections.Counter(word for s in sentences for run in _runs(s, {1, 2, 3, 4}) for word in run) for n in [1]}[1]
    table = ngrams(split, wordlike, minimum=5)
    finer = [
        math.log(times / table[len(gram)].total) - sum(math.log(single[word] / table[1].total) for word in gram) - score
        for gram, (times, score) in found.items() if len(gram) > 2
    ]  # fmt: skip
    assert min(finer) > -1e-9 and max(finer) > 1


@pytest.mark.parametrize("limit", [3, 50, 1 << 20])
def test_counting_in_parts(limit):
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.integers(0, 1 << 64, 300, dtype=np.uint64), np.array([0, (1 << 64) - 1], np.uint64)])
    chunks = [rng.choice(values, 97, p=_zipf(len(values))) for _ in range(30)]
    passes = []

    def stream():
        passes.append(1)
        return iter(chunks)

    expected = {value: times for value, times in collections.Counter(np.concatenate(chunks).tolist()).items() if times >= 3}
    hashes, counts = count(stream, 3, limit)
    assert dict(zip(hashes.tolist(), counts.tolist(), strict=True)) == expected
    assert (np.diff(hashes.astype(object)) > 0).all()
    assert (len(passes) == 1) == (limit > len(values))
    assert [len(part) for part in count(lambda: iter([]), 1)] == [0, 0]


def test_shares_of_the_best(corpus):
    split, _, wordlike = corpus
    found = ngrams(split, wordlike, minimum=2)
    chosen = best(found, 80)
    assert {n: len(index) for n, index in chosen.items()} == {2: 40, 3: 20, 4: 10, 5: 10}
    for n, index in chosen.items():
        scores = found[n].scores
        assert (np.diff(scores[index]) <= 0).all() and scores[index[-1]] >= np.delete(scores, index).max()
    assert sum(map(len, best(found, 10**6).values())) == sum(len(found[n].hashes) for n in SHARES)
