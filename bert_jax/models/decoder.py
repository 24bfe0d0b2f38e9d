"""BART's decoder over the states of an encoder (Lewis et al. 2020, section 2.1; ``bart`` in fairseq and transformers)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from bert_jax import functional
from bert_jax.models.api import STORED
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import Inputs, vocabulary_logits
from bert_jax.models.layers import FeedForward, LayerNorm, SelfAttention, truncated_normal


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's states, feed-forward, each with its residual and layer norm. [B, L, D]."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], bias: Float[Array, "B 1 L L"], memory: Float[Array, "B K D"],
        memory_bias: Float[Array, "B 1 1 K"], seed: UInt32[Array, "2"] | None,
    ) -> Float[Array, "B L D"]:
        seeds = (None,) * 3 if seed is None else functional.fold(seed, jnp.arange(3))
        x, _ = SelfAttention(self.config, name="attention")(x, bias, seeds[0])
        x, _ = SelfAttention(self.config, name="cross_attention")(x, memory_bias, seeds[1], memory)
        x = FeedForward(self.config, name="feed_forward")(x, seeds[2])
        return nn.with_logical_constraint(x, ("batch", "length", "act_model"))


class Decoder(nn.Module):
    """Vocabulary logits [B, L, V padded] of the next token after each of the batch's ``decoder_input_ids`` int32 [B, L].

    A post-LN transformer decoder with the encoder's widths, heads and rates of dropout. Its tokens come from the encoder's
    table, and its logits are the products with that table, without bias. It has positions of its own, with the encoder's
    offset (2 rows in BART). Position t sees the tokens up to t, and all real tokens of the encoder's ``attention_mask``.

    Logits are float32, [B, L, V] of them, the largest array of a step by far; with their gradient there are two of them at
    once. Rows that only pad the table get the most negative float32. Under every remat policy layers keep what those of the
    encoder keep.
    """

    config: EncoderConfig
    layers: int

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B L V"]:
        config, ids, table = self.config, inputs.batch["decoder_input_ids"], inputs.token_table
        seeds = (None,) * (1 + self.layers) if seed is None else functional.fold(seed, jnp.arange(1 + self.layers))
        offset, length = config.position_offset, ids.shape[1]
        position = self.param(
            "position", truncated_normal(config.init_std, ("position", "embedding")),
            (offset + config.max_length, config.hidden_width), jnp.float32,
        )
        x = jnp.take(table, ids, axis=0)
        x = nn.with_logical_constraint(x, ("lookup", "length", "embedding"))  # two steps, as in Embeddings
        x = nn.with_logical_constraint(x, ("batch", "length", "act_model"))
        x = LayerNorm(config.norm_eps, axis="embedding", name="norm")(x + position[offset : offset + length])
        x = functional.dropout(x.astype(config.compute_dtype), config.dropout, seeds[0])

        causal = jnp.broadcast_to(jnp.tri(length, dtype=bool), (len(ids), length, length))
        bias, memory_bias = functional.attention_bias(causal), functional.attention_bias(inputs.batch["attention_mask"])
        policy = jax.checkpoint_policies.save_only_these_names(*STORED[config.remat])
        for number in range(self.layers):
            layer = nn.remat(DecoderLayer, policy=policy)(config, name=f"layer_{number}")
            x = layer(x, bias, inputs.hidden, memory_bias, seeds[1 + number])

        return vocabulary_logits(config, x, table)
