"""Heads on an encoder: pooler, masked-language-model head, pair head. ``HEADS`` is the one list to extend."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax import functional
from bert_jax.models.config import EncoderConfig
from bert_jax.models.layers import Dense, LayerNorm, constant


class Pooler(nn.Module):
    """tanh of an affine map of the first token's final state. [B, L, D] -> [B, D]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        # A square map: only one of its two axes may carry the model axis' sharding.
        return jnp.tanh(Dense(self.config, (self.config.hidden_width,), ("model", None), name="dense")(hidden[:, 0]))


class MaskedLanguageModelHead(nn.Module):
    """Vocabulary logits, decoder tied to the token embeddings (BERT's ``cls.predictions``, ALBERT's ``predictions``).

    Affine map D -> E, GELU, layer norm, product with the token table [V, E], bias [V]. Logits are float32; those of rows
    that only pad the table are the most negative float32.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"], token_table: Float[Array, "V E"]) -> Float[Array, "B M V"]:
        config = self.config
        x = Dense(config, (config.embedding_width,), ("model", None), name="transform")(hidden)
        x = LayerNorm(config.norm_eps, axis=None, name="norm")(functional.gelu(x, config.activation))
        bias = self.param("bias", constant(0.0, ("vocab",)), (config.padded_vocab_size,), jnp.float32)
        table = token_table.astype(x.dtype)
        logits = jnp.einsum("bme,ve->bmv", x, table, preferred_element_type=jnp.float32) + bias
        logits = nn.with_logical_constraint(logits, ("batch", "length", "act_vocab"))
        if config.padded_vocab_size != config.vocab_size:
            real = jnp.arange(config.padded_vocab_size) < config.vocab_size
            logits = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
        return logits


class PairHead(nn.Module):
    """Two logits for a pair of segments from the pooled state: next-sentence or sentence-order prediction. [B, 2]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B 2"]:
        return Dense(self.config, (2,), ("model", None), name="dense")(pooled).astype(jnp.float32)


HEADS: dict[str, type[nn.Module]] = {"pooler": Pooler, "mlm": MaskedLanguageModelHead, "pair": PairHead}
