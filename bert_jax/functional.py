"""The mathematics of an encoder as plain functions on arrays; no parameters, no state, no framework.

Shapes use one legend throughout the package: B batch, L length, M masked positions, D model width, E embedding width,
F feed-forward width, N heads, H head width, V vocabulary, S segments.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, UInt32

Activation = Literal["gelu", "gelu_new", "quick_gelu", "relu", "tanh"]


def activate(x: Float[Array, "..."], form: Activation) -> Float[Array, "..."]:
    """The nonlinearities of BERT-family encoders and heads, computed in float32, result in the dtype of ``x``.

    Three forms of the Gaussian error linear unit (Hendrycks & Gimpel 2016): ``gelu`` is x*Phi(x) through erf,
    ``gelu_new`` the tanh approximation of the TensorFlow originals, ``quick_gelu`` x*sigmoid(1.702 x). They differ by up
    to 0.02, enough to break parity of a converted checkpoint. (In bfloat16, jax.nn.gelu rounds its constants as well, and its
    erfc, more exact in float32, costs XLA for GPUs a kernel of its own.)
    """
    wide = x.astype(jnp.float32)
    match form:
        case "gelu" if x.dtype == jnp.float32:
            result = jax.nn.gelu(x, approximate=False)
        case "gelu":  # to 6e-8, far below the rounding of the result
            result = wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))
        case "gelu_new":
            result = jax.nn.gelu(wide, approximate=True)
        case "quick_gelu":
            result = wide * jax.nn.sigmoid(1.702 * wide)
        case "relu":
            return jax.nn.relu(x)
        case "tanh":
            result = jnp.tanh(wide)
    return result.astype(x.dtype)


def product(x: Float[Array, "R K"], kernel: Float[Array, "K C"], dtype: jnp.dtype) -> Float[Array, "R C"]:
    """``x @ kernel``, multiplied in the dtype of ``x`` (sums in float32), result in ``dtype``.

    The gradient of ``kernel`` is a sum over rows, and so over the devices that share the rows. It is taken in the dtype of
    ``kernel`` as it was given: float32 for a float32 parameter, even where the product itself is bfloat16. (Written plainly,
    ``x @ kernel.astype(x.dtype)``, what devices exchange is rounded to bfloat16 first.) What the backward pass multiplies has
    the dtype of ``x`` as well: of operands of two dtypes, XLA for GPUs makes float32 ones, several times as slow. In bfloat16
    there is no forward-mode derivative.
    """
    if x.dtype == kernel.dtype == jnp.float32:
        return jnp.matmul(x, kernel, preferred_element_type=dtype)
    return _product(x, kernel, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, dtype):
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)


def _product_forward(x, kernel, dtype):
    return _product(x, kernel, dtype), (x, kernel)


def _product_backward(dtype, kept, gradient):
    x, kernel = kept
    gradient = gradient.astype(x.dtype)
    by_x = jax.lax.dot_general(gradient, kernel.astype(x.dtype), (((1,), (1,)), ((), ())))
    return by_x, jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """Layer normalisation over the last axis (Ba et al. 2016), statistics in float32, result in the dtype of ``x``."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)
    centred = x32 - mean
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def dropout(
    x: Float[Array, "B *rest"], rate: float, seed: UInt32[Array, "2"] | None, first: int = 0
) -> Float[Array, "B *rest"]:
    """Inverted dropout (Srivastava et al. 2014). ``seed=None`` or rate 0 returns ``x`` unchanged.

    The rate is exact to 2**-32, and the scale uses the rate that is really applied. ``first``: which row of a batch the first
    row of ``x`` is.
    """
    if seed is None or rate == 0.0:
        return x
    threshold = keep_threshold(rate)
    keep = random_bits(seed, x.shape, first) < np.uint32(threshold)
    scaled = (x.astype(jnp.float32) * (2**32 / threshold)).astype(x.dtype)  # bfloat16 has no 1/0.9, only 1.109
    return jnp.where(keep, scaled, jnp.zeros((), x.dtype))


def keep_threshold(rate: float) -> int:
    """What is kept by :func:`dropout`: places whose bits are below this; of rates within 2**-33 of 0 or 1, some is dropped and
    some kept all the same."""
    return min(max(round((1.0 - rate) * 2**32), 1), 2**32 - 1)


def random_bits(
    seed: UInt32[Array, "2"] | UInt32[Array, "B 2"], shape: tuple[int, ...], first: int = 0
) -> UInt32[Array, "..."]:
    """32 random bits for every element: a hash of (seed, place), two multiplications an element. Rows are counted from
    ``first``. With a seed for every row (``seed`` [B, 2]) a row's bits depend on its seed alone, not on where the row stands.

    This serves dropout, which needs masks that look random and cost nothing: bits that depend on nothing but the place are the
    same on every mesh, are made where they are used, and are made again in the backward pass rather than kept. The key of
    jax.random's default generator would cost five times the arithmetic; its fast ones (rbg) make the bits of the whole
    array on every device, or other bits on another mesh. Rows (axis 0) have a pair of words of their own each, hashed twice;
    within a row, places are counted modulo 2**32. The mixer is lowbias32 of Chris Wellons' hash-prospector, keyed a second time
    between its multiplications.
    """
    rows, *rest = shape
    first, second = (words.reshape(rows, *(1 for _ in rest)) for words in row_words(seed, rows, first))
    place = jnp.zeros((1, *rest), jnp.uint32)
    for axis in range(len(rest)):
        stride = math.prod(rest[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis + 1) * jnp.uint32(stride)
    return mix(place ^ first, second)


def row_words(
    seed: UInt32[Array, "2"] | UInt32[Array, "B 2"], rows: int, first: int = 0
) -> tuple[UInt32[Array, " B"], UInt32[Array, " B"]]:
    """What :func:`random_bits` knows of each row: its bits at a place are ``mix(place ^ first word, second word)``."""
    number = jnp.zeros((), jnp.uint32) if seed.ndim == 2 else jax.lax.iota(jnp.uint32, rows) + np.uint32(first)
    word = mix(number * np.uint32(0x9E3779B9) + seed[..., 0])
    before = mix(word ^ seed[..., 1])
    return before, mix(before + word)


def fold(seed: UInt32[Array, "*n 2"], number: Int[Array, "*m"] | int) -> UInt32[Array, "*k 2"]:
    """A seed of its own for every ``number``: layers, places within a layer, rows of a batch. Seeds and numbers broadcast."""
    first = mix(jnp.asarray(number).astype(jnp.uint32) * jnp.uint32(0x9E3779B9) ^ seed[..., 0])
    return jnp.stack([first, mix(first + seed[..., 1])], axis=-1)


def uniform(seeds: UInt32[Array, "B 2"], shape: tuple[int, ...]) -> Float[Array, "B *rest"]:
    """Float32 in [0, 1), multiples of 2**-24, a function of each row's seed: what corruption of a batch draws from."""
    return (random_bits(seeds, shape) >> 8).astype(jnp.float32) * 2.0**-24


def integers(seeds: UInt32[Array, "B 2"], shape: tuple[int, ...], limit: Int[Array, "..."] | int) -> Int[Array, "B *rest"]:
    """Int32 from 0 to below ``limit`` (>= 1; broadcasts), a function of each row's seed, the bias below limit / 2**32."""
    return (random_bits(seeds, shape) % jnp.asarray(limit).astype(jnp.uint32)).astype(jnp.int32)


def mix(x: UInt32[Array, "..."], between: UInt32[Array, "..."] | int = 0) -> UInt32[Array, "..."]:
    """The mixer of :func:`random_bits`. (Its constants are NumPy's, because a Pallas kernel may capture no array of JAX.)"""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = ((x ^ (x >> 15)) + between) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def attention_bias(mask: Bool[Array, "B L"] | Bool[Array, "B L L"]) -> Float[Array, "B 1 Q L"]:
    """Additive attention bias: 0 where a query may look, the most negative float32 where it may not.

    ``mask`` [B, L] says which keys are real; [B, L, L] says for every query which keys it sees. The value is finite, so
    a row that sees nothing yields a uniform distribution instead of NaN.
    """
    mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)


def block_diagonal(example_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Which keys each query of a row of several examples sees: the real ones of its own example (Krell et al. 2021)."""
    return (example_ids[:, :, None] == example_ids[:, None, :]) & mask[:, None, :]


def attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    bias: Float[Array, "B #N #Q L"],
    *,
    rate: float = 0.0,
    seed: UInt32[Array, "2"] | None = None,
    pieces: int = 1,
) -> tuple[Float[Array, "B Q N H"], Float[Array, "B N Q L"]]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), softmax in float32.

    Args:
      rate, seed: of dropout, none without a seed.
      pieces: that the batch is cut into, whose results are the same to rounding: on a processor several are faster.

    Returns:
      The context in the dtype of ``value`` and the probabilities before dropout, float32.
    """
    if pieces == 1:  # as it is: even a split into one part would be an operation on the rows, which may be sharded
        scores = _scores(query, key, bias)
        return _context(scores, value, rate, seed, 0), jax.nn.softmax(scores, axis=-1)
    contexts, first = [], 0
    for rows in zip(*(jnp.array_split(a, pieces) for a in (query, key, value, bias)), strict=True):
        some_query, some_key, some_value, some_bias = rows
        contexts.append(_context(_scores(some_query, some_key, some_bias), some_value, rate, seed, first))
        first += some_query.shape[0]
    return jnp.concatenate(contexts), attention_probabilities(query, key, bias)


def _context(
    scores: Float[Array, "B N Q L"], value: Float[Array, "B L N H"], rate: float, seed: UInt32[Array, "2"] | None, first: int
) -> Float[Array, "B Q N H"]:
    dropped = dropout(_softmax(scores, value.dtype), rate, seed, first)
    return jnp.einsum("bnql,blnh->bqnh", dropped, value)


def attention_probabilities(
    query: Float[Array, "B Q N H"], key: Float[Array, "B L N H"], bias: Float[Array, "B #N #Q L"]
) -> Float[Array, "B N Q L"]:
    """The second result of :func:`attention` alone, float32."""
    return jax.nn.softmax(_scores(query, key, bias), axis=-1)


def _scores(
    query: Float[Array, "B Q N H"], key: Float[Array, "B L N H"], bias: Float[Array, "B #N #Q L"]
) -> Float[Array, "B N Q L"]:
    scale = query.shape[-1] ** -0.5
    return jnp.einsum("bqnh,blnh->bnql", query * scale, key, preferred_element_type=jnp.float32) + bias


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(scores: Float[Array, "*b L"], dtype: jnp.dtype) -> Float[Array, "*b L"]:
    """Softmax in float32, given in ``dtype``; that result is all that its derivative needs kept."""
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


@_softmax.defjvp
def _softmax_jvp(dtype, primals, tangents):
    result = checkpoint_name(jax.nn.softmax(primals[0], axis=-1).astype(dtype), "probabilities")
    probabilities, tangent = result.astype(jnp.float32), tangents[0]
    tangent = probabilities * (tangent - (probabilities * tangent).sum(axis=-1, keepdims=True))
    return result, tangent.astype(dtype)


def gather_positions(x: Float[Array, "B L D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Rows of ``x`` at ``positions``; positions must lie in [0, L)."""
    return jnp.take_along_axis(x, positions[:, :, None], axis=1, mode="promise_in_bounds")


def score_labels(
    logits: Float[Array, "... V"], labels: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """Negative log likelihood of ``labels`` in nats (float32), and whether the label has the largest logit.

    Both come from the maximum that the softmax needs anyway; an argmax over a vocabulary costs more than the softmax on
    CPU. A tie for the largest counts as right. A label of -1 is read as 0: weight it with zero.

    The label's logit is found by comparing places, not by indexing: where V is sharded, every device then looks through its own
    part and sums are exchanged, never logits (Shoeybi et al. 2019, Megatron-LM, section 3).
    """
    logits = logits.astype(jnp.float32)
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = jnp.where(places == jnp.maximum(labels, 0)[..., None], logits, 0.0).sum(axis=-1)
    largest = jax.lax.stop_gradient(logits.max(axis=-1))
    log_total = jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1)) + largest
    return log_total - chosen, chosen >= largest
