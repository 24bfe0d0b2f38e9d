"""Permutation language modelling: who sees whom in every order, how many targets and where, and the laws of its spans."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import permutation
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.objectives.permutation import PermutationLM, two_streams

PIECES = Pieces(vocab_size=30, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
ORDINARY = np.arange(5, 30)
KEY = jax.random.key(11)
SURE = 1 - 1e-6  # how much of the law an interval covers
ABSOLUTE = EncoderConfig(
    vocab_size=30, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=24, max_length=16, with_heads=("mlm",)
)
RELATIVE = dataclasses.replace(ABSOLUTE, positions="relative", mlm_transform=False)
BOTH = pytest.mark.parametrize("config", [ABSOLUTE, RELATIVE], ids=["absolute", "relative"])
L = 5
ORDERS = np.array(list(itertools.permutations(range(L))), np.float32)  # all 120; every token of every one is a target
WEIGHS = ORDERS > 0  # [order, place]


def lively(config: EncoderConfig) -> api.Params:
    noise = np.random.default_rng(0)

    def value(path, leaf):
        return np.float32((path[-1].key == "scale") + 0.5 * noise.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: api.init(config, KEY)))


def every_order() -> dict[str, np.ndarray]:
    """One clean row of L tokens for each order."""
    ids = np.broadcast_to(np.array([7, 12, 5, 23, 9], np.int32), ORDERS.shape)
    return {"input_ids": ids, "segment_ids": (ids > 10).astype(np.int32), "attention_mask": np.ones(ids.shape, bool)}


def streams(batch, order=ORDERS):
    targets = jnp.broadcast_to(jnp.arange(L), batch["input_ids"].shape)
    return two_streams(batch, jnp.asarray(order), targets, jnp.ones(targets.shape, bool), PIECES.mask_id)


def leaking(batch):
    """What a wrong mask does: queries see their own targets."""
    itself = jnp.concatenate([jnp.zeros((L, L), bool), jnp.eye(L, dtype=bool)])
    return batch | {"visibility": batch["visibility"] | itself}


@functools.partial(jax.jit, static_argnames=("config", "spoil"))
def outputs(params, config, batch, spoil=lambda batch: batch):
    found = api.apply(params, config, spoil(streams(batch)))
    return found.hidden[:, :L], found.logits["mlm"]


def moved_by_another_token(config, spoil=lambda batch: batch):
    """Which states and logits move when token t of a clean row is another: two bool arrays [t, order, place]. Logits that do
    not weigh (nothing precedes them) count as unmoved."""
    params, batch = lively(config), every_order()
    before, moved = outputs(params, config, batch, spoil), []
    for t in range(L):
        other = batch["input_ids"].copy()
        other[:, t] = 29
        after = outputs(params, config, batch | {"input_ids": other}, spoil)
        moved.append([np.abs(a - b).max(axis=-1) > 1e-6 for a, b in zip(after, before, strict=True)])
    content, logits = (np.array(part) for part in zip(*moved, strict=True))
    return content, logits & WEIGHS


def test_the_first_of_an_order_is_not_predicted():
    """It would see nothing, and attention to nothing is uniform over everything: the leak that this file found."""
    np.testing.assert_array_equal(streams(every_order())["plm_weights"], WEIGHS)


# Leaks, for every order

EARLIER = ORDERS.T[:, :, None] < ORDERS[None]  # [t, order, i]: token t comes before token i
ITSELF = np.eye(L, dtype=bool)[:, None, :]


@BOTH
def test_substitution_moves_what_comes_after_it_and_nothing_else(config):
    content, logits = moved_by_another_token(config)
    np.testing.assert_array_equal(content, EARLIER | ITSELF)
    np.testing.assert_array_equal(logits, np.broadcast_to(EARLIER, logits.shape))


@BOTH
def test_substitution_finds_a_leak(config):
    content, logits = moved_by_another_token(config, leaking)
    np.testing.assert_array_equal(logits, (EARLIER | ITSELF) & WEIGHS)


def sensitive(config, spoil=lambda batch: batch):
    """Whether the state that predicts target i, where that weighs, has a gradient by the embedding of token t: bool
    [t, order, i]. Every token has a row of the table for itself."""
    params = lively(config)
    ids = np.broadcast_to(np.arange(5, 5 + L, dtype=np.int32), ORDERS.shape)
    batch = spoil(streams(every_order() | {"input_ids": ids}))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def gradient(row, i):
        one = jax.tree.map(lambda a: a[None], row)

        def total(table):
            changed = params | {"embeddings": params["embeddings"] | {"token": table}}
            return (api.apply(changed, config, one).hidden[0, L + i] ** 3).sum()

        return jnp.abs(jax.grad(total)(params["embeddings"]["token"])[5 : 5 + L]).max(axis=-1)

    kept = ("input_ids", "segment_ids", "position_ids", "query_slots", "visibility")
    return np.moveaxis(np.asarray(gradient({name: batch[name] for name in kept}, jnp.arange(L))) > 0, 2, 0) & WEIGHS


@BOTH
def test_gradients_reach_what_comes_before_and_nothing_else(config):
    found = sensitive(config)
    np.testing.assert_array_equal(found, np.broadcast_to(EARLIER, found.shape))
    np.testing.assert_array_equal(sensitive(config, leaking), (EARLIER | ITSELF) & WEIGHS)


@BOTH
def test_query_slots_are_seen_by_nobody(config):
    params, batch = lively(config), streams(every_order())
    other = batch["input_ids"].at[:, L + 2].set(20)
    changed = batch | {"input_ids": other, "query_slots": batch["query_slots"].at[:, L + 2].set(False)}
    before, after = (np.asarray(api.apply(params, config, b).hidden) for b in (batch, changed))
    moved = np.abs(after - before).max(axis=(0, 2)) > 1e-6
    assert np.flatnonzero(moved).tolist() == [L + 2]


def test_streams_share_their_weights():
    """With the token itself for its input, and the sight of content, a query slot is content."""
    params, batch = lively(RELATIVE), streams(every_order())
    seen = batch["visibility"]
    same = batch | {
        "input_ids": jnp.tile(batch["input_ids"][:, :L], 2), "query_slots": jnp.zeros_like(batch["query_slots"]),
        "visibility": jnp.tile(seen[:, :L], (1, 2, 1)),
    }
    hidden = api.apply(params, RELATIVE, same).hidden
    np.testing.assert_allclose(hidden[:, L:], hidden[:, :L], atol=1e-5)


# What corrupt draws


def make_batch(lengths, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """[CLS] text [SEP] and padding; words of one to three pieces."""
    rng, place, lengths = np.random.default_rng(seed), np.arange(length), np.asarray(lengths)[:, None]
    mask = place < lengths
    ids = np.where(place == 0, 2, np.where(place == lengths - 1, 3, rng.choice(ORDINARY, mask.shape)))
    starts = ((rng.random(mask.shape) < 0.6) | (place == 1)) & mask & (ids > 4)
    return {"input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask, "word_starts": starts,
            "segment_ids": ((place > length // 2) & mask).astype(np.int32)}


def run(objective, batch, key=KEY):
    @jax.jit
    def corrupt(batch, key):
        seeds = functional.fold(jax.random.bits(key, (2,), jnp.uint32), jnp.arange(len(batch["input_ids"])))
        return objective.corrupt(batch, seeds, PIECES, None)

    return {name: np.asarray(value) for name, value in corrupt(batch, key).items()}


@pytest.mark.parametrize("objective", [PermutationLM(), PermutationLM(targets="spans")], ids=lambda o: o.targets)
def test_targets_and_slots(objective):
    batch = make_batch([*range(65), *([64] * 100)], 64)
    out, ids = run(objective, batch), batch["input_ids"]
    slots = objective.predictions(64)
    assert (slots, objective.predictions(512), objective.predictions(3)) == (10, 85, 1)  # 85: --num_predict of the original
    weights, labels, targets = out["plm_weights"], out["plm_labels"], out["position_ids"][:, 64:]
    expected = np.array([0, 0, 0, *(max(n // 6, 1) for n in range(3, 65)), *([10] * 100)])
    missing = expected - weights.sum(axis=1)
    assert (missing[12:] == 0).all() and np.isin(missing, (0, 1)).all()
    nothing_before = out["visibility"][:, 64:].any(axis=2).sum(axis=1) < expected
    np.testing.assert_array_equal(missing == 1, nothing_before)
    np.testing.assert_array_equal(labels, np.take_along_axis(ids, targets, axis=1))
    assert not np.isin(labels[weights > 0], PIECES.special_ids).any()
    np.testing.assert_array_equal(out["segment_ids"][:, 64:], np.take_along_axis(batch["segment_ids"], targets, axis=1))
    np.testing.assert_array_equal(out["input_ids"][:, :64], ids)
    assert (out["input_ids"][:, 64:] == PIECES.mask_id).all() and (out["masked_positions"] == 64 + np.arange(10)).all()
    assert (out["position_ids"][:, :64] == np.arange(64)).all() and not out["attention_mask"][:, 64:].any()
    assert (out["query_slots"] == (np.arange(74) >= 64)).all()
    used = weights[-1] > 0
    assert len(set(targets[-1][used])) == used.sum() and (np.diff(targets[-1][used]) > 0).all()
    assert not out["visibility"][weights.sum(axis=1) == 0][:, 64:].any()
    assert not (out["visibility"] & ~batch["attention_mask"][:, None, :]).any(), "padding is no key"


def test_the_last_of_the_order():
    """Ranks of tokens follow from how many keys each sees: a random order, of which the targets are the end."""
    batch = make_batch([24] * 4000, 24)
    out = run(PermutationLM(one_in=4), batch)
    ranks = out["visibility"][:, :24].sum(axis=2) - 1
    assert (np.sort(ranks, axis=1) == np.arange(24)).all(), "an order of all tokens, special ones too"
    targets = out["position_ids"][:, 24:]
    of_targets = np.take_along_axis(ranks, targets, axis=1)
    np.testing.assert_array_equal(out["visibility"][:, 24:].sum(axis=2), of_targets)
    others = ranks.copy()
    np.put_along_axis(others, targets, -1, axis=1)
    assert (others[:, 1:23].max(axis=1) < of_targets.min(axis=1)).all()
    for place in (0, 5, 23):  # every rank as often as any other
        assert stats.chisquare(np.bincount(ranks[:, place], minlength=24)).pvalue > 1e-6
    counts = np.bincount(targets.ravel(), minlength=24)[1:23]
    low, high = stats.binom.interval(SURE, 4000, 6 / 22)
    assert ((counts >= low) & (counts <= high)).all()


def test_spans_leave_the_rest_to_see_itself():
    batch = make_batch([48] * 50 + [30] * 50, 48)
    out = run(PermutationLM(targets="spans"), batch)
    real, targets = batch["attention_mask"], np.zeros((100, 48), bool)
    rows, slots = np.nonzero(out["plm_weights"])
    targets[rows, out["position_ids"][rows, 48 + slots]] = True
    special = real & (batch["input_ids"] < 5)
    context = real & ~targets & ~special
    seen = out["visibility"]
    for row in range(100):  # as _local_perm of the original has it
        np.testing.assert_array_equal(seen[row, :48][context[row]], np.broadcast_to(context[row], (context[row].sum(), 48)))
        ordered = np.flatnonzero(targets[row] | special[row])
        inside = seen[row][ordered][:, ordered]
        assert sorted(inside.sum(axis=1)) == list(range(1, len(ordered) + 1)), "an order of targets and special tokens"
        assert seen[row][ordered][:, context[row]].all()
        for slot, place in zip(slots[rows == row], out["position_ids"][row, 48 + slots[rows == row]], strict=True):
            expected = seen[row, place].copy()
            expected[place] = False
            np.testing.assert_array_equal(seen[row, 48 + slot], expected)


def reference_spans(rng, starts, tokens, budget, one_in):
    """``_sample_mask`` of the original, as it computes, without its last loop (single tokens to fill up the goal)."""
    mask, chosen, current = np.zeros(len(starts), bool), 0, 0
    shares = 1 / np.arange(1, permutation.MAX_NGRAM + 1)
    while current < tokens and chosen < budget:
        n = min(rng.choice(np.arange(1, permutation.MAX_NGRAM + 1), p=shares / shares.sum()), budget - chosen)
        left = rng.integers(n * one_in)
        begin = current + left
        while begin < tokens and not starts[begin]:
            begin += 1
        end = begin + n
        if begin >= tokens or end >= tokens:
            break
        mask[begin:end] = True
        chosen += n
        current = end + n * one_in - left
    return mask


def test_spans_follow_the_law_of_the_original():
    """The number of pieces in spans and the frequency of every place, against the original's loop on the same row."""
    trials, length, budget = 6000, 60, 10
    starts = make_batch([length], length)["word_starts"]
    rng = np.random.default_rng(5)
    expected = np.array([reference_spans(rng, starts[0], length, budget, 6) for _ in range(trials)])
    seeds = functional.fold(jax.random.bits(KEY, (2,), jnp.uint32), jnp.arange(trials))
    full = functools.partial(jnp.full, (trials,), dtype=jnp.int32)
    found = np.asarray(jax.jit(permutation._spans, static_argnums=4)(
        seeds, jnp.broadcast_to(starts, (trials, length)), full(length), full(budget), 6
    ))
    assert set(np.unique(found)) == {0.0, 1.0} and found.sum(axis=1).max() <= budget
    for ours, theirs in ((found.sum(axis=1), expected.sum(axis=1)), (_runs(found), _runs(expected))):
        values = np.union1d(ours, theirs)
        table = np.array([[np.sum(side == value) for value in values] for side in (ours, theirs)])
        table = table[:, table.sum(axis=0) >= 10]
        assert stats.chi2_contingency(table).pvalue > 1e-6
    for place in range(length):
        table = [[side[:, place].sum(), trials - side[:, place].sum()] for side in (found, expected)]
        assert found[:, place].sum() == expected[:, place].sum() or stats.fisher_exact(table).pvalue > 1e-7, place


def _runs(masks) -> np.ndarray:
    """Lengths of runs of chosen places."""
    edges = np.diff(np.pad(masks.astype(int), ((0, 0), (1, 1))), axis=1)
    return np.flatnonzero(edges.ravel() == -1) - np.flatnonzero(edges.ravel() == 1)


# In company


@pytest.mark.slow
def test_rows_depend_on_their_seeds_alone():
    batch = make_batch([20, 16, 20], 20)
    seeds = functional.fold(jax.random.bits(KEY, (2,), jnp.uint32), jnp.arange(3))
    for objective in (PermutationLM(), PermutationLM(targets="spans")):
        whole = objective.corrupt(batch, seeds, PIECES, None)
        alone = objective.corrupt({name: a[1:2] for name, a in batch.items()}, seeds[1:2], PIECES, None)
        for name, a in alone.items():
            np.testing.assert_array_equal(a, whole[name][1:2], err_msg=name)


def test_refusals():
    with pytest.raises(BertJaxError, match="one_in is 1"):
        PermutationLM(one_in=1)
    batch = make_batch([20], 20)
    seeds = functional.fold(jax.random.bits(KEY, (2,), jnp.uint32), jnp.arange(1))
    hidden = MaskedLM().corrupt(jax.tree.map(jnp.asarray, batch), seeds, PIECES, None)
    with pytest.raises(BertJaxError, match="must take turns with it"):
        PermutationLM().corrupt(hidden, seeds, PIECES, None)


@pytest.mark.slow
@BOTH
def test_it_learns(config):
    """A row in which every token follows from its neighbours: a few updates bring the loss far below chance."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 25, (64, 1))
    ids = np.concatenate([np.full((64, 1), 2), 5 + (first + np.arange(14)) % 25, np.full((64, 1), 3)], axis=1)
    batch = {"input_ids": ids.astype(np.int32), "attention_mask": np.ones(ids.shape, bool),
             "word_starts": ids > 4, "segment_ids": np.zeros(ids.shape, np.int32)}
    objective, config = PermutationLM(), dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def update(params, state, key):
        seeds = functional.fold(jax.random.bits(key, (2,), jnp.uint32), jnp.arange(64))

        def loss(params):
            corrupted = objective.corrupt(batch, seeds, PIECES, None)
            ratio = objective.loss(api.apply(params, config, corrupted), corrupted)["loss"]
            return ratio.sum / ratio.weight

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return jax.tree.map(jnp.add, params, updates), state, value

    params = api.init(config, KEY)
    state = optimizer.init(params)
    values = []
    for key in jax.random.split(KEY, 100):
        params, state, value = update(params, state, key)
        values.append(float(value))
    assert values[0] > 3.0 and np.mean(values[-10:]) < 2.2, (values[0], values[-10:])
