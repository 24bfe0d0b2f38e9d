"""Pairs as the papers have them: what is consecutive, what is random, how long, and how often."""

import math

import numpy as np
import pytest

from bert_jax.data.pairs import PairBatches, PairSpec, Segments, _cells, _grid
from bert_jax.errors import BertJaxError


def within(successes: int, trials: int, p: float) -> bool:
    """Whether a count lies in the central 1 - 1e-6 of Binomial(trials, p), exactly."""
    log_p = np.array(
        [
            math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
            + k * math.log(p) + (trials - k) * math.log1p(-p)
            for k in range(trials + 1)
        ]
    )  # fmt: skip
    cumulative = np.cumsum(np.exp(log_p))
    return cumulative[successes] > 5e-7 and (successes == 0 or 1 - cumulative[successes - 1] > 5e-7)


def document_of(split, token):
    return np.searchsorted(split.documents, token, side="right") - 1


def epochs(pairs: PairBatches, number: int) -> Segments:
    return pairs.segments(np.arange(number * pairs.count))


@pytest.mark.parametrize("length", [16, 64, 128])
def test_every_token_is_in_exactly_one_chunk_an_epoch(random_split, length):
    split = random_split(count=40, sentence=(1, 60))
    pairs = PairBatches(split, PairSpec(length, "none", 0.0), seed=3)
    starts = []
    for epoch in range(3):
        document, start, end = pairs._chunks(np.full(pairs.count, epoch), np.arange(pairs.count))
        np.testing.assert_array_equal(start[1:], end[:-1])  # examples are numbered through the split
        assert start[0] == 0 and end[-1] == split.tokens
        assert (end > start).all()
        assert (document_of(split, start) == document).all() and (document_of(split, end - 1) == document).all()
        assert (end - start < 2 * pairs.spec.room).all()
        starts.append(start)


def test_cuts_move_between_epochs(make_split):
    """A long document is cut anywhere; one of five full cells cannot be cut elsewhere; between, by what is free."""
    sizes = [4000, 4000, 5 * 30, 4 * 30 + 15]
    split = make_split([[[10]] * size for size in sizes])
    pairs = PairBatches(split, PairSpec(32, "none", 0.0), seed=0)
    starts = []
    for epoch in range(500):
        document, start, _ = pairs._chunks(np.full(pairs.count, epoch), np.arange(pairs.count))
        starts.append(start - split.documents[document])
    starts = np.array(starts)
    distinct = np.array([len(np.unique(column)) for column in starts.T])
    long = (document < 2) & (starts[0] > 0)
    assert distinct[long].min() >= 28
    assert (starts[:, (document == 0)] != starts[:, (document == 1)]).any()
    assert (distinct[document == 2] == 1).all()
    assert (distinct[document == 3] == [1, 16, 16, 16, 16]).all()


def test_every_token_is_in_exactly_one_example_an_epoch(make_split):
    """With sentences of one token no chunk exceeds its room, so nothing is truncated."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 700, size=50)
    ids = iter(range(10, 10 + sizes.sum()))
    split = make_split([[[next(ids)] for _ in range(size)] for size in sizes], vocab_size=40_000)
    pairs = PairBatches(split, PairSpec(32, "none", 0.0), seed=0)
    for epoch in range(2):
        batch = pairs.at(epoch * pairs.count + np.arange(pairs.count))
        text = batch["input_ids"][batch["attention_mask"] & (batch["input_ids"] >= 10)]
        np.testing.assert_array_equal(np.sort(text), np.arange(10, 10 + sizes.sum()))


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


@pytest.mark.parametrize("kind", ["nsp", "sop", "none"])
@pytest.mark.parametrize("shards", [1, 5])
def test_the_layout_of_a_batch(random_split, kind, shards):
    split = random_split(shards=shards)
    pairs = PairBatches(split, PairSpec(64, kind, 0.1), seed=1)
    positions = np.arange(2 * pairs.count)
    batch, segments = pairs.at(positions), pairs.segments(positions)
    label = {"nsp": "next_sentence_label", "sop": "sentence_order_label"}.get(kind)
    assert set(batch) == {"input_ids", "segment_ids", "attention_mask", "word_starts"} | ({label} if label else set())
    types = {"input_ids": np.int32, "segment_ids": np.int32, "attention_mask": bool, "word_starts": bool}
    for name, dtype in types.items():
        assert batch[name].dtype == dtype and batch[name].shape == (len(positions), 64)
    if label:
        assert batch[label].dtype == np.int32 and batch[label].shape == (len(positions),)
    for row in range(len(positions)):
        a = list(range(segments.a_start[row] + 10, segments.a_end[row] + 10))
        b = list(range(segments.b_start[row] + 10, segments.b_end[row] + 10))
        expected = [1, *a, 2] + ([*b, 2] if b else [])
        padding = 64 - len(expected)
        assert padding >= 0
        assert batch["input_ids"][row].tolist() == expected + [0] * padding
        assert batch["attention_mask"][row].tolist() == [True] * len(expected) + [False] * padding
        second = len(b) + 1 if b else 0
        assert batch["segment_ids"][row].tolist() == [0] * (len(a) + 2) + [1] * second + [0] * padding
        assert batch["word_starts"][row].tolist() == [i >= 10 for i in batch["input_ids"][row]]


def test_next_and_random_segments(random_split):
    split = random_split(count=80, sentence=(3, 20))
    pairs = PairBatches(split, PairSpec(64, "nsp", 0.1), seed=5)
    segments = epochs(pairs, 6)
    a_document = document_of(split, segments.a_start)
    b_document = document_of(split, segments.b_start)
    for start, end, document in (
        (segments.a_start, segments.a_end, a_document),
        (segments.b_start, segments.b_end, b_document),
    ):
        assert (end > start).all()
        assert (document_of(split, end - 1) == document).all(), "a segment crosses documents"
    following = segments.label == 0
    assert (a_document == b_document)[following].all()
    assert (a_document != b_document)[~following].all()
    untouched = segments.a_end - segments.a_start + segments.b_end - segments.b_start < pairs.spec.room
    np.testing.assert_array_equal(
        segments.a_end[following & untouched], segments.b_start[following & untouched], "B is not what comes next"
    )
    assert (segments.a_end <= segments.b_start)[following].all()
    assert np.isin(segments.b_start[untouched], split.sentences).all()
    assert len(np.unique(b_document[~following])) == 80


def test_labels_are_fair_coins(make_split):
    """Every chunk has many sentences here, so no label is forced."""
    split = make_split([[[i] for i in range(10, 510)] for _ in range(40)])
    for kind in ("nsp", "sop"):
        labels = epochs(PairBatches(split, PairSpec(32, kind, 0.0), seed=11), 5).label
        assert set(labels) == {0, 1}
        assert within(int(labels.sum()), len(labels), 0.5)
    short = PairBatches(split, PairSpec(32, "none", 0.1), seed=11)
    aims = short._aims(np.random.default_rng(0).integers(2**63, size=20_000).astype(np.uint64))
    # An aim drawn among 2..T equals T once in T - 1 times.
    assert within(int((aims < short.spec.room).sum()), 20_000, 0.1 * (1 - 1 / (short.spec.room - 1)))
    assert aims.min() == 2 and aims.max() == short.spec.room


def test_the_random_document_and_split_point_are_uniform(make_split):
    split = make_split([[[i] for i in range(10, 40)] for _ in range(11)])
    pairs = PairBatches(split, PairSpec(33, "nsp", 0.0), seed=2)
    assert pairs.count == 11
    segments = epochs(pairs, 4000)
    random = segments.label == 1
    step = (document_of(split, segments.b_start) - document_of(split, segments.a_start))[random] % 11
    counts = np.bincount(step, minlength=11)
    assert counts[0] == 0
    for count in counts[1:]:
        assert within(int(count), int(random.sum()), 0.1)
    lengths = np.bincount((segments.a_end - segments.a_start)[~random], minlength=30)
    assert lengths[0] == 0 and len(lengths) == 30
    for count in lengths[1:]:
        assert within(int(count), int((~random).sum()), 1 / 29)


def test_order_and_swap(random_split):
    split = random_split(count=80, sentence=(3, 20))
    segments = epochs(PairBatches(split, PairSpec(64, "sop", 0.1), seed=5), 3)
    swapped = segments.label == 1
    assert set(segments.label) == {0, 1}
    first = np.where(swapped, segments.b_end, segments.a_end)
    second = np.where(swapped, segments.a_start, segments.b_start)
    assert (first <= second).all()
    assert (document_of(split, segments.a_start) == document_of(split, segments.b_end - 1)).all()
    total = segments.a_end - segments.a_start + segments.b_end - segments.b_start
    untouched = total < 61
    np.testing.assert_array_equal(first[untouched], second[untouched])
    assert np.isin(second[untouched], split.sentences).mean() > 0.9


def test_one_sentence_is_split_at_a_word(make_split):
    """Sentences of a whole document each: an id below 0 continues a word."""
    words = [[10, -11, -12, 13, -14, 15, -16]]
    split = make_split([words] * 30)
    pairs = PairBatches(split, PairSpec(16, "sop", 0.0), seed=0)
    segments = epochs(pairs, 20)
    middle = np.where(segments.label == 1, segments.a_start, segments.b_start)
    assert set(middle % 7) == {3, 5}
    one_word = make_split([[[10, -11, -12]]] * 30)
    segments = epochs(PairBatches(one_word, PairSpec(16, "sop", 0.0), seed=0), 20)
    middle = np.where(segments.label == 1, segments.a_start, segments.b_start)
    assert set(middle % 3) == {1, 2}
    batch = PairBatches(one_word, PairSpec(16, "sop", 0.0), seed=0).at(np.arange(30))
    assert (batch["word_starts"].sum(axis=1) == 2).all(), "each segment starts a word, even in the middle of one"


def test_a_single_token_has_no_order(make_split):
    split = make_split([[[10]]] * 5)
    batch = PairBatches(split, PairSpec(16, "sop"), seed=0).at(np.arange(5))
    assert (batch["sentence_order_label"] == -1).all()
    assert (batch["input_ids"][:, :4] == [1, 10, 2, 0]).all()
    random = PairBatches(split, PairSpec(16, "nsp"), seed=0).at(np.arange(5))
    assert (random["next_sentence_label"] == 1).all()
    assert (random["input_ids"][:, :6] == [1, 10, 2, 10, 2, 0]).all()


def truncated_one_by_one(a: list, b: list, room: int, coin) -> None:
    """The loop of `truncate_seq_pair`, for comparison."""
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        del longer[0 if coin() else -1]


@pytest.mark.parametrize(("a", "b"), [(3, 90), (90, 3), (40, 41), (41, 41), (30, 31), (61, 1), (100, 100), (29, 32)])
def test_truncation_is_that_of_bert(random_split, a, b):
    pairs = PairBatches(random_split(), PairSpec(64, "nsp"), seed=0)
    rows = 4000
    whole = Segments(
        np.zeros(rows, int), np.full(rows, a), np.full(rows, 500), np.full(rows, 500 + b), np.zeros(rows, np.int32)
    )
    found = pairs._truncated(whole, np.random.default_rng(1).integers(2**63, size=rows).astype(np.uint64))
    left, right = list(range(a)), list(range(b))
    truncated_one_by_one(left, right, 61, lambda: True)
    assert set(found.a_end - found.a_start) == {len(left)}
    assert set(found.b_end - found.b_start) == {len(right)}
    for front, lost in ((found.a_start, a - len(left)), (found.b_start - 500, b - len(right))):
        assert front.min() >= 0 and front.max() <= lost
        assert within(int(front.sum()), rows * lost, 0.5) if 0 < lost * rows < 200_000 else True
        assert lost == 0 or abs(front.mean() - lost / 2) < 5 * math.sqrt(lost / 4 / rows)


def test_short_examples_end_with_the_sentence_that_reaches_the_aim(random_split):
    split = random_split(count=80, sentence=(3, 10))
    whole = epochs(PairBatches(split, PairSpec(128, "none", 0.0), seed=4), 1)
    short = epochs(PairBatches(split, PairSpec(128, "none", 1.0), seed=4), 1)
    length, full = short.a_end - short.a_start, whole.a_end - whole.a_start
    assert (length < full).mean() > 0.3
    cut = (length < full) & (full < 126)
    assert np.isin(short.a_end[cut], split.sentences).all()
    assert (short.a_start == whole.a_start)[cut].all()


def test_a_sentence_longer_than_an_example_is_cut(make_split):
    split = make_split([[list(range(10, 1010))], [list(range(1010, 1500))]])
    pairs = PairBatches(split, PairSpec(32, "none", 0.0), seed=0)
    batch = pairs.at(np.arange(pairs.count))
    text = batch["input_ids"][batch["input_ids"] >= 10]
    np.testing.assert_array_equal(np.sort(text), np.arange(10, 1500))


@pytest.mark.parametrize("kind", ["nsp", "sop", "none"])
def test_an_example_depends_on_seed_and_position_alone(random_split, kind):
    split = random_split()
    spec = PairSpec(64, kind)
    pairs = PairBatches(split, spec, seed=8)
    together = pairs.at(np.arange(1000))
    again = PairBatches(split, spec, seed=8)
    for position in (0, 999, 500, 17):
        alone = again.at(np.array([position]))
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][position])
    other = PairBatches(split, spec, seed=9).at(np.arange(1000))
    assert (other["input_ids"] != together["input_ids"]).any(axis=1).mean() > 0.9
    first, second = pairs.at(np.arange(pairs.count)), pairs.at(pairs.count + np.arange(pairs.count))
    assert (first["input_ids"] != second["input_ids"]).any(axis=1).mean() > 0.9


def test_an_epoch_shuffles_all_examples(random_split):
    pairs = PairBatches(random_split(), PairSpec(64, "none", 0.0), seed=8)
    starts = pairs.segments(np.arange(pairs.count)).a_start
    assert len(np.unique(document_of(pairs.split, starts))) == 60
    assert abs(np.corrcoef(starts, np.arange(pairs.count))[0, 1]) < 5 / math.sqrt(pairs.count)


def test_ids_beyond_the_vocabulary_are_refused(make_split):
    split = make_split([[[10, 11]], [[10, 12]]], vocab_size=30_000)
    split.vocab_size = 12
    with pytest.raises(BertJaxError, match="token id 12 in a batch, but the vocabulary has 12"):
        PairBatches(split, PairSpec(16, "nsp"), seed=0).at(np.arange(2))


def test_vocabularies_beyond_15_bits(make_split):
    split = make_split([[[10, -60_000, 249_999]], [[10, 12]]], vocab_size=250_000)
    batch = PairBatches(split, PairSpec(16, "none"), seed=0).at(np.arange(2))
    row = int(batch["input_ids"][1].max() == 249_999)
    assert batch["input_ids"][row, :5].tolist() == [1, 10, 60_000, 249_999, 2]
    assert batch["word_starts"][row, :5].tolist() == [False, True, False, True, False]


def test_wrong_specifications(make_split):
    split = make_split([[[10, 11]]])
    with pytest.raises(BertJaxError, match="one document, so none to draw"):
        PairBatches(split, PairSpec(16, "nsp"), seed=0)
    for wrong, words in (
        ({"pairs": "mlm"}, "use one of nsp, sop, none"),
        ({"length": 3}, "at least 8"),
        ({"short_fraction": 2.0}, "short_fraction"),
    ):
        with pytest.raises(BertJaxError, match=words):
            PairSpec(**wrong)
