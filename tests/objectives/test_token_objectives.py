"""Capitalisation and the token-document relation: which tokens count, exact labels, and what they cost in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import Capitalisation, MaskedLM, TokenDocument
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from tests.objectives.test_mlm import KEY, PIECES, make_batch, seeds

ENCODER = EncoderConfig(vocab_size=60, embedding_width=16, hidden_width=16, layers=1, heads=2, ffn_width=16, max_length=64)


def make_both(lengths, length, width=50, seed=0):
    batch, rng = make_batch(lengths, length, seed), np.random.default_rng(seed + 1)
    context = rng.integers(5, 60, (len(lengths), width))
    room = rng.integers(0, 25, (len(lengths), 1))
    room[rng.random((len(lengths), 1)) < 0.2] = 0  # documents that end with the example
    context = np.where(np.arange(width) < room, context, -1).astype(np.int32)
    return batch | {"context_ids": context, "capitalised": rng.random(batch["input_ids"].shape) < 0.3}


@functools.partial(jax.jit, static_argnums=0)
def corrupt(objective, batch):
    return objective.corrupt(batch, seeds(KEY, len(batch["input_ids"])), PIECES, None)


def test_relation_against_sets():
    batch = make_both([*range(0, 65), *([64] * 191)], 64)
    out = {name: np.asarray(value) for name, value in corrupt(TokenDocument(), batch).items()}
    assert out["token_document_labels"].dtype == bool and out["token_document_weights"].dtype == np.float32
    counted = 0
    for ids, mask, context, labels, weights in zip(
        batch["input_ids"], batch["attention_mask"], batch["context_ids"], out["token_document_labels"],
        out["token_document_weights"], strict=True,
    ):
        elsewhere = set(context[context >= 0].tolist())
        ordinary = [bool(m) and i not in PIECES.special_ids for i, m in zip(ids.tolist(), mask, strict=True)]
        expected = [float(o and bool(elsewhere)) for o in ordinary]
        assert weights.tolist() == expected
        assert [bool(label) for label, o in zip(labels, ordinary, strict=True) if o] == [
            i in elsewhere for i, o in zip(ids.tolist(), ordinary, strict=True) if o
        ]
        counted += weights.sum()
    assert counted > 5000 and 0.1 < out["token_document_labels"][out["token_document_weights"] > 0].mean() < 0.5
    assert (out["input_ids"] == batch["input_ids"]).all(), "nothing is corrupted"


def test_capitals_of_ordinary_tokens():
    batch = make_both([*range(0, 65)], 64)
    out = corrupt(Capitalisation(), batch)
    ordinary = batch["attention_mask"] & ~np.isin(batch["input_ids"], PIECES.special_ids)
    assert (np.asarray(out["capitalisation_weights"]) == ordinary).all()


@pytest.mark.parametrize("objective", [Capitalisation(), TokenDocument()])
def test_loss_against_numpy(objective):
    batch = corrupt(objective, make_both([64] * 32, 64))
    logits = np.random.default_rng(5).standard_normal((32, 64)).astype(np.float32) * 20
    found = objective.loss(api.Outputs(None, None, {objective.name: jnp.asarray(logits)}, {}), batch)
    truths = np.asarray(batch["capitalised" if objective.name == "capitalisation" else "token_document_labels"])
    weights = np.asarray(batch[f"{objective.name}_weights"])
    entropy = np.logaddexp(0, np.where(truths, -1.0, 1.0) * logits.astype(np.float64))
    np.testing.assert_allclose(found["loss"].sum, (entropy * weights).sum(), rtol=1e-5)
    assert found["accuracy"].sum == (((logits > 0) == truths) * weights).sum()
    assert found["loss"].weight == weights.sum() > 0
    gradient = jax.grad(
        lambda x: objective.loss(api.Outputs(None, None, {objective.name: x}, {}), batch)["loss"].sum
    )(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, (1 / (1 + np.exp(-logits.astype(np.float64))) - truths) * weights, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_labels_are_those_of_the_clean_text(first):
    """Masked tokens keep their labels, whether masking is configured before or after."""
    batch = make_both([64] * 64, 64)
    for objective in (Capitalisation(), TokenDocument()):
        objectives = (objective, MaskedLM()) if first else (MaskedLM(), objective)
        task = PretrainingTask(_configured(objectives), None)
        task._pieces = PIECES
        both = jax.jit(lambda b, task=task: task.corrupt(b, KEY, None))(batch)
        alone = corrupt(objective, batch)
        assert (np.asarray(both["input_ids"]) != batch["input_ids"]).any()
        for key in alone.keys() - batch.keys():
            assert (np.asarray(both[key]) == np.asarray(alone[key])).all()


def _configured(objectives):
    """A configuration whose examples are not asked what they give: the batches of these tests are made by hand."""
    config = object.__new__(Pretraining)
    for name, value in {"encoder": ENCODER, "objectives": objectives, "examples": None, "turns": (), "init": None}.items():
        object.__setattr__(config, name, value)
    return config


def test_own_heads_judge_every_token():
    for objective in (Capitalisation(), TokenDocument()):
        params = api.init(ENCODER, KEY) | objective.init(ENCODER, KEY)
        assert jax.tree.map(jnp.shape, params[objective.name]) == {"dense": {"kernel": (16, 1), "bias": (1,)}}
        outputs = api.apply(params, ENCODER, {"input_ids": jnp.ones((3, 20), int)}, heads=objective.own_heads(ENCODER))
        assert outputs.logits[objective.name].shape == (3, 20) and outputs.logits[objective.name].dtype == jnp.float32


def test_comparisons_are_not_stored():
    """512 tokens against 1,024 of their document, 64 rows: the truths of all pairs would be 32 MiB."""
    rows, length, width = 64, 512, 1024
    shapes = {"input_ids": ((rows, length), jnp.int32), "attention_mask": ((rows, length), jnp.bool_),
              "context_ids": ((rows, width), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}

    def relation(batch):
        return TokenDocument().corrupt(batch, None, PIECES, None)["token_document_labels"]

    def at_once(batch):  # what the limit is there to notice
        return (batch["input_ids"][:, :, None] == batch["context_ids"][:, None, :]).any(axis=-1)

    used = [jax.jit(f).lower(batch).compile().memory_analysis().temp_size_in_bytes for f in (relation, at_once)]
    assert used[0] < rows * length * width / 16 and used[1] >= rows * length * width, used


def test_slots_after_the_text_have_no_truth():
    """An objective with query slots makes rows longer than the labels: only the text is judged."""
    batch = corrupt(Capitalisation(), make_both([64] * 8, 64))
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((8, 80)), jnp.float32)
    whole, text = (
        Capitalisation().loss(api.Outputs(None, None, {"capitalisation": x}, {}), batch) for x in (logits, logits[:, :64])
    )
    assert whole == text
