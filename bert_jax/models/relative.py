"""Attention with relative positions and segments (XLNet: Yang et al. 2019, sections 2.4, 2.5; Transformer-XL: Dai et al. 2019).

Beside the product of query and key, a score has a term of the distance between the two places and one that says whether they
lie in the same segment. Nothing else tells positions apart: such an encoder has neither a position table nor a segment table.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import functional
from bert_jax.models.config import EncoderConfig
from bert_jax.models.layers import Dense, LayerNorm, pieces, truncated_normal


class Relation(NamedTuple):
    """How Q queries stand to K keys, the same in every layer.

    Attributes:
      queries, keys: :func:`waves` of their positions [B, Q, D], [B, K, D], compute dtype.
      same: whether they lie in one segment [B, Q, K]; None in an encoder without segments.
    """

    queries: Array
    keys: Array
    same: Bool[Array, "B Q K"] | None


def waves(positions: Int[Array, "B L"], width: int) -> Float[Array, "B L D"]:
    """Sines, then cosines of positions at D/2 wavelengths (Vaswani et al. 2017, section 3.5); float32."""
    frequencies = 10000.0 ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relate(
    config: EncoderConfig, position_ids: Int[Array, "B L"] | None, segment_ids: Int[Array, "B L"], keys: int
) -> Relation:
    """The relation of all L slots to the first ``keys`` of them. ``position_ids`` None: 0..L-1."""
    if position_ids is None:
        position_ids = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    places = waves(position_ids, config.hidden_width).astype(config.compute_dtype)
    same = segment_ids[:, :, None] == segment_ids[:, None, :keys] if config.segments else None
    return Relation(places, places[:, :keys], same)


def distance_scores(
    query: Float[Array, "B Q N H"], kernel: Float[Array, "D N H"], relation: Relation
) -> Float[Array, "B N Q K"]:
    """``query . kernel^T r(i - j)`` for the positions i of queries and j of keys, r being :func:`waves`; float32.

    The reference multiplies with r of all 2L - 1 distances and then moves every row of the result to its place, which needs
    keys at 0..L-1. We use sin(i - j) = sin i cos j - cos i sin j and its like for the cosine: the query meets the kernel
    first, is turned by its own position, and then is multiplied with the waves of the keys' positions. Those are two products
    of matrices, whatever the positions, and nothing has to be moved. It is N/2 times the arithmetic of the reference's second
    product and still the cheapest where it matters: by XLA's own estimates for a TPU v5e, attention's core of BERT-base
    forward and backward, 8 rows of 512 tokens and 85 query slots, takes 8.7 million cycles this way, 24.0 with rows moved by
    reshapes, 27.0 by ten selections, and 10.8 by take_along_axis without its gather and scatter of 29 million
    elements, for which there is no estimate. (One row on two CPU cores: 281, 268, 238 and 221 ms; at 128 tokens, four rows,
    it is the slowest by far, 168 ms against 48, 41 and 39. Scripts that were not kept.)
    """
    along = jnp.einsum("bqnh,dnh->bqnd", query, kernel)
    sine, cosine = jnp.split(along, 2, axis=-1)
    sine_i, cosine_i = jnp.split(relation.queries[:, :, None], 2, axis=-1)
    turned = jnp.concatenate([cosine * sine_i - sine * cosine_i, sine * sine_i + cosine * cosine_i], axis=-1)
    return jnp.einsum("bqnd,bkd->bnqk", turned, relation.keys, preferred_element_type=jnp.float32)


class RelativeSelfAttention(nn.Module):
    """:class:`bert_jax.models.layers.SelfAttention` with the scores of XLNet, and without biases in its four maps.

    Score of query i and key j: ((q_i + u) . k_j + (q_i + v) . W r(i - j) + (q_i + b) . s) / sqrt(H), where s is one of two
    vectors, of the same segment or of different ones. Parameters beside the maps and the norm: ``content/bias`` u [N, H],
    ``position/bias`` v [N, H] and ``position/kernel`` W [D, N, H], with segments ``segment/bias`` b [N, H] and
    ``segment/kernel`` s [2, N, H]; all of them of each layer (the reference's untie_r).
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q D"], bias: Float[Array, "B 1 #Q K"], seed: UInt32[Array, "2"] | None, relation: Relation
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        config = self.config
        probability_seed, output_seed = (None, None) if seed is None else functional.fold(seed, jnp.arange(2))
        shape, axes = (config.heads, config.head_width), ("model", "heads", "head_width")
        seen = x[:, : bias.shape[-1]]
        query = Dense(config, shape, axes, bias=False, name="query")(x)
        keys = Dense(config, shape, axes, bias=False, name="key")(seen)
        value = Dense(config, shape, axes, bias=False, name="value")(seen)
        query, keys, value = (
            nn.with_logical_constraint(a, ("batch", "length", "act_heads", "head_width")) for a in (query, keys, value)
        )

        scale = config.head_width**-0.5
        shifted, kernel = _Shift(config, config.hidden_width, "model", name="position")(query)
        scores = distance_scores(shifted * scale, kernel, relation)
        if relation.same is not None:
            shifted, kernel = _Shift(config, 2, None, name="segment")(query)
            either = jnp.einsum("bqnh,snh->bnqs", shifted * scale, kernel, preferred_element_type=jnp.float32)
            scores += jnp.where(relation.same[:, None], either[..., :1], either[..., 1:])
        shifted, _ = _Shift(config, 0, None, name="content")(query)
        context, probabilities = functional.attention(
            shifted, keys, value, scores + bias, rate=config.attention_dropout, seed=probability_seed,
            pieces=pieces(query, keys),
        )
        context = checkpoint_name(context, "context")
        output = Dense(
            config, (config.hidden_width,), ("heads", "head_width", "model"), inputs=2, bias=False, name="output"
        )(context)
        output = functional.dropout(output, config.dropout, output_seed)
        x = checkpoint_name(LayerNorm(config.norm_eps, name="norm")(x + output), "normalised")
        return x, {"queries": query, "keys": keys, "values": value, "attentions": probabilities}


class _Shift(nn.Module):
    """Queries with a ``bias`` [N, H] of their own added, and a ``kernel`` [rows, N, H] for them to meet (0 rows: None)."""

    config: EncoderConfig
    rows: int
    axis: str | None

    @nn.compact
    def __call__(self, query: Float[Array, "B Q N H"]) -> tuple[Float[Array, "B Q N H"], Float[Array, "R N H"] | None]:
        std, shape, axes = self.config.init_std, query.shape[2:], ("heads", "head_width")
        shifted = query + self.param("bias", truncated_normal(std, axes), shape, jnp.float32).astype(query.dtype)
        if not self.rows:
            return shifted, None
        kernel = self.param("kernel", truncated_normal(std, (self.axis, *axes)), (self.rows, *shape), jnp.float32)
        return shifted, kernel.astype(query.dtype)
