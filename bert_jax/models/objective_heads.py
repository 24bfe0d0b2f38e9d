"""Heads that serve single pre-training objectives (:meth:`bert_jax.objectives.base.Objective.own_heads`)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import Inputs
from bert_jax.models.layers import Dense


class SentenceClasses(nn.Module):
    """Logits [B, classes] from the pooled state: an affine map, as BERT's for the next sentence, to as many classes as said."""

    config: EncoderConfig
    classes: int

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B *P C"]:
        return Dense(self.config, (self.classes,), ("model", None), name="dense")(inputs.pooled).astype(jnp.float32)


class TokenTruth(nn.Module):
    """A logit [B, L] that something is true of a token: an affine map of its final state."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, inputs: Inputs, seed: UInt32[Array, "2"] | None) -> Float[Array, "B L"]:
        return Dense(self.config, (1,), ("model", None), name="dense")(inputs.hidden)[..., 0].astype(jnp.float32)
