"""The same batches however many processes share them and wherever training goes on."""

import json

import numpy as np
import pytest

from bert_jax.data.loader import heldout_batches, train_batches
from bert_jax.data.pairs import PairBatches, PairSpec
from bert_jax.errors import BertJaxError


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], name)


def test_batch_k_is_a_function_of_seed_and_k(random_split):
    split = random_split()
    spec = PairSpec(64)
    pairs = PairBatches(split, spec, seed=3)
    batches = train_batches(split, spec, batch_size=32, seed=3)
    for k in range(2 * pairs.count // 32 + 2):  # over the end of an epoch, twice
        assert_equal(next(batches), pairs.at(np.arange(32 * k, 32 * k + 32)))


def test_processes_share_the_global_batch(random_split):
    split = random_split(shards=3)
    spec = PairSpec(64, "sop")
    whole = train_batches(split, spec, batch_size=24, seed=1)
    parts = [train_batches(split, spec, batch_size=24, seed=1, process_index=p, process_count=4) for p in range(4)]
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
    state = batches.get_state()
    assert state["next_index"] == 1
    far = 10**9
    batches.set_state(state | {"next_index": far})
    expected = PairBatches(split, PairSpec(64), seed=2).at(np.arange(16 * far, 16 * far + 16))
    assert_equal(next(batches), expected)


@pytest.mark.parametrize("kind", ["nsp", "none"])
def test_heldout_is_one_pass_with_an_empty_tail(random_split, kind):
    split = random_split(count=21)
    spec = PairSpec(64, kind)
    pairs = PairBatches(split, spec, seed=12345)
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
        list(heldout_batches(split, spec, batch_size=8, limit=20, process_index=p, process_count=2)) for p in (0, 1)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert_equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    everything = list(heldout_batches(split, spec, batch_size=8, limit=10**9))
    assert len(everything) == -(-PairBatches(split, spec, seed=0).count // 8)


def test_wrong_arguments(random_split):
    split = random_split()
    for wrong, words in (
        ({"batch_size": 10, "process_count": 4}, "multiple of the 4 processes"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 8, "process_index": 2, "process_count": 2}, "counted from 0"),
    ):
        with pytest.raises(BertJaxError, match=words):
            train_batches(split, PairSpec(64), seed=0, **wrong)
    with pytest.raises(BertJaxError, match="limit=0"):
        heldout_batches(split, PairSpec(64), batch_size=8, limit=0)
