"""The kernels, interpreted, against plain products of matrices; in a model, on a mesh, and lowered for a GPU elsewhere."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models import api, fused_attention
from bert_jax.models import fused_attention_tpu as tpu
from bert_jax.models.config import EncoderConfig
from bert_jax.models.fused_attention_gpu import Cut, Tiles
from bert_jax.parallel.mesh import RULES, MeshConfig, make_mesh
from bert_jax.planning.chips import target

SEED = jnp.asarray([123, 456], jnp.uint32)
SMALL = Cut(*[Tiles(16, 16, 4, 2)] * 4)  # several blocks both ways in short sequences
XLA = EncoderConfig(
    vocab_size=23, embedding_width=32, hidden_width=32, layers=2, heads=2, ffn_width=24, max_length=24, attention="xla",
    with_heads=(),
)
FUSED = dataclasses.replace(XLA, attention="fused")


def draw(queries: int, keys: int, width: int, dtype: str, kind: str, heads: int = 3):
    """Queries, keys, values, a gradient of the context, and a bias of which one row's first query sees nothing."""
    rng = np.random.default_rng(queries)
    arrays = [jnp.asarray(rng.standard_normal((2, n, heads, width)), dtype) for n in (queries, keys, keys, queries)]
    if kind == "padding":
        return *arrays, functional.attention_bias(jnp.arange(keys) < jnp.asarray([[keys // 2], [keys]]))
    if kind == "visibility":
        seen = rng.random((2, queries, keys)) < 0.5
        seen[0, 0] = False
        return *arrays, functional.attention_bias(jnp.asarray(seen))
    return *arrays, jnp.asarray(rng.standard_normal((2, heads, queries, keys)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def with_gradients(query, key, value, gradient, bias, rate, fused, cut=None):
    def context(query, key, value):
        if fused:
            return fused_attention.attention(query, key, value, bias, SEED, rate, None, cut)
        return functional.attention(query, key, value, bias, rate=rate, seed=SEED)[0]

    result, back = jax.vjp(context, query, key, value)
    return result, *back(gradient)


@pytest.mark.parametrize(
    ("queries", "keys", "width", "kind", "rate", "cut"),
    [
        (48, 48, 16, "padding", 0.0, SMALL),
        (48, 32, 16, "padding", 0.1, SMALL),
        (37, 29, 16, "visibility", 0.1, SMALL),
        (13, 40, 32, "heads", 0.5, SMALL),
        (21, 21, 64, "visibility", 0.1, None),
        (70, 70, 32, "padding", 0.1, None),
        (130, 130, 16, "padding", 0.1, None),
    ],
)
def test_equals_plain_products(queries, keys, width, kind, rate, cut):
    given = draw(queries, keys, width, "float32", kind)
    expected = with_gradients(*given, rate, False)
    for name, found, right in zip("cqkv", with_gradients(*given, rate, True, cut), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5, err_msg=name)
        assert float(jnp.abs(right).max()) > 0.1, name


def test_half_precision_is_no_worse_than_plain_products():
    given = draw(37, 29, 32, "bfloat16", "visibility")
    right = with_gradients(*(x.astype(jnp.float32) for x in given), 0.1, False)
    errors = []
    for fused in (True, False):
        found = with_gradients(*given, 0.1, fused)
        assert {x.dtype for x in found} == {jnp.dtype("bfloat16")}
        errors.append([float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
                       for a, b in zip(found, right, strict=True)])
    for ours, plain in zip(*errors, strict=True):
        assert ours < 1.1 * plain < 2e-2


def test_drops_the_same_places():
    """With the unit matrix for values the context is the probabilities, zero where dropped."""
    query, key, _, _, bias = draw(40, 32, 32, "float32", "heads")
    value = jnp.broadcast_to(jnp.eye(32)[None, :, None], (2, 32, 3, 32))
    found = fused_attention.attention(query, key, value, bias, SEED, 0.3, None, SMALL)
    kept = functional.dropout(jnp.ones((2, 3, 40, 32)), 0.3, SEED) > 0
    np.testing.assert_array_equal(found != 0, kept.transpose(0, 2, 1, 3))
    assert 0.25 < 1 - kept.mean() < 0.35


def test_gradient_of_the_bias_is_refused():
    query, key, value, _, bias = draw(16, 16, 16, "float32", "heads")
    with pytest.raises(BertJaxError, match="no gradient of its bias"):
        jax.grad(lambda bias: fused_attention.attention(query, key, value, bias, SEED, 0.1, None, SMALL).sum())(bias)


def random_model():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), jax.eval_shape(lambda: api.init(XLA, jax.random.key(0)))
    )
    mask = np.arange(20) < np.array([20, 11, 16, 3, 20, 20, 7, 12])[:, None]
    return params, {"input_ids": np.int32(rng.integers(0, 23, mask.shape)), "attention_mask": mask}


@functools.partial(jax.jit, static_argnums=2)
def loss_and_gradients(params, batch, config):
    def loss(params):
        hidden = api.apply(params, config, batch, key=jax.random.key(1)).hidden
        return (hidden * jax.random.normal(jax.random.key(3), hidden.shape)).sum()

    return jax.value_and_grad(loss)(params)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


def test_model_trains_alike():
    params, batch = random_model()
    expected = loss_and_gradients(params, batch, XLA)
    for policy in ("elementwise", "full"):
        assert_same(loss_and_gradients(params, batch, dataclasses.replace(FUSED, remat=policy)), expected)


def test_attentions_are_there_when_asked_for():
    params, batch = random_model()
    found, expected = (api.apply(params, config, batch, collect=("attentions",)) for config in (FUSED, XLA))
    np.testing.assert_allclose(found.collected["attentions"], expected.collected["attentions"], atol=1e-5)
    np.testing.assert_allclose(found.hidden, expected.hidden, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 2, 1), (2, 2, 2)])
def test_same_on_a_mesh(sizes):
    """Rows over data and fsdp, heads over tensor: every device drops what it would have dropped alone."""
    params, batch = random_model()
    expected = loss_and_gradients(params, batch, XLA)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:8])
    with jax.set_mesh(mesh), api.sharding_rules(RULES):
        lowered = jax.jit(loss_and_gradients.__wrapped__, static_argnums=2).lower(params, batch, FUSED)
        assert "shard_map" in lowered.as_text(debug_info=True)
        assert_same(jax.device_get(lowered.compile()(params, batch)), expected)


def for_gpu(function, *operands) -> str:
    """The program for an H100. (JAX 0.11 must be told the kind of a device that is not here; before, it assumed that one.)"""
    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    unchecked = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
        return export.export(jax.jit(function), platforms=["cuda"], disabled_checks=unchecked)(*operands).mlir_module()


@pytest.mark.parametrize("length", [128, 512, 77])
def test_lowers_for_gpus(length):
    x = jax.ShapeDtypeStruct((2, length, 2, 64), jnp.bfloat16)
    for rows in (1, length):
        bias = jax.ShapeDtypeStruct((2, 1, rows, length), jnp.float32)
        text = for_gpu(lambda *given: with_gradients(*given, 0.1, True), x, x, x, x, bias)
        assert text.count("@__gpu$xla.gpu.triton") == (2 if length <= 128 else 3)


@pytest.mark.parametrize(
    ("policy", "kernels"), [("masks", 2), ("elementwise", 2), ("attention", 2), ("feed_forward", 2), ("full", 3)]
)
def test_kernel_runs_again_only_under_full(policy, kernels):
    """Forward and backward; what the backward kernel needs of the forward one is kept as ``context`` is."""
    params, batch = random_model()
    config = dataclasses.replace(FUSED, remat=policy)
    text = for_gpu(lambda params: loss_and_gradients(params, batch, config), params)
    assert text.count("@__gpu$xla.gpu.triton") == kernels


def test_auto_is_plain_without_a_gpu():
    params, batch = random_model()
    assert not fused_attention.available()
    auto = dataclasses.replace(XLA, attention="auto", compute_dtype="bfloat16")
    text, plain = (loss_and_gradients.lower(params, batch, dataclasses.replace(auto, attention=kind)).as_text()
                   for kind in ("auto", "xla"))
    assert text == plain


@pytest.mark.parametrize("changes", [{"heads": 4}, {"positions": "relative"}])
def test_what_fused_cannot_is_refused(changes):
    with pytest.raises(BertJaxError, match="encoder.attention=fused needs"):
        dataclasses.replace(FUSED, **changes)


def on_tpu(call, *operands, chip: str = "v5e:2x2") -> jax.stages.Compiled:
    """Compiled for one chip that is not here."""
    pytest.importorskip("libtpu")
    mesh = Mesh(np.array(target(chip).devices[:1]), ("x",))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        return jax.jit(call, in_shardings=whole, out_shardings=whole).lower(*operands).compile()


TPU_SHAPES = [  # queries, keys, heads, width, kind, rate
    (128, 128, 4, 64, "padding", 0.1), (256, 128, 2, 64, "visibility", 0.1), (128, 128, 4, 32, "visibility", 0.0),
    (128, 128, 3, 128, "padding", 0.5),
]


@pytest.mark.parametrize(("queries", "keys", "heads", "width", "kind", "rate"), TPU_SHAPES)
def test_kernels_for_tpus_equal_plain_products(queries, keys, heads, width, kind, rate):
    query, key, value, gradient, bias = draw(queries, keys, width, "float32", kind, heads)
    words, places = fused_attention._places(query, key, SEED, rate)

    def plain(query, key, value):
        return functional.attention(query, key, value, bias, rate=rate, seed=SEED)[0]

    context, *statistics = tpu.forward_call(query, key, value, bias, words, places, rate=rate, interpret=True)
    found = tpu.backward_call(
        query, key, value, bias, words, places, context, *statistics, gradient, rate=rate, interpret=True
    )
    expected, back = jax.vjp(plain, query, key, value)
    for name, one, right in zip("cqkv", (context, *found), (expected, *back(gradient)), strict=True):
        np.testing.assert_allclose(one, right, atol=1e-5, err_msg=name)
        assert float(jnp.abs(right).max()) > 0.1, name


@pytest.mark.tpu_compile
def test_a_tpu_never_holds_the_scores():
    batch, length = 32, 512  # large enough that the scores do not fit into the chip's fast memory
    x = jax.ShapeDtypeStruct((batch, length, 16, 64), jnp.bfloat16)
    for rows in (1, length):
        bias = jax.ShapeDtypeStruct((batch, 1, rows, length), jnp.float32)
        texts, bytes_ = [], []
        for fused in (True, False):
            compiled = on_tpu(lambda *given, fused=fused: with_gradients(*given, 0.1, fused), x, x, x, x, bias)
            texts.append(compiled.as_text())
            bytes_.append(compiled.memory_analysis().temp_size_in_bytes)
        assert texts[0].count("tpu_custom_call") == 2 and "tpu_custom_call" not in texts[1]
        scores = batch * 16 * length * length * 2  # in bfloat16
        assert bytes_[0] < scores < bytes_[1]


@pytest.mark.tpu_compile
@pytest.mark.parametrize(("length", "heads", "said"), [(200, 4, "multiples of 128 up to 512"), (128, 3, "128 lanes")])
def test_what_a_tpu_does_not_take_is_refused(length, heads, said):
    x = jax.ShapeDtypeStruct((2, length, heads, 64), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((2, 1, 1, length), jnp.float32)
    with pytest.raises(BertJaxError, match=f"on a TPU: .*{said}"):
        on_tpu(lambda *given: with_gradients(*given, 0.1, True), x, x, x, x, bias)


def test_several_models_at_once():
    """As seeds that are trained together: each is what it is alone."""
    params, batch = random_model()
    both = jax.tree.map(lambda a: np.stack([a, 0.5 * a]), params)
    for config in (XLA, FUSED):
        found = jax.vmap(lambda params, config=config: loss_and_gradients(params, batch, config))(both)
        for k in range(2):
            assert_same(jax.tree.map(lambda a, k=k: a[k], found),
                        loss_and_gradients(jax.tree.map(lambda a, k=k: a[k], both), batch, XLA))


@pytest.mark.tpu_compile
def test_several_models_at_once_on_a_tpu():
    x = jax.ShapeDtypeStruct((2, 4, 128, 4, 64), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((2, 4, 1, 1, 128), jnp.float32)
    compiled = on_tpu(jax.vmap(lambda *given: with_gradients(*given, 0.1, True)), x, x, x, x, bias)
    assert compiled.as_text().count("tpu_custom_call") == 2
