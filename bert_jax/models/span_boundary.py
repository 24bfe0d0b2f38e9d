"""The head of SpanBERT's span boundary objective (Joshi et al. 2020, section 3.2)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from bert_jax import functional
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import Inputs, vocabulary_logits
from bert_jax.models.layers import Dense, LayerNorm, constant, truncated_normal


class SpanBoundaryHead(nn.Module):
    """Vocabulary logits [B, M, V padded] of tokens inside spans, float32, from the final states of the two tokens outside.

    Both states and the embedding of the token's place in its span go through two layers of affine map, activation and layer
    norm, (2 D + P) -> D -> E, then the product with the token table and a bias of its own
    (``BertPairTargetPredictionHead`` of facebookresearch/SpanBERT, pretraining/fairseq/models/pair_bert.py). Rows that only pad
    the table get the most negative float32. Parameters: ``place`` [places, P], ``first``, ``first_norm``, ``second``,
    ``second_norm``, ``bias`` [V padded].

    Reads ``span_left``, ``span_right``, ``span_place`` of the batch, int32 [B, M]; places beyond the table read its last row.
    """

    config: EncoderConfig
    places: int
    width: int

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B M V"]:
        config, batch = self.config, inputs.batch
        nowhere = batch["masked_positions"]  # parameters are made from a batch without spans
        left, right, place = (batch.get(name, nowhere) for name in ("span_left", "span_right", "span_place"))
        table = self.param(
            "place", truncated_normal(config.init_std, (None, None)), (self.places, self.width), jnp.float32
        )
        outside = [functional.gather_positions(inputs.hidden, side) for side in (left, right)]
        place = jnp.take(table, jnp.minimum(place, self.places - 1), axis=0).astype(config.compute_dtype)
        x = jnp.concatenate([*outside, place], axis=-1)
        for name, size in (("first", config.hidden_width), ("second", config.embedding_width)):
            x = functional.activate(Dense(config, (size,), ("model", None), name=name)(x), config.activation)
            x = LayerNorm(config.norm_eps, axis=None, name=f"{name}_norm")(x)
        bias = self.param("bias", constant(0.0, ("vocab",)), (config.padded_vocab_size,), jnp.float32)
        return vocabulary_logits(config, x, inputs.token_table, bias)
