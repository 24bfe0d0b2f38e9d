"""Replaced-token detection (Clark et al. 2020, ELECTRA): a small generator fills masks, the encoder tells which pieces it made.

Numbers and rules are those of google-research/electra: configure_pretraining.py, run_pretraining.py and
pretrain/pretrain_helpers.py.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models import api, generator
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.base import Objective, Pieces
from bert_jax.task import Batch, Ratio

READ = ("attention_mask", "segment_ids", "position_ids", "example_ids")  # by the generator, beside its own tokens
_MASK, _POSITIONS, _SAMPLES = range(3)  # what a row's seed is folded with


@dataclasses.dataclass(frozen=True)
class ReplacedTokens(Objective):
    """The generator predicts masked pieces, its samples take their places, and the encoder (the discriminator) says of every
    real token whether it was replaced. A sample that happens to be the original piece counts as original.

    The generator has the depth of the encoder and a part of its width. It reads the encoder's own token, position and segment
    tables and their norm, and its output is tied to that token table; layers, the head's affine map, norm and bias, and the map
    from E to its width where they differ, are its own: ``params["rtd"]`` with ``attention``, ``feed_forward``, ``mlm`` and
    ``projection``. No gradient passes through the samples.

    Attributes:
      rate: share of a row's real tokens (specials counted) that are predicted, at least one; 0.25 for the large model.
      mask: share of those that become [MASK] for the generator; the rest stay. (No random pieces.)
      generator_width: the generator's width as a share of the encoder's: 1/4 for small and large, 1/3 for base. It has a head
        for every 64 of its width and a feed-forward width of four times that.
      temperature: divides the generator's logits before sampling.
      generator_weight, discriminator_weight: factors of the two losses; the second is the paper's lambda.
      compat: positions as the original's code draws them: with replacement, from all but [CLS], [SEP] and [MASK]. A
        position drawn k times counts k times in the generator's loss and is sampled k times; the original then writes the
        integer mean of these ids, some unrelated piece, and so does this. Off: no position is drawn twice.
    """

    rate: float = 0.15
    mask: float = 0.85
    generator_width: float = 0.25
    temperature: float = 1.0
    generator_weight: float = 1.0
    discriminator_weight: float = 50.0
    compat: bool = False
    weight: float = 1.0

    name: ClassVar[str] = generator.PART
    heads: ClassVar[tuple[str, ...]] = ("discriminator",)
    packs: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise BertJaxError(f"ReplacedTokens.rate is {self.rate}: it must lie between 0 and 1")
        if not 0 <= self.mask <= 1:
            raise BertJaxError(f"ReplacedTokens.mask is {self.mask}: it must be a share, from 0 to 1")
        for name in ("generator_width", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise BertJaxError(f"ReplacedTokens.{name} is {getattr(self, name)}: it must be above 0")

    def check(self, encoder: EncoderConfig, length: int) -> None:
        """Raises BertJaxError where ``generator_width`` gives no generator."""
        self.generator_config(encoder)

    def generator_config(self, encoder: EncoderConfig) -> EncoderConfig:
        """The generator as an encoder with the masked-language-model head."""
        return generator.config_of(encoder, self.generator_width)

    def init(self, encoder: EncoderConfig, key: Key[Array, ""]) -> api.Params:
        return {self.name: generator.own(api.init(self.generator_config(encoder), key))}

    def logical_axes(self, encoder: EncoderConfig) -> api.Params:
        return {self.name: generator.own(api.logical_axes(self.generator_config(encoder)))}

    def predictions(self, length: int) -> int:
        """M, the static number of prediction slots in a row of ``length`` tokens (19 for 128, 77 for 512 at 15%)."""
        return max(1, int((self.rate + 0.005) * length) if self.compat else round(self.rate * length))

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Adds what the generator reads and shall predict: ``rtd_input_ids`` int32 [B, L], ``rtd_positions`` and
        ``rtd_labels`` int32 [B, M], ``rtd_weights`` float32 [B, M], 0 in empty slots. ``input_ids`` stay as they are."""
        ids, slots = batch["input_ids"], self.predictions(batch["input_ids"].shape[1])
        tokens = batch["attention_mask"].sum(axis=-1)
        budget = jnp.clip(jnp.round(self.rate * tokens).astype(jnp.int32), 1, slots)  # halves to even, as tf.round
        position_seeds = functional.fold(seeds, _POSITIONS)
        if self.compat:
            ordinary = (ids != pieces.cls_id) & (ids != pieces.sep_id) & (ids != pieces.mask_id)
            positions, found = _with_replacement(position_seeds, batch["attention_mask"] & ordinary, slots)
        else:
            positions, found = _without_replacement(position_seeds, pieces.maskable(batch), slots)
        used = found & (jnp.arange(slots) < budget[:, None])
        hidden = used & (functional.uniform(functional.fold(seeds, _MASK), positions.shape) < self.mask)
        return batch | {
            "rtd_input_ids": _write(ids, positions, jnp.full_like(positions, pieces.mask_id), hidden),
            "rtd_positions": positions,
            "rtd_labels": jnp.take_along_axis(ids, positions, axis=1),
            "rtd_weights": used.astype(jnp.float32),
        }

    def complete(
        self, params: api.Params, encoder: EncoderConfig, batch: Batch, seeds: UInt32[Array, "B 2"], key: Key[Array, ""] | None
    ) -> Batch:
        """Runs the generator and writes its samples into ``input_ids``. Adds ``rtd_replaced`` bool [B, L], the labels of the
        discriminator, and of each prediction ``rtd_entropy`` float32 (nats), ``rtd_hit`` and ``rtd_sampled_hit`` bool [B, M].

        Raises:
          BertJaxError: another objective of the same turn masks tokens too; whose labels would then be hidden from this one.
        """
        if "masked_positions" in batch:
            raise BertJaxError(
                "ReplacedTokens cannot share its rows with an objective that masks tokens: give that one a turn of its own "
                "(task.turns)"
            )
        read = {name: batch[name] for name in READ if name in batch}
        masked = read | {"input_ids": batch["rtd_input_ids"], "masked_positions": batch["rtd_positions"]}
        merged = generator.merged(params["embeddings"], params[self.name])
        logits = api.apply(merged, self.generator_config(encoder), masked, key=key).logits["mlm"]

        positions, labels, used = batch["rtd_positions"], batch["rtd_labels"], batch["rtd_weights"] > 0
        entropy, hit = functional.score_labels(logits, labels)
        samples = _sample(jax.lax.stop_gradient(logits) / self.temperature, functional.fold(seeds, _SAMPLES))
        ids = _write(batch["input_ids"], positions, samples, used)
        return batch | {
            "input_ids": ids, "rtd_replaced": ids != batch["input_ids"],
            "rtd_entropy": entropy, "rtd_hit": hit, "rtd_sampled_hit": samples == labels,
        }

    def terms(self) -> dict[str, float]:
        return {
            "generator_loss": self.weight * self.generator_weight,
            "discriminator_loss": self.weight * self.discriminator_weight,
        }

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Both losses in nats, without their factors: the generator's over its predictions, the discriminator's over all real
        tokens. ``sampled_accuracy``: samples that are the original piece. ``precision`` and ``recall``: of replaced tokens;
        ``replaced``: their share of the real ones."""
        predictions, tokens = batch["rtd_weights"], batch["attention_mask"].astype(jnp.float32)
        logits, replaced = outputs.logits["discriminator"], batch["rtd_replaced"]
        entropy = jax.nn.softplus(logits) - logits * replaced
        called = logits > 0
        right, true = (called == replaced) * tokens, replaced * tokens

        def over(values: Array, weights: Array) -> Ratio:
            return Ratio((values * weights).sum(), weights.sum())

        return {
            "generator_loss": over(batch["rtd_entropy"], predictions),
            "generator_accuracy": over(batch["rtd_hit"], predictions),
            "sampled_accuracy": over(batch["rtd_sampled_hit"], predictions),
            "discriminator_loss": over(entropy, tokens),
            "discriminator_accuracy": Ratio(right.sum(), tokens.sum()),
            "precision": over(right, called * tokens),
            "recall": over(called, true),
            "replaced": Ratio(true.sum(), tokens.sum()),
        }


def _without_replacement(
    seeds: UInt32[Array, "B 2"], maskable: Bool[Array, "B L"], slots: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """Positions in a random order, and where there are any: the largest of uniform noise."""
    noise = jnp.where(maskable, functional.uniform(seeds, maskable.shape), -1.0)
    value, positions = jax.lax.top_k(noise, slots)
    return positions, value >= 0


def _with_replacement(
    seeds: UInt32[Array, "B 2"], maskable: Bool[Array, "B L"], slots: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """Each slot's position drawn anew."""
    count = maskable.sum(axis=-1, keepdims=True)
    places = jnp.argsort(~maskable, axis=-1, stable=True).astype(jnp.int32)
    drawn = functional.integers(seeds, (len(maskable), slots), jnp.maximum(count, 1))
    return jnp.take_along_axis(places, drawn, axis=1), jnp.broadcast_to(count > 0, drawn.shape)


def _write(
    ids: Int[Array, "B L"], positions: Int[Array, "B M"], values: Int[Array, "B M"], used: Bool[Array, "B M"]
) -> Int[Array, "B L"]:
    """``ids`` with ``values`` at the used positions; the integer mean where one is used several times (scatter_update)."""
    rows, nothing = jnp.arange(ids.shape[0])[:, None], jnp.zeros_like(ids)
    total = nothing.at[rows, positions].add(jnp.where(used, values, 0), mode="promise_in_bounds")
    times = nothing.at[rows, positions].add(used.astype(ids.dtype), mode="promise_in_bounds")
    return jnp.where(times > 0, total // jnp.maximum(times, 1), ids)


def _sample(logits: Float[Array, "B M V"], seeds: UInt32[Array, "B 2"]) -> Int[Array, "B M"]:
    """A piece from each softmax: the largest of logits with Gumbel noise (Gumbel 1954; Maddison et al. 2014).

    The noise is -log(-log(1 - u)) of 32 random bits in the middle of their cell, exact where it is large, so that pieces of
    small probability keep it (minus infinity once in 34 million draws, where u rounds to 1): of 24 bits, as ``uniform`` has
    them, none could exceed 16.6 by more than its last cell.
    """
    u = (functional.random_bits(seeds, logits.shape).astype(jnp.float32) + 0.5) * 2.0**-32
    return jnp.argmax(logits - jnp.log(-jnp.log1p(-u)), axis=-1).astype(jnp.int32)
