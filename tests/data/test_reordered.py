"""ERNIE 2.0's reordered paragraphs: the label names the permutation, and every class comes as often as it should."""

import itertools
import math

import numpy as np
import pytest

from bert_jax.data.reordered import Reordered
from bert_jax.errors import BertJaxError
from tests.data.test_pairs import within


@pytest.mark.parametrize(("most", "classes"), [(2, 3), (3, 9), (4, 33)])
def test_the_label_puts_the_text_in_order_again(random_split, most, classes):
    split = random_split(count=40, sentence=(1, 12))
    examples = Reordered(64, most=most).open(split, seed=2)
    positions = np.arange(4 * examples.count)
    segments, batch = examples.segments(positions), examples.at(positions)
    names = [order for n in range(1, most + 1) for order in itertools.permutations(range(n))]
    assert len(names) == classes and set(segments.label) <= set(range(classes)) and segments.label.max() > classes // 2
    for row in positions:
        order = names[segments.label[row]]
        parts = [(s, e) for s, e in zip(segments.starts[row], segments.ends[row], strict=True) if s < e]
        assert len(parts) == len(order)
        text = sorted(parts)
        assert [text[part] for part in order] == parts, "not the order that the label says"
        assert all(before[1] == after[0] for before, after in itertools.pairwise(text)), "not consecutive"
        assert np.isin([start for start, _ in text[1:]], split.sentences).all()
        assert len(set(np.searchsorted(split.documents, [text[0][0], text[-1][1] - 1], "right"))) == 1
        expected = [1, *(token + 10 for s, e in parts for token in range(s, e)), 2]
        assert batch["input_ids"][row].tolist() == expected + [0] * (64 - len(expected))
    np.testing.assert_array_equal(batch["reorder_label"], segments.label)


def test_numbers_orders_and_cuts_are_uniform(make_split):
    split = make_split([[[i] for i in range(10, 16)] for _ in range(40)])
    examples = Reordered(8, most=3).open(split, seed=7)
    segments = examples.segments(np.arange(500 * examples.count))
    total = len(segments.label)
    number = (segments.lengths > 0).sum(axis=1)
    for n, first in ((1, 0), (2, 1), (3, 3)):
        for label in range(first, first + math.factorial(n)):
            assert within(int((segments.label == label).sum()), total, 1 / 3 / math.factorial(n)), label
    three = number == 3
    cuts = np.sort(segments.starts[three] % 6, axis=1)[:, 1:]
    chosen, counts = np.unique(cuts, axis=0, return_counts=True)
    assert len(chosen) == 10
    for count in counts:
        assert within(int(count), int(three.sum()), 1 / 10)


def test_short_chunks_have_as_many_segments_as_sentences(make_split):
    split = make_split([[[10, 11], [12]]] * 30 + [[[13]]] * 10)
    examples = Reordered(16, most=3).open(split, seed=7)
    segments = examples.segments(np.arange(200 * examples.count))
    single = segments.starts.min(axis=1) >= 90
    assert (segments.label[single] == 0).all()
    assert within(int((segments.label[~single] == 0).sum()), int((~single).sum()), 1 / 2)
    assert within(int((segments.label[~single] == 1).sum()), int((~single).sum()), 1 / 4)
    assert set(segments.label) == {0, 1, 2}


def test_refusals():
    for most in (1, 8):
        with pytest.raises(BertJaxError, match=f"most={most}: from 2 to 7"):
            Reordered(most=most)
