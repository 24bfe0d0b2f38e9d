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
    coarse = jnp.asarray(x).astype(jnp.bfloat16)  # only the result is rounded to eight bits, no constant on the way
    found = checked.activate(coarse, form)
    assert found.dtype == jnp.bfloat16
    exact = np.array([GELUS[form](float(v)) for v in coarse])
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2.0**-8, atol=2e-6)


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


SEED = jnp.asarray([123, 456], jnp.uint32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_rate_and_expectation(rate):
    n = 400_000
    x = jnp.ones((4, n // 4))
    y = np.asarray(checked.dropout(x, rate, SEED))
    dropped = (y == 0).mean()
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    kept = np.unique(y[y != 0])
    np.testing.assert_allclose(kept, [1 / (1 - rate)], rtol=1e-6)
    np.testing.assert_allclose(y.mean(), 1.0, atol=5 * math.sqrt(rate / (1 - rate) / n))


@pytest.mark.parametrize("rate", [1e-10, 1e-12, 1 - 2**-34, 1 - 1e-16])
def test_rates_beside_none_and_all(rate):
    """They round to thresholds that 32 bits do not hold, or to a division by nothing."""
    y = np.asarray(checked.dropout(jnp.ones((64, 64)), rate, SEED))
    assert np.isfinite(y).all() and (y == (0 if rate > 0.5 else 1)).all()


def test_dropout_keeps_the_expectation_in_bfloat16():
    """Numbers that are rounded as often up as down; 1 / 0.9 itself, rounded, made all of them a six-hundredth smaller."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (64, 4096)), jnp.bfloat16)
    y = np.asarray(checked.dropout(x, 0.1, SEED), np.float64)
    kept = y != 0
    assert np.mean(y[kept] / np.asarray(x, np.float64)[kept]) == pytest.approx(1 / 0.9, rel=3e-4)


def test_dropout_is_a_function_of_its_seed():
    x = jnp.asarray(normal(64, 64))
    a, b = (checked.dropout(x, 0.5, SEED + i) for i in (0, 1))
    np.testing.assert_array_equal(a, checked.dropout(x, 0.5, SEED))
    agreement = ((a == 0) == (b == 0)).mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / 64
    np.testing.assert_array_equal(checked.dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(checked.dropout(x, 0.0, SEED), x)
    half = checked.dropout(x.astype(jnp.bfloat16), 0.1, SEED)
    assert half.dtype == jnp.bfloat16


def test_dropout_passes_gradients_where_it_kept():
    x = jnp.asarray(normal(100, 3))
    gradient = jax.grad(lambda x: functional.dropout(x, 0.5, SEED).sum())(x)
    np.testing.assert_array_equal(gradient == 0, functional.dropout(x, 0.5, SEED) == 0)


SHAPE = (16, 3, 32, 256)


def sources_of_bits():
    """Bits of two places each that a weak hash would make alike: neighbours along every axis, seeds that differ in one bit of
    either word, numbers that follow each other, and the two places of a layer."""
    bits = np.asarray(functional.random_bits(SEED, SHAPE))
    for axis in range(4):
        for lag in (1, 2, 3, 8):
            if lag < SHAPE[axis]:
                ahead = np.take(bits, np.arange(lag, SHAPE[axis]), axis)
                yield f"axis {axis} lag {lag}", np.take(bits, np.arange(SHAPE[axis] - lag), axis), ahead
    yield "rows, shifted", bits[:-1, :, :, 1:], bits[1:, :, :, :-1]
    for word in (0, 1):
        for bit in (0, 1, 7, 16, 31):
            other = SEED.at[word].set(SEED[word] ^ jnp.uint32(2**bit))
            yield f"seed word {word} bit {bit}", bits, np.asarray(functional.random_bits(other, SHAPE))
    folded = [np.asarray(functional.random_bits(seed, SHAPE)) for seed in functional.fold(SEED, jnp.arange(4))]
    for number in range(3):
        yield f"fold {number}", folded[number], folded[number + 1]
    yield "fold of fold", *(
        np.asarray(functional.random_bits(functional.fold(functional.fold(SEED, a), b), SHAPE)) for a, b in ((0, 1), (1, 0))
    )


def test_random_bits_look_random():
    """Every bit is set half of the time; masks at 10% and 50% of places that ought not to know each other agree as often as
    chance has it; and the bytes of the values are uniform."""
    for name, one, other in sources_of_bits():
        n = one.size
        for bit in range(32):
            share = ((one >> bit) & 1).mean(dtype=np.float64)
            assert abs(share - 0.5) < 5.5 * 0.5 / math.sqrt(n), (name, bit)
        for rate in (0.1, 0.5):
            cut = np.uint32(rate * 2**32)
            both = ((one < cut) & (other < cut)).mean(dtype=np.float64)
            deviation = math.sqrt(rate**2 * (1 - rate**2) / n)
            assert abs(both - rate**2) < 5.5 * deviation, (name, rate, both)
        for shift in (0, 8, 16, 24):
            counts = np.bincount(((one >> shift) & 255).ravel(), minlength=256)
            chi = ((counts - n / 256) ** 2 / (n / 256)).sum()
            assert 255 - 6 * math.sqrt(2 * 255) < chi < 255 + 6 * math.sqrt(2 * 255), (name, shift, chi)


def test_random_bits_do_not_repeat_between_rows():
    """Rows have streams of their own: no two share more values than chance allows, whatever the shift."""
    rows, n = 64, 65_536
    values = np.sort(np.asarray(functional.random_bits(SEED, (rows, n))).ravel())
    repeated = (values[1:] == values[:-1]).sum()
    expected = (rows * n) ** 2 / 2 / 2**32
    assert abs(repeated - expected) < 6 * math.sqrt(expected)


def test_seeds_of_many_numbers_differ():
    seeds = np.asarray(functional.fold(SEED, jnp.arange(200_000)))
    assert len(np.unique(seeds, axis=0)) == len(seeds)


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
        q, q, values, jnp.zeros((1, 1, 1, 50)), rate=0.5, seed=SEED
    )
    np.testing.assert_allclose(probabilities, np.full((1, 1, 50, 50), 0.02), rtol=1e-6)  # as they were
    assert set(np.unique(np.round(context, 6))) == {np.float32(0), np.float32(0.04)}
    assert abs((context == 0).mean() - 0.5) < 5 * 0.5 / 50


@pytest.mark.parametrize("pieces", [2, 4, 5])
def test_attention_in_pieces_is_the_same(pieces):
    q, k, v = (jnp.asarray(normal(5, 6, 2, 8, seed=seed)) for seed in range(3))  # 5 rows: pieces of different sizes
    bias = checked.attention_bias(jnp.asarray(np.random.default_rng(3).random((5, 6, 6)) < 0.7))

    def loss(q, k, v, bias, pieces):
        context, probabilities = checked.attention(q, k, v, bias, rate=0.4, seed=SEED, pieces=pieces)
        return (context * normal(*context.shape, seed=4)).sum(), (context, probabilities)

    values = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    for found, expected in zip(jax.tree.leaves(values(q, k, v, bias, pieces)), jax.tree.leaves(values(q, k, v, bias, 1)),
                               strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [1, 3])
def test_whole_attention_does_not_touch_the_order_of_rows(pieces):
    q = jnp.zeros((5, 6, 2, 8))
    program = jax.make_jaxpr(lambda q: functional.attention(q, q, q, jnp.zeros((5, 1, 1, 6)), pieces=pieces))(q)
    assert ("split[" in str(program), "concatenate[" in str(program)) == (pieces > 1,) * 2


def test_dropout_counts_rows_from_the_first():
    x = jnp.ones((7, 50))
    whole = checked.dropout(x, 0.5, SEED)
    np.testing.assert_array_equal(checked.dropout(x[3:5], 0.5, SEED, 3), whole[3:5])
    assert (checked.dropout(x[3:5], 0.5, SEED) != whole[3:5]).any()


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


def test_product_sums_the_gradient_of_a_kernel_in_its_own_dtype():
    """In bfloat16, the gradient of a float32 kernel over many rows keeps what bfloat16 would round away."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (512, 8), jnp.bfloat16)
    kernel, weight = jax.random.normal(keys[1], (8, 4)), jax.random.normal(keys[2], (512, 4), jnp.bfloat16)

    def gradient(product):
        return jax.grad(lambda k: (product(x, k) * weight).sum(dtype=jnp.float32))(kernel)

    def plain(x, kernel):
        return x @ kernel.astype(x.dtype)

    def ours(x, kernel):
        return functional.product(x, kernel, jnp.dtype("bfloat16"))

    np.testing.assert_array_equal(ours(x, kernel), plain(x, kernel))
    exact = x.astype(jnp.float32).T @ weight.astype(jnp.float32)
    np.testing.assert_allclose(gradient(ours), exact, rtol=1e-5, atol=1e-4)
    assert np.abs(gradient(plain) - exact).max() > 0.01
    by_x, plain_by_x = (jax.grad(lambda x: (f(x, kernel) * weight).sum(dtype=jnp.float32))(x) for f in (ours, plain))  # noqa: B023
    np.testing.assert_array_equal(by_x, plain_by_x)
    text = jax.jit(jax.grad(lambda x, k: ours(x, k).astype(jnp.float32).sum(), (0, 1))).lower(x, kernel).as_text()
    products = [line.split(" : ")[-1] for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2 and all(line.split("->")[0].count("bf16") == 2 for line in products), "no operand is widened"
    single = x.astype(jnp.float32)
    tangent = jax.jvp(lambda k: functional.product(single, k, jnp.dtype("float32")), (kernel,), (kernel,))[1]
    np.testing.assert_allclose(tangent, single @ kernel, rtol=1e-6)  # linear in the kernel; in float32 forward mode works
    assert functional.product(x, kernel, jnp.dtype("float32")).dtype == jnp.float32
