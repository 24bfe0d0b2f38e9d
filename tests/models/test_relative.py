"""Relative attention against its definition and against XLNet of transformers: both streams, outputs and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import fill_mask, model
from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.models import api, relative
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

B, L, M = 3, 9, 3
XLNET = EncoderConfig(
    vocab_size=31, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=24, max_length=12, positions="relative",
    mlm_transform=False, with_heads=("mlm",),
)


def lively(config: EncoderConfig, seed: int = 0) -> api.Params:
    """Parameters far from their initial values; layer-norm scales around 1."""
    noise = np.random.default_rng(seed)

    def value(path, leaf):
        return np.float32((path[-1].key == "scale") + 0.3 * noise.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: api.init(config, jax.random.key(0))))


@functools.partial(jax.jit, static_argnames=("config", "collect"))
def run(params, config, batch, key=None, collect=()) -> api.Outputs:
    return api.apply(params, config, batch, key=key, collect=collect)


def two_streams() -> dict[str, np.ndarray]:
    """Rows with padding, segments, a random order each, and M targets; written out by hand, apart from the objective."""
    rng = np.random.default_rng(4)
    real = np.arange(L) < np.array([[L], [7], [8]])
    order = np.argsort(np.where(real, rng.random((B, L)), 2.0), axis=1).argsort(axis=1)
    targets = np.argsort(np.where(real, -order, L), axis=1)[:, :M]
    segments = np.cumsum(rng.random((B, L)) < 0.3, axis=1) % 3
    at = functools.partial(np.take_along_axis, indices=targets, axis=1)
    seen = np.concatenate([order[:, None] <= order[:, :, None], order[:, None] < at(order)[:, :, None]], axis=1)
    ids = rng.integers(0, XLNET.vocab_size, (B, L))
    return {
        "input_ids": np.concatenate([ids, np.zeros((B, M), int)], axis=1),
        "segment_ids": np.concatenate([segments, at(segments)], axis=1),
        "position_ids": np.concatenate([np.broadcast_to(np.arange(L), (B, L)), targets], axis=1),
        "query_slots": np.broadcast_to(np.arange(L + M) >= L, (B, L + M)),
        "visibility": seen & real[:, None],
        "masked_positions": np.broadcast_to(np.arange(L, L + M), (B, M)),
        "labels": at(ids),
        "real": real,
    }


# Against the definition


def test_scores_are_those_of_the_distances():
    rng = np.random.default_rng(0)
    query, kernel = rng.standard_normal((2, 7, 3, 4)), rng.standard_normal((12, 3, 4))
    places, keys = rng.integers(0, 40, (2, 7)), rng.integers(0, 40, (2, 5))
    waves = [relative.waves(jnp.asarray(positions), 12) for positions in (places, keys)]
    found = relative.distance_scores(jnp.float32(query), jnp.float32(kernel), relative.Relation(*waves, None))
    distance = (places[:, :, None] - keys[:, None, :]).astype(float)
    angles = distance[..., None] / 10000 ** (np.arange(0, 12, 2) / 12)
    r = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    expected = np.einsum("bqnh,dnh,bqkd->bnqk", query, kernel, r)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_only_distances_count():
    params, batch = lively(XLNET), two_streams()
    moved = batch | {"position_ids": batch["position_ids"] + 100}
    turned = batch | {"position_ids": -batch["position_ids"]}
    found = [run(params, XLNET, one).logits["mlm"] for one in (batch, moved, turned)]
    np.testing.assert_allclose(found[1], found[0], atol=2e-5)
    assert np.abs(found[2] - found[0]).max() > 0.1
    plain = {name: batch[name][:, :L] for name in ("input_ids", "segment_ids")} | {"attention_mask": batch["real"]}
    spelled_out = plain | {"position_ids": batch["position_ids"][:, :L]}
    np.testing.assert_allclose(run(params, XLNET, plain).hidden, run(params, XLNET, spelled_out).hidden, atol=1e-6)


def test_segments_count_as_same_or_different():
    params, batch = lively(XLNET), two_streams()
    renamed = batch | {"segment_ids": np.array([5, 0, 1])[batch["segment_ids"]]}
    joined = batch | {"segment_ids": np.minimum(batch["segment_ids"], 1)}
    found = [run(params, XLNET, one).logits["mlm"] for one in (batch, renamed, joined)]
    np.testing.assert_array_equal(found[1], found[0])
    assert np.abs(found[2] - found[0]).max() > 0.01
    without = dataclasses.replace(XLNET, segments=0)
    assert "segment" not in lively(without)["attention"]
    with_none, with_some = (run(lively(without), without, one).hidden for one in (batch, joined))
    np.testing.assert_array_equal(with_none, with_some)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_fewer_keys_are_keys_that_nobody_sees(positions):
    config = dataclasses.replace(XLNET, positions=positions, segments=2)
    params, batch = lively(config), two_streams()
    square = np.concatenate([batch["visibility"], np.zeros((B, L + M, M), bool)], axis=2)
    batch["segment_ids"] %= 2
    few, many = run(params, config, batch), run(params, config, batch | {"visibility": square})
    np.testing.assert_allclose(few.logits["mlm"], many.logits["mlm"], atol=1e-5)


@pytest.mark.parametrize("changes", [
    {"unroll": True}, {"remat": "attention"}, {"remat": "feed_forward"}, {"remat": "full"},
], ids=str)  # fmt: skip
def test_every_way_to_run_it_agrees(changes):
    params, batch = lively(XLNET), two_streams()

    def loss(params, config):
        return (api.apply(params, config, batch, key=jax.random.key(1)).logits["mlm"] ** 2).sum()

    value = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected, found = value(params, XLNET), value(params, dataclasses.replace(XLNET, **changes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=1e-5)


@pytest.mark.parametrize("changes", [
    {"share": "all"}, {"share": "attention", "layers": 4, "groups": 2}, {"embedding_width": 8, "mlm_transform": True},
    {"compute_dtype": "bfloat16"}, {"with_heads": ("pooler", "mlm", "pair")},
], ids=str)  # fmt: skip
def test_other_settings_work_with_it(changes):
    config = dataclasses.replace(XLNET, **changes)
    params, batch = lively(config), two_streams()
    outputs, gradients = jax.jit(jax.value_and_grad(
        lambda p: sum((a.astype(jnp.float32) ** 2).mean() for a in api.apply(p, config, batch).logits.values())
    ))(params)
    assert np.isfinite(outputs)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    if config.compute_dtype == "bfloat16":
        exact = run(params, XLNET, batch).logits["mlm"]
        rounded = run(params, config, batch).logits["mlm"]
        assert 0 < np.abs(rounded - exact).mean() < 0.03 * np.abs(exact).mean()


@pytest.mark.parametrize("changes, message", [
    ({"segments": 3}, "with relative positions 2"), ({"position_offset": 2}, "no encoder.position_offset"),
    ({"hidden_width": 9, "embedding_width": 9, "heads": 3}, "even encoder.hidden_width"),
    ({"embedding_width": 8}, "mlm_transform=false needs"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(BertJaxError, match=message):
        dataclasses.replace(XLNET, **changes)


# Use


def test_own_form_and_fill_mask(tmp_path):
    tokenizer = WordPieceTokenizer([*SPECIALS, *"abcdefghijklmnopqrstuvwxyz"])
    params = lively(XLNET)
    model.save(model.Model(params, XLNET, tokenizer), tmp_path / "own", format="bert_jax")
    again = model.load(tmp_path / "own")
    assert again.config == XLNET
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    guesses = fill_mask.fill_mask(again.params, XLNET, tokenizer, "a [MASK] c [MASK]", top=26)
    # A mask is a query slot in its place: what stands in the token table for [MASK] counts for nothing.
    params["embeddings"]["token"][tokenizer.mask_id] += 1.0
    again = fill_mask.fill_mask(params, XLNET, tokenizer, "a [MASK] c [MASK]", top=26)
    assert again == guesses
    params["embeddings"]["query"] *= -1.0
    assert fill_mask.fill_mask(params, XLNET, tokenizer, "a [MASK] c [MASK]", top=26) != guesses


def test_no_form_among_families_with_tables(tmp_path):
    with_pair = dataclasses.replace(XLNET, with_heads=("pooler", "mlm", "pair"))
    with pytest.raises(BertJaxError, match="no xlnet class has exactly the heads"):
        hf.export(lively(with_pair), with_pair, None, tmp_path / "a")
    transformed = dataclasses.replace(XLNET, mlm_transform=True)
    with pytest.raises(BertJaxError, match="xlnet has mlm_transform False, here it is True"):
        hf.export(lively(transformed), transformed, None, tmp_path / "b")
    bare_head = dataclasses.replace(XLNET, positions="absolute")
    with pytest.raises(BertJaxError, match="bert has mlm_transform True, here it is False"):
        hf.export(lively(bare_head), bare_head, None, tmp_path / "c")


# Against transformers


def to_torch(params, config, directory, kind: str):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")
    hf.export(params, config, None, directory)
    reference, info = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return torch, reference.eval()


def their_inputs(torch, batch) -> dict:
    """perm_mask says whom content does not see (itself aside, which it always sees); a row of target_mapping is a target."""
    hidden = ~batch["visibility"][:, :L]
    for row, targets in enumerate(batch["position_ids"][:, L:]):  # in theirs the query of t sees what content of t sees, but t
        hidden[row, targets, targets] = True
    mapping = batch["position_ids"][:, L:, None] == np.arange(L)
    return {
        "input_ids": torch.tensor(batch["input_ids"][:, :L]).long(),
        "token_type_ids": torch.tensor(batch["segment_ids"][:, :L]).long(),
        "attention_mask": torch.tensor(batch["real"]).float(),
        "perm_mask": torch.tensor(hidden).float(),
        "target_mapping": torch.tensor(mapping).float(),
    }


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_two_streams_of_transformers(activation, tmp_path):
    config = dataclasses.replace(XLNET, activation=activation)
    params, batch = lively(config), two_streams()
    torch, reference = to_torch(params, config, tmp_path / "x", "XLNetLMHeadModel")
    with torch.no_grad():
        theirs = reference(**their_inputs(torch, batch), output_hidden_states=True, output_attentions=True, use_mems=False)
    ours = run(params, config, batch, collect=("hidden_states", "attentions"))
    assert np.abs(theirs.logits.numpy()).max() > 1
    np.testing.assert_allclose(ours.logits["mlm"], theirs.logits.numpy(), atol=1e-5, rtol=0)
    real = batch["real"]
    for layer in range(config.layers + 1):  # content and query stream take turns in their list
        content, query = (theirs.hidden_states[2 * layer + stream].numpy() for stream in (0, 1))
        found = np.asarray(ours.collected["hidden_states"][layer])
        np.testing.assert_allclose(found[:, :L][real], content[real], atol=1e-5, rtol=0)
        np.testing.assert_allclose(found[:, L:], query, atol=1e-5, rtol=0)
    for layer in range(config.layers):
        found = np.moveaxis(np.asarray(ours.collected["attentions"][layer])[:, :, :L], 1, 2)
        np.testing.assert_allclose(found[real], np.moveaxis(theirs.attentions[layer][0].numpy(), 1, 2)[real], atol=1e-5)


def test_gradients_of_transformers(tmp_path):
    params, batch = lively(XLNET), two_streams()
    torch, reference = to_torch(params, XLNET, tmp_path / "x", "XLNetLMHeadModel")
    inputs = their_inputs(torch, batch)
    loss = reference(**inputs, labels=torch.tensor(batch["labels"]).long(), use_mems=False).loss
    loss.backward()

    def our_loss(params):
        logits = api.apply(params, XLNET, batch).logits["mlm"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    value, gradients = jax.jit(jax.value_and_grad(our_loss))(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    ours = hf.to_tensors(gradients, XLNET)
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        largest = np.abs(gradient).max()
        assert largest > 1e-5, name
        np.testing.assert_allclose(ours[name], gradient, atol=1e-5 * max(largest, 0.1), rtol=0, err_msg=name)


def test_content_stream_of_transformers(tmp_path):
    config = dataclasses.replace(XLNET, with_heads=())
    params, batch = lively(config), two_streams()
    torch, reference = to_torch(params, config, tmp_path / "x", "XLNetModel")
    plain = {name: batch[name][:, :L] for name in ("input_ids", "segment_ids")} | {"attention_mask": batch["real"]}
    names = ("input_ids", "token_type_ids", "attention_mask")
    with torch.no_grad():
        theirs = reference(**{name: their_inputs(torch, batch)[name] for name in names}).last_hidden_state.numpy()
    np.testing.assert_allclose(run(params, config, plain).hidden[batch["real"]], theirs[batch["real"]], atol=1e-5, rtol=0)
