"""What must hold of an encoder whatever its weights: the ways to run it agree, and padding is invisible."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig

PRIVATE = EncoderConfig(
    vocab_size=23, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=24, max_length=12
)
SHARED = dataclasses.replace(PRIVATE, embedding_width=8, share="all", layers=4, groups=2, inner_layers=2)
BARE = dataclasses.replace(PRIVATE, with_heads=())
KEY = jax.random.key(7)


def random_params(config: EncoderConfig) -> api.Params:
    """Far from the initial values; layer-norm scales around 1."""
    noise = np.random.default_rng(0)

    def value(path, leaf):
        return np.float32((path[-1].key == "scale") + 0.2 * noise.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: api.init(config, KEY)))


def make_batch(config: EncoderConfig, lengths=(8, 5, 3), length: int = 8, junk: int = 0) -> dict[str, np.ndarray]:
    """The same real tokens whatever the padded length; ``junk`` seeds what stands in the padding."""
    real, rng = np.random.default_rng(1), np.random.default_rng(junk)
    mask = np.arange(length) < np.array(lengths)[:, None]
    ids = rng.integers(0, config.vocab_size, mask.shape)
    segments = rng.integers(0, config.segments, mask.shape)
    for row, n in enumerate(lengths):
        ids[row, :n] = real.integers(0, config.vocab_size, n)
        segments[row, :n] = np.arange(n) > n // 2
    return {"input_ids": np.int32(ids), "segment_ids": np.int32(segments), "attention_mask": mask}


@functools.partial(jax.jit, static_argnames=("config", "collect"))
def run(params, config, batch, key=None, collect=()) -> api.Outputs:
    return api.apply(params, config, batch, key=key, collect=collect)


@functools.partial(jax.jit, static_argnames=("config",))
def value_and_gradients(params, config, batch, key=None):
    """A loss that reaches every parameter of a bare encoder, at real positions."""

    def loss(params):
        hidden = api.apply(params, config, batch, key=key).hidden
        weights = jax.random.normal(jax.random.key(3), hidden.shape) * batch["attention_mask"][..., None]
        return (hidden * weights).sum()

    return jax.value_and_grad(loss)(params)


def assert_trees_close(found, expected, tolerance=2e-6):
    """Within ``tolerance`` of the largest value of each array."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


# Padding, positions, packing


@pytest.mark.parametrize("segments", [1, 2])
def test_one_segment_is_every_token_s(segments):
    """A RoBERTa's table has one row, where a BERT's template of pairs gives the ids 0 and 1."""
    config = dataclasses.replace(BARE, segments=segments)
    params, batch = random_params(config), make_batch(BARE)
    assert batch["segment_ids"].max() == 1
    zeros = batch | {"segment_ids": np.zeros_like(batch["segment_ids"])}
    found, expected = run(params, config, batch).hidden, run(params, config, zeros).hidden
    assert bool(np.abs(found - expected).max() > 0.1) == (segments == 2)
    if segments == 1:
        np.testing.assert_array_equal(found, expected)
        bare = params | {"embeddings": params["embeddings"] | {"segment": np.zeros_like(params["embeddings"]["segment"])}}
        assert np.abs(found - run(bare, config, batch).hidden).max() > 0.1


@pytest.mark.parametrize("config", (PRIVATE, SHARED), ids=("private", "shared"))
def test_padding_never_changes_real_outputs(config):
    params = random_params(config)
    short = make_batch(config, length=8)
    expected = run(params, config, short)
    for longer in (make_batch(config, length=8, junk=5), make_batch(config, length=12, junk=6)):
        assert not np.array_equal(longer["input_ids"][:, :8], short["input_ids"])
        found, mask = run(params, config, longer), short["attention_mask"]
        np.testing.assert_allclose(found.hidden[:, :8][mask], expected.hidden[mask], atol=2e-6)
        np.testing.assert_allclose(found.logits["mlm"][:, :8][mask], expected.logits["mlm"][mask], atol=1e-5)
        np.testing.assert_allclose(found.logits["pair"], expected.logits["pair"], atol=2e-6)


def test_rows_of_nothing_but_padding_are_finite():
    batch = make_batch(BARE, lengths=(8, 0))
    params = random_params(BARE)
    _, gradients = value_and_gradients(params, BARE, batch | {"attention_mask": np.ones((2, 8), bool)})
    value, padded = value_and_gradients(params, BARE, batch)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(padded))
    assert np.isfinite(run(params, BARE, batch).hidden).all()
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (gradients, padded)), strict=True))


def test_absent_inputs_have_their_defaults():
    params, batch = random_params(PRIVATE), make_batch(PRIVATE, lengths=(8, 8))
    ids = batch["input_ids"]
    found = run(params, PRIVATE, {"input_ids": ids})
    spelled_out = {
        "input_ids": ids, "segment_ids": np.zeros_like(ids), "attention_mask": np.ones(ids.shape, bool),
        "position_ids": np.broadcast_to(np.arange(8, dtype=np.int32), ids.shape),
    }
    assert_trees_close(found, run(params, PRIVATE, spelled_out))
    other = run(params, PRIVATE, {"input_ids": ids, "segment_ids": batch["segment_ids"]})
    assert np.abs(other.hidden - found.hidden).max() > 0.1


def test_packed_sequences_do_not_see_each_other():
    params = random_params(PRIVATE)
    batch = make_batch(PRIVATE, lengths=(7, 5))
    apart = run(params, PRIVATE, batch)
    packed = {name: np.concatenate([batch[name][0, :7], batch[name][1, :5]])[None] for name in
              ("input_ids", "segment_ids")}
    owner = np.repeat([0, 1], [7, 5])
    packed["position_ids"] = np.concatenate([np.arange(7), np.arange(5)]).astype(np.int32)[None]
    packed["attention_mask"] = (owner[:, None] == owner)[None]
    together = run(params, PRIVATE, packed)
    np.testing.assert_allclose(together.hidden[0, :7], apart.hidden[0, :7], atol=2e-6)
    np.testing.assert_allclose(together.hidden[0, 7:], apart.hidden[1, :5], atol=2e-6)


def test_a_sequence_longer_than_the_position_table_is_refused():
    params, ids = random_params(BARE), np.zeros((1, 13), np.int32)
    with pytest.raises(BertJaxError, match="13 tokens exceed the position table of 12"):
        api.apply(params, BARE, {"input_ids": ids})
    positions = np.minimum(np.arange(13, dtype=np.int32), 11)[None]
    assert run(params, BARE, {"input_ids": ids, "position_ids": positions}).hidden.shape == (1, 13, 16)


# Ways to run the same function


@pytest.mark.parametrize(
    "changes",
    [{"unroll": True}, {"remat": "attention"}, {"remat": "feed_forward"}, {"remat": "full"}, {"remat": "full", "unroll": True}],
    ids=str,
)
def test_scan_is_unrolled_is_every_remat_policy(changes):
    batch, params = make_batch(BARE), random_params(BARE)
    expected = value_and_gradients(params, BARE, batch, KEY)
    assert_trees_close(value_and_gradients(params, dataclasses.replace(BARE, **changes), batch, KEY), expected)


def test_unrolled_shared_layers_and_what_they_collect():
    config = dataclasses.replace(BARE, share="all", inner_layers=2)
    batch, params, collect = make_batch(config), random_params(config), ("hidden_states", "attentions", "keys")
    unrolled = dataclasses.replace(config, unroll=True)
    assert_trees_close(run(params, unrolled, batch, KEY, collect), run(params, config, batch, KEY, collect))


def test_jit_is_eager():
    batch, params = make_batch(SHARED), random_params(SHARED)
    with jax.disable_jit():
        eager = api.apply(params, SHARED, batch)
    assert_trees_close(eager, run(params, SHARED, batch))


@pytest.mark.parametrize(
    "changes",
    [
        {"share": "all", "layers": 4},
        {"share": "attention", "layers": 4},
        {"share": "all", "layers": 4, "groups": 2},
        {"share": "feed_forward", "layers": 2, "inner_layers": 2},
    ],
    ids=str,
)
def test_shared_is_copied_weights(changes):
    """Values, and the gradient of a shared set is the sum over the layers that use it."""
    shared = dataclasses.replace(BARE, **changes)
    private = dataclasses.replace(BARE, layers=shared.depth)
    params, batch = random_params(shared), make_batch(shared)
    uses = {
        part: np.eye(shared.copies(part))[list(shared.shared_index)]  # [depth, sets], one-hot
        if shared.copies(part) < shared.depth else np.eye(shared.depth)
        for part in ("attention", "feed_forward")
    }  # fmt: skip
    copied = params | {part: jax.tree.map(lambda a, use=use: a[use.argmax(1)], params[part])
                       for part, use in uses.items()}  # fmt: skip
    value, gradients = value_and_gradients(params, shared, batch)
    copied_value, copied_gradients = value_and_gradients(copied, private, batch)
    np.testing.assert_allclose(value, copied_value, rtol=1e-5)
    summed = copied_gradients | {
        part: jax.tree.map(lambda a, use=use: np.tensordot(use, a, axes=(0, 0)), copied_gradients[part])
        for part, use in uses.items()
    }
    assert_trees_close(gradients, summed, tolerance=5e-6)


def test_groups_and_inner_layers_run_in_order():
    """Distinct sets in distinct places: swapping two of them changes the output."""
    params, batch = random_params(SHARED), make_batch(SHARED)
    expected = run(params, SHARED, batch).hidden
    for a, b in ((0, 1), (0, 2)):  # inner layers of one group; the first inner layers of two groups
        order = np.arange(4)
        order[[a, b]] = order[[b, a]]
        swapped = params | {part: jax.tree.map(lambda x, o=order: x[o], params[part])
                            for part in ("attention", "feed_forward")}  # fmt: skip
        assert np.abs(run(swapped, SHARED, batch).hidden - expected).max() > 0.1


def test_bfloat16_compute_is_close_to_float32():
    params, batch = random_params(PRIVATE), make_batch(PRIVATE)
    half = dataclasses.replace(PRIVATE, compute_dtype="bfloat16")
    initial = jax.eval_shape(lambda: api.init(half, KEY))
    assert {a.dtype for a in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}
    expected, found = run(params, PRIVATE, batch), run(params, half, batch, collect=("attentions",))
    assert found.hidden.dtype == jnp.bfloat16
    assert found.logits["mlm"].dtype == found.logits["pair"].dtype == jnp.float32
    assert found.collected["attentions"].dtype == jnp.float32
    for name in ("hidden", "mlm", "pair"):
        a, b = (outputs.hidden if name == "hidden" else outputs.logits[name] for outputs in (found, expected))
        error = np.abs(np.float32(a) - b)
        assert 0 < error.mean() < 0.01 and error.max() < 0.1, name  # bf16 has 8 bits: 0.4% a rounding
    _, gradients = value_and_gradients.eval_shape(params, dataclasses.replace(half, with_heads=()), batch)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


# Outputs


def test_masked_positions_are_gathered_from_all_logits():
    params, batch = random_params(PRIVATE), make_batch(PRIVATE)
    positions = np.array([[0, 7, 3, 3], [4, 0, 1, 2], [2, 1, 0, 0]], np.int32)
    every = run(params, PRIVATE, batch).logits["mlm"]
    chosen = run(params, PRIVATE, batch | {"masked_positions": positions}).logits["mlm"]
    assert chosen.shape == (3, 4, 23)
    np.testing.assert_allclose(chosen, np.take_along_axis(every, positions[..., None], axis=1), atol=1e-6)


def test_collected_shapes_and_sums():
    names = ("hidden_states", "attentions", "queries", "keys", "values")
    params, batch = random_params(SHARED), make_batch(SHARED)
    outputs = run(params, SHARED, batch, collect=names)
    shapes = {name: a.shape for name, a in outputs.collected.items()}
    assert SHARED.depth == 8
    per_head = (8, 3, 8, 2, 8)  # depth, B, L, N, H
    assert shapes == {
        "hidden_states": (9, 3, 8, 16), "attentions": (8, 3, 2, 8, 8),
        "queries": per_head, "keys": per_head, "values": per_head,
    }
    attentions = np.asarray(outputs.collected["attentions"])
    np.testing.assert_allclose(attentions.sum(-1), 1.0, atol=1e-6)
    padding = np.broadcast_to(~batch["attention_mask"][None, :, None, None, :], attentions.shape)
    assert (attentions[padding] == 0).all()
    np.testing.assert_array_equal(outputs.collected["hidden_states"][-1], outputs.hidden)
    scores = np.einsum("dbqnh,dblnh->dbnql", outputs.collected["queries"], outputs.collected["keys"]) / np.sqrt(8)
    scores = np.exp(np.where(padding, -np.inf, scores))
    np.testing.assert_allclose(attentions, scores / scores.sum(-1, keepdims=True), atol=1e-5)
    assert run(params, SHARED, batch).collected == {}


def test_absent_heads_give_nothing():
    outputs = run(random_params(BARE), BARE, make_batch(BARE))
    assert outputs.pooled is None and outputs.logits == {}
    config = dataclasses.replace(BARE, with_heads=("pooler",))
    assert run(random_params(config), config, make_batch(config)).pooled.shape == (3, 16)


def test_padded_vocabulary_changes_no_loss_and_never_wins():
    plain = dataclasses.replace(PRIVATE, layers=1, with_heads=("mlm",))
    padded = dataclasses.replace(plain, vocab_multiple=16)
    params, batch = random_params(plain), make_batch(plain)
    noise = np.random.default_rng(2)
    wider = params | {
        "embeddings": params["embeddings"]
        | {"token": np.concatenate([params["embeddings"]["token"], np.float32(50 * noise.standard_normal((9, 16)))])},
        "mlm": params["mlm"] | {"bias": np.concatenate([params["mlm"]["bias"], np.full(9, 1e4, np.float32)])},
    }
    labels = np.random.default_rng(3).integers(0, 23, (3, 8))

    @functools.partial(jax.jit, static_argnames=("config",))
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, config):
        logits = api.apply(params, config, batch).logits["mlm"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(where=batch["attention_mask"]), logits

    (expected, _), expected_gradients = loss(params, plain)
    (found, logits), gradients = loss(wider, padded)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert logits.shape == (3, 8, 32) and logits.argmax(-1).max() < 23
    assert (gradients["embeddings"]["token"][23:] == 0).all() and (gradients["mlm"]["bias"][23:] == 0).all()
    np.testing.assert_allclose(
        gradients["embeddings"]["token"][:23], expected_gradients["embeddings"]["token"], atol=1e-6
    )


# Initial values


def test_initial_values():
    config = dataclasses.replace(PRIVATE, hidden_width=64, embedding_width=64, ffn_width=128, vocab_size=500)
    params = jax.jit(api.init, static_argnums=0)(config, KEY)
    for path, a in jax.tree.leaves_with_path(params):
        name = path[-1].key
        if name == "scale":
            assert (a == 1).all()
        elif name == "bias":
            assert (a == 0).all()
        else:
            assert np.abs(a).max() <= 2 * config.init_std  # cut at two deviations, which leaves 0.8796 of the deviation
            if a.size > 2000:
                np.testing.assert_allclose(np.std(a), 0.8796 * config.init_std, rtol=0.05)
    kernels = np.asarray(params["attention"]["query"]["kernel"]).reshape(config.layers, -1)
    assert np.abs(np.corrcoef(kernels) - np.eye(config.layers)).max() < 0.1  # layers are drawn independently


def test_a_batch_of_transformers_is_not_read_in_part():
    """Its token_type_ids would be left out without a word, and both texts of a pair be the first."""
    with pytest.raises(BertJaxError, match="token_type_ids of a batch are called segment_ids here"):
        api.apply({}, EncoderConfig(), {"input_ids": np.zeros((1, 4), np.int32), "token_type_ids": np.zeros((1, 4), np.int32)})
