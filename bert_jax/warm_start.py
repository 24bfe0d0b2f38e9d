"""What a run begins with and leaves beside its checkpoints: parameters of another checkpoint, the tokenizer."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.model import TOKENIZER, Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer

log = logging.getLogger("bert_jax")

# Fields of an encoder in which a checkpoint may differ from the run that starts from it: how it is trained and computed.
_MAY_DIFFER = {"dropout", "attention_dropout", "head_dropout", "init_std", "compute_dtype", "remat", "unroll", "with_heads",
               "labels", "vocab_multiple"}


def warm_start(
    model: Model, name: str, encoder: EncoderConfig, init: Callable[[Key[Array, ""]], api.Params], key: Key[Array, ""],
    tokenizer_hash: str | None,
) -> api.Params:
    """Host arrays for the tree of ``init``: the model's where it has them, fresh ones for other heads (one warning line).

    Args:
      name: what messages call the model: the checkpoint that it was loaded from.

    Raises:
      BertJaxError: the model has another tokenizer, or is another encoder than ``encoder``.
    """
    if None not in (model.tokenizer, tokenizer_hash) and model.tokenizer.hash != tokenizer_hash:
        raise BertJaxError(f"{name} has another tokenizer than the data: prepare the text with --tokenizer {name}")
    theirs, ours = (dataclasses.asdict(config) for config in (model.config, encoder))
    differ = [field for field in ours if field not in _MAY_DIFFER and ours[field] != theirs[field]]
    if differ:
        wanted = " ".join(f"--set task.encoder.{field}={theirs[field]}" for field in differ)
        raise BertJaxError(f"{name} is another encoder than task.encoder; to start from it: {wanted}")
    parts = jax.eval_shape(init, key).keys()
    fresh, unused = parts - model.params.keys(), model.params.keys() - parts
    if fresh:
        log.warning("%s has no head %s: it starts untrained", name, ", ".join(sorted(fresh)))
    if unused:
        log.warning("%s has a head %s that is not trained here and left out", name, ", ".join(sorted(unused)))
    begun = init(key) if fresh else {}
    params = {part: tree for part, tree in {**begun, **model.params}.items() if part not in unused}
    for part, leaf in (("embeddings", "token"), ("mlm", "bias")):  # the rows that only pad the vocabulary
        if part in model.params and part not in unused:
            table = np.asarray(model.params[part][leaf])[: encoder.vocab_size]
            extra = encoder.padded_vocab_size - encoder.vocab_size
            params[part] = params[part] | {leaf: np.pad(table, [(0, extra)] + [(0, 0)] * (table.ndim - 1))}
    return params


def save_beside(workdir: Path, tokenizer: Tokenizer) -> None:
    """Saves the tokenizer into a work directory, whole or not at all; BertJaxError where another one lies there."""
    target = workdir / TOKENIZER
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save(partial)
        partial.rename(target)
    elif (there := tokenizers.load(target)).hash != tokenizer.hash:
        raise BertJaxError(
            f"{workdir} was trained with tokenizer {there.hash}, the data has {tokenizer.hash}: use the same one, or another "
            "--workdir"
        )
