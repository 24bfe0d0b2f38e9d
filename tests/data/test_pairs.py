"""Pairs as the papers have them: what is consecutive, what is random, how long, and how often."""

import math

import numpy as np
import pytest

from bert_jax.data.pairs import LABELS, PairExamples, PairSpec
from bert_jax.data.rows import Segments
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


def chunks(pairs: PairExamples, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, start and end of every chunk of an epoch, in the order of the text."""
    made = pairs.chunks_of(pairs.grid.cells(np.full(pairs.count, epoch), np.arange(pairs.count)))
    return pairs.order[made.place], made.start, made.end


def epochs(pairs: PairExamples, number: int) -> Segments:
    return pairs.segments(np.arange(number * pairs.count))


@pytest.mark.parametrize("length", [16, 64, 128])
def test_every_token_is_in_exactly_one_chunk_an_epoch(random_split, length):
    split = random_split(count=40, sentence=(1, 60))
    pairs = PairSpec(length, "none", 0.0).open(split, seed=3)
    starts = []
    for epoch in range(3):
        document, start, end = chunks(pairs, epoch)
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
    pairs = PairSpec(32, "none", 0.0).open(split, seed=0)
    starts = []
    for epoch in range(500):
        document, start, _ = chunks(pairs, epoch)
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
    pairs = PairSpec(32, "none", 0.0).open(split, seed=0)
    for epoch in range(2):
        batch = pairs.at(epoch * pairs.count + np.arange(pairs.count))
        text = batch["input_ids"][batch["attention_mask"] & (batch["input_ids"] >= 10)]
        np.testing.assert_array_equal(np.sort(text), np.arange(10, 10 + sizes.sum()))


@pytest.mark.parametrize("kind", ["nsp", "sop", "structural", "distance", "none"])
@pytest.mark.parametrize("shards", [1, 5])
def test_the_layout_of_a_batch(random_split, kind, shards):
    split = random_split(shards=shards)
    pairs = PairSpec(64, kind, 0.1).open(split, seed=1)
    positions = np.arange(2 * pairs.count)
    batch, segments = pairs.at(positions), pairs.segments(positions)
    label = LABELS.get(kind)
    assert set(batch) == {"input_ids", "segment_ids", "attention_mask", "word_starts"} | ({label} if label else set())
    types = {"input_ids": np.int32, "segment_ids": np.int32, "attention_mask": bool, "word_starts": bool}
    for name, dtype in types.items():
        assert batch[name].dtype == dtype and batch[name].shape == (len(positions), 64)
    if label:
        assert batch[label].dtype == np.int32 and batch[label].shape == (len(positions),)
    for row in range(len(positions)):
        a = list(range(segments.starts[:, 0][row] + 10, segments.ends[:, 0][row] + 10))
        b = list(range(segments.starts[row, 1] + 10, segments.ends[row, 1] + 10)) if label else []
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
    pairs = PairSpec(64, "nsp", 0.1).open(split, seed=5)
    segments = epochs(pairs, 6)
    a_document = document_of(split, segments.starts[:, 0])
    b_document = document_of(split, segments.starts[:, 1])
    for start, end, document in (
        (segments.starts[:, 0], segments.ends[:, 0], a_document),
        (segments.starts[:, 1], segments.ends[:, 1], b_document),
    ):
        assert (end > start).all()
        assert (document_of(split, end - 1) == document).all(), "a segment crosses documents"
    following = segments.label == 0
    assert (a_document == b_document)[following].all()
    assert (a_document != b_document)[~following].all()
    untouched = segments.ends[:, 0] - segments.starts[:, 0] + segments.ends[:, 1] - segments.starts[:, 1] < pairs.spec.room
    np.testing.assert_array_equal(
        segments.ends[:, 0][following & untouched], segments.starts[:, 1][following & untouched], "B is not what comes next"
    )
    assert (segments.ends[:, 0] <= segments.starts[:, 1])[following].all()
    assert np.isin(segments.starts[:, 1][untouched], split.sentences).all()
    assert len(np.unique(b_document[~following])) == 80


def test_labels_are_fair_coins(make_split):
    """Every chunk has many sentences here, so no label is forced."""
    split = make_split([[[i] for i in range(10, 510)] for _ in range(40)])
    for kind in ("nsp", "sop"):
        labels = epochs(PairSpec(32, kind, 0.0).open(split, seed=11), 5).label
        assert set(labels) == {0, 1}
        assert within(int(labels.sum()), len(labels), 0.5)
    short = PairSpec(32, "none", 0.1).open(split, seed=11)
    aims = short._aims(np.random.default_rng(0).integers(2**63, size=20_000).astype(np.uint64))
    # An aim drawn among 2..T equals T once in T - 1 times.
    assert within(int((aims < short.spec.room).sum()), 20_000, 0.1 * (1 - 1 / (short.spec.room - 1)))
    assert aims.min() == 2 and aims.max() == short.spec.room


def test_the_random_document_and_split_point_are_uniform(make_split):
    split = make_split([[[i] for i in range(10, 40)] for _ in range(11)])
    pairs = PairSpec(33, "nsp", 0.0).open(split, seed=2)
    assert pairs.count == 11
    segments = epochs(pairs, 4000)
    random = segments.label == 1
    step = (document_of(split, segments.starts[:, 1]) - document_of(split, segments.starts[:, 0]))[random] % 11
    counts = np.bincount(step, minlength=11)
    assert counts[0] == 0
    for count in counts[1:]:
        assert within(int(count), int(random.sum()), 0.1)
    lengths = np.bincount((segments.ends[:, 0] - segments.starts[:, 0])[~random], minlength=30)
    assert lengths[0] == 0 and len(lengths) == 30
    for count in lengths[1:]:
        assert within(int(count), int((~random).sum()), 1 / 29)


def test_order_and_swap(random_split):
    split = random_split(count=80, sentence=(3, 20))
    segments = epochs(PairSpec(64, "sop", 0.1).open(split, seed=5), 3)
    swapped = segments.label == 1
    assert set(segments.label) == {0, 1}
    first = np.where(swapped, segments.ends[:, 1], segments.ends[:, 0])
    second = np.where(swapped, segments.starts[:, 0], segments.starts[:, 1])
    assert (first <= second).all()
    assert (document_of(split, segments.starts[:, 0]) == document_of(split, segments.ends[:, 1] - 1)).all()
    total = segments.ends[:, 0] - segments.starts[:, 0] + segments.ends[:, 1] - segments.starts[:, 1]
    untouched = total < 61
    np.testing.assert_array_equal(first[untouched], second[untouched])
    assert np.isin(second[untouched], split.sentences).mean() > 0.9


def test_one_sentence_is_split_at_a_word(make_split):
    """Sentences of a whole document each: an id below 0 continues a word."""
    words = [[10, -11, -12, 13, -14, 15, -16]]
    split = make_split([words] * 30)
    pairs = PairSpec(16, "sop", 0.0).open(split, seed=0)
    segments = epochs(pairs, 20)
    middle = np.where(segments.label == 1, segments.starts[:, 0], segments.starts[:, 1])
    assert set(middle % 7) == {3, 5}
    one_word = make_split([[[10, -11, -12]]] * 30)
    segments = epochs(PairSpec(16, "sop", 0.0).open(one_word, seed=0), 20)
    middle = np.where(segments.label == 1, segments.starts[:, 0], segments.starts[:, 1])
    assert set(middle % 3) == {1, 2}
    batch = PairSpec(16, "sop", 0.0).open(one_word, seed=0).at(np.arange(30))
    assert (batch["word_starts"].sum(axis=1) == 2).all(), "each segment starts a word, even in the middle of one"


def test_a_single_token_has_no_order(make_split):
    split = make_split([[[10]]] * 5)
    batch = PairSpec(16, "sop").open(split, seed=0).at(np.arange(5))
    assert (batch["sentence_order_label"] == -1).all()
    assert (batch["input_ids"][:, :4] == [1, 10, 2, 0]).all()
    random = PairSpec(16, "nsp").open(split, seed=0).at(np.arange(5))
    assert (random["next_sentence_label"] == 1).all()
    assert (random["input_ids"][:, :6] == [1, 10, 2, 10, 2, 0]).all()


def truncated_one_by_one(a: list, b: list, room: int, coin) -> None:
    """The loop of `truncate_seq_pair`, for comparison."""
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        del longer[0 if coin() else -1]


@pytest.mark.parametrize(("a", "b"), [(3, 90), (90, 3), (40, 41), (41, 41), (30, 31), (61, 1), (100, 100), (29, 32)])
def test_truncation_is_that_of_bert(random_split, a, b):
    pairs = PairSpec(64, "nsp").open(random_split(), seed=0)
    rows = 4000
    keys = np.random.default_rng(1).integers(2**63, size=rows).astype(np.uint64)
    starts, ends = np.tile([0, 500], (rows, 1)), np.tile([a, 500 + b], (rows, 1))
    found = pairs._truncated(Segments(starts, ends, np.zeros(rows, np.int32), keys))
    left, right = list(range(a)), list(range(b))
    truncated_one_by_one(left, right, 61, lambda: True)
    assert set(found.ends[:, 0] - found.starts[:, 0]) == {len(left)}
    assert set(found.ends[:, 1] - found.starts[:, 1]) == {len(right)}
    for front, lost in ((found.starts[:, 0], a - len(left)), (found.starts[:, 1] - 500, b - len(right))):
        assert front.min() >= 0 and front.max() <= lost
        assert within(int(front.sum()), rows * lost, 0.5) if 0 < lost * rows < 200_000 else True
        assert lost == 0 or abs(front.mean() - lost / 2) < 5 * math.sqrt(lost / 4 / rows)


def test_short_examples_end_with_the_sentence_that_reaches_the_aim(random_split):
    split = random_split(count=80, sentence=(3, 10))
    whole = epochs(PairSpec(128, "none", 0.0).open(split, seed=4), 1)
    short = epochs(PairSpec(128, "none", 1.0).open(split, seed=4), 1)
    length, full = short.ends[:, 0] - short.starts[:, 0], whole.ends[:, 0] - whole.starts[:, 0]
    assert (length < full).mean() > 0.3
    cut = (length < full) & (full < 126)
    assert np.isin(short.ends[:, 0][cut], split.sentences).all()
    assert (short.starts[:, 0] == whole.starts[:, 0])[cut].all()


def test_a_sentence_longer_than_an_example_is_cut(make_split):
    split = make_split([[list(range(10, 1010))], [list(range(1010, 1500))]])
    pairs = PairSpec(32, "none", 0.0).open(split, seed=0)
    batch = pairs.at(np.arange(pairs.count))
    text = batch["input_ids"][batch["input_ids"] >= 10]
    np.testing.assert_array_equal(np.sort(text), np.arange(10, 1500))


@pytest.mark.parametrize("kind", ["nsp", "sop", "structural", "distance", "none"])
def test_an_example_depends_on_seed_and_position_alone(random_split, kind):
    split = random_split()
    spec = PairSpec(64, kind)
    pairs = spec.open(split, seed=8)
    together = pairs.at(np.arange(1000))
    again = spec.open(split, seed=8)
    for position in (0, 999, 500, 17):
        alone = again.at(np.array([position]))
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][position])
    other = spec.open(split, seed=9).at(np.arange(1000))
    assert (other["input_ids"] != together["input_ids"]).any(axis=1).mean() > 0.9
    first, second = pairs.at(np.arange(pairs.count)), pairs.at(pairs.count + np.arange(pairs.count))
    assert (first["input_ids"] != second["input_ids"]).any(axis=1).mean() > 0.9


def test_an_epoch_shuffles_all_examples(random_split):
    pairs = PairSpec(64, "none", 0.0).open(random_split(), seed=8)
    starts = pairs.segments(np.arange(pairs.count)).starts[:, 0]
    assert len(np.unique(document_of(pairs.split, starts))) == 60
    assert abs(np.corrcoef(starts, np.arange(pairs.count))[0, 1]) < 5 / math.sqrt(pairs.count)


def test_ids_beyond_the_vocabulary_are_refused(make_split):
    split = make_split([[[10, 11]], [[10, 12]]], vocab_size=30_000)
    split.vocab_size = 12
    with pytest.raises(BertJaxError, match="token id 12 in a batch, but the vocabulary has 12"):
        PairSpec(16, "nsp").open(split, seed=0).at(np.arange(2))


def test_vocabularies_beyond_15_bits(make_split):
    split = make_split([[[10, -60_000, 249_999]], [[10, 12]]], vocab_size=250_000)
    batch = PairSpec(16, "none").open(split, seed=0).at(np.arange(2))
    row = int(batch["input_ids"][1].max() == 249_999)
    assert batch["input_ids"][row, :5].tolist() == [1, 10, 60_000, 249_999, 2]
    assert batch["word_starts"][row, :5].tolist() == [False, True, False, True, False]


def test_wrong_specifications(make_split):
    split = make_split([[[10, 11]]])
    with pytest.raises(BertJaxError, match="one document, so none to draw"):
        PairSpec(16, "nsp").open(split, seed=0)
    for wrong, words in (
        ({"pairs": "mlm"}, "use one of nsp, sop, structural, distance, none"),
        ({"length": 3}, "at least 8"),
        ({"short_fraction": 2.0}, "short_fraction"),
    ):
        with pytest.raises(BertJaxError, match=words):
            PairSpec(**wrong)


def test_structural_pairs(random_split):
    split = random_split(count=80, sentence=(3, 20))
    segments = epochs(PairSpec(64, "structural").open(split, seed=5), 5)
    (a, b), (a_end, b_end), label = segments.starts.T, segments.ends.T, segments.label
    assert ((document_of(split, a) != document_of(split, b)) == (label == 2)).all()
    assert (a_end <= b)[label == 0].all() and (b_end <= a)[label == 1].all()
    whole = segments.lengths.sum(axis=1) < 61
    np.testing.assert_array_equal(a_end[whole & (label == 0)], b[whole & (label == 0)])
    np.testing.assert_array_equal(b_end[whole & (label == 1)], a[whole & (label == 1)])
    for kind in range(3):
        assert within(int((label == kind).sum()), len(label), 1 / 3)


def test_distances(random_split):
    split = random_split(count=80, sentence=(3, 20))
    segments = epochs(PairSpec(64, "distance").open(split, seed=5), 5)
    (a, b), (a_end, b_end), label = segments.starts.T, segments.ends.T, segments.label
    assert ((document_of(split, a) != document_of(split, b)) == (label == 2)).all()
    whole = segments.lengths.sum(axis=1) < 61
    np.testing.assert_array_equal(a_end[whole & (label == 0)], b[whole & (label == 0)])
    far = whole & (label == 1)
    low, high = np.minimum(a_end, b_end)[far], np.maximum(a, b)[far]
    between = np.searchsorted(split.sentences, high) - np.searchsorted(split.sentences, low)
    assert (between >= 1)[np.isin(low, split.sentences)].all() and ((b_end < a) | (a_end < b))[far].all()
    assert (b_end < a)[far].any() and (a_end < b)[far].any(), "before and after"
    assert np.isin(b[far], split.sentences).all()


def test_distances_are_a_third_each_and_a_half_where_no_text_is_distant(make_split):
    long = make_split([[[i] for i in range(10, 110)] for _ in range(40)])
    label = epochs(PairSpec(32, "distance").open(long, seed=1), 30).label
    for kind in range(3):
        assert within(int((label == kind).sum()), len(label), 1 / 3)
    short = make_split([[[10, 11], [12, 13]]] * 50)
    label = epochs(PairSpec(32, "distance", 0.0).open(short, seed=1), 100).label
    assert set(label) == {0, 2} and within(int((label == 0).sum()), len(label), 0.5)


@pytest.mark.parametrize("kind", ["structural", "distance"])
def test_a_single_token_has_another_document(make_split, kind):
    batch = PairSpec(16, kind).open(make_split([[[10]]] * 5), seed=0).at(np.arange(5))
    assert (batch[LABELS[kind]] == 2).all() and (batch["input_ids"][:, :6] == [1, 10, 2, 10, 2, 0]).all()


def test_other_documents_are_of_the_same_language_where_there_are_two(make_split):
    split = make_split([[[i] for i in range(10, 40)] for _ in range(9)])
    split.languages, split.document_language = ("a", "b", "c"), np.array([0, 1, 0, 1, 2, 0, 1, 0, 1], np.uint8)
    segments = epochs(PairSpec(33, "nsp", 0.0).open(split, seed=2), 300)
    random = segments.label == 1
    a, b = (document_of(split, segments.starts[random, side]) for side in (0, 1))
    assert (a != b).all()
    language = split.document_language
    assert (language[a] == language[b])[language[a] < 2].all()
    assert set(b[a == 4]) == {0, 1, 2, 3, 5, 6, 7, 8}, "the only document of its language"
    assert set(b[a == 0]) == {2, 5, 7}


@pytest.mark.parametrize("kind", ["nsp", "sop", "structural", "distance", "none"])
def test_context_is_what_stands_around_the_example(random_split, kind):
    split = random_split(count=30, sentence=(1, 30))  # the id of token t is t + 10
    pairs = PairSpec(32, kind).open(split, seed=1, columns=["context_ids"])
    positions = np.arange(pairs.count)
    batch, segments = pairs.at(positions), pairs.segments(positions)
    full = 0
    for row in positions:
        context = batch["context_ids"][row]
        assert (context[(context >= 0).sum() :] == -1).all()
        tokens = context[context >= 0] - 10
        document = document_of(split, segments.starts[row, 0])
        begin, finish = split.documents[document : document + 2]
        own = [t for s, e in zip(segments.starts[row], segments.ends[row], strict=True) if s < e and begin <= s < finish
               for t in (s, e - 1)]
        before, after = list(range(begin, min(own))), list(range(max(own) + 1, finish))
        left = min(len(before), max(16, 32 - len(after)))
        assert tokens.tolist() == before[len(before) - left :] + after[: 32 - left]
        full += len(tokens) == 32
    assert full > 100
