"""BART's decoder: equal to transformers' in PyTorch, gradients included, and blind to what comes after."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import api, decoder
from bert_jax.models.config import EncoderConfig
from bert_jax.models.decoder import Decoder
from bert_jax.objectives.base import scored

# BART's convention: one segment, no table of segments, two rows before the positions, erf GELU, 1e-5.
CONFIG = EncoderConfig(
    vocab_size=61, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=48, max_length=20, position_offset=2,
    segments=0, norm_eps=1e-5, init_std=0.2, with_heads=(), vocab_multiple=8,
)
HEADS = {"denoising": Decoder(CONFIG, 2)}


def make_batch(rows: int = 3, length: int = 14) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    place, real, written = np.arange(length), np.array([[14], [9], [5]])[:rows], np.array([[14], [12], [7]])[:rows]
    labels = np.where(place < written, rng.integers(4, 61, (rows, length)), 0).astype(np.int32)
    return {
        "input_ids": np.where(place < real, rng.integers(4, 61, (rows, length)), 0).astype(np.int32),
        "attention_mask": place < real,
        "decoder_input_ids": np.concatenate([np.full((rows, 1), 3, np.int32), labels[:, :-1]], axis=1),
        "labels": labels,
        "weights": (place < written).astype(np.float32),
    }


def init(config=CONFIG, heads=HEADS):
    return api.init(config, jax.random.key(1)) | api.init_heads(config, heads, jax.random.key(2))


def loss(params, batch):
    outputs = api.apply(params, CONFIG, batch, heads=HEADS)
    return scored(outputs.logits["denoising"], batch["labels"], batch["weights"])["loss"].value, outputs


def attention_of(linear, attention, norm) -> dict:
    """A transformers attention, and the layer norm behind it, in our shapes; ``linear`` and ``norm`` give their two arrays."""
    heads, head_width = CONFIG.heads, CONFIG.head_width
    tree = {}
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        kernel, bias = linear(getattr(attention, theirs))
        tree[ours] = {"kernel": kernel.reshape(-1, heads, head_width), "bias": bias.reshape(heads, head_width)}
    kernel, bias = linear(attention.out_proj)
    return tree | {"output": {"kernel": kernel.reshape(heads, head_width, -1), "bias": bias}, "norm": norm}


def tree_of(model, value) -> dict:
    """The parameters of BartForConditionalGeneration, or their gradients, as our tree; ``value`` reads a tensor."""
    def linear(module):
        return value(module.weight).T, value(module.bias)

    def norm(module):
        return {"scale": value(module.weight), "bias": value(module.bias)}

    def feed_forward(layer):
        parts = {}
        for ours, theirs in (("intermediate", layer.fc1), ("output", layer.fc2)):
            parts[ours] = dict(zip(("kernel", "bias"), linear(theirs), strict=True))
        return parts | {"norm": norm(layer.final_layer_norm)}

    def stack(trees):
        return jax.tree.map(lambda *a: np.stack(a), *trees)

    encoder, writer = model.model.encoder, model.model.decoder
    token = value(model.model.shared.weight)
    token = np.pad(token, ((0, CONFIG.padded_vocab_size - CONFIG.vocab_size), (0, 0)))
    tree = {
        "embeddings": {
            "token": token, "position": value(encoder.embed_positions.weight), "norm": norm(encoder.layernorm_embedding),
        },
        "attention": stack([
            attention_of(linear, layer.self_attn, norm(layer.self_attn_layer_norm)) for layer in encoder.layers
        ]),
        "feed_forward": stack([feed_forward(layer) for layer in encoder.layers]),
        "denoising": {"position": value(writer.embed_positions.weight), "norm": norm(writer.layernorm_embedding)},
    }
    for number, layer in enumerate(writer.layers):
        tree["denoising"][f"layer_{number}"] = {
            "attention": attention_of(linear, layer.self_attn, norm(layer.self_attn_layer_norm)),
            "cross_attention": attention_of(linear, layer.encoder_attn, norm(layer.encoder_attn_layer_norm)),
            "feed_forward": feed_forward(layer),
        }
    return tree


@pytest.fixture(scope="module")
def bart():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=61, max_position_embeddings=20, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        decoder_start_token_id=3, init_std=0.2, attn_implementation="eager",
    )).eval()
    for parameter in model.parameters():  # biases and norms too, which begin with zeros and ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_parity_with_transformers(bart):
    import torch

    batch = make_batch()
    labels = torch.tensor(np.where(batch["weights"] > 0, batch["labels"], -100)).long()
    theirs = bart(
        input_ids=torch.tensor(batch["input_ids"]).long(), attention_mask=torch.tensor(batch["attention_mask"]).long(),
        decoder_input_ids=torch.tensor(batch["decoder_input_ids"]).long(), labels=labels,
    )
    theirs.loss.backward()
    params = tree_of(bart, lambda tensor: tensor.detach().numpy())
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init()), "a part of one model is missing in the other"
    (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)

    real, written = batch["attention_mask"], batch["weights"] > 0
    np.testing.assert_allclose(
        outputs.hidden[real], theirs.encoder_last_hidden_state.detach().numpy()[real], rtol=1e-5, atol=1e-5
    )
    logits = outputs.logits["denoising"]
    np.testing.assert_allclose(logits[written][:, :61], theirs.logits.detach().numpy()[written], rtol=1e-5, atol=1e-5)
    assert (logits[..., 61:] == np.finfo(np.float32).min).all()
    np.testing.assert_allclose(value, theirs.loss.item(), rtol=1e-5)
    wanted = tree_of(bart, lambda tensor: np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy())
    # torch gives the row of the padding piece no gradient from look-ups; that row of ours has what it gives them both.
    for tree in (wanted, gradients):
        tree["embeddings"]["token"] = np.delete(np.asarray(tree["embeddings"]["token"]), 0, axis=0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradients, wanted)


def test_shift_is_that_of_transformers(bart):
    import torch
    from transformers.models.bart.modeling_bart import shift_tokens_right

    batch = make_batch()
    shifted = shift_tokens_right(torch.tensor(batch["labels"]).long(), 0, 3).numpy()
    assert (shifted == batch["decoder_input_ids"]).all()


def moved(batch, place: int) -> tuple[np.ndarray, np.ndarray]:
    """By how much the logits at each place move when the target at ``place`` becomes another piece, and how fast when that
    piece, which nothing else uses, moves in the token table: [B, L] each."""
    params = init()
    changed = {name: values.copy() for name, values in batch.items()}
    changed["labels"][:, place] = 60
    changed["decoder_input_ids"][:, 1:] = changed["labels"][:, :-1]
    table = params["embeddings"]["token"]
    direction = jnp.zeros_like(table).at[60].set(jax.random.normal(jax.random.key(5), table.shape[1:]))

    def logits(table, batch):
        tree = params | {"embeddings": params["embeddings"] | {"token": table}}
        return api.apply(tree, CONFIG, batch, heads=HEADS).logits["denoising"][..., 4:60]

    @jax.jit
    def both(batch):
        return jax.jvp(lambda table: logits(table, batch), (table,), (direction,))

    (before, _), (after, speed) = both(batch), both(changed)
    return np.abs(after - before).max(axis=-1), np.abs(speed).max(axis=-1)


def without_60(batch):
    return {name: np.where(values == 60, 59, values) if name != "weights" else values for name, values in batch.items()}


@pytest.mark.parametrize("place", [0, 6, 12])
def test_a_target_is_unseen_until_it_was_written(place):
    difference, gradient = moved(without_60(make_batch()), place)
    assert (difference[:, : place + 1] == 0).all() and (gradient[:, : place + 1] == 0).all()
    assert (difference[:, place + 1] > 1e-3).all() and (gradient[:, place + 1] > 1e-3).all(), "the change must be felt after"


def test_the_leak_test_can_fail(monkeypatch):
    """With a mask that is off by one, both ways of looking see the leak."""
    exact = jnp.tri
    monkeypatch.setattr(decoder.jnp, "tri", lambda length, dtype: exact(length, k=1, dtype=dtype))
    difference, gradient = moved(without_60(make_batch()), 6)
    assert (difference[:, 6] > 1e-3).all() and (gradient[:, 6] > 1e-3).all()


def test_padding_of_the_encoder_is_unseen():
    batch, params = make_batch(), init()
    apply = jax.jit(lambda batch: api.apply(params, CONFIG, batch, heads=HEADS).logits["denoising"])
    spoilt = batch | {"input_ids": np.where(batch["attention_mask"], batch["input_ids"], 7)}
    assert (spoilt["input_ids"] != batch["input_ids"]).any()
    assert (np.asarray(apply(batch)) == np.asarray(apply(spoilt))).all()
    seen = batch | {"attention_mask": np.ones_like(batch["attention_mask"])}
    assert (np.asarray(apply(seen)) != np.asarray(apply(spoilt)))[1:].any(axis=-1).all(), "unmasked, it would be seen"


@pytest.mark.slow
def test_what_is_computed_again_changes_nothing():
    heads, batch = {"denoising": Decoder(CONFIG, 1)}, make_batch()
    params = init(heads=heads)

    def total(params, config):
        outputs = api.apply(params, config, batch, key=jax.random.key(0), heads={"denoising": Decoder(config, 1)})
        return outputs.logits["denoising"][..., :61].std()

    configs = (CONFIG, dataclasses.replace(CONFIG, remat="full"))
    wanted, found = (jax.jit(jax.value_and_grad(functools.partial(total, config=config)))(params) for config in configs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, wanted)


def test_dropout_is_drawn_anew_everywhere():
    batch, params = make_batch(), init()
    apply = jax.jit(lambda key: api.apply(params, CONFIG, batch, key=key, heads=HEADS))

    def logits(number):
        key = None if number is None else jax.random.key(number)
        return np.asarray(apply(key).logits["denoising"])

    assert (logits(0) == logits(0)).all() and (logits(0) != logits(1)).any(axis=-1).all()
    assert (logits(0) != logits(None)).any(axis=-1).all()


def test_axes_name_every_parameter():
    params, axes = init()["denoising"], api.head_axes(CONFIG, HEADS)["denoising"]
    jax.tree.map(lambda names, array: len(names) == array.ndim or pytest.fail(f"{names} {array.shape}"), axes, params,
                 is_leaf=lambda node: isinstance(node, tuple))
    assert axes["position"] == ("position", "embedding")
    assert axes["layer_0"]["cross_attention"]["query"]["kernel"] == ("model", "heads", "head_width")
