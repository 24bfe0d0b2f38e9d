"""Shuffled trigrams against their exact laws: how many, where, in which order, beside masked tokens in either order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, WordOrder
from bert_jax.objectives.base import asked_positions
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from tests.objectives.test_mlm import KEY, PIECES, inside, make_batch, seeds

ENCODER = EncoderConfig(vocab_size=60, embedding_width=8, hidden_width=8, layers=1, heads=2, ffn_width=16, max_length=128)


def make_segments(lengths, length, seed=0):
    """Rows of distinct tokens, so that what was shuffled can be told: [CLS] A [SEP] B [SEP], padding, segment ids."""
    batch = make_batch(lengths, length, seed)
    numbers = 1000 + np.arange(length)
    special = np.isin(batch["input_ids"], PIECES.special_ids)
    batch["input_ids"] = np.where(special, batch["input_ids"], numbers).astype(np.int32)
    place, lengths = np.arange(length), np.asarray(lengths)[:, None]
    batch["segment_ids"] = ((place > lengths // 2) & (place < lengths)).astype(np.int32)
    return batch


@functools.partial(jax.jit, static_argnums=0)
def corrupt(objective, batch, key):
    return objective.corrupt(batch, seeds(key, len(batch["input_ids"])), PIECES, None)


def run(objective, batch, key=KEY):
    """The corrupted batch, and ``starts``, ``used`` [B, R] of its runs."""
    out = {name: np.asarray(value) for name, value in corrupt(objective, batch, key).items()}
    rows = len(batch["input_ids"])
    begin = out["word_order_offset"].shape[1]
    positions = out["masked_positions"][:, begin:].reshape(rows, -1, objective.span)
    used = out["word_order_weights"].reshape(rows, -1, objective.span)
    assert (used == used[..., :1]).all(), "runs are used whole or not at all"
    return out | {"positions": positions, "used": used[..., 0] > 0, "labels": out["word_order_labels"].reshape(positions.shape)}


@pytest.mark.parametrize("objective", [WordOrder(), WordOrder(rate=0.5), WordOrder(rate=0.3, span=5)], ids=repr)
def test_what_holds_of_every_run(objective):
    batch = make_segments([*range(0, 65), *([64] * 191)], 64)
    before = batch["input_ids"].copy()
    out = run(objective, batch)
    assert out["masked_positions"].dtype == out["word_order_labels"].dtype == np.int32
    assert out["masked_positions"].shape == (256, objective.runs(64) * objective.span)
    assert (batch["input_ids"] == before).all() and out["used"].sum() > 200
    touched = np.zeros((256, 64), int)
    for row, run_number in np.argwhere(out["used"]):
        places = out["positions"][row, run_number]
        assert (np.diff(places) == 1).all()
        touched[row, places] += 1
        old, new = before[row, places], out["input_ids"][row, places]
        assert (out["labels"][row, run_number] == old).all(), "the label of a place is its original token"
        assert sorted(old) == sorted(new), "a run is a permutation of itself"
        assert not np.isin(old, PIECES.special_ids).any() and batch["attention_mask"][row, places].all()
        assert len(set(batch["segment_ids"][row, places])) == 1
    assert touched.max() == 1, "runs overlap"
    assert (out["input_ids"] == before)[touched == 0].all(), "a token outside of all runs has moved"


def test_runs_stay_inside_a_segment_without_a_separator():
    """Segments that touch (no [SEP] between them): of six tokens two each, no trigram is whole."""
    batch = make_segments([8] * 256, 8)
    batch["input_ids"] = np.where(np.arange(8) % 7, batch["input_ids"] * 0 + 1000 + np.arange(8), 2).astype(np.int32)
    batch["segment_ids"] = np.broadcast_to(np.arange(8) // 3, (256, 8)).astype(np.int32)  # 0 0 0 1 1 1 2 2, ends special
    out = run(WordOrder(rate=0.9), batch)
    assert set(map(tuple, out["positions"][out["used"]])) == {(3, 4, 5)}
    batch["segment_ids"] = np.zeros((256, 8), np.int32)
    other = run(WordOrder(rate=0.9), batch)
    assert len(set(map(tuple, other["positions"][other["used"]]))) == 4, "without segments a run may begin anywhere"


def test_every_order_is_equally_likely():
    out = run(WordOrder(), make_segments([128] * 4096, 128))
    shuffled = np.take_along_axis(out["input_ids"], out["positions"].reshape(4096, -1), 1).reshape(out["positions"].shape)
    orders = (shuffled - out["labels"][..., :1])[out["used"]]
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert found.tolist() == [list(order) for order in itertools.permutations(range(3))]
    assert all(inside(count, counts.sum(), 1 / 6) for count in counts)


@pytest.mark.parametrize("tokens", [3, 9, 20, 64, 128])
def test_the_share_is_exact_on_average(tokens):
    """floor(x + u) runs: never but the two whole numbers beside x = n / 60, the upper one with probability x - floor(x)."""
    out = run(WordOrder(), make_segments([tokens] * 4096, 128))
    runs, wanted = out["used"].sum(axis=1), 0.05 * tokens / 3
    if tokens == 3:  # [CLS], one token, [SEP]: no trigram
        assert runs.sum() == 0
        return
    lower = int(wanted)
    assert set(runs) <= {lower, lower + 1}
    assert inside((runs > lower).sum(), 4096, wanted - lower)


def test_first_runs_begin_anywhere_alike():
    batch = make_segments([40] * 8192, 40)
    out = run(WordOrder(rate=0.02), batch)  # one run at most, in a quarter of the rows
    starts = out["positions"][..., 0][out["used"]]
    free = ~np.isin(batch["input_ids"][0], PIECES.special_ids)
    possible = [p for p in range(38) if free[p : p + 3].all()]
    assert len(possible) == 17 + 16 and set(starts) <= set(possible)
    assert all(inside((starts == place).sum(), len(starts), 1 / len(possible)) for place in possible)


def task_with(*objectives):
    task = PretrainingTask(Pretraining(ENCODER, objectives), None)
    task._pieces = PIECES
    return task


def corrupt_all(task, batch):
    return {name: np.asarray(value) for name, value in jax.jit(lambda b: task.corrupt(b, KEY, None))(batch).items()}


@pytest.mark.parametrize("unit", ["piece", "word"])
def test_masked_tokens_are_left_alone_in_either_order(unit):
    batch = make_segments([128] * 512 + [30] * 128, 128)
    ids, mlm, order = batch["input_ids"], MaskedLM(unit=unit), WordOrder(rate=0.3)
    for objectives in ((mlm, order), (order, mlm)):
        out = corrupt_all(task_with(*objectives), batch)
        masked, shuffled = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for name, places in (("mlm", masked), ("word_order", shuffled)):
            begin, weights = out[f"{name}_offset"].shape[1], out[f"{name}_weights"]
            positions = out["masked_positions"][:, begin : begin + weights.shape[1]]
            labels = np.take_along_axis(ids, positions, 1)
            assert (out[f"{name}_labels"] == labels)[weights > 0].all(), "labels are the tokens of the text"
            np.logical_or.at(places, (np.arange(len(ids))[:, None], positions), weights > 0)
            assert weights.sum() > 0
        assert not (masked & shuffled).any()
        assert (out["input_ids"] == ids)[~masked & ~shuffled].all()
        assert (np.asarray(asked_positions(out)) == (masked | shuffled)).all()


def test_alone_the_order_of_corruption_would_matter(monkeypatch):
    """The test above can fail: without ranks, masking after shuffling hides shuffled tokens and asks for wrong ones."""
    monkeypatch.setattr(WordOrder, "rank", 0)
    batch = make_segments([128] * 64, 128)
    out = corrupt_all(task_with(WordOrder(rate=0.3), MaskedLM()), batch)
    begin = out["mlm_offset"].shape[1]
    labels = np.take_along_axis(batch["input_ids"], np.asarray(out["masked_positions"][:, begin:]), 1)
    assert (np.asarray(out["mlm_labels"]) != labels).any()


def test_predictions_are_those_of_the_mlm_head():
    """Both objectives read their own slice of the same logits."""
    rng = np.random.default_rng(0)
    batch = make_segments([64] * 8, 64)
    out = corrupt_all(task_with(MaskedLM(), WordOrder(rate=0.3)), batch)
    slots = out["masked_positions"].shape[1]
    logits = rng.standard_normal((8, slots, 1100)).astype(np.float32)
    found = WordOrder(rate=0.3).loss(api.Outputs(None, None, {"mlm": jnp.asarray(logits)}, {}), out)
    begin = slots - WordOrder(rate=0.3).runs(64) * 3
    weights, labels = np.asarray(out["word_order_weights"]), np.asarray(out["word_order_labels"])
    exact = logits[:, begin:].astype(np.float64)
    entropy = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(found["loss"].sum, (entropy * weights).sum(), rtol=1e-6)
    assert found["loss"].weight == weights.sum() > 0


def test_refused_settings():
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"span": 1}):
        with pytest.raises(BertJaxError, match="WordOrder"):
            WordOrder(**wrong)
    with pytest.raises(BertJaxError, match="span 20 exceeds the rows of 16"):
        WordOrder(span=20).check(ENCODER, 16)


def test_number_of_runs():
    assert [WordOrder().runs(n) for n in (16, 128, 512)] == [1, 3, 9]


def test_refused_beside_objectives_with_slots_of_their_own():
    batch = make_segments([16] * 2, 16) | {"visibility": np.ones((2, 16, 16), bool)}
    with pytest.raises(BertJaxError, match="a turn of its own"):
        corrupt(WordOrder(), batch, KEY)
