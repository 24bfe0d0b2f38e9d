"""Attention in pieces of the batch: where it is done, and that nobody but the clock notices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import api, layers
from bert_jax.models.config import EncoderConfig
from bert_jax.parallel.mesh import MeshConfig, make_mesh

ENCODER = EncoderConfig(
    vocab_size=31, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=24, max_length=12, with_heads=("mlm",),
    dropout=0.2, attention_dropout=0.3,
)
ROWS, LENGTH = 6, 9


def batch() -> dict[str, np.ndarray]:
    """Rows of two examples each, which see themselves alone; the second half of a row is padding in some."""
    ids = np.random.default_rng(0).integers(0, ENCODER.vocab_size, (ROWS, LENGTH))
    examples = np.broadcast_to(np.arange(LENGTH) >= 4, ids.shape).astype(np.int32)
    return {"input_ids": ids, "example_ids": examples, "example_starts": np.tile([0, 4], (ROWS, 1)),
            "attention_mask": np.arange(LENGTH) < np.array([[LENGTH], [4], [7]] * (ROWS // 3))}


@pytest.mark.parametrize("changes", [{}, {"positions": "relative"}, {"remat": "masks"}], ids=str)
def test_pieces_change_nothing(changes, monkeypatch):
    config = dataclasses.replace(ENCODER, **changes)
    params = jax.jit(lambda key: api.init(config, key))(jax.random.key(0))
    asked = []

    def values():
        def loss(params):
            outputs = api.apply(params, config, batch(), key=jax.random.key(1), collect=("attentions",))
            return (outputs.logits["mlm"] ** 2).sum(), outputs.collected["attentions"]

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))

    def counted(query, keys, decide=layers.pieces):
        asked.append(decide(query, keys))
        return asked[-1]

    monkeypatch.setattr("bert_jax.models.layers.pieces", counted)
    monkeypatch.setattr("bert_jax.models.relative.pieces", counted)
    expected = values()
    assert set(asked) == {1}
    monkeypatch.setattr(layers, "MANY_SCORES", 1)
    asked.clear()
    found = values()
    assert set(asked) == {4}
    largest = max(np.abs(b).max() for b in expected[2:])  # that of keys' biases is 0 but for rounding
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest, rtol=1e-5)


def test_where_attention_is_cut():
    def pieces(*shape):
        found = []

        def ask(query):
            found.append(layers.pieces(query, query))
            return query

        jax.eval_shape(ask, jax.ShapeDtypeStruct(shape, jnp.float32))
        return found[0]

    many, few = (32, 64, 12, 32), (4, 8, 2, 8)
    assert (pieces(*many), pieces(3, 512, 12, 64), pieces(1, 512, 12, 64), pieces(*few)) == (4, 3, 1, 1)
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        assert (pieces(*many), pieces(*few)) == (4, 1)
    with jax.set_mesh(make_mesh(MeshConfig())):  # eight devices hold an eighth of the rows each: nothing to move between them
        assert jax.device_count() > 1 and pieces(*many) == 1


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:2x2"])
def test_never_for_a_planned_tpu(topology):
    pytest.importorskip("libtpu")
    from bert_jax.planning.chips import target

    devices = target(topology).devices
    query = jax.ShapeDtypeStruct((32, 512, 12, 64), jnp.float32)
    with jax.set_mesh(make_mesh(MeshConfig(), devices)):
        found = []
        jax.eval_shape(lambda q: found.append(layers.pieces(q, q)), query)
    assert found == [1]
