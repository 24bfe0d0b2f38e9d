"""What an objective is: a corruption of the batch on the device, perhaps parameters of its own, and a loss."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bert_jax import functional
from bert_jax.data.examples import AnyExamples
from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.task import Batch, Ratio


class Pieces(NamedTuple):
    """What objectives need to know of a tokenizer: V, single pieces, and the ids that are never masked nor drawn."""

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    def maskable(self, batch: Batch) -> Bool[Array, "B L"]:
        """Where real tokens stand that are not special."""
        special = jnp.zeros(batch["input_ids"].shape, bool)
        for special_id in self.special_ids:
            special |= batch["input_ids"] == special_id
        return batch["attention_mask"] & ~special

    def draw(self, seeds: UInt32[Array, "B 2"], shape: tuple[int, ...]) -> Int[Array, "B *rest"]:
        """Random pieces, special ones left out."""
        ordinary = np.setdiff1d(np.arange(self.vocab_size, dtype=np.int32), np.array(self.special_ids, np.int32))
        return jnp.asarray(ordinary)[functional.integers(seeds, shape, len(ordinary))]


class Objective:
    """One pre-training objective. Subclasses are frozen dataclasses, one file each, listed in ``OBJECTIVES``.

    Everything here is a pure function with static shapes, traced into the compiled step. What is random is drawn from
    ``seeds``, two words for every row: the same on any mesh and in any micro-batch, and the same again for static examples.

    Attributes:
      name: prefix of its metrics, and of its own parameters if it has any.
      weight: factor of its loss in the sum that is minimised; a field of every subclass.
      heads: heads of the encoder that it needs. needs: batch keys that it needs from the data.
      rank: when it corrupts the batch, whatever its place in the configuration: -1 before any token has changed, 1 after the
        others, to leave alone what they chose.
      packs: whether it is the same on rows of several examples (:mod:`bert_jax.data.packing`), whose labels are [B, P].
      labels: batch keys of what its ``accuracy`` is measured against, for the baseline of the most frequent label: of labels,
        and of their weights (without: those from 0 on count). Empty where that would say little.
    """

    name: ClassVar[str]
    heads: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    rank: ClassVar[int] = 0
    packs: ClassVar[bool] = False
    labels: ClassVar[tuple[str, ...]] = ()
    weight: float

    def check(self, encoder: EncoderConfig, length: int) -> None:
        """Raises BertJaxError where it cannot be used with this encoder, or with rows of ``length`` tokens."""

    def check_examples(self, examples: AnyExamples) -> None:
        """Raises BertJaxError where examples that give all it ``needs`` are still not such as it expects."""

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        """Heads that serve this objective alone, and are left behind with it; their results come in ``outputs.logits``."""
        return {}

    def init(self, encoder: EncoderConfig, key: Key[Array, ""]) -> api.Params:
        """Parameters of its own, beside those of the encoder."""
        return api.init_heads(encoder, self.own_heads(encoder), key)

    def logical_axes(self, encoder: EncoderConfig) -> api.Params:
        """The tree of :meth:`init` with logical axis names."""
        return api.head_axes(encoder, self.own_heads(encoder))

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """The batch as the encoder shall see it. ``step``: updates done, None in evaluation."""
        return batch

    def complete(
        self, params: api.Params, encoder: EncoderConfig, batch: Batch, seeds: UInt32[Array, "B 2"], key: Key[Array, ""] | None
    ) -> Batch:
        """What has to be computed with parameters before the encoder runs (a generator's samples). ``seeds`` are those of
        :meth:`corrupt`, ``key`` is for dropout."""
        return batch

    def terms(self) -> dict[str, float]:
        """Which results of :meth:`loss` are minimised, and their factors."""
        return {"loss": self.weight}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """The terms in nats, and further metrics, as sums over the batch."""
        raise NotImplementedError


def add_predictions(
    batch: Batch, name: str, positions: Int[Array, "B M"], labels: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> Batch:
    """Asks for M more vocabulary predictions of each row: ``masked_positions`` grows by ``positions``, and ``NAME_labels``,
    ``NAME_weights`` wait for :func:`predicted`."""
    before = batch.get("masked_positions", positions[:, :0])
    return batch | {
        "masked_positions": jnp.concatenate([before, positions], axis=1),
        f"{name}_labels": labels,
        f"{name}_weights": weights.astype(jnp.float32),
        f"{name}_offset": jnp.zeros(before.shape, bool),  # only its shape matters
    }


def asked_positions(batch: Batch) -> Bool[Array, "B L"]:
    """Where :func:`add_predictions` has been asked for predictions that weigh."""
    asked, rows = jnp.zeros(batch["input_ids"].shape, bool), jnp.arange(len(batch["input_ids"]))[:, None]
    for name in [key.removesuffix("_weights") for key in batch if key.endswith("_weights")]:
        if f"{name}_offset" not in batch:
            continue  # not a vocabulary prediction
        weights, begin = batch[f"{name}_weights"], batch[f"{name}_offset"].shape[1]
        positions = batch["masked_positions"][:, begin : begin + weights.shape[1]]
        asked = asked.at[rows, positions].max(weights > 0)
    return asked


def predicted(outputs: Outputs, batch: Batch, name: str) -> dict[str, Ratio]:
    """Cross entropy in nats and accuracy over the predictions that :func:`add_predictions` asked for under ``name``."""
    labels, weights, begin = batch[f"{name}_labels"], batch[f"{name}_weights"], batch[f"{name}_offset"].shape[1]
    return scored(outputs.logits["mlm"][:, begin : begin + labels.shape[1]], labels, weights)


def scored(logits: Float[Array, "*b C"], labels: Int[Array, "*b"], weights: Float[Array, "*b"]) -> dict[str, Ratio]:
    """``loss``, cross entropy in nats, and ``accuracy`` of weighted labels."""
    total = weights.sum()
    entropy, hits = functional.score_labels(logits, labels)
    return {"loss": Ratio((entropy * weights).sum(), total), "accuracy": Ratio((hits * weights).sum(), total)}


def scored_truth(logits: Float[Array, "B L2"], truths: Bool[Array, "B L"], weights: Float[Array, "B L"]) -> dict[str, Ratio]:
    """``loss``, cross entropy in nats, and ``accuracy`` of logits that something is true."""
    logits = logits[:, : truths.shape[1]]  # slots that another objective has put after the text have no truth
    total, entropy = weights.sum(), jax.nn.softplus(jnp.where(truths, -logits, logits))
    hits = (logits > 0) == truths
    return {"loss": Ratio((entropy * weights).sum(), total), "accuracy": Ratio((hits * weights).sum(), total)}


def scored_examples(logits: Float[Array, "B *P C"], labels: Int[Array, "B *P"]) -> dict[str, Ratio]:
    """:func:`scored` for one label an example; those labelled -1 have no weight."""
    return scored(logits, labels, (labels >= 0).astype(jnp.float32))
