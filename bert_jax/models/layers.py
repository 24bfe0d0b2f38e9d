"""One layer of a post-LN encoder (Devlin et al. 2019; ALBERT reuses it unchanged), as Linen modules without state.

Every parameter carries logical axis names; which of them are sharded is decided by a table in ``parallel``. Dropout takes
an explicit seed, so a module is a pure function of (parameters, inputs, seed); ``seed=None`` means inference.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt32

from bert_jax import functional
from bert_jax.models import fused_attention
from bert_jax.models.config import FUSED_WIDTHS, EncoderConfig

MANY_SCORES = 2**18  # of one layer: from here on cutting them into pieces pays for the longer compilation
LOW_RANK = ("query", "value")  # the maps of attention that ``lora_rank`` changes (Hu et al. 2021)


def truncated_normal(std: float, axes: tuple[str | None, ...]):
    """Initialiser of the original: normal cut at two deviations and not rescaled (tf.truncated_normal_initializer)."""
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(std), axes)


def constant(value: float, axes: tuple[str | None, ...]):
    """Initialiser for biases (0) and layer-norm scales (1)."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), axes)


class Dense(nn.Module):
    """An affine map (a linear one without ``bias``) over the last ``inputs`` axes to axes of sizes ``features``; ``axes`` names
    those of the kernel.

    (Linen's DenseGeneral initialises a flattened kernel, to which logical axis names cannot be attached under a mesh.)
    """

    config: EncoderConfig
    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        shape = x.shape[-self.inputs :] + self.features
        kernel = self.param("kernel", truncated_normal(self.config.init_std, self.axes), shape, jnp.float32)
        dtype, rows = jnp.dtype(self.config.compute_dtype), x.shape[: -self.inputs]
        # As one product of two matrices: XLA:CPU differentiates that twice as fast as a product of higher rank.
        kernel = kernel.reshape(-1, math.prod(self.features))
        # Named once more, because XLA:TPU scatters the sum of gradients of a matrix, but not of an array of three axes.
        kernel = nn.with_logical_constraint(kernel, (self.axes[0], self.axes[self.inputs]))
        x = x.astype(dtype).reshape(math.prod(rows), -1)
        flat = functional.product(x, kernel, dtype)
        if self.has_variable("params", "down"):  # of a :class:`LowRank` with this map's name, put beside the kernel
            down, up = self.get_variable("params", "down"), self.get_variable("params", "up")
            change = functional.product(functional.product(x, down, dtype), up.reshape(up.shape[0], -1), dtype)
            flat += change * (self.config.lora_alpha / self.config.lora_rank)
        result = flat.reshape(*rows, *self.features)
        if self.bias:  # added in float32, in which its gradient is then summed
            bias = self.param("bias", constant(0.0, self.axes[self.inputs :]), self.features, jnp.float32)
            result = (result.astype(jnp.float32) + bias).astype(dtype)
        return checkpoint_name(result, self.name)


class LowRank(nn.Module):
    """Parameters that change the maps of queries and values (Hu et al. 2021): by name of the map, ``down`` [D, r]
    as in their code (uniform within 1 / sqrt(D)), and ``up`` [r, N, H], which begins with 0. :class:`Dense` applies them."""

    config: EncoderConfig

    @nn.compact
    def __call__(self) -> None:
        for name in LOW_RANK:
            _Factors(self.config, name=name)()


class _Factors(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self) -> None:
        config, rank = self.config, self.config.lora_rank
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        down = nn.with_logical_partitioning(uniform, ("model", None))
        self.param("down", down, (config.hidden_width, rank), jnp.float32)
        up = constant(0.0, (None, "heads", "head_width"))
        self.param("up", up, (rank, config.heads, config.head_width), jnp.float32)


class LayerMix(nn.Module):
    """scale * sum_k softmax(weights)_k * states_k (Peters et al. 2018, equation 1). [K, B, L, D] -> [B, L, D], in the dtype of
    the states. ``weights`` [K] begin with 0, ``scale`` [] with 1, as in the reference (AllenNLP's ScalarMix)."""

    @nn.compact
    def __call__(self, states: Float[Array, "K B L D"]) -> Float[Array, "B L D"]:
        weights = self.param("weights", constant(0.0, (None,)), (states.shape[0],), jnp.float32)
        scale = self.param("scale", constant(1.0, ()), (), jnp.float32)
        return (scale * jnp.einsum("k,kbld->bld", nn.softmax(weights), states.astype(jnp.float32))).astype(states.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation with float32 statistics; parameters ``scale`` and ``bias`` [width]."""

    eps: float
    axis: str = "model"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", constant(1.0, (self.axis,)), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", constant(0.0, (self.axis,)), (x.shape[-1],), jnp.float32)
        return functional.layer_norm(x, scale, bias, self.eps)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its residual connection and layer norm; with ``memory``, attention to those states.

    Keys are the first K states, as many as ``bias`` has. Returns the new hidden states [B, Q, D] and ``{"queries":
    [B, Q, N, H], "keys", "values": [B, K, N, H], "attentions": [B, N, Q, K]}``; what the caller does not use is never computed.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q D"], bias: Float[Array, "B 1 #Q K"], seed: UInt32[Array, "2"] | None,
        memory: Float[Array, "B L D"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        config = self.config
        probability_seed, output_seed = (None, None) if seed is None else functional.fold(seed, jnp.arange(2))
        shape, axes = (config.heads, config.head_width), ("model", "heads", "head_width")
        query = Dense(config, shape, axes, name="query")(x)
        seen = (x if memory is None else memory)[:, : bias.shape[-1]]
        keys = Dense(config, shape, axes, name="key")(seen)
        value = Dense(config, shape, axes, name="value")(seen)
        query, keys, value = (
            nn.with_logical_constraint(a, ("batch", "length", "act_heads", "head_width")) for a in (query, keys, value)
        )
        rate = config.attention_dropout
        if is_fused(config):  # the probabilities are then a computation of their own, left out where nobody asks for them
            context = fused_attention.attention(query, keys, value, bias, probability_seed, rate, _spec())
            probabilities = functional.attention_probabilities(query, keys, bias)
        else:
            context, probabilities = functional.attention(
                query, keys, value, bias, rate=rate, seed=probability_seed, pieces=pieces(query, keys)
            )
            context = checkpoint_name(context, "context")
        output = Dense(config, (config.hidden_width,), ("heads", "head_width", "model"), inputs=2, name="output")(context)
        output = functional.dropout(output, config.dropout, output_seed)
        x = checkpoint_name(LayerNorm(config.norm_eps, name="norm")(x + output), "normalised")
        return x, {"queries": query, "keys": keys, "values": value, "attentions": probabilities}


def is_fused(config: EncoderConfig) -> bool:
    """Whether attention is computed by kernels on the devices of the mesh in context, or else of this process."""
    if config.attention == "auto":
        suits = config.positions == "absolute" and config.compute_dtype == "bfloat16" and config.head_width in FUSED_WIDTHS
        return suits and fused_attention.available()
    return config.attention == "fused"


def pieces(query: Float[Array, "B Q N H"], keys: Float[Array, "B K N H"]) -> int:
    """How many pieces of the batch attention is computed in: 4 on a processor that is one device, where scores are many.

    XLA:CPU makes one call of both products and the softmax between, and computes four smaller ones faster: three encoders ran
    1.06 to 1.81 times as fast forward on two cores, 0.98 to 1.09 times with gradients (docs/results/pieces.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    scores = math.prod(query.shape[:3]) * keys.shape[1]
    return min(4, query.shape[0]) if alone and fused_attention.device_kind() == "cpu" and scores >= MANY_SCORES else 1


def _spec() -> PartitionSpec | None:
    """How queries [B, Q, N, H] lie on the mesh in context; None: there is none, or it is one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else nn.logical_to_mesh_axes(("batch", "length", "act_heads", "head_width"))


class FeedForward(nn.Module):
    """Two affine maps with the activation between, the residual connection and layer norm. [B, L, D] -> [B, L, D]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], seed: UInt32[Array, "2"] | None) -> Float[Array, "B L D"]:
        config = self.config
        hidden = Dense(config, (config.ffn_width,), ("model", "ffn"), name="intermediate")(x)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "act_ffn"))
        hidden = checkpoint_name(functional.activate(hidden, config.activation), "activated")
        output = Dense(config, (config.hidden_width,), ("ffn", "model"), name="output")(hidden)
        output = functional.dropout(output, config.dropout, seed)
        return LayerNorm(config.norm_eps, name="norm")(x + output)
