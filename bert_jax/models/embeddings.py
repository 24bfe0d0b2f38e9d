"""Token, position and segment embeddings, factorised when their width differs from the model's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import functional
from bert_jax.models.config import EncoderConfig
from bert_jax.models.layers import Dense, LayerNorm, truncated_normal


class Embeddings(nn.Module):
    """Sum of the embeddings, layer norm, dropout, and for E != D an affine map to D (ALBERT section 3.1). With relative
    positions neither tables of positions and segments nor a norm; query slots (XLNet's second stream) begin with ``query``.

    Parameters: ``token`` [V padded, E]; ``position`` [position_offset + max_length, E], ``segment`` [S, E] unless S is 0,
    ``norm``, or with relative positions ``query`` [E] (the reference's mask_emb); and for E != D ``projection`` with kernel
    [E, D] and bias [D] (ALBERT's embedding_hidden_mapping_in).
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], segment_ids: Int[Array, "B L"], position_ids: Int[Array, "B L"] | None,
        seed: UInt32[Array, "2"] | None, query_slots: Bool[Array, "B L"] | None = None,
        perturbation: Float[Array, "B L E"] | None = None,
    ) -> Float[Array, "B L D"]:
        config = self.config
        width, std = config.embedding_width, config.init_std
        token = self.param(
            "token", truncated_normal(std, ("vocab", "embedding")), (config.padded_vocab_size, width), jnp.float32
        )
        x = jnp.take(token, ids, axis=0)
        # Rows over data, width over fsdp, as the table lies; then rows over both. Straight from one to the other XLA would
        # put the whole batch on every device in between.
        x = nn.with_logical_constraint(x, ("lookup", "length", "embedding"))
        x = nn.with_logical_constraint(x, ("batch", "length", "act_model"))
        if perturbation is not None:
            x += perturbation
        if config.positions == "absolute":
            x = self._add_tables(x, segment_ids, position_ids)
            x = LayerNorm(config.norm_eps, axis="embedding", name="norm")(x)
        else:
            query = self.param("query", truncated_normal(std, ("embedding",)), (width,), jnp.float32)
            if query_slots is not None:
                x = jnp.where(query_slots[..., None], query, x)
        x = functional.dropout(x.astype(config.compute_dtype), config.dropout, seed)
        if width != config.hidden_width:
            x = Dense(config, (config.hidden_width,), (None, "model"), name="projection")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_model"))
        mesh = jax.sharding.get_abstract_mesh()
        if config.unroll and (mesh.empty or mesh.size == 1):
            # Without a scan XLA for GPUs keeps the lookup's layout, batch innermost, and transposes for every product. (On
            # several devices the constraint would hide from XLA how the rows are shared out.)
            x = with_layout_constraint(x, Layout((0, 1, 2)))
        return x

    def _add_tables(
        self, x: Float[Array, "B L E"], segment_ids: Int[Array, "B L"], position_ids: Int[Array, "B L"] | None
    ) -> Float[Array, "B L E"]:
        config, std = self.config, self.config.init_std
        offset, rows = config.position_offset, config.position_offset + config.max_length
        position = self.param("position", truncated_normal(std, ("position", "embedding")), (rows, x.shape[-1]), jnp.float32)
        if config.segments:
            segment = self.param(
                "segment", truncated_normal(std, ("segment", "embedding")), (config.segments, x.shape[-1]), jnp.float32
            )
            if config.segments == 1:  # RoBERTa's: every token's, whatever ids a template of pairs gives
                x += segment[0]
            else:  # The table is tiny: choosing has a far cheaper gradient than a scatter with two targets.
                for number in range(config.segments):
                    x += jnp.where((segment_ids == number)[..., None], segment[number], 0.0)
        if position_ids is None:
            return x + position[offset : offset + x.shape[1]]
        return x + jnp.take(position, position_ids + offset, axis=0)
