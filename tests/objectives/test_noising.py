"""BART's noise against its exact laws, enumerated where they are small enough, and what no noise may ever do."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bert_jax import functional
from bert_jax.objectives import noising

SURE = 1 - 1e-6  # how much of the binomial law an interval covers


def inside(count: int, trials: int, probability: float) -> bool:
    low, high = stats.binom.interval(SURE, trials, probability)
    return low <= count <= high


def agree(found, law: dict) -> None:
    """Every outcome of an exact law, as often as it should come; no other one."""
    found = collections.Counter(found)
    trials = found.total()
    assert abs(sum(law.values()) - 1) < 1e-6 and set(found) <= set(law), set(found) - set(law)
    for outcome, probability in law.items():
        assert inside(found[outcome], trials, min(probability, 1.0)), (outcome, found[outcome], trials * probability)


def seeds(rows: int, number: int = 0):
    words = jax.random.bits(jax.random.key(number), (2,), jnp.uint32)
    return functional.fold(words, jnp.arange(rows))


def run(function, *arguments, **settings):
    return jax.tree.map(np.asarray, jax.jit(functools.partial(function, **settings))(*arguments))


def row_of(*texts: int, length: int) -> np.ndarray:
    """``text`` [L] of [CLS], the texts of so many tokens each with a [SEP] behind, and padding."""
    text = [False]
    for tokens in texts:
        text += [True] * tokens + [False]
    return np.array(text + [False] * (length - len(text)))


def some_rows(rows: int = 400, length: int = 48):
    """Rows of one and two texts of all lengths from none on, with random word and sentence starts."""
    rng = np.random.default_rng(0)
    text = []
    for number in range(rows):
        tokens = int(rng.integers(0, length - 2)) if number % 8 else length - 3  # an eighth of them full
        cut = int(rng.integers(0, tokens + 1))
        text.append(row_of(*((cut, tokens - cut) if number % 2 else (tokens,)), length=length))
    text = np.array(text)
    first = text & ~np.pad(text[:, :-1], ((0, 0), (1, 0)))
    words = first | (text & (rng.random(text.shape) < 0.6))
    return text, words, first | (words & (rng.random(text.shape) < 0.15))


def real_of(text: np.ndarray) -> np.ndarray:
    """Up to the [SEP] after the last token of text; of a row without text [CLS] [SEP]."""
    last = np.where(text.any(axis=1), text.shape[1] - 1 - text[:, ::-1].argmax(axis=1), 0)
    return np.arange(text.shape[1]) <= last[:, None] + 1


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.3, 0.5, 1.0, 0.0])
def test_shares_are_exact(rate):
    hundredths = round(rate * 100)
    assert noising.shares(rate, 1024).tolist() == [-(-hundredths * n // 100) for n in range(1025)]


def test_law_of_lengths_is_fairseqs():
    law = noising.poisson(3.0)
    assert len(law) == 18, "the first probability below 1e-7 is that of 17, and it is the last"
    exact = stats.poisson.pmf(np.arange(18), 3.0)
    np.testing.assert_allclose(law, exact / exact.sum(), rtol=1e-12)
    assert math.isclose(sum(noising.poisson(0.1)), 1) and math.isclose(sum(noising.poisson(15.0)), 1)


def test_every_subset_is_chosen_alike():
    rows = 6000
    allowed = np.array([True, False, True, True, False, True, True, False])
    found = run(noising.chosen, seeds(rows), np.tile(allowed, (rows, 1)), np.full(rows, 2))
    subsets = list(itertools.combinations(np.flatnonzero(allowed).tolist(), 2))
    agree([tuple(np.flatnonzero(row).tolist()) for row in found], {subset: 1 / 10 for subset in subsets})
    count = np.arange(rows) % 9
    found = run(noising.chosen, seeds(rows), np.tile(allowed, (rows, 1)), count)
    assert (found.sum(axis=1) == np.minimum(count, 5)).all() and not found[:, ~allowed].any()


@pytest.mark.parametrize("sentences", [1, 2, 3, 4])
def test_every_order_of_sentences_alike(sentences):
    rows = 500 * math.factorial(sentences)
    sizes = [3, 1, 4, 2][:sentences]
    text = row_of(sum(sizes), length=14)
    starts = np.zeros(14, bool)
    starts[1 + np.cumsum([0, *sizes[:-1]])] = True
    order = run(noising.permuted, seeds(rows), np.tile(text, (rows, 1)), np.tile(starts, (rows, 1)))
    pieces = np.split(np.arange(1, 1 + sum(sizes)), np.cumsum(sizes[:-1]))
    arrangements = {}
    for arrangement in itertools.permutations(pieces):
        row = np.arange(14)
        row[1 : 1 + sum(sizes)] = np.concatenate(arrangement)
        arrangements[tuple(row.tolist())] = 1 / math.factorial(sentences)
    agree(map(tuple, order.tolist()), arrangements)


@pytest.mark.parametrize("tokens", [1, 2, 5, 9])
def test_every_token_begins_alike(tokens):
    rows = 600 * tokens
    text = row_of(tokens, length=12)
    law = {}
    for offset in range(tokens):
        row = np.arange(12)
        row[1 : 1 + tokens] = 1 + (np.arange(tokens) + offset) % tokens
        law[tuple(row.tolist())] = 1 / tokens
    order = run(noising.rotated, seeds(rows), np.tile(text, (rows, 1)), rate=1.0)
    agree(map(tuple, order.tolist()), law)
    order = run(noising.rotated, seeds(rows), np.tile(text, (rows, 1)), rate=0.25)
    rest = tuple(range(12))
    agree(map(tuple, order.tolist()), {row: p / 4 + 0.75 * (row == rest) for row, p in law.items()})


def test_moving_keeps_tokens_in_their_text():
    text, words, sentences = some_rows()
    place = np.arange(text.shape[1])
    permuted = run(noising.permuted, seeds(len(text)), text, sentences)
    for order in (permuted, run(noising.rotated, seeds(len(text)), text, rate=1.0)):
        assert (np.sort(order, axis=1) == place).all(), "a token was lost or doubled"
        assert (order == place)[~text].all(), "[CLS], [SEP] or padding moved"
        block = np.cumsum(~text, axis=1)
        assert (np.take_along_axis(block, order, axis=1) == block).all(), "a token left its text"
        assert (order != place).any(axis=1).mean() > 0.5
    for row, starts, inner in zip(permuted, sentences, text, strict=True):
        follows = np.diff(row) == 1  # within a sentence every token still follows the one before
        assert follows[inner[1:] & inner[:-1] & ~starts[row][1:]].all()


def hidden_by(sizes, begins, words: int):
    """Words that give way to a mask, and words that are gone, one word after another as a reader of the paper would do it."""
    heads, gone = set(begins), set()
    for size, begin in zip(sizes, begins, strict=True):
        gone |= set(range(begin + 1, min(begin + size, words)))
    return tuple(sorted(heads - gone)), tuple(sorted(gone))


def law_of_spans(words: int, budget: int, mean: float, most: int) -> dict:
    """The exact law of (heads, gone, insertions, those above ``most`` counted as ``most``), by going through all that fairseq
    may draw: lengths, zeros among them, until their sum reaches the budget, then as many different first words."""
    lengths, law = noising.poisson(mean), collections.Counter()

    def draw(sizes: tuple, zeros: int, probability: float):
        if sum(sizes) >= budget:
            for begins in itertools.permutations(range(words), len(sizes)):
                hidden = hidden_by(sizes, begins, words)
                law[*hidden, min(zeros, most)] += probability / math.perm(words, len(sizes))
            return
        if probability < 1e-9:
            return
        for length, p in enumerate(lengths):
            if length == 0:
                draw(sizes, zeros + 1, probability * p)
            else:
                draw((*sizes, min(length, budget - sum(sizes))), zeros, probability * p)

    draw((), 0, 1.0)
    return dict(law)


@pytest.mark.parametrize(("words", "rate", "mean"), [(1, 0.3, 3.0), (4, 0.5, 3.0), (5, 0.6, 3.0), (4, 0.75, 1.0)])
def test_infilling_follows_the_exact_law(words, rate, mean):
    rows = 40_000
    text = np.tile(row_of(words, length=8), (rows, 1))
    spans = run(noising.spans, seeds(rows), text, text, rate=rate, mean=mean)
    found = []
    for heads, gone, inserted in zip(spans.heads[:, 1:], spans.gone[:, 1:], spans.inserted, strict=True):
        found.append((tuple(np.flatnonzero(heads).tolist()), tuple(np.flatnonzero(gone).tolist()), min(int(inserted), 3)))
    agree(found, law_of_spans(words, math.ceil(round(rate * words, 6)), mean, most=3))


def test_insertions_follow_the_number_of_spans():
    """How many lengths reach a budget of 30, and so how many of 0 are drawn before, tells of the whole law of lengths."""
    rows, budget = 20_000, 30
    law, zero = noising.poisson(3.0), noising.poisson(3.0)[0]
    above = np.array(law[1:]) / (1 - zero)
    number = collections.Counter()  # of spans
    reached = {0: 1.0}  # sum so far -> probability
    for drawn in range(1, budget + 1):
        following = collections.Counter()
        for total, probability in reached.items():
            for length, p in enumerate(above, start=1):
                if total + length >= budget:
                    number[drawn] += probability * p
                else:
                    following[total + length] += probability * p
        reached = following
    insertions = collections.Counter()
    for count, probability in number.items():
        for zeros in range(8):
            insertions[zeros] += probability * stats.nbinom.pmf(zeros, count, 1 - zero)
        insertions[8] += probability * stats.nbinom.sf(7, count, 1 - zero)
    text = np.tile(row_of(100, length=102), (rows, 1))
    inserted = run(noising.spans, seeds(rows), text, text, rate=0.3, mean=3.0).inserted
    agree(np.minimum(inserted, 8).tolist(), dict(insertions))


def test_spans_are_whole_words_of_one_text():
    text, words, _ = some_rows()
    for number in range(4):
        spans = run(noising.spans, seeds(len(text), number), text, words, rate=0.3, mean=3.0)
        hidden = spans.heads | spans.gone
        assert not (spans.heads & spans.gone).any() and not (hidden & ~text).any(), "[CLS], [SEP] or padding was hidden"
        assert not (spans.heads & ~words).any(), "a span begins inside a word"
        word = np.cumsum(words, axis=1)
        for row in range(len(text)):
            budget = -(-3 * words[row].sum() // 10)
            for number_of_word in np.unique(word[row][hidden[row]]):
                assert hidden[row][text[row] & (word[row] == number_of_word)].all(), "half a word was hidden"
            assert (spans.heads[row].sum() > 0) == (budget > 0)
            assert (words[row] & hidden[row]).sum() <= budget
            block = np.cumsum(~text[row])  # a gone token belongs to a head before it in its own text
            for place in np.flatnonzero(spans.gone[row]):
                assert (spans.heads[row][:place] & (block[:place] == block[place])).any()


def test_rearranging_keeps_order_and_loses_nothing():
    rng = np.random.default_rng(1)
    text, _, _ = some_rows()
    real = real_of(text)
    keep = real & ~(text & (rng.random(text.shape) < 0.2))
    count = rng.integers(0, 12, len(text)).astype(np.int32)
    found = run(noising.rearranged, seeds(len(text)), keep, count)
    length, full = text.shape[1], 0
    for row in range(len(text)):
        kept = np.flatnonzero(keep[row])
        inserted = min(int(count[row]), length - len(kept))
        full += inserted < count[row]
        assert (found.order[row][found.real[row] & ~found.inserted[row]] == kept).all()
        assert found.inserted[row].sum() == inserted and found.real[row].sum() == len(kept) + inserted
        assert (found.real[row] == (np.arange(length) < len(kept) + inserted)).all()
        assert not found.inserted[row][0] and not found.inserted[row][len(kept) + inserted - 1]
        places = np.flatnonzero(found.inserted[row])
        assert (found.order[row][places] == found.order[row][places - 1]).all()
    assert full > 5, "no row was too full to take an insertion: the case went untested"


def test_insertions_are_uniform():
    rows = 8000
    keep = np.tile(np.arange(9) < 5, (rows, 1))
    found = run(noising.rearranged, seeds(rows), keep, np.full(rows, 2, np.int32))
    law = {subset: 1 / math.comb(5, 2) for subset in itertools.combinations(range(1, 6), 2)}
    agree([tuple(np.flatnonzero(row).tolist()) for row in found.inserted], law)
