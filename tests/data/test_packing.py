"""Rows of several examples: each example in one row of every epoch, nothing cut, the same wherever one goes on."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data import packing
from bert_jax.data.loader import heldout_batches, train_batches
from bert_jax.data.packing import PackedRows, best_fit
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.streams import Streams
from bert_jax.data.turns import TakingTurns
from bert_jax.errors import BertJaxError

LENGTH = 64
PACKED = PairSpec(LENGTH, packing=6)


@pytest.fixture
def short_split(make_split):
    """Documents of 1 to 50 tokens, 2 to 8 in a sentence: rows of 64 hold about two."""
    rng, place, documents = np.random.default_rng(0), 10, []
    for _ in range(300):
        document, size = [], int(rng.integers(1, 51))
        while size > 0:
            length = min(size, int(rng.integers(2, 9)))
            document.append(list(range(place, place + length)))
            place, size = place + length, size - length
        documents.append(document)
    return make_split(documents)


@pytest.fixture
def windows(monkeypatch):
    """Small windows, so that an epoch has several."""
    monkeypatch.setattr(packing, "WINDOW", 40)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], name)


def unpacked(batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The examples of packed rows, one after the other, without padding."""
    found = []
    for row, ids in enumerate(batch["example_ids"]):
        real = batch["attention_mask"][row]
        for number in range(ids[real].max(initial=-1) + 1):
            here = real & (ids == number)
            example = {name: values[row][here] for name, values in batch.items() if values.shape[1] == LENGTH}
            labels = {name: values[row, number] for name, values in batch.items() if name.endswith("_label")}
            found.append(example | labels | {"start": batch["example_starts"][row, number]})
            assert here[found[-1]["start"]] and np.diff(np.flatnonzero(here)).tolist() == [1] * (here.sum() - 1)
    return found


def in_rows_of_their_own(split, spec, seed: int) -> dict[bytes, dict[str, np.ndarray]]:
    """The examples of an epoch by their tokens, as they are without packing."""
    examples = spec.open(split, seed=seed, columns=("position_ids",))
    batch = examples.at(np.arange(examples.count))
    found = {}
    for row, real in enumerate(batch["attention_mask"]):
        example = {name: values[row][real] for name, values in batch.items() if values.shape == batch["attention_mask"].shape}
        found[example["input_ids"].tobytes()] = example | {
            name: values[row] for name, values in batch.items() if name.endswith("_label")
        }
    assert len(found) == examples.count, "two examples are alike: the comparison needs them to differ"
    return found


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@settings(deadline=None)
@given(SIZES, st.integers(2, 9))
def test_best_fit_puts_every_example_into_one_row(sizes, most):
    sizes = np.array(sizes)
    row_of = best_fit(sizes, 50, most)
    rows = row_of.max() + 1
    tokens, held = np.bincount(row_of, sizes, rows), np.bincount(row_of, minlength=rows)
    assert len(row_of) == len(sizes) and (held > 0).all(), "a row is empty"
    assert tokens.max() <= 50 and held.max() <= most
    opener = np.array([sizes[row_of == row].max() for row in range(rows)])
    room_before = ((held < most) & (50 - tokens >= opener[:, None])) & (np.arange(rows) < np.arange(rows)[:, None])
    assert not room_before.any(), "an example has a new row, and there was room in an older one"


@settings(deadline=None, max_examples=30)
@given(SIZES.filter(lambda sizes: len(sizes) > 20))
def test_best_fit_keeps_its_bound(sizes):
    sizes = np.array(sizes)
    halves = np.concatenate([sizes, 50 - sizes[sizes < 50]])  # these pack without a gap
    assert best_fit(halves, 50, 50).max() + 1 <= 11 / 9 * (halves.sum() / 50) + 4


KINDS = [PACKED, PairSpec(LENGTH, "sop", packing=4), PairSpec(LENGTH, "none", packing=8), Reordered(LENGTH, packing=3),
         Streams(LENGTH, packing=2)]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: f"{type(spec).__name__} {spec.label}")
def test_an_epoch_has_every_example_once_and_whole(short_split, windows, spec):
    rows = PackedRows(spec.open(short_split, seed=3))
    total = rows.count(None)
    batch = rows.at(np.arange(total))
    alone = in_rows_of_their_own(short_split, spec, 3)
    found = unpacked(batch)
    assert len(found) == len(alone)
    for example in found:
        assert example["start"] >= 0 and example["input_ids"][0] == 1
        same = alone.pop(example["input_ids"].tobytes())
        for name, values in same.items():
            np.testing.assert_array_equal(example[name], values, name)
    assert not alone, "examples are missing"
    assert not batch["input_ids"][~batch["attention_mask"]].any()
    used = np.where(batch["attention_mask"], batch["example_ids"], 0).max(axis=1) + 1
    if spec.label:
        assert (batch[spec.label][np.arange(spec.packing) >= used[:, None]] == -1).all()
    assert not batch["example_starts"][np.arange(spec.packing) >= used[:, None]].any()
    assert rows.state(total) == {"examples": rows._examples.count, "rows": total}


def test_rows_are_full_and_shuffled(short_split, monkeypatch):
    examples = PairSpec(LENGTH, "none", packing=8).open(short_split, seed=0)
    rows = PackedRows(examples)
    batch = rows.at(np.arange(rows.count(None)))
    full = batch["attention_mask"].mean(axis=1)
    alone = examples.at(np.arange(examples.count))["attention_mask"].mean()
    assert full.mean() > 0.95 > 2 * alone - 0.2
    rows = zip(batch["example_ids"], batch["attention_mask"], strict=True)
    longest = np.array([np.bincount(ids[real]).max() for ids, real in rows])
    order = np.corrcoef(np.arange(len(longest)), longest)[0, 1]
    assert abs(order) < 0.3, "rows come in the order in which they were opened, the longest examples first"


def test_batches_and_states_go_on_anywhere(short_split, windows):
    """Over epochs, from any row on, with another batch size and share: the same rows."""
    whole = train_batches(short_split, PACKED, batch_size=8, seed=2)
    seen, states = [], []
    for _ in range(70):
        states.append(json.loads(json.dumps(whole.get_state())))
        seen.append(next(whole))
    assert states[-1]["examples"] > 2 * whole.epoch and states[0] == {"examples": 0, "rows": 0}
    every = {name: np.concatenate([batch[name] for batch in seen]) for name in seen[0]}
    counted = [int((batch["next_sentence_label"] >= 0).sum()) for batch in seen]
    assert np.diff([state["examples"] for state in states]).tolist() == counted[:-1]
    for step in (1, 9, 33, 64):
        fresh = train_batches(short_split, PACKED, batch_size=8, seed=2)
        fresh.set_state(states[step])
        for batch in seen[step : step + 3]:
            assert_equal(next(fresh), batch)
        share = train_batches(short_split, PACKED, batch_size=12, seed=2, rows=np.array([0, 1, 10]))
        share.set_state(states[step])
        assert_equal(next(share), {name: values[8 * step + np.array([0, 1, 10])] for name, values in every.items()})
        assert share.get_state()["rows"] == 8 * step + 12
    with pytest.raises(BertJaxError, match="no packed row ends after"):
        boundaries = _boundaries(short_split)
        inside = next(n for n in range(200) if n not in boundaries)  # between two examples of a row
        fresh.set_state({"examples": inside, "rows": 0})


def _boundaries(split) -> set[int]:
    rows = PackedRows(PACKED.open(split, seed=2))
    return {rows.state(n)["examples"] for n in range(200)}


def test_going_on_far_away_packs_one_window(short_split, windows, monkeypatch):
    examples = PACKED.open(short_split, seed=2)
    asked, real = [], examples.segments
    monkeypatch.setattr(examples, "segments", lambda positions: asked.append(len(positions)) or real(positions))
    far = examples.count * 10**6
    PackedRows(examples, far, 10**9).at(np.arange(4))
    assert len(asked) == 1 and asked[0] <= 80


@pytest.mark.parametrize("batch_size", [2, 8, 40, 200, 1000])
def test_a_window_is_packed_once(short_split, windows, monkeypatch, batch_size):
    """Although batches are made ahead of the state that is saved, by two threads, and may span windows."""
    packed, real = [], PackedRows._packed
    monkeypatch.setattr(PackedRows, "_packed", lambda self, number: packed.append(number) or real(self, number))
    batches = train_batches(short_split, PACKED, batch_size=batch_size, seed=2)
    for _ in range(30):
        next(batches)
        batches.get_state()
    counts = np.bincount(packed)
    assert counts.min() >= 1 and (batch_size < 40 or len(counts) > 30)
    assert counts.sum() - len(counts) <= 4 * len(counts) / 30, "but for those of the first batches, where they span several"


def test_heldout_is_one_pass_with_an_empty_tail(short_split, windows):
    rows = PackedRows(PACKED.open(short_split, seed=12345))
    total = rows.count(None)
    batches = heldout_batches(short_split, PACKED, batch_size=total // 2 - 1)
    assert len(batches) == 3
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert_equal({name: values[:total] for name, values in joined.items()}, rows.at(np.arange(total)))
    assert not joined["attention_mask"][total:].any() and (joined["next_sentence_label"][total:] == -1).all()
    assert len(joined["attention_mask"]) > total
    limited = heldout_batches(short_split, PACKED, batch_size=8, limit=20)
    assert len(limited) == 3 and limited[2]["attention_mask"].any(axis=1).tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("columns", [(), ("sentence_starts",), ("context_ids",)])  # the last is of one example: not given
def test_layout_says_what_comes(short_split, columns):
    batch = next(train_batches(short_split, PACKED, batch_size=12, seed=0, columns=columns))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == PACKED.layout(12, columns)


def test_turns_share_updates_whatever_is_packed(short_split):
    sources = [train_batches(short_split, spec, batch_size=8, seed=0) for spec in (PACKED, PairSpec(LENGTH))]
    turns = TakingTurns(sources, [1.0, 1.0], ["", "other"])
    whose = ["turn_other" in next(turns) for _ in range(20)]
    assert whose == [False, True] * 10
    epochs = [turns.get_state()["examples"] / turns.epoch, sources[0].get_state()["examples"] / sources[0].epoch]
    assert 0 < epochs[1] == pytest.approx(epochs[0]), "of the first source, whose rows have several examples"
    fresh = TakingTurns([train_batches(short_split, spec, batch_size=8, seed=0) for spec in (PACKED, PairSpec(LENGTH))],
                        [1.0, 1.0], ["", "other"])
    fresh.set_state(json.loads(json.dumps(turns.get_state())))
    assert_equal(next(fresh), next(turns))


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(BertJaxError, match="packing=1: from 2 to 21 examples"):
        PairSpec(LENGTH, packing=1)
    with pytest.raises(BertJaxError, match="packing=22"):
        PairSpec(LENGTH, packing=22)
    with pytest.raises(BertJaxError, match="copies=10"):
        PairSpec(LENGTH, packing=4, copies=10)
