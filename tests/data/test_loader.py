"""The same batches however many processes share them and wherever training goes on."""

import json

import numpy as np
import pytest

from bert_jax.data.loader import heldout_batches, train_batches
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations
from bert_jax.errors import BertJaxError


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], name)


def test_batch_k_is_a_function_of_seed_and_k(random_split):
    split = random_split()
    spec = PairSpec(64)
    pairs = spec.open(split, seed=3)
    batches = train_batches(split, spec, batch_size=32, seed=3)
    for k in range(2 * pairs.count // 32 + 2):  # over the end of an epoch, twice
        assert_equal(next(batches), pairs.at(np.arange(32 * k, 32 * k + 32)))


def test_processes_share_the_global_batch(random_split):
    split = random_split(shards=3)
    spec = PairSpec(64, "sop")
    whole = train_batches(split, spec, batch_size=24, seed=1)
    parts = [train_batches(split, spec, batch_size=24, seed=1, rows=np.arange(6 * p, 6 * p + 6)) for p in range(4)]
    for _ in range(5):
        shares = [next(part) for part in parts]
        assert shares[0]["input_ids"].shape == (6, 64)
        assert_equal(next(whole), {name: np.concatenate([s[name] for s in shares]) for name in shares[0]})


def test_a_saved_iterator_goes_on_where_it_was(random_split):
    split = random_split()
    batches = train_batches(split, PairSpec(64), batch_size=16, seed=2)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(3)]
    batches.set_state(state)
    assert_equal(next(batches), expected[0])
    fresh = train_batches(split, PairSpec(64), batch_size=16, seed=2)
    fresh.set_state(state)
    for batch in expected:
        assert_equal(next(fresh), batch)


def test_going_on_far_away_takes_no_time(random_split):
    split = random_split()
    batches = train_batches(split, PairSpec(64), batch_size=16, seed=2)
    next(batches)
    assert batches.get_state() == {"examples": 16}
    far = 16 * 10**9
    batches.set_state({"examples": far})
    expected = PairSpec(64).open(split, seed=2).at(np.arange(far, far + 16))
    assert_equal(next(batches), expected)
    assert batches.get_state() == {"examples": far + 16}


def test_another_batch_size_and_share_goes_on_at_the_same_example(random_split):
    """Also where the examples given so far are no multiple of the new batch size."""
    split = random_split()
    before = train_batches(split, PairSpec(64), batch_size=12, seed=2, rows=np.arange(4, 8))
    for _ in range(3):
        next(before)
    after = train_batches(split, PairSpec(64), batch_size=16, seed=2, rows=np.array([0, 1, 14, 15]))
    after.set_state(before.get_state())
    pairs = PairSpec(64).open(split, seed=2)
    assert_equal(next(after), pairs.at(np.array([36, 37, 50, 51])))
    assert_equal(next(after), pairs.at(np.array([52, 53, 66, 67])))
    assert after.get_state() == {"examples": 68} and after.epoch == pairs.count
    with pytest.raises(BertJaxError, match="older version"):
        after.set_state({"next_index": 4})


@pytest.mark.parametrize("kind", ["nsp", "none"])
def test_heldout_is_one_pass_with_an_empty_tail(random_split, kind):
    split = random_split(count=21)
    spec = PairSpec(64, kind)
    pairs = spec.open(split, seed=12345)
    batch_size = pairs.count // 2 - 1
    batches = list(heldout_batches(split, spec, batch_size=batch_size))
    assert len(batches) == 3
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert_equal({name: value[: pairs.count] for name, value in joined.items()}, pairs.at(np.arange(pairs.count)))
    tail = {name: value[pairs.count :] for name, value in joined.items()}
    assert len(tail["input_ids"]) > 0
    assert not tail["attention_mask"].any() and not tail["word_starts"].any()
    assert not tail["input_ids"].any() and not tail["segment_ids"].any()
    if kind == "nsp":
        assert (tail["next_sentence_label"] == -1).all()
    again = list(heldout_batches(split, spec, batch_size=batch_size))
    for one, two in zip(batches, again, strict=True):
        assert_equal(one, two)


def test_heldout_limit_and_processes(random_split):
    split = random_split()
    spec = PairSpec(64, "none")
    whole = list(heldout_batches(split, spec, batch_size=8, limit=20))
    assert len(whole) == 3
    assert sum(int(batch["attention_mask"].any(axis=1).sum()) for batch in whole) == 20
    assert not whole[2]["attention_mask"][4:].any()
    halves = [
        list(heldout_batches(split, spec, batch_size=8, limit=20, rows=np.arange(4 * p, 4 * p + 4))) for p in (0, 1)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert_equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    everything = list(heldout_batches(split, spec, batch_size=8, limit=10**9))
    assert len(everything) == -(-spec.open(split, seed=0).count // 8)


def test_wrong_arguments(random_split):
    split = random_split()
    for wrong, words in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 8, "rows": [7, 8]}, r"rows \[7, 8\]: a batch has rows 0 to 7"),
        ({"batch_size": 8, "rows": []}, "a batch has rows 0 to 7"),
    ):
        with pytest.raises(BertJaxError, match=words):
            train_batches(split, PairSpec(64), seed=0, **wrong)
    with pytest.raises(BertJaxError, match="limit=0"):
        heldout_batches(split, PairSpec(64), batch_size=8, limit=0)


KINDS = [PairSpec(64, "distance", copies=2), Streams(64), Streams(64, unit="token"), Reordered(64, language_exponent=0.5),
         Translations(64)]


@pytest.mark.parametrize("spec", KINDS, ids=repr)
def test_all_kinds_are_functions_of_seed_and_position(random_split, spec):
    """Rows are those of the whole batch, a saved iterator goes on, and batches have the layout that was promised."""
    split = random_split(count=40, shards=3)
    split.languages, split.document_language = ("a", "b"), (np.arange(40) % 2).astype(np.uint8)
    if isinstance(spec, Translations):
        split = _parallel(split)
    columns = sorted(spec.provides - {"capitalised", "phrase_continues", "entity_continues"})
    options = dict(batch_size=12, seed=3, columns=columns)
    whole = train_batches(split, spec, **options)
    some = train_batches(split, spec, rows=np.array([0, 3, 11]), **options)
    for _ in range(4):
        batch = next(whole)
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == spec.layout(12, columns)
        assert_equal(next(some), {key: value[[0, 3, 11]] for key, value in batch.items()})
    later = train_batches(split, spec, **options)
    later.set_state(json.loads(json.dumps(whole.get_state())))
    assert_equal(next(later), next(whole))
    plain, full = next(train_batches(split, spec, batch_size=12, seed=3)), next(train_batches(split, spec, **options))
    assert_equal(plain, {key: full[key] for key in spec.layout(12, ())})
    heldout = list(heldout_batches(split, spec, batch_size=7, columns=columns))
    tail = {key: value[-1] for key, value in heldout[-1].items()}
    if len(heldout) * 7 > spec.open(split, seed=0).count:
        assert not tail["attention_mask"].any()
        assert "context_ids" not in tail or (tail["context_ids"] == -1).all()


def _parallel(split):
    """The first twenty sentences as a document of ten and its translation."""
    split.sentences = split.sentences[:21]
    split.documents = split.sentences[::10]
    split.parallel, split.document_language = 2, np.array([0, 1], np.uint8)
    return split


@pytest.mark.parametrize(("column", "advice"), [
    ("capitalised", "no channel 'case' to make capitalised of: prepare the corpus with --case"),
    ("phrase_continues", "no channel 'phrases' to make phrase_continues of: run `bert-jax annotate"),
    ("entity_continues", "no channel 'entities'.*annotate"),
    ("language_ids", "does not say which language a document has"),
])  # fmt: skip
def test_columns_that_the_store_cannot_fill(random_split, column, advice):
    with pytest.raises(BertJaxError, match=advice):
        train_batches(random_split(), PairSpec(64), batch_size=8, seed=0, columns=[column])
