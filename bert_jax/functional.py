"""The mathematics of an encoder as plain functions on arrays; no parameters, no state, no framework.

Shapes use one legend throughout the package: B batch, L length, M masked positions, D model width, E embedding width,
F feed-forward width, N heads, H head width, V vocabulary, S segments.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Activation = Literal["gelu", "gelu_new", "quick_gelu", "relu", "tanh"]


def activate(x: Float[Array, "..."], form: Activation) -> Float[Array, "..."]:
    """The nonlinearities of BERT-family encoders and heads.

    Three forms of the Gaussian error linear unit (Hendrycks & Gimpel 2016): ``gelu`` is x*Phi(x) through erf,
    ``gelu_new`` the tanh approximation of the TensorFlow originals, ``quick_gelu`` x*sigmoid(1.702 x). They differ by up
    to 0.02, enough to break parity of a converted checkpoint.
    """
    match form:
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_new":
            return jax.nn.gelu(x, approximate=True)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu":
            return jax.nn.relu(x)
        case "tanh":
            return jnp.tanh(x)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """Layer normalisation over the last axis (Ba et al. 2016), statistics in float32, result in the dtype of ``x``."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)
    centred = x32 - mean
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Inverted dropout (Srivastava et al. 2014). ``key=None`` or rate 0 returns ``x`` unchanged.

    The mask compares 16 random bits per element with the keep probability, which halves the cost of drawing; the rate
    is exact to 2**-16 and the scale uses the rate that is really applied, so the expectation is exact.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round((1.0 - rate) * 2**16)
    keep = jax.random.bits(key, x.shape, jnp.uint16) < jnp.uint16(threshold)
    return jnp.where(keep, x * (2**16 / threshold), jnp.zeros((), x.dtype)).astype(x.dtype)


def attention_bias(mask: Bool[Array, "B L"] | Bool[Array, "B L L"]) -> Float[Array, "B 1 Q L"]:
    """Additive attention bias: 0 where a query may look, the most negative float32 where it may not.

    ``mask`` [B, L] says which keys are real; [B, L, L] says for every query which keys it sees. The value is finite, so
    a row that sees nothing yields a uniform distribution instead of NaN.
    """
    mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)


def attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    bias: Float[Array, "B #1 #Q L"],
    *,
    rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B Q N H"], Float[Array, "B N Q L"]]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), softmax in float32.

    Returns:
      The context in the dtype of ``value`` and the probabilities before dropout, float32.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bqnh,blnh->bnql", query * scale, key, preferred_element_type=jnp.float32)
    probabilities = jax.nn.softmax(scores + bias, axis=-1)
    dropped = dropout(probabilities.astype(value.dtype), rate, dropout_key)
    return jnp.einsum("bnql,blnh->bqnh", dropped, value), probabilities


def gather_positions(x: Float[Array, "B L D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Rows of ``x`` at ``positions``; positions must lie in [0, L)."""
    return jnp.take_along_axis(x, positions[:, :, None], axis=1, mode="promise_in_bounds")


def score_labels(
    logits: Float[Array, "... V"], labels: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """Negative log likelihood of ``labels`` in nats (float32), and whether the label has the largest logit.

    Both come from the maximum that the softmax needs anyway; an argmax over a vocabulary costs more than the softmax on
    CPU. A tie for the largest counts as right. A label of -1 is read as 0: weight it with zero.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    largest = jax.lax.stop_gradient(logits.max(axis=-1))
    log_total = jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1)) + largest
    return log_total - chosen, chosen >= largest
