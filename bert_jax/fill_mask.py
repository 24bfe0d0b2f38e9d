"""Filling masks: the quickest look at what a masked language model has learnt."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.compilation import keep_programs
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer


class Guess(NamedTuple):
    """A piece for a mask, and its probability."""

    piece: str
    probability: float


def fill_mask(
    params: api.Params, config: EncoderConfig, tokenizer: Tokenizer | None, text: str, top: int = 5
) -> list[list[Guess]]:
    """The ``top`` most probable pieces for every [MASK] in ``text``, in order; special pieces are not offered.

    Raises:
      BertJaxError: no mask in the text, no masked-language-model head, a text longer than the position table, or ``top``
        below 1.
    """
    keep_programs()
    if top < 1:
        raise BertJaxError(f"{top} guesses for a mask: at least 1")
    if tokenizer is None:
        raise BertJaxError("this checkpoint has no tokenizer: bert-jax convert --tokenizer puts one beside it")
    if "mlm" not in params:
        generator = ": of an ELECTRA the generator has one, which RUN#generator names" if "discriminator" in params else ""
        raise BertJaxError("this checkpoint has no masked-language-model head" + generator)
    mask = tokenizer.piece(tokenizer.mask_id)
    ids, _ = tokenizer.build(tokenizer.encode(text, special=True).ids)
    if config.positions == "absolute" and len(ids) > config.max_length:
        raise BertJaxError(f"the text has {len(ids)} tokens, the position table {config.max_length}: shorten it")
    positions = np.flatnonzero(ids == tokenizer.mask_id)
    if not len(positions):
        raise BertJaxError(f"the text has no {mask}: put one where a word is to be guessed")
    if ids.max() >= config.vocab_size:
        raise BertJaxError(f"token id {ids.max()} is beyond the vocabulary of {config.vocab_size}: not its tokenizer")
    batch = {"input_ids": jnp.asarray(ids[None], jnp.int32), "masked_positions": jnp.asarray(positions[None], jnp.int32)}
    if config.positions == "relative":  # XLNet never saw [MASK]: a token to be guessed is a query, which nobody sees
        queries = batch["input_ids"] == tokenizer.mask_id
        batch |= {"query_slots": queries, "attention_mask": ~queries}
    logits = _logits(params, config, batch)[0]
    offered = np.array(logits[:, : tokenizer.vocab_size], np.float64)
    offered[:, list(tokenizer.special_ids)] = -np.inf
    log_total = np.logaddexp.reduce(offered, axis=-1, keepdims=True)
    probabilities = np.exp(offered - log_total)
    best = np.argsort(-offered, axis=-1, kind="stable")[:, : min(top, tokenizer.vocab_size - len(tokenizer.special_ids))]
    return [
        [Guess(tokenizer.piece(int(piece)), float(row[piece])) for piece in order]
        for row, order in zip(probabilities, best, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=1)  # here, so that what has been compiled for a length serves the next call as well
def _logits(params: api.Params, config: EncoderConfig, batch: dict[str, jax.Array]) -> jax.Array:
    return api.apply(params, config, batch).logits["mlm"]
