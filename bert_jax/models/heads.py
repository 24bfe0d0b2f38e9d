"""Heads on an encoder. ``HEADS`` is the one list to extend.

A head is a module called as ``head(inputs, seed)``; :class:`Inputs` holds all that a head may read, ``seed`` draws its dropout.
Every published head of the family is one of these: RoBERTa's, ELECTRA's and DistilBERT's sentence classifiers begin with an
affine map of the first token's state and a nonlinearity, which is a pooler with another activation.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from bert_jax import functional
from bert_jax.models.config import EncoderConfig
from bert_jax.models.layers import Dense, LayerNorm, constant


class Inputs(NamedTuple):
    """What heads read.

    Attributes:
      hidden: final states [B, L, D]. chosen: those at the masked positions [B, M, D] (all of them without such positions).
      pooled: [B, D] ([B, P, D] of rows of P examples), None before the pooler has run. token_table: [V padded, E].
      batch: what the encoder was given; heads of single objectives find there what else they read.
    """

    hidden: Array
    chosen: Array
    pooled: Array | None
    token_table: Array
    batch: dict[str, Array]


class Pooler(nn.Module):
    """An affine map of the first token's final state and ``pooler_activation``. [B, D], compute dtype; of the first token of
    each example [B, P, D] in packed rows."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B *P D"]:
        starts = inputs.batch.get("example_starts")
        first = inputs.hidden[:, 0] if starts is None else functional.gather_positions(inputs.hidden, starts)
        # A square map: only one of its two axes may carry the model axis' sharding.
        x = Dense(self.config, (self.config.hidden_width,), ("model", None), name="dense")(first)
        return functional.activate(x, self.config.pooler_activation)


def vocabulary_logits(
    config: EncoderConfig, x: Float[Array, "B M E"], token_table: Float[Array, "V E"], bias: Float[Array, " V"] | float = 0.0
) -> Float[Array, "B M V"]:
    """Products with the rows of the token table, float32; those of rows that only pad it are the most negative float32."""
    flat = functional.product(x.reshape(-1, x.shape[-1]), token_table.T, jnp.dtype("float32"))
    logits = nn.with_logical_constraint(flat.reshape(*x.shape[:-1], -1) + bias, ("batch", "length", "act_vocab"))
    if config.padded_vocab_size != config.vocab_size:
        real = jnp.arange(config.padded_vocab_size) < config.vocab_size
        logits = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
    return logits


class MaskedLanguageModelHead(nn.Module):
    """Vocabulary logits [B, M, V padded], decoder tied to the token embeddings (BERT's ``cls.predictions``).

    Affine map D -> E, activation, layer norm (all three only with ``mlm_transform``), product with the token table [V, E],
    bias [V].
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B M V"]:
        config = self.config
        x = inputs.chosen
        if config.mlm_transform:
            x = Dense(config, (config.embedding_width,), ("model", None), name="transform")(x)
            x = functional.activate(x, config.mlm_activation or config.activation)
            x = LayerNorm(config.norm_eps, axis=None, name="norm")(x)
        bias = self.param("bias", constant(0.0, ("vocab",)), (config.padded_vocab_size,), jnp.float32)
        return vocabulary_logits(config, x, inputs.token_table, bias)


class PairHead(nn.Module):
    """Two logits [B, 2] for a pair of segments from the pooled state: next-sentence or sentence-order prediction."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B *P 2"]:
        return Dense(self.config, (2,), ("model", None), name="dense")(inputs.pooled).astype(jnp.float32)


class Classifier(nn.Module):
    """Logits [B, C] of the classes of a sequence, from the pooled state (one class: a regression)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B *P C"]:
        x = functional.dropout(inputs.pooled, _dropout(self.config), seed)
        return Dense(self.config, (len(self.config.labels),), ("model", None), name="dense")(x).astype(jnp.float32)


class Tagger(nn.Module):
    """Logits [B, L, C] of the classes of every token."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B L C"]:
        x = functional.dropout(inputs.hidden, _dropout(self.config), seed)
        return Dense(self.config, (len(self.config.labels),), ("model", None), name="dense")(x).astype(jnp.float32)


class Span(nn.Module):
    """Logits [B, L, 2]: whether an answer begins, and whether it ends, at a token (extractive question answering)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B L 2"]:
        return Dense(self.config, (2,), ("model", None), name="dense")(inputs.hidden).astype(jnp.float32)


class Choice(nn.Module):
    """A score [B] of each sequence; multiple choice is the softmax over the sequences of one question."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B *P"]:
        x = functional.dropout(inputs.pooled, _dropout(self.config), seed)
        return Dense(self.config, (1,), ("model", None), name="dense")(x)[..., 0].astype(jnp.float32)


class Discriminator(nn.Module):
    """Logits [B, L] that a token was replaced (Clark et al. 2020, ELECTRA): affine map D -> D, activation, affine map."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B L"]:
        x = Dense(self.config, (self.config.hidden_width,), ("model", None), name="transform")(inputs.hidden)
        x = functional.activate(x, self.config.activation)
        return Dense(self.config, (1,), ("model", None), name="output")(x)[..., 0].astype(jnp.float32)


def _dropout(config: EncoderConfig) -> float:
    return config.dropout if config.head_dropout is None else config.head_dropout


HEADS: dict[str, type[nn.Module]] = {
    "pooler": Pooler,
    "mlm": MaskedLanguageModelHead,
    "pair": PairHead,
    "classifier": Classifier,
    "tagger": Tagger,
    "span": Span,
    "choice": Choice,
    "discriminator": Discriminator,
}
