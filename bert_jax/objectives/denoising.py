"""BART's denoising (Lewis et al. 2020): the encoder reads spoilt text, a small decoder writes the text as it was."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax import functional
from bert_jax.data.examples import AnyExamples
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.api import Outputs
from bert_jax.models.config import EncoderConfig
from bert_jax.models.decoder import Decoder
from bert_jax.objectives import noising
from bert_jax.objectives.base import Objective, Pieces, scored
from bert_jax.task import Batch, Ratio

# Arrays of tokens that follow them to their new places, and those that would have to, or that point to places.
_MOVED = ("input_ids", "segment_ids", "language_ids", "word_starts", "sentence_starts")
_FIXED = (
    "position_ids", "masked_positions", "visibility", "phrase_continues", "entity_continues", "capitalised", "context_ids",
)


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """Reconstruct the original from a row to which noise was done, by teacher forcing. The default noise is that of the
    released models (section 5.1 of the paper).

    Noises follow each other in the order of the fields, each on what the last one left. [CLS] and [SEP] are left alone.

    Attributes:
      permute: the sentences come in a random order.
      mask: share of the text's tokens replaced by [MASK]. delete: share of the tokens removed.
      infill: share of the words hidden in spans, each of which becomes one [MASK], some of them being no word's.
      span_mean: of the Poisson law of the spans' lengths in words.
      random: share of the [MASK]s of ``mask`` and ``infill`` that are a random piece instead.
      rotate: share of the rows that begin with a random token, what was before it following at the end.
      decoder_layers: of the decoder, which has the encoder's widths, heads and token table, and a position table of its own.
    """

    permute: bool = True
    mask: float = 0.0
    delete: float = 0.0
    infill: float = 0.3
    span_mean: float = 3.0
    random: float = 0.0
    rotate: float = 0.0
    decoder_layers: int = 6
    weight: float = 1.0

    name: ClassVar[str] = "denoising"
    rank: ClassVar[int] = -1

    def __post_init__(self):
        for field in ("mask", "delete", "infill", "random", "rotate"):
            if not 0 <= getattr(self, field) <= 1:
                raise BertJaxError(f"Denoising.{field} is {getattr(self, field)}: it must be a share from 0 to 1")
        if not 0 < self.span_mean <= 15:  # above it the cut of fairseq's law would leave no lengths
            raise BertJaxError(f"Denoising.span_mean is {self.span_mean}: it must be above 0 and at most 15")
        if not 1 <= self.decoder_layers <= 10_000:
            raise BertJaxError(f"Denoising.decoder_layers is {self.decoder_layers}: at least 1 is needed")

    @property
    def needs(self) -> tuple[str, ...]:
        """Sentences are needed to permute them, words to fill in."""
        wanted = {"word_starts": self.infill, "sentence_starts": self.permute}
        return ("input_ids", "attention_mask", *(name for name, used in wanted.items() if used))

    def check(self, encoder: EncoderConfig, length: int) -> None:
        """The decoder reads and writes with the encoder's token table, which must be as wide as the encoder."""
        if encoder.embedding_width != encoder.hidden_width:
            raise BertJaxError(
                f"Denoising needs task.encoder.embedding_width {encoder.embedding_width} to equal hidden_width "
                f"{encoder.hidden_width}"
            )

    def check_examples(self, examples: AnyExamples) -> None:
        """Positions must be those of the row: tokens come to stand elsewhere in it."""
        if "position_ids" in examples.layout(1, ()):
            raise BertJaxError(f"Denoising moves tokens, whose positions {examples} fixes: use other examples")

    def own_heads(self, encoder: EncoderConfig) -> api.Heads:
        """The decoder: post-LN, causal self-attention, attention to the encoder's states, feed-forward."""
        return {self.name: Decoder(encoder, self.decoder_layers)}

    def corrupt(self, batch: Batch, seeds: UInt32[Array, "B 2"], pieces: Pieces, step: Int[Array, ""] | None) -> Batch:
        """Replaces ``input_ids`` and what belongs to its tokens, and ``attention_mask``.

        Adds ``denoising_labels`` int32 [B, L], the row as it was, ``denoising_weights`` float32 [B, L], 1 on its real tokens,
        and ``decoder_input_ids`` int32 [B, L], the labels one place later behind a [SEP] (fairseq begins with </s>).

        Where a row is full, insertions that find no room are left out; the text itself is lost neither there nor here.

        Raises:
          BertJaxError: places of the batch's tokens have a meaning already, which moving them would spoil.
        """
        for key in _FIXED:
            if key in batch:
                raise BertJaxError(f"Denoising moves tokens, and the batch's {key} would not follow: give it a turn of its own")
        original, length = batch["input_ids"], batch["input_ids"].shape[1]
        permute, mask, delete, infill, rotate, places, draw = (functional.fold(seeds, number) for number in range(7))
        row = {key: batch[key] for key in (*_MOVED, "attention_mask") if key in batch}

        if self.permute:
            row = _taken(row, noising.permuted(permute, _text(row, pieces), row["sentence_starts"]))
        if self.mask:
            text = _text(row, pieces)
            hidden = noising.chosen(mask, text, jnp.asarray(noising.shares(self.mask, length))[text.sum(axis=1)])
            row |= {"input_ids": self._hide(functional.fold(draw, 0), row["input_ids"], hidden, pieces)}
        if self.delete:
            text = _text(row, pieces)
            lost = noising.chosen(delete, text, jnp.asarray(noising.shares(self.delete, length))[text.sum(axis=1)])
            row = _closed(row, noising.rearranged(delete, row["attention_mask"] & ~lost, jnp.zeros(len(original), int)), pieces)
        if self.infill:
            spans = noising.spans(infill, _text(row, pieces), row["word_starts"], self.infill, self.span_mean)
            row |= {"input_ids": self._hide(functional.fold(draw, 1), row["input_ids"], spans.heads, pieces)}
            found = noising.rearranged(places, row["attention_mask"] & ~spans.gone, spans.inserted)
            row = _closed(row, found, pieces)
            row |= {"input_ids": self._hide(functional.fold(draw, 2), row["input_ids"], found.inserted, pieces)}
        if self.rotate:
            row = _taken(row, noising.rotated(rotate, _text(row, pieces), self.rotate))

        begin = jnp.full_like(original[:, :1], pieces.sep_id)
        return batch | row | {
            "decoder_input_ids": jnp.concatenate([begin, original[:, :-1]], axis=1),
            "denoising_labels": original,
            "denoising_weights": batch["attention_mask"].astype(jnp.float32),
        }

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Ratio]:
        """Cross entropy in nats over all tokens of the original, [CLS] and [SEP] among them, and accuracy. The perplexity is
        exp(loss)."""
        return scored(outputs.logits[self.name], batch["denoising_labels"], batch["denoising_weights"])

    def _hide(
        self, seeds: UInt32[Array, "B 2"], ids: Int[Array, "B L"], hidden: Bool[Array, "B L"], pieces: Pieces
    ) -> Int[Array, "B L"]:
        masks = jnp.full_like(ids, pieces.mask_id)
        if self.random:
            drawn = pieces.draw(functional.fold(seeds, 0), ids.shape)
            masks = jnp.where(functional.uniform(functional.fold(seeds, 1), ids.shape) < self.random, drawn, masks)
        return jnp.where(hidden, masks, ids)


def _text(row: Batch, pieces: Pieces) -> Bool[Array, "B L"]:
    return row["attention_mask"] & (row["input_ids"] != pieces.cls_id) & (row["input_ids"] != pieces.sep_id)


def _taken(row: Batch, order: Int[Array, "B L"]) -> Batch:
    moved = {key: jnp.take_along_axis(row[key], order, axis=1, mode="promise_in_bounds") for key in _MOVED if key in row}
    return row | moved


def _closed(row: Batch, found: noising.Rearranged, pieces: Pieces) -> Batch:
    """The row as it was rearranged: padding at its end, nothing left of what was removed; what is inserted is a word."""
    row = _taken(row, found.order)
    empty = {"input_ids": pieces.pad_id}
    row = {key: jnp.where(found.real, row[key], jnp.asarray(empty.get(key, 0), row[key].dtype)) for key in row}
    if "word_starts" in row:
        row["word_starts"] |= found.inserted
    if "sentence_starts" in row:
        row["sentence_starts"] &= ~found.inserted
    return row | {"attention_mask": found.real}
