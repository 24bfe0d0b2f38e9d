"""Cells, shuffles, shares of languages and copies, against their formulas."""

import dataclasses

import numpy as np
import pytest

from bert_jax.data.grid import Grid, _cells, _grid, shares
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.streams import Streams
from bert_jax.errors import BertJaxError


def grid(tokens, language=None, exponent=None, copies=None, room=16, seed=1) -> Grid:
    tokens = np.asarray(tokens)
    language = np.zeros(len(tokens), int) if language is None else np.asarray(language)
    return Grid(tokens, language, room, seed=seed, exponent=exponent, copies=copies)


def test_the_number_of_cells_does_not_depend_on_the_epoch_and_no_cell_is_empty():
    for room in (5, 13, 125):
        tokens = np.arange(1, 70 * room)
        cells = _cells(tokens, room)
        least, most, step, divisor = _grid(tokens, cells, room)
        assert (least >= 1).all() and (least <= most).all()
        for first in (least, (least + most) // 2, most):
            for n, count, f, s, d in zip(tokens, cells, first, step, divisor, strict=True):
                starts = np.array([0, *(f + np.arange(count - 1) * s // d), n])
                assert 1 <= np.diff(starts).min() and np.diff(starts).max() <= room


def test_areas_of_a_trillion_tokens():
    """Python's integers say where cells begin; int64 held the whole product up to some 50 billion tokens."""
    tokens, room = 10**12, 254
    made = grid([tokens], room=room)
    example = np.array([0, 1, 2, 10**6, made.count // 3, made.count // 2, made.count - 2, made.count - 1])
    cells = made.cells(np.zeros(len(example), np.int64), example)
    lengths = cells.after - cells.here
    assert (1 <= lengths).all() and (lengths <= room).all()
    first = int(made.cells(np.array([0]), np.array([0])).after[0])
    exact = [0 if n == 0 else first + (int(n) - 1) * tokens // (made.count - 1) for n in example]
    assert cells.here.tolist() == exact


def test_shares_of_languages_are_the_formula():
    """google-research/bert, multilingual.md: exponent 0.7, English:Icelandic 1000 to 1 becomes about 100 to 1."""
    english, icelandic = shares(np.array([1_000_000, 1_000]), 0.7)
    assert english + icelandic == 1_001_000
    assert 100 < english / icelandic < 130
    assert english / icelandic == pytest.approx(1000**0.7, rel=1e-3)
    rng = np.random.default_rng(0)
    for exponent in (0.0, 0.3, 0.5, 0.7, 1.0):
        examples = rng.integers(1, 10**6, size=104)
        exact = examples.sum() * examples**exponent / (examples**exponent).sum()
        slots = shares(examples, exponent)
        assert slots.sum() == examples.sum() and (np.abs(slots - exact) < 1).all()
    np.testing.assert_array_equal(slots, examples)
    assert shares(np.array([10, 0, 30]), 0.5)[1] == 0, "no examples, no slots"
    assert shares(np.array([10**9, *[1] * 50]), 1.0).min() == 1
    crowded = shares(np.array([10_000, *[1] * 99]), 1.3)  # an exponent that would leave the small ones nothing
    assert crowded.sum() == 10_099 and (crowded[1:] == 1).all()


def test_every_epoch_has_each_language_its_slots_and_each_its_own_examples_in_turn():
    language = np.repeat([0, 1, 3], [90, 12, 3])
    made = grid(np.full(105, 40), language, exponent=0.5)
    epochs = 30
    version, example = made._examples(np.arange(epochs * made.count))
    owner = language[example // 3]
    for epoch in range(epochs):
        counts = np.bincount(owner[epoch * made.count : (epoch + 1) * made.count], minlength=4)
        np.testing.assert_array_equal(counts, made.slots)
    np.testing.assert_array_equal(made.slots, shares(np.array([270, 36, 0, 9]), 0.5))
    for number, own in ((0, 270), (1, 36), (3, 9)):
        seen = np.stack([version[owner == number], example[owner == number]])
        assert len(np.unique(seen, axis=1).T) == seen.shape[1], "an example comes twice in a pass"
        passes = np.bincount(seen[0])
        assert (passes[:-1] == own).all() and passes[-1] <= own
    orders = [example[: made.count], example[made.count : 2 * made.count]]
    assert (orders[0] != orders[1]).mean() > 0.9


def test_shares_as_they_are_are_a_plain_epoch():
    made = grid(np.full(50, 40), np.repeat([0, 1], 25), exponent=1.0)
    version, example = made._examples(np.arange(2 * made.count))
    np.testing.assert_array_equal(np.sort(example[: made.count]), np.arange(made.count))
    np.testing.assert_array_equal(version, np.repeat([0, 1], made.count))


def test_exponents_need_languages(random_split):
    split = random_split()
    for kind in (PairSpec(64, language_exponent=0.7), Streams(64, language_exponent=0.7), Reordered(64, language_exponent=0.7)):
        with pytest.raises(BertJaxError, match="does not say which language.*from sources with languages, as in en=a.txt"):
            kind.open(split, seed=0)
    with pytest.raises(BertJaxError, match="language_exponent=1.5: from 0"):
        PairSpec(language_exponent=1.5)


@pytest.mark.parametrize("kind", [PairSpec(64), PairSpec(64, "distance"), Streams(64), Streams(64, "token"), Reordered(64)])
@pytest.mark.parametrize("exponent", [None, 0.5])
def test_copies_come_again_in_another_order(random_split, kind, exponent):
    split = random_split()
    split.languages, split.document_language = ("a", "b"), (np.arange(60) > 50).astype(np.uint8)
    kind = dataclasses.replace(kind, copies=3, language_exponent=exponent)
    examples = kind.open(split, seed=4)
    assert kind.layout(7, ())["example_seeds"] == ((7, 2), np.dtype(np.uint32))

    # Epochs enough for every language to pass through all of its copies; with its seeds an example comes again whole.
    batch = examples.at(np.arange(24 * examples.count))
    rows = {}
    text = np.concatenate([batch["input_ids"], batch["segment_ids"]], axis=1)
    for seeds, row in zip(map(bytes, batch["example_seeds"]), text, strict=True):
        np.testing.assert_array_equal(rows.setdefault(seeds, row), row)
    assert len(rows) == 3 * examples.count, "each example has three versions, and no more"
    if exponent is None:
        seeds = batch["example_seeds"].reshape(24, examples.count, 2)
        epochs = [set(map(bytes, epoch)) for epoch in seeds]
        assert all(len(epoch) == examples.count for epoch in epochs)
        assert epochs[0] == epochs[3] and not epochs[0] & epochs[1] and not epochs[1] & epochs[2] and not epochs[0] & epochs[2]
        assert (seeds[0] != seeds[3]).any(axis=1).mean() > 0.9
        endless = dataclasses.replace(kind, copies=None).open(split, seed=4)
        first, last = (endless.at(np.arange(k * endless.count, (k + 1) * endless.count)) for k in (0, 3))
        assert "example_seeds" not in first
        assert set(map(bytes, first["input_ids"])) != set(map(bytes, last["input_ids"]))
    with pytest.raises(BertJaxError, match="copies=0"):
        dataclasses.replace(kind, copies=0)
