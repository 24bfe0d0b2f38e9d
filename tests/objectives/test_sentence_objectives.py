"""Structural, distance and reordering objectives: their classes, losses and heads, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import OBJECTIVES, Distance, Reordering, Structural

ENCODER = EncoderConfig(
    vocab_size=96, embedding_width=16, hidden_width=16, layers=1, heads=2, ffn_width=16, max_length=16,
    with_heads=("pooler", "mlm"),
)
CLASSES = {Structural(): 3, Distance(): 3, Reordering(most=2): 3, Reordering(): 9, Reordering(most=4): 33}


@pytest.mark.parametrize(("objective", "classes"), CLASSES.items(), ids=repr)
def test_loss_against_numpy(objective, classes):
    (label,) = objective.needs
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((64, classes)).astype(np.float32) * 4
    labels = rng.permutation(np.arange(64) % (classes + 1) - 1)
    found = objective.loss(api.Outputs(None, None, {objective.name: logits}, {}), {label: labels})
    rows = labels >= 0
    exact = logits[rows].astype(np.float64)
    entropy = np.log(np.exp(exact).sum(1)) - exact[np.arange(rows.sum()), labels[rows]]
    assert 0 < rows.sum() < 64 and set(labels) == set(range(-1, classes))
    np.testing.assert_allclose(found["loss"].sum, entropy.sum(), rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"].sum, (exact.argmax(1) == labels[rows]).sum())
    assert found["loss"].weight == found["accuracy"].weight == rows.sum()
    assert objective.terms() == {"loss": 1.0}


@pytest.mark.parametrize(("objective", "classes"), CLASSES.items(), ids=repr)
def test_heads_of_their_own(objective, classes):
    """The head reads the pooled state of its row alone, has as many classes as the labels, and starts undecided."""
    params = api.init(ENCODER, jax.random.key(0)) | objective.init(ENCODER, jax.random.key(1))
    assert jax.tree.map(jnp.shape, params[objective.name]) == {"dense": {"kernel": (16, classes), "bias": (classes,)}}
    axes = objective.logical_axes(ENCODER)
    assert axes == {objective.name: {"dense": {"kernel": ("model", None), "bias": (None,)}}}
    batch = {"input_ids": jnp.asarray(np.random.default_rng(0).integers(5, 96, (4, 16)))}
    outputs = api.apply(params, ENCODER, batch, heads=objective.own_heads(ENCODER))
    logits = outputs.logits[objective.name]
    assert logits.shape == (4, classes) and logits.dtype == jnp.float32
    expected = outputs.pooled @ params[objective.name]["dense"]["kernel"]
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    labels = {objective.needs[0]: jnp.zeros(4, jnp.int32)}
    assert abs(objective.loss(outputs, labels)["loss"].value - np.log(classes)) < 0.2


def test_no_name_is_taken_twice():
    """Parameters of an objective lie beside the encoder's heads, its metrics begin with its name."""
    from bert_jax.models.heads import HEADS

    names = [kind.name for kind in OBJECTIVES]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
    parts = HEADS.keys() | {"embeddings", "attention", "feed_forward"}
    for kind in OBJECTIVES:
        assert not parts & kind().own_heads(ENCODER).keys(), kind


@pytest.mark.parametrize("objective", [Structural(), Reordering()], ids=repr)
def test_learns_what_the_first_token_says(objective):
    """The loss reaches zero where the label can be read from the row: head, loss and gradient belong together."""
    (classes,) = objective.own_heads(ENCODER).values()
    labels = jnp.arange(63) % classes.classes
    batch = {"input_ids": jnp.full((63, 8), 7).at[:, 0].set(10 + labels), objective.needs[0]: labels}
    params = api.init(ENCODER, jax.random.key(0)) | objective.init(ENCODER, jax.random.key(1))
    optimizer = optax.adam(1e-2)

    def loss(params):
        outputs = api.apply(params, ENCODER, batch, heads=objective.own_heads(ENCODER))
        return objective.loss(outputs, batch)["loss"].value

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), value

    values = jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1]
    assert values[-1] < 0.05 < 1 < values[0], values[::50]


@pytest.mark.parametrize("most", [1, 8])
def test_refused_settings(most):
    with pytest.raises(BertJaxError, match=f"Reordering.most is {most}"):
        Reordering(most=most)
