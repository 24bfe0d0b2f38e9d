"""The plain mathematics against NumPy in float64 and closed forms; every call has its shapes and dtypes checked."""

import math
import types

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from bert_jax import functional

# The same functions, refusing arguments and results that are not what their annotations say.
checked = types.SimpleNamespace(
    **{
        name: jaxtyping.jaxtyped(typechecker=beartype.beartype)(function)
        for name, function in vars(functional).items()
        if isinstance(function, types.FunctionType)
    }
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_annotations_are_enforced():
    refused = (jaxtyping.TypeCheckError, beartype.roar.BeartypeCallHintViolation)
    q = jnp.zeros((2, 3, 1, 4))
    with pytest.raises(refused):
        checked.attention(q, q[..., :2], q, jnp.zeros((2, 1, 1, 3)))
    with pytest.raises(refused):
        checked.layer_norm(jnp.zeros((2, 4)), jnp.zeros(3), jnp.zeros(4), 1e-12)
    with pytest.raises(refused):
        checked.score_labels(jnp.zeros((2, 4)), jnp.zeros((2,)))


GELUS = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


@pytest.mark.parametrize("form", GELUS)
def test_gelu(form):
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    expected = [GELUS[form](float(v)) for v in x]
    np.testing.assert_allclose(checked.activate(jnp.asarray(x), form), expected, atol=2e-6)
    assert checked.activate(jnp.zeros(3, jnp.bfloat16), form).dtype == jnp.bfloat16


def test_gelu_forms_differ():
    x = jnp.linspace(-4, 4, 201)
    values = {form: functional.activate(x, form) for form in GELUS}
    assert 1e-4 < np.abs(values["gelu"] - values["gelu_new"]).max() < 1e-3
    assert 1e-2 < np.abs(values["gelu"] - values["quick_gelu"]).max() < 3e-2


def test_layer_norm():
    x, scale, bias = 3 * normal(2, 5, 16) + 100, normal(16, seed=1), normal(16, seed=2)

    def reference(x, eps):
        x = np.float64(x)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + bias

    for eps in (1e-12, 0.5):
        found = checked.layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), eps)
        np.testing.assert_allclose(found, reference(x, eps), atol=5e-5)
    constant = checked.layer_norm(jnp.full((2, 16), 7.0), jnp.asarray(scale), jnp.asarray(bias), 1e-12)
    np.testing.assert_allclose(constant, np.broadcast_to(bias, (2, 16)), atol=1e-6)


def test_layer_norm_of_bfloat16_has_float32_statistics():
    half = jnp.asarray(normal(4, 256) + 30, jnp.bfloat16)
    ones, zeros = jnp.ones(256), jnp.zeros(256)
    found = checked.layer_norm(half, ones, zeros, 1e-12)
    assert found.dtype == jnp.bfloat16
    x = np.float64(half)
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    # Only the result is rounded: half a unit in the last place of bfloat16 is 2**-9.
    np.testing.assert_allclose(np.float64(found), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_rate_and_expectation(rate):
    n = 400_000
    x = jnp.ones(n)
    y = np.asarray(checked.dropout(x, rate, jax.random.key(0)))
    dropped = (y == 0).mean()
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / n) + 2**-16
    kept = np.unique(y[y != 0])
    np.testing.assert_allclose(kept, [1 / (1 - rate)], rtol=1e-3)
    np.testing.assert_allclose(y.mean(), 1.0, atol=5 * math.sqrt(rate / (1 - rate) / n))


def test_dropout_is_a_function_of_its_key():
    x = jnp.asarray(normal(64, 64))
    a, b = (checked.dropout(x, 0.5, jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(a, checked.dropout(x, 0.5, jax.random.key(0)))
    agreement = ((a == 0) == (b == 0)).mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / 64
    np.testing.assert_array_equal(checked.dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(checked.dropout(x, 0.0, jax.random.key(0)), x)
    half = checked.dropout(x.astype(jnp.bfloat16), 0.1, jax.random.key(0))
    assert half.dtype == jnp.bfloat16


def test_dropout_passes_gradients_where_it_kept():
    x, key = jnp.asarray(normal(100)), jax.random.key(0)
    gradient = jax.grad(lambda x: functional.dropout(x, 0.5, key).sum())(x)
    np.testing.assert_array_equal(gradient == 0, functional.dropout(x, 0.5, key) == 0)


def test_attention_bias():
    mask = np.array([[True, True, False], [False, False, False]])
    bias = checked.attention_bias(jnp.asarray(mask))
    assert bias.shape == (2, 1, 1, 3) and bias.dtype == jnp.float32
    assert (bias[:, 0, 0] == np.where(mask, 0, np.finfo(np.float32).min)).all()
    pairs = np.random.default_rng(0).random((2, 3, 3)) < 0.5
    assert (checked.attention_bias(jnp.asarray(pairs))[:, 0] == np.where(pairs, 0, np.finfo(np.float32).min)).all()
    assert np.isfinite(bias).all()


def test_attention():
    q, k, v = normal(2, 4, 3, 8), normal(2, 6, 3, 8, seed=1), normal(2, 6, 3, 8, seed=2)
    mask = np.random.default_rng(3).random((2, 4, 6)) < 0.6
    mask[:, :, 0] = True
    bias = jnp.where(jnp.asarray(mask)[:, None], 0.0, jnp.finfo(jnp.float32).min)
    context, probabilities = checked.attention(*map(jnp.asarray, (q, k, v)), bias)
    for b in range(2):
        for head in range(3):
            scores = np.float64(q[b, :, head]) @ np.float64(k[b, :, head]).T / math.sqrt(8)
            expected = softmax(np.where(mask[b], scores, -np.inf))
            np.testing.assert_allclose(probabilities[b, head], expected, atol=1e-6)
            np.testing.assert_allclose(context[b, :, head], expected @ v[b, :, head], atol=1e-5)
    assert (np.asarray(probabilities)[~np.broadcast_to(mask[:, None], probabilities.shape)] == 0).all()


def test_attention_with_nothing_to_see_is_uniform():
    q = jnp.asarray(normal(1, 3, 2, 4))
    _, probabilities = checked.attention(q, q, q, checked.attention_bias(jnp.zeros((1, 3), bool)))
    np.testing.assert_allclose(probabilities, np.full((1, 2, 3, 3), 1 / 3), atol=1e-6)


def test_attention_in_bfloat16_keeps_float32_probabilities():
    q = jnp.asarray(normal(1, 16, 2, 8), jnp.bfloat16)
    context, probabilities = checked.attention(q, q, q, jnp.zeros((1, 1, 1, 16)))
    assert context.dtype == jnp.bfloat16 and probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-6)


def test_attention_drops_probabilities_after_the_softmax():
    q = jnp.zeros((1, 50, 1, 50))
    values = jnp.eye(50)[None, :, None, :]
    context, probabilities = checked.attention(
        q, q, values, jnp.zeros((1, 1, 1, 50)), rate=0.5, dropout_key=jax.random.key(0)
    )
    np.testing.assert_allclose(probabilities, np.full((1, 1, 50, 50), 0.02), rtol=1e-6)  # as they were
    assert set(np.unique(np.round(context, 6))) == {np.float32(0), np.float32(0.04)}
    assert abs((context == 0).mean() - 0.5) < 5 * 0.5 / 50


def test_gather_positions():
    x = normal(2, 5, 3)
    positions = np.array([[4, 0, 0, 2], [1, 1, 3, 4]])
    found = checked.gather_positions(jnp.asarray(x), jnp.asarray(positions))
    np.testing.assert_array_equal(found, np.stack([x[b, positions[b]] for b in range(2)]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_score_labels(dtype):
    logits = jnp.asarray(10 * normal(4, 6, 9), dtype)
    labels = np.random.default_rng(1).integers(0, 9, (4, 6))
    losses, right = checked.score_labels(logits, jnp.asarray(labels))
    probabilities = softmax(np.float64(logits))
    expected = -np.log(np.take_along_axis(probabilities, labels[..., None], -1)[..., 0])
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=1e-6)
    np.testing.assert_array_equal(right, np.float64(logits).argmax(-1) == labels)
    assert 0 < right.sum() < right.size


def test_score_labels_at_the_extremes():
    smallest = float(jnp.finfo(jnp.float32).min)
    logits = jnp.array([[1e4, -1e4, smallest], [0.0, 0.0, smallest], [3.0, 1.0, 2.0]])
    losses, right = checked.score_labels(logits, jnp.array([1, 1, -1]))
    np.testing.assert_allclose(losses[:2], [2e4, math.log(2)], rtol=1e-6)
    assert right.tolist() == [False, True, True]  # a tie counts as right; label -1 is read as 0
    gradient = jax.grad(lambda logits: functional.score_labels(logits, jnp.array([1, 1, 0]))[0].sum())(logits)
    expected = softmax(np.float64(logits)) - np.eye(3)[[1, 1, 0]]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
