"""The span boundary objective against SpanBERT's head in PyTorch, and against leaks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import Inputs
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.objectives.span_boundary import SpanBoundary
from tests.objectives.test_mlm import KEY, ORDINARY, PIECES, make_batch, seeds

ENCODER = EncoderConfig(
    vocab_size=60, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=32, max_length=40, with_heads=("mlm",),
    vocab_multiple=64,
)
MLM, SBO = MaskedLM(unit="span", replace="unit"), SpanBoundary()


def parameters(encoder, scale: float = 0.3):
    """Random weights, norms and biases included, large enough for every input to matter."""
    params = jax.jit(lambda key: api.init(encoder, key) | SBO.init(encoder, key))(KEY)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + scale * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


@functools.partial(jax.jit, static_argnums=1)
def corrupted(batch, mlm=MLM):
    row_seeds = seeds(KEY, len(batch["input_ids"]))
    return SBO.corrupt(mlm.corrupt(batch, row_seeds, PIECES, None), row_seeds, PIECES, None)


@jax.jit
def run_encoder(params, batch):
    return api.apply(params, ENCODER, batch, heads=SBO.own_heads(ENCODER))


def logits_of(params, batch, **changes):
    return np.asarray(run_encoder(params, batch | changes).logits["sbo"])


def theirs(params, hidden, batch, table):
    """BertPairTargetPredictionHead (pair_bert.py): two hidden states and a row of a table of 15 x 200, two layers of Linear,
    erf GELU and a norm with epsilon 1e-12, the embedding matrix as decoder."""
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)).double(), params)
    hidden = torch.from_numpy(np.array(hidden)).double()
    rows = torch.arange(len(hidden))[:, None]
    left, right, place = (torch.from_numpy(np.array(batch[f"span_{name}"])).long() for name in ("left", "right", "place"))
    x = torch.cat([hidden[rows, left], hidden[rows, right], p["place"][place.clamp(max=14)]], dim=-1)
    for name in ("first", "second"):
        x = torch.nn.functional.linear(x, p[name]["kernel"].T, p[name]["bias"])
        x = torch.nn.functional.gelu(x)
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-12) * p[f"{name}_norm"]["scale"] + p[f"{name}_norm"]["bias"]
    return (torch.nn.functional.linear(x, torch.from_numpy(np.array(table)).double()) + p["bias"]).numpy()


def test_head_against_the_originals():
    params, batch = parameters(ENCODER), corrupted(make_batch([40] * 8, 40))
    outputs = run_encoder(params, batch)
    assert params["sbo"]["place"].shape == (15, 200) and params["sbo"]["first"]["kernel"].shape == (2 * 16 + 200, 16)
    expected = theirs(params["sbo"], outputs.hidden, batch, params["embeddings"]["token"])
    found = np.asarray(outputs.logits["sbo"])
    np.testing.assert_allclose(found[..., :60], expected[..., :60], atol=1e-5, rtol=1e-5)
    assert (found[..., 60:] == np.finfo(np.float32).min).all() and found.shape == (8, MLM.predictions(40), 64)


def test_weights():
    """Nothing beside a special token and nothing beyond fifteen tokens of a span, as in span_masking and pad_to_len."""
    batch = corrupted(make_batch([40] * 256, 40), MaskedLM(unit="span", rate=0.6))
    special = ~np.isin(batch["input_ids"], ORDINARY) & ~np.isin(batch["input_ids"], [PIECES.mask_id])
    rows = np.arange(256)[:, None]
    beside = special[rows, batch["span_left"]] | special[rows, batch["span_right"]]
    expected = np.asarray(batch["mlm_weights"]) * ~beside * (np.asarray(batch["span_place"]) < 15)
    assert np.array_equal(batch["sbo_weights"], expected)
    lost = np.asarray(batch["mlm_weights"]) - expected
    assert lost[beside].any() and lost[~beside].any(), "both kinds occur here"


def changed_inside(batch, clean, row: int, rng):
    """The clean row with every token of every hidden span exchanged for another one."""
    weights = np.asarray(batch["mlm_weights"][row]) > 0
    places = np.asarray(batch["masked_positions"][row])[weights]
    ids = clean["input_ids"].copy()
    ids[row, places] = (ids[row, places] - 5 + rng.integers(1, len(ORDINARY), len(places))) % len(ORDINARY) + 5
    return clean | {"input_ids": ids}


def test_hidden_tokens_do_not_reach_their_predictions():
    """With all of what is chosen replaced by [MASK]: other targets, the same logits."""
    params, clean, mlm = parameters(ENCODER), make_batch([40] * 4, 40), MaskedLM(unit="span", mask=1.0, random=0.0)
    first = logits_of(params, corrupted(clean, mlm))
    rng = np.random.default_rng(1)
    for row in range(4):
        other = corrupted(changed_inside(corrupted(clean, mlm), clean, row, rng), mlm)
        assert (np.asarray(other["mlm_labels"][row]) != np.asarray(corrupted(clean, mlm)["mlm_labels"][row])).all()
        np.testing.assert_array_equal(logits_of(params, other), first)
    visible = dataclasses.replace(mlm, mask=0.0)  # the test can fail: without replacement the encoder sees the targets
    other = corrupted(changed_inside(corrupted(clean, visible), clean, 0, rng), visible)
    assert not np.array_equal(logits_of(params, other)[0], logits_of(params, corrupted(clean, visible))[0])


@pytest.mark.parametrize(("shift_left", "shift_right"), [(0, 0), (1, 0), (0, -1)])
def test_a_shifted_boundary_is_caught(shift_left, shift_right):
    """Nothing is replaced and every state knows its own token alone: only what the head reads could betray a target."""
    params, clean = parameters(ENCODER), make_batch([40] * 6, 40)
    mlm = MaskedLM(unit="span", mask=0.0, random=0.0)
    alone = {"visibility": jnp.broadcast_to(jnp.eye(40, dtype=bool), (6, 40, 40))}
    batch = corrupted(clean, mlm)
    shifted = {"span_left": batch["span_left"] + shift_left, "span_right": batch["span_right"] + shift_right}
    before = logits_of(params, batch, **alone, **shifted)
    moved = []
    for row in range(6):
        other = corrupted(changed_inside(batch, clean, row, np.random.default_rng(row)), mlm)
        after = logits_of(params, other, **alone, **shifted)
        moved.append(np.abs(after - before)[..., :60].max(axis=(1, 2)))
    moved = np.array(moved)
    assert (moved[~np.eye(6, dtype=bool)] == 0).all(), "other rows do not move"
    assert (np.diag(moved) > 1e-3).all() if shift_left or shift_right else (np.diag(moved) == 0).all()


def test_no_gradient_reaches_hidden_tokens():
    """The same by gradients: of a row's logits with respect to the states of its hidden tokens."""
    params, batch = parameters(ENCODER), corrupted(make_batch([40] * 4, 40))
    (head,) = SBO.own_heads(ENCODER).values()
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((4, 40, 16)), jnp.float32)

    def total(hidden, batch):
        inputs = Inputs(hidden, hidden, None, params["embeddings"]["token"], batch)
        return jnp.square(head.apply({"params": params["sbo"]}, inputs, None)[..., :60]).sum()

    chosen = np.zeros((4, 40), bool)
    np.put_along_axis(chosen, np.asarray(batch["masked_positions"]), np.asarray(batch["mlm_weights"]) > 0, axis=1)
    reached = np.abs(jax.grad(total)(hidden, batch)).max(axis=-1) > 0
    assert not (reached & chosen).any() and reached.any(axis=1).all()
    wrong = batch | {"span_left": batch["span_left"] + 1}
    assert (np.abs(jax.grad(total)(hidden, wrong)).max(axis=-1)[chosen] > 0).any()


@pytest.mark.slow
def test_trains_with_its_own_metrics_and_needs_spans(tiny_store):
    encoder = dataclasses.replace(ENCODER, vocab_size=96)
    spec = PairSpec(length=40, pairs="none")
    task = PretrainingTask(Pretraining(encoder, (SBO, MLM), spec), TokenStore(tiny_store))
    batch = next(task.train_batches(4, 0))
    key = jax.random.key(0)
    losses = jax.jit(lambda b: task.loss(task.init(key), task.corrupt(b, key, np.int32(0)), key))(batch)
    assert set(losses.terms) == {"mlm_loss", "sbo_loss"} and {"sbo_accuracy", "sbo_loss"} < set(losses.metrics)
    assert 0 < losses.terms["sbo_loss"].weight <= losses.terms["mlm_loss"].weight
    assert abs(losses.terms["sbo_loss"].value - np.log(96)) < 0.3
    axes = SBO.logical_axes(encoder)
    assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(SBO.init(encoder, key))
    other = PretrainingTask(Pretraining(encoder, (SBO, MaskedLM(unit="word")), spec), TokenStore(tiny_store))
    with pytest.raises(BertJaxError, match="put that beside it"):
        jax.eval_shape(lambda b: other.corrupt(b, key, None), batch)
    with pytest.raises(BertJaxError, match="places"):
        SpanBoundary(places=0)
