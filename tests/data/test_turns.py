"""Kinds of examples that take turns: shares to the batch, and going on where a run stopped."""

import json

import numpy as np
import pytest

from bert_jax.data.loader import heldout_batches, train_batches
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.streams import Streams
from bert_jax.data.turns import OneAfterAnother, TakingTurns, marker
from bert_jax.errors import BertJaxError

NAMES, SHARES = ("", "order", "stream"), (1.0, 0.5, 0.25)
KINDS = (PairSpec(32), Reordered(32), Streams(48))


@pytest.fixture
def turns(random_split):
    split = random_split()
    return lambda batch_size=8: TakingTurns(
        [train_batches(split, kind, batch_size=batch_size, seed=1) for kind in KINDS], SHARES, NAMES)


def whose(batch) -> str:
    marked = [name for name in NAMES if name and marker(name) in batch]
    assert len(marked) <= 1 and all(batch[marker(name)].shape == (len(batch["input_ids"]), 0) for name in marked)
    return marked[0] if marked else ""


def test_every_turn_comes_as_often_as_its_share(turns):
    batches = turns()
    order = [whose(next(batches)) for _ in range(70)]
    assert [order.count(name) for name in NAMES] == [40, 20, 10]
    for end in range(1, 70):  # at every moment, to within a batch
        for name, share in zip(NAMES, SHARES, strict=True):
            assert abs(order[:end].count(name) - end * share / 1.75) <= 1.5
    assert order[:3] == ["", "order", "stream"]


def test_turns_go_on_where_they_were(turns, random_split):
    batches = turns()
    for _ in range(9):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    assert state["examples"] == 72
    fresh = turns()
    fresh.set_state(state)
    for _ in range(5):
        one, two = next(batches), next(fresh)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    with pytest.raises(BertJaxError, match="begun with other task.turns"):
        turns().set_state({"examples": 72})


def test_heldout_sources_follow_each_other(random_split):
    split = random_split(count=20)
    sources = [heldout_batches(split, kind, batch_size=8, limit=20) for kind in KINDS]
    batches = OneAfterAnother(sources, NAMES)
    assert [whose(batch) for batch in batches] == [name for name in NAMES for _ in range(3)] and len(batches) == 9
